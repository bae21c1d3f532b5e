//! The broker: partitions whose logs have holes and markers, committed offsets, and a consumer
//! group that hands partitions from node to node.

use super::{
    trace::say,
    world::{Count, ENTITIES, Event, NODES, PARTITIONS, World},
};
use rand::{Rng, rngs::SmallRng};
use std::collections::VecDeque;

/// A node that does not poll for so long has left the group.
pub const SESSION: u64 = 300;

/// One partition.
#[derive(Debug, Default)]
pub struct Partition {
    /// Events by offset; `None` is a hole or a transaction marker.
    pub log: Vec<Option<u32>>,
    /// The group's committed offset.
    pub committed: Option<i64>,
    /// Who may commit and is told of changes.
    pub owner: Option<usize>,
    /// The owner was asked to give it up, for this node.
    pub wanted_by: Option<usize>,
    /// After a restore of DuckDB the broker may be ahead up to here.
    pub ahead_allowed: i64,
}

/// See the module.
#[derive(Debug)]
pub struct Broker {
    /// By number.
    pub partitions: Vec<Partition>,
    /// Every event that was ever sent.
    pub events: Vec<Event>,
    /// Events that are still to be sent.
    pub to_send: usize,
}

/// A change of a node's partitions.
#[derive(Debug, Clone, Copy)]
pub enum Rebalanced {
    /// Assigned, paused.
    Assigned(usize),
    /// To be given up; its offset may be committed.
    Revoked(usize),
    /// Gone already.
    Lost(usize),
}

/// What a node has not seen yet.
pub type Changes = VecDeque<Rebalanced>;

impl Broker {
    /// Empty logs.
    pub fn new(rng: &mut SmallRng) -> Self {
        let partitions = (0..PARTITIONS).map(|_| Partition::default()).collect();
        Self { partitions, events: Vec::new(), to_send: rng.random_range(25..70) }
    }

    /// The next event at or after an offset.
    pub fn next_event(&self, p: usize, at: i64) -> Option<(i64, u32)> {
        let log = &self.partitions[p].log;
        (at as usize..log.len()).find_map(|i| Some((i as i64, log[i]?)))
    }

    /// The offset that the next record will get.
    pub fn high(&self, p: usize) -> i64 {
        self.partitions[p].log.len() as i64
    }
}

impl World {
    /// An event is produced, or the group moves.
    pub fn broker_step(&mut self) {
        if self.broker.to_send > 0 && (!self.faults || self.pick(4) == 0) {
            self.send();
        }
        for p in 0..PARTITIONS {
            let owner = self.broker.partitions[p].owner;
            if let Some(n) = owner {
                let node = &self.nodes[n];
                if !node.up || (self.faults && self.now - node.last_poll > SESSION) {
                    self.lose(p, n);
                }
            } else {
                let n = self.pick(NODES);
                let node = &self.nodes[n];
                if node.up && node.paused_until <= self.now {
                    let n = self.broker.partitions[p].wanted_by.take().unwrap_or(n);
                    self.assign(p, n);
                }
            }
        }
    }

    fn send(&mut self) {
        let entity = self.pick(ENTITIES);
        let p = entity % PARTITIONS;
        while self.pick(6) == 0 {
            self.broker.partitions[p].log.push(None);
        }
        let now = self.now as i64;
        let event = Event {
            entity: entity as u8,
            event_timestamp: now / 40 + self.rng.random_range(-6..6),
            created_at: self.rng.random_range(0..2),
            hash: self.rng.random(),
        };
        let id = self.broker.events.len() as u32;
        self.broker.events.push(event);
        self.broker.partitions[p].log.push(Some(id));
        self.broker.to_send -= 1;
        let at = self.broker.high(p) - 1;
        let when = event.event_timestamp;
        say!(self, "broker", "event {id} of entity {entity} at {p}/{at}, true at {when}");
    }

    fn assign(&mut self, p: usize, n: usize) {
        if !self.nodes[n].up {
            return;
        }
        self.broker.partitions[p].owner = Some(n);
        self.nodes[n].last_poll = self.now;
        self.nodes[n].changes.push_back(Rebalanced::Assigned(p));
        say!(self, "broker", "partition {p} goes to node {n}");
    }

    fn lose(&mut self, p: usize, n: usize) {
        self.broker.partitions[p].owner = None;
        self.broker.partitions[p].wanted_by = None;
        self.nodes[n].changes.push_back(Rebalanced::Lost(p));
        self.count(Count::PartitionLost);
        say!(self, "broker", "node {n} lost partition {p}");
    }

    /// The group is to hand a partition over.
    pub fn rebalance(&mut self) {
        let (p, n) = (self.pick(PARTITIONS), self.pick(NODES));
        let partition = &mut self.broker.partitions[p];
        let Some(owner) = partition.owner else { return };
        if owner == n || partition.wanted_by.is_some() {
            return;
        }
        partition.wanted_by = Some(n);
        self.nodes[owner].changes.push_back(Rebalanced::Revoked(p));
        self.count(Count::Rebalanced);
        say!(self, "broker", "node {owner} is to give partition {p} to node {n}");
    }

    /// A node commits an offset; only the owner may.
    pub fn commit_offset(&mut self, n: usize, p: usize, next: i64) -> bool {
        let rate = self.rates.net;
        if self.goes_wrong(rate) {
            self.count(Count::OffsetLost);
            return false;
        }
        let partition = &mut self.broker.partitions[p];
        if partition.owner == Some(n) {
            partition.committed = Some(next);
            say!(self, "broker", "node {n} committed {p}/{next}");
        }
        true
    }
}
