//! The poll thread and the KafkaIngest actor of a node, as `src/actors/kafka_ingest` carries them.

use super::{
    broker::Rebalanced,
    defects::Defect,
    messages::{Opened, SourcePart},
    process::ToSender,
    trace::say,
    world::{Count, World, script_of},
};
use millstream::protocol::{
    source::{OpenReply, OpenRequest, SourceAttributes, Token},
    ticket::Ticket,
    window::PartRange,
};
use std::rc::Rc;

/// An open that is not answered is asked again after so long.
const REOPEN_AFTER: u64 = 500;
/// A halted source is asked for again after so long.
const HALTED_RETRY: u64 = 800;
/// Records a chunk.
const CHUNK_ROWS: usize = 4;

/// One partition.
pub struct Lane {
    /// Which.
    pub p: usize,
    /// See `LaneState` of the real one.
    pub state: LaneState,
    /// Where the broker is read.
    fetch_at: i64,
    /// The next seek is taken at its word.
    honest: bool,
}

/// What a lane does.
pub enum LaneState {
    /// The store was asked at this moment.
    Opening(u64),
    /// The consumer is to be set to the position.
    Seeking(Opened),
    /// Records come in.
    Reading(Reading),
    /// Asked last at this moment.
    Halted(u64),
}

/// A lane that reads.
pub struct Reading {
    opened: Opened,
    next: i64,
    chunk_from: i64,
    chunk: Vec<(i64, u32)>,
    first: First,
}

#[derive(PartialEq, Eq)]
enum First {
    Awaited,
    SeenAt(i64),
    Settled,
}

impl Lane {
    /// The token in use.
    pub fn token(&self) -> Option<Token> {
        match &self.state {
            LaneState::Reading(reading) => Some(reading.opened.token),
            LaneState::Seeking(opened) => Some(opened.token),
            _ => None,
        }
    }

    /// Whether records come in.
    pub fn is_reading(&self) -> bool {
        matches!(self.state, LaneState::Reading(_))
    }
}

impl World {
    fn lane_of(&mut self, n: usize) -> Option<usize> {
        let lanes = self.nodes[n].lanes.len();
        if lanes == 0 { None } else { Some(self.pick(lanes)) }
    }

    /// The consumer polls: changes of the group, then whatever else the thread does in a round.
    pub fn chores(&mut self, n: usize) {
        self.nodes[n].last_poll = self.now;
        if let Some(change) = self.nodes[n].changes.pop_front() {
            self.rebalanced(n, change);
        }
        while let Ok(abandoned) = self.nodes[n].abandoned.try_recv() {
            let current = |lane: &Lane| {
                self.sources[lane.p] == abandoned.source && lane.token() == Some(abandoned.token)
            };
            if let Some(i) = self.nodes[n].lanes.iter().position(current) {
                self.count(Count::Reopened);
                let p = self.nodes[n].lanes[i].p;
                let from = abandoned.from;
                say!(self, format!("node{n}"), "{p}/{from} was dropped unsettled; opening again");
                self.ask(n, i);
            }
        }
        self.advance_lane(n);
    }

    fn rebalanced(&mut self, n: usize, change: Rebalanced) {
        match change {
            Rebalanced::Assigned(p) => {
                self.nodes[n].lanes.retain(|lane| lane.p != p);
                let state = LaneState::Opening(self.now);
                self.nodes[n].lanes.push(Lane { p, state, fetch_at: 0, honest: false });
                let last = self.nodes[n].lanes.len() - 1;
                self.ask(n, last);
            }
            Rebalanced::Revoked(p) | Rebalanced::Lost(p) => {
                let owned = self.broker.partitions[p].owner == Some(n);
                if let (true, Rebalanced::Revoked(_), Some(next)) =
                    (owned, change, self.nodes[n].acknowledged[p])
                {
                    self.commit_offset(n, p, next);
                }
                if let (true, Rebalanced::Revoked(_)) = (owned, change) {
                    self.broker.partitions[p].owner = None;
                }
                let node = &mut self.nodes[n];
                node.acknowledged[p] = None;
                node.committed[p] = None;
                if node.lanes.iter().any(|lane| lane.p == p) {
                    node.wanted.push_back(ToSender::Close(p));
                }
                node.lanes.retain(|lane| lane.p != p);
                say!(self, format!("node{n}"), "gave up partition {p}");
            }
        }
    }

    fn ask(&mut self, n: usize, i: usize) {
        let now = self.now;
        let lane = &mut self.nodes[n].lanes[i];
        lane.state = match lane.state {
            LaneState::Halted(_) => LaneState::Halted(now),
            _ => LaneState::Opening(now),
        };
        let p = lane.p;
        self.nodes[n].stuck.retain(|(_, part)| part.p != p);
        let request = OpenRequest {
            source: self.sources[p].clone(),
            owner: String::new(),
            attributes: SourceAttributes::default(),
            start: 0,
            low: 0,
            high: self.broker.high(p),
            ephemeral: false,
            partitions: None,
            ends: Vec::new(),
        };
        self.nodes[n].wanted.push_back(ToSender::Open(p, Rc::new(request)));
    }

