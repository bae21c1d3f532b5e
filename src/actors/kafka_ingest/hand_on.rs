//! The way out of the poll thread: chunks into batches, credit, back-pressure, commits, status.

use super::{
    lane::{Chunk, Lane, LaneState, Opened},
    passing::Progress,
    place,
    poll_thread::{PartitionStatus, Wanted},
    polling::{METER, Polling},
};
use crate::{
    messages::{Credit, RECORD_OVERHEAD, SourceBatch},
    planted,
    protocol::{
        accumulator::Part,
        source::{Position, SourceName},
        ticket::Ticket,
    },
    supervision::Undelivered,
    telemetry::catalogue as m,
};
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{CommitMode, Consumer},
};
use std::{
    collections::BTreeMap,
    sync::PoisonError,
    time::{Duration, Instant},
};

/// A chunk is handed on when its first record is so old, even while records keep coming.
const CHUNK_AGE: Duration = Duration::from_millis(4);
/// Offsets are committed again, changed or not, after so long.
const COMMIT_ALL_EVERY: Duration = Duration::from_secs(5);

impl Polling {
    /// Turns chunks that are old enough, or all when nothing more is there, into batches.
    pub(super) fn cut_chunks(&mut self, all: bool) {
        for i in 0..self.lanes.len() {
            let due = match &self.lanes[i].state {
                LaneState::Reading(r) => {
                    r.chunk_since.is_some_and(|t| all || t.elapsed() >= CHUNK_AGE)
                }
                _ => false,
            };
            if due {
                self.cut(i);
            }
        }
    }

    pub(super) fn cut(&mut self, i: usize) {
        let lane = &mut self.lanes[i];
        let LaneState::Reading(reading) = &mut lane.state else { return };
        let size = (reading.chunk.len(), reading.chunk.bytes());
        let Some(chunk) = reading.cut(size) else { return };
        let opened = reading.opened.clone();
        self.stick(i, &opened, chunk);
    }

    /// Has partitions probed at which nothing comes though their logs go on.
    pub(super) fn probe_quiet(&mut self) {
        let seen = self.consumer.context().take_progress();
        for progress in seen {
            let Some(i) = self.lane_of(&progress.topic, progress.partition) else { continue };
            self.lanes[i].lag.ends_at(progress.end);
            if self.paused {
                continue;
            }
            let LaneState::Reading(reading) = &self.lanes[i].state else { continue };
            let from = reading.next;
            if self.held[self.lanes[i].stream] {
                continue;
            }
            if self.passing.observe(&progress, from, Instant::now()) {
                let Progress { topic, partition, .. } = progress;
                let source = self.lanes[i].source.clone();
                // The receiver lives in the node as long as this thread.
                let _ = self.parts.wanted.send(Wanted::Probe { source, topic, partition, from });
            }
        }
    }

    /// Has a partition probed whose first records lie behind its position.
    pub(super) fn doubt(&mut self, i: usize) {
        // What came before is no part of the doubt, and the position must not be covered by it.
        self.cut(i);
        let lane = &self.lanes[i];
        let LaneState::Reading(reading) = &lane.state else { return };
        tracing::info!(source = %lane.source, position = reading.next, "a hole in the log? probing");
        let (source, topic, partition) = (lane.source.clone(), lane.topic.clone(), lane.partition);
        let from = reading.next;
        if let Err(error) = place::pause(&self.consumer, &topic, partition) {
            tracing::warn!(%error, %source, "pause refused");
        }
        // The receiver lives in the node as long as this thread.
        let _ = self.parts.wanted.send(Wanted::Probe { source, topic, partition, from });
    }

    /// A probe found no record in `[from, to)`: the position moves on without one.
    pub(super) fn probed(&mut self, source: &SourceName, from: Position, to: Option<Position>) {
        let Some(i) = self.lanes.iter().position(|lane| lane.source == *source) else { return };
        let LaneState::Reading(reading) = &mut self.lanes[i].state else { return };
        if reading.next != from {
            return;
        }
        let doubted = reading.is_doubted();
        // Nothing came for a while, and yet there is a record: the consumer has lost its place.
        let stands_still = !doubted && to == Some(from);
        if stands_still {
            METER.error("stalled");
            tracing::warn!(%source, position = from, "the consumer stands still before a record; seeking again");
        }
        if let Some(chunk) = to.and_then(|to| reading.pass(to)) {
            let opened = reading.opened.clone();
            tracing::debug!(%source, from, to = chunk.to, "positions without records are passed");
            self.stick(i, &opened, chunk);
        }
        if doubted || stands_still {
            self.read_on(i);
        }
    }

