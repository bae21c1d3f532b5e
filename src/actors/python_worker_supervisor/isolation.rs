//! How a batch gets through a worker whatever its script does.
//!
//! | what happens | answer |
//! |---|---|
//! | the script rejects or raises on one event (one-event style) | that event is dead, the worker goes on |
//! | the batch fails (exception, wrong output, signal, deadline) | once more in a fresh process |
//! | it fails again | a sample of its rows, then halves: for `k` bad rows of `n` at most 2·k·log2(n) pieces, with deadlines that shrink with them |
//! | most of the sample fails | the script is suspected: no data is dead, see `protocol/breaker.rs` and `verdict` |
//! | a single row fails twice | it is dead, with the failure as its reason |
//! | the script cannot be loaded | the batch waits, visibly: no data is dead for the code's fault |
//! | the lease was lost or the fork server died, and the process with it | the batch is run by another worker: no data is dead for that |

use super::{
    assemble::{Outcome, Rejections},
    runner::{RunError, Worker},
};
use crate::{
    protocol::breaker,
    python::{Script, TransformOutput, WorkerError, schema},
    telemetry::{StageMeter, catalogue as m},
};
use arrow::{
    array::{ArrayRef, AsArray, RecordBatch, UInt32Array},
    compute::{concat_batches, take_record_batch},
    datatypes::UInt32Type,
};
use std::{sync::Arc, time::Instant};

const METER: StageMeter = StageMeter::new("python_worker_supervisor");

/// A piece of a batch may run for its share of the deadline, but at least for this part of it.
const LEAST_SHARE: f64 = 0.05;

impl Worker {
    /// Gets every row of `batch` through the script, or dead.
    ///
    /// # Errors
    /// Only what is not the data's fault: see [`RunError`].
    pub async fn run(&mut self, batch: &RecordBatch) -> Result<Outcome, RunError> {
        self.run_with(batch, Patience::Sample).await
    }

    /// The same with another patience.
    pub(super) async fn run_with(
        &mut self,
        batch: &RecordBatch,
        patience: Patience,
    ) -> Result<Outcome, RunError> {
        if batch.num_rows() == 0 {
            return Ok(Outcome {
                rows: RecordBatch::new_empty(schema::canonical()),
                rejected: Rejections::new(),
            });
        }
        let started = Instant::now();
        let outcome = self.isolate_whole(batch, patience).await?;
        let name = self.recipe.script.name.clone();
        metrics::histogram!(m::TRANSFORM, "script" => name.clone()).record(started.elapsed());
        metrics::counter!(m::TRANSFORM_ROWS, "script" => name)
            .increment(outcome.rows.num_rows() as u64);
        Ok(outcome)
    }

    /// The whole batch; when it fails, once more in a fresh process, whatever state the script was
    /// in; when it fails again, a sample tells whether it is the rows or the script.
    async fn isolate_whole(
        &mut self,
        batch: &RecordBatch,
        patience: Patience,
    ) -> Result<Outcome, RunError> {
        let failure = match self.attempt(batch, 1.0).await? {
            Ok(output) => return Ok(shift(output, 0)),
            Err(failure) => failure,
        };
        METER.error("batch_failure");
        tracing::warn!(
            script = self.recipe.script.name,
            rows = batch.num_rows(),
            reason = failure.reason,
            detail = failure.detail,
            "the script failed on a batch; trying again in a fresh worker"
        );
        self.kill().await;
        metrics::counter!(m::WORKER_RESTARTS, "cause" => failure.label()).increment(1);
        let failure = match self.attempt(batch, 1.0).await? {
            Ok(output) => return Ok(shift(output, 0)),
            Err(failure) => failure,
        };
        if batch.num_rows() == 1 {
            return Ok(dead(0, failure));
        }
        match patience {
            Patience::TwoTries => {
                let Failure { reason, detail } = failure;
                let why = format!(
                    "it fails on a batch of {} rows with {reason}: {detail}",
                    batch.num_rows()
                );
                return Err(RunError::Suspected { why, rows: Vec::new() });
            }
            Patience::Sample => self.sample(batch).await?,
            Patience::ToTheEnd => {}
        }
        self.halves(batch, 0, batch.num_rows()).await
    }

