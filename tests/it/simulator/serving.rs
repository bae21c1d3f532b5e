//! The store's side of Redis: looking, replaying, reading the queue, answering.

use super::{
    defects::Defect,
    messages::{Entry, OnlineValue, Reply, Said},
    store::Group,
    trace::say,
    world::{CRITICAL, Count, ENTITIES, LEASE, Net, PARTITIONS, World},
};
use millstream::protocol::{
    generation::{Action, action},
    source::OpenReply,
};

/// Entries in hand at most.
const IN_HAND: usize = 8;
/// Values that one command puts online at most.
const VALUES_A_CALL: usize = 2;

/// An entry whose answer is known.
pub struct Decided {
    /// The entry.
    pub entry: Entry,
    /// The answer.
    pub said: Said,
}

/// What the store is at.
#[derive(Default)]
pub enum Stage {
    /// Nothing.
    #[default]
    Idle,
    /// In a transaction.
    Group(Box<Group>),
    /// Planted: the watermark is still to be committed; then the other stage.
    Watermark(Box<Stage>),
    /// Committed: values to be repeated, then answers.
    Answer {
        /// Entries with their answers.
        decided: Vec<Decided>,
        /// Values that are still to be put online again.
        repeat: Vec<OnlineValue>,
        /// The tokens of opens are in Redis.
        tokens_told: bool,
    },
}

impl World {
    /// One step of the store.
    pub fn store_step(&mut self) {
        if !self.store.up {
            if self.store.down_until <= self.now {
                self.start_store();
            }
            return;
        }
        if !self.connected() {
            return;
        }
        if !self.store.looked {
            return self.look_at_redis();
        }
        let rate = self.rates.store / 4;
        if !matches!(self.store.stage, Stage::Idle) && self.goes_wrong(rate) {
            return self.kill_store();
        }
        match std::mem::take(&mut self.store.stage) {
            Stage::Idle => {
                let idle = self.store.alone.is_empty() && self.store.in_hand.is_empty();
                if idle || (self.store.in_hand.len() < IN_HAND && self.pick(2) == 0) {
                    self.read_queue();
                } else {
                    self.begin();
                }
            }
            Stage::Group(group) => self.group_step(group),
            Stage::Watermark(next) => {
                self.commit_watermark();
                self.store.stage = *next;
            }
            Stage::Answer { decided, repeat, tokens_told } => {
                self.answer_step(decided, repeat, tokens_told);
            }
        }
    }

    /// A connection belongs to one run of the server: another run means looking again first.
    fn connected(&mut self) -> bool {
        let run = Some(self.redis.run);
        if self.store.connected != run {
            let mends_itself = self.has(Defect::SilentReconnect) && self.store.connected.is_some();
            self.store.connected = run;
            if !mends_itself {
                self.store.looked = false;
                self.store.replay = None;
                self.store.cursor = Some(0);
            }
            return false;
        }
        true
    }

    /// Looks at Redis and does what the rule says; afterwards the marks say that it was done.
    fn look_at_redis(&mut self) {
        let last = self.store.db.last_batch_seq();
        let Some(mut values) = self.store.replay.take() else {
            return self.decide_what_to_replay(last);
        };
        let net = self.net();
        if values.is_empty() {
            if net != Net::RequestLost && self.has_generation() {
                let fingerprint = self.fingerprint();
                let run = self.redis.run;
                let keys = &mut self.redis.keys;
                keys.known_run = Some(run);
                keys.online_to = Some(last);
                keys.critical = Some(fingerprint.into());
                if !keys.group {
                    keys.group = true;
                    keys.delivered_to = 0;
                }
                self.logged();
            }
            // Looking once more tells whether it is done.
            return;
        }
        if net == Net::RequestLost {
            self.store.replay = Some(values);
            return;
        }
        let now: Vec<_> = values.drain(..values.len().min(VALUES_A_CALL)).collect();
        let generation = self.store.generation.clone();
        // What was refused begins again with a look.
        if self.repeat_online(&generation, &now) {
            self.store.replay = Some(values);
        }
    }

    /// Which features are to be online, of which lineage of the database.
    pub fn fingerprint(&self) -> String {
        format!("{CRITICAL}#{}", self.store.db.lineage)
    }

    fn has_generation(&self) -> bool {
        self.redis.keys.generation.as_ref() == Some(&self.store.generation)
    }

