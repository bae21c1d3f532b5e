//! One worker and the right by which its processes live: its start, its age, its end.

use super::{
    aging::{self, Age, AgeLimits},
    trust::Trust,
};
use crate::{
    actors::worker_semaphore::HeldLeases,
    messages::Permit,
    protocol::lease::HEARTBEAT_SHARE,
    python::{
        Exit, ExitWatch, Heartbeat, Loaded, ProcessHandle, Script, WorkerError, WorkerProcess,
        WorkerSpec,
    },
    telemetry::catalogue as m,
};
use arrow::datatypes::SchemaRef;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;

/// How long a worker may take to leave when asked.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// Told of every process that is started, so that its lease's renewals reach it.
pub type Announce = Arc<dyn Fn(ProcessHandle, Heartbeat) + Send + Sync>;

/// How a worker of one script is made.
#[derive(Clone)]
pub struct Recipe {
    /// Program, folders, lease.
    pub spec: WorkerSpec,
    /// The version that runs.
    pub script: Arc<Script>,
    /// The columns that the script gets.
    pub input: SchemaRef,
    /// How long one batch may run.
    pub deadline: Duration,
    /// How long loading the script may take.
    pub load_deadline: Duration,
    /// Who passes heartbeats on.
    pub announce: Announce,
    /// Tells when the worker's lease was renewed.
    pub leases: Arc<HeldLeases>,
    /// When its process is replaced.
    pub limits: AgeLimits,
    /// A start takes one of these.
    pub starts: Arc<Semaphore>,
    /// Whether its version may be suspected, and what is known of that; `None`: it may not.
    pub trust: Option<Arc<Trust>>,
}

/// Why a batch did not get through that is not the data's fault.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The lease was lost or not renewed for long: no process may run under it. Or the fork server
    /// died, and its forks with it. Neither the script nor the data had a part in it.
    #[error("the worker's lease was lost, or its fork server died")]
    LeaseLost,
    /// The script fails on so much that it is at fault, not the rows.
    #[error("the script is suspected: {why}")]
    Suspected {
        /// In words.
        why: String,
        /// Rows on which it failed.
        rows: Vec<u32>,
    },
    /// The worker cannot be started or the script not loaded.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

/// By what right a worker's processes live.
enum Right {
    /// As long as the permit's lease is renewed.
    Permit(Permit),
    /// As long as the command that they serve.
    Command,
}

/// A worker with the right to run.
pub struct Worker {
    pub(super) process: Option<WorkerProcess>,
    /// What the last process said of the script.
    loaded: Option<Loaded>,
    /// Tells when the last process is reaped.
    reaped: Option<ExitWatch>,
    right: Option<Right>,
    pub(super) recipe: Recipe,
    age: Age,
    start_s: Option<f64>,
}

impl Worker {
    /// A worker that will start with its first batch.
    #[must_use]
    pub fn new(recipe: Recipe, permit: Permit) -> Self {
        Self::by(Right::Permit(permit), recipe)
    }

    /// One outside of a node, which the cap on workers does not count.
    #[must_use]
    pub fn of_a_command(recipe: Recipe) -> Self {
        Self::by(Right::Command, recipe)
    }

    fn by(right: Right, recipe: Recipe) -> Self {
        let (right, age) = (Some(right), Age::default());
        Self { process: None, loaded: None, reaped: None, right, recipe, age, start_s: None }
    }

    /// The version that it runs.
    #[must_use]
    pub fn script(&self) -> Arc<Script> {
        self.recipe.script.clone()
    }

    /// Whether it runs this version with these parameters.
    #[must_use]
    pub fn runs(&self, script: &Script) -> bool {
        self.recipe.script.sha256 == script.sha256 && self.recipe.script.params == script.params
    }

