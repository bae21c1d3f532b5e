//! What was shown online becomes durable by the same code, whoever owns the source by then.

use crate::support::{Bench, Sent, broker, produce, wait_for};
use millstream::{embedded::EmbeddedRedis, python::Script};
use redis::Commands;
use serde_json::Value;
use std::path::PathBuf;

/// A script that gives every event this value.
fn text(value: u32) -> String {
    format!(
        "
def transform(event: dict):
    return dict(entity_id=event['entity_id'], feature_name='f', value={value}.0,
                event_timestamp=event['validated_at'])
"
    )
}

fn events(n: usize) -> Vec<Sent> {
    let event = |i| {
        let text = format!(
            r#"{{"entity_id":"e{i}","feature_name":"f","value":0,"validated_at":"2024-05-01T10:00:00Z"}}"#
        );
        Sent { payload: Some(text.into_bytes()), partition: Some(0), ..Sent::default() }
    };
    (0..n).map(event).collect()
}

/// One stream on one partition in small batches, with a script of the test's own; and its path.
fn bench(brokers: &str, redis: &EmbeddedRedis) -> (Bench, PathBuf) {
    let mut bench = Bench::new(brokers);
    bench.config.redis.url = redis.url().to_owned();
    bench.config.streams.truncate(1);
    bench.config.kafka.partitions = 1;
    bench.config.batch.max_rows = 10;
    bench.config.python.lease_s = 3.0;
    // Both versions have to share it.
    bench.config.python.max_workers = 1;
    let scripts = bench.dir.path().join("scripts");
    std::fs::create_dir(&scripts).unwrap();
    let script = scripts.join(format!("{}.py", bench.config.streams[0].transform));
    bench.config.python.transforms_dir = scripts;
    bench.create_topics();
    (bench, script)
}

/// Runs version 1 until 100 events are online that the store does not have, then dies; version 2 is
/// the file's when the next owner starts. The ranges, values and versions that landed.
fn swap_after_death(
    bench: &Bench,
    script: &PathBuf,
    meanwhile: impl FnOnce(&duckdb::Connection),
) -> Landed {
    let mut redis =
        redis::Client::open(&*bench.config.redis.url).unwrap().get_connection().unwrap();
    let ns = &bench.config.node.namespace;
    let (brokers, topic) = (&bench.config.kafka.brokers, bench.topic("features"));
    std::fs::write(script, text(1)).unwrap();
    let store = bench.node("store");
    let process = bench.node("process");
    produce(brokers, topic, &events(1));
    wait_for("the first event", || (store.committed_events() == 1).then_some(()));
    store.kill();
    produce(brokers, topic, &events(100));
    wait_for("all to be online", || {
        let json: Vec<String> = redis.hvals(format!("{ns}:promised")).unwrap();
        let promised: Value = serde_json::from_str(json.first()?).unwrap();
        (promised["to"] == 101).then_some(())
    });
    process.kill();
    // What is on the queue lands by itself; the others were only shown.
    let queued: i64 = redis.xlen(format!("{ns}:queue")).unwrap();
    assert!(queued <= 4, "a window at most is on the queue: {queued}");
    meanwhile(&bench.closed_store());

    std::fs::write(script, text(2)).unwrap();
    let store = bench.node("store");
    let process = bench.node("process");
    let second = Script::new("s", script, &text(2)).sha256;
    wait_for("the second version", || {
        let running = &process.status()["python"]["scripts"]["features"]["version"];
        (*running == second).then_some(())
    });
    produce(brokers, topic, &events(50));
    process.verify();
    let log = process.log();
    process.stop_well();
    store.stop_well();
    let store = duckdb::Connection::open(bench.database()).unwrap();
    let mut values = store.prepare("SELECT pos, value FROM features_table ORDER BY pos").unwrap();
    let values = values.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let mut ledger = store
        .prepare("SELECT from_pos, to_pos, script_sha256 FROM ingest_ledger ORDER BY from_pos")
        .unwrap();
    let ledger = ledger.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
    Landed {
        values: values.map(Result::unwrap).collect(),
        ledger: ledger.map(Result::unwrap).collect(),
        log,
    }
}

struct Landed {
    values: Vec<(i64, f64)>,
    ledger: Vec<(i64, i64, String)>,
    log: String,
}

#[test]
fn what_was_shown_online_lands_under_the_script_that_made_it() {
    let Some(brokers) = broker("python_workers: promised") else { return };
    let dir = tempfile::tempdir().unwrap();
    let redis = EmbeddedRedis::start(&dir.path().join("redis")).unwrap();
    let (bench, script) = bench(&brokers, &redis);
    let landed = swap_after_death(&bench, &script, |_| {});
    let version = |value| Script::new("s", &script, &text(value)).sha256;
    assert_eq!(landed.values.len(), 151);
    for (pos, value) in landed.values {
        assert_eq!(value, if pos < 101 { 1.0 } else { 2.0 }, "position {pos}");
    }
    for (from, to, sha256) in landed.ledger {
        assert!(to <= 101 || from >= 101, "[{from}, {to}) mixes versions");
        assert_eq!(sha256, version(if from < 101 { 1 } else { 2 }), "[{from}, {to})");
    }
}

#[test]
fn a_version_that_the_store_has_lost_is_replaced_by_the_current_one_and_that_is_said() {
    let Some(brokers) = broker("python_workers: a lost version") else { return };
    let dir = tempfile::tempdir().unwrap();
    let redis = EmbeddedRedis::start(&dir.path().join("redis")).unwrap();
    let (bench, script) = bench(&brokers, &redis);
    let landed = swap_after_death(&bench, &script, |store| {
        store.execute("DELETE FROM transform_versions", []).unwrap();
    });
    assert_eq!(landed.values.len(), 151);
    assert!(landed.values.iter().all(|(pos, value)| *pos < 101 || *value == 2.0));
    assert!(landed.values.iter().any(|(pos, value)| *pos < 101 && *value == 2.0));
    assert!(landed.log.contains("does not know the script version"), "{}", landed.log);
}
