//! Several `process` nodes share the partitions: whoever dies, sleeps, comes or goes, each position
//! has one owner and one effect.

use crate::support::{Bench, NodeProcess, Watch, broker, expected, wait_for};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::time::{Duration, Instant};

/// Partitions of both streams.
const PARTITIONS: usize = 8;

fn bench_of_many(brokers: &str) -> Bench {
    let mut bench = Bench::new(brokers);
    bench.config.generator.rate = 5_000.0;
    bench.config.batch.max_rows = 250;
    // Fewer than the nodes and their streams could use: they must share.
    bench.config.python.max_workers = 3;
    bench.short_sessions();
    bench
}

/// Waits until these nodes read all partitions between them, each at least some.
fn shared_by(nodes: &[&NodeProcess]) {
    wait_for("the partitions to be shared", || {
        let read: Vec<usize> = nodes.iter().map(|n| n.partitions("reading").len()).collect();
        (read.iter().sum::<usize>() == PARTITIONS && !read.contains(&0)).then_some(())
    });
}

#[test]
fn a_process_node_killed_9_is_replaced_by_its_peer_at_next_pos() {
    let Some(brokers) = broker("consumer_group: killed peer") else { return };
    let mut bench = bench_of_many(&brokers);
    let _redis = bench.redis();
    let tasks = bench.generate();
    let watch = Watch::start(&bench);
    let store = bench.node("store");
    let (one, two) = (bench.node("process"), bench.node("process"));
    watch.ask(&two);
    shared_by(&[&one, &two]);
    wait_for("load", || (store.committed_events() > 15_000).then_some(()));
    let ours = one.partitions("reading");
    one.kill();
    let at_the_kill = two.positions();
    wait_for("the peer to read all", || {
        (two.partitions("reading").len() == PARTITIONS).then_some(())
    });
    wait_for("the taken over to move", || {
        let now = two.positions();
        ours.iter().all(|source| now[source] > at_the_kill[source]).then_some(())
    });
    tasks.stop();
    two.verify();
    assert!(watch.end() > 20);
    two.stop_well();
    store.stop_well();
    bench.judge_well(&expected(&tasks));
}

#[test]
fn a_process_node_stopped_past_its_session_is_fenced_when_it_goes_on() {
    let Some(brokers) = broker("consumer_group: fenced") else { return };
    let mut bench = bench_of_many(&brokers);
    let _redis = bench.redis();
    let tasks = bench.generate();
    let watch = Watch::start(&bench);
    let store = bench.node("store");
    let sleeper = bench.node("process");
    wait_for("load", || (store.committed_events() > 15_000).then_some(()));
    let fenced = || store.metric("millstream_ledger_rejects_total", &["fenced"]);
    // A source that was opened twice because an answer was late has fenced its own writes.
    let fenced_before = fenced();

    // With the store asleep the sleeper's windows fill: batches whose online values are written
    // wait to be queued. They are what it will write too late.
    let asleep = store.freeze();
    let waiting = || sleeper.metric("millstream_stage_queue_depth", &["stage=\"redis_queue\""]);
    wait_for("its windows to be full", || (waiting() >= 60.0).then_some(()));
    let frozen = sleeper.freeze();
    asleep.thaw();
    let heir = bench.node("process");
    watch.ask(&heir);
    wait_for("its peer to read all", || {
        (heir.partitions("reading").len() == PARTITIONS).then_some(())
    });
    let before = store.committed_events();
    wait_for("its peer to go on", || (store.committed_events() > before + 5_000).then_some(()));

    frozen.thaw();
    wait_for("the late writes to be fenced", || (fenced() > fenced_before).then_some(()));
    shared_by(&[&sleeper, &heir]);
    let before = store.committed_events();
    wait_for("both to go on", || (store.committed_events() > before + 5_000).then_some(()));
    tasks.stop();
    heir.verify();
    assert!(watch.end() > 20);
    for node in [sleeper, heir, store] {
        node.stop_well();
    }
    bench.judge_well(&expected(&tasks));
}

#[test]
fn a_rebalance_storm_has_no_effect_on_the_result() {
    let Some(brokers) = broker("consumer_group: storm") else { return };
    let mut bench = bench_of_many(&brokers);
    // The leases of those that were killed count until they end.
    bench.config.python.max_workers = 8;
    let _redis = bench.redis();
    let tasks = bench.generate();
    let watch = Watch::start(&bench);
    let store = bench.node("store");
    watch.ask(&store);
    let mut nodes = vec![bench.node("process"), bench.node("process")];
    wait_for("load", || (store.committed_events() > 2_000).then_some(()));
    let (mut chance, storm, mut turns) = (SmallRng::seed_from_u64(6), Instant::now(), 0);
    let mut leaving = Vec::new();
    while storm.elapsed() < Duration::from_secs(20) {
        nodes.push(bench.node("process"));
        // Somebody leaves, in order or not, while the last rebalance may still be going on.
        let gone = nodes.remove(chance.random_range(0..nodes.len()));
        if chance.random_bool(0.5) {
            gone.kill();
        } else {
            gone.ask_to_stop();
            leaving.push(gone);
        }
        turns += 1;
        // One turn a second: what the storm is.
        let next = storm + Duration::from_secs(turns);
        std::thread::park_timeout(next.saturating_duration_since(Instant::now()));
    }
    eprintln!("{turns} nodes came and went");
    assert!(turns >= 10);
    tasks.stop();
    let last = nodes.pop().unwrap();
    for node in nodes.into_iter().chain(leaving) {
        node.stop_well();
    }
    last.verify();
    assert!(watch.end() > 20);
    last.stop_well();
    store.stop_well();
    bench.judge_well(&expected(&tasks));
}
