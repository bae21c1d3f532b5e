//! Metrics: the recorder, the helpers that the stages call, and the text of the endpoints; and
//! [traces] of batches.
//!
//! Helpers are called once a batch, never once an event.

pub mod catalogue;
mod stage;
pub mod traces;

pub use stage::{StageMeter, Work};

use crate::{
    decode::reasons,
    messages::{SCRIPT_FAILURES, reason_label},
    protocol::apply::Decision,
};
use arrow::array::{AsArray, RecordBatch};
use catalogue as m;
use catalogue::{CATALOGUE, Kind, STAGES};
use metrics::{counter, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();

/// Installs the recorder (once a process) and starts every series at zero.
///
/// # Errors
/// When another recorder is installed, or a bucket list is empty.
pub fn install() -> anyhow::Result<()> {
    if HANDLE.get().is_some() {
        return Ok(());
    }
    let mut builder = PrometheusBuilder::new();
    for metric in CATALOGUE {
        if let Kind::Histogram(buckets) = metric.kind {
            builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.into()), buckets)?;
        }
    }
    let handle = builder.install_recorder()?;
    for metric in CATALOGUE {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge | Kind::Seconds => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram(_) => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
    start_at_zero();
    gauge!(m::BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    metrics_process::Collector::default().describe();
    // Losing the race to another installer is fine: the handle is of the same recorder.
    let _ = HANDLE.set(handle);
    Ok(())
}

fn start_at_zero() {
    for stage in STAGES {
        for name in [m::RECEIVED, m::SENT] {
            counter!(name, "stage" => stage).increment(0);
        }
        for name in [m::BUSY, m::BLOCKED, m::IDLE, m::QUEUE_DEPTH, m::QUEUE_OLDEST] {
            gauge!(name, "stage" => stage).set(0.0);
        }
    }
    for (stage, error) in [
        ("kafka_ingest", "kafka"),
        ("kafka_ingest", "abandoned"),
        ("kafka_ingest", "stalled"),
        ("generator", "task"),
        ("generator", "upload"),
        ("batch_accumulator", "abandoned"),
        ("worker_semaphore", "redis"),
        ("python_worker_supervisor", "abandoned"),
        ("python_worker_supervisor", "batch_failure"),
        ("python_worker_supervisor", "defect"),
        ("python_worker_supervisor", "import"),
        ("python_worker_supervisor", "refused"),
        ("redis_queue", "generation"),
        ("redis_queue", "redis"),
        ("redis_queue", "rebuild"),
        ("redis_queue", "spool"),
        ("redis_queue", "unreadable"),
        ("redis_queue", "plain_writes"),
        ("redis_queue", "quarantined"),
        ("duckdb_writer", "statement"),
        ("duckdb_writer", "commit"),
        ("duckdb_writer", "quarantine"),
        ("file_upload", "refused"),
        ("file_upload", "waiting"),
    ] {
        counter!(m::ERRORS, "stage" => stage, "error_type" => error).increment(0);
    }
    for cause in [
        "signal",
        "exit",
        "timeout",
        "out_of_memory",
        "exception",
        "contract",
        "protocol",
        "recycled_batches",
        "recycled_memory",
    ] {
        counter!(m::WORKER_RESTARTS, "cause" => cause).increment(0);
    }
    for reason in ["rows", "bytes", "age", "pin", "drain"] {
        counter!(m::BATCH_CLOSES, "reason" => reason).increment(0);
    }
    for reason in reasons::ALL {
        counter!(m::DEAD_LETTERS, "stage" => "decode", "reason" => reason).increment(0);
    }
    for reason in SCRIPT_FAILURES.into_iter().chain(["rejected_by_script"]) {
        counter!(m::DEAD_LETTERS, "stage" => "transform", "reason" => reason).increment(0);
    }
    counter!(m::DEAD_LETTERS, "stage" => "store", "reason" => crate::store::isolate::REASON)
        .increment(0);
    for answer in ["duplicate", "gap", "overlap", "fenced"] {
        counter!(m::LEDGER_REJECTS, "answer" => answer).increment(0);
    }
    for result in ["equal", "ahead", "behind", "missing", "different", "unreadable"] {
        counter!(m::SKEW_KEYS, "result" => result).increment(0);
    }
    for result in ["accepted", "duplicate", "refused"] {
        counter!(m::UPLOADS, "result" => result).increment(0);
    }
    for name in
        [m::KAFKA_REBALANCES, m::KAFKA_COMMITTED, m::DUCKDB_ROWS, m::UPLOAD_BYTES, m::UPLOAD_CHUNKS]
    {
        counter!(name).increment(0);
    }
    let gauges = [
        m::PERMITS,
        m::PERMITS_IN_USE,
        m::QUEUE_ENTRIES,
        m::QUEUE_ENTRIES_OLDEST,
        m::DUCKDB_FILE,
        m::KAFKA_HALTED,
        m::SPOOL_BYTES,
    ];
    for name in gauges {
        gauge!(name).set(0.0);
    }
    for kind in WORKER_FAULTS {
        counter!(m::CHAOS_KILLS, "actor" => PYTHON_WORKER, "kind" => kind).increment(0);
    }
    start_histograms();
}

/// A histogram is shown from the moment that it is registered.
fn start_histograms() {
    for name in [m::BATCH_ROWS, m::PERMIT_WAIT, m::WORKER_START, m::REDIS_WRITE, m::DUCKDB_COMMIT] {
        drop(histogram!(name));
    }
    for stage in STAGES {
        drop(histogram!(m::DURATION, "stage" => stage));
    }
    for path in ["online", "durable"] {
        drop(histogram!(m::END_TO_END, "path" => path));
    }
}

/// The Prometheus text of everything, or of one stage. `None` when there is no such stage.
#[must_use]
pub fn render(stage: Option<&str>) -> Option<String> {
    let handle = HANDLE.get()?;
    metrics_process::Collector::default().collect();
    stage::show();
    handle.run_upkeep();
    let mut text = handle.render();
    for metric in CATALOGUE.iter().filter(|metric| metric.kind == Kind::Seconds) {
        let kind = |kind: &str| format!("# TYPE {} {kind}\n", metric.name);
        text = text.replacen(&kind("gauge"), &kind("counter"), 1);
    }
    match stage {
        None => Some(text),
        Some(stage) => STAGES.contains(&stage).then(|| only_stage(&text, stage)),
    }
}

/// Drains the histograms' buffers; called every few seconds so that they stay small unscraped.
pub fn upkeep() {
    if let Some(handle) = HANDLE.get() {
        handle.run_upkeep();
    }
}

/// Keeps the lines of one stage: metrics that belong to it, and series that carry its label.
fn only_stage(text: &str, stage: &str) -> String {
    let label = format!("stage=\"{stage}\"");
    let actor = format!("actor=\"{stage}\"");
    let owner = |line: &str| {
        let name = line.trim_start_matches("# HELP ").trim_start_matches("# TYPE ");
        let name = name.split([' ', '{']).next().unwrap_or_default();
        let full = CATALOGUE.iter().find(|metric| {
            name.strip_prefix(metric.name)
                .is_some_and(|rest| matches!(rest, "" | "_bucket" | "_sum" | "_count"))
        });
        full.map(|metric| metric.stage)
    };
    let mut out = String::new();
    // The two comment lines of a metric wait until one of its series is kept.
    let mut comments = String::new();
    for line in text.lines() {
        if line.starts_with("# HELP") || line.is_empty() {
            comments.clear();
        }
        if line.starts_with('#') {
            comments.push_str(line);
            comments.push('\n');
            continue;
        }
        let mine = owner(line).is_some_and(|s| s == stage)
            || (owner(line) == Some("") && (line.contains(&label) || line.contains(&actor)));
        if mine {
            out.push_str(&comments);
            comments.clear();
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// An actor is supervised from now on: its series start at zero.
pub fn actor_supervised<const C: usize, const E: usize>(
    actor: &'static str,
    causes: [&'static str; C],
    ends: [&'static str; E],
) {
    for cause in causes {
        counter!(m::ACTOR_RESTARTS, "actor" => actor, "cause" => cause).increment(0);
    }
    for kind in ends {
        counter!(m::CHAOS_KILLS, "actor" => actor, "kind" => kind).increment(0);
    }
    drop(histogram!(m::ACTOR_RECOVERY, "actor" => actor));
}

/// What stands for an actor's name where a Python worker is struck.
pub const PYTHON_WORKER: &str = "python_worker";

/// The faults of workers that are counted. Letting one go on is none.
pub const WORKER_FAULTS: [&str; 2] = ["worker_kill", "worker_stop"];

/// Somebody asked for a fault.
pub fn chaos_kill(actor: &'static str, kind: &'static str) {
    counter!(m::CHAOS_KILLS, "actor" => actor, "kind" => kind).increment(1);
}

/// Whether an actor lives.
pub fn actor_up(actor: &'static str, up: bool) {
    gauge!(m::ACTOR_UP, "actor" => actor).set(if up { 1.0 } else { 0.0 });
}

/// An actor ended and will be restarted.
pub fn actor_restarted(actor: &'static str, cause: &'static str) {
    counter!(m::ACTOR_RESTARTS, "actor" => actor, "cause" => cause).increment(1);
}

/// An actor's next instance is linked; from the end of the one before that took so long.
pub fn actor_recovered(actor: &'static str, took: Duration) {
    histogram!(m::ACTOR_RECOVERY, "actor" => actor).record(took);
}

/// A batch of events was closed.
pub fn batch_closed(reason: &'static str, rows: usize) {
    counter!(m::BATCH_CLOSES, "reason" => reason).increment(1);
    histogram!(m::BATCH_ROWS).record(rows as f64);
}

/// DuckDB has these dead letters now, see [`crate::messages::dead_letter_schema`].
pub fn dead_letters(letters: &RecordBatch) {
    let column = |name| letters.column_by_name(name).and_then(|c| c.as_string_opt::<i32>());
    let (Some(stages), Some(reasons)) = (column("stage"), column("reason")) else { return };
    let mut counts = BTreeMap::<(&str, &str), u64>::new();
    for (stage, reason) in stages.iter().flatten().zip(reasons.iter().flatten()) {
        *counts.entry((stage, reason_label(stage, reason))).or_default() += 1;
    }
    for ((stage, reason), count) in counts {
        let (stage, reason) = (stage.to_owned(), reason.to_owned());
        counter!(m::DEAD_LETTERS, "stage" => stage, "reason" => reason).increment(count);
    }
}

/// The answer to one part of a write.
pub fn decided(decision: Decision) {
    if decision != Decision::Apply {
        counter!(m::LEDGER_REJECTS, "answer" => decision.name()).increment(1);
    }
}

/// From a record's timestamp to now, by path (`online` or `durable`).
pub fn end_to_end(path: &'static str, seconds: f64) {
    histogram!(m::END_TO_END, "path" => path).record(seconds);
    if path == "durable" {
        let mut recent = DURABLE.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back(seconds);
    }
}

/// Latencies that are kept for the verdict's percentiles.
const RECENT: usize = 1 << 16;
static DURABLE: Mutex<VecDeque<f64>> = Mutex::new(VecDeque::new());

/// Median and 99th percentile of the recent latencies to durable, in milliseconds.
#[must_use]
pub fn durable_latency_ms() -> Option<(f64, f64)> {
    let mut recent: Vec<f64> =
        DURABLE.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
    recent.sort_by(f64::total_cmp);
    let at =
        |q: f64| recent.get(((recent.len() as f64 - 1.0) * q).round() as usize).map(|s| s * 1e3);
    at(0.5).zip(at(0.99))
}

static EVENTS: AtomicU64 = AtomicU64::new(0);
static ROWS: AtomicU64 = AtomicU64::new(0);
static DEAD: AtomicU64 = AtomicU64::new(0);

/// What DuckDB has committed since this process started.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct Totals {
    /// Events: kept, dead or filtered.
    pub events: u64,
    /// Feature rows.
    pub rows: u64,
    /// Dead letters.
    pub dead_letters: u64,
}

/// DuckDB committed this much more.
pub fn committed(events: u64, rows: u64, dead_letters: u64) {
    counter!(m::DUCKDB_ROWS).increment(rows);
    EVENTS.fetch_add(events, Ordering::Relaxed);
    ROWS.fetch_add(rows, Ordering::Relaxed);
    DEAD.fetch_add(dead_letters, Ordering::Relaxed);
}

/// See [`Totals`].
#[must_use]
pub fn totals() -> Totals {
    let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
    Totals { events: load(&EVENTS), rows: load(&ROWS), dead_letters: load(&DEAD) }
}

/// Whether a component is ready.
pub fn ready(component: &'static str, ready: bool) {
    gauge!(m::READY, "component" => component).set(if ready { 1.0 } else { 0.0 });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_sees_its_own_series_only() {
        install().unwrap();
        StageMeter::new("kafka_ingest").received(3);
        actor_up("kafka_ingest", true);
        let text = render(Some("kafka_ingest")).unwrap();
        assert!(text.contains("stage=\"kafka_ingest\""));
        assert!(text.contains(m::KAFKA_COMMITTED));
        assert!(text.contains("actor=\"kafka_ingest\""));
        assert!(!text.contains("stage=\"redis_queue\""));
        assert!(!text.contains(m::DUCKDB_ROWS));
        assert!(render(Some("nonsense")).is_none());
    }
}
