//! Whose fault it is when a script fails: the data's or the code's.
//!
//! | a version fails on rows of a batch, and | answer |
//! |---|---|
//! | it is suspected already | the batch waits |
//! | there are earlier versions; it is on probation, or fails on many by `protocol/breaker.rs` | these are asked about those rows, the newest first |
//! | … one gets through any of them | the code's: nothing is dead, it is rolled back to that one |
//! | … they fail on all of them as well | the data's: they are dead |
//! | … none can be loaded | as without one |
//! | on probation it fails on a batch as a whole, twice, and an earlier one gets through all of it | the code's, likewise |
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
    /// The versions before it, the newest first.
    pub fallbacks: Vec<Arc<Script>>,
    /// Whether it is new.
    pub on_probation: bool,
}

/// Why a batch did not get through.
pub(super) enum Stopped {
    /// Another worker must run it.
    LeaseLost,
    /// The script does not load.
    Broken(WorkerError),
    /// The script is at fault: why, and an earlier version that is not.
    Suspected { why: String, roll_back_to: Option<String> },
}

impl Stopped {
    fn at_fault(why: String, fallback: Option<&Arc<Script>>) -> Self {
        let roll_back_to = fallback.map(|fallback| fallback.sha256.clone());
        Self::Suspected { why, roll_back_to }
    }
}

impl From<RunError> for Stopped {
    fn from(error: RunError) -> Self {
        match error {
            RunError::LeaseLost => Self::LeaseLost,
            RunError::Worker(error) => Self::Broken(error),
            RunError::Suspected { why, .. } => Self::at_fault(why, None),
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
    let Some(Standing { trust, fallbacks, on_probation }) = standing else {
        return Ok(worker.run(events).await?);
    };
    let sha256 = worker.script().sha256.clone();
    let on_probation = *on_probation && !fallbacks.is_empty() && !trust.is_accepted(&sha256);
    let mut first = match on_probation {
        true => worker.run_with(events, Patience::TwoTries).await,
        false => worker.run(events).await,
    };
    if on_probation && let Err(RunError::Suspected { why, .. }) = &first {
        // Cheaper than finding the rows, when all of it is the code's fault.
        for fallback in fallbacks {
            if worker.gets_through(fallback.clone(), events).await? == Some(true) {
                let why = format!("{why}; the version before it gets through");
                return Err(Stopped::at_fault(why, Some(fallback)));
            }
        }
        first = worker.run(events).await;
    }
    let (why, rows, at_fault) = match &first {
        Ok(outcome) => {
            let failed: Vec<u32> = outcome.failed_rows().collect();
            let judged = trust.judge(&sha256, events.num_rows(), failed.len());
            match judged {
                _ if failed.is_empty() => return Ok(first?),
                Some(why) => (why, failed, true),
                None if on_probation => (first_failure(outcome, events.num_rows()), failed, false),
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
        return Err(Stopped::at_fault(known, None));
    }
    let mut asked_any = false;
    for fallback in fallbacks {
        match worker.second_opinion(fallback.clone(), events, &rows).await? {
            Opinion::Of { handles, asked } if handles > 0 || rows.is_empty() => {
                let why = match asked {
                    0 => format!("{why}; the version before it loads"),
                    _ => format!(
                        "{why}; the version before it gets through {handles} of {asked} of those rows"
                    ),
                };
                return Err(Stopped::at_fault(why, Some(fallback)));
            }
            Opinion::Of { .. } => asked_any = true,
            Opinion::None(error) => {
                tracing::warn!(%error, "the version before it cannot be asked");
            }
        }
    }
    if !asked_any {
        return match first {
            Ok(_) if at_fault => Err(Stopped::at_fault(why, None)),
            other => Ok(other?),
        };
    }
    trust.forgive(&sha256);
    match first {
        Err(RunError::Suspected { .. }) => Ok(worker.run_with(events, Patience::ToTheEnd).await?),
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
