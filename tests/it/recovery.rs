//! How soon after an actor's death everything is durable again.

use crate::support::{Bench, Slot, broker, expected};
use millstream::node::{Node, NodeOptions, NodeView, Role};
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer},
};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// The promise.
const WITHIN: Duration = Duration::from_secs(1);
/// Kills of each actor.
const ROUNDS: usize = 5;

/// What the topics hold now, by topic and partition.
fn high_watermarks(consumer: &BaseConsumer, view: &NodeView) -> Vec<(String, i32, i64)> {
    let mut all = Vec::new();
    for stream in &view.config.streams {
        for partition in 0..view.config.kafka.partitions {
            let (_, high) = consumer
                .fetch_watermarks(&stream.topic, partition, Duration::from_secs(10))
                .unwrap();
            all.push((stream.topic.clone(), partition, high));
        }
    }
    all
}

/// Waits for load: every partition flows, so that the workers of every stream have started.
async fn flowing(view: &NodeView) {
    let until = Instant::now() + Duration::from_secs(60);
    for stream in &view.config.streams {
        for partition in 0..view.config.kafka.partitions {
            let durable = || view.acknowledged.get(&stream.topic, partition).unwrap_or(0);
            while durable() < 100 {
                assert!(Instant::now() < until, "{}/{partition} does not flow", stream.topic);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// From the kill of `actor` until DuckDB has acknowledged all that the topics held just then.
async fn time_to_recover(node: &mut Node, consumer: &BaseConsumer, actor: &str) -> Duration {
    tracing::info!(actor, "kill");
    assert!(node.view.registry.kill(actor));
    let killed_at = Instant::now();
    let wanted = high_watermarks(consumer, &node.view);
    loop {
        let acknowledged = &node.view.acknowledged;
        let behind = |(topic, partition, high): &&(String, i32, i64)| {
            acknowledged.get(topic, *partition).unwrap_or(0) < *high
        };
        let Some(first) = wanted.iter().find(behind) else { return killed_at.elapsed() };
        assert!(
            killed_at.elapsed() < Duration::from_secs(60),
            "{actor} was killed, and {first:?} is not durable: {:?}",
            acknowledged.get(&first.0, first.1)
        );
        tokio::select! {
            fatal = node.fatal() => panic!("{actor} was killed: {fatal}"),
            () = tokio::time::sleep(Duration::from_millis(2)) => {}
        }
    }
}

#[test]
fn any_actor_killed_is_durable_again_within_a_second() {
    let Some(brokers) = broker("recovery: within a second") else { return };
    let _alone = Slot::alone();
    if std::env::var_os("RUST_LOG").is_some() {
        // The node is in this process: without a subscriber it says nothing.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    let mut bench = Bench::new(&brokers);
    bench.config.generator.rate = 4_000.0;
    bench.config.batch.max_rows = 500;
    bench.config.node.http = ([127, 0, 0, 1], 0).into();
    bench.config.node.grpc = ([127, 0, 0, 1], 0).into();
    bench.create_topics();
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", &brokers).create().unwrap();
    let mut options = NodeOptions::new([Role::Generate, Role::Process, Role::Store]);
    options.keep_ids = true;
    options.worker_program = Some(env!("CARGO_BIN_EXE_millstream").into());
    let config = bench.config.clone();
    let (times, expected) = actix::System::new().block_on(async move {
        let mut node = Node::start(config, options).await.unwrap();
        node.wait_ready(Duration::from_secs(60)).await.unwrap();
        let actors: Vec<&'static str> = node.view.registry.status().into_keys().collect();
        let mut times: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
        flowing(&node.view).await;
        for _ in 0..ROUNDS {
            for actor in &actors {
                let took = time_to_recover(&mut node, &consumer, actor).await;
                times.entry(actor).or_default().push(took);
            }
        }
        let generator = node.view.generator.clone().unwrap();
        node.stop_generator().await.unwrap();
        node.view.wait_caught_up(Duration::from_secs(60)).await.unwrap();
        node.stop().await.unwrap();
        (times, expected(&generator))
    });
    bench.judge_well(&expected);
    let mut late = Vec::new();
    for (actor, mut took) in times {
        took.sort_unstable();
        let (median, max) = (took[took.len() / 2], took[took.len() - 1]);
        println!("{actor:26} p50 {median:8.1?}  max {max:8.1?}");
        if max >= WITHIN {
            late.push(format!("{actor}: {took:.1?}"));
        }
    }
    assert!(late.is_empty(), "not durable again within {WITHIN:?}: {late:#?}");
}
