//! The broker stops, dies, loses or changes its log: wait and go on, or halt the one source with a
//! readable reason; never a silent reset.

use crate::support::{
    Bench, Broker, NodeProcess, Sent, admin, broker, expected, millstream, produce, produce_with,
    run_json, wait_for,
};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{NewPartitions, NewTopic, TopicReplication},
    producer::{BaseProducer, Producer},
};
use serde_json::json;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// `n` good events of the stream `features`, each an entity of its own, on one partition.
fn features(tag: &str, partition: i32, n: usize) -> Vec<Sent> {
    let event = |i: usize| {
        Sent {
        payload: Some(
            format!(
                r#"{{"entity_id":"{tag}{i}","feature_name":"f","value":{i},"validated_at":"2024-05-01T10:00:00Z"}}"#
            )
            .into_bytes(),
        ),
        id: Some(Uuid::new_v4()),
        partition: Some(partition),
        key: None,
    }
    };
    (0..n).map(event).collect()
}

/// Rows of entities whose names begin with `tag`.
fn landed(node: &NodeProcess, tag: &str) -> i64 {
    let sql = format!("SELECT count(*) AS n FROM features_table WHERE entity_id LIKE '{tag}%'");
    node.query(&sql)[0]["n"].as_i64().unwrap()
}

/// Waits until `source` is halted; the reason that the status page shows.
fn halted(node: &NodeProcess, source: &str) -> String {
    wait_for("the source to halt", || {
        let status = node.status();
        let partition = &status["partitions"][source];
        (partition["state"] == "halted").then(|| partition["reason"].as_str().unwrap().to_owned())
    })
}

/// `kafka:<stream>/<topic>/<partition>`.
fn source(bench: &Bench, stream: &str, partition: i32) -> String {
    format!("kafka:{stream}/{}/{partition}", bench.topic(stream))
}

/// Has a file of `n` good events taken in, and waits until they have landed; their ids.
fn uploaded(node: &NodeProcess, n: usize) -> Vec<Uuid> {
    let ids: Vec<Uuid> = (0..n).map(|_| Uuid::new_v4()).collect();
    let line = |id: &Uuid| {
        let row = json!({
            "entity_id": "file", "feature_name": "f", "value": 1,
            "validated_at": "2024-05-01T10:00:00Z", "event_id": id,
        });
        format!("{row}\n")
    };
    let file = tempfile::Builder::new().suffix(".ndjson").tempfile().unwrap();
    std::fs::write(file.path(), ids.iter().map(line).collect::<String>()).unwrap();
    let mut upload = millstream();
    upload.arg("upload").arg(file.path()).args(["--stream", "features", "--json"]);
    let receipt = run_json(upload.args(["--grpc", &node.grpc.to_string()]));
    assert_eq!(receipt["state"], "landed", "{receipt}");
    assert_eq!(landed(node, "file"), n as i64);
    ids
}

/// In mid-run the broker gets `fault`, which gives the ids of events that it has uploaded meanwhile;
/// then what is left and what comes afterwards flows again. No producer lives through the fault: what
/// it must do then is no matter of the node's.
fn broker_suffers(test: &str, fault: impl FnOnce(&Broker, &NodeProcess) -> Vec<Uuid>) {
    let Some(broker) = Broker::start(test) else { return };
    let mut bench = Bench::new(&broker.address);
    // So small that the fault finds most of it still to be read.
    bench.config.generator.rate = 0.0;
    bench.config.batch.max_rows = 100;
    let generate = |events: u64| {
        let tasks = bench.generate();
        wait_for("events", || (tasks.tally().acknowledged() >= events).then_some(()));
        tasks.stop();
        expected(&tasks)
    };
    let mut all = generate(60_000);
    let node = bench.node("process,store");
    wait_for("load", || (node.committed_events() > 1_000).then_some(()));
    let uploaded = fault(&broker, &node);
    let more = generate(5_000);
    node.verify();
    node.stop_well();
    all.produced += more.produced + uploaded.len() as u64;
    all.rows.extend(more.rows);
    all.rows.extend(uploaded.into_iter().map(|id| (id, 1)));
    all.dead.extend(more.dead);
    all.filtered += more.filtered;
    for (reason, n) in more.dead_reasons {
        *all.dead_reasons.entry(reason).or_default() += n;
    }
    bench.judge_well(&all);
}

