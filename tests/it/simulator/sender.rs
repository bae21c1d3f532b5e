//! RedisQueue's sending side, as `src/actors/redis_queue/sender.rs` carries it.

use super::{
    defects::Defect,
    messages::{Effect, Entry, Reply, Request, Said, Verdict, Write, place},
    process::ToSender,
    redis::Writing,
    trace::say,
    world::{Count, Net, World, script_name},
};
use millstream::protocol::{
    online::Admission,
    source::{OpenReply, Promised},
    ticket::Ticket,
    window::{PartRange, SendWindows},
};
use std::{
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};

/// A write that is unanswered for so long is looked for on the queue.
const LOOK_AFTER: u64 = 300;
/// How long an unanswered open is remembered.
const OPEN_KEPT: u64 = 10_000;

/// A batch that went through Python.
pub struct Features {
    /// Under which version.
    pub script: u8,
    /// Effects with their tickets.
    pub parts: Vec<(Effect, Ticket)>,
}

/// A batch whose online values are being written.
struct Preparing {
    script: u8,
    generation: Rc<str>,
    to_write: Vec<(Effect, Ticket)>,
    written: Vec<(Effect, Ticket)>,
}

/// A batch that waits for its turn.
struct Outgoing {
    write: Rc<Write>,
    parts: Vec<(PartRange, Ticket)>,
}

struct Unanswered {
    id: Option<u64>,
    write: Option<Rc<Write>>,
    parts: Vec<(PartRange, Ticket)>,
    p: Option<usize>,
    sent_at: u64,
    missed: bool,
}

struct ToQueue {
    round: u64,
    again: bool,
    request: Request,
}

/// See the module.
pub struct Sender {
    reply_to: u64,
    /// What other actors told it.
    pub mailbox: VecDeque<ToSender>,
    preparing: Vec<Preparing>,
    windows: SendWindows<Outgoing>,
    unanswered: BTreeMap<u64, Unanswered>,
    last_round: u64,
    to_queue: VecDeque<ToQueue>,
}

impl Sender {
    /// Empty; answers to an earlier one are nobody's.
    pub fn new(reply_to: u64) -> Self {
        Self {
            reply_to,
            mailbox: VecDeque::new(),
            preparing: Vec::new(),
            windows: SendWindows::default(),
            unanswered: BTreeMap::new(),
            last_round: reply_to << 32,
            to_queue: VecDeque::new(),
        }
    }

    /// Whether nothing is under way.
    pub fn is_quiet(&self) -> bool {
        self.mailbox.is_empty()
            && self.preparing.is_empty()
            && self.windows.waiting() == 0
            && self.unanswered.values().all(|u| u.write.is_none())
            && self.to_queue.is_empty()
    }
}

impl World {
    /// One step of a node's RedisQueue.
    pub fn sender_step(&mut self, n: usize) {
        match self.pick(6) {
            0 => self.sender_mail(n),
            1 | 2 => self.write_part(n),
            3 => self.put_on_queue(n),
            4 => self.listen(n),
            _ => self.look_for_missing(n),
        }
        self.pump(n);
    }

    fn sender_mail(&mut self, n: usize) {
        let generation = self.nodes[n].generation.clone();
        match self.nodes[n].sender.mailbox.pop_front() {
            Some(ToSender::Features(Features { script, parts })) => {
                let written = Vec::with_capacity(parts.len());
                let batch = Preparing { script, generation, to_write: parts, written };
                self.nodes[n].sender.preparing.push(batch);
            }
            Some(ToSender::Open(p, request)) => {
                self.close(n, p);
                self.enqueue(n, Request::Open(p, request), None, Vec::new(), Some(p));
            }
            Some(ToSender::Close(p)) => self.close(n, p),
            None => {}
        }
    }

    fn close(&mut self, n: usize, p: usize) {
        let now = self.now;
        self.nodes[n].durable[p] = None;
        let sender = &mut self.nodes[n].sender;
        sender.windows.close(&self.sources[p]);
        sender
            .unanswered
            .retain(|_, u| u.write.is_some() || u.p != Some(p) || now - u.sent_at < OPEN_KEPT);
    }

