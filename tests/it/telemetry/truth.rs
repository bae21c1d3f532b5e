//! What is counted is what DuckDB holds, to the event.

use super::samples;
use crate::support::{Bench, NodeProcess, broker, expected, signal, wait_for};
use millstream::messages::reason_label;
use std::collections::BTreeMap;

/// An actor panics with a batch in its hands, a Python worker is killed: batches are read again, and
/// are counted once all the same.
#[test]
fn counts_of_what_was_stored_equal_duckdbs_though_batches_were_read_again() {
    let Some(brokers) = broker("telemetry: counts") else { return };
    let mut bench = Bench::new(&brokers);
    bench.config.generator.rate = 4_000.0;
    bench.config.batch.max_rows = 500;
    let _redis = bench.redis();
    let tasks = bench.generate();
    let mut node = NodeProcess::spawned(&bench, "process,store", "e_online=50*off->1*panic->off");
    node.learn_addresses();
    wait_for("the first events", || (node.committed_events() > 8_000).then_some(()));
    let status = node.status();
    let workers = status["python"]["workers"].as_object().unwrap();
    for pid in workers.values().filter_map(|worker| worker["pid"].as_u64()) {
        signal(u32::try_from(pid).unwrap(), libc::SIGKILL).unwrap();
    }
    let more = node.committed_events() + 8_000;
    wait_for("more events", || (node.committed_events() > more).then_some(()));
    tasks.stop();
    node.verify();
    let expected = expected(&tasks);

    let text = node.get("/metrics").1;
    let told = samples(&text);
    let count = |series: &str| told[series] as i64;
    let of = |sql: &str| node.query(sql)[0]["n"].as_i64().unwrap();
    let sum_of = |name: &str| -> f64 {
        told.iter().filter(|(series, _)| series.starts_with(name)).map(|(_, value)| value).sum()
    };
    assert!(sum_of("millstream_actor_restarts_total{") > 0.0, "an actor panicked");
    assert!(sum_of("millstream_python_worker_restarts_total{") > 0.0, "a worker was killed");
    assert_eq!(
        count(r#"millstream_stage_sent_events_total{stage="duckdb_writer"}"#),
        of("SELECT sum(n_in)::BIGINT AS n FROM ingest_ledger")
    );
    assert_eq!(
        count("millstream_duckdb_rows_total"),
        of("SELECT count(*) AS n FROM features_table")
    );
    let letters = node.query("SELECT stage, reason, count(*) AS n FROM dead_letters GROUP BY ALL");
    let mut stored = BTreeMap::<String, i64>::new();
    for letter in letters.as_array().unwrap() {
        let (stage, reason) = (letter["stage"].as_str().unwrap(), &letter["reason"]);
        let reason = reason_label(stage, reason.as_str().unwrap());
        let series =
            format!(r#"millstream_dead_letters_total{{stage="{stage}",reason="{reason}"}}"#);
        *stored.entry(series).or_default() += letter["n"].as_i64().unwrap();
    }
    assert!(stored.len() > 5, "the generator sends bad events: {stored:?}");
    for (series, value) in told.iter().filter(|(s, _)| s.starts_with("millstream_dead_letters")) {
        let of_duckdb = stored.get(*series).copied().unwrap_or(0);
        assert_eq!(*value as i64, of_duckdb, "{series}");
    }
    let caught_up = wait_for("no lag", || {
        let text = node.get("/metrics").1;
        let told = samples(&text);
        let lag = |name: &str| -> Vec<f64> {
            told.iter().filter(|(s, _)| s.starts_with(name)).map(|(_, v)| *v).collect()
        };
        let lags =
            [lag("millstream_kafka_lag_records{"), lag("millstream_kafka_lag_seconds{")].concat();
        lags.iter().all(|lag| *lag == 0.0).then_some(lags.len())
    });
    assert_eq!(caught_up, 16, "of eight partitions");
    node.stop_well();
    bench.judge_well(&expected);
}
