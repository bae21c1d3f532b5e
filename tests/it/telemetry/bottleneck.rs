//! A stage that is slowed down is the one that the dashboard names: the one that has the largest share
//! of time in which it works.

use super::samples;
use crate::support::{Bench, NodeProcess, Slot, broker, wait_for};
use millstream::chaos::proxy::Proxy;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

const FLOW: [&str; 6] = [
    "kafka_ingest",
    "file_upload",
    "batch_accumulator",
    "python_worker_supervisor",
    "redis_queue",
    "duckdb_writer",
];
/// How long is measured, as with Grafana's window.
const WINDOW: Duration = Duration::from_secs(6);

/// Seconds that each stage of the flow was idle or blocked.
fn at_rest(node: &NodeProcess) -> (Instant, BTreeMap<&'static str, f64>) {
    let (at, text) = (Instant::now(), node.get("/metrics").1);
    let told = samples(&text);
    let of = |stage: &str| {
        let part =
            |what| told[&*format!(r#"millstream_stage_{what}_seconds_total{{stage="{stage}"}}"#)];
        part("idle") + part("blocked")
    };
    (at, FLOW.map(|stage| (stage, of(stage))).into())
}

/// The share of time in which each stage worked, once reading was held up: then one of them is the limit.
fn shares(node: &NodeProcess) -> BTreeMap<&'static str, f64> {
    let blocked = r#"{stage="kafka_ingest"}"#;
    wait_for("reading to be held up", || {
        let seconds = node.metric("millstream_stage_blocked_seconds_total", &[blocked]);
        (seconds > 1.0).then_some(())
    });
    let (start, before) = at_rest(node);
    std::thread::sleep(WINDOW);
    let (end, after) = at_rest(node);
    let window = (end - start).as_secs_f64();
    after.into_iter().map(|(stage, rest)| (stage, 1.0 - (rest - before[stage]) / window)).collect()
}

fn named(shares: &BTreeMap<&'static str, f64>) -> &'static str {
    shares.iter().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0
}

/// Behind a script: the same, later.
const SLOWLY: &str = "

import time

quickly = transform


def transform(batch: pl.DataFrame) -> pl.DataFrame:
    time.sleep(0.3)
    return quickly(batch)
";

/// Far more events than the slowed stage can take, and little room for them.
fn bench(brokers: &str) -> Bench {
    let mut bench = Bench::new(brokers);
    bench.config.generator.rate = 20_000.0;
    bench.config.batch.max_rows = 500;
    bench.config.batch.max_bytes = 1 << 20;
    bench.config.kafka.max_inflight_bytes = 4 << 20;
    bench
}

#[test]
fn a_slow_script_is_named() {
    let Some(brokers) = broker("bottleneck: a script") else { return };
    let _alone = Slot::alone();
    let mut bench = bench(&brokers);
    bench.own_scripts();
    for stream in 0..bench.config.streams.len() {
        let script = bench.config.script_file(stream);
        let text = std::fs::read_to_string(&script).unwrap();
        std::fs::write(script, format!("{text}{SLOWLY}")).unwrap();
    }
    let node = bench.node("generate,process,store");
    let shares = shares(&node);
    assert_eq!(named(&shares), "python_worker_supervisor", "{shares:?}");
}

#[test]
fn a_slow_duckdb_is_named() {
    let Some(brokers) = broker("bottleneck: DuckDB") else { return };
    let _alone = Slot::alone();
    let bench = bench(&brokers);
    let mut node =
        NodeProcess::spawned(&bench, "generate,process,store", "g_in_transaction=sleep(400)");
    node.learn_addresses();
    let shares = shares(&node);
    assert_eq!(named(&shares), "duckdb_writer", "{shares:?}");
}

/// Everything that goes to Redis and comes from it takes 60 ms longer: the work is under way there most of
/// the time, though no actor is busy with it.
#[test]
fn a_slow_redis_is_named() {
    let Some(brokers) = broker("bottleneck: Redis") else { return };
    let _alone = Slot::alone();
    let mut bench = bench(&brokers);
    let redis = bench.redis();
    let address = redis.url().trim_start_matches("redis://").trim_end_matches('/').to_owned();
    let address = address.split('/').next().unwrap().parse().unwrap();
    let proxy = Proxy::start(None, address).unwrap();
    proxy.latency(Duration::from_millis(60));
    bench.config.redis.url = format!("redis://{}/0", proxy.address());
    let node = bench.node("generate,process,store");
    let shares = shares(&node);
    assert_eq!(named(&shares), "redis_queue", "{shares:?}");
}
