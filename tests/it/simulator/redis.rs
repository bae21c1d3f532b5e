//! Redis: atomic commands on a few keys; it can be emptied, or start again without the end of its
//! command log.

use super::{
    defects::Defect,
    messages::{Entry, OnlineValue, Reply},
    trace::say,
    world::{CAP, Count, ENTITIES, LEASE, PARTITIONS, World},
};
use millstream::protocol::{
    generation::Found,
    online::{Admission, OnlineRule, PromiseFate, promise_fate, wins},
    source::{Promised, Token},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
};

/// The keys.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    /// The run that the store has looked at.
    pub known_run: Option<u64>,
    /// Absent: everything was lost.
    pub generation: Option<Rc<str>>,
    /// The last batch that is online.
    pub online_to: Option<i64>,
    /// What was to be online, of which lineage.
    pub critical: Option<Rc<str>>,
    /// Who may write online.
    pub tokens: [Option<Token>; PARTITIONS],
    /// How far, and by which script, online values may be ahead.
    pub promised: [Option<Promised>; PARTITIONS],
    /// The critical feature of each entity: packed version and value.
    pub online: [Option<(Rc<str>, i32)>; ENTITIES],
    /// The queue.
    pub stream: VecDeque<Entry>,
    /// Whether the consumer group is there.
    pub group: bool,
    /// The last entry that the group has handed out.
    pub delivered_to: u64,
    /// Handed out and not acknowledged.
    pub pending: BTreeSet<u64>,
    /// Answers by node.
    pub replies: BTreeMap<u64, VecDeque<Reply>>,
    /// Leases by expiry.
    pub permits: Vec<(u64, u64)>,
    /// Before this moment no lease is granted.
    pub permits_from: Option<u64>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Redis {
    /// Which start of the server this is.
    pub run: u64,
    /// What it holds.
    pub keys: Keys,
    /// What it held after some of its latest commands.
    recent: VecDeque<Keys>,
    /// When it last lost anything; for the judge.
    pub lost_at: u64,
    /// Entries that were answered; for the judge.
    pub answered: Vec<u64>,
}

/// What a source promises with an online write.
#[derive(Debug)]
pub struct Writing<'a> {
    /// The generation that the writer knows.
    pub generation: &'a str,
    /// Partition.
    pub p: usize,
    /// The writer's token.
    pub token: Token,
    /// What becomes online, and by which script.
    pub promised: Promised,
    /// Whether everything before the part is durable.
    pub settled: bool,
    /// Newest of each key.
    pub values: &'a [OnlineValue],
}

impl World {
    /// Called after each command that changed something.
    pub fn logged(&mut self) {
        if self.faults && self.pick(12) == 0 {
            let keys = self.redis.keys.clone();
            self.redis.recent.push_back(keys);
            if self.redis.recent.len() > 4 {
                self.redis.recent.pop_front();
            }
        }
    }

    /// FLUSHALL.
    pub fn empty_redis(&mut self) {
        self.count(Count::RedisEmptied);
        self.redis.keys = Keys::default();
        self.redis.lost_at = self.now;
        self.redis.recent.clear();
        say!(self, "redis", "emptied");
    }

    /// Killed and started again; the end of the log may be gone.
    pub fn restart_redis(&mut self) {
        self.count(Count::RedisRestarted);
        self.redis.run += 1;
        self.redis.lost_at = self.now;
        let choice = self.pick(self.redis.recent.len() + 1);
        if let Some(keys) = self.redis.recent.get(choice) {
            self.redis.keys = keys.clone();
            self.count(Count::RedisLostEnd);
        }
        self.redis.recent.clear();
        let (run, online_to) = (self.redis.run, self.redis.keys.online_to);
        let tokens = self.redis.keys.tokens.map(|t| t.map(|t| t.number));
        say!(
            self,
            "redis",
            "started again as run {run}: online_to {online_to:?}, tokens {tokens:?}"
        );
    }

    /// What the store sees when it looks.
    pub fn found(&self) -> Found {
        let keys = &self.redis.keys;
        Found {
            run_id: self.redis.run.to_string(),
            known_run_id: keys.known_run.map(|run| run.to_string()),
            generation: keys.generation.as_deref().map(ToOwned::to_owned),
            online_to: keys.online_to,
            critical: keys.critical.as_deref().map(ToOwned::to_owned),
        }
    }

