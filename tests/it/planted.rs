//! A judge that sees nothing proves nothing: defects are planted in the real program, one at a time,
//! and each must be found by what it breaks.
//!
//! [`millstream::failpoint::DEFECTS`] says which defects there are and when they show.

use crate::support::{
    Bench, CommittedOffsets, NodeProcess, RedisServer, broker, expected, millstream, wait_for,
};
use millstream::{
    chaos::{
        offsets::ahead,
        processes::{WorkerCount, workers_of},
    },
    failpoint::PLANTED,
};

/// A node for each role.
struct Nodes {
    store: NodeProcess,
    process: NodeProcess,
}

impl Nodes {
    /// So many events more become durable.
    fn go_on(&self, events: u64) {
        let before = self.store.committed_events();
        wait_for("events", || (self.store.committed_events() > before + events).then_some(()));
    }
}

/// Batches of a node that wait for the store, on the queue and behind it.
fn waiting(process: &NodeProcess) -> f64 {
    process.metric("millstream_stage_queue_depth", &["stage=\"redis_queue\""])
}

/// With its store stopped, a node's batches pile up.
fn windows_full(process: &NodeProcess) {
    wait_for("its windows to be full", || (waiting(process) >= 60.0).then_some(()));
}

/// Everything that was sent is durable, or taken for it. Whether the books balance is not asked here.
fn settled(node: &NodeProcess) {
    let mut command = millstream();
    command.args(["verify", "--json", "--wait", "100s", "--http", &node.http.to_string()]);
    let output = command.output().unwrap();
    assert!(matches!(output.status.code(), Some(0 | 5)), "{output:?}");
}

/// Under load, with a defect planted in both nodes, `story` happens; afterwards the judge must find
/// that one of these checks does not hold.
fn is_found_by(
    defect: &'static str,
    checks: &[&str],
    story: impl FnOnce(&Bench, &RedisServer, Nodes) -> Nodes,
) {
    let Some(brokers) = broker(&format!("planted: {defect}")) else { return };
    let mut bench = Bench::new(&brokers);
    bench.config.generator.rate = 5_000.0;
    bench.config.batch.max_rows = 500;
    bench.short_sessions();
    bench.planted = defect;
    let redis = bench.redis();
    let tasks = bench.generate();
    let nodes = Nodes { store: bench.node("store"), process: bench.node("process") };
    nodes.go_on(10_000);
    let Nodes { store, process } = story(&bench, &redis, nodes);
    tasks.stop();
    settled(&process);
    process.stop_well();
    store.stop_well();
    let report = bench.judge(&expected(&tasks));
    let broken: Vec<&str> = report.checks.iter().filter(|c| !c.ok).map(|c| c.id.as_str()).collect();
    eprintln!("{defect}: {broken:?}");
    assert!(!report.ok && checks.iter().any(|c| broken.contains(c)), "{defect}: {broken:?}");
}

#[test]
fn an_unknown_defect_ends_a_node_at_its_start() {
    let output = millstream().arg("run").env(PLANTED, "order_lost,sloth").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("sloth") && said.contains("watermark_apart"), "{said}");
}

#[test]
fn bad_rows_that_are_dropped_are_found() {
    let checks = ["nothing_lost", "filtered_as_expected"];
    is_found_by("bad_rows_dropped", &checks, |_, _, nodes| nodes);
}

#[test]
fn an_order_that_is_lost_is_found() {
    is_found_by("order_lost", &["effects_in_order_of_positions"], |_, _, nodes| nodes);
}

#[test]
fn an_online_store_that_takes_whatever_comes_last_is_found() {
    is_found_by("online_unruled", &["online_is_exactly_the_newest"], |_, _, nodes| nodes);
}

#[test]
fn a_watermark_in_a_transaction_of_its_own_is_found() {
    is_found_by("watermark_apart", &["no_duplicates", "nothing_doubled"], |bench, _, nodes| {
        let Nodes { store, process } = nodes;
        store.kill();
        // Where the rows are durable and their watermark is not.
        NodeProcess::spawned(bench, "store", "g_committed=6*off->return").ends_killed();
        let nodes = Nodes { store: bench.node("store"), process };
        nodes.go_on(10_000);
        nodes
    });
}

