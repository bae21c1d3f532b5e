//! The workers of a node. They outlive the instances of the PythonWorkerSupervisor: a new instance
//! adopts them, with their permits and heartbeats.
//!
//! | a worker is | when the instance dies |
//! |---|---|
//! | idle | it waits here for the next instance |
//! | busy | its batch is run to its end by a task of its own, then it waits here |
//!
//! A worker owns its permit, so there are never more workers than permits, whoever drops what.

use super::{
    board::ScriptBoard,
    runner::{Worker, count_death},
    status::{PythonStatus, WorkerStatus, lock},
    strikes::Strikes,
    trust::Trust,
};
use crate::{
    actors::worker_semaphore::HeldLeases,
    messages::{EventBatch, Permit},
    python::{Heartbeat, ProcessHandle},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{
    sync::{Notify, Semaphore, oneshot},
    task::JoinHandle,
};

/// Whose batches a worker runs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneKey {
    /// Index of the stream in the configuration.
    pub stream: usize,
    /// The script version that its batches are pinned to; `None`: the current one.
    pub pinned: Option<Arc<str>>,
}

/// A worker without a batch.
pub struct Idle {
    /// Counts the workers of the node.
    pub number: u64,
    /// The worker itself.
    pub worker: Worker,
    /// Since when it has no batch.
    pub since: Instant,
    /// When it got its permit.
    pub hired_at: Instant,
}

/// What the living instance must look at.
pub enum News {
    /// A worker has no batch any more; `Some`: it is idle, with its number and since when it has its
    /// permit.
    Free(LaneKey, Option<(u64, Instant)>),
    /// A version does not load: the batch that waits for it, the version, why.
    Broken(LaneKey, EventBatch, String, String),
    /// A version is at fault.
    Suspected {
        /// Whose batch.
        key: LaneKey,
        /// The batch, which waits.
        batch: EventBatch,
        /// The version.
        sha256: String,
        /// Why.
        why: String,
        /// An earlier version that is not.
        roll_back_to: Option<String>,
    },
    /// What a stream runs has changed on the board; with the first worker of the new version.
    Switched(usize, Option<Canary>),
    /// Batches that must be run once more.
    Again(Vec<EventBatch>),
}

#[derive(Default)]
struct Crew {
    idle: Vec<Idle>,
    busy: usize,
}

#[derive(Default)]
struct Inner {
    crews: HashMap<LaneKey, Crew>,
    heartbeats: HashMap<u64, (Arc<str>, Heartbeat)>,
    news: Vec<News>,
    /// Trials that wait for a permit of their stream.
    hand_overs: HashMap<usize, oneshot::Sender<Permit>>,
    /// Streams whose version is to be rolled back.
    roll_backs: HashMap<usize, RollBack>,
    last_number: u64,
}

/// See the module.
pub struct WorkerSlot {
    leases: Arc<HeldLeases>,
    status: Arc<PythonStatus>,
    inner: Mutex<Inner>,
    noticed: Notify,
    beating: Mutex<Option<JoinHandle<()>>>,
    starts: Arc<Semaphore>,
    /// Failures that are ours.
    pub strikes: Mutex<Strikes>,
    /// Versions that are suspected, by stream: a script may do well with one and not with another.
    trust: Mutex<HashMap<usize, Arc<Trust>>>,
    /// What every stream runs.
    pub board: ScriptBoard,
    /// Tells the TransformDeployer that there is something to roll back.
    roll_back_wanted: Notify,
}

impl WorkerSlot {
    /// A slot without workers; `leases` tells when each was renewed.
    #[must_use]
    pub fn new(leases: Arc<HeldLeases>, status: Arc<PythonStatus>) -> Self {
        Self {
            leases,
            status,
            inner: Mutex::default(),
            noticed: Notify::new(),
            beating: Mutex::default(),
            starts: Arc::new(Semaphore::new(starts_at_once())),
            strikes: Mutex::default(),
            trust: Mutex::default(),
            board: ScriptBoard::default(),
            roll_back_wanted: Notify::new(),
        }
    }

    /// When leases were renewed.
    #[must_use]
    pub fn leases(&self) -> &Arc<HeldLeases> {
        &self.leases
    }

    /// What is known of the versions of a stream's script.
    #[must_use]
    pub fn trust(&self, stream: usize) -> Arc<Trust> {
        lock(&self.trust).entry(stream).or_default().clone()
    }