    /// The process's id, once it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(WorkerProcess::pid)
    }

    /// Its process, once it runs.
    #[must_use]
    pub fn handle(&self) -> Option<ProcessHandle> {
        self.process.as_ref().map(WorkerProcess::handle)
    }

    /// What its process has behind it.
    #[must_use]
    pub fn age(&self) -> Age {
        self.age
    }

    /// How long a batch may run: as the configuration says, or less when the script says so.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        let own = self.loaded.and_then(|loaded| loaded.timeout);
        own.map_or(self.recipe.deadline, |own| own.min(self.recipe.deadline))
    }

    /// How long its process took to start and load the script, in seconds.
    #[must_use]
    pub fn start_s(&self) -> Option<f64> {
        self.start_s
    }

    /// A batch went through. Why its process should leave now; `None`: it may go on.
    pub fn grow_older(&mut self) -> Option<&'static str> {
        let resident = self.pid().and_then(aging::resident_bytes);
        self.age.after_batch(resident, self.recipe.limits)
    }

    /// The process leaves in good order; the next batch starts another.
    pub async fn retire(&mut self, cause: &'static str) {
        tracing::info!(
            script = self.recipe.script.name,
            cause,
            batches = self.age.batches,
            resident_bytes = self.age.resident,
            "a worker is replaced"
        );
        metrics::counter!(m::WORKER_RESTARTS, "cause" => cause).increment(1);
        if let Some(process) = self.process.take() {
            process.stop(STOP_GRACE).await;
        }
    }

    /// How its process ended when nobody asked it to, if it did.
    #[must_use]
    pub fn died(&self) -> Option<Exit> {
        self.process.as_ref().and(self.reaped.as_ref()).and_then(ExitWatch::get)
    }

    /// What the worker said when it loaded the script last.
    #[must_use]
    pub fn loaded(&self) -> Option<Loaded> {
        self.loaded
    }

    /// When its lease was renewed last; `None` once no process may run under it any more: it would
    /// live longer than the lease.
    fn leased_at(&self) -> Option<Instant> {
        let Right::Permit(permit) = self.right.as_ref()? else { return Some(Instant::now()) };
        let patience = self.recipe.spec.lease.mul_f64(HEARTBEAT_SHARE);
        self.recipe.leases.renewed_at(permit.lease()).filter(|at| at.elapsed() < patience)
    }

    /// Whether a process may run under its lease.
    #[must_use]
    pub fn is_leased(&self) -> bool {
        self.leased_at().is_some()
    }

    /// Starts the process and loads the script, unless that is done.
    ///
    /// # Errors
    /// [`RunError`]; after that of a worker the next call tries again.
    pub async fn start(&mut self) -> Result<&mut WorkerProcess, RunError> {
        if self.process.as_ref().is_some_and(|p| !p.is_usable()) {
            self.kill().await;
        }
        if self.process.is_none() {
            // Nobody closes it.
            let _turn = self.recipe.starts.clone().acquire_owned().await;
            let started = Instant::now();
            let leased_at = self.leased_at().ok_or(RunError::LeaseLost)?;
            let process = self.launch(leased_at).await?;
            self.reaped = Some(process.exit_watch());
            (self.recipe.announce)(process.handle(), process.heartbeat());
            let process = self.process.insert(process);
            let loading = process.load(&self.recipe.script, &self.recipe.input);
            let loaded = match tokio::time::timeout(self.recipe.load_deadline, loading).await {
                Ok(loaded) => loaded,
                Err(_) => Err(WorkerError::Import {
                    message: format!("not loaded within {:?}", self.recipe.load_deadline),
                    traceback: String::new(),
                }),
            };
            match loaded {
                Ok(loaded) => self.loaded = Some(loaded),
                Err(error) => {
                    self.kill().await;
                    if let WorkerError::Exited { exit, .. } = &error {
                        count_death(*exit);
                    }
                    return Err(self.blamed(error));
                }
            }
            metrics::histogram!(m::WORKER_START).record(started.elapsed());
            self.start_s = Some(started.elapsed().as_secs_f64());
            self.age = Age::default();
        }
        // Set just above, or before; there is no way around.
        self.process.as_mut().ok_or(RunError::Worker(WorkerError::Poisoned))
    }

    /// Starts a process. Given up in the middle, the permit stays taken until it is reaped.
    async fn launch(&mut self, leased_at: Instant) -> Result<WorkerProcess, RunError> {
        let (spec, right) = (self.recipe.spec.clone(), self.right.take());
        let (done, launched) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let process = WorkerProcess::spawn_under(&spec, leased_at).await;
            // Nobody may wait any more: the newborn sees to its end itself.
            let _ = done.send(Newborn { process: Some(process), right });
        });
        let mut newborn = launched.await.map_err(|_| WorkerError::Poisoned)?;
        self.right = newborn.right.take();
        match newborn.process.take().ok_or(WorkerError::Poisoned)? {
            // It took so long that its lease was over when it began.
            Err(WorkerError::Exited { .. })
                if leased_at.elapsed() >= self.recipe.spec.lease.mul_f64(HEARTBEAT_SHARE) =>
            {
                Err(RunError::LeaseLost)
            }
            started => started.map_err(|error| self.blamed(error)),
        }
    }

    /// A process that ended without a lease ended for that, and one that ended nobody knows how for
    /// its fork server's death.
    pub(super) fn blamed(&self, error: WorkerError) -> RunError {
        const UNKNOWN: Exit = Exit { code: None, signal: None };
        match error {
            WorkerError::Exited { exit: UNKNOWN, .. } => RunError::LeaseLost,
            WorkerError::Exited { .. } if !self.is_leased() => RunError::LeaseLost,
            other => RunError::Worker(other),
        }
    }

    /// Asks the process to leave and gives the permit, if there is one, back once it was reaped.
    pub async fn stop(mut self) {
        if let Some(process) = self.process.take() {
            process.stop(STOP_GRACE).await;
        }
        self.right = None;
    }

    /// Asks the process to leave and, once it was reaped, gives the permit to somebody else.
    pub async fn surrender(mut self) -> Option<Permit> {
        if let Some(process) = self.process.take() {
            process.stop(STOP_GRACE).await;
        }
        match self.right.take() {
            Some(Right::Permit(permit)) => Some(permit),
            Some(Right::Command) | None => None,
        }
    }

    /// Runs another version from its next process on; which one it ran before.
    pub(super) async fn change_script(&mut self, script: Arc<Script>) -> Arc<Script> {
        self.kill().await;
        std::mem::replace(&mut self.recipe.script, script)
    }

    pub(super) async fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill().await;
        }
    }
}