    /// The online script, as a process node calls it.
    pub fn write_online(&mut self, write: &Writing<'_>) -> Admission {
        let keys = &self.redis.keys;
        let stored = keys.tokens[write.p].map(|t| t.to_string());
        let generation = keys.generation.as_deref();
        let own = write.token.to_string();
        let unfenced = self.has(Defect::NoTokenCheck);
        let token = if unfenced { Some(own.as_str()) } else { stored.as_deref() };
        let admission = OnlineRule { generation, token }.admit(write.generation, &own);
        if admission == Admission::Admitted {
            if !self.promise(write) {
                return Admission::Early;
            }
            for value in write.values {
                self.put_value(value);
            }
            self.logged();
        }
        admission
    }

    /// Notes what is promised; `false`: it must wait.
    fn promise(&mut self, write: &Writing<'_>) -> bool {
        let settled = write.settled || self.has(Defect::PromiseNotAwaited);
        let overwrite = self.has(Defect::PromiseOverwritten);
        let promised = &mut self.redis.keys.promised[write.p];
        match promise_fate(promised.as_ref(), &write.promised, settled) {
            PromiseFate::Early => return false,
            PromiseFate::KeptOut if !overwrite => {}
            _ => *promised = Some(write.promised.clone()),
        }
        true
    }

    fn put_value(&mut self, value: &OnlineValue) {
        let stored = self.redis.keys.online[value.entity].as_ref().map(|(version, _)| &**version);
        if self.has(Defect::OnlineWithoutRule) || wins(stored, &*value.packed) {
            self.redis.keys.online[value.entity] = Some((value.packed.clone(), value.value));
        } else {
            self.count(Count::KeptOut);
        }
    }

    /// The online script, as the store calls it: only the generation is asked for.
    pub fn repeat_online(&mut self, generation: &str, values: &[OnlineValue]) -> bool {
        if self.redis.keys.generation.as_deref() != Some(generation) {
            return false;
        }
        for value in values {
            self.put_value(value);
        }
        self.logged();
        true
    }

    /// XADD.
    pub fn xadd(&mut self, mut entry: Entry) -> u64 {
        entry.id = self.fresh_id();
        let id = entry.id;
        self.redis.keys.stream.push_back(entry);
        if self.has(Defect::StreamTrimmed) && self.redis.keys.stream.len() > 3 {
            self.redis.keys.stream.pop_front();
        }
        self.logged();
        id
    }

    /// XREADGROUP: entries after `cursor` among the pending ones, or new ones. `None`: no group.
    pub fn xreadgroup(&mut self, cursor: Option<u64>, count: usize) -> Option<Vec<Entry>> {
        let keys = &mut self.redis.keys;
        if !keys.group {
            return None;
        }
        let pending = &keys.pending;
        let after = keys.delivered_to;
        let wanted = |e: &&Entry| match cursor {
            Some(cursor) => e.id > cursor && pending.contains(&e.id),
            None => e.id > after,
        };
        let entries: Vec<Entry> = keys.stream.iter().filter(wanted).take(count).cloned().collect();
        if cursor.is_none() && !entries.is_empty() {
            keys.pending.extend(entries.iter().map(|e| e.id));
            keys.delivered_to = entries[entries.len() - 1].id;
            self.logged();
        }
        Some(entries)
    }

    /// Whether an entry stands on the queue.
    pub fn is_queued(&self, id: u64) -> bool {
        self.redis.keys.stream.iter().any(|e| e.id == id)
    }

    /// Grants a lease, or not.
    pub fn acquire(&mut self, lease: u64) -> bool {
        let now = self.now;
        let known = self.redis.keys.known_run == Some(self.redis.run)
            || self.has(Defect::LeaseOfUnknownRun)
            || self.has(Defect::SilentReconnect);
        let quarantine = !self.has(Defect::LeaseWithoutQuarantine);
        let keys = &mut self.redis.keys;
        keys.permits.retain(|(_, expiry)| *expiry > now);
        let from = *keys.permits_from.get_or_insert(now + LEASE);
        let granted = keys.permits.len() < CAP && (!quarantine || (known && now >= from));
        if granted {
            keys.permits.push((lease, now + LEASE));
        }
        self.logged();
        granted
    }

    /// Renews a lease that is still there.
    pub fn renew_lease(&mut self, lease: u64) -> bool {
        let now = self.now;
        let keys = &mut self.redis.keys;
        keys.permits.retain(|(_, expiry)| *expiry > now);
        let found = keys.permits.iter_mut().find(|(name, _)| *name == lease);
        let renewed = found.map(|(_, expiry)| *expiry = now + LEASE).is_some();
        self.logged();
        renewed
    }

    /// Gives a lease back.
    pub fn release(&mut self, lease: u64) {
        self.redis.keys.permits.retain(|(name, _)| *name != lease);
        self.logged();
    }
}
