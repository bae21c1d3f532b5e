//! `millstream demo`: the whole system embedded, with live progress and, given a duration, a
//! verdict.

use super::{Failure, NodeArgs, run};
use crate::{
    actors::generator::Expected,
    node::{Node, NodeOptions, Role},
    report::Report,
    store::{audit::Check, lock::StoreLock},
    telemetry,
};
use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// How long everything that was produced may take to land.
const CATCH_UP: Duration = Duration::from_secs(180);
/// How long the node may take until it is ready.
const READY: Duration = Duration::from_secs(30);
/// Where a demo keeps its files unless told otherwise.
const DEMO_DIR: &str = ".millstream/demo";
/// Marks a folder that a demo made and the next one may empty.
const MARKER: &str = "made-by-millstream-demo";

/// Arguments of `millstream demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Make events for so long (30s, 2m), then drain, verify and print the verdict.
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    duration: Option<Duration>,
    /// Events a second.
    #[arg(long)]
    rate: Option<f64>,
    /// The verdict as one JSON object on stdout.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    node: NodeArgs,
}

/// `30s`, `2m`, `500ms`, `1h`; a bare number is seconds.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        _ => return Err(format!("`{text}` is no time: write 30s, 2m or 500ms")),
    };
    let number: f64 =
        number.parse().map_err(|_| format!("`{text}` is no time: write 30s, 2m or 500ms"))?;
    Duration::try_from_secs_f64(number * seconds).map_err(|e| e.to_string())
}

/// Runs the demo.
pub async fn demo(args: DemoArgs) -> Result<(), Failure> {
    let mut config = args.node.load()?;
    // Everything embedded, whatever else is configured.
    config.kafka.brokers.clear();
    config.redis.url.clear();
    if let Some(rate) = args.rate {
        config.generator.rate = rate;
        config.validate().map_err(Failure::Usage)?;
    }
    if args.node.data_dir.is_none() {
        config.node.data_dir = DEMO_DIR.into();
        empty(&config.node.data_dir, MARKER)?;
    }
    let database = config.database();
    let mut options = NodeOptions::new([Role::Generate, Role::Process, Role::Store]);
    options.keep_ids = args.duration.is_some();
    options.hold_generator = true;

    let started = Instant::now();
    let mut node = Node::start(config, options).await?;
    run::announce(&node);
    node.wait_ready(READY).await?;
    node.release_generator();
    eprintln!("ready after {:.1} s", started.elapsed().as_secs_f64());

    let interrupted = live(&mut node, args.duration).await?;
    let Some(_) = args.duration else {
        eprintln!("stopping: handing on what is on its way");
        node.stop().await?;
        return Ok(());
    };
    if interrupted {
        node.stop().await?;
        return Err(Failure::Interrupted);
    }
    eprintln!("draining");
    node.stop_generator().await?;
    node.view.wait_caught_up(CATCH_UP).await?;
    let audit = node.view.verify(true).await?;
    let mut report = Report::of_audit(&audit, started.elapsed(), &node.view.registry);
    let (expected, failed) = expected(&node)?;
    let failed: Vec<String> =
        failed.then(|| "a task failed, or an event was refused".to_owned()).into_iter().collect();
    report.checks.push(Check::of("generator_sound", &failed, "every task ran to its end"));
    node.stop().await?;
    let store = duckdb::Connection::open(&database)
        .with_context(|| format!("cannot read {} again", database.display()))?;
    report.judge(&expected, &store).map_err(anyhow::Error::from)?;
    drop(store);
    print(&report, args.json).map_err(Failure::Runtime)?;
    eprintln!("the data is in {}", database.display());
    if report.ok { Ok(()) } else { Err(Failure::Check("not everything is as promised".into())) }
}

/// What was sent, and whether something failed on the way.
fn expected(node: &Node) -> anyhow::Result<(Expected, bool)> {
    let generator = node.view.generator.as_ref().context("the demo has a generator")?;
    let failed = generator.has_failed() || generator.tally().refused() > 0;
    Ok((generator.tally().expected(|task| generator.maker(task)), failed))
}

