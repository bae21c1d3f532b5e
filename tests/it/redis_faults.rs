//! Redis dies, hangs, forgets: the queue and the online store are only a way; nothing is lost, and
//! the online values are the newest again.

use crate::support::{Bench, NodeProcess, RedisServer, Watch, broker, expected, wait_for};

/// Under load, in mid-run, Redis gets `fault`; afterwards events flow again and everything is as
/// if nothing had been.
fn redis_suffers(test: &str, fault: impl FnOnce(&RedisServer, &NodeProcess)) {
    let Some(brokers) = broker(test) else { return };
    let mut bench = Bench::new(&brokers);
    bench.config.generator.rate = 5_000.0;
    bench.config.batch.max_rows = 500;
    let redis = bench.redis();
    let tasks = bench.generate();
    let watch = Watch::start(&bench);
    let node = bench.node("process,store");
    watch.ask(&node);
    wait_for("load", || (node.committed_events() > 15_000).then_some(()));
    fault(&redis, &node);
    let before = node.committed_events();
    wait_for("events to flow again", || (node.committed_events() > before + 10_000).then_some(()));
    tasks.stop();
    node.verify();
    assert!(watch.end() > 20, "offsets were hardly ever committed");
    node.stop_well();
    bench.judge_well(&expected(&tasks));
}

#[test]
fn redis_emptied_by_flushall_in_mid_run_loses_nothing_and_is_filled_again() {
    redis_suffers("redis_faults: FLUSHALL", |redis, _| {
        let () = redis::cmd("FLUSHALL").query(&mut redis.connection()).unwrap();
    });
}

#[test]
fn redis_killed_9_and_started_again_on_its_file_loses_nothing() {
    redis_suffers("redis_faults: kill -9", |redis, _| {
        redis.kill();
        redis.start_again();
    });
}

#[test]
fn redis_killed_9_and_started_again_empty_loses_nothing_and_is_filled_again() {
    redis_suffers("redis_faults: empty", |redis, _| {
        redis.kill();
        redis.delete_files();
        redis.start_again();
    });
}

#[test]
fn redis_that_hangs_is_waited_for() {
    redis_suffers("redis_faults: hangs", |redis, node| {
        let frozen = redis.freeze();
        let before = node.committed_events();
        // Longer than the rest takes to come to a stand, shorter than a session.
        std::thread::park_timeout(std::time::Duration::from_secs(5));
        assert!(node.committed_events() < before + 10_000, "without Redis nothing is stored");
        frozen.thaw();
    });
}

#[test]
fn redis_that_has_no_memory_left_is_waited_for() {
    redis_suffers("redis_faults: out of memory", |redis, node| {
        let set = |bytes: &str| {
            let mut config = redis::cmd("CONFIG");
            config.arg("SET").arg("maxmemory").arg(bytes);
            let () = config.query(&mut redis.connection()).unwrap();
        };
        set("1mb");
        let errors = "millstream_stage_errors_total";
        wait_for("a write to be refused", || {
            (node.metric(errors, &["redis_queue\"", "redis"]) >= 1.0).then_some(())
        });
        set("0");
    });
}

#[test]
fn redis_that_is_slow_slows_everything_and_loses_nothing() {
    redis_suffers("redis_faults: slow", |redis, _| {
        let mut connection = redis.connection();
        // Two thirds of the time it answers nobody.
        for _ in 0..30 {
            let mut pause = redis::cmd("CLIENT");
            let () = pause.arg("PAUSE").arg(100).arg("ALL").query(&mut connection).unwrap();
            std::thread::park_timeout(std::time::Duration::from_millis(150));
        }
    });
}
