//! `millstream transforms try`: a script over the rows of a file, by the node's own parts.

use super::{
    Failure, FileArgs, find_script, find_stream,
    input::Input,
    report::{Report, Subject, print_failure, traceback_of},
};
use crate::{
    actors::python_worker_supervisor::{Rehearsal, RehearsalError, RehearsalParts},
    config::{Config, StreamConfig},
    node::python_env,
    python::{Script, WorkerError, WorkerSpec},
};
use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
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
    /// Output rows, and dead letters, to show [default: 20, with --json all].
    #[arg(long, value_name = "N")]
    rows: Option<usize>,
    /// Everything as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    file: FileArgs,
}

/// Runs the script and prints what came of it. Dead letters are a result, not a failure.
pub async fn try_script(args: TryArgs) -> Result<(), Failure> {
    let config = args.file.load()?;
    let path = find_script(&config, &args.script)?;
    let stream = find_stream(&config, &path, args.stream.as_deref())?;
    // A script from elsewhere finds its own helpers first.
    let script = Script::read_with(&path, &[&config.python.transforms_dir])
        .map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?;
    let subject = Subject::new(&stream.name, &script);
    let mut input = Input::open(&args.input, &config.batch)?;
    let limit = args.rows.unwrap_or(if args.json { usize::MAX } else { ROWS });
    let bar = progress_bar();
    let started = Arc::new(AtomicUsize::new(0));
    let mut rehearsal = rehearsal(&config, stream, script, &bar, &started)?;
    let mut report = Report::new(subject, limit);
    let outcome = run(&mut rehearsal, &mut input, &mut report, &bar).await;
    report.finish(rehearsal.transform_time(), started.load(Ordering::Relaxed));
    rehearsal.stop().await;
    bar.finish_and_clear();
    match outcome {
        Ok(()) => Ok(report.print(args.json)?),
        Err(Halt::Failure(failure)) => Err(failure),
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
    Worker(WorkerError),
    Failure(Failure),
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
    input: &mut Input,
    report: &mut Report,
    bar: &ProgressBar,
) -> Result<(), Halt> {
    let started = Instant::now();
    let loaded = rehearsal.start().await?;
    report.loaded(loaded, started.elapsed());
    while let Some(records) = input.next_batch().map_err(Halt::Failure)? {
        report.add(&rehearsal.run(records).await?);
        bar.set_position(report.events().cast_unsigned());
    }
    Ok(())
}

fn rehearsal(
    config: &Config,
    stream: &StreamConfig,
    script: Script,
    bar: &ProgressBar,
    started: &Arc<AtomicUsize>,
) -> Result<Rehearsal, Failure> {
    let spec = WorkerSpec {
        worker_id: "try".into(),
        program: std::env::current_exe().context("the program's own path is unknown")?,
        site_dirs: python_env::site_dirs(&config.python)
            .map_err(|error| Failure::Config(format!("{error:#}")))?,
        lease: Duration::MAX,
        memory_limit: config.python.memory_limit(),
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

/// Shown on a terminal only, by indicatif's own rule.
fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {pos} events {msg}");
    // A template of our own: it cannot be wrong.
    let bar = ProgressBar::new_spinner()
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
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
