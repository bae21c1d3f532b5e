//! Rows that scripts cannot stand, scripts that cannot stand their rows, and scripts that grow: with
//! real nodes, from Kafka to DuckDB.

use crate::support::{Bench, NodeProcess, Sent, broker, produce, wait_for};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What every script here begins with: rows of the stream `features` go through as they are.
const IDENTITY: &str = "
import polars as pl

def identity(batch: pl.DataFrame) -> pl.DataFrame:
    return batch.select('_row', 'entity_id', 'feature_name', 'value',
                        pl.col('validated_at').alias('event_timestamp'))
";

/// The stream `features` with a script of the test's own.
fn bench(brokers: &str, script: &str) -> Bench {
    let mut bench = Bench::new(brokers);
    bench.config.streams.truncate(1);
    bench.config.streams[0].transform = "own".into();
    bench.config.python.transforms_dir = bench.dir.path().join("transforms");
    std::fs::create_dir_all(&bench.config.python.transforms_dir).unwrap();
    write(&bench, script);
    bench.create_topics();
    bench
}

fn write(bench: &Bench, script: &str) {
    let path = bench.config.python.transforms_dir.join("own.py");
    std::fs::write(path, format!("{IDENTITY}{script}")).unwrap();
}

fn event(entity: &str, value: usize) -> Sent {
    let payload = json!({"entity_id": entity, "feature_name": "f", "value": value,
                         "validated_at": "2024-05-01T10:00:00Z"});
    let key = Some(entity.as_bytes().to_vec());
    Sent { key, payload: Some(payload.to_string().into_bytes()), ..Sent::default() }
}

fn events(n: usize) -> Vec<Sent> {
    (0..n).map(|i| event(&format!("e{}", i % 97), i)).collect()
}

/// Dead letters by reason.
fn letters(node: &NodeProcess) -> BTreeMap<String, i64> {
    let rows = node.query("SELECT reason, count(*) AS n FROM dead_letters GROUP BY reason");
    let count =
        |row: &Value| (row["reason"].as_str().unwrap().to_owned(), row["n"].as_i64().unwrap());
    rows.as_array().unwrap().iter().map(count).collect()
}

fn rows(node: &NodeProcess) -> i64 {
    node.query("SELECT count(*) AS n FROM features_table")[0]["n"].as_i64().unwrap()
}

#[test]
fn one_poison_event_among_100_000_is_one_dead_letter_with_its_traceback() {
    let Some(brokers) = broker("poison: one of 100,000") else { return };
    let runs = tempfile::NamedTempFile::new().unwrap();
    let bench = bench(
        &brokers,
        &format!(
            "
def transform(batch: pl.DataFrame) -> pl.DataFrame:
    if (batch['entity_id'] == 'poison').any():
        with open({:?}, 'a') as runs:
            print(batch.height, file=runs)
        raise ValueError('not this one')
    return identity(batch)
",
            runs.path()
        ),
    );
    let mut records = events(99_999);
    records.insert(61_803, event("poison", 1));
    produce(&brokers, bench.topic("features"), &records);
    let node = bench.node("process,store");
    node.verify();
    assert_eq!(letters(&node), BTreeMap::from([("exception".to_owned(), 1)]));
    assert_eq!(rows(&node), 99_999);
    let letter = &node.query("SELECT stage, detail FROM dead_letters")[0];
    let detail = letter["detail"].as_str().unwrap();
    assert!(detail.contains("ValueError: not this one") && detail.contains("own.py"), "{detail}");
    // The batch twice, each half that has it once, the row itself twice; perhaps in the sample too.
    let runs = std::fs::read_to_string(runs.path()).unwrap();
    let heights: Vec<f64> = runs.lines().map(|line| line.parse().unwrap()).collect();
    let most = 2.0 + heights[0].log2().ceil() + 1.0 + 1.0;
    assert!(heights.len() as f64 <= most, "{heights:?}");
    node.stop_well();
    bench.judge_books();
}

#[test]
fn every_way_in_which_a_row_can_hurt_costs_that_row_alone() {
    let Some(brokers) = broker("poison: every kind") else { return };
    let mut bench = bench(
        &brokers,
        "
import ctypes, os

def transform(batch: pl.DataFrame) -> pl.DataFrame:
    names = set(batch['entity_id'])
    if 'segfault' in names:
        ctypes.string_at(0)
    if 'abort' in names:
        os.abort()
    if 'exit' in names:
        os._exit(3)
    if 'loop' in names:
        while True:
            pass
    if 'bomb' in names:
        hoard = 'x' * (1 << 40)
    out = identity(batch)
    if 'count' in names:
        out = out.with_columns(pl.col('_row') + 1_000_000)
    if 'schema' in names:
        out = out.drop('feature_name')
    if 'types' in names:
        out = out.with_columns(pl.lit('text').alias('value'))
    if 'nan' in names:
        nan = pl.when(pl.col('entity_id') == 'nan').then(float('nan')).otherwise(pl.col('value'))
        out = out.with_columns(nan.alias('value'))
    return out
",
    );
    // A single row may run for a twentieth of it.
    bench.config.python.batch_deadline_s = 6.0;
    bench.config.python.memory_limit_mib = 1024;
    let kinds = ["segfault", "abort", "exit", "loop", "bomb", "count", "schema", "types", "nan"];
    let mut records = events(4_000);
    for (i, kind) in kinds.iter().enumerate() {
        records.insert(400 * (i + 1), event(kind, i));
    }
    produce(&brokers, bench.topic("features"), &records);
    let node = bench.node("process,store");
    node.verify();
    let expected = [
        ("worker_signal:11", 1),
        ("worker_signal:6", 1),
        ("worker_exit:3", 1),
        ("timeout", 1),
        ("out_of_memory", 1),
        ("contract", 4),
    ];
    let expected: BTreeMap<String, i64> = expected.map(|(r, n)| (r.to_owned(), n)).into();
    assert_eq!(letters(&node), expected);
    assert_eq!(rows(&node), 4_000);
    let letter = &node.query("SELECT detail FROM dead_letters WHERE entity_id = 'nan'")[0];
    let detail = letter["detail"].as_str().unwrap();
    assert!(detail.contains("NaN, which is not a finite number"), "{detail}");
    node.stop_well();
    bench.judge_books();
}