    fn advance_lane(&mut self, n: usize) {
        let Some(i) = self.lane_of(n) else { return };
        let now = self.now;
        match &self.nodes[n].lanes[i].state {
            LaneState::Opening(since) if now - since >= REOPEN_AFTER => self.ask(n, i),
            LaneState::Halted(since) if now - since >= HALTED_RETRY => self.ask(n, i),
            LaneState::Seeking(opened) => {
                let opened = opened.clone();
                let p = self.nodes[n].lanes[i].p;
                let mut at = opened.next_pos;
                if self.has(Defect::StartAtBrokersOffset) {
                    at = self.broker.partitions[p].committed.unwrap_or(at);
                }
                let reading = Reading {
                    next: at,
                    chunk_from: at,
                    opened,
                    chunk: Vec::new(),
                    first: First::Awaited,
                };
                self.nodes[n].lanes[i].honest = false;
                self.seek(n, i, at);
                self.nodes[n].lanes[i].state = LaneState::Reading(reading);
                say!(self, format!("node{n}"), "reads partition {p} from {at}");
            }
            _ => {}
        }
    }

    /// Sometimes the first seek lands behind the position, if records are there.
    fn seek(&mut self, n: usize, i: usize, at: i64) {
        let beside = if !self.nodes[n].lanes[i].honest && self.goes_wrong(50) {
            1 + self.pick(3) as i64
        } else {
            0
        };
        let missed = self.broker.next_event(self.nodes[n].lanes[i].p, at + beside).is_none();
        let lane = &mut self.nodes[n].lanes[i];
        lane.honest = true;
        lane.fetch_at = if missed { at } else { at + beside };
    }

    /// A record of one lane, if there is one.
    pub fn fetch(&mut self, n: usize) {
        let Some(i) = self.lane_of(n) else { return };
        if self.nodes[n].stuck.len() > 1 {
            return;
        }
        let lane = &self.nodes[n].lanes[i];
        let (p, fetch_at) = (lane.p, lane.fetch_at);
        let LaneState::Reading(reading) = &lane.state else { return };
        let Some((pos, event)) = self.broker.next_event(p, fetch_at) else { return };
        let crosses = reading.opened.promised.is_some_and(|(to, _)| {
            pos >= to && reading.chunk.first().is_some_and(|(first, _)| *first < to)
        });
        if crosses {
            return self.cut(n, i);
        }
        let lane = &mut self.nodes[n].lanes[i];
        lane.fetch_at = pos + 1;
        let LaneState::Reading(reading) = &mut lane.state else { return };
        if pos < reading.next {
            return;
        }
        if pos > reading.next
            && reading.first != First::Settled
            && reading.first != First::SeenAt(pos)
        {
            reading.first = First::SeenAt(pos);
            let at = reading.next;
            self.count(Count::Reseek);
            self.seek(n, i, at);
            return;
        }
        reading.first = First::Settled;
        reading.next = pos + 1;
        reading.chunk.push((pos, event));
        if reading.chunk.len() >= CHUNK_ROWS {
            self.cut(n, i);
        }
    }

    /// Turns the chunk of one lane into a part.
    pub fn cut_some(&mut self, n: usize) {
        if let Some(i) = self.lane_of(n) {
            self.cut(n, i);
        }
    }

    fn cut(&mut self, n: usize, i: usize) {
        let lane = &mut self.nodes[n].lanes[i];
        let p = lane.p;
        let LaneState::Reading(reading) = &mut lane.state else { return };
        let Some((first, _)) = reading.chunk.first().copied() else { return };
        let promised = reading.opened.promised;
        let pinned = promised.filter(|(to, _)| first < *to).map(|(_, script)| script);
        let records = std::mem::take(&mut reading.chunk);
        let from = std::mem::replace(&mut reading.chunk_from, reading.next);
        let (to, token, source_no) = (reading.next, reading.opened.token, reading.opened.source_no);
        if pinned.is_some() {
            self.count(Count::PromiseHonoured);
        }
        let source = self.sources[p].clone();
        let ticket = Ticket::new(source.clone(), token, from, to, self.nodes[n].abandon.clone());
        let range = PartRange { source, token, from, to };
        say!(self, format!("node{n}"), "read {p}/[{from},{to}) for script {pinned:?}");
        let part = SourcePart { p, range, source_no, records, ticket };
        self.nodes[n].stuck.push_back((pinned, part));
    }

    /// The actor passes one thing on, in one direction or the other.
    pub fn ingest_actor(&mut self, n: usize) {
        if let Some(wanted) = self.nodes[n].wanted.pop_front() {
            self.nodes[n].sender.mailbox.push_back(wanted);
        }
        let Some((p, reply)) = self.nodes[n].opened.pop_front() else { return };
        let now = self.now;
        let Some(lane) = self.nodes[n].lanes.iter_mut().find(|lane| lane.p == p) else { return };
        match reply {
            OpenReply::Opened { token, source_no, next_pos, promised } => {
                if lane.token().is_none_or(|known| token.number > known.number) {
                    let promised = promised
                        .map(|promised| (promised.to, script_of(&promised.script_sha256)))
                        .filter(|(to, _)| *to > next_pos);
                    lane.state =
                        LaneState::Seeking(Opened { token, source_no, next_pos, promised });
                    self.nodes[n].acknowledged[p] = Some(next_pos);
                }
            }
            OpenReply::Waiting { .. } => unreachable!("no topic grows here"),
            OpenReply::Halted { reason } => {
                lane.state = LaneState::Halted(now);
                self.count(Count::Halted);
                say!(self, format!("node{n}"), "halted: {reason}");
            }
        }
    }

    /// Commits what was acknowledged.
    pub fn commit_acknowledged(&mut self, n: usize) {
        let Some(i) = self.lane_of(n) else { return };
        let lane = &self.nodes[n].lanes[i];
        let p = lane.p;
        let Some(next) = self.nodes[n].acknowledged[p].filter(|_| lane.token().is_some()) else {
            return;
        };
        if self.nodes[n].committed[p] != Some(next) && self.commit_offset(n, p, next) {
            self.nodes[n].committed[p] = Some(next);
        }
    }
}
