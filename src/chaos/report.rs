//! What a run of chaos ends with: the verdict, what was done, how soon everything was back.

use super::{
    inject::{Outcome, Record, Recovery},
    plan::Plan,
};
use crate::report::Report;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// The verdict with what led to it. As JSON it has all that [`Report`] has, on the same level.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChaosReport {
    /// The verdict.
    #[serde(flatten)]
    pub verdict: Report,
    /// What the plan was made from.
    pub seed: u64,
    /// Faults that were done and are over.
    pub faults: u64,
    /// By kind.
    pub kinds: BTreeMap<String, KindCount>,
    /// Kinds that were wanted and are not possible here, with what they miss.
    pub left_out: BTreeMap<String, String>,
    /// By actor: how soon its next instance lived after it was ended.
    pub recovery: BTreeMap<String, RecoveryTimes>,
    /// Seconds from the end of the last fault until everything that was sent was durable; null when it
    /// did not come to that.
    pub caught_up_s: Option<f64>,
    /// The most resident memory of each node's process, in MiB.
    pub peak_rss_mib: BTreeMap<String, u64>,
    /// Nodes that ended without being ended, with how.
    pub ended_by_themselves: BTreeMap<String, Vec<String>>,
    /// Samples of committed offsets and of living workers that the verdict is based on.
    pub samples: Samples,
    /// What was planned: `--replay` takes it.
    pub plan: Plan,
}

/// What became of a kind's faults.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindCount {
    /// Done, and over.
    pub done: u64,
    /// There was nothing to hurt just then.
    pub nothing: u64,
    /// Could not be done or undone.
    pub failed: u64,
}

/// How long something took, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RecoveryTimes {
    /// How often.
    pub count: usize,
    /// The median.
    pub p50_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

/// How often was looked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Samples {
    /// Comparisons of committed offsets with DuckDB's positions.
    pub offsets: usize,
    /// Counts of living Python workers.
    pub workers: usize,
    /// The most that lived at once.
    pub most_workers: usize,
}

/// Counts by kind.
#[must_use]
pub fn by_kind(records: &[Record]) -> BTreeMap<String, KindCount> {
    let mut kinds = BTreeMap::<String, KindCount>::new();
    for record in records {
        let count = kinds.entry(record.planned.kind.clone()).or_default();
        match record.outcome {
            Outcome::Done | Outcome::Broken(_) => count.done += 1,
            Outcome::Nothing(_) => count.nothing += 1,
            Outcome::Failed(_) => count.failed += 1,
        }
    }
    kinds
}

/// Times by actor.
#[must_use]
pub fn by_actor<'a>(
    recoveries: impl Iterator<Item = &'a Recovery>,
) -> BTreeMap<String, RecoveryTimes> {
    let mut took = BTreeMap::<String, Vec<Duration>>::new();
    for Recovery { actor, took: time } in recoveries {
        took.entry(actor.clone()).or_default().push(*time);
    }
    took.into_iter().map(|(actor, times)| (actor, RecoveryTimes::of(times))).collect()
}

impl RecoveryTimes {
    /// Of at least one time.
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        // The nearest rank: the smallest time that at least that share does not exceed.
        let at = |share: f64| {
            let rank = (times.len() as f64 * share).ceil() as usize;
            times.get(rank.max(1) - 1).map_or(0.0, |time| time.as_secs_f64() * 1e3)
        };
        Self { count: times.len(), p50_ms: at(0.5), p99_ms: at(0.99), max_ms: at(1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::plan::Planned;

    #[test]
    fn faults_are_counted_by_what_became_of_them() {
        let record = |kind: &str, outcome| Record {
            planned: Planned { at_ms: 0, kind: kind.into(), actor: None, for_ms: 0, pick: 0 },
            began_ms: 0,
            outcome,
            recovery: None,
        };
        let records = [
            record("a", Outcome::Done),
            record("a", Outcome::Nothing("x".into())),
            record("b", Outcome::Failed("x".into())),
            record("b", Outcome::Broken("x".into())),
        ];
        let kinds = by_kind(&records);
        assert_eq!(kinds["a"], KindCount { done: 1, nothing: 1, failed: 0 });
        assert_eq!(kinds["b"], KindCount { done: 1, nothing: 0, failed: 1 });
    }

    #[test]
    fn the_99th_of_a_hundred_is_the_99th() {
        let recovery = |ms| Recovery { actor: "a".into(), took: Duration::from_millis(ms) };
        let all: Vec<Recovery> = (1..=100).map(recovery).collect();
        let times = by_actor(all.iter())["a"];
        assert_eq!(
            (times.count, times.p50_ms, times.p99_ms, times.max_ms),
            (100, 50.0, 99.0, 100.0)
        );
        let one = by_actor(all[..1].iter())["a"];
        assert_eq!((one.p50_ms, one.p99_ms), (1.0, 1.0));
    }
}