#[test]
fn a_queue_that_is_trimmed_is_found() {
    is_found_by("queue_trimmed", &["nothing_lost"], |_, _, nodes| {
        let acknowledged = || {
            let status = nodes.process.status();
            let partitions = status["partitions"].as_object().unwrap();
            partitions.values().filter_map(|p| p["acknowledged"].as_i64()).sum::<i64>()
        };
        let frozen = nodes.store.freeze();
        windows_full(&nodes.process);
        let before = acknowledged();
        wait_for("what left the queue to be taken for done", || {
            (acknowledged() > before).then_some(())
        });
        frozen.thaw();
        nodes.go_on(10_000);
        nodes
    });
}

#[test]
fn a_gap_that_is_taken_is_found() {
    let checks = ["nothing_lost", "ledger_contiguous"];
    is_found_by("loose_contiguity", &checks, |_, redis, nodes| {
        let frozen = nodes.store.freeze();
        windows_full(&nodes.process);
        let () = redis::cmd("FLUSHALL").query(&mut redis.connection()).unwrap();
        frozen.thaw();
        nodes.go_on(10_000);
        nodes
    });
}

#[test]
fn a_start_at_the_brokers_offset_is_found() {
    let checks = ["no_duplicates", "nothing_doubled"];
    is_found_by("start_at_committed", &checks, |bench, redis, nodes| {
        let Nodes { store, mut process } = nodes;
        let offsets = CommittedOffsets::new(&bench.config).unwrap();
        // Offsets are committed five times a second: not every death falls behind one.
        for _ in 0..20 {
            process.kill();
            redis.forget_leases(&bench.config.node.namespace);
            let committed = wait_for("the broker's offsets", || offsets.get());
            let positions = store.positions();
            process = bench.node("process");
            let before = store.committed_events();
            wait_for("events", || (store.committed_events() > before + 5_000).then_some(()));
            if positions.iter().any(|(source, next)| committed.get(source) < Some(next)) {
                break;
            }
        }
        Nodes { store, process }
    });
}

#[test]
fn a_former_owner_that_is_believed_is_found() {
    let checks = ["no_duplicates", "nothing_doubled"];
    is_found_by("no_token_check", &checks, |bench, _, nodes| {
        let Nodes { store, process: sleeper } = nodes;
        // What it will write too late: batches that wait for the store.
        let asleep = store.freeze();
        windows_full(&sleeper);
        let frozen = sleeper.freeze();
        asleep.thaw();
        let heir = bench.node("process");
        wait_for("its peer to read all", || (heir.partitions("reading").len() == 8).then_some(()));
        let nodes = Nodes { store, process: heir };
        nodes.go_on(5_000);
        frozen.thaw();
        wait_for("the late writes", || (waiting(&sleeper) < 10.0).then_some(()));
        sleeper.kill();
        nodes
    });
}

#[test]
fn an_offset_that_is_committed_too_early_is_found() {
    for defect in ["commit_before_answer", "answer_before_commit"] {
        let Some(brokers) = broker(&format!("planted: {defect}")) else { return };
        let mut bench = Bench::new(&brokers);
        bench.config.generator.rate = 5_000.0;
        bench.planted = defect;
        let _tasks = bench.generate();
        let node = bench.node("process,store");
        let offsets = CommittedOffsets::new(&bench.config).unwrap();
        wait_for("an offset ahead of DuckDB", || {
            let committed = offsets.get()?;
            (!ahead(&committed, &node.positions()).is_empty()).then_some(())
        });
        node.kill();
    }
}

#[test]
fn more_workers_than_the_cap_are_found() {
    let Some(brokers) = broker("planted: lease_without_quarantine") else { return };
    let mut bench = Bench::new(&brokers);
    bench.config.generator.rate = 2_000.0;
    bench.config.python.max_workers = 2;
    // A stopped node's workers live for most of this.
    bench.config.python.lease_s = 20.0;
    bench.planted = "lease_without_quarantine";
    let redis = bench.redis();
    let _tasks = bench.generate();
    let _store = bench.node("store");
    let (one, two) = (bench.node("process"), bench.node("process"));
    let count = WorkerCount::start(2).unwrap();
    for node in [&one, &two] {
        count.watch(node.pid());
    }
    wait_for("both nodes to have a worker", || {
        let has = |node: &NodeProcess| !workers_of(node.pid()).is_empty();
        (has(&one) && has(&two)).then_some(())
    });
    let _frozen = two.freeze();
    assert_eq!(count.so_far().violations, 0, "nothing has happened yet");
    let () = redis::cmd("FLUSHALL").query(&mut redis.connection()).unwrap();
    wait_for("more workers than the cap", || (count.so_far().violations > 0).then_some(()));
}