/// A process died without a batch: while it loaded its script, or between two batches.
pub(super) fn count_death(exit: Exit) {
    let cause = if exit.signal.is_some() { "signal" } else { "exit" };
    metrics::counter!(m::WORKER_RESTARTS, "cause" => cause).increment(1);
}

/// A process that was just started, with the right by which it lives.
struct Newborn {
    process: Option<Result<WorkerProcess, WorkerError>>,
    right: Option<Right>,
}

impl Drop for Newborn {
    fn drop(&mut self) {
        if let (Some(Ok(process)), Some(right)) = (self.process.take(), self.right.take()) {
            give_back_later(process.exit_watch(), right);
        }
    }
}

/// The right comes back once the process is reaped.
fn give_back_later(mut reaped: ExitWatch, right: Right) {
    std::thread::spawn(move || {
        futures::executor::block_on(reaped.wait());
        drop(right);
    });
}

impl Drop for Worker {
    /// Dropped alive — its supervisor was killed, wherever it was just then — the permit stays
    /// taken until the process is reaped, or there could be one worker too many.
    fn drop(&mut self) {
        let (Some(reaped), Some(right)) = (self.reaped.take(), self.right.take()) else {
            return;
        };
        self.process = None;
        if reaped.get().is_none() {
            give_back_later(reaped, right);
        }
    }
}
