//! One worker, and how a batch gets through it whatever the script does. A node's worker lives under
//! a permit; that of a [`Rehearsal`](super::Rehearsal) needs none.
//!
//! | what happens | answer |
//! |---|---|
//! | the script rejects or raises on one event (one-event style) | that event is dead, the worker goes on |
//! | the batch fails (exception, wrong output, signal, deadline) | once more in a fresh process, then halves |
//! | a single row fails twice | it is dead, with the failure as its reason |
//! | the script cannot be loaded | the batch waits, visibly: no data is dead for the code's fault |
//! | the lease was lost, and the process with it | the batch is run by another worker: no data is dead for that |

use super::assemble::{Outcome, Rejections};
use crate::{
    actors::worker_semaphore::HeldLeases,
    messages::Permit,
    protocol::lease::HEARTBEAT_SHARE,
    python::{
        ExitWatch, Heartbeat, Loaded, Script, TransformOutput, WorkerError, WorkerProcess,
        WorkerSpec, schema,
    },
    telemetry::{StageMeter, catalogue as m},
};
use arrow::{
    array::{ArrayRef, AsArray, RecordBatch, UInt32Array},
    compute::concat_batches,
    datatypes::{SchemaRef, UInt32Type},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

const METER: StageMeter = StageMeter::new("python_worker_supervisor");

/// How long a worker may take to leave when asked.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// Told of every process that is started, so that its lease's renewals reach it.
pub type Announce = Arc<dyn Fn(u32, Heartbeat) + Send + Sync>;

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
    /// Who passes heartbeats on.
    pub announce: Announce,
    /// Tells when the worker's lease was renewed.
    pub leases: Arc<HeldLeases>,
}

/// Why a batch did not get through that is not the data's fault.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The lease was lost or not renewed for long: no process may run under it.
    #[error("the worker's lease was lost")]
    LeaseLost,
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
    process: Option<WorkerProcess>,
    /// What the last process said of the script.
    loaded: Option<Loaded>,
    /// Tells when the last process is reaped.
    reaped: Option<ExitWatch>,
    right: Option<Right>,
    recipe: Recipe,
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
        Self { process: None, loaded: None, reaped: None, right: Some(right), recipe }
    }

    /// The version that it runs.
    #[must_use]
    pub fn script(&self) -> Arc<Script> {
        self.recipe.script.clone()
    }

    /// The process's id, once it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(WorkerProcess::pid)
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
            let started = Instant::now();
            let leased_at = self.leased_at().ok_or(RunError::LeaseLost)?;
            let process = WorkerProcess::spawn_under(&self.recipe.spec, leased_at).await?;
            self.reaped = Some(process.exit_watch());
            (self.recipe.announce)(process.pid(), process.heartbeat());
            let process = self.process.insert(process);
            let loading = process.load(&self.recipe.script, &self.recipe.input);
            let loaded = match tokio::time::timeout(self.recipe.deadline, loading).await {
                Ok(loaded) => loaded,
                Err(_) => Err(WorkerError::Import {
                    message: format!("not loaded within {:?}", self.recipe.deadline),
                    traceback: String::new(),
                }),
            };
            match loaded {
                Ok(loaded) => self.loaded = Some(loaded),
                Err(error) => {
                    self.kill().await;
                    return Err(self.blamed(error));
                }
            }
            metrics::histogram!(m::WORKER_START).record(started.elapsed());
        }
        // Set just above, or before; there is no way around.
        self.process.as_mut().ok_or(RunError::Worker(WorkerError::Poisoned))
    }

    /// A process that ended without a lease ended for that.
    fn blamed(&self, error: WorkerError) -> RunError {
        match error {
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

    async fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill().await;
        }
    }

    /// Gets every row of `batch` through the script, or dead.
    ///
    /// # Errors
    /// Only what is not the data's fault: see [`RunError`].
    pub async fn run(&mut self, batch: &RecordBatch) -> Result<Outcome, RunError> {
        if batch.num_rows() == 0 {
            return Ok(Outcome {
                rows: RecordBatch::new_empty(schema::canonical()),
                rejected: Rejections::new(),
            });
        }
        let started = Instant::now();
        let outcome = self.isolate(batch, 0).await?;
        let name = self.recipe.script.name.clone();
        metrics::histogram!(m::TRANSFORM, "script" => name.clone()).record(started.elapsed());
        metrics::counter!(m::TRANSFORM_ROWS, "script" => name)
            .increment(outcome.rows.num_rows() as u64);
        Ok(outcome)
    }

    /// `first` is the number, in the whole batch, of the first row of this piece.
    async fn isolate(&mut self, piece: &RecordBatch, first: u32) -> Result<Outcome, RunError> {
        let failure = match self.attempt(piece).await? {
            Ok(output) => return Ok(shift(output, first)),
            Err(failure) => failure,
        };
        METER.error("batch_failure");
        tracing::warn!(
            script = self.recipe.script.name,
            rows = piece.num_rows(),
            reason = failure.reason,
            detail = failure.detail,
            "the script failed on a batch; trying again in a fresh worker"
        );
        self.kill().await;
        metrics::counter!(m::WORKER_RESTARTS, "cause" => failure.label()).increment(1);
        let failure = match self.attempt(piece).await? {
            Ok(output) => return Ok(shift(output, first)),
            Err(failure) => failure,
        };
        let n = piece.num_rows();
        if n == 1 {
            let rejected = Rejections::from([(first, (failure.reason, failure.detail))]);
            return Ok(Outcome { rows: RecordBatch::new_empty(schema::canonical()), rejected });
        }
        let half = n / 2;
        let (left, right) =
            (renumber(&piece.slice(0, half)), renumber(&piece.slice(half, n - half)));
        let mut left = Box::pin(self.isolate(&left, first)).await?;
        let right = Box::pin(self.isolate(&right, first + half as u32)).await?;
        left.rejected.extend(right.rejected);
        left.rows = concat_batches(&schema::canonical(), [&left.rows, &right.rows])
            .map_err(|e| WorkerError::Protocol(e.to_string()))?;
        Ok(left)
    }

    /// One try. The outer error is not the data's fault, the inner one may be.
    async fn attempt(
        &mut self,
        piece: &RecordBatch,
    ) -> Result<Result<TransformOutput, Failure>, RunError> {
        let deadline = self.recipe.deadline;
        let process = self.start().await?;
        let failure = match tokio::time::timeout(deadline, process.transform(piece)).await {
            Ok(Ok(output)) => return Ok(Ok(output)),
            Ok(Err(error)) => match self.blamed(error) {
                RunError::Worker(error) => Failure::of(error)?,
                lost => return Err(lost),
            },
            Err(_) => Failure {
                reason: "timeout".into(),
                detail: format!("{} rows ran longer than {deadline:?}", piece.num_rows()),
            },
        };
        if self.process.as_ref().is_some_and(|p| !p.is_usable()) {
            self.kill().await;
        }
        Ok(Err(failure))
    }
}

