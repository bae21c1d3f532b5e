//! Whose fault it is when a script fails: the data's or the code's.
//!
//! | a version fails on rows of a batch, and | answer |
//! |---|---|
//! | it is suspected already | the batch waits |
//! | there is an earlier version; the new one is on probation, or fails on many by `protocol/breaker.rs` | the earlier one is asked about those rows |
//! | … it gets through any of them | the code's: nothing is dead, the version is rolled back |
//! | … it fails on all of them as well | the data's: they are dead |
//! | … it cannot be loaded | as without one |
//! | it fails on the batch as a whole, twice, and the earlier one gets through all of it | the code's, likewise |
//! | there is none, and it fails on many | the code's: nothing is dead, the stream waits |
//! | else | the data's: they are dead |
//!
//! A version that no longer loads is held against the earlier one in the same way.

use super::{
    assemble::Outcome,
    isolation::{Opinion, Patience},
    runner::{RunError, Worker},
    trust::Trust,
};
use crate::python::{Script, WorkerError};
use arrow::array::RecordBatch;
use std::sync::Arc;

/// What the version of a batch is held against. What is pinned is held against nothing: it has
/// worked before, and must not wait.
pub(super) struct Standing {
    /// What is known of versions.
    pub trust: Arc<Trust>,
    /// The version before it.
    pub fallback: Option<Arc<Script>>,
    /// Whether it is new.
    pub on_probation: bool,
}

/// Why a batch did not get through.
pub(super) enum Stopped {
    /// Another worker must run it.
    LeaseLost,
    /// The script does not load.
    Broken(WorkerError),
    /// The script is at fault: why, and whether the version before it is not.
    Suspected { why: String, roll_back: bool },
}

impl From<RunError> for Stopped {
    fn from(error: RunError) -> Self {
        match error {
            RunError::LeaseLost => Self::LeaseLost,
            RunError::Worker(error) => Self::Broken(error),
            RunError::Suspected { why, .. } => Self::Suspected { why, roll_back: false },
        }
    }
}

/// Gets every row of a batch through its script, or dead for the data's fault.
///
/// # Errors
/// See [`Stopped`].
pub(super) async fn run(
    worker: &mut Worker,
    events: &RecordBatch,
    standing: Option<&Standing>,
) -> Result<Outcome, Stopped> {
    let Some(Standing { trust, fallback, on_probation }) = standing else {
        return Ok(worker.run(events).await?);
    };
    let sha256 = worker.script().sha256.clone();
    let mut first = match fallback {
        Some(_) => worker.run_with(events, Patience::TwoTries).await,
        None => worker.run(events).await,
    };
    if let (Some(fallback), Err(RunError::Suspected { why, .. })) = (fallback, &first) {
        // Cheaper than finding the rows, when all of it is the code's fault.
        if !trust.is_accepted(&sha256)
            && worker.gets_through(fallback.clone(), events).await? == Some(true)
        {
            let why = format!("{why}; the version before it gets through");
            return Err(Stopped::Suspected { why, roll_back: true });
        }
        first = worker.run(events).await;
    }
    let (why, rows, at_fault) = match &first {
        Ok(outcome) => {
            let failed: Vec<u32> = outcome.failed_rows().collect();
            let judged = trust.judge(&sha256, events.num_rows(), failed.len());
            let doubted = *on_probation && fallback.is_some() && !trust.is_accepted(&sha256);
            match judged {
                _ if failed.is_empty() => return Ok(first?),
                Some(why) => (why, failed, true),
                None if doubted => (first_failure(outcome, events.num_rows()), failed, false),
                None => return Ok(first?),
            }
        }
        Err(RunError::Suspected { why, rows }) => (why.clone(), rows.clone(), true),
        Err(RunError::Worker(error @ WorkerError::Import { .. })) => {
            (describe(error), Vec::new(), true)
        }
        Err(_) => return Ok(first?),
    };
    // Another worker's batch has found it out.
    if let Some(known) = trust.why(&sha256) {
        return Err(Stopped::Suspected { why: known, roll_back: fallback.is_some() });
    }
    let opinion = match fallback {
        Some(fallback) => worker.second_opinion(fallback.clone(), events, &rows).await?,
        None => return alone(first, why, at_fault),
    };
    match opinion {
        Opinion::Of { handles, asked } if handles > 0 || rows.is_empty() => {
            let why = match asked {
                0 => format!("{why}; the version before it loads"),
                _ => format!(
                    "{why}; the version before it gets through {handles} of {asked} of those rows"
                ),
            };
            Err(Stopped::Suspected { why, roll_back: true })
        }
        Opinion::Of { .. } => {
            trust.forgive(&sha256);
            match first {
                Err(RunError::Suspected { .. }) => {
                    Ok(worker.run_with(events, Patience::ToTheEnd).await?)
                }
                other => Ok(other?),
            }
        }
        Opinion::None(error) => {
            tracing::warn!(%error, "the version before it cannot be asked");
            alone(first, why, at_fault)
        }
    }
}

/// The verdict when there is no other version to ask; `at_fault`: whether so much fails that it is
/// the code's fault.
fn alone(
    first: Result<Outcome, RunError>,
    why: String,
    at_fault: bool,
) -> Result<Outcome, Stopped> {
    match first {
        Ok(_) if at_fault => Err(Stopped::Suspected { why, roll_back: false }),
        other => Ok(other?),
    }
}

fn first_failure(outcome: &Outcome, rows: usize) -> String {
    let failed = outcome.failed_rows().count();
    let first = outcome.failed_rows().next().and_then(|row| outcome.rejected.get(&row));
    let (reason, detail) = first.cloned().unwrap_or_default();
    format!("it fails on {failed} of {rows} rows, the first time with {reason}: {detail}")
}

/// An error of a worker, with the traceback if there is one.
pub(super) fn describe(error: &WorkerError) -> String {
    match error {
        WorkerError::Import { traceback, .. } if !traceback.is_empty() => {
            format!("{error}\n{traceback}")
        }
        _ => error.to_string(),
    }
}
