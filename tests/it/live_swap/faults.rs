//! Versions that turn out bad after their trial, and nodes that die in the middle of a swap.

use super::{
    bench, deploy, file, history, save, script_of, stamped, version_of, wait_decided, wait_running,
};
use crate::support::{Bench, NodeProcess, Slot, broker, expected, wait_for};
use millstream::chaos::processes::{fork_servers_of, signal};
use serde_json::Value;
use std::time::{Duration, Instant};

/// A version that does as `then` says once a file is there: not in its trial.
fn gated(bench: &Bench, version: u32, then: &str) -> (String, std::path::PathBuf) {
    let gate = bench.dir.path().join(format!("gate-{version}"));
    (stamped(version, &format!("if os.path.exists({gate:?}): {then}")), gate)
}

fn dead_by_script(node: &NodeProcess) -> i64 {
    let sql = "SELECT count(*) AS n FROM dead_letters WHERE stage = 'transform'";
    node.query(sql)[0]["n"].as_i64().unwrap()
}

#[test]
fn a_trial_whose_fork_server_dies_is_made_again_and_no_version_is_refused_for_that() {
    let Some(brokers) = broker("live_swap: no fork server") else { return };
    let mut bench = bench(&brokers);
    let redis = bench.redis();
    bench.config.generator.rate = 500.0;
    let node = bench.node("process,store");
    let tasks = bench.generate();
    wait_for("the load to flow", || (node.committed_events() > 500).then_some(()));
    // Its loading ends once this test has done its part, so the trial is in the middle of it then.
    let (began, goes_on) = (bench.dir.path().join("began"), bench.dir.path().join("goes-on"));
    let text = format!(
        "import pathlib, time\npathlib.Path({began:?}).touch()\nwhile not pathlib.Path({goes_on:?}).exists(): time.sleep(0.01)\n{}",
        stamped(1, "pass")
    );
    std::thread::scope(|scope| {
        let deploying = scope.spawn(|| deploy(&node, "features", &text));
        wait_for("the trial to begin", || began.exists().then_some(()));
        let killed = fork_servers_of(node.pid());
        for pid in &killed {
            signal(*pid, libc::SIGKILL).unwrap();
        }
        std::fs::write(&goes_on, "").unwrap();
        assert_eq!(killed.len(), 1);
        let decided = deploying.join().unwrap();
        assert_eq!(decided["action"], "deployed", "{decided}");
    });
    let before = node.committed_events();
    wait_for("the flow", || (node.committed_events() > before + 500).then_some(()));
    tasks.stop();
    node.verify();
    node.stop_well();
    bench.judge_well(&expected(&tasks));
    drop(redis);
}

#[test]
fn a_version_that_passes_its_trial_and_fails_on_live_data_is_rolled_back() {
    let Some(brokers) = broker("live_swap: rolled back") else { return };
    let _alone = Slot::alone();
    let mut bench = bench(&brokers);
    let redis = bench.redis();
    bench.config.generator.rate = 5_000.0;
    let node = bench.node("process,store");
    let tasks = bench.generate();
    wait_for("the load to flow", || (node.committed_events() > 5_000).then_some(()));
    let good = script_of(&node, "features")["version"].as_str().unwrap().to_owned();
    let kinds = [
        (1, "raise ValueError('all of them')", "all of them"),
        (2, "raise ValueError('a few') if hash(event['entity_id']) % 50 == 0 else 0", "a few"),
        (3, "os._exit(7)", "worker_exit:7"),
    ];
    for (version, then, word) in kinds {
        let (text, gate) = gated(&bench, version, then);
        save(&bench, "features", &text);
        let bad = version_of(&bench, "features", &text);
        assert_eq!(wait_decided(&node, "features", &bad)["action"], "deployed");
        wait_for("a batch under it", || script_of(&node, "features")["swap_s"].as_f64());
        std::fs::write(&gate, "").unwrap();
        let since = Instant::now();
        wait_running(&node, "features", &good);
        let took = since.elapsed();
        println!("{then}: rolled back after {took:?}");
        assert!(took < Duration::from_secs(5), "{then}: {took:?}");
        let event = history(&node, "features").pop().unwrap();
        assert_eq!(
            (event["action"].as_str(), event["from"].as_str()),
            (Some("rolled_back"), Some(&*bad))
        );
        let reason = event["reason"].as_str().unwrap();
        assert!(reason.contains(word) && reason.contains("the version before it"), "{reason}");
        let before = node.committed_events();
        wait_for("the flow", || (node.committed_events() > before + 5_000).then_some(()));
    }
    assert!((node.metric("millstream_script_swaps_total", &["rolled_back"]) - 3.0).abs() < 0.5);
    tasks.stop();
    node.verify();
    assert_eq!(dead_by_script(&node), 0, "nothing is dead for the code's fault");
    assert_eq!(node.status()["python"]["broken"], serde_json::json!({}));
    node.stop_well();
    bench.judge_well(&expected(&tasks));
    drop(redis);
}

