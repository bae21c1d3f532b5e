//! `millstream transforms try`: a script over the rows of a file, by the node's own parts.

use super::{
    Failure, FileArgs, HttpArgs,
    against::{self, Against},
    find_script, find_stream,
    input::Input,
    report::{Report, Subject, print_failure, traceback_of},
    spinner,
};
use crate::{
    actors::python_worker_supervisor::{Rehearsal, RehearsalError, RehearsalParts},
    config::{Config, StreamConfig},
    messages::{FeaturePart, Records},
    node::python_env,
    python::{Script, WorkerError, WorkerSpec},
};
use anyhow::Context;
use clap::Args;
use indicatif::ProgressBar;
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Rows in the table, when nothing else is said.
const ROWS: usize = 20;

/// Arguments of `millstream transforms try`.
#[derive(Debug, Args)]
pub struct TryArgs {
    /// The script: a file, or the name of one in `python.transforms_dir`.
    script: String,
    /// Events: an NDJSON, JSON (an array), CSV or Parquet file; each row is one.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// The stream whose events they are [default: the one that has the script].
    #[arg(long, value_name = "NAME")]
    stream: Option<String>,
    /// Another version that gets the same events, and what the two make differently: `running` (what
    /// the stream runs on the node), a version of the stream's history by its first digits, or a
    /// script. Both get the configuration's parameters.
    #[arg(long, value_name = "running|VERSION|FILE")]
    diff_against: Option<String>,
    /// Output rows, and dead letters, to show [default: 20, with --json all].
    #[arg(long, value_name = "N")]
    rows: Option<usize>,
    /// Everything as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    file: FileArgs,
    #[command(flatten)]
    http: HttpArgs,
}

/// Runs the script and prints what came of it. Dead letters are a result, not a failure.
pub async fn try_script(args: TryArgs) -> Result<(), Failure> {
    let config = args.file.load()?;
    let path = find_script(&config, &args.script)?;
    let stream = find_stream(&config, &path, args.stream.as_deref())?;
    // A script from elsewhere finds its own helpers first.
    let script = Script::read_with(&path, &[&config.python.transforms_dir])
        .map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?;
    let other = match &args.diff_against {
        Some(name) => {
            let node = args.http.client(&config);
            Some((name, against::find(&config, stream, name, &node).await?))
        }
        None => None,
    };
    let subject = Subject::new(&stream.name, &script);
    let mut input = Input::open(&args.input, &config.batch)?;
    let limit = args.rows.unwrap_or(if args.json { usize::MAX } else { ROWS });
    let bar = spinner("{spinner} {pos} events {msg}");
    let started = Arc::new(AtomicUsize::new(0));
    let rehearsed = |worker: &str, script, started: &Arc<AtomicUsize>| {
        rehearsal(&config, stream, worker, script, &bar, started)
    };
    let mut against = match other {
        // What keeps state must not see a batch twice.
        Some((name, other)) => Some(Against::new(
            name,
            &other.sha256.clone(),
            rehearsed("against", other, &Arc::default())?,
            !stream.ordered,
        )),
        None => None,
    };
    let mut rehearsal = rehearsed("try", script, &started)?;
    let mut report = Report::new(subject, limit);
    let outcome = run(&mut rehearsal, against.as_mut(), &mut input, &mut report, &bar).await;
    let transform_time = rehearsal.transform_time();
    report.finish(transform_time, started.load(Ordering::Relaxed));
    rehearsal.stop().await;
    if let Some(against) = against {
        report.compared(against.finish(transform_time).await);
    }
    bar.finish_and_clear();
    match outcome {
        Ok(()) => Ok(report.print(args.json)?),
        Err(Halt::Failure(failure)) => Err(failure),
        Err(Halt::Other(error)) => {
            eprintln!("the version that it is held against:");
            Err(failure_of(error))
        }
        Err(Halt::Worker(error)) => {
            if args.json {
                print_failure(report.subject(), &error);
            }
            Err(failure_of(error))
        }
    }
}

/// Why not all rows got through.
enum Halt {
    /// The version that is tried.
    Worker(WorkerError),
    /// The version that it is held against.
    Other(WorkerError),
    Failure(Failure),
}

impl Halt {
    fn of_other(error: RehearsalError) -> Self {
        match Self::from(error) {
            Self::Worker(error) => Self::Other(error),
            halt => halt,
        }
    }
}

impl From<RehearsalError> for Halt {
    fn from(error: RehearsalError) -> Self {
        match error {
            RehearsalError::Worker(error) => Self::Worker(error),
            defect @ RehearsalError::Defect(_) => Self::Failure(anyhow::Error::from(defect).into()),
        }
    }
}

/// Nothing else runs on this thread: reading and decoding may block it.
async fn run(
    rehearsal: &mut Rehearsal,
    mut against: Option<&mut Against>,
    input: &mut Input,
    report: &mut Report,
    bar: &ProgressBar,
) -> Result<(), Halt> {
    let started = Instant::now();
    let loaded = rehearsal.start().await?;
    report.loaded(loaded, started.elapsed());
    if let Some(against) = &mut against {
        against.start().await.map_err(Halt::of_other)?;
    }
    while let Some(records) = input.next_batch().map_err(Halt::Failure)? {
        let part = match &mut against {
            Some(against) => run_both(rehearsal, against, records).await?,
            None => rehearsal.run(records).await?,
        };
        report.add(&part);
        bar.set_position(report.events().cast_unsigned());
    }
    Ok(())
}

/// One after the other: on few cores they would slow each other down.
async fn run_both(
    rehearsal: &mut Rehearsal,
    against: &mut Against,
    records: Records,
) -> Result<FeaturePart, Halt> {
    if against.is_cold() {
        against.warm_up(&records).await.map_err(Halt::of_other)?;
        rehearsal.warm_up(records.clone()).await?;
    }
    let before = against.run(records.clone()).await.map_err(Halt::of_other)?;
    let after = rehearsal.run(records).await?;
    against.compare(&before, &after)?;
    Ok(after)
}

fn rehearsal(
    config: &Config,
    stream: &StreamConfig,
    worker_id: &str,
    script: Script,
    bar: &ProgressBar,
    started: &Arc<AtomicUsize>,
) -> Result<Rehearsal, Failure> {
    let spec = WorkerSpec {
        worker_id: worker_id.into(),
        program: std::env::current_exe().context("the program's own path is unknown")?,
        site_dirs: python_env::site_dirs(&config.python)
            .map_err(|error| Failure::Config(format!("{error:#}")))?,
        lease: Duration::MAX,
        memory_limit: config.python.memory_limit(),
        // One worker, or two: it would be started for nothing.
        fork_server: None,
    };
    let (bar, started) = (bar.clone(), started.clone());
    Ok(Rehearsal::new(RehearsalParts {
        stream: stream.clone(),
        script,
        spec,
        deadline: Duration::from_secs_f64(config.python.batch_deadline_s),
        on_start: Box::new(move || {
            let before = started.fetch_add(1, Ordering::Relaxed);
            if before > 0 {
                bar.set_message(format!("finding the rows at fault: {before} workers replaced"));
            }
        }),
    }))
}

/// What is the script's fault is a check that failed.
fn failure_of(error: WorkerError) -> Failure {
    if let Some(traceback) = traceback_of(&error) {
        eprintln!("{}", traceback.trim_end());
    }
    match error {
        WorkerError::Import { .. } => Failure::Check(error.to_string()),
        other => Failure::Runtime(other.into()),
    }
}
