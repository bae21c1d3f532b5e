//! `millstream chaos`: load, faults, and a verdict.

use super::{Failure, demo::parse_duration, run::signals};
use crate::{
    actors::{Generator, generator::GeneratorTasks},
    chaos::{
        fault::{Choice, KINDS},
        inject::Outcome,
        plan::Plan,
        remote::{self, RemoteParts},
        report::ChaosReport,
        rig::BrokerChoice,
        run::{self, ChaosParts, Progress},
    },
    config::{self, Config},
    supervision::{FatalSender, Link, Registry, RestartPolicy},
};
use anyhow::Context as _;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot};

/// Where a run keeps its files unless told otherwise.
const CHAOS_DIR: &str = ".millstream/chaos";
/// How often a terminal that cannot move its cursor is told.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Arguments of `millstream chaos`.
#[derive(Debug, Args)]
pub struct ChaosArgs {
    /// How long faults come.
    #[arg(long, value_parser = parse_duration, value_name = "TIME", default_value = "60s")]
    duration: Duration,
    /// The mean time between two faults.
    #[arg(long, value_parser = parse_duration, value_name = "TIME", default_value = "2s")]
    every: Duration,
    /// What is hurt: targets and kinds of `--list` [default: all that is possible here].
    #[arg(long, value_delimiter = ',', value_name = "WHAT")]
    targets: Vec<Choice>,
    /// Makes plan and load repeatable [default: a new one, which is told].
    #[arg(long)]
    seed: Option<u64>,
    /// The plan of an earlier run: its report, or the `plan` of that.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seed", "targets", "each"])]
    replay: Option<PathBuf>,
    /// Each kind once, and each actor in each way, instead of as many as there is time for.
    #[arg(long)]
    each: bool,
    /// Events a second.
    #[arg(long, default_value_t = 2_000.0)]
    rate: f64,
    /// Go on until so many events were produced.
    #[arg(long, default_value_t = 0)]
    events: u64,
    /// How soon everything must be durable after the last fault.
    #[arg(long, value_parser = parse_duration, value_name = "TIME", default_value = "180s")]
    catch_up: Duration,
    /// The kinds of faults, and what each is.
    #[arg(long)]
    list: bool,
    /// The report as one JSON object on stdout.
    #[arg(long)]
    json: bool,
    /// Hurt the node that runs there, through its interface, instead of a system of its own.
    #[arg(long, value_name = "ADDR", conflicts_with_all = ["each", "rate", "events", "broker_script"])]
    http: Option<SocketAddr>,
    /// Starts and stops a real broker, as scripts/kafka.sh does [default: one in this process, unless
    /// the configuration names a running one].
    #[arg(long, value_name = "FILE", env = "MILLSTREAM_BROKER_SCRIPT")]
    broker_script: Option<PathBuf>,
    /// Configuration of streams and scripts [default: millstream.toml, when it is there].
    #[arg(long, value_name = "FILE", env = "MILLSTREAM_CONFIG")]
    config: Option<PathBuf>,
    /// Folder of the run: stores, logs, report. Emptied first, if a run has made it.
    #[arg(long, value_name = "DIR", default_value = CHAOS_DIR)]
    dir: PathBuf,
    /// A defect that the nodes are built to have for tests, so that the judge can be judged.
    #[cfg(feature = "failpoints")]
    #[arg(long, value_delimiter = ',', value_name = "DEFECT")]
    plant: Vec<String>,
}

/// Runs it.
pub async fn chaos(args: ChaosArgs) -> Result<(), Failure> {
    if args.list {
        list(args.json).map_err(Failure::Runtime)?;
        return Ok(());
    }
    let seed = args.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let replay = args.replay.as_deref().map(read_plan).transpose()?;
    let stop = Arc::<AtomicBool>::default();
    end_with_signals(stop.clone())?;
    let told = Teller::new();
    let report = match args.http {
        Some(node) => {
            let parts = RemoteParts {
                node,
                choices: args.targets.clone(),
                seed,
                duration: args.duration,
                every: args.every,
                replay,
                catch_up: args.catch_up,
                stop: stop.clone(),
            };
            on_a_thread(move || remote::run(&parts, |step| told.tell(&step))).await??
        }
        None => alone(&args, seed, replay, stop.clone(), told).await?,
    };
    if args.http.is_none() {
        let text = serde_json::to_string_pretty(&report).map_err(anyhow::Error::from)?;
        let file = args.dir.join("report.json");
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        eprintln!("the report, the logs and the stores are in {}", args.dir.display());
    }
    print(&report, args.json).map_err(Failure::Runtime)?;
    match report.verdict.ok {
        true if stop.load(Ordering::Relaxed) => Err(Failure::Interrupted),
        true => Ok(()),
        false => Err(Failure::Check("a promise does not hold".into())),
    }
}

