//! What the store does when it cannot know what became of a transaction, and when an entry kills it.

use crate::{
    store_faults::two_nodes,
    support::{NodeProcess, broker, expected, millstream, wait_for},
};

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