    fn decide_what_to_replay(&mut self, last: i64) {
        let found = self.found();
        self.count(Count::Looked);
        if found.online_to.is_some_and(|to| to > last) {
            // Else a Redis that loses its end brings back the marks, and the values, of batches
            // that are no more.
            self.store.db.lineage = self.fresh_id();
        }
        let action = action(&found, last, &self.fingerprint());
        say!(self, "store", "looked at Redis: {action:?} with {last} batches; {found:?}");
        match action {
            Action::Keep => {
                if let Some(generation) = self.redis.keys.generation.clone() {
                    self.store.generation = generation;
                }
                self.store.looked = self.redis.keys.group;
                if !self.redis.keys.group {
                    self.store.replay = Some(Vec::new());
                }
            }
            Action::Replay { after_batch_seq } => {
                self.count(Count::Replayed);
                if let Some(generation) = self.redis.keys.generation.clone() {
                    self.store.generation = generation;
                }
                self.store.replay = Some(self.store.db.newest_after(after_batch_seq));
            }
            Action::Renew { after_batch_seq } => {
                self.count(Count::Renewed);
                self.renew(after_batch_seq);
                self.store.replay = Some(self.store.db.newest_after(after_batch_seq));
            }
        }
    }

    /// A new generation, in one command: whoever knows only the old one changes nothing any more.
    fn renew(&mut self, after_batch_seq: i64) {
        let generation = format!("g{}", self.fresh_id());
        self.store.generation = generation.as_str().into();
        let (now, run) = (self.now, self.redis.run);
        let tokens = self.store.db.sources.map(|s| s.map(|s| s.token));
        let wipe = after_batch_seq == 0 && !self.has(Defect::RebuiltWithoutWipe);
        let quarantine = !self.has(Defect::LeaseWithoutQuarantine);
        let keys = &mut self.redis.keys;
        keys.generation = Some(self.store.generation.clone());
        keys.known_run = Some(run);
        if quarantine {
            keys.permits_from = Some(now + LEASE);
        }
        keys.tokens = tokens;
        if wipe {
            keys.online = [const { None }; ENTITIES];
            keys.promised = [const { None }; PARTITIONS];
        }
        self.logged();
    }

    fn read_queue(&mut self) {
        if self.net() == Net::RequestLost {
            return;
        }
        let count = 1 + self.pick(3);
        let cursor = self.store.cursor;
        match self.xreadgroup(cursor, count) {
            // The group is gone, and who knows what else.
            None => {
                self.store.looked = false;
                self.store.cursor = Some(0);
            }
            Some(entries) => {
                if cursor.is_some() {
                    self.store.cursor = entries.last().map(|e| e.id);
                }
                self.store.in_hand.extend(entries);
            }
        }
    }

    /// Entries are decided, and durable; they are answered next.
    pub fn decided(&mut self, decided: Vec<Decided>, repeat: Vec<OnlineValue>) {
        self.store.stage = Stage::Answer { decided, repeat, tokens_told: false };
    }

    fn answer_step(
        &mut self,
        mut decided: Vec<Decided>,
        mut repeat: Vec<OnlineValue>,
        tokens_told: bool,
    ) {
        let net = self.net();
        let stage = |decided, repeat, tokens_told| Stage::Answer { decided, repeat, tokens_told };
        if net == Net::RequestLost {
            self.store.stage = stage(decided, repeat, tokens_told);
        } else if !repeat.is_empty() {
            let now: Vec<_> = repeat.drain(..repeat.len().min(VALUES_A_CALL)).collect();
            let generation = self.store.generation.clone();
            if !self.repeat_online(&generation, &now) {
                repeat.extend(now);
                self.store.looked = false;
            }
            self.store.stage = stage(decided, repeat, tokens_told);
        } else if !tokens_told {
            for of in &mut decided {
                self.tell_token(of);
            }
            self.logged();
            self.store.stage = stage(decided, repeat, net == Net::Done);
        } else {
            self.answer(&decided);
            if net == Net::ReplyLost {
                self.store.stage = stage(decided, repeat, tokens_told);
            }
        }
    }

    /// From here on the old owner writes nothing online: what it promised is complete.
    fn tell_token(&mut self, of: &mut Decided) {
        let Said::Opened(p, OpenReply::Opened { token, promised, .. }) = &mut of.said else {
            return;
        };
        self.redis.keys.tokens[*p] = Some(*token);
        promised.clone_from(&self.redis.keys.promised[*p]);
    }

    /// Answers, `online_to` and the end of the entries, in one transaction of Redis.
    fn answer(&mut self, decided: &[Decided]) {
        for of in decided {
            self.push_answer(of);
            let id = of.entry.id;
            self.redis.keys.stream.retain(|e| e.id != id);
            self.redis.keys.pending.remove(&id);
        }
        self.redis.keys.online_to = Some(self.store.db.last_batch_seq());
        self.logged();
    }

    /// Pushes one answer; the judge looks at it first.
    pub fn push_answer(&mut self, of: &Decided) {
        self.judge_answer(of);
        let Decided { entry, said } = of;
        let reply = Reply { round: entry.round, said: said.clone() };
        self.redis.keys.replies.entry(entry.reply_to).or_default().push_back(reply);
    }
}