    /// Tries single rows all over a batch that failed twice.
    async fn sample(&mut self, batch: &RecordBatch) -> Result<(), RunError> {
        let n = batch.num_rows();
        let trust = self.recipe.trust.clone();
        let Some(trust) = trust.filter(|_| n as u64 >= breaker::MIN_ROWS) else { return Ok(()) };
        if trust.is_accepted(&self.recipe.script.sha256) {
            return Ok(());
        }
        let (mut rows, mut last) = (Vec::new(), None);
        for row in breaker::sample(n) {
            let piece = renumber(&batch.slice(row, 1));
            if let Err(failure) = self.attempt(&piece, share(1, n)).await? {
                rows.push(row as u32);
                last = Some(failure);
            }
        }
        match last {
            Some(Failure { reason, detail }) if rows.len() >= breaker::SAMPLE_FAILURES => {
                let why = format!(
                    "of {} rows spread over a batch of {n} it fails on {}, the last time with {reason}: {detail}",
                    breaker::SAMPLE,
                    rows.len()
                );
                Err(RunError::Suspected { why, rows })
            }
            _ => Ok(()),
        }
    }

    /// Runs the whole batch once, as a trial: nothing is isolated. Reason and detail, when it fails.
    ///
    /// # Errors
    /// See [`RunError`].
    pub(super) async fn trial(
        &mut self,
        batch: &RecordBatch,
    ) -> Result<Result<Outcome, (String, String)>, RunError> {
        let tried = self.attempt(batch, 1.0).await?;
        Ok(tried.map(|output| shift(output, 0)).map_err(|f| (f.reason, f.detail)))
    }

    /// Whether another version of the script gets through a whole batch without failing on a row; it
    /// takes the place of this one meanwhile, under the same permit. `None`: it cannot be loaded.
    ///
    /// # Errors
    /// [`RunError::LeaseLost`].
    pub(super) async fn gets_through(
        &mut self,
        other: Arc<Script>,
        batch: &RecordBatch,
    ) -> Result<Option<bool>, RunError> {
        let own = self.change_script(other).await;
        let tried = self.trial(batch).await;
        self.change_script(own).await;
        match tried {
            Ok(made) => Ok(Some(made.is_ok_and(|outcome| outcome.failed_rows().next().is_none()))),
            Err(RunError::Worker(error)) => {
                tracing::warn!(%error, "the version before it cannot be asked");
                Ok(None)
            }
            Err(other) => Err(other),
        }
    }

    /// What another version of the script makes of rows on which this one failed. It takes the place
    /// of this one meanwhile, under the same permit.
    ///
    /// # Errors
    /// [`RunError::LeaseLost`].
    pub(super) async fn second_opinion(
        &mut self,
        other: Arc<Script>,
        batch: &RecordBatch,
        rows: &[u32],
    ) -> Result<Opinion, RunError> {
        let asked: UInt32Array = spread(rows).collect();
        let own = self.change_script(other).await;
        let trust = self.recipe.trust.take();
        let found = match take_record_batch(batch, &asked) {
            Ok(piece) if piece.num_rows() > 0 => {
                self.isolate_whole(&renumber(&piece), Patience::ToTheEnd).await
            }
            _ => self.start().await.map(|_| Outcome {
                rows: RecordBatch::new_empty(schema::canonical()),
                rejected: Rejections::new(),
            }),
        };
        self.recipe.trust = trust;
        self.change_script(own).await;
        match found {
            Ok(outcome) => {
                let failed = outcome.failed_rows().count();
                Ok(Opinion::Of { handles: asked.len() - failed, asked: asked.len() })
            }
            Err(RunError::Worker(error)) => Ok(Opinion::None(error)),
            Err(other) => Err(other),
        }
    }

