//! A run: load, faults by plan, quiet, judge.

use super::{
    fault::{Choice, Kind},
    inject::{Injector, Record},
    plan::{Plan, Wanted, chosen},
    report::ChaosReport,
    rig::{BrokerChoice, NodeSlot, Rig, RigParts},
    verdict::Observed,
    watch::Watch,
};
use crate::{
    actors::generator::{EmbeddedGate, GeneratorParts, GeneratorTasks},
    config::Config,
    kafka::AcknowledgedPositions,
    supervision::Registry,
};
use anyhow::{Context as _, bail};
use serde_json::json;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver},
    },
    time::{Duration, Instant},
};

/// How long the first events may take until they are durable.
const FIRST_EVENTS: Duration = Duration::from_secs(90);
/// How often it is looked whether a node has ended by itself.
const KEEP_EVERY: Duration = Duration::from_secs(1);
/// The pace of looking, and of telling.
const PACE: Duration = Duration::from_millis(50);
/// How long one question whether all has landed may take.
const ASK_QUIET: Duration = Duration::from_secs(200);

/// What a run is made from.
#[derive(Debug, Clone)]
pub struct ChaosParts {
    /// Streams, rates and limits.
    pub config: Config,
    /// Everything of the run lies here and stays.
    pub dir: PathBuf,
    /// This program.
    pub program: PathBuf,
    /// Which broker.
    pub broker: BrokerChoice,
    /// What is hurt; empty: everything.
    pub choices: Vec<Choice>,
    /// The seed of plan and load.
    pub seed: u64,
    /// How long faults come.
    pub duration: Duration,
    /// The mean time between two.
    pub every: Duration,
    /// Each kind once instead.
    pub each_once: bool,
    /// A plan that was made before.
    pub replay: Option<Plan>,
    /// Load and faults go on until so many events were produced.
    pub events: u64,
    /// How soon everything must be durable after the last fault (C11).
    pub catch_up: Duration,
    /// Defects that the nodes are started with (tests only).
    pub planted: Vec<String>,
    /// Ends the faults early, as Ctrl-C does.
    pub stop: Arc<AtomicBool>,
}

/// What happens, for whoever looks on.
#[derive(Debug)]
pub enum Progress<'a> {
    /// The system is being started.
    Starting,
    /// The plan is made; these kinds are not possible here.
    Planned {
        /// What will be done.
        plan: &'a Plan,
        /// Kinds that are left out, with what they miss.
        left_out: &'a [(&'static Kind, String)],
    },
    /// Faults are being done.
    Under {
        /// Since the first could come.
        elapsed: Duration,
        /// Events that were acknowledged.
        produced: u64,
        /// Faults that are over.
        over: usize,
        /// Faults that were begun, and wait or last.
        begun: usize,
    },
    /// A fault is over.
    Over(&'a Record),
    /// Faults are over; everything is to become durable.
    Quiet,
    /// Nodes are stopped; the books are read.
    Judging,
}