impl Drop for Worker {
    /// Dropped alive — its supervisor was killed, wherever it was just then — the permit stays
    /// taken until the process is reaped, or there could be one worker too many.
    fn drop(&mut self) {
        let (Some(mut reaped), Some(right)) = (self.reaped.take(), self.right.take()) else {
            return;
        };
        self.process = None;
        if reaped.get().is_none() {
            std::thread::spawn(move || {
                futures::executor::block_on(reaped.wait());
                drop(right);
            });
        }
    }
}

/// Why a batch failed: what a row's dead letter says when it comes to that.
#[derive(Debug)]
struct Failure {
    reason: String,
    detail: String,
}

impl Failure {
    fn of(error: WorkerError) -> Result<Self, WorkerError> {
        let detail = error.to_string();
        let (reason, detail) = match error {
            WorkerError::Exited { exit, stderr } => {
                let reason = match (exit.signal, exit.code) {
                    (Some(signal), _) => format!("worker_signal:{signal}"),
                    (None, code) => format!("worker_exit:{}", code.unwrap_or(-1)),
                };
                (reason, format!("{detail}\n{stderr}"))
            }
            WorkerError::Script { kind, traceback, .. } if kind == "MemoryError" => {
                ("out_of_memory".to_owned(), traceback)
            }
            WorkerError::Script { traceback, .. } => ("exception".to_owned(), traceback),
            WorkerError::Contract(_) => ("contract".to_owned(), detail),
            WorkerError::Protocol(_) => ("worker_protocol".to_owned(), detail),
            other => return Err(other),
        };
        Ok(Self { reason, detail })
    }

    /// The label of the restart it causes; bounded.
    fn label(&self) -> &'static str {
        match self.reason.split(':').next().unwrap_or_default() {
            "worker_signal" => "signal",
            "worker_exit" => "exit",
            "timeout" => "timeout",
            "out_of_memory" => "out_of_memory",
            "exception" => "exception",
            "contract" => "contract",
            _ => "protocol",
        }
    }
}

/// Row numbers of a piece become those of the whole batch.
fn shift(output: TransformOutput, first: u32) -> Outcome {
    let rejected =
        output.rejected.into_iter().map(|r| (r.row + first, (r.reason, r.detail))).collect();
    if first == 0 {
        return Outcome { rows: output.rows, rejected };
    }
    let numbers = output.rows.column(0).as_primitive::<UInt32Type>();
    let shifted = UInt32Array::from_iter_values(numbers.values().iter().map(|row| row + first));
    Outcome { rows: with_first_column(&output.rows, Arc::new(shifted)), rejected }
}

/// A piece's `_row` counts from 0 again; it is the last column of what the script gets.
fn renumber(piece: &RecordBatch) -> RecordBatch {
    let mut columns = piece.columns().to_vec();
    let numbers: ArrayRef = Arc::new(UInt32Array::from_iter_values(0..piece.num_rows() as u32));
    if let Some(last) = columns.last_mut() {
        *last = numbers;
    }
    // The same types and lengths as before: this cannot be refused.
    RecordBatch::try_new(piece.schema(), columns).unwrap_or_else(|_| piece.clone())
}

fn with_first_column(batch: &RecordBatch, column: ArrayRef) -> RecordBatch {
    let mut columns = batch.columns().to_vec();
    if let Some(first) = columns.first_mut() {
        *first = column;
    }
    // The same types and lengths as before: this cannot be refused.
    RecordBatch::try_new(batch.schema(), columns).unwrap_or_else(|_| batch.clone())
}