    /// A piece of a batch of `whole` rows, tried once; a single row twice. `first` is the number, in
    /// the whole batch, of its first row. A process that lives through a failure goes on with the
    /// next piece: a script is a function of its rows.
    async fn isolate(
        &mut self,
        piece: &RecordBatch,
        first: u32,
        whole: usize,
    ) -> Result<Outcome, RunError> {
        let n = piece.num_rows();
        let mut tries = if n == 1 { 2 } else { 1 };
        loop {
            let failure = match self.attempt(piece, share(n, whole)).await? {
                Ok(output) => return Ok(shift(output, first)),
                Err(failure) => failure,
            };
            tracing::debug!(rows = n, first, reason = failure.reason, "a piece of a batch failed");
            if self.process.is_none() {
                metrics::counter!(m::WORKER_RESTARTS, "cause" => failure.label()).increment(1);
            }
            tries -= 1;
            if tries == 0 && n == 1 {
                return Ok(dead(first, failure));
            }
            if tries == 0 {
                return self.halves(piece, first, whole).await;
            }
        }
    }

    async fn halves(
        &mut self,
        piece: &RecordBatch,
        first: u32,
        whole: usize,
    ) -> Result<Outcome, RunError> {
        let (n, half) = (piece.num_rows(), piece.num_rows() / 2);
        let (left, right) =
            (renumber(&piece.slice(0, half)), renumber(&piece.slice(half, n - half)));
        let mut left = Box::pin(self.isolate(&left, first, whole)).await?;
        let right = Box::pin(self.isolate(&right, first + half as u32, whole)).await?;
        left.rejected.extend(right.rejected);
        left.rows = concat_batches(&schema::canonical(), [&left.rows, &right.rows])
            .map_err(|e| WorkerError::Protocol(e.to_string()))?;
        Ok(left)
    }

    /// One try within a share of the deadline. The outer error is not the data's fault, the inner one
    /// may be.
    async fn attempt(
        &mut self,
        piece: &RecordBatch,
        share: f64,
    ) -> Result<Result<TransformOutput, Failure>, RunError> {
        self.start().await?;
        let deadline = self.deadline().mul_f64(share);
        let process = self.process.as_mut().ok_or(WorkerError::Poisoned)?;
        let failure = match tokio::time::timeout(deadline, process.transform(piece)).await {
            Ok(Ok(output)) => return Ok(Ok(output)),
            Ok(Err(error)) => match self.blamed(error) {
                RunError::Worker(error) => Failure::of(error)?,
                other => return Err(other),
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

/// When a batch that fails twice is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// At once.
    TwoTries,
    /// When a sample of its rows says that the script is at fault.
    Sample,
    /// Never: each row that fails is dead.
    ToTheEnd,
}

/// What another version says of rows on which one failed.
pub(super) enum Opinion {
    /// It gets through so many of those that it was asked about.
    Of {
        /// Rows on which it does not fail.
        handles: usize,
        /// Rows that it was given.
        asked: usize,
    },
    /// It cannot be loaded itself.
    None(WorkerError),
}

/// Rows that another version is asked about at most: if the data is at fault it fails on each.
const OPINION_ROWS: usize = 256;

/// At most [`OPINION_ROWS`] of these, from all over.
fn spread(rows: &[u32]) -> impl Iterator<Item = u32> {
    let n = rows.len().min(OPINION_ROWS);
    (0..n).map(move |i| rows[i * rows.len() / n])
}

/// The part of the deadline that `rows` of a batch of `whole` have.
fn share(rows: usize, whole: usize) -> f64 {
    (rows as f64 / whole.max(1) as f64).max(LEAST_SHARE)
}

/// A single row that failed twice.
fn dead(row: u32, failure: Failure) -> Outcome {
    let rejected = Rejections::from([(row, (failure.reason, failure.detail))]);
    Outcome { rows: RecordBatch::new_empty(schema::canonical()), rejected }
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
                    _ if wants_memory(&stderr) => "out_of_memory".to_owned(),
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

/// Whether a process said, when it ended, that it got no memory: Rust's word, C++'s, Python's.
fn wants_memory(stderr: &str) -> bool {
    ["memory allocation of ", "std::bad_alloc", "MemoryError"]
        .iter()
        .any(|word| stderr.contains(word))
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
pub(super) fn renumber(piece: &RecordBatch) -> RecordBatch {
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
