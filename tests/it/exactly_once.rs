//! Exactly once, whatever dies.

use crate::support::{
    Bench, CommittedOffsets, NodeProcess, RedisServer, Watch, broker, expected, wait_for,
};
use millstream::failpoint::CRASH_POINTS;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::time::Instant;

/// Events that every story of deaths below is told over, at least.
const EVENTS: u64 = 200_000;

/// How often a crash point is passed before it strikes, so that each life has done some work: the
/// unit is batches, groups of writes, commits of offsets or opens of a source.
fn passes(point: &str) -> u32 {
    match point.as_bytes()[0] {
        b'a' => 3,
        b'g' | b'i' => 4,
        b'j' => 2,
        _ => 12,
    }
}

/// Whether the point lies in the role `store`.
fn is_of_the_store(point: &str) -> bool {
    point.starts_with(['a', 'g', 'i'])
}

/// A bench for many short lives: one Redis that outlives them, small batches so that a kill has
/// many boundaries to fall on, and one membership of the group.
fn bench_of_short_lives(brokers: &str) -> Bench {
    let mut bench = Bench::new(brokers);
    bench.config.generator.rate = 4_000.0;
    bench.config.batch.max_rows = 250;
    bench.short_sessions();
    bench.lasting_member("the-node");
    bench
}

/// Lives that end at no particular step, but the same in each run of the tests.
fn killed_at_random(bench: &Bench, redis: &RedisServer, watch: &Watch) {
    let mut chance = SmallRng::seed_from_u64(0x6b_696c_6c39);
    for _ in 0..5 {
        let enough = chance.random_range(500..6_000);
        let node = bench.node("process,store");
        watch.ask(&node);
        wait_for("events of this life", || (node.committed_events() > enough).then_some(()));
        node.kill();
        redis.forget_leases(&bench.config.node.namespace);
        watch.look_at_closed(bench);
    }
}

#[test]
fn kill_9_at_every_step_of_the_protocol() {
    let Some(brokers) = broker("exactly_once: kill -9 at every step") else { return };
    let mut bench = bench_of_short_lives(&brokers);
    let redis = bench.redis();
    let tasks = bench.generate();
    let watch = Watch::start(&bench);
    let started = Instant::now();
    let dies_at = |roles: &str, point: &str| {
        let failpoints = format!("{point}={}*off->return", passes(point));
        NodeProcess::spawned(&bench, roles, &failpoints).ends_killed();
        redis.forget_leases(&bench.config.node.namespace);
    };

    // Both roles in one process: everything but Redis dies at once.
    for point in CRASH_POINTS {
        dies_at("process,store", point);
        watch.look_at_closed(&bench);
    }
    eprintln!("one process for both roles: {:?}", started.elapsed());

    // Each role in a process of its own: the store dies alone, then the other side alone. A store
    // sees sources opened only when there is a new owner, so this one's end comes first.
    let (roles_of_store, others): (Vec<&str>, Vec<&str>) =
        CRASH_POINTS.into_iter().partition(|p| is_of_the_store(p));
    let armed = |point: &str| format!("{point}={}*off->return", passes(point));
    let mut store = NodeProcess::spawned(&bench, "store", &armed(roles_of_store[0]));
    let process = bench.node("process");
    watch.ask(&process);
    for next in &roles_of_store[1..] {
        store.ends_killed();
        watch.look_at_closed(&bench);
        store = NodeProcess::spawned(&bench, "store", &armed(next));
    }
    store.ends_killed();
    eprintln!("the store alone: {:?}", started.elapsed());
    let store = bench.node("store");
    watch.ask(&store);
    process.kill();
    redis.forget_leases(&bench.config.node.namespace);
    for point in others {
        dies_at("process", point);
    }
    store.kill();
    watch.look_at_closed(&bench);
    eprintln!("the other side alone: {:?}", started.elapsed());

    killed_at_random(&bench, &redis, &watch);
    eprintln!("at no particular step: {:?}", started.elapsed());

    let node = bench.node("process,store");
    watch.ask(&node);
    wait_for("all the events", || (tasks.tally().acknowledged() >= EVENTS).then_some(()));
    tasks.stop();
    node.verify();
    let samples = watch.end();
    assert!(samples > 100, "offsets were hardly ever committed: {samples}");
    node.stop_well();
    bench.judge_well(&expected(&tasks));
    eprintln!("{} events: {:?}", tasks.tally().acknowledged(), started.elapsed());
}

#[test]
fn kill_9_of_the_node_and_its_redis_in_mid_run() {
    let Some(brokers) = broker("exactly_once: kill -9") else { return };
    let mut bench = bench_of_short_lives(&brokers);
    // The leases of a life that was killed hold up the next one for so long.
    bench.config.python.lease_s = 3.0;
    let tasks = bench.generate();
    let watch = Watch::start(&bench);
    for round in 0..4u64 {
        let node = bench.node("process,store");
        watch.ask(&node);
        // Not at the same moment of its life each time.
        wait_for("events of this life", || {
            (node.committed_events() > 1_500 + 1_900 * round).then_some(())
        });
        node.kill();
        watch.look_at_closed(&bench);
    }
    tasks.stop();
    let node = bench.node("process,store");
    watch.ask(&node);
    node.verify();
    assert!(watch.end() > 20, "offsets were hardly ever committed");
    node.stop_well();
    bench.judge_well(&expected(&tasks));
    // At the end everything is committed, exactly up to where DuckDB is.
    let durable = bench.positions();
    for (source, offset) in CommittedOffsets::new(&bench.config).unwrap().get().unwrap() {
        assert_eq!(offset, durable[&source], "{source}");
    }
}
