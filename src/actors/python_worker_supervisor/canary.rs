//! Trying a version before it takes over: it is loaded in a fresh process under a permit of its
//! stream, run on the stream's last real batch, and held against the version that runs.
//!
//! | the new version | answer |
//! |---|---|
//! | does not load, or not in time | refused |
//! | fails on the batch as a whole: exception, signal, deadline, wrong columns | refused |
//! | fails on a row on which the running version does not | refused |
//! | makes other rows, rejects other events, takes another time | passed, and it is told |
//! | no batch of the stream was seen since the node started | passed, once it has loaded |
//!
//! Rows on which the running version failed are left out: they are the data's fault. With a free
//! permit the stream goes on meanwhile; at the cap one of its workers gives up its own at the end of
//! a batch. The process that passed becomes the first worker of the new version.

use super::{
    PythonParts,
    assemble::Outcome,
    board::LastBatch,
    diff::Difference,
    hiring::{Hire, recipe},
    runner::{RunError, Worker},
    slot::Canary,
    verdict::describe,
};
use crate::{
    config::Config,
    messages::{AcquirePermit, Permit},
    python::{Script, WorkerError, WorkerSpec, schema},
    supervision::Undelivered,
};
use arrow::{
    array::{AsArray, BooleanArray, RecordBatch, UInt32Array},
    compute::filter_record_batch,
    datatypes::{SchemaRef, UInt32Type},
};
use serde::{Deserialize, Serialize};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How long a free permit is waited for before the stream gives up one of its own.
const OWN_PERMIT_AFTER: Duration = Duration::from_millis(20);
/// How soon a permit is asked for again when the WorkerSemaphore died with the question.
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// A first run that was quicker is repeated: it was slowed down by what packages load lazily.
const REPEAT_BELOW: Duration = Duration::from_secs(1);

/// What a trial found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TrialReport {
    /// Seconds from the start of the process until the script was loaded.
    pub load_s: Option<f64>,
    /// Events that it was tried on.
    pub events: usize,
    /// The version that it was held against.
    pub against: Option<String>,
    /// What it makes differently.
    pub difference: Option<Difference>,
    /// Seconds that the running version took for these events.
    pub before_s: Option<f64>,
    /// Seconds that the new one takes.
    pub after_s: Option<f64>,
}

impl TrialReport {
    /// How many times as long the new version takes.
    #[must_use]
    pub fn time_ratio(&self) -> Option<f64> {
        let (before, after) = (self.before_s?, self.after_s?);
        (before > 0.0).then(|| after / before)
    }
}

impl std::fmt::Display for TrialReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some(difference) = &self.difference else {
            return f.write_str("loaded; no batch was seen yet to try it on");
        };
        write!(f, "on {} events: {difference}", self.events)?;
        match self.time_ratio() {
            Some(ratio) => write!(f, "; {ratio:.2} times the time"),
            None => Ok(()),
        }
    }
}

/// A version that may take over.
pub struct Passed {
    /// What was found.
    pub report: TrialReport,
    /// Its first worker.
    pub canary: Canary,
}

/// A version that must not.
#[derive(Debug)]
pub struct Refusal {
    /// Why, with the traceback if there is one.
    pub reason: String,
    /// What was found until then.
    pub report: TrialReport,
}

/// How a stream's scripts are tried.
pub struct Trials {
    config: Arc<Config>,
    parts: PythonParts,
    spec: WorkerSpec,
    inputs: Vec<SchemaRef>,
}

impl Trials {
    /// For all streams of the configuration.
    #[must_use]
    pub fn new(config: Arc<Config>, parts: PythonParts) -> Self {
        let inputs = config
            .streams
            .iter()
            .map(|s| crate::decode::Decoder::new(Arc::new(s.clone())).schema().clone())
            .collect();
        let spec = parts.worker_spec(&config);
        Self { config, parts, spec, inputs }
    }