#[test]
fn a_script_that_fails_on_everything_is_suspected_and_waits_until_it_is_mended() {
    let Some(brokers) = broker("poison: suspected") else { return };
    let failing = "
def transform(batch: pl.DataFrame) -> pl.DataFrame:
    raise KeyError('a column that is not there')
";
    let bench = bench(&brokers, failing);
    produce(&brokers, bench.topic("features"), &events(3_000));
    let node = bench.node("process,store");
    let why = wait_for("the script to be suspected", || {
        node.status()["python"]["broken"]["features"].as_str().map(str::to_owned)
    });
    assert!(why.contains("suspected") && why.contains("a column that is not there"), "{why}");
    assert!(why.contains("millstream transforms resume features --dead-letter"), "{why}");
    assert!(node.metric("millstream_script_suspected", &["features"]) > 0.0);
    assert_eq!((rows(&node), letters(&node)), (0, BTreeMap::new()), "nothing is dead for it");

    write(&bench, "\ntransform = identity\n");
    node.verify();
    assert_eq!((rows(&node), letters(&node)), (3_000, BTreeMap::new()));
    assert!(node.metric("millstream_script_suspected", &["features"]) < 1.0);
    assert_eq!(node.status()["python"]["broken"], json!({}));
    node.stop_well();
    bench.judge_books();
}

#[test]
fn what_a_suspected_script_fails_on_is_dead_when_an_operator_says_so() {
    let Some(brokers) = broker("poison: accepted") else { return };
    // The one-event style: nothing needs to be isolated.
    let failing = "
def transform(event: dict) -> dict:
    if event['value'] % 2 == 1:
        raise ValueError('odd')
    return {'entity_id': event['entity_id'], 'feature_name': 'f', 'value': event['value'],
            'event_timestamp': event['validated_at']}
";
    let mut bench = bench(&brokers, failing);
    bench.config.kafka.partitions = 1;
    produce(&brokers, bench.topic("features"), &events(3_000));
    let node = bench.node("process,store");
    wait_for("the script to be suspected", || {
        (node.metric("millstream_script_suspected", &["features"]) > 0.0).then_some(())
    });
    let http = node.http.to_string();
    let mut resume = crate::support::millstream();
    resume.args(["transforms", "resume", "features", "--dead-letter", "--http", &http]);
    let output = resume.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    node.verify();
    assert_eq!(letters(&node), BTreeMap::from([("exception".to_owned(), 1_500)]));
    assert_eq!(rows(&node), 1_500);
    node.stop_well();
    bench.judge_books();
}

#[test]
fn a_script_that_leaks_gets_a_fresh_process_now_and_then() {
    let Some(brokers) = broker("poison: a leak") else { return };
    let mut bench = bench(
        &brokers,
        "
hoard = []

def transform(batch: pl.DataFrame) -> pl.DataFrame:
    hoard.append(b'x' * (16 << 20))
    return identity(batch)
",
    );
    bench.config.batch.max_rows = 500;
    bench.config.python.recycle_growth_mib = 64;
    produce(&brokers, bench.topic("features"), &events(20_000));
    let node = bench.node("process,store");
    node.verify();
    assert_eq!((rows(&node), letters(&node)), (20_000, BTreeMap::new()));
    let replaced = node.metric("millstream_python_worker_restarts_total", &["recycled_memory"]);
    assert!(replaced >= 3.0, "{replaced}");
    node.stop_well();
    bench.judge_books();
}

#[test]
fn an_ordered_stream_has_one_worker_which_sees_every_source_in_order_and_may_keep_state() {
    let Some(brokers) = broker("poison: ordered") else { return };
    let mut bench = bench(
        &brokers,
        "
seen = 0
print('a word to the log')

def transform(batch: pl.DataFrame) -> pl.DataFrame:
    global seen
    out = identity(batch).with_columns((pl.int_range(pl.len()) + seen).cast(pl.Float64).alias('value'))
    seen += batch.height
    return out
",
    );
    bench.config.streams[0].ordered = true;
    bench.config.batch.max_rows = 200;
    bench.config.python.max_workers = 4;
    produce(&brokers, bench.topic("features"), &events(20_000));
    let node = bench.node("process,store");
    node.verify();
    let sql = "SELECT count(DISTINCT value) AS n, count(*) FILTER (WHERE before > value) AS wrong
               FROM (SELECT value, lag(value) OVER (PARTITION BY source_no ORDER BY pos) AS before
                     FROM features_table)";
    assert_eq!(node.query(sql)[0], json!({"n": 20_000, "wrong": 0}));
    let log = node.log();
    let line = log.lines().find(|line| line.contains("a word to the log"));
    assert!(line.is_some_and(|line| line.contains("own")), "{log}");
    node.stop_well();
    bench.judge_books();
}