    /// Workers that start at the same time: loading packages takes a processor each, and those that
    /// run must not fall silent for it.
    #[must_use]
    pub fn starts(&self) -> &Arc<Semaphore> {
        &self.starts
    }

    /// Passes renewals of leases on to the workers from now on, whether an instance lives or not.
    /// One that hears none for long leaves.
    pub fn keep_beating(self: &Arc<Self>, every: Duration) {
        let mut beating = lock(&self.beating);
        if beating.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let slot = Arc::downgrade(self);
        *beating = Some(tokio::task::spawn_local(async move {
            let mut ticks = tokio::time::interval(every);
            loop {
                ticks.tick().await;
                let Some(slot) = slot.upgrade() else { return };
                slot.beat();
            }
        }));
    }

    fn beat(&self) {
        // A lease that is not held any more was lost or given back.
        lock(&self.inner).heartbeats.retain(|_, (lease, heartbeat)| {
            self.leases.renewed_at(lease).is_some_and(|at| heartbeat.beat(at))
        });
        self.dismiss_if(|_, idle| !idle.worker.is_leased());
        self.bury();
    }

    /// Those that died between two batches hold their permits for nothing.
    fn bury(&self) {
        self.dismiss_if(|key, idle| {
            let Some(exit) = idle.worker.died() else { return false };
            tracing::warn!(stream = key.stream, %exit, "a worker died between two batches");
            count_death(exit);
            true
        });
    }

    /// A worker's process runs: its lease's renewals reach it from now on.
    pub fn announce(
        &self,
        number: u64,
        process: ProcessHandle,
        lease: Arc<str>,
        heartbeat: Heartbeat,
    ) {
        if let Some(status) = lock(&self.status.workers).get_mut(&number) {
            status.process = Some(process);
        }
        lock(&self.inner).heartbeats.insert(number, (lease, heartbeat));
    }

    /// A number for a new worker.
    pub fn next_number(&self) -> u64 {
        let mut inner = lock(&self.inner);
        inner.last_number += 1;
        inner.last_number
    }

    /// Takes in a worker that has just got its permit.
    pub fn add(&self, key: LaneKey, number: u64, worker: Worker, status: WorkerStatus) {
        lock(&self.status.workers).insert(number, status);
        let now = Instant::now();
        let idle = Idle { number, worker, since: now, hired_at: now };
        lock(&self.inner).crews.entry(key).or_default().idle.push(idle);
    }

    /// An idle worker for a batch: the one that worked last, the others grow old and stop.
    pub fn take(self: &Arc<Self>, key: &LaneKey) -> Option<(Shift, Worker)> {
        let current = self.board.current(key.stream);
        let idle = loop {
            let mut inner = lock(&self.inner);
            let crew = inner.crews.get_mut(key)?;
            let idle = crew.idle.pop()?;
            // One that was busy when another version took over.
            let is_other = key.pinned.is_none()
                && current.as_ref().is_some_and(|current| !idle.worker.runs(&current.script));
            if idle.worker.is_leased() && !is_other {
                crew.busy += 1;
                break idle;
            }
            drop(inner);
            self.let_go(idle);
        };
        if let Some(status) = lock(&self.status.workers).get_mut(&idle.number) {
            status.busy = true;
        }
        let Idle { number, worker, hired_at, .. } = idle;
        let (slot, key) = (self.clone(), key.clone());
        let since = Instant::now();
        Some((Shift { slot, key, number, hired_at, since, over: false }, worker))
    }

    /// Workers that a lane has.
    #[must_use]
    pub fn live(&self, key: &LaneKey) -> usize {
        lock(&self.inner).crews.get(key).map_or(0, |crew| crew.idle.len() + crew.busy)
    }

    /// The lanes that have workers, with how many.
    #[must_use]
    pub fn crews(&self) -> Vec<(LaneKey, usize)> {
        let inner = lock(&self.inner);
        let size = |crew: &Crew| crew.idle.len() + crew.busy;
        inner.crews.iter().map(|(key, crew)| (key.clone(), size(crew))).collect()
    }

    /// Batches that a lane's workers have.
    #[must_use]
    pub fn busy(&self, key: &LaneKey) -> usize {
        lock(&self.inner).crews.get(key).map_or(0, |crew| crew.busy)
    }

    /// Idle workers of a stream leave that run anything but what the board says.
    pub fn retire_others(&self, stream: usize) {
        let Some(current) = self.board.current(stream) else { return };
        self.dismiss_if(|key, idle| {
            key.stream == stream && key.pinned.is_none() && !idle.worker.runs(&current.script)
        });
    }