/// A system of its own.
async fn alone(
    args: &ChaosArgs,
    seed: u64,
    replay: Option<Plan>,
    stop: Arc<AtomicBool>,
    told: Teller,
) -> Result<ChaosReport, Failure> {
    super::demo::empty(&args.dir, MARKER)?;
    let (config, broker) = configured(args, seed)?;
    let parts = ChaosParts {
        config,
        dir: args.dir.clone(),
        program: std::env::current_exe().context("the program's own path is unknown")?,
        broker,
        choices: args.targets.clone(),
        seed,
        duration: args.duration,
        every: args.every,
        each_once: args.each,
        replay,
        events: args.events,
        catch_up: args.catch_up,
        #[cfg(feature = "failpoints")]
        planted: args.plant.clone(),
        #[cfg(not(feature = "failpoints"))]
        planted: Vec::new(),
        stop,
    };
    let (fatal, mut fatals) = FatalSender::channel();
    let registry = Registry::new(fatal);
    let (adopt, mut adopted) = mpsc::unbounded_channel::<Arc<GeneratorTasks>>();
    let supervised = registry.clone();
    let running = on_a_thread(move || {
        // The receiver is waited at until the run ends.
        let adopt = |tasks| drop(adopt.send(tasks));
        run::run(&parts, &supervised, adopt, |step| told.tell(&step))
    });
    tokio::pin!(running);
    loop {
        tokio::select! {
            report = &mut running => return Ok(report??),
            Some(tasks) = adopted.recv() => {
                registry.supervise("generator", Link::default(), RestartPolicy::default(), move || {
                    Generator::new(tasks.clone())
                });
            }
            Some(fatal) = fatals.recv() => return Err(Failure::Runtime(fatal.into())),
        }
    }
}

/// Marks a folder that a run of chaos made and the next one may empty.
const MARKER: &str = "made-by-millstream-chaos";

/// Small batches, short sessions and short leases: many boundaries for a fault to fall on.
fn configured(args: &ChaosArgs, seed: u64) -> Result<(Config, BrokerChoice), Failure> {
    let beside = PathBuf::from("millstream.toml");
    let file = args.config.clone().or_else(|| beside.exists().then_some(beside));
    let mut config = config::load(file.as_deref())?;
    let run = uuid::Uuid::new_v4().simple().to_string();
    config.node.namespace = format!("chaos-{run}");
    config.kafka.group = format!("chaos-{run}");
    for stream in &mut config.streams {
        stream.topic = format!("{}-{run}", stream.topic);
    }
    for (key, value) in [
        ("session.timeout.ms", "3000"),
        ("heartbeat.interval.ms", "500"),
        ("max.poll.interval.ms", "10000"),
    ] {
        config.kafka.options.insert(key.into(), value.into());
    }
    config.batch.max_rows = config.batch.max_rows.min(500);
    config.python.max_workers = config.python.max_workers.max(3);
    config.python.lease_s = config.python.lease_s.min(4.0);
    config.store.memory_limit_mib = config.store.memory_limit_mib.min(512);
    config.kafka.max_inflight_bytes = config.kafka.max_inflight_bytes.min(32 << 20);
    config.generator.seed = seed;
    config.generator.rate = args.rate;
    config.generator.upload_every_s = 5.0;
    config.generator.upload_rows = 500;
    config.validate().map_err(Failure::Usage)?;
    let broker = match (&args.broker_script, config.kafka.brokers.as_str()) {
        (Some(script), _) => BrokerChoice::Script(script.clone()),
        (None, "") => BrokerChoice::InProcess,
        (None, brokers) => BrokerChoice::Running(brokers.to_owned()),
    };
    Ok((config, broker))
}

/// The plan of a report, or a plan.
fn read_plan(file: &Path) -> Result<Plan, Failure> {
    let usage = |error: &dyn std::fmt::Display| {
        Failure::Usage(format!("{} holds no plan: {error}", file.display()))
    };
    let text = std::fs::read_to_string(file).map_err(|error| usage(&error))?;
    let mut json: serde_json::Value = serde_json::from_str(&text).map_err(|error| usage(&error))?;
    let plan = if json["plan"].is_object() { json["plan"].take() } else { json };
    let plan: Plan = serde_json::from_value(plan).map_err(|error| usage(&error))?;
    plan.validate().map_err(Failure::Usage)?;
    Ok(plan)
}

/// Runs something that blocks and drops runtimes of its own, on a thread that is no task.
async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<T> {
    let (done, result) = oneshot::channel();
    std::thread::Builder::new().name("chaos".into()).spawn(move || drop(done.send(work())))?;
    result.await.context("the run panicked")
}

/// The first signal ends the faults; what was done is judged all the same.
fn end_with_signals(stop: Arc<AtomicBool>) -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) = signals()?;
    tokio::task::spawn_local(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        eprintln!("no more faults; what was sent is judged");
        stop.store(true, Ordering::Relaxed);
    });
    Ok(())
}

