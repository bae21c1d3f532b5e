//! What the store does when it cannot know what became of a transaction, and when an entry kills it.

use crate::{
    store_faults::two_nodes,
    support::{NodeProcess, broker, expected, left_out, millstream, wait_for},
};
use millstream::chaos::disk::{FailingDisk, FlushFault};
use std::time::Duration;

#[test]
fn a_commit_whose_outcome_is_unknown_is_believed_from_the_file() {
    let Some(brokers) = broker("store_recovery: unknown commit") else { return };
    let mut bench = two_nodes(&brokers);
    let _redis = bench.redis();
    let tasks = bench.generate();
    // Twice nothing happened, twice everything had, and once each in a row.
    let failpoints = "commit_fails=12*off->2*return->10*off->1*return->off;\
                      commit_succeeds_unseen=16*off->2*return->5*off->1*return->off";
    let mut store = NodeProcess::spawned(&bench, "store", failpoints);
    store.learn_addresses();
    let process = bench.node("process");
    let unknown = || store.metric("millstream_stage_errors_total", &["duckdb_writer", "commit"]);
    wait_for("every commit that fails", || (unknown() >= 6.0).then_some(()));
    let before = store.committed_events();
    wait_for("the store to go on", || (store.committed_events() > before + 10_000).then_some(()));
    assert_eq!(store.status()["actors"]["duckdb_writer"]["generation"], 1, "no restart was needed");
    tasks.stop();
    process.verify();
    process.stop_well();
    store.stop_well();
    bench.judge_well(&expected(&tasks));
}

#[test]
fn an_entry_that_kills_the_store_three_times_is_put_aside_and_its_source_halts() {
    let Some(brokers) = broker("store_recovery: quarantine") else { return };
    let mut bench = two_nodes(&brokers);
    // One source, so that it is the entry at fault alone that halts.
    bench.config.streams.truncate(1);
    bench.config.kafka.partitions = 1;
    let redis = bench.redis();
    let tasks = bench.generate();
    let process = bench.node("process");
    // The first life dies over a group of entries, the next ones over the first of them alone.
    let first = NodeProcess::spawned(&bench, "store", "g_begun=6*off->return");
    first.ends_killed();
    for _ in 0..2 {
        NodeProcess::spawned(&bench, "store", "g_begun=return").ends_killed();
    }
    let store = bench.node("store");
    wait_for("the source to halt", || (!process.partitions("halted").is_empty()).then_some(()));
    let halted = process.partitions("halted");
    let status = process.status();
    let reason = status["partitions"][&halted[0]]["reason"].as_str().unwrap();
    assert!(reason.contains("the store died again and again"), "{reason}");
    let key = format!("{}:quarantine", bench.config.node.namespace);
    let mut connection = redis::Client::open(redis.url()).unwrap().get_connection().unwrap();
    let kept: i64 = redis::cmd("XLEN").arg(&key).query(&mut connection).unwrap();
    assert!(kept >= 1, "nothing is thrown away");

    // A new life of the store does not forget it; an operator's word does.
    store.stop_well();
    let store = bench.node("store");
    assert!(!process.partitions("halted").is_empty());
    let http = process.http.to_string();
    let mut adopt = millstream();
    adopt.args(["sources", "adopt", &halted[0], "--at", "here", "--http", &http]);
    let output = adopt.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    tasks.stop();
    process.verify();
    process.stop_well();
    store.stop_well();
    bench.judge_well(&expected(&tasks));
}

/// The group's offsets in Kafka and the values in Redis are ahead of a database that was restored.
#[test]
fn a_database_restored_from_a_copy_is_read_on_from_its_own_positions() {
    let Some(brokers) = broker("store_recovery: restored") else { return };
    let mut bench = two_nodes(&brokers);
    let _redis = bench.redis();
    let tasks = bench.generate();
    let node = bench.node("process,store");
    wait_for("load", || (node.committed_events() > 5_000).then_some(()));
    node.stop_well();
    let copy = bench.dir.path().join("copy.duckdb");
    std::fs::copy(bench.database(), &copy).unwrap();
    let at_the_copy = bench.positions();

    let node = bench.node("process,store");
    wait_for("every source to be ahead", || {
        let now = node.positions();
        at_the_copy.iter().all(|(source, next)| now[source] > next + 500).then_some(())
    });
    node.stop_well();

    std::fs::copy(&copy, bench.database()).unwrap();
    assert_eq!(bench.positions(), at_the_copy);
    let node = bench.node("process,store");
    tasks.stop();
    node.verify();
    node.stop_well();
    bench.judge_well(&expected(&tasks));
}

/// `None` where processes may not be traced, which is said.
fn bad_disk(test: &str, store: &NodeProcess, fault: FlushFault) -> Option<FailingDisk> {
    FailingDisk::attach(store.pid(), fault)
        .map_err(|why| {
            assert!(!why.contains("is gone"), "{why}");
            left_out(test, &why);
        })
        .ok()
}

#[test]
fn a_disk_that_fails_under_duckdb_acknowledges_nothing_that_failed_and_is_gone_on_from() {
    let test = "store_recovery: EIO";
    let Some(brokers) = broker(test) else { return };
    let mut bench = two_nodes(&brokers);
    let _redis = bench.redis();
    let tasks = bench.generate();
    let (mut store, process) = (bench.node("store"), bench.node("process"));
    wait_for("load", || (store.committed_events() > 5_000).then_some(()));
    let Some(failing) = bad_disk(test, &store, FlushFault::Error("EIO")) else { return };
    let errors = "millstream_stage_errors_total";
    wait_for("a write to fail", || {
        let failed = store.metric_if_up(errors, &["duckdb_writer"]).is_some_and(|n| n >= 1.0);
        (failed || store.ended().is_some()).then_some(())
    });
    // A store that cannot open its file again ends, and whoever runs it starts it again.
    drop(failing);
    if store.ended().is_some() {
        eprintln!("the store ended and is started again");
        store = bench.node("store");
    }
    let before = store.committed_events();
    wait_for("the store to go on", || (store.committed_events() > before + 5_000).then_some(()));
    tasks.stop();
    process.verify();
    process.stop_well();
    store.stop_well();
    bench.judge_well(&expected(&tasks));
}

#[test]
fn a_store_killed_in_an_fsync_and_in_a_checkpoint_loses_nothing() {
    let test = "store_recovery: killed in fsync";
    let Some(brokers) = broker(test) else { return };
    let mut bench = two_nodes(&brokers);
    let _redis = bench.redis();
    let tasks = bench.generate();
    let process = bench.node("process");
    for checkpoint in [false, true] {
        let store = bench.node("store");
        wait_for("load", || (store.committed_events() > 5_000).then_some(()));
        // Far longer than until the kill.
        let delay = FlushFault::Delay(Duration::from_secs(5));
        let Some(slow) = bad_disk(test, &store, delay) else { return };
        if checkpoint {
            // Closing the file writes its log into it.
            store.ask_to_stop();
        }
        let wal = bench.database().with_extension("duckdb.wal");
        let size = || std::fs::metadata(&wal).map_or(0, |m| m.len());
        let (before, since) = (size(), std::time::Instant::now());
        wait_for("a write before its flush", || {
            let written = size() != before || since.elapsed() > Duration::from_secs(3);
            written.then_some(())
        });
        store.kill();
        drop(slow);
    }
    let store = bench.node("store");
    tasks.stop();
    process.verify();
    process.stop_well();
    store.stop_well();
    bench.judge_well(&expected(&tasks));
}
