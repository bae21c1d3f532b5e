//! Never more workers than the cap, over all nodes, whatever happens to nodes and to Redis.

use crate::support::{Bench, NodeProcess, Watch, broker, expected, wait_for};
use millstream::{
    chaos::processes::{Counted, WorkerCount, workers_of},
    queue::Keys,
};
use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

const CAP: usize = 3;
/// How long the load lasts.
const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn two_nodes_never_have_more_workers_than_the_cap_and_both_have_some() {
    let Some(brokers) = broker("cap: two nodes") else { return };
    let mut bench = Bench::new(&brokers);
    bench.config.generator.rate = 4_000.0;
    bench.config.batch.max_rows = 250;
    bench.config.python.max_workers = CAP as u32;
    // Workers come and go.
    bench.config.python.idle_stop_s = 1.0;
    bench.short_sessions();
    let redis = bench.redis();
    let tasks = bench.generate();
    let watch = Watch::start(&bench);
    let counter = WorkerCount::start(CAP).unwrap();
    let store = bench.node("store");
    let start = || {
        let node = bench.node("process");
        counter.watch(node.pid());
        node
    };
    let (one, mut two) = (start(), start());
    watch.ask(&one);
    let begun = Instant::now();
    let until = |part: f64| begun + MINUTE.mul_f64(part);
    let both_work = |one: &NodeProcess, two: &NodeProcess| {
        wait_for("both nodes to have a worker", || {
            let has = |node: &NodeProcess| !workers_of(node.pid()).is_empty();
            (has(one) && has(two)).then_some(())
        });
    };
    both_work(&one, &two);
    sleep_until(until(0.25));
    two.kill();
    two = start();
    both_work(&one, &two);
    sleep_until(until(0.5));
    let () = redis::cmd("FLUSHALL").query(&mut redis.connection()).unwrap();
    both_work(&one, &two);
    let before = one.positions();
    assert_eq!(before.len(), 8);
    sleep_until(until(1.0));
    let now = one.positions();
    for (source, next) in before {
        assert!(
            now[&source] > next + 100,
            "{source} starves: {next}, then {}; {:?}",
            now[&source],
            [&one, &two].map(|node| node.status()["partitions"][&source].clone())
        );
    }
    tasks.stop();
    one.verify();
    watch.end();
    for node in [one, two, store] {
        node.stop_well();
    }
    let Counted { most, samples, violations, first_violations } = counter.end();
    assert_eq!(violations, 0, "{most} workers at once, of {CAP} allowed: {first_violations:?}");
    assert_eq!(most, CAP, "the cap was reached in {samples} samples");
    assert!(samples > 2_000, "{samples} samples");
    bench.judge_well(&expected(&tasks));
}

/// Where other nodes have all permits but one, streams take turns with it.
#[test]
fn a_node_that_gets_one_permit_of_three_serves_every_stream_with_it() {
    let Some(brokers) = broker("cap: one permit of three") else { return };
    let mut bench = Bench::new(&brokers);
    bench.config.generator.rate = 1_000.0;
    bench.config.python.max_workers = CAP as u32;
    let redis = bench.redis();
    let keys = Keys::new(&bench.config.node.namespace);
    let in_an_hour = chrono::Utc::now().timestamp_millis() + 3_600_000;
    let () = redis::pipe()
        .zadd(keys.permits(), "another/1", in_an_hour)
        .zadd(keys.permits(), "another/2", in_an_hour)
        .set(keys.permits_from(), 0)
        .query(&mut redis.connection())
        .unwrap();
    let tasks = bench.generate();
    let counter = WorkerCount::start(CAP).unwrap();
    let node = bench.node("process,store");
    counter.watch(node.pid());
    let streams = |positions: HashMap<String, i64>| {
        let mut of = BTreeMap::<String, i64>::new();
        for (source, next) in positions {
            *of.entry(source.split('/').next().unwrap().to_owned()).or_default() += next;
        }
        of
    };
    // Each gets its turn, and each gets another.
    let mut before = BTreeMap::new();
    for _ in 0..3 {
        before = wait_for("both streams to get on", || {
            let now = streams(node.positions());
            let on =
                |(stream, next): (&String, &i64)| *next > before.get(stream).unwrap_or(&0) + 100;
            (now.len() == 2 && now.iter().all(on)).then_some(now)
        });
    }
    tasks.stop();
    node.verify();
    node.stop_well();
    assert_eq!(counter.end().most, 1, "the other two are not ours");
    bench.judge_well(&expected(&tasks));
}

fn sleep_until(at: Instant) {
    std::thread::sleep(at.saturating_duration_since(Instant::now()));
}