#[test]
fn a_broker_that_hangs_is_waited_for_and_files_land_meanwhile() {
    broker_suffers("broker_faults: hangs", |broker, node| {
        let (frozen, since) = (broker.freeze(), Instant::now());
        let restarts = || {
            let status = node.status();
            let actors = status["actors"].as_object().unwrap().clone();
            actors.values().map(|a| a["generation"].as_u64().unwrap()).sum::<u64>()
        };
        let before = restarts();
        let uploaded = uploaded(node, 100);
        // Longer than the session of a member.
        std::thread::park_timeout(Duration::from_secs(11).saturating_sub(since.elapsed()));
        assert_eq!(restarts(), before, "no actor died of it");
        frozen.thaw();
        uploaded
    });
}

#[test]
fn a_broker_killed_9_and_started_again_is_waited_for() {
    broker_suffers("broker_faults: kill -9", |broker, _| {
        broker.kill();
        broker.start_again();
        Vec::new()
    });
}

#[test]
fn a_topic_deleted_and_made_again_halts_its_source_readably_and_others_go_on() {
    let Some(brokers) = broker("broker_faults: topic made again") else { return };
    let bench = Bench::new(&brokers);
    bench.create_topics();
    let topic = bench.topic("features").to_owned();
    produce(&brokers, &topic, &features("old", 0, 100));
    let node = bench.node("process,store");
    node.verify();
    admin(&brokers, async |admin, options| {
        admin.delete_topics(&[&topic], &options).await.unwrap()[0].as_ref().unwrap();
    });
    wait_for("the topic to be made again", || {
        admin(&brokers, async |admin, options| {
            let topic = NewTopic::new(&topic, 4, TopicReplication::Fixed(1));
            admin.create_topics(&[topic], &options).await.unwrap()[0].is_ok().then_some(())
        })
    });
    // More than before, so that no position lies outside of the new log.
    produce(&brokers, &topic, &features("new", 0, 200));
    let reason = halted(&node, &source(&bench, "features", 0));
    assert!(reason.contains("deleted and made again since position 100"), "{reason}");
    let click = r#"{"user_id":7,"action":"view","timestamp":"2024-05-01T10:00:00Z"}"#;
    let click = Sent { payload: Some(click.into()), key: Some(b"7".to_vec()), ..Sent::default() };
    produce(&brokers, bench.topic("clicks"), &[click]);
    wait_for("the other topic to go on", || (landed(&node, "7") > 0).then_some(()));
    assert_eq!((landed(&node, "old"), landed(&node, "new")), (100, 0));

    // Until an operator takes it as a new log. Only the partitions that halted have to be adopted.
    assert!(reason.contains("sources adopt"), "it says what to do: {reason}");
    for source in node.partitions("halted") {
        let http = node.http.to_string();
        let mut adopt = millstream();
        adopt.args(["sources", "adopt", &source, "--at", "earliest", "--http", &http]);
        let output = adopt.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    node.verify();
    assert_eq!((landed(&node, "old"), landed(&node, "new")), (100, 200));
    assert!(node.partitions("halted").is_empty());
    node.stop_well();
}

#[test]
fn a_source_whose_retention_has_passed_halts_readably_and_others_go_on() {
    let Some(brokers) = broker("broker_faults: retention") else { return };
    let bench = Bench::new(&brokers);
    bench.create_topics();
    let topic = bench.topic("features").to_owned();
    let node = bench.node("process,store");
    produce(&brokers, &topic, &features("seen", 0, 100));
    node.verify();
    node.stop_well();
    produce(&brokers, &topic, &features("gone", 0, 100));
    produce(&brokers, &topic, &features("kept", 1, 100));
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&topic, 0, Offset::Offset(150)).unwrap();
    admin(&brokers, async |admin, options| admin.delete_records(&list, &options).await.unwrap());
    let node = bench.node("process,store");
    let reason = halted(&node, &source(&bench, "features", 0));
    assert!(reason.contains("retention has passed position 100"), "{reason}");
    assert!(reason.contains("50 positions are gone"), "{reason}");
    wait_for("the others to go on", || (landed(&node, "kept") == 100).then_some(()));
    assert_eq!(landed(&node, "gone"), 0, "never a silent reset");
    node.stop_well();
}

