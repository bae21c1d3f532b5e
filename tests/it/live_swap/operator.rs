//! What people do with scripts: save, deploy, roll back, pause, reconfigure, restart.

use super::{
    bench, deploy, file, history, post, save, script_of, stamped, version_of, wait_decided,
    wait_running,
};
use crate::support::{Bench, NodeProcess, Sent, broker, produce, wait_for};
use serde_json::{Value, json};

fn events(n: usize) -> Vec<Sent> {
    let event = |i| {
        Sent {
        payload: Some(
            format!(
                r#"{{"entity_id":"e{i}","feature_name":"f","value":{i},"validated_at":"2024-05-01T10:00:00Z"}}"#
            )
            .into_bytes(),
        ),
        ..Sent::default()
    }
    };
    (0..n).map(event).collect()
}

/// The stream `features` alone, with a first version of the test's own that has had 1,000 events.
fn running(bench: &mut Bench, first: &str) -> NodeProcess {
    bench.config.streams.truncate(1);
    std::fs::write(file(bench, "features"), first).unwrap();
    let node = bench.node("process,store");
    produce(&bench.config.kafka.brokers, bench.topic("features"), &events(1_000));
    wait_for("the first events", || (node.committed_events() == 1_000).then_some(()));
    node
}

/// Sends events and waits until they are durable: their stamps, by number.
fn stamps_of_more(bench: &Bench, node: &NodeProcess) -> Vec<f64> {
    let after = node.query("SELECT max(batch_seq) AS n FROM ingest_ledger")[0]["n"].clone();
    produce(&bench.config.kafka.brokers, bench.topic("features"), &events(500));
    node.verify();
    let sql = format!(
        "SELECT DISTINCT epoch(created_at) - epoch(TIMESTAMPTZ '2000-01-01 00:00:00+00') AS stamp
         FROM features_table WHERE batch_seq > {after} ORDER BY 1"
    );
    let rows = node.query(&sql);
    rows.as_array().unwrap().iter().map(|row| row["stamp"].as_f64().unwrap()).collect()
}

#[test]
fn a_version_is_deployed_rolled_back_and_survives_a_restart() {
    let Some(brokers) = broker("live_swap: deploy and roll back") else { return };
    let mut bench = bench(&brokers);
    let texts: Vec<String> = (1..=3).map(|n| stamped(n, "pass")).collect();
    let version = |bench: &Bench, n: usize| version_of(bench, "features", &texts[n - 1]);
    let node = running(&mut bench, &texts[0]);

    // The difference is told: all rows are there, and the stamp is no part of a value.
    let other = texts[1].replace("value=event['value']", "value=event['value'] + 1");
    let decided = deploy(&node, "features", &other);
    let difference = &decided["trial"]["difference"];
    let on = decided["trial"]["events"].as_u64().unwrap();
    assert!(on > 0, "{decided}");
    assert_eq!(
        (&difference["changed"], &difference["added"]),
        (&json!(on), &json!(0)),
        "{decided}"
    );
    assert!(decided["trial"]["after_s"].as_f64().unwrap() > 0.0);
    let example = &difference["examples"][0];
    assert!(example["before"].as_str().unwrap().contains(" at 2024-05-01T10:00:00Z"), "{example}");

    // By name of the one before, and by the beginning of another.
    let (status, back) = post(&node, "rollback", &json!({ "stream": "features" }));
    assert_eq!((status, &back["version"]), (200, &json!(version(&bench, 1))), "{back}");
    assert_eq!(stamps_of_more(&bench, &node), [1.0]);
    assert_eq!(deploy(&node, "features", &texts[1])["action"], "deployed");
    assert_eq!(deploy(&node, "features", &texts[2])["action"], "deployed");
    assert_eq!(stamps_of_more(&bench, &node), [3.0]);
    let to = &version(&bench, 1)[..10];
    let (status, back) = post(&node, "rollback", &json!({ "stream": "features", "to": to }));
    assert_eq!((status, &back["version"]), (200, &json!(version(&bench, 1))), "{back}");
    let (status, why) = post(&node, "rollback", &json!({ "stream": "features", "to": "0000000" }));
    assert_eq!(status, 400, "{why}");
    let (status, why) = post(&node, "deploy", &json!({ "stream": "features", "source": texts[0] }));
    assert!(status == 400 && why["error"].as_str().unwrap().contains("already"), "{why}");

    // The file says 1, and so does what runs; a restart changes neither.
    assert_eq!(deploy(&node, "features", &texts[1])["action"], "deployed");
    node.stop_well();
    let node = bench.node("process,store");
    wait_running(&node, "features", &version(&bench, 2));
    assert_eq!(stamps_of_more(&bench, &node), [2.0], "the file is an earlier version");
    assert_eq!(script_of(&node, "features")["version"], version(&bench, 2));

    // What was saved while no node ran is new.
    node.stop_well();
    save(&bench, "features", &texts[2].replace("pass", "None"));
    let node = bench.node("process,store");
    wait_running(
        &node,
        "features",
        &version_of(&bench, "features", &texts[2].replace("pass", "None")),
    );
    assert_eq!(stamps_of_more(&bench, &node), [3.0]);
    let kept =
        node.query("SELECT count(*) AS n FROM transform_versions WHERE source LIKE '%STAMP%'");
    assert_eq!(kept[0]["n"], 5);
    node.stop_well();
}