    /// Lets the idle workers go for which `leaves` says so; how many.
    pub fn dismiss_if(&self, mut leaves: impl FnMut(&LaneKey, &Idle) -> bool) -> usize {
        let mut gone = Vec::new();
        let mut inner = lock(&self.inner);
        for (key, crew) in &mut inner.crews {
            gone.extend(crew.idle.extract_if(.., |idle| leaves(key, idle)));
        }
        inner.crews.retain(|_, crew| !crew.idle.is_empty() || crew.busy > 0);
        drop(inner);
        let count = gone.len();
        gone.into_iter().for_each(|idle| self.let_go(idle));
        count
    }

    /// Of the idle workers for which `may` says so, lets the one go that has been idle longest.
    pub fn dismiss_longest_idle(&self, mut may: impl FnMut(&LaneKey, &Idle) -> bool) {
        let oldest = {
            let inner = lock(&self.inner);
            let idle = inner.crews.iter().flat_map(|(key, c)| c.idle.iter().map(move |i| (key, i)));
            idle.filter(|(key, idle)| may(key, idle))
                .min_by_key(|(_, i)| i.since)
                .map(|(_, i)| i.number)
        };
        if let Some(number) = oldest {
            self.dismiss_if(|_, idle| idle.number == number);
        }
    }

    /// Lets a worker go; its permit comes back when it was reaped.
    fn let_go(&self, idle: Idle) {
        lock(&self.inner).heartbeats.remove(&idle.number);
        lock(&self.status.workers).remove(&idle.number);
        self.status.show_memory();
        // On its own: whoever dismissed it may die.
        tokio::task::spawn_local(idle.worker.stop());
    }

    /// Leaves something for the living instance, or the next one.
    pub fn tell(&self, news: News) {
        lock(&self.inner).news.push(news);
        self.noticed.notify_one();
    }

    /// Waits until there is something to look at.
    pub async fn noticed(&self) {
        self.noticed.notified().await;
    }

    /// What happened since the last call.
    #[must_use]
    pub fn news(&self) -> Vec<News> {
        std::mem::take(&mut lock(&self.inner).news)
    }
}

/// Half of the processors, at least one.
fn starts_at_once() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().div_ceil(2))
}

/// The time in which a worker has a batch. Dropped before it is over — the task that ran the batch
/// panicked, and the worker was dropped with it — the worker is counted no more.
pub struct Shift {
    slot: Arc<WorkerSlot>,
    key: LaneKey,
    number: u64,
    hired_at: Instant,
    since: Instant,
    over: bool,
}

impl Shift {
    /// Whose batch it is.
    #[must_use]
    pub fn key(&self) -> &LaneKey {
        &self.key
    }

    /// Where the worker came from.
    #[must_use]
    pub fn slot(&self) -> &Arc<WorkerSlot> {
        &self.slot
    }

    /// The worker is idle again.
    pub fn give_back(mut self, worker: Worker) {
        let (slot, key, number) = (self.slot.clone(), self.key.clone(), self.number);
        if let Some(status) = lock(&slot.status.workers).get_mut(&number) {
            status.busy = false;
            status.busy_s += self.since.elapsed().as_secs_f64();
            status.process = worker.handle();
            status.batches = worker.age().batches;
            status.resident_bytes = worker.age().resident;
            status.start_s = worker.start_s();
        }
        slot.status.show_memory();
        let idle = Idle { number, worker, since: Instant::now(), hired_at: self.hired_at };
        lock(&slot.inner).crews.entry(key.clone()).or_default().idle.push(idle);
        self.end();
        slot.tell(News::Free(key, Some((number, self.hired_at))));
    }

    /// The worker is no good any more.
    pub fn dismiss(mut self, worker: Worker, news: News) {
        let now = Instant::now();
        let idle = Idle { number: self.number, worker, since: now, hired_at: self.hired_at };
        self.slot.let_go(idle);
        self.end();
        self.slot.tell(news);
    }

    fn end(&mut self) {
        self.over = true;
        if let Some(crew) = lock(&self.slot.inner).crews.get_mut(&self.key) {
            crew.busy -= 1;
        }
    }
}

impl Drop for Shift {
    fn drop(&mut self) {
        if !self.over {
            self.end();
            lock(&self.slot.status.workers).remove(&self.number);
            self.slot.tell(News::Free(self.key.clone(), None));
        }
    }
}

mod swaps;

pub use swaps::{Canary, RollBack};

#[cfg(test)]
mod tests;