/// Says what happens, on stderr.
struct Teller {
    bar: ProgressBar,
    last: std::cell::Cell<Option<Instant>>,
}

impl Teller {
    fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        // A template of our own: it cannot be wrong.
        bar.set_style(
            ProgressStyle::with_template("{spinner} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner()),
        );
        Self { bar, last: std::cell::Cell::new(None) }
    }

    fn line(&self, text: &str) {
        if self.bar.is_hidden() { eprintln!("{text}") } else { self.bar.println(text) }
    }

    fn tell(&self, step: &Progress<'_>) {
        match step {
            Progress::Starting => self.line("starting Redis, the broker, a store and two nodes"),
            Progress::Planned { plan, left_out } => {
                for (kind, why) in *left_out {
                    self.line(&format!("left out: {} ({why})", kind.name));
                }
                self.line(&format!("seed {}: {} faults", plan.seed, plan.faults.len()));
            }
            Progress::Under { elapsed, produced, over, begun } => {
                let text = format!(
                    "{:>6.1} s  {produced} events produced, {over} faults are over, {} wait or last",
                    elapsed.as_secs_f64(),
                    begun - over
                );
                if !self.bar.is_hidden() {
                    self.bar.set_message(text);
                } else if self.last.get().is_none_or(|at| at.elapsed() >= TELL_EVERY) {
                    self.last.set(Some(Instant::now()));
                    eprintln!("{text}");
                }
            }
            Progress::Over(record) => self.over(record),
            Progress::Quiet => self.line("no more faults; waiting until everything is durable"),
            Progress::Judging => {
                self.bar.finish_and_clear();
                eprintln!("reading the books");
            }
        }
    }

    fn over(&self, record: &crate::chaos::inject::Record) {
        let what = match &record.planned.actor {
            Some(actor) => format!("{} {actor}", record.planned.kind),
            None => record.planned.kind.clone(),
        };
        let became = match (&record.outcome, &record.recovery) {
            (Outcome::Done, Some(recovery)) => format!("lived again after {:.0?}", recovery.took),
            (Outcome::Done, None) => match record.planned.for_ms {
                0 => "done".into(),
                ms => format!("for {:.1} s", ms as f64 / 1e3),
            },
            (Outcome::Nothing(why), _) => format!("not done: {why}"),
            (Outcome::Failed(why), _) => format!("FAILED: {why}"),
            (Outcome::Broken(what), _) => format!("BROKEN: {what}"),
        };
        self.line(&format!("{:>6.1} s  {what:<40} {became}", record.began_ms as f64 / 1e3));
    }
}

fn list(json: bool) -> anyhow::Result<()> {
    if json {
        let kind = |kind: &crate::chaos::fault::Kind| {
            serde_json::json!({
                "kind": kind.name, "target": kind.target, "what": kind.what, "lasts_ms": kind.lasts_ms,
                "weight": kind.weight,
            })
        };
        println!("{}", serde_json::to_string(&KINDS.iter().map(kind).collect::<Vec<_>>())?);
        return Ok(());
    }
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_BORDERS_ONLY);
    table.set_header(["target", "kind", "what happens"]);
    for kind in &KINDS {
        table.add_row([kind.target.name(), kind.name, kind.what]);
    }
    println!("{table}");
    Ok(())
}

/// The report: tables for people, or one JSON object.
fn print(report: &ChaosReport, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string(report)?);
        return Ok(());
    }
    let mut kinds = comfy_table::Table::new();
    kinds.load_preset(comfy_table::presets::UTF8_BORDERS_ONLY);
    kinds.set_header(["fault", "done", "nothing to hurt", "failed"]);
    for (kind, count) in &report.kinds {
        let row = [count.done, count.nothing, count.failed].map(|n| n.to_string());
        kinds.add_row([kind.clone()].into_iter().chain(row));
    }
    println!("{kinds}");
    if !report.recovery.is_empty() {
        let mut actors = comfy_table::Table::new();
        actors.load_preset(comfy_table::presets::UTF8_BORDERS_ONLY);
        actors.set_header(["actor", "ended", "lives again after p50", "p99", "at most"]);
        for (actor, times) in &report.recovery {
            let ms = [times.p50_ms, times.p99_ms, times.max_ms].map(|ms| format!("{ms:.0} ms"));
            actors.add_row([actor.clone(), times.count.to_string()].into_iter().chain(ms));
        }
        println!("{actors}");
    }
    for (node, ends) in &report.ended_by_themselves {
        println!("{node} ended by itself and was started again: {}", ends.join(", "));
    }
    println!("seed {}, {} faults", report.seed, report.faults);
    super::demo::print(&report.verdict, false)
}
