//! A script over records without a node: for trying it.
//!
//! Takes [`Records`], gives what a node would have handed on: rows, dead letters and counts. The
//! decoder, the worker, the search for the rows at fault and the putting together are the node's
//! own. Nothing is handed on, promised or stored, and no permit is taken.

use super::{
    aging::AgeLimits,
    assemble,
    runner::{Recipe, RunError, Worker},
};
use crate::{
    config::StreamConfig,
    decode::Decoder,
    messages::{Credit, EventBatch, FeaturePart, Records, SourceBatch},
    protocol::{
        source::{SourceName, Token},
        ticket::Ticket,
    },
    python::{Loaded, Script, WorkerError, WorkerSpec},
};
use arrow::error::ArrowError;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;

/// Longer than any command runs. The worker ends with the command, not with a lease.
const LEASE: Duration = Duration::from_secs(365 * 24 * 3600);

/// What a rehearsal is made of.
pub struct RehearsalParts {
    /// The stream whose events the records are.
    pub stream: StreamConfig,
    /// The script, whether it is the stream's or not.
    pub script: Script,
    /// How a worker is started. Its lease does not count.
    pub spec: WorkerSpec,
    /// How long one batch may run, and loading the script.
    pub deadline: Duration,
    /// Called when a worker's process was started: once, and once for each that a failing batch
    /// costs.
    pub on_start: Box<dyn Fn() + Send + Sync>,
}

/// Why a rehearsal cannot go on. Data is never to blame for that.
#[derive(Debug, thiserror::Error)]
pub enum RehearsalError {
    /// The worker cannot be started, or the script not be loaded.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The columns of a batch do not fit together.
    #[error("the rows could not be processed, which is a defect of Millstream: {0}")]
    Defect(#[from] ArrowError),
}

impl From<RunError> for RehearsalError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Worker(error) => Self::Worker(error),
            // There is no lease that could be lost, and nothing is suspected here.
            RunError::LeaseLost | RunError::Suspected { .. } => Self::Worker(WorkerError::Poisoned),
        }
    }
}

/// See the module.
pub struct Rehearsal {
    stream: StreamConfig,
    decoder: Decoder,
    worker: Worker,
    transform_time: Duration,
}

impl Rehearsal {
    /// A rehearsal whose worker is not started yet.
    #[must_use]
    pub fn new(parts: RehearsalParts) -> Self {
        let RehearsalParts { mut stream, mut script, spec, deadline, on_start } = parts;
        script.params.clone_from(&stream.params);
        // Nothing goes online.
        stream.critical.clear();
        let decoder = Decoder::new(Arc::new(stream.clone()));
        let worker = Worker::of_a_command(Recipe {
            spec: WorkerSpec { lease: LEASE, ..spec },
            script: Arc::new(script),
            input: decoder.schema().clone(),
            deadline,
            load_deadline: deadline,
            announce: Arc::new(move |_, _| on_start()),
            leases: Arc::default(),
            limits: AgeLimits { batches: 0, growth: 0 },
            starts: Arc::new(Semaphore::new(1)),
            // What it fails on is what one wants to see.
            trust: None,
        });
        Self { stream, decoder, worker, transform_time: Duration::ZERO }
    }

    /// Starts the worker and loads the script.
    ///
    /// # Errors
    /// [`RehearsalError::Worker`].
    pub async fn start(&mut self) -> Result<Loaded, RehearsalError> {
        self.worker.start().await?;
        Ok(self.worker.loaded().ok_or(WorkerError::Poisoned)?)
    }

    /// What a node would make of these records, which become one batch. A row's position is that of
    /// its record.
    ///
    /// # Errors
    /// See [`RehearsalError`].
    pub async fn run(&mut self, records: Records) -> Result<FeaturePart, RehearsalError> {
        let now_us = chrono::Utc::now().timestamp_micros();
        let decoded = self.decoder.decode(&[std::slice::from_ref(&records)], now_us)?;
        let started = Instant::now();
        let outcome = self.worker.run(&decoded.batch).await?;
        self.transform_time += started.elapsed();
        let batch = EventBatch::new(0, None, vec![part_of(records)]);
        let now_us = chrono::Utc::now().timestamp_micros();
        let effects = assemble::assemble(&self.stream, &batch, &decoded, outcome, now_us)?;
        let mut features = assemble::features(batch, &self.worker.script(), effects);
        let lost = || ArrowError::ComputeError("the part is gone".into());
        Ok(features.parts.pop().ok_or_else(lost)?)
    }

    /// Runs a batch that does not count: what packages load lazily is there when the next one is
    /// timed.
    ///
    /// # Errors
    /// See [`RehearsalError`].
    pub async fn warm_up(&mut self, records: Records) -> Result<(), RehearsalError> {
        let before = self.transform_time;
        self.run(records).await?;
        self.transform_time = before;
        Ok(())
    }

    /// How long batches took in workers so far, with what finding the rows at fault cost.
    #[must_use]
    pub fn transform_time(&self) -> Duration {
        self.transform_time
    }

    /// Lets the script end and waits until its process is reaped.
    pub async fn stop(self) {
        self.worker.stop().await;
    }
}

/// The records as the only part of a batch.
fn part_of(records: Records) -> SourceBatch {
    let (source, token) = (SourceName("rehearsal".into()), Token::after(0));
    let from = records.get(0).map_or(0, |first| first.position);
    let last = records.len().checked_sub(1).and_then(|i| records.get(i));
    let to = last.map_or(from, |last| last.position + 1);
    // Nobody listens: what is abandoned here is over.
    let (abandoned, _) = tokio::sync::mpsc::unbounded_channel();
    SourceBatch {
        stream: 0,
        source: source.clone(),
        token,
        source_no: 0,
        from,
        to,
        pinned: None,
        records: vec![records],
        ticket: Ticket::new(source, token, from, to, abandoned),
        credit: Credit::default(),
        polled_at: Instant::now(),
    }
}
