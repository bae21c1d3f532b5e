//! From what was observed to the verdict.

use super::{
    fault::Kind,
    inject::{Outcome, Record},
    judge::{Online, judge},
    plan::Plan,
    processes::{Counted, Violation},
    report::{ChaosReport, RecoveryTimes, Samples, by_actor, by_kind},
    rig::Rig,
    watch::Seen,
};
use crate::{actors::generator::GeneratorTasks, queue::Keys, store::audit::Check};
use duckdb::Connection;
use std::{collections::BTreeMap, time::Duration};

/// Resident memory of one node, at most (C12): what it may hold by its configuration, DuckDB's and the
/// events in flight, and as much again.
const MOST_RSS: u64 = 1_536 << 20;
/// How soon an actor must live again, by the 99th percentile.
const BACK_WITHIN_MS: f64 = 1_000.0;

/// What was seen of a run whose nodes have stopped.
pub(super) struct Observed {
    pub(super) records: Vec<Record>,
    pub(super) seen: Seen,
    pub(super) workers: Counted,
    pub(super) max_workers: u32,
    /// How long it took until everything was durable, or why that is not known.
    pub(super) quiet: anyhow::Result<Duration>,
    pub(super) not_in_order: Vec<String>,
    pub(super) ended_by_themselves: BTreeMap<String, Vec<String>>,
    pub(super) left_out: Vec<(&'static Kind, String)>,
    pub(super) plan: Plan,
    pub(super) elapsed: Duration,
}

impl Observed {
    /// Reads the closed store and the online store, and says what holds.
    pub(super) fn judge(self, rig: &Rig, tasks: &GeneratorTasks) -> anyhow::Result<ChaosReport> {
        let store = Connection::open(&rig.database)?;
        let keys = Keys::new(&rig.config.node.namespace);
        let online =
            Online { url: &rig.direct.redis.url, keys: &keys, streams: &rig.config.streams };
        let expected = tasks.tally().expected(|task| tasks.maker(task));
        let mut verdict = judge(&store, &expected, Some(online), self.elapsed)?;
        let recovery = by_actor(self.records.iter().filter_map(|r| r.recovery.as_ref()));
        verdict.kills = self.records.iter().filter(|r| r.outcome == Outcome::Done).count() as u64;
        verdict.restarts = recovery.values().map(|times| times.count as u64).sum();
        let latency = latency_ms(&store);
        (verdict.p50_ms, verdict.p99_ms) = (latency.map(|l| l.0), latency.map(|l| l.1));
        verdict.checks.push(generator_sound(tasks));
        verdict.checks.extend(self.checks(&recovery));
        verdict.ok = verdict.checks.iter().all(|check| check.ok);

        let Self { records, seen, workers, left_out, plan, .. } = self;
        let mib = |(name, bytes): (&'static str, u64)| (name.to_owned(), bytes >> 20);
        Ok(ChaosReport {
            seed: plan.seed,
            faults: verdict.kills,
            verdict,
            kinds: by_kind(&records),
            left_out: left_out.into_iter().map(|(kind, why)| (kind.name.into(), why)).collect(),
            recovery,
            caught_up_s: self.quiet.ok().map(|took| took.as_secs_f64()),
            peak_rss_mib: seen.peak_bytes.into_iter().map(mib).collect(),
            ended_by_themselves: self.ended_by_themselves,
            samples: Samples {
                offsets: seen.offsets,
                workers: workers.samples as usize,
                most_workers: workers.most,
            },
            plan,
        })
    }

    /// What is not in the books.
    fn checks(&self, recovery: &BTreeMap<String, RecoveryTimes>) -> Vec<Check> {
        let Self { seen, workers, .. } = self;
        let quiet = match &self.quiet {
            Ok(took) => {
                (Vec::new(), format!("durable {:.1} s after the last fault", took.as_secs_f64()))
            }
            Err(error) => (vec![format!("{error:#}")], String::new()),
        };
        let heavy = seen.peak_bytes.iter().filter(|(_, bytes)| **bytes > MOST_RSS);
        let heavy: Vec<String> =
            heavy.map(|(name, bytes)| format!("{name} had {} MiB", bytes >> 20)).collect();
        let slow = recovery.iter().filter(|(_, times)| times.p99_ms >= BACK_WITHIN_MS);
        let slow: Vec<String> =
            slow.map(|(actor, times)| format!("{actor}: p99 {:.0} ms", times.p99_ms)).collect();
        let too_many = workers.first_violations.iter().map(|violation| {
            let Violation { at, workers, samples } = violation;
            format!("{} workers lived at {at}, for {samples} samples", workers.len())
        });
        let too_many: Vec<String> = too_many.collect();
        let done = self.records.iter().filter(|r| r.outcome == Outcome::Done).count();
        vec![
            Check::of(
                "committed_never_ahead",
                &seen.ahead,
                format!("in {} samples no committed offset was ahead of DuckDB", seen.offsets),
            ),
            Check::of(
                "workers_within_cap",
                &too_many,
                format!(
                    "in {} samples at most {} of {} Python workers lived",
                    workers.samples, workers.most, self.max_workers
                ),
            ),
            Check::of("caught_up", &quiet.0, quiet.1),
            Check::of(
                "memory_bounded",
                &heavy,
                format!("no node had more than {} MiB", MOST_RSS >> 20),
            ),
            Check::of(
                "stopped_in_order",
                &self.not_in_order,
                "every node stopped in order at the end",
            ),
            Check::of(
                "refused_what_it_must",
                &self.told(|o| match o {
                    Outcome::Broken(what) => Some(what.clone()),
                    _ => None,
                }),
                "no upload that lies, breaks off or means harm was taken",
            ),
            Check::of(
                "faults_were_done",
                &self.told(|o| match o {
                    Outcome::Failed(why) => Some(why.clone()),
                    _ => None,
                }),
                format!("{done} faults were done and are over"),
            ),
            Check::of(
                "actors_back_within_1_s",
                &slow,
                "each actor lived again, by the 99th percentile",
            ),
        ]
    }

    /// What faults had to tell, with their kinds.
    fn told(&self, of: impl Fn(&Outcome) -> Option<String>) -> Vec<String> {
        let tell = |r: &Record| of(&r.outcome).map(|text| format!("{}: {text}", r.planned.kind));
        self.records.iter().filter_map(tell).collect()
    }
}

/// What was not acknowledged may have landed all the same: then nothing could be said of it.
fn generator_sound(tasks: &GeneratorTasks) -> Check {
    let refused = tasks.tally().refused();
    let mut broken = Vec::new();
    if tasks.has_failed() {
        broken.push("a task of the generator failed".to_owned());
    }
    if refused > 0 {
        broken.push(format!("{refused} events were not acknowledged"));
    }
    Check::of("generator_sound", &broken, "every event that was made was acknowledged")
}

/// Median and 99th percentile from an event's making to its commit, in milliseconds. Its id holds the
/// first of these moments.
fn latency_ms(store: &Connection) -> Option<(f64, f64)> {
    let sql = "WITH took AS (
                   SELECT date_diff('microseconds', uuid_extract_timestamp(event_id), available_at) / 1000 AS ms
                   FROM features_table WHERE event_id IS NOT NULL)
               SELECT quantile_cont(ms, 0.5), quantile_cont(ms, 0.99) FROM took";
    // Without any events there are none to tell.
    store.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).ok()
}
