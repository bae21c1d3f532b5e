//! What one real broker cannot do: leaders that move, requests that are refused on demand. Three
//! brokers of librdkafka's mock cluster, in this process; the faults of a real broker are in
//! `broker_faults`.

use crate::support::{Bench, expected, wait_for};
use millstream::actors::generator::{GeneratorParts, GeneratorTasks};
use rdkafka::{
    mocking::MockCluster,
    types::{RDKafkaApiKey, RDKafkaRespErr as Code},
};
use std::sync::Arc;

const BROKERS: i32 = 3;
/// Times that every leader moves.
const ROUNDS: i32 = 8;

#[test]
fn leaders_that_move_and_offset_commits_that_are_refused_have_no_effect() {
    let cluster = MockCluster::new(BROKERS).unwrap();
    let mut bench = Bench::new(&cluster.bootstrap_servers());
    // The mock cluster keeps 5 MiB a partition, which this rate does not fill.
    bench.config.generator.rate = 2_000.0;
    bench.config.batch.max_rows = 250;
    bench.config.kafka.create_topics = false;
    let topics: Vec<String> = bench.config.streams.iter().map(|s| s.topic.clone()).collect();
    for topic in &topics {
        cluster.create_topic(topic, bench.config.kafka.partitions, BROKERS).unwrap();
    }
    let _redis = bench.redis();
    let tasks = GeneratorTasks::start(&GeneratorParts {
        config: Arc::new(bench.config.clone()),
        gate: None,
        keep_ids: true,
        count: None,
        hold: false,
        own_grpc: None,
        stop_patience: GeneratorParts::STOP_PATIENCE,
    })
    .unwrap();
    let node = bench.node("process,store");
    wait_for("load", || (node.committed_events() > 1_000).then_some(()));
    for round in 0..ROUNDS {
        for topic in &topics {
            for partition in 0..bench.config.kafka.partitions {
                let leader = (round + partition) % BROKERS + 1;
                cluster.partition_leader(topic, partition, Some(leader)).unwrap();
            }
        }
        // The next commits are refused, each for another reason.
        cluster.request_errors(
            RDKafkaApiKey::OffsetCommit,
            &[
                Code::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
                Code::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS,
                Code::RD_KAFKA_RESP_ERR_OFFSET_METADATA_TOO_LARGE,
                Code::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED,
                Code::RD_KAFKA_RESP_ERR_INVALID_COMMIT_OFFSET_SIZE,
            ],
        );
        let before = node.positions();
        wait_for("every partition to move on", || {
            let now = node.positions();
            before.iter().all(|(source, next)| now[source] > *next).then_some(())
        });
    }
    cluster.clear_request_errors(RDKafkaApiKey::OffsetCommit);
    tasks.stop();
    node.verify();
    node.stop_well();
    bench.judge_well(&expected(&tasks));
}