/// Runs it all. Blocks. `adopt` gets the generator, to supervise its actor in `registry`.
///
/// # Errors
/// When there was nothing to judge: something did not start, or cannot be read. A promise that does
/// not hold is no error, but in the report.
pub fn run(
    parts: &ChaosParts,
    registry: &Registry,
    adopt: impl FnOnce(Arc<GeneratorTasks>),
    mut progress: impl FnMut(Progress<'_>),
) -> anyhow::Result<ChaosReport> {
    let started = Instant::now();
    progress(Progress::Starting);
    let rig = Arc::new(Rig::start(RigParts {
        config: parts.config.clone(),
        dir: parts.dir.clone(),
        program: parts.program.clone(),
        broker: parts.broker.clone(),
        planted: parts.planted.clone(),
    })?);
    let mut nodes = vec![rig.addresses.store];
    nodes.extend(rig.addresses.process.map(|(http, _)| http));
    let acknowledged = Arc::default();
    let watch =
        Watch::start(&rig.direct, &rig.http, nodes, rig.living.clone(), Arc::clone(&acknowledged))?;
    let tasks = load(&rig, acknowledged, parts)?;
    adopt(tasks.clone());
    first_events(&rig)?;

    let (plan, of_store, left_out) = make_plan(parts, &rig)?;
    progress(Progress::Planned { plan: &plan, left_out: &left_out });

    let (sender, over) = mpsc::channel();
    let injector = Injector::new(rig.clone(), registry.clone(), sender, of_store);
    let mut under = Under { parts, rig: &rig, tasks: &tasks, over, records: Vec::new(), begun: 0 };
    under.faults(&plan, &injector, &mut progress)?;
    rig.settle()?;
    drop(injector);
    under.take_over(&mut progress);
    let (records, last_fault) = (under.records, Instant::now());

    progress(Progress::Quiet);
    tasks.stop();
    let quiet = become_quiet(&rig, last_fault, parts.catch_up);
    let (seen, workers) = (watch.end(), rig.workers.so_far());
    let (ended_by_themselves, not_in_order) = stop_nodes(&rig);

    progress(Progress::Judging);
    let max_workers = parts.config.python.max_workers;
    let observed = Observed {
        records,
        seen,
        workers,
        max_workers,
        quiet,
        not_in_order,
        ended_by_themselves,
        left_out,
        plan,
        elapsed: started.elapsed(),
    };
    observed.judge(&rig, &tasks)
}

/// Made-up events, past the proxies, and files of them. A broker in this process keeps little, so there
/// they wait for the store.
fn load(
    rig: &Rig,
    acknowledged: Arc<AcknowledgedPositions>,
    parts: &ChaosParts,
) -> anyhow::Result<Arc<GeneratorTasks>> {
    GeneratorTasks::start(&GeneratorParts {
        config: Arc::new(rig.direct.clone()),
        gate: matches!(parts.broker, BrokerChoice::InProcess)
            .then(|| Arc::new(EmbeddedGate::new(acknowledged))),
        keep_ids: true,
        count: None,
        hold: false,
        own_grpc: None,
        // What has gathered is worked off first, as long as that may take.
        stop_patience: parts.catch_up,
    })
}

/// Waits until events of each stream are durable: then everything runs that faults could hurt.
fn first_events(rig: &Rig) -> anyhow::Result<()> {
    let sql = "SELECT count(DISTINCT split_part(split_part(source, ':', 2), '/', 1)) AS streams
               FROM sources JOIN ingest_ledger USING (source_no) WHERE n_kept > 0";
    let until = Instant::now() + FIRST_EVENTS;
    while Instant::now() < until {
        if rig
            .http
            .count(rig.addresses.store, sql)
            .is_ok_and(|n| n >= rig.config.streams.len() as i64)
        {
            return Ok(());
        }
        std::thread::sleep(PACE);
    }
    bail!(
        "no events became durable within {FIRST_EVENTS:?}; see the nodes' logs in {}",
        rig.dir.display()
    )
}

type LeftOut = Vec<(&'static Kind, String)>;

/// The plan, the actors of the store, and what is not possible here.
fn make_plan(parts: &ChaosParts, rig: &Rig) -> anyhow::Result<(Plan, Vec<String>, LeftOut)> {
    let actors_of = |node| -> anyhow::Result<Vec<String>> {
        let status = rig.http.get(node, "/api/status")?;
        let actors = status["actors"].as_object().context("a node tells its actors")?;
        Ok(actors.keys().cloned().collect())
    };
    let of_store = actors_of(rig.addresses.store)?;
    let mut actors = actors_of(rig.addresses.process[0].0)?;
    actors.extend(of_store.iter().cloned());
    actors.push("generator".into());
    actors.sort_unstable();
    let (kinds, left_out) = chosen(&parts.choices, |needs| rig.missing(needs));
    let plan = match &parts.replay {
        Some(plan) => plan.clone(),
        None => Plan::make(&Wanted {
            seed: parts.seed,
            duration: parts.duration,
            every: parts.every,
            kinds,
            actors,
            each_once: parts.each_once,
        }),
    };
    Ok((plan, of_store, left_out))
}

/// The time of faults.
struct Under<'a> {
    parts: &'a ChaosParts,
    rig: &'a Rig,
    tasks: &'a GeneratorTasks,
    over: Receiver<Record>,
    records: Vec<Record>,
    begun: usize,
}

impl Under<'_> {
    /// Begins each fault when it is due; afterwards waits for the load that was asked for.
    fn faults(
        &mut self,
        plan: &Plan,
        injector: &Injector,
        progress: &mut impl FnMut(Progress<'_>),
    ) -> anyhow::Result<()> {
        let (since, mut kept) = (Instant::now(), Instant::now());
        let mut next = plan.faults.iter().peekable();
        loop {
            if self.parts.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let elapsed = since.elapsed();
            while let Some(fault) = next.next_if(|f| Duration::from_millis(f.at_ms) <= elapsed) {
                injector.begin(fault.clone())?;
                self.begun += 1;
            }
            self.take_over(progress);
            let produced = self.tasks.tally().acknowledged();
            let (over, begun) = (self.records.len(), self.begun);
            progress(Progress::Under { elapsed, produced, over, begun });
            let is_over = next.peek().is_none()
                && produced >= self.parts.events
                && (self.parts.each_once
                    || self.parts.replay.is_some()
                    || elapsed >= self.parts.duration);
            if is_over {
                return Ok(());
            }
            if kept.elapsed() > KEEP_EVERY {
                kept = Instant::now();
                self.keep_nodes()?;
            }
            std::thread::sleep(PACE);
        }
    }

    /// Nodes that have ended by themselves are started again, as whoever runs them would.
    fn keep_nodes(&self) -> anyhow::Result<()> {
        for lane in self.rig.nodes() {
            lane.then(|node| {
                if let Err(error) = node.keep() {
                    tracing::error!(error = format!("{error:#}"), "a node does not come back");
                }
            })?;
        }
        Ok(())
    }

    fn take_over(&mut self, progress: &mut impl FnMut(Progress<'_>)) {
        for record in self.over.try_iter() {
            progress(Progress::Over(&record));
            self.records.push(record);
        }
    }
}

/// Waits until everything that was sent is durable, and has the books audited; how long that took
/// since the last fault.
fn become_quiet(rig: &Rig, since: Instant, within: Duration) -> anyhow::Result<Duration> {
    let node = rig.addresses.process[0].0;
    loop {
        let left = within.saturating_sub(since.elapsed()).as_secs();
        if left == 0 {
            bail!("not everything was durable {within:?} after the last fault");
        }
        let path = format!("/api/verify?full=true&wait={left}");
        match rig.http.post(node, &path, &json!({}), ASK_QUIET.max(within)) {
            Ok((200, report)) if report["ok"] == true => return Ok(since.elapsed()),
            Ok((200, report)) => {
                let checks = report["checks"].as_array().cloned().unwrap_or_default();
                let broken = checks.iter().filter(|check| check["ok"] == false);
                let says: Vec<_> =
                    broken.map(|check| format!("{}: {}", check["id"], check["detail"])).collect();
                bail!("the node's own audit: {}", says.join("; "));
            }
            // The node still has troubles of its own; until the time is over.
            Ok((_, answer)) => tracing::warn!(%answer, "not quiet yet"),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "not quiet yet"),
        }
        std::thread::sleep(PACE);
    }
}

/// Stops the nodes, the store last. How nodes ended that nobody had ended, and what did not stop as it
/// should.
fn stop_nodes(rig: &Rig) -> (BTreeMap<String, Vec<String>>, Vec<String>) {
    let (mut ends, mut not_in_order) = (BTreeMap::new(), Vec::new());
    for lane in [&rig.process[0], &rig.process[1], &rig.guest, &rig.store] {
        let stopped = lane.ask(|node: &mut NodeSlot| {
            node.look();
            let stopped = node.stop().map_err(|error| format!("{error:#}"));
            (node.parts.name, std::mem::take(&mut node.ends), stopped)
        });
        match stopped {
            Ok((name, of_node, stopped)) => {
                if !of_node.is_empty() {
                    ends.insert(name.to_owned(), of_node);
                }
                not_in_order.extend(stopped.err());
            }
            Err(error) => not_in_order.push(format!("{error:#}")),
        }
    }
    (ends, not_in_order)
}
