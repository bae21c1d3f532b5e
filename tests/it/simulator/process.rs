//! A process node: its accumulator, its Python workers under leases, its lives.

use super::{
    broker::Changes,
    defects::Defect,
    ingest::Lane,
    messages::{Effect, EventBatch, SourcePart, place},
    sender::{Features, Sender},
    trace::say,
    world::{CAP, Count, LEASE, Net, PARTITIONS, SCRIPTS, World},
};
use millstream::protocol::{
    accumulator::{Accumulator, Limits},
    source::{OpenReply, OpenRequest},
    ticket::Abandoned,
};
use std::{
    collections::VecDeque,
    rc::Rc,
    sync::LazyLock,
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

/// Tick 0 as the accumulator's clock.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

const LIMITS: Limits = Limits { max_rows: 8, max_bytes: 70, max_age: Duration::from_millis(120) };

/// What RedisQueue is told.
pub enum ToSender {
    /// A batch went through Python.
    Features(Features),
    /// Open a partition.
    Open(usize, Rc<OpenRequest>),
    /// A partition is no longer read here.
    Close(usize),
}

/// A Python worker.
pub struct Worker {
    /// Its lease.
    pub lease: u64,
    /// Since when the last renewal it heard of counts.
    pub renewed_at: u64,
    /// What it runs, and under which version.
    pub batch: Option<(u8, EventBatch)>,
}

impl Worker {
    /// When it leaves by itself.
    pub fn leaves_at(&self) -> u64 {
        self.renewed_at + LEASE * 7 / 10
    }
}

/// See the module.
pub struct Node {
    /// Whether it runs.
    pub up: bool,
    /// When it starts again, or goes on.
    pub paused_until: u64,
    /// Which life: answers go to it.
    pub incarnation: u64,
    /// The current script version.
    pub script: u8,
    /// Redis' generation as it knows it.
    pub generation: Rc<str>,
    /// Changes of its partitions.
    pub changes: Changes,
    /// When it polled last.
    pub last_poll: u64,
    /// Its partitions.
    pub lanes: Vec<Lane>,
    /// Parts that wait for the accumulator, with their pin.
    pub stuck: VecDeque<(Option<u8>, SourcePart)>,
    /// Where tickets report.
    pub abandon: mpsc::UnboundedSender<Abandoned>,
    /// What they reported.
    pub abandoned: mpsc::UnboundedReceiver<Abandoned>,
    /// Positions that the store acknowledged.
    pub acknowledged: [Option<i64>; PARTITIONS],
    /// How far sources that are open are durable; survives RedisQueue.
    pub durable: [Option<i64>; PARTITIONS],
    /// Offsets that were committed.
    pub committed: [Option<i64>; PARTITIONS],
    /// From the poll thread to RedisQueue.
    pub wanted: VecDeque<ToSender>,
    /// KafkaIngest's mailbox.
    pub opened: VecDeque<(usize, OpenReply)>,
    /// One a pin.
    pub accumulators: Vec<(Option<u8>, Accumulator<SourcePart>)>,
    /// The supervisor's batches.
    pub batches: VecDeque<EventBatch>,
    /// The supervisor's workers.
    pub workers: Vec<Worker>,
    /// Leases of workers that left.
    pub to_release: VecDeque<u64>,
    /// RedisQueue.
    pub sender: Sender,
}

fn accumulators() -> Vec<(Option<u8>, Accumulator<SourcePart>)> {
    let pins = (0..SCRIPTS).map(Some).chain([None]);
    pins.map(|pin| (pin, Accumulator::new(LIMITS))).collect()
}

impl Node {
    /// A node that just started.
    pub fn new(incarnation: u64, script: u8) -> Self {
        let (abandon, abandoned) = mpsc::unbounded_channel();
        Self {
            up: true,
            paused_until: 0,
            incarnation,
            script,
            generation: "".into(),
            changes: Changes::new(),
            last_poll: 0,
            lanes: Vec::new(),
            stuck: VecDeque::new(),
            abandon,
            abandoned,
            acknowledged: [None; PARTITIONS],
            durable: [None; PARTITIONS],
            committed: [None; PARTITIONS],
            wanted: VecDeque::new(),
            opened: VecDeque::new(),
            accumulators: accumulators(),
            batches: VecDeque::new(),
            workers: Vec::new(),
            to_release: VecDeque::new(),
            sender: Sender::new(incarnation),
        }
    }

    /// Whether nothing is under way.
    pub fn is_quiet(&self) -> bool {
        self.busy_with().is_empty()
    }

    /// What is still under way.
    pub fn busy_with(&self) -> Vec<&'static str> {
        let all = [
            ("stuck parts", !self.stuck.is_empty()),
            ("changes of the group", !self.changes.is_empty()),
            ("opens", !self.wanted.is_empty() || !self.opened.is_empty()),
            ("batches for Python", !self.batches.is_empty()),
            ("calls", self.workers.iter().any(|w| w.batch.is_some())),
            ("an open batch", self.accumulators.iter().any(|(_, a)| a.waiting() > 0)),
            ("lanes", !self.lanes.iter().all(Lane::is_reading)),
            ("the queue", !self.sender.is_quiet()),
        ];
        all.into_iter().filter(|(_, busy)| *busy).map(|(what, _)| what).collect()
    }
}