    /// Writes one part of one batch online. Parts and batches go side by side.
    fn write_part(&mut self, n: usize) {
        let batches = self.nodes[n].sender.preparing.len();
        if batches == 0 {
            return;
        }
        let i = self.pick(batches);
        let parts = self.nodes[n].sender.preparing[i].to_write.len();
        let at = self.pick(parts);
        let (p, from, to) = {
            let range = &self.nodes[n].sender.preparing[i].to_write[at].0;
            (range.p, range.range.from, range.range.to)
        };
        let net = self.net();
        if net == Net::RequestLost {
            return;
        }
        let batch = &self.nodes[n].sender.preparing[i];
        let effect = &batch.to_write[at].0;
        let (token, values, generation) =
            (effect.range.token, effect.online(), batch.generation.clone());
        let promised = Promised { to, script_sha256: script_name(batch.script).to_owned() };
        let durable = self.nodes[n].durable[p];
        let settled = durable.is_some_and(|at| from <= at);
        let write =
            Writing { generation: &generation, p, token, promised, settled, values: &values };
        let admission = self.write_online(&write);
        let (number, node) = (token.number, format!("node{n}"));
        say!(self, node, "online {p}/[{from},{to}) token {number}: {admission:?} {net:?}");
        if net == Net::ReplyLost {
            return;
        }
        let batch = &mut self.nodes[n].sender.preparing[i];
        match admission {
            Admission::Admitted => {
                let part = batch.to_write.swap_remove(at);
                batch.written.push(part);
                self.count(Count::OnlineWritten);
            }
            Admission::Early if durable.is_some() => return self.count(Count::PromiseAwaited),
            Admission::Fenced | Admission::Early => {
                batch.to_write.swap_remove(at);
                self.count(Count::OnlineFenced);
            }
            Admission::Generation => {
                self.nodes[n].sender.preparing.swap_remove(i);
                if let Some(known) = self.redis.keys.generation.clone() {
                    self.nodes[n].generation = known;
                }
                self.count(Count::OnlineGeneration);
                return;
            }
        }
        if self.nodes[n].sender.preparing[i].to_write.is_empty() {
            self.prepared(n, i);
        }
    }

    fn prepared(&mut self, n: usize, i: usize) {
        let Preparing { script, generation, written, .. } =
            self.nodes[n].sender.preparing.swap_remove(i);
        if written.is_empty() {
            return;
        }
        let (effects, tickets): (Vec<_>, Vec<_>) = written.into_iter().unzip();
        let ranges: Vec<PartRange> = effects.iter().map(|e| e.range.clone()).collect();
        let parts = ranges.iter().cloned().zip(tickets).collect();
        let write = Rc::new(Write { script, generation, effects });
        self.nodes[n].sender.windows.push(ranges, Outgoing { write, parts });
    }

    fn pump(&mut self, n: usize) {
        while let Some(Outgoing { write, parts }) = self.nodes[n].sender.windows.next_sendable() {
            if self.has(Defect::CommitBeforeAnswer) {
                for effect in &write.effects {
                    self.nodes[n].acknowledged[effect.p] = Some(effect.range.to);
                }
            }
            self.enqueue(n, Request::Write(write.clone()), Some(write), parts, None);
        }
    }

    fn enqueue(
        &mut self,
        n: usize,
        request: Request,
        write: Option<Rc<Write>>,
        parts: Vec<(PartRange, Ticket)>,
        p: Option<usize>,
    ) {
        let sent_at = self.now;
        let sender = &mut self.nodes[n].sender;
        sender.last_round += 1;
        let round = sender.last_round;
        let unanswered = Unanswered { id: None, write, parts, p, sent_at, missed: false };
        sender.unanswered.insert(round, unanswered);
        sender.to_queue.push_back(ToQueue { round, again: false, request });
    }

    /// Puts the next entry on the queue; one whose fate is unknown is put there again.
    fn put_on_queue(&mut self, n: usize) {
        let sender = &self.nodes[n].sender;
        let Some(next) = sender.to_queue.front() else { return };
        let (round, again, request) = (next.round, next.again, next.request.clone());
        let reply_to = sender.reply_to;
        let net = self.net();
        if net == Net::RequestLost {
            return;
        }
        let id = self.xadd(Entry { id: 0, reply_to, round, again, request });
        say!(self, format!("node{n}"), "entry {id} round {} {net:?}", round & 0xffff_ffff);
        if net == Net::Done {
            let sender = &mut self.nodes[n].sender;
            sender.to_queue.pop_front();
            if let Some(unanswered) = sender.unanswered.get_mut(&round) {
                unanswered.id = Some(id);
            }
        }
    }

