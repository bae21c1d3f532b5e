//! Exactly once, whatever dies.

use crate::support::{Bench, NodeProcess, broker, expected, wait_for};
use millstream::config::Config;
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};
use std::collections::HashMap;
use std::time::Duration;

/// The group's committed offsets by source name, asked from the broker.
fn committed(config: &Config) -> HashMap<String, i64> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &config.kafka.brokers)
        .set("group.id", &config.kafka.group)
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    for stream in &config.streams {
        for partition in 0..config.kafka.partitions {
            list.add_partition(&stream.topic, partition);
        }
    }
    let offsets = consumer.committed_offsets(list, Duration::from_secs(20)).unwrap();
    let mut by_source = HashMap::new();
    for element in offsets.elements() {
        let stream = config.streams.iter().find(|s| s.topic == element.topic()).unwrap();
        if let Offset::Offset(offset) = element.offset() {
            by_source.insert(
                format!("kafka:{}/{}/{}", stream.name, stream.topic, element.partition()),
                offset,
            );
        }
    }
    by_source
}

/// DuckDB's positions by source name, read from a database that nobody owns.
fn positions(bench: &Bench) -> HashMap<String, i64> {
    let store = duckdb::Connection::open(bench.database()).unwrap();
    let mut statement = store.prepare("SELECT source, next_pos FROM sources").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

/// The same, asked from the running node.
fn live_positions(node: &NodeProcess) -> HashMap<String, i64> {
    let rows = node.query("SELECT source, next_pos FROM sources");
    let row = |r: &serde_json::Value| {
        (r["source"].as_str().unwrap().to_owned(), r["next_pos"].as_i64().unwrap())
    };
    rows.as_array().unwrap().iter().map(row).collect()
}

/// No committed offset, asked first, is ahead of a position, asked afterwards. How many there were.
fn not_ahead(offsets: &HashMap<String, i64>, durable: &HashMap<String, i64>) -> usize {
    for (source, offset) in offsets {
        assert!(
            *offset <= durable[source],
            "{source}: {offset} is committed, DuckDB has {durable:?}"
        );
    }
    offsets.len()
}

#[test]
fn kill_9_of_the_node_in_mid_run_on_real_kafka() {
    let Some(brokers) = broker("exactly_once: kill -9") else { return };
    let mut bench = Bench::new(&brokers);
    bench.config.generator.rate = 6_000.0;
    // Small batches: many boundaries for a kill to fall on.
    bench.config.batch.max_rows = 500;
    let tasks = bench.generate();
    let mut samples = 0;
    for round in 0..4u64 {
        let node = bench.node("process,store");
        // Not at the same moment of its life each time; until then every sample must hold.
        wait_for("events of this life", || {
            let offsets = committed(&bench.config);
            samples += not_ahead(&offsets, &live_positions(&node));
            (node.committed_events() > 1_500 + 1_900 * round).then_some(())
        });
        node.kill();
        let offsets = committed(&bench.config);
        samples += not_ahead(&offsets, &positions(&bench));
    }
    assert!(samples > 20, "offsets were hardly ever committed: {samples}");
    tasks.stop();
    let node = bench.node("process,store");
    node.verify();
    node.stop_well();
    let report = bench.judge(&expected(&tasks));
    assert!(report.ok, "{report:#?}");
    assert_eq!((report.lost, report.duplicated), (0, 0));
    // At the end everything is committed, exactly up to where DuckDB is.
    let durable = positions(&bench);
    for (source, offset) in committed(&bench.config) {
        assert_eq!(offset, durable[&source], "{source}");
    }
}

#[test]
fn a_second_store_on_one_file_is_refused_and_told_who_has_it() {
    let bench = Bench::new("");
    let node = bench.node("process,store");
    wait_for("the first store", || bench.database().exists().then_some(()));
    let mut second = crate::support::millstream();
    second.args([
        "run",
        "--roles",
        "process,store",
        "--http",
        "127.0.0.1:0",
        "--grpc",
        "127.0.0.1:0",
        "--config",
    ]);
    let mut other = bench.other_reader();
    other.config.node.data_dir.clone_from(&bench.config.node.data_dir);
    // A Redis of its own, so that the database is what they meet at.
    let redis =
        millstream::embedded::EmbeddedRedis::start(&other.dir.path().join("redis")).unwrap();
    other.config.redis.url = redis.url().to_owned();
    let output = second.arg(other.config_file()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{stderr}");
    assert!(stderr.contains(&format!("pid {}", node.pid())), "{stderr}");
    node.stop_well();
}
