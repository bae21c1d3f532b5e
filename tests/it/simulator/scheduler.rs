//! The scheduler: one seed picks every next step and every fault.

use super::{
    defects::Defect,
    judge,
    messages::{Effect, Entry, Request, Write},
    store::Store,
    trace::say,
    world::{COUNTED, Count, Counts, NODES, PARTITIONS, QUIET_WITHIN, Violation, World},
};
use millstream::protocol::window::PartRange;
use std::{
    rc::Rc,
    sync::atomic::{AtomicU64, Ordering},
};

/// What a run came to.
#[derive(Debug)]
pub struct Run {
    /// The promise that was broken, if any.
    pub violation: Option<Violation>,
    /// What happened how often.
    pub counts: Counts,
    /// Steps that it took.
    pub steps: u64,
    /// The last lines of its trace.
    pub tail: Vec<String>,
}

/// Runs one world from its seed to its end.
pub fn run(seed: u64, defect: Option<Defect>, trace: Option<usize>) -> Run {
    let mut world = World::new(seed, defect, trace.is_some());
    let faults_until = 2_000 + world.pick(6_000) as u64;
    let mut quiet_by = faults_until + QUIET_WITHIN;
    while world.violation.is_none() {
        if world.faults && world.now >= faults_until {
            world.faults = false;
            quiet_by = world.now + QUIET_WITHIN;
            say!(world, "world", "faults stop");
        }
        world.step();
        if !world.faults && world.now.is_multiple_of(64) && world.is_quiet() {
            world.judge_end();
            break;
        }
        if world.now > quiet_by {
            let detail = judge::unfinished(&world);
            world.broken("C11 quiet in the end", detail);
        }
    }
    Run {
        violation: world.violation.take(),
        counts: world.counts,
        steps: world.now,
        tail: trace.map_or_else(Vec::new, |n| world.trace.tail(n).to_vec()),
    }
}

impl World {
    fn step(&mut self) {
        self.now += 1;
        if self.faults && self.now == self.restart_at {
            self.restart_redis();
        }
        match self.pick(16) {
            0 => self.broker_step(),
            1..=4 => self.store_step(),
            5 => self.blow(),
            _ => {
                let n = self.pick(NODES);
                self.node_step(n);
            }
        }
        self.workers_leave();
        self.judge_step();
    }

    /// Something is hit, or not.
    fn blow(&mut self) {
        let rate = self.rates.blow;
        if !self.goes_wrong(rate) {
            return;
        }
        self.hit();
        // Blows that come together find what single ones do not.
        while self.pick(3) == 0 {
            self.hit();
        }
    }

    fn hit(&mut self) {
        let n = self.pick(NODES);
        match self.pick(24) {
            0 | 1 => self.kill_store(),
            2 | 3 if self.nodes[n].up => self.kill_node(n),
            4 | 5 if self.nodes[n].up => self.pause(n),
            6..=9 if self.nodes[n].up => self.kill_actor(n),
            10..=13 => self.rebalance(),
            14 => self.empty_redis(),
            15 | 16 => self.restart_redis(),
            17 if !self.strayed => self.back_up(),
            18 if self.pick(2) == 0 => self.restore(),
            19 if self.store.backup.is_none() => self.stray(),
            20..=23 if self.nodes[n].up => self.swap_script(n),
            _ => {}
        }
    }

    /// SIGSTOP, and later SIGCONT.
    fn pause(&mut self, n: usize) {
        self.count(Count::NodePaused);
        let pause = 100 + self.pick(2_500) as u64;
        self.nodes[n].paused_until = self.now + pause;
        // A zombie is most dangerous where Redis has just forgotten who came after it.
        if self.pick(4) == 0 {
            self.restart_at = self.now + pause - self.pick(60) as u64;
        }
        say!(self, format!("node{n}"), "stopped for {pause}");
    }

    /// A write that overlaps what is durable: the protocol never makes one, so a stranger does. Its
    /// range would fit a database that was restored to just there, so those worlds have no backup.
    fn stray(&mut self) {
        let p = self.pick(PARTITIONS);
        let Some(row) = self.store.db.sources[p].filter(|row| row.next_pos > row.start_pos) else {
            return;
        };
        self.strayed = true;
        let (from, to) = (row.next_pos - 1, row.next_pos + 100);
        let range = PartRange { source: self.sources[p].clone(), token: row.token, from, to };
        let effect = Effect {
            p,
            range,
            n_in: 0,
            n_kept: 0,
            n_filtered: 0,
            rows: Vec::new(),
            dead: Vec::new(),
        };
        let generation = self.store.generation.clone();
        let write = Write { script: 0, generation, effects: vec![effect] };
        let request = Request::Write(Rc::new(write));
        self.xadd(Entry { id: 0, reply_to: 0, round: 0, again: false, request });
        say!(self, "world", "a stranger writes {p}/[{from},{to})");
    }

    fn back_up(&mut self) {
        self.store.backup = Some(self.store.db.clone());
        say!(self, "store", "backed up");
    }

    /// An announced restore: everything is stopped, DuckDB becomes what it was, all starts again.
    fn restore(&mut self) {
        let Some(backup) = self.store.backup.clone() else { return };
        self.count(Count::Restored);
        for n in 0..NODES {
            if self.nodes[n].up {
                self.kill_node(n);
            }
        }
        self.kill_store();
        self.store = Store { db: backup, down_until: self.now + 50, ..Store::default() };
        // Redis may come back with what belonged to batches that are no more.
        if self.pick(2) == 0 {
            self.restart_at = self.now + 200 + self.pick(1_500) as u64;
        }
        for partition in &mut self.broker.partitions {
            partition.ahead_allowed = partition.committed.unwrap_or(0);
        }
        say!(
            self,
            "store",
            "restored to {:?}",
            self.store.db.sources.map(|s| s.map(|s| s.next_pos))
        );
    }
}

/// Runs seeds on all cores until one breaks a promise; gives the smallest such seed that was run
/// and the tallies.
pub fn search(seeds: std::ops::Range<u64>, defect: Option<Defect>) -> (Option<u64>, Counts, u64) {
    let next = AtomicU64::new(seeds.start);
    let broken = AtomicU64::new(u64::MAX);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        let (mut counts, mut steps): (Counts, u64) = (vec![0; COUNTED.len()], 0);
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end || broken.load(Ordering::Relaxed) < seed {
                return (counts, steps);
            }
            let run = run(seed, defect, None);
            counts.iter_mut().zip(run.counts).for_each(|(sum, n)| *sum += n);
            steps += run.steps;
            if run.violation.is_some() {
                broken.fetch_min(seed, Ordering::Relaxed);
            }
        }
    };
    let (mut counts, mut steps) = (vec![0; COUNTED.len()], 0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let (its, took) = worker.join().unwrap();
            counts.iter_mut().zip(its).for_each(|(sum, n)| *sum += n);
            steps += took;
        }
    });
    let broken = broken.into_inner();
    ((broken != u64::MAX).then_some(broken), counts, steps)
}
