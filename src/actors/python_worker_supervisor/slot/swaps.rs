//! What of the workers has to do with swapping versions: permits for trials, versions to roll back, the
//! first batch under a new one.

use super::{Inner, LaneKey, WorkerSlot};
use crate::{
    actors::python_worker_supervisor::{
        board::LastBatch,
        runner::Worker,
        status::{PythonStatus, WorkerStatus, lock},
    },
    messages::Permit,
    python::Script,
    telemetry::catalogue as m,
};
use std::sync::Arc;
use tokio::sync::oneshot;

/// A version is at fault and the one before it is not.
#[derive(Debug, Clone)]
pub struct RollBack {
    /// The version at fault.
    pub from: String,
    /// An earlier one that is not.
    pub to: String,
    /// Why.
    pub why: String,
}

impl WorkerSlot {
    /// The current version of a stream got a batch through.
    pub fn had_batch(
        &self,
        stream: usize,
        name: &str,
        script: &Script,
        batch: impl FnOnce() -> LastBatch,
    ) {
        self.board.keep(stream, batch());
        if let Some(took) = self.board.first_batch(stream, &script.sha256) {
            metrics::histogram!(m::SCRIPT_SWAP, "script" => script.name.clone()).record(took);
            tracing::info!(
                stream = name,
                version = script.sha256,
                seconds = took.as_secs_f64(),
                "the first batch under the version since its file was saved"
            );
            if let Some(status) = lock(&self.status.scripts).get_mut(name) {
                status.swap_s = Some(took.as_secs_f64());
            }
        }
    }

    /// A permit of the stream's own, at the next boundary between two of its batches. It may never
    /// come: the stream may have no worker.
    pub fn ask_hand_over(&self, stream: usize) -> oneshot::Receiver<Permit> {
        let (give, permit) = oneshot::channel();
        lock(&self.inner).hand_overs.insert(stream, give);
        self.hand_over(stream);
        permit
    }

    /// Trials that wait for a permit of a stream that has none: they compete like any lane.
    #[must_use]
    pub fn trials_without_worker(&self) -> usize {
        let inner = lock(&self.inner);
        let has_worker = |stream: usize| inner.crews.keys().any(|key| key.stream == stream);
        let waiting = inner.hand_overs.iter().filter(|(_, give)| !give.is_closed());
        waiting.filter(|(stream, _)| !has_worker(**stream)).count()
    }

    /// Stops an idle worker of the stream for a trial that waits for its permit.
    pub fn hand_over(&self, stream: usize) {
        let mut inner = lock(&self.inner);
        let Inner { crews, hand_overs, .. } = &mut *inner;
        if hand_overs.get(&stream).is_some_and(oneshot::Sender::is_closed) {
            hand_overs.remove(&stream);
        }
        if !hand_overs.contains_key(&stream) {
            return;
        }
        let mut own = crews.iter_mut().filter(|(key, _)| key.stream == stream);
        let Some(idle) = own.find_map(|(_, crew)| crew.idle.pop()) else { return };
        let Some(give) = hand_overs.remove(&stream) else { return };
        inner.heartbeats.remove(&idle.number);
        drop(inner);
        lock(&self.status.workers).remove(&idle.number);
        tokio::task::spawn_local(async move {
            if let Some(permit) = idle.worker.surrender().await {
                // Not wanted any more, it goes back.
                drop(give.send(permit));
            }
        });
    }

    /// The version that a stream runs is to be rolled back; asked for until it is done.
    pub fn want_roll_back(&self, stream: usize, wanted: RollBack) {
        lock(&self.inner).roll_backs.insert(stream, wanted);
        self.roll_back_wanted.notify_one();
    }

    /// Waits until a version is to be rolled back.
    pub async fn roll_back_wanted(&self) {
        self.roll_back_wanted.notified().await;
    }

    /// What is to be rolled back: streams that still run what is at fault.
    #[must_use]
    pub fn roll_backs(&self) -> Vec<(usize, RollBack)> {
        let mut inner = lock(&self.inner);
        inner.roll_backs.retain(|stream, wanted| {
            self.board.current(*stream).is_some_and(|c| c.script.sha256 == wanted.from)
        });
        inner.roll_backs.iter().map(|(stream, wanted)| (*stream, wanted.clone())).collect()
    }
}

/// A worker of a version that is on trial, under a permit of its own.
pub struct Canary {
    number: u64,
    stream: String,
    sha256: String,
    worker: Option<Box<Worker>>,
    status: Arc<PythonStatus>,
}

impl Canary {
    /// Shows a worker that has no lane yet.
    #[must_use]
    pub fn new(number: u64, stream: &str, worker: Worker, status: Arc<PythonStatus>) -> Self {
        let sha256 = worker.script().sha256.clone();
        let shown = WorkerStatus {
            stream: stream.to_owned(),
            script_sha256: sha256.clone(),
            busy: true,
            ..WorkerStatus::default()
        };
        lock(&status.workers).insert(number, shown);
        Self { number, stream: stream.to_owned(), sha256, worker: Some(Box::new(worker)), status }
    }

    /// The worker; `None`: it was taken.
    pub fn worker(&mut self) -> Option<&mut Worker> {
        self.worker.as_deref_mut()
    }

    /// It becomes a worker of a lane.
    pub fn join(mut self, slot: &WorkerSlot, key: LaneKey) {
        let Some(worker) = self.worker.take() else { return };
        let status = WorkerStatus {
            stream: self.stream.clone(),
            script_sha256: self.sha256.clone(),
            process: worker.handle(),
            start_s: worker.start_s(),
            ..WorkerStatus::default()
        };
        slot.add(key, self.number, *worker, status);
    }
}

impl Drop for Canary {
    /// Not wanted any more, it leaves.
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take() {
            lock(&self.status.workers).remove(&self.number);
            drop(worker);
        }
    }
}