impl World {
    fn instant(&self) -> Instant {
        *EPOCH + Duration::from_millis(self.now)
    }

    /// One step of a node.
    pub fn node_step(&mut self, n: usize) {
        let node = &self.nodes[n];
        if !node.up {
            if node.paused_until <= self.now {
                self.start_node(n);
            }
            return;
        }
        if node.paused_until > self.now {
            return;
        }
        // Whatever has nothing to do costs no time.
        for _ in 0..6 {
            let kind = self.pick(20);
            if self.has_work(n, kind) {
                return self.do_work(n, kind);
            }
        }
    }

    fn has_work(&self, n: usize, kind: usize) -> bool {
        let node = &self.nodes[n];
        match kind {
            2..=5 => node.lanes.iter().any(Lane::is_reading),
            6 => !node.stuck.is_empty() || node.accumulators.iter().any(|(_, a)| a.waiting() > 0),
            7 => !node.batches.is_empty() && !node.workers.is_empty(),
            8 | 11 | 18 => !node.workers.is_empty() || !node.to_release.is_empty(),
            9 => !node.wanted.is_empty() || !node.opened.is_empty(),
            12 => !node.batches.is_empty(),
            _ => true,
        }
    }

    fn do_work(&mut self, n: usize, kind: usize) {
        match kind {
            0 | 1 => self.chores(n),
            2..=4 => self.fetch(n),
            5 => self.cut_some(n),
            6 => self.accumulate(n),
            7 => self.start_call(n),
            8 => self.finish_call(n),
            9 => self.ingest_actor(n),
            10 => self.commit_acknowledged(n),
            11 | 18 => self.look_after_leases(n),
            12 => self.hire(n),
            _ => self.sender_step(n),
        }
    }

    fn accumulate(&mut self, n: usize) {
        let now = self.instant();
        let next = self.nodes[n].stuck.pop_front();
        let mut closed = Vec::new();
        for (pin, accumulator) in &mut self.nodes[n].accumulators {
            closed.extend(accumulator.tick(now).map(|c| (*pin, c)));
        }
        if let Some((pin, part)) = next {
            let mut all = self.nodes[n].accumulators.iter_mut();
            if let Some((_, accumulator)) = all.find(|(of, _)| *of == pin) {
                closed.extend(accumulator.push(part, now).into_iter().map(|c| (pin, c)));
            }
        }
        for (pinned, batch) in closed {
            let (parts, reason) = (batch.parts.len(), batch.reason.name());
            say!(self, format!("node{n}"), "closed a batch of {parts} parts by {reason}");
            self.nodes[n].batches.push_back(EventBatch { pinned, parts: batch.parts });
        }
    }

    fn start_call(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        if let Some(worker) = node.workers.iter_mut().find(|w| w.batch.is_none()) {
            let current = node.script;
            let next = node.batches.pop_front();
            worker.batch = next.map(|batch| (batch.pinned.unwrap_or(current), batch));
        }
    }

    fn finish_call(&mut self, n: usize) {
        let workers = self.nodes[n].workers.len();
        if workers == 0 {
            return;
        }
        let i = self.pick(workers);
        let taken = self.nodes[n].workers[i].batch.take();
        let Some((script, EventBatch { parts, .. })) = taken else {
            // Without work it leaves.
            if self.pick(4) == 0 {
                let worker = self.nodes[n].workers.remove(i);
                self.nodes[n].to_release.push_back(worker.lease);
            }
            return;
        };
        let drop_bad = self.has(Defect::BadRowsDropped);
        let events = &self.broker.events;
        let parts: Vec<_> =
            parts.into_iter().map(|part| Effect::of(part, script, events, drop_bad)).collect();
        let made = || parts.iter().map(|(e, _)| place(&e.range)).collect::<Vec<_>>().join(" ");
        say!(self, format!("node{n}"), "script {script} made {}", made());
        self.nodes[n].sender.mailbox.push_back(ToSender::Features(Features { script, parts }));
    }