#[test]
fn a_helper_module_belongs_to_the_version() {
    let Some(brokers) = broker("live_swap: a helper module") else { return };
    let mut bench = bench(&brokers);
    let text = "import stamps\n".to_owned()
        + &stamped(1, "pass").replace("created_at=STAMP", "created_at=stamps.of()");
    let helper = |n: u32| {
        format!(
            "import datetime\ndef of():\n    return datetime.datetime(2000, 1, 1, 0, 0, {n}, tzinfo=datetime.timezone.utc)\n"
        )
    };
    let folder = bench.config.python.transforms_dir.clone();
    std::fs::write(folder.join("stamps.py"), helper(1)).unwrap();
    let node = running(&mut bench, &text);
    let first = script_of(&node, "features")["version"].clone();
    assert_eq!(stamps_of_more(&bench, &node), [1.0]);

    // In place, as some editors write.
    std::fs::write(folder.join("stamps.py"), helper(2)).unwrap();
    wait_for("another version", || {
        (script_of(&node, "features")["version"] != first).then_some(())
    });
    assert_eq!(stamps_of_more(&bench, &node), [2.0]);
    // A helper that is broken is refused with the script.
    std::fs::write(folder.join("stamps.py"), "raise RuntimeError('half written')\n").unwrap();
    let refused = wait_for("the verdict", || {
        history(&node, "features").into_iter().find(|event| event["action"] == "refused")
    });
    assert!(refused["reason"].as_str().unwrap().contains("half written"), "{refused}");
    let (_, back) = post(&node, "rollback", &json!({ "stream": "features" }));
    assert_eq!(back["version"], first, "{back}");
    assert_eq!(stamps_of_more(&bench, &node), [1.0], "with the helper as it was");
    node.stop_well();
}

