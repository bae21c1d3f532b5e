//! Chaos on a node that somebody runs: through its interface, and only where its configuration allows
//! it. Its own load is the load, its own audit is the judge.
//!
//! Actors and Python workers can be ended so. For everything else a system of its own is needed, which
//! `millstream chaos` starts when it is given no node.

use super::{
    fault::{Choice, Target},
    http::{Http, SOON},
    inject::{Outcome, Record, Recovery, end_actor, way_of_ending},
    plan::{Plan, Planned, Wanted, chosen},
    report::{ChaosReport, Samples, by_actor, by_kind},
    run::Progress,
};
use crate::{report::Report, store::audit::Check};
use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde_json::json;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// The pace of looking.
const PACE: Duration = Duration::from_millis(50);
/// How long the last audit may take.
const AUDIT: Duration = Duration::from_secs(600);
/// What kinds miss that need more than a node's interface.
const ALONE: &str = "needs a system of its own: run it without --http";

/// What a run is made from.
#[derive(Debug, Clone)]
pub struct RemoteParts {
    /// The node.
    pub node: SocketAddr,
    /// What is hurt; empty: all that can be.
    pub choices: Vec<Choice>,
    /// The plan's seed.
    pub seed: u64,
    /// How long faults come.
    pub duration: Duration,
    /// The mean time between two.
    pub every: Duration,
    /// A plan that was made before.
    pub replay: Option<Plan>,
    /// How soon everything must be durable after the last fault.
    pub catch_up: Duration,
    /// Ends the faults early.
    pub stop: Arc<AtomicBool>,
}

/// What a node says of itself.
#[derive(Debug, Deserialize)]
struct Victim {
    allowed: bool,
    actors: Vec<String>,
    workers: Vec<Worker>,
    max_workers: usize,
}

#[derive(Debug, Deserialize)]
struct Worker {
    pid: u32,
}

struct Remote<'a> {
    parts: &'a RemoteParts,
    http: Http,
    counted: usize,
    most_workers: usize,
    too_many: Vec<String>,
}