    /// Asks for a permit when batches wait, and starts a worker under it.
    fn hire(&mut self, n: usize) {
        let node = &self.nodes[n];
        let idle = node.workers.iter().filter(|w| w.batch.is_none()).count();
        if node.batches.len() <= idle || node.workers.len() >= CAP {
            return;
        }
        let (lease, asked_at) = (self.fresh_id(), self.now);
        let net = self.net();
        if net == Net::RequestLost {
            return;
        }
        if self.acquire(lease) {
            if net == Net::Done {
                self.nodes[n].workers.push(Worker { lease, renewed_at: asked_at, batch: None });
                say!(self, format!("node{n}"), "worker {lease} lives");
            }
        } else {
            self.count(Count::LeaseRefused);
        }
    }

    /// Gives back, or renews, one lease.
    fn look_after_leases(&mut self, n: usize) {
        let net = self.net();
        if let Some(lease) = self.nodes[n].to_release.pop_front() {
            if net != Net::RequestLost {
                self.release(lease);
            }
            return;
        }
        let workers = self.nodes[n].workers.len();
        if workers == 0 || net == Net::RequestLost {
            return;
        }
        let i = self.pick(workers);
        let lease = self.nodes[n].workers[i].lease;
        if self.renew_lease(lease) && net == Net::Done {
            self.nodes[n].workers[i].renewed_at = self.now;
        }
    }

    /// Workers that heard no renewal for long leave, whatever became of their nodes.
    pub fn workers_leave(&mut self) {
        let now = self.now;
        self.orphans.retain(|leaves_at| *leaves_at > now);
        for n in 0..self.nodes.len() {
            while let Some(i) = self.nodes[n].workers.iter().position(|w| w.leaves_at() <= now) {
                let worker = self.nodes[n].workers.remove(i);
                self.count(Count::WorkerLeft);
                say!(self, format!("node{n}"), "worker {} heard no renewal and left", worker.lease);
                if let Some((_, batch)) = worker.batch {
                    self.nodes[n].batches.push_front(batch);
                }
            }
        }
    }

    /// One actor of a node dies with all it had; a new one takes its place.
    pub fn kill_actor(&mut self, n: usize) {
        self.count(Count::ActorDied);
        let which = self.pick(4);
        let incarnation = self.fresh_id();
        let now = self.now;
        let node = &mut self.nodes[n];
        match which {
            0 => {
                node.opened.clear();
                // The channel survives it; an open in its hands does not.
                if let Some(ToSender::Open(..)) = node.wanted.front() {
                    node.wanted.pop_front();
                }
            }
            1 => node.accumulators = accumulators(),
            2 => {
                node.batches.clear();
                for worker in node.workers.drain(..) {
                    // It leaves when it notices; only then its permit goes back.
                    self.orphans.push(worker.leaves_at().min(now + 30));
                }
            }
            // Rounds of an earlier instance are not taken for the new one's.
            _ => node.sender = Sender::new(incarnation),
        }
        let name =
            ["KafkaIngest", "BatchAccumulator", "PythonWorkerSupervisor", "RedisQueue"][which];
        say!(self, format!("node{n}"), "{name} died");
    }

    /// The script is swapped while batches are on their way.
    pub fn swap_script(&mut self, n: usize) {
        let script = self.pick(usize::from(SCRIPTS)) as u8;
        if std::mem::replace(&mut self.nodes[n].script, script) != script {
            self.count(Count::Swapped);
            say!(self, format!("node{n}"), "script {script} from now on");
        }
    }

    /// The whole node dies.
    pub fn kill_node(&mut self, n: usize) {
        self.count(Count::NodeCrash);
        for worker in &self.nodes[n].workers {
            let lingers = worker.leaves_at();
            self.orphans.push(lingers);
        }
        for partition in self.broker.partitions.iter_mut().filter(|p| p.owner == Some(n)) {
            partition.owner = None;
            partition.wanted_by = None;
        }
        let down = 50 + self.pick(900) as u64;
        let incarnation = self.nodes[n].incarnation;
        let script = self.nodes[n].script;
        self.nodes[n] = Node::new(incarnation, script);
        self.nodes[n].up = false;
        self.nodes[n].paused_until = self.now + down;
        say!(self, format!("node{n}"), "killed");
    }

    fn start_node(&mut self, n: usize) {
        let incarnation = self.fresh_id();
        let script = if self.pick(2) == 0 { self.nodes[n].script } else { self.pick(3) as u8 };
        self.nodes[n] = Node::new(incarnation, script);
        self.nodes[n].last_poll = self.now;
        say!(self, format!("node{n}"), "started with script {script}");
    }
}
