//! Rows a second through Python workers, a script of each style: how much a worker can do, and
//! what the way to it and back costs.
//!
//! `cargo bench --bench worker_rows -- [ROWS_A_BATCH] [PART_OF_A_NAME]`. Without cargo's `--bench`
//! (as in `cargo test --benches`) every script runs just once, to see that it does.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{
    ArrayRef, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array,
};
use millstream::python::{Loaded, Script, WorkerProcess, WorkerSpec};

const SCRIPTS: [(&str, &str); 7] = [
    (
        "polars select",
        "
import polars as pl
def transform(b: pl.DataFrame):
    return b.select('_row', 'entity_id', 'feature_name', 'value', 'event_timestamp', 'created_at')
",
    ),
    (
        "polars identity",
        "
import polars as pl
def transform(b: pl.DataFrame):
    return b
",
    ),
    (
        "pyarrow identity",
        "
import pyarrow as pa
def transform(b: pa.RecordBatch):
    return b
",
    ),
    (
        "pandas identity",
        "
import pandas as pd
def transform(b: pd.DataFrame):
    return b
",
    ),
    (
        "list[dict] identity",
        "
def transform(b: list[dict]):
    return b
",
    ),
    (
        "event identity",
        "
def transform(e: dict):
    return e
",
    ),
    (
        "event new dict",
        "
def transform(e: dict):
    return {
        'entity_id': e['entity_id'],
        'feature_name': e['feature_name'],
        'value': e['value'] * 2,
        'event_timestamp': e['event_timestamp'],
    }
",
    ),
];

/// What the calls to one worker came to.
#[derive(Default)]
struct Calls {
    count: u32,
    rows: usize,
    elapsed: Duration,
    slowest: Duration,
    python_seconds: f64,
}

impl Calls {
    fn rows_a_second(&self) -> f64 {
        self.rows as f64 / self.elapsed.as_secs_f64()
    }
}

fn events(rows: u32) -> RecordBatch {
    let at = TimestampMicrosecondArray::from_iter_values(
        (0..i64::from(rows)).map(|row| 1_700_000_000_123_456 + row * 1000),
    );
    let text = |of: fn(u32) -> String| StringArray::from_iter_values((0..rows).map(of));
    let columns: [(&str, ArrayRef); 6] = [
        ("_row", Arc::new(UInt32Array::from_iter_values(0..rows))),
        ("entity_id", Arc::new(text(|row| format!("user_{row}")))),
        ("feature_name", Arc::new(text(|row| format!("feature_{}", row % 7)))),
        ("value", Arc::new(Float64Array::from_iter_values((0..rows).map(f64::from)))),
        ("event_timestamp", Arc::new(at.clone().with_timezone("UTC"))),
        ("created_at", Arc::new(at.with_timezone("UTC"))),
    ];
    RecordBatch::try_from_iter(columns).expect("columns of one length")
}

/// The packages of the project's own environment.
fn site_dir() -> PathBuf {
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/lib");
    let versions = std::fs::read_dir(&lib).into_iter().flatten().filter_map(Result::ok);
    versions
        .filter(|version| version.file_name().to_string_lossy().starts_with("python"))
        .map(|version| version.path().join("site-packages"))
        .find(|dir| dir.is_dir())
        .unwrap_or_else(|| {
            panic!("no python*/site-packages in {}: run scripts/setup.sh first", lib.display())
        })
}

async fn start(source: &str, batch: &RecordBatch) -> (WorkerProcess, Loaded) {
    let spec = WorkerSpec {
        worker_id: "bench".into(),
        program: PathBuf::from(env!("CARGO_BIN_EXE_millstream")),
        site_dirs: vec![site_dir()],
        lease: Duration::from_secs(3600),
        memory_limit: None,
        fork_server: None,
    };
    let mut worker = WorkerProcess::spawn(&spec).await.expect("a worker");
    let script = Script::new("bench", Path::new("bench.py"), source);
    let loaded = worker.load(&script, &batch.schema()).await.expect("a script that loads");
    (worker, loaded)
}

/// Calls for the given time, but at least once.
async fn call(worker: &mut WorkerProcess, batch: &RecordBatch, span: Duration) -> Calls {
    let (mut calls, began) = (Calls::default(), Instant::now());
    while calls.count == 0 || began.elapsed() < span {
        let called = Instant::now();
        let output = worker.transform(batch).await.expect("rows");
        calls.slowest = calls.slowest.max(called.elapsed());
        assert!(output.rejected.is_empty() && output.rows.num_rows() == batch.num_rows());
        calls.rows += batch.num_rows();
        calls.python_seconds += output.python_seconds;
        calls.count += 1;
    }
    calls.elapsed = began.elapsed();
    calls
}

async fn one_worker(source: &str, batch: &RecordBatch, span: Duration) -> String {
    let began = Instant::now();
    let (mut worker, loaded) = start(source, batch).await;
    let up = began.elapsed().as_secs_f64() - loaded.seconds;
    let first = call(&mut worker, batch, Duration::ZERO).await;
    let calls = call(&mut worker, batch, span).await;
    worker.stop(Duration::from_secs(5)).await;
    let ms_a_call = |seconds: f64| seconds * 1e3 / f64::from(calls.count);
    let elapsed = calls.elapsed.as_secs_f64();
    format!(
        "{:9.0} rows/s  ({:7.3} ms a call, python {:7.3} ms, hop {:6.3} ms, slowest {:6.2} ms; \
         spawn {:.0} ms, load {:.0} ms, first {:.1} ms)",
        calls.rows_a_second(),
        ms_a_call(elapsed),
        ms_a_call(calls.python_seconds),
        ms_a_call(elapsed - calls.python_seconds),
        calls.slowest.as_secs_f64() * 1e3,
        up * 1e3,
        loaded.seconds * 1e3,
        first.elapsed.as_secs_f64() * 1e3,
    )
}

async fn two_workers(source: &'static str, batch: &RecordBatch, span: Duration) -> String {
    let tasks = [(); 2].map(|()| {
        let batch = batch.clone();
        tokio::spawn(async move {
            let (mut worker, _) = start(source, &batch).await;
            let calls = call(&mut worker, &batch, span).await;
            worker.stop(Duration::from_secs(5)).await;
            calls.rows_a_second()
        })
    });
    let mut total = 0.0;
    for task in tasks {
        total += task.await.expect("a rate");
    }
    format!("{total:9.0} rows/s")
}

/// All the scripts whose name contains `only`.
async fn measure(rows: u32, only: String, span: Duration) {
    let batch = events(rows);
    println!("batches of {rows} rows, {} bytes in memory", batch.get_array_memory_size());
    for (name, source) in SCRIPTS {
        if !name.contains(&only) {
            continue;
        }
        println!("{name:20} one worker  {}", one_worker(source, &batch, span).await);
        // With small batches it is the calls that are measured, not what two workers can do.
        if rows >= 1000 {
            println!("{name:20} two workers {}", two_workers(source, &batch, span).await);
        }
    }
}

#[tokio::main]
async fn main() {
    let (flags, words): (Vec<_>, Vec<_>) =
        std::env::args().skip(1).partition(|arg| arg.starts_with("--"));
    let benching = flags.iter().any(|flag| flag == "--bench");
    let span = if benching { Duration::from_secs(2) } else { Duration::ZERO };
    let rows = words.first().map_or(10_000, |rows| rows.parse().expect("ROWS_A_BATCH"));
    let only = words.get(1).cloned().unwrap_or_default();
    // On a thread of the pool, as in the node: the main thread would add a hop to every call.
    tokio::spawn(measure(rows, only, span)).await.expect("measured");
}