/// Shows what flows until the time is over; true when interrupted.
async fn live(node: &mut Node, duration: Option<Duration>) -> Result<bool, Failure> {
    let (mut interrupt, mut terminate) = run::signals()?;
    let bar = ProgressBar::new_spinner();
    // A template of our own: it cannot be wrong.
    bar.set_style(
        ProgressStyle::with_template("{spinner} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner()),
    );
    let started = Instant::now();
    let deadline = duration.map(|d| tokio::time::Instant::now() + d);
    let (mut last, mut last_line) = (telemetry::totals(), Instant::now());
    let plain = bar.is_hidden();
    loop {
        let until = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let every = if plain { Duration::from_secs(5) } else { Duration::from_millis(500) };
        tokio::select! {
            () = until => break,
            _ = interrupt.recv() => return Ok(true),
            _ = terminate.recv() => return Ok(true),
            fatal = node.fatal() => return Err(Failure::Runtime(fatal.into())),
            () = tokio::time::sleep(every) => {}
        }
        let now = telemetry::totals();
        let rate = (now.events - last.events) as f64 / last_line.elapsed().as_secs_f64();
        (last, last_line) = (now, Instant::now());
        let produced = node.view.generator.as_ref().map_or(0, |g| g.tally().acknowledged());
        let latency = telemetry::durable_latency_ms()
            .map_or(String::new(), |(p50, p99)| format!(", p50 {p50:.0} ms, p99 {p99:.0} ms"));
        let line = format!(
            "{:>5.1} s  {produced} events produced, {} landed ({rate:.0}/s{latency}), {} rows, {} dead letters",
            started.elapsed().as_secs_f64(),
            now.events,
            now.rows,
            now.dead_letters,
        );
        if plain { eprintln!("{line}") } else { bar.set_message(line) }
    }
    bar.finish_and_clear();
    Ok(false)
}

/// It starts from nothing; only a folder that one like it has made is emptied.
pub(super) fn empty(dir: &Path, marker: &str) -> Result<(), Failure> {
    if dir.exists() {
        // Held by the store of a demo that runs in this folder.
        let _free = StoreLock::take(&dir.join("features.duckdb")).map_err(anyhow::Error::from)?;
        if !dir.join(marker).exists() {
            return Err(Failure::Usage(format!(
                "{} is there and is not one that may be emptied (it has no file `{marker}`): choose another",
                dir.display()
            )));
        }
        std::fs::remove_dir_all(dir).with_context(|| format!("cannot empty {}", dir.display()))?;
    }
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    std::fs::write(dir.join(marker), "")
        .with_context(|| format!("cannot write to {}", dir.display()))?;
    Ok(())
}

/// The verdict: a table for people on stderr, or one JSON object on stdout.
pub(super) fn print(report: &Report, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string(report)?);
        return Ok(());
    }
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_BORDERS_ONLY);
    let ms = |v: Option<f64>| v.map_or("-".into(), |v| format!("{v:.0} ms"));
    for (what, value) in [
        ("events produced", report.produced.to_string()),
        ("rows landed", report.landed_rows.to_string()),
        ("dead letters", report.dead_letters.to_string()),
        ("filtered by scripts", report.filtered.to_string()),
        ("lost", report.lost.to_string()),
        ("duplicated", report.duplicated.to_string()),
        ("durable after (p50 / p99)", format!("{} / {}", ms(report.p50_ms), ms(report.p99_ms))),
        ("actor restarts", report.restarts.to_string()),
    ] {
        table.add_row([what.to_owned(), value]);
    }
    println!("{table}");
    for check in &report.checks {
        println!("{} {:<26} {}", if check.ok { "ok  " } else { "FAIL" }, check.id, check.detail);
    }
    println!(
        "{}",
        if report.ok { "verdict: everything is as promised" } else { "verdict: NOT as promised" }
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_unit() {
        assert_eq!(parse_duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("1.5"), Ok(Duration::from_millis(1_500)));
        assert!(parse_duration("soon").is_err());
        assert!(parse_duration("5 parsecs").is_err());
    }
}