    /// Tries a version of a stream's script, by the table of the module.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn run(&self, stream: usize, script: Script) -> Result<Passed, Refusal> {
        let script = Arc::new(script);
        loop {
            let permit = self.permit(stream).await;
            let mut canary = self.hire(stream, script.clone(), permit);
            let mut report = TrialReport::default();
            match self.judge(stream, &mut canary, &mut report).await {
                Ok(()) => return Ok(Passed { report, canary }),
                Err(Found::LeaseLost) => {
                    tracing::warn!(
                        script = script.name,
                        "a trial's lease was lost, or its fork server died; trying again"
                    );
                }
                Err(Found::Fault(reason)) => return Err(Refusal { reason, report }),
            }
        }
    }

    /// A free permit or, at the cap, one of the stream's own.
    async fn permit(&self, stream: usize) -> Permit {
        loop {
            let (reply, granted) = tokio::sync::oneshot::channel();
            if let Err(Undelivered(_)) = self.parts.semaphore.deliver(AcquirePermit { reply }) {
                tracing::debug!("the semaphore is between two lives; asking again");
            }
            let own = async {
                tokio::time::sleep(OWN_PERMIT_AFTER).await;
                match self.parts.workers.ask_hand_over(stream).await {
                    Ok(permit) => permit,
                    // Another trial of the stream has asked since.
                    Err(_) => std::future::pending().await,
                }
            };
            tokio::select! {
                granted = granted => if let Ok(permit) = granted { return permit },
                permit = own => return permit,
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    fn hire(&self, stream: usize, script: Arc<Script>, permit: Permit) -> Canary {
        let slot = &self.parts.workers;
        let number = slot.next_number();
        let hire = Hire {
            stream,
            name: &self.config.streams[stream].name,
            number,
            lease: permit.lease().clone(),
            script,
            input: self.inputs[stream].clone(),
            judged: true,
        };
        let worker = Worker::new(recipe(&self.config, slot, &self.spec, hire), permit);
        let name = &self.config.streams[stream].name;
        Canary::new(number, name, worker, self.parts.status.clone())
    }

    async fn judge(
        &self,
        stream: usize,
        canary: &mut Canary,
        report: &mut TrialReport,
    ) -> Result<(), Found> {
        let worker = canary.worker().ok_or(Found::LeaseLost)?;
        worker.start().await?;
        report.load_s = worker.start_s();
        let Some(last) = self.parts.workers.board.last(stream) else { return Ok(()) };
        let (events, before) = without_failures(&last);
        if events.num_rows() == 0 {
            return Ok(());
        }
        report.events = events.num_rows();
        report.against = Some(last.sha256.clone());
        report.before_s = last.took.map(|took| took.as_secs_f64());
        let (mut after, mut took) = timed(worker, &events).await?;
        if took < REPEAT_BELOW {
            (after, took) = timed(worker, &events).await?;
        }
        report.after_s = Some(took.as_secs_f64());
        if self.config.streams[stream].ordered {
            // Its script keeps state: it must not have seen a batch twice.
            worker.kill().await;
        }
        report.difference = Some(Difference::between(&before, &after));
        let failed = after.failed_rows().count();
        match after.failed_rows().next().and_then(|row| after.rejected.get(&row)) {
            Some((reason, detail)) => Err(Found::Fault(format!(
                "it fails on {failed} of the {} events of the stream's last batch, through which the running version \
                 got; the first time with {reason}: {detail}",
                events.num_rows()
            ))),
            None => Ok(()),
        }
    }
}

async fn timed(worker: &mut Worker, events: &RecordBatch) -> Result<(Outcome, Duration), Found> {
    let began = Instant::now();
    match worker.trial(events).await? {
        Ok(outcome) => Ok((outcome, began.elapsed())),
        Err((reason, detail)) => Err(Found::Fault(format!(
            "it fails on the stream's last batch ({} events) with {reason}: {detail}",
            events.num_rows()
        ))),
    }
}

/// Why a trial ended early.
enum Found {
    LeaseLost,
    Fault(String),
}

impl From<RunError> for Found {
    fn from(error: RunError) -> Self {
        match error {
            RunError::LeaseLost => Self::LeaseLost,
            RunError::Worker(error @ WorkerError::Import { .. }) => Self::Fault(describe(&error)),
            RunError::Worker(error) => Self::Fault(format!("it does not load: {error}")),
            RunError::Suspected { why, .. } => Self::Fault(why),
        }
    }
}

/// The last batch without the events on which the running version failed.
fn without_failures(last: &LastBatch) -> (RecordBatch, Outcome) {
    let failed: Vec<u32> = last.outcome.failed_rows().collect();
    if failed.is_empty() {
        return (last.events.clone(), last.outcome.clone());
    }
    let n = last.events.num_rows() as u32;
    let stays = |row: u32| failed.binary_search(&row).is_err();
    // What remains is counted anew.
    let mut renumbered = vec![0; n as usize];
    let kept = (0..n).filter(|row| stays(*row));
    kept.enumerate().for_each(|(i, row)| renumbered[row as usize] = i as u32);
    let mask: BooleanArray = (0..n).map(|row| Some(stays(row))).collect();
    let events = filter_record_batch(&last.events, &mask).map(|e| super::isolation::renumber(&e));
    let own = |rows: &RecordBatch| {
        let old = rows.column_by_name(schema::ROW)?.as_primitive::<UInt32Type>();
        let new = old.values().iter().map(|row| renumbered[*row as usize]);
        let mut columns = rows.columns().to_vec();
        columns[0] = Arc::new(UInt32Array::from_iter_values(new));
        RecordBatch::try_new(rows.schema(), columns).ok()
    };
    let rejected = last.outcome.rejected.iter().filter(|(row, _)| stays(**row));
    let rejected = rejected.map(|(row, why)| (renumbered[*row as usize], why.clone())).collect();
    match (events, own(&last.outcome.rows)) {
        (Ok(events), Some(rows)) => (events, Outcome { rows, rejected }),
        // The same columns and lengths as before: this cannot be refused.
        _ => (last.events.slice(0, 0), last.outcome.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::diff::tests::outcome, *};
    use arrow::array::{ArrayRef, StringArray};

    #[test]
    fn events_that_failed_before_are_left_out_and_the_others_counted_anew() {
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values(["a", "b", "c", "d"]));
        let numbers: ArrayRef = Arc::new(UInt32Array::from_iter_values(0..4));
        let events = RecordBatch::try_from_iter([("text", texts), ("_row", numbers)]).unwrap();
        let mut made = outcome(&[(0, "f", None, 0), (3, "f", None, 0), (3, "g", None, 0)], 0);
        made.rejected.insert(1, ("timeout".into(), String::new()));
        made.rejected.insert(2, ("its own word".into(), String::new()));
        let took = Some(Duration::from_secs(1));
        let last = LastBatch { events, outcome: made, sha256: "v".into(), took };
        let (events, before) = without_failures(&last);
        let texts: Vec<_> = events.column(0).as_string::<i32>().iter().flatten().collect();
        assert_eq!(texts, ["a", "c", "d"]);
        let of = |batch: &RecordBatch, i: usize| {
            batch.column(i).as_primitive::<UInt32Type>().values().to_vec()
        };
        assert_eq!(of(&events, 1), [0, 1, 2]);
        assert_eq!(of(&before.rows, 0), [0, 2, 2]);
        assert_eq!(before.rejected.into_keys().collect::<Vec<_>>(), [1], "a decision, no failure");
    }

    #[test]
    fn a_report_says_what_it_found_and_what_it_could_not_find() {
        let nothing = TrialReport { load_s: Some(0.1), ..TrialReport::default() };
        assert_eq!(nothing.to_string(), "loaded; no batch was seen yet to try it on");
        let report = TrialReport {
            events: 3,
            difference: Some(Difference::default()),
            before_s: Some(2.0),
            after_s: Some(3.0),
            ..nothing
        };
        let told = report.to_string();
        assert!(told.starts_with("on 3 events: 0 rows added"), "{told}");
        assert!(told.ends_with("; 1.50 times the time"), "{told}");
    }
}