    /// After a doubt: from the position on, wherever the consumer was.
    fn read_on(&mut self, i: usize) {
        let stands = self.stands(self.lanes[i].stream);
        let Lane { topic, partition, state, .. } = &mut self.lanes[i];
        let LaneState::Reading(reading) = state else { return };
        let set = if stands { place::seek } else { place::resume };
        reading.resumed();
        if let Err(error) = set(&self.consumer, topic, *partition, reading.next) {
            tracing::warn!(%error, source = %self.lanes[i].source, "reading on refused; opening the source again");
            self.reopen(i);
        }
    }

    fn stick(&mut self, i: usize, opened: &Opened, chunk: Chunk) {
        let Chunk { records, from, to, since: polled_at, pinned } = chunk;
        let (token, source_no) = (opened.token, opened.source_no);
        let lane = &mut self.lanes[i];
        if let Some(first) = records.get(0) {
            lane.lag.handed_on(to, first.timestamp_us);
        }
        let source = lane.source.clone();
        let ticket = Ticket::new(source.clone(), token, from, to, self.abandon.clone());
        self.stuck.push_back(SourceBatch {
            stream: lane.stream,
            source,
            token,
            source_no,
            from,
            to,
            pinned,
            records: vec![records],
            ticket,
            credit: Credit::default(),
            polled_at,
        });
    }

    /// Hands chunks on, in order, as far as there is credit and an accumulator.
    pub(super) fn push_stuck(&mut self) {
        while let Some(mut batch) = self.stuck.pop_front() {
            let (rows, bytes) = (batch.rows(), batch.bytes());
            let kib = ((bytes + rows * RECORD_OVERHEAD) >> 10) + 1;
            let kib = u32::try_from(kib.min(self.total_credit)).unwrap_or(u32::MAX);
            match self.parts.credit.clone().try_acquire_many_owned(kib) {
                Ok(permit) => batch.credit = Credit::new(permit),
                Err(_) => {
                    self.stuck.push_front(batch);
                    break;
                }
            }
            let handed = (batch.source.clone(), batch.to);
            match self.parts.accumulator.deliver(batch) {
                Ok(()) => {
                    METER.received(rows);
                    METER.sent(rows);
                    self.consumer.context().handed_on(handed.0, handed.1);
                }
                Err(Undelivered(mut batch)) => {
                    // The accumulator is between two lives: its credit goes back meanwhile.
                    batch.credit = Credit::default();
                    self.stuck.push_front(batch);
                    break;
                }
            }
        }
        METER.waiting(self.stuck.len(), self.stuck.front().map(|batch| batch.polled_at));
    }

    /// Pauses while chunks are stuck and resumes with a wide hysteresis: pausing drops what
    /// librdkafka has prefetched.
    pub(super) fn balance(&mut self) {
        if self.quiesced {
            return;
        }
        if !self.paused && self.stuck.len() > 1 {
            self.set_paused(true);
        } else if self.paused
            && self.stuck.is_empty()
            && self.parts.credit.available_permits() * 2 >= self.total_credit
        {
            self.set_paused(false);
        }
    }

    pub(super) fn set_paused(&mut self, pause: bool) {
        self.paused = pause;
        let held = self.held.clone();
        self.set_flow(pause, |stream| pause || !held[stream]);
    }

    /// Streams whose batches pile up stand still, the others go on.
    pub(super) fn follow_holds(&mut self) {
        for stream in 0..self.held.len() {
            let held = self.parts.holds.is_held(stream);
            if std::mem::replace(&mut self.held[stream], held) != held && !self.paused {
                let name = &self.parts.config.streams[stream].name;
                tracing::debug!(stream = name, held, "its batches pile up before Python");
                self.set_flow(held, |of| of == stream);
            }
        }
    }

    /// Whether a stream's partitions are to be paused.
    pub(super) fn stands(&self, stream: usize) -> bool {
        self.paused || self.held[stream]
    }