#[test]
fn a_paused_stream_waits_and_the_others_do_not() {
    let Some(brokers) = broker("live_swap: paused") else { return };
    let mut bench = bench(&brokers);
    // Less than what will wait.
    bench.config.kafka.max_inflight_bytes = 16 << 20;
    bench.config.batch.max_bytes = 1 << 18;
    std::fs::write(file(&bench, "features"), stamped(1, "pass")).unwrap();
    let node = bench.node("process,store");
    produce(&brokers, bench.topic("features"), &events(1_000));
    wait_for("the first events", || (node.committed_events() == 1_000).then_some(()));
    let (status, paused) =
        post(&node, "pause", &json!({ "stream": "features", "reason": "a look" }));
    assert_eq!((status, &paused["action"]), (200, &json!("paused")), "{paused}");
    wait_for("the pause", || (script_of(&node, "features")["paused"] == "a look").then_some(()));
    assert!(node.metric("millstream_script_paused", &["features"]) > 0.5);
    produce(&brokers, bench.topic("features"), &events(150_000));
    let click = |i| Sent {
        payload: Some(
            format!(r#"{{"user_id":{i},"action":"click","timestamp":"2024-05-01T10:00:00Z"}}"#)
                .into_bytes(),
        ),
        ..Sent::default()
    };
    let clicks: Vec<Sent> = (0..20_000).map(click).collect();
    produce(&brokers, bench.topic("clicks"), &clicks);
    wait_for("the other stream", || (node.committed_events() >= 21_000).then_some(()));
    assert_eq!(node.committed_events(), 21_000, "the events of this one wait");
    // Also over a restart; a version can be deployed meanwhile.
    assert_eq!(deploy(&node, "features", &stamped(2, "pass"))["action"], "deployed");
    // What waits does not hold up an ordered stop.
    node.stop_well();
    let node = bench.node("process,store");
    wait_for("the pause", || (script_of(&node, "features")["paused"] == "a look").then_some(()));
    produce(&brokers, bench.topic("clicks"), &clicks);
    wait_for("the other stream", || (node.committed_events() >= 20_000).then_some(()));
    let (status, resumed) = post(&node, "resume", &json!({ "stream": "features" }));
    assert_eq!((status, &resumed["action"]), (200, &json!("resumed")), "{resumed}");
    node.verify();
    let sql = "SELECT count(*) AS n FROM features_table WHERE epoch(created_at) = epoch(TIMESTAMPTZ '2000-01-01 00:00:02+00')";
    assert_eq!(node.query(sql)[0]["n"], 150_000);
    let (status, why) = post(&node, "resume", &json!({ "stream": "features" }));
    assert!(status == 400 && why["error"].as_str().unwrap().contains("not paused"), "{why}");
    node.stop_well();
    bench.judge_books();
}

#[test]
fn parameters_change_without_a_new_version_and_are_tried_first() {
    let Some(brokers) = broker("live_swap: reconfigured") else { return };
    let mut bench = bench(&brokers);
    let text = "
import datetime
ZERO = datetime.datetime(2000, 1, 1, tzinfo=datetime.timezone.utc)

def setup(ctx):
    global STAMP
    STAMP = ZERO + datetime.timedelta(seconds=ctx.params['stamp'])

def transform(event: dict) -> dict:
    return dict(entity_id=event['entity_id'], feature_name='f', value=event['value'],
                event_timestamp=event['validated_at'], created_at=STAMP)
";
    bench.config.streams[0].params.insert("stamp".into(), json!(1));
    let node = running(&mut bench, text);
    let version = script_of(&node, "features")["version"].clone();
    assert_eq!(stamps_of_more(&bench, &node), [1.0]);
    let reconfigure = |node: &NodeProcess, stamp: Value| {
        let body = json!({ "stream": "features", "params": { "stamp": stamp } });
        post(node, "reconfigure", &body)
    };
    let (status, decided) = reconfigure(&node, json!(7));
    assert_eq!((status, &decided["action"]), (200, &json!("reconfigured")), "{decided}");
    assert_eq!(stamps_of_more(&bench, &node), [7.0]);
    let (_, refused) = reconfigure(&node, json!("no number"));
    assert_eq!(refused["action"], "refused", "{refused}");
    assert!(refused["reason"].as_str().unwrap().contains("TypeError"), "{refused}");
    node.stop_well();
    let node = bench.node("process,store");
    wait_running(&node, "features", version.as_str().unwrap());
    assert_eq!(stamps_of_more(&bench, &node), [7.0], "also after a restart");
    let (_, decided) = post(&node, "reconfigure", &json!({ "stream": "features", "params": {} }));
    assert_eq!(decided["action"], "reconfigured", "{decided}");
    assert_eq!(stamps_of_more(&bench, &node), [1.0], "the configuration's");
    assert_eq!(script_of(&node, "features")["version"], version);
    node.stop_well();
}

#[test]
fn nodes_follow_each_other_and_the_newest_save_counts() {
    let Some(brokers) = broker("live_swap: two nodes") else { return };
    let mut bench = bench(&brokers);
    let redis = bench.redis();
    bench.config.streams.truncate(1);
    bench.config.python.max_workers = 1;
    bench.config.python.load_deadline_s = 60.0;
    std::fs::write(file(&bench, "features"), stamped(1, "pass")).unwrap();
    let store = bench.node("process,store");
    // The other node's files are its own, and never change.
    let folder = bench.dir.path().join("its-own");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(file(&bench, "features"), folder.join("validate_features.py")).unwrap();
    let first = std::mem::replace(&mut bench.config.python.transforms_dir, folder);
    let other = bench.node("process");
    bench.config.python.transforms_dir = first;
    let second = stamped(2, "pass");
    let version = version_of(&bench, "features", &second);
    wait_for("both to run the first", || {
        let runs = |node| script_of(node, "features")["version"].is_string();
        (runs(&store) && runs(&other)).then_some(())
    });
    produce(&brokers, bench.topic("features"), &events(1_000));
    store.verify();

    // A version that hangs is overtaken by the next save, with the only permit in its hands.
    save(&bench, "features", &(stamped(9, "pass") + "\nwhile True:\n    pass\n"));
    wait_for("the trial", || script_of(&store, "features")["trying"].as_str().map(drop));
    save(&bench, "features", &second);
    assert_eq!(wait_decided(&store, "features", &version)["action"], "deployed");
    let events = history(&store, "features");
    let actions: Vec<&str> = events.iter().map(|e| e["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["deployed", "refused", "deployed"]);
    assert!(events[1]["reason"].as_str().unwrap().contains("overtaken"), "{}", events[1]);
    wait_running(&store, "features", &version);
    wait_running(&other, "features", &version);
    assert_eq!(stamps_of_more(&bench, &store), [2.0]);

    // Undoing a save ends its trial, and does not spoil the same text for later.
    for _ in 0..2 {
        save(&bench, "features", &(stamped(9, "pass") + "\nwhile True:\n    pass\n"));
        wait_for("the trial", || script_of(&store, "features")["trying"].as_str().map(drop));
        save(&bench, "features", &second);
        wait_for("its end", || script_of(&store, "features")["trying"].is_null().then_some(()));
    }
    assert_eq!(script_of(&store, "features")["version"], version);
    wait_for("the history of it", || {
        let events = history(&store, "features");
        (events.iter().filter(|e| e["action"] == "refused").count() == 3).then_some(())
    });
    other.stop_well();
    store.stop_well();
    drop(redis);
}