    fn listen(&mut self, n: usize) {
        let reply_to = self.nodes[n].sender.reply_to;
        let net = self.net();
        if net == Net::RequestLost {
            return;
        }
        let Some(list) = self.redis.keys.replies.get_mut(&reply_to) else { return };
        let Some(reply) = list.pop_front() else { return };
        if list.is_empty() {
            self.redis.keys.replies.remove(&reply_to);
        }
        self.logged();
        if net == Net::ReplyLost {
            self.count(Count::AnswerLost);
            return;
        }
        self.answered(n, reply);
    }

    fn answered(&mut self, n: usize, Reply { round, said }: Reply) {
        let Some(unanswered) = self.nodes[n].sender.unanswered.remove(&round) else { return };
        match said {
            Said::Opened(p, reply) => {
                if let OpenReply::Opened { token, next_pos, .. } = &reply {
                    let source = self.sources[p].clone();
                    self.nodes[n].durable[p] = Some(*next_pos);
                    self.nodes[n].sender.windows.opened(source, *token, *next_pos);
                }
                self.nodes[n].opened.push_back((p, reply));
            }
            Said::Written(verdicts) => {
                for ((_, ticket), verdict) in unanswered.parts.into_iter().zip(verdicts) {
                    self.settle(n, ticket, &verdict);
                }
            }
            Said::Refused => {
                let reason = "DuckDB refuses the write";
                let refused = unanswered.parts.iter().map(|(range, _)| range.source.clone());
                let refused: Vec<_> = refused.collect();
                for p in (0..self.sources.len()).filter(|p| refused.contains(&self.sources[*p])) {
                    let reply = OpenReply::Halted { reason: reason.to_owned() };
                    self.nodes[n].opened.push_back((p, reply));
                }
                if let Some(p) = unanswered.p {
                    let reply = OpenReply::Halted { reason: reason.to_owned() };
                    self.nodes[n].opened.push_back((p, reply));
                }
            }
        }
    }

    fn settle(&mut self, n: usize, ticket: Ticket, verdict: &Verdict) {
        let node = &mut self.nodes[n];
        node.sender.windows.answered(&verdict.range);
        if verdict.decision.is_ok() {
            ticket.settle();
            let known = &mut node.acknowledged[verdict.p];
            *known = Some(known.map_or(verdict.next_pos, |k| k.max(verdict.next_pos)));
            let durable = &mut node.durable[verdict.p];
            *durable = durable.map(|at| at.max(verdict.next_pos));
        } else {
            node.sender.windows.lost(&verdict.range);
        }
        let name = verdict.decision.name();
        say!(self, format!("node{n}"), "{} answered {name}", place(&verdict.range));
    }

    /// Looks for writes that are unanswered for long; what left the queue is sent again when it was
    /// missed twice.
    fn look_for_missing(&mut self, n: usize) {
        let now = self.now;
        let old = |u: &Unanswered| u.write.is_some() && now - u.sent_at >= LOOK_AFTER;
        let sender = &self.nodes[n].sender;
        let old: Vec<(u64, u64)> = sender
            .unanswered
            .iter()
            .filter_map(|(round, u)| Some((*round, u.id.filter(|_| old(u))?)))
            .collect();
        for (round, id) in old {
            if self.net() == Net::Done && !self.is_queued(id) {
                self.missing(n, round, id);
            }
        }
    }

    fn missing(&mut self, n: usize, round: u64, id: u64) {
        let now = self.now;
        let Some(unanswered) = self.nodes[n].sender.unanswered.get_mut(&round) else { return };
        if !std::mem::replace(&mut unanswered.missed, true) {
            return;
        }
        let Some(write) = unanswered.write.clone() else { return };
        let sent_at = std::mem::replace(&mut unanswered.sent_at, now);
        unanswered.id = None;
        unanswered.missed = false;
        self.judge_missing(id, sent_at);
        say!(self, format!("node{n}"), "entry {id} left the queue unanswered; sending it again");
        let request = Request::Write(write);
        self.nodes[n].sender.to_queue.push_back(ToQueue { round, again: true, request });
        self.count(Count::SentAgain);
    }
}