/// Runs it. Blocks.
///
/// # Errors
/// When the node does not answer, or does not allow it.
pub fn run(
    parts: &RemoteParts,
    mut progress: impl FnMut(Progress<'_>),
) -> anyhow::Result<ChaosReport> {
    let started = Instant::now();
    let mut remote =
        Remote { parts, http: Http::new()?, counted: 0, most_workers: 0, too_many: Vec::new() };
    let victim = remote.victim()?;
    if !victim.allowed {
        bail!(
            "the node at {} does not allow it: start it with `chaos.allow = true` (MILLSTREAM__CHAOS__ALLOW=true)",
            parts.node
        );
    }
    let (mut kinds, mut left_out) = chosen(&parts.choices, |_| None);
    kinds.retain(|kind| {
        let possible = matches!(kind.target, Target::Actors | Target::Workers);
        if !possible {
            left_out.push((kind, ALONE.to_owned()));
        }
        possible
    });
    let plan = parts.replay.clone().unwrap_or_else(|| {
        Plan::make(&Wanted {
            seed: parts.seed,
            duration: parts.duration,
            every: parts.every,
            kinds,
            actors: victim.actors.clone(),
            each_once: false,
        })
    });
    progress(Progress::Planned { plan: &plan, left_out: &left_out });
    let records = remote.faults(&plan, &mut progress)?;
    progress(Progress::Quiet);
    let last_fault = Instant::now();
    let verdict = remote.audit();
    let caught_up = verdict.as_ref().ok().map(|_| last_fault.elapsed().as_secs_f64());
    let mut verdict = verdict.context("the node was not quiet in time, or could not be audited")?;
    let recovery = by_actor(records.iter().filter_map(|record| record.recovery.as_ref()));
    verdict.kills = records.iter().filter(|r| r.outcome == Outcome::Done).count() as u64;
    verdict.elapsed_s = started.elapsed().as_secs_f64();
    let holds = format!("in {} looks at most {} lived", remote.counted, remote.most_workers);
    verdict.checks.push(Check::of("workers_within_cap", &remote.too_many, holds));
    let failed = records.iter().filter_map(|r| match &r.outcome {
        Outcome::Failed(why) => Some(format!("{}: {why}", r.planned.kind)),
        _ => None,
    });
    let failed: Vec<String> = failed.collect();
    verdict.checks.push(Check::of(
        "faults_were_done",
        &failed,
        format!("{} were done", verdict.kills),
    ));
    verdict.ok = verdict.checks.iter().all(|check| check.ok);
    Ok(ChaosReport {
        seed: plan.seed,
        faults: verdict.kills,
        kinds: by_kind(&records),
        left_out: left_out.into_iter().map(|(kind, why)| (kind.name.into(), why)).collect(),
        recovery,
        caught_up_s: caught_up,
        peak_rss_mib: BTreeMap::new(),
        ended_by_themselves: BTreeMap::new(),
        samples: Samples { offsets: 0, workers: remote.counted, most_workers: remote.most_workers },
        plan,
        verdict,
    })
}

impl Remote<'_> {
    fn victim(&self) -> anyhow::Result<Victim> {
        let answer = self.http.get(self.parts.node, "/api/chaos");
        let answer =
            answer.with_context(|| format!("no node answers at http://{}", self.parts.node))?;
        Ok(serde_json::from_value(answer)?)
    }

    fn faults(
        &mut self,
        plan: &Plan,
        progress: &mut impl FnMut(Progress<'_>),
    ) -> anyhow::Result<Vec<Record>> {
        let (since, mut records) = (Instant::now(), Vec::new());
        for planned in &plan.faults {
            let at = Duration::from_millis(planned.at_ms);
            while since.elapsed() < at {
                if self.parts.stop.load(Ordering::Relaxed) {
                    return Ok(records);
                }
                self.count()?;
                let (elapsed, over) = (since.elapsed(), records.len());
                progress(Progress::Under { elapsed, produced: 0, over, begun: over });
                std::thread::sleep(PACE.min(at.saturating_sub(elapsed)));
            }
            let began_ms = since.elapsed().as_millis() as u64;
            let (outcome, recovery) = self
                .fault(planned)
                .unwrap_or_else(|error| (Outcome::Failed(format!("{error:#}")), None));
            let record = Record { planned: planned.clone(), began_ms, outcome, recovery };
            progress(Progress::Over(&record));
            records.push(record);
        }
        Ok(records)
    }

    /// More workers on this node than over all nodes there may be is always too many.
    fn count(&mut self) -> anyhow::Result<()> {
        let victim = self.victim()?;
        let living = victim.workers.len();
        self.counted += 1;
        self.most_workers = living.max(self.most_workers);
        if living > victim.max_workers {
            self.too_many.push(format!("{living} workers live, {} may", victim.max_workers));
        }
        Ok(())
    }

    fn fault(&self, planned: &Planned) -> anyhow::Result<(Outcome, Option<Recovery>)> {
        if let Some(actor) = &planned.actor {
            let how = way_of_ending(&planned.kind)?;
            let recovery = end_actor(&self.http, self.parts.node, actor, how)?;
            return Ok((Outcome::Done, Some(recovery)));
        }
        let workers = self.victim()?.workers;
        let Some(Worker { pid }) = workers.get(planned.pick as usize % workers.len().max(1)) else {
            return Ok((Outcome::Nothing("no worker lives".into()), None));
        };
        let first = if planned.kind == "worker-kill" { "worker_kill" } else { "worker_stop" };
        if !self.order(first, *pid)? {
            return Ok((Outcome::Nothing("the worker was gone".into()), None));
        }
        if planned.kind == "worker-stop" {
            std::thread::sleep(Duration::from_millis(planned.for_ms));
            self.order("worker_continue", *pid)?;
        }
        Ok((Outcome::Done, None))
    }

    /// Whether the worker was still there.
    fn order(&self, what: &str, pid: u32) -> anyhow::Result<bool> {
        let body = json!({ "do": what, "pid": pid });
        match self.http.post(self.parts.node, "/api/chaos", &body, SOON)? {
            (200, _) => Ok(true),
            (404, _) => Ok(false),
            (status, answer) => bail!("{what}: {status}: {answer}"),
        }
    }

    fn audit(&self) -> anyhow::Result<Report> {
        let path = format!("/api/verify?full=true&wait={}", self.parts.catch_up.as_secs().max(1));
        match self.http.post(self.parts.node, &path, &json!({}), AUDIT)? {
            (200, report) => Ok(serde_json::from_value(report)?),
            (status, answer) => bail!("{status}: {answer}"),
        }
    }
}