/// Sends `n` events of the stream `features` whose entities begin with `prefix`.
fn send(bench: &Bench, prefix: &str, n: usize) {
    let event = |i| {
        crate::support::Sent {
        payload: Some(
            format!(
                r#"{{"entity_id":"{prefix}{i}","feature_name":"f","value":1,"validated_at":"2024-05-01T10:00:00Z"}}"#
            )
            .into_bytes(),
        ),
        ..crate::support::Sent::default()
    }
    };
    let events: Vec<_> = (0..n).map(event).collect();
    crate::support::produce(&bench.config.kafka.brokers, bench.topic("features"), &events);
}

/// What fails on odd entities.
const ODD: &str = "if event['entity_id'].startswith('odd'): raise ValueError('odd')";

/// A node with this first version, which has had 2,000 even events.
fn node_with(bench: &mut Bench, first: &str) -> NodeProcess {
    bench.config.streams.truncate(1);
    std::fs::write(file(bench, "features"), first).unwrap();
    let node = bench.node("process,store");
    send(bench, "even", 2_000);
    wait_for("a batch", || (node.committed_events() == 2_000).then_some(()));
    node
}

#[test]
fn rows_that_the_version_before_fails_on_as_well_are_data_and_dead() {
    let Some(brokers) = broker("live_swap: the data's fault") else { return };
    let mut bench = bench(&brokers);
    let node = node_with(&mut bench, &stamped(1, ODD));
    let second = stamped(2, ODD);
    assert_eq!(deploy(&node, "features", &second)["action"], "deployed");
    // Nearly all of them: more than a fifth, in the first minute of a version.
    send(&bench, "odd", 3_000);
    send(&bench, "even", 100);
    node.verify();
    assert_eq!(dead_by_script(&node), 3_000);
    let running = script_of(&node, "features")["version"].clone();
    assert_eq!(running, version_of(&bench, "features", &second), "it is not its fault");
    let rows = node.query("SELECT count(*) AS n FROM features_table")[0]["n"].clone();
    assert_eq!(rows, 2_100);
    node.stop_well();
    bench.judge_books();
}

#[test]
fn two_bad_versions_in_a_row_are_held_against_the_good_one_before_them() {
    let Some(brokers) = broker("live_swap: two bad versions") else { return };
    let mut bench = bench(&brokers);
    let good = stamped(1, "pass");
    let node = node_with(&mut bench, &good);
    // The same mistake in both, which no batch has shown yet.
    for version in [2, 3] {
        assert_eq!(deploy(&node, "features", &stamped(version, ODD))["action"], "deployed");
    }
    send(&bench, "odd", 700);
    node.verify();
    assert_eq!(dead_by_script(&node), 0);
    let running = script_of(&node, "features")["version"].clone();
    assert_eq!(running, version_of(&bench, "features", &good));
    let rows = node.query("SELECT count(*) AS n FROM features_table")[0]["n"].clone();
    assert_eq!(rows, 2_700);
    node.stop_well();
    bench.judge_books();
}

#[test]
fn a_node_killed_in_the_middle_of_a_swap_runs_one_version_afterwards() {
    let Some(brokers) = broker("live_swap: killed in a swap") else { return };
    let mut bench = bench(&brokers);
    let redis = bench.redis();
    bench.config.generator.rate = 4_000.0;
    bench.short_sessions();
    bench.lasting_member("the-node");
    let tasks = bench.generate();
    let node = bench.node("process,store");
    wait_for("the load to flow", || (node.committed_events() > 5_000).then_some(()));
    let mut running = script_of(&node, "features")["version"].as_str().unwrap().to_owned();
    node.stop_well();
    for (version, point) in [(1, "s_tried"), (2, "s_noted"), (3, "s_tried"), (4, "s_noted")] {
        let mut node = NodeProcess::spawned(&bench, "process,store", &format!("{point}=return"));
        node.learn_addresses();
        wait_for("the script", || {
            (script_of(&node, "features")["version"] == running).then_some(())
        });
        let text = stamped(version, "pass");
        save(&bench, "features", &text);
        node.ends_killed();
        redis.forget_leases(&bench.config.node.namespace);

        // It was either written down or not; the file is a new version in the latter case only.
        let next = version_of(&bench, "features", &text);
        let node = bench.node("process,store");
        wait_running(&node, "features", &next);
        let before = node.committed_events();
        wait_for("a batch under it", || (node.committed_events() > before + 4_000).then_some(()));
        let events = history(&node, "features");
        let of_it: Vec<&Value> = events.iter().filter(|e| e["version"] == next).collect();
        assert_eq!(of_it.len(), 1, "{events:#?}");
        assert_eq!(of_it[0]["from"], running);
        running = next;
        if version == 4 {
            tasks.stop();
            node.verify();
        }
        node.stop_well();
    }
    bench.judge_well(&expected(&tasks));
    drop(redis);
}