#[test]
fn a_truncated_log_halts_its_source_readably() {
    let Some(broker) = Broker::start("broker_faults: truncated") else { return };
    let bench = Bench::new(&broker.address);
    bench.create_topics();
    let topic = bench.topic("features").to_owned();
    let node = bench.node("process,store");
    // Two appends, and of the log only the first is left after the crash.
    produce(&broker.address, &topic, &features("first", 0, 100));
    let log = broker.log_of(&topic, 0).join("00000000000000000000.log");
    let first = std::fs::metadata(&log).unwrap().len();
    produce(&broker.address, &topic, &features("second", 0, 100));
    node.verify();
    node.stop_well();
    broker.kill();
    std::fs::OpenOptions::new().write(true).open(&log).unwrap().set_len(first).unwrap();
    broker.start_again();
    let node = bench.node("process,store");
    let reason = halted(&node, &source(&bench, "features", 0));
    assert!(reason.contains("truncated"), "{reason}");
    assert!(reason.contains("positions up to 200") && reason.contains("ends at 100"), "{reason}");
    node.stop_well();
}

#[test]
fn partitions_added_to_a_topic_are_read_and_keys_that_move_to_them_keep_their_order() {
    let Some(brokers) = broker("broker_faults: partitions added") else { return };
    let mut bench = Bench::new(&brokers);
    bench.config.generator.rate = 5_000.0;
    bench.config.batch.max_rows = 500;
    // So few entities that each moves in the midst of its events.
    bench.config.generator.mix.entities = 200;
    // Producers see the new partitions before the consumer does.
    bench.config.kafka.options.insert("topic.metadata.refresh.interval.ms".into(), "500".into());
    let _redis = bench.redis();
    let tasks = bench.generate();
    let node = bench.node("process,store");
    wait_for("load", || (node.committed_events() > 10_000).then_some(()));
    let topic = bench.topic("features").to_owned();
    admin(&brokers, async |admin, options| {
        let wanted = NewPartitions::new(&topic, 7);
        admin.create_partitions([&wanted], &options).await.unwrap()[0].as_ref().unwrap();
    });
    wait_for("the new partitions to be read", || {
        let positions = node.positions();
        let new = (4..7).map(|p| positions.get(&source(&bench, "features", p)));
        new.into_iter().all(|next| next.is_some_and(|next| *next > 1_000)).then_some(())
    });
    tasks.stop();
    node.verify();
    node.stop_well();
    bench.judge_well(&expected(&tasks));
    let moved: i64 = bench
        .closed_store()
        .query_row(
            "SELECT count(*) FROM (
                 SELECT entity_id FROM features_table JOIN sources USING (source_no)
                 WHERE source LIKE 'kafka:features/%' GROUP BY entity_id
                 HAVING count(DISTINCT topic_partitions) = 2)",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert!(moved > 20, "{moved} entities moved to a new partition");
}

#[test]
fn transactions_that_end_in_markers_are_passed_and_aborted_records_never_land() {
    let Some(brokers) = broker("broker_faults: transactions") else { return };
    let bench = Bench::new(&brokers);
    bench.create_topics();
    let topic = bench.topic("features").to_owned();
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &brokers)
        .set("transactional.id", &topic)
        .create()
        .unwrap();
    let soon = Duration::from_secs(30);
    producer.init_transactions(soon).unwrap();
    let transaction = |tag: &str, commit: bool| {
        producer.begin_transaction().unwrap();
        for partition in 0..3 {
            produce_with(&producer, &topic, &features(tag, partition, 50));
        }
        producer.flush(soon).unwrap();
        if commit {
            producer.commit_transaction(soon).unwrap();
        } else {
            producer.abort_transaction(soon).unwrap();
        }
    };
    let node = bench.node("process,store");
    transaction("done", true);
    node.verify();
    transaction("aborted", false);
    node.verify();
    transaction("again", true);
    transaction("undone", false);
    node.verify();
    let rows = |tag| landed(&node, tag);
    assert_eq!((rows("done"), rows("again")), (150, 150));
    assert_eq!((rows("aborted"), rows("undone")), (0, 0));
    // Restarted behind nothing but markers, it neither halts nor reads anything again.
    node.stop_well();
    let node = bench.node("process,store");
    node.verify();
    assert_eq!(node.query("SELECT count(*) AS n FROM features_table")[0]["n"], 300);
    assert!(node.partitions("halted").is_empty());
    node.stop_well();
}