    fn set_flow(&mut self, pause: bool, concerns: impl Fn(usize) -> bool) {
        for Lane { stream, topic, partition, source, state, .. } in &mut self.lanes {
            let LaneState::Reading(reading) = state else { continue };
            if !concerns(*stream) {
                continue;
            }
            reading.resumed();
            let done = if pause {
                place::pause(&self.consumer, topic, *partition)
            } else {
                place::resume(&self.consumer, topic, *partition, reading.next)
            };
            if let Err(error) = done {
                tracing::warn!(%error, %source, pause, "pausing or resuming was refused");
            }
        }
    }

    /// Commits acknowledged positions, and only those.
    pub(super) fn commit(&mut self, mode: CommitMode) {
        self.last_commit = Instant::now();
        // librdkafka tells no result of an asynchronous commit: each position is sent again now
        // and then, in case that one was lost.
        if self.last_full_commit.elapsed() >= COMMIT_ALL_EVERY {
            self.last_full_commit = Instant::now();
            self.committed.clear();
        }
        let mut list = TopicPartitionList::new();
        // Only of sources that this node has opened: others may know better.
        for lane in self.lanes.iter().filter(|lane| lane.token().is_some()) {
            let mut next = self.parts.acknowledged.get(&lane.topic, lane.partition);
            if planted!("commit_before_answer")
                && let LaneState::Reading(reading) = &lane.state
            {
                next = Some(reading.next);
            }
            let Some(next) = next else { continue };
            let key = (lane.topic.clone(), lane.partition);
            if self.committed.get(&key) == Some(&next) {
                continue;
            }
            if list.add_partition_offset(&lane.topic, lane.partition, Offset::Offset(next)).is_ok()
            {
                self.committed.insert(key, next);
            }
        }
        if list.count() == 0 {
            return;
        }
        crate::crash_point!("j_before_commit");
        let done = self.consumer.commit(&list, mode);
        crate::crash_point!("j_committed");
        match done {
            Ok(()) => metrics::counter!(m::KAFKA_COMMITTED).increment(1),
            Err(error) => {
                tracing::warn!(%error, "offset commit refused; DuckDB's positions count");
                self.committed.clear();
            }
        }
    }

    /// Tells the metrics how far behind partitions are, and how long this thread has worked.
    pub(super) fn tell_times(&mut self) {
        let now_us = chrono::Utc::now().timestamp_micros();
        for Lane { topic, partition, lag, .. } in &mut self.lanes {
            let Some(next) = self.parts.acknowledged.get(topic, *partition) else { continue };
            let (topic, partition) = (topic.clone(), partition.to_string());
            metrics::gauge!(m::KAFKA_LAG_SECONDS, "topic" => topic, "partition" => partition)
                .set(lag.seconds(next, now_us));
        }
        let had = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let worked = Duration::try_from(had).unwrap_or(self.told.1);
        let now = Instant::now();
        let stands = self.lanes.iter().any(|lane| self.stands(lane.stream));
        METER.spent(
            now - self.told.0,
            worked.saturating_sub(self.told.1),
            stands || !self.stuck.is_empty(),
        );
        self.told = (now, worked);
    }

    /// Tells the status page.
    pub(super) fn publish(&self) {
        let mut halted = 0;
        let mut status = BTreeMap::new();
        for lane in &self.lanes {
            let mut s = PartitionStatus {
                acknowledged: self.parts.acknowledged.get(&lane.topic, lane.partition),
                ..PartitionStatus::default()
            };
            match &lane.state {
                LaneState::Opening { .. } => s.state = "opening",
                LaneState::Seeking(_) => s.state = "seeking",
                LaneState::Reading(reading) => {
                    s.state = "reading";
                    s.position = Some(reading.next);
                }
                LaneState::Waiting { older, .. } => {
                    s.state = "waiting";
                    let names: Vec<String> = older.iter().map(ToString::to_string).collect();
                    s.reason = Some(format!("came later than {}", names.join(", ")));
                }
                LaneState::Halted { reason, .. } => {
                    halted += 1;
                    s.state = "halted";
                    s.reason = Some(reason.clone());
                }
            }
            status.insert(lane.source.to_string(), s);
        }
        metrics::gauge!(m::KAFKA_HALTED).set(f64::from(halted));
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}
