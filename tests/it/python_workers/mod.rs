//! Python workers as real processes: every style, and every way in which a script can misbehave.
//!
//! Needs the `.venv` of `scripts/setup.sh`, with polars, pyarrow and pandas.

#![allow(clippy::unwrap_used)]

mod cap;
mod contract;
mod death;
mod forked;
mod loading;
mod misbehaviour;
mod poison;
mod promised;
mod starting;
mod styles;
mod survival;

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray, UInt32Array,
};
use arrow::datatypes::{Float64Type, TimestampMicrosecondType, UInt32Type};
use millstream::python::{
    ForkServer, Script, TransformOutput, WorkerError, WorkerProcess, WorkerSpec,
};

/// Long enough for a cold import of every package on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);
const LEASE: Duration = Duration::from_secs(120);

/// The packages of the project's own environment.
fn site_dir() -> PathBuf {
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/lib");
    let versions = std::fs::read_dir(&lib).into_iter().flatten().map(|entry| entry.unwrap().path());
    versions
        .filter(|dir| {
            dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python"))
        })
        .map(|dir| dir.join("site-packages"))
        .find(|dir| dir.is_dir())
        .unwrap_or_else(|| {
            panic!("no python*/site-packages in {}: run scripts/setup.sh first", lib.display())
        })
}

fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_millstream"))
}

/// A worker as a node starts it: a fork.
fn spec() -> WorkerSpec {
    static FORK_SERVER: LazyLock<Arc<ForkServer>> =
        LazyLock::new(|| Arc::new(ForkServer::new(&program(), &[site_dir()], LEASE)));
    WorkerSpec { fork_server: Some(FORK_SERVER.clone()), ..alone() }
}

/// A worker that is no fork.
fn alone() -> WorkerSpec {
    WorkerSpec {
        worker_id: "test-worker".into(),
        program: program(),
        site_dirs: vec![site_dir()],
        lease: LEASE,
        memory_limit: None,
        fork_server: None,
    }
}

fn script(source: &str) -> Script {
    Script::new("under_test", Path::new("/scripts/under_test.py"), source)
}

/// Events that already are features, plus an integer column.
fn events(n: u32) -> RecordBatch {
    let at = TimestampMicrosecondArray::from_iter_values(
        (0..i64::from(n)).map(|row| 1_700_000_000_123_456 + row),
    );
    let columns: [(&str, ArrayRef); 6] = [
        ("_row", Arc::new(UInt32Array::from_iter_values(0..n))),
        (
            "entity_id",
            Arc::new(StringArray::from_iter_values((0..n).map(|row| format!("user_{row}")))),
        ),
        ("feature_name", Arc::new(StringArray::from_iter_values((0..n).map(|_| "clicks")))),
        ("value", Arc::new(Float64Array::from_iter_values((0..n).map(|row| f64::from(row) + 0.5)))),
        ("event_timestamp", Arc::new(at.with_timezone("UTC"))),
        (
            "count",
            Arc::new(Int64Array::from_iter(
                (0..i64::from(n)).map(|row| (row % 2 == 0).then_some(row)),
            )),
        ),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("in time")
}

async fn started(source: &str) -> WorkerProcess {
    started_as(&spec(), source).await
}

async fn started_as(spec: &WorkerSpec, source: &str) -> WorkerProcess {
    let mut worker = in_time(WorkerProcess::spawn(spec)).await.unwrap();
    in_time(worker.load(&script(source), &events(0).schema())).await.unwrap();
    worker
}

async fn run(source: &str, n: u32) -> Result<TransformOutput, WorkerError> {
    let mut worker = started(source).await;
    let result = in_time(worker.transform(&events(n))).await;
    in_time(worker.stop(DEADLINE)).await;
    result
}

fn row_numbers(rows: &RecordBatch) -> Vec<u32> {
    rows.column(0).as_primitive::<UInt32Type>().values().to_vec()
}

fn values(rows: &RecordBatch) -> Vec<Option<f64>> {
    rows.column(3).as_primitive::<Float64Type>().iter().collect()
}

/// The first three events as every identity script must give them back.
fn assert_identity(output: &TransformOutput) {
    assert!(output.rejected.is_empty(), "{:?}", output.rejected);
    assert_eq!(row_numbers(&output.rows), [0, 1, 2]);
    assert_eq!(values(&output.rows), [Some(0.5), Some(1.5), Some(2.5)]);
    assert_eq!(output.rows.column(1).as_string::<i32>().value(2), "user_2");
    let at = output.rows.column(4).as_primitive::<TimestampMicrosecondType>();
    assert_eq!(at.values(), &[1_700_000_000_123_456, 1_700_000_000_123_457, 1_700_000_000_123_458]);
    assert_eq!(output.rows.column(5).null_count(), 3);
}

const EVENT_IDENTITY: &str = "
def transform(event: dict):
    del event['count']
    return event
";
