//! Dead letters: listed, shown, and replayed through a mended stream, each exactly once.

use crate::support::{Bench, NodeProcess, Sent, broker, millstream, produce, run_json, wait_for};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use uuid::Uuid;

/// Fails on odd values, or takes its time, as the test says.
fn script(refuses_odd: bool, seconds: f64) -> String {
    format!(
        "import time\n\
         def transform(event: dict) -> dict:\n\
         \x20   value = event['value']\n\
         \x20   if {refuses_odd} and value is not None and value % 2 == 1:\n\
         \x20       raise ValueError('odd')\n\
         \x20   time.sleep({seconds})\n\
         \x20   return {{'entity_id': event['entity_id'], 'feature_name': event['feature_name'],\n\
         \x20           'value': value, 'event_timestamp': event['validated_at']}}\n",
        refuses_odd = if refuses_odd { "True" } else { "False" },
    )
}

/// The stream `features` with a script of the test's own.
fn bench(brokers: &str, text: &str) -> Bench {
    let mut bench = Bench::new(brokers);
    bench.config.streams.truncate(1);
    bench.config.streams[0].transform = "mendable".into();
    bench.config.python.transforms_dir = bench.dir.path().join("transforms");
    std::fs::create_dir_all(&bench.config.python.transforms_dir).unwrap();
    mend(&bench, text);
    bench
}

fn mend(bench: &Bench, text: &str) {
    std::fs::write(bench.config.python.transforms_dir.join("mendable.py"), text).unwrap();
}

fn event(i: usize, at: &str, padding: usize) -> Vec<u8> {
    json!({"entity_id": format!("e{i}"), "feature_name": "f", "value": i, "validated_at": at,
           "padding": "x".repeat(padding)})
    .to_string()
    .into_bytes()
}

fn sent(i: usize, payload: Option<Vec<u8>>) -> Sent {
    Sent { payload, id: Some(Uuid::from_u128(i as u128 + 1)), partition: Some(0), key: None }
}

fn dlq(node: &NodeProcess, args: &[&str]) -> Value {
    let http = node.http.to_string();
    run_json(millstream().arg("dlq").args(args).args(["--json", "--http", &http]))
}

/// Waits until every registered replay is done.
fn done(node: &NodeProcess) {
    let sql = "SELECT count(*) AS n FROM replays p LEFT JOIN sources s ON s.source = p.source
               WHERE coalesce(s.next_pos, 0) < p.n_letters";
    wait_for("the replays to end", || (node.query(sql)[0]["n"] == 0).then_some(()));
}

fn states(node: &NodeProcess) -> BTreeSet<(String, i64, String, String)> {
    let letters = dlq(node, &["list", "--limit", "10000"]);
    let text = |l: &Value, name: &str| l[name].as_str().unwrap().to_owned();
    let state = |l: &Value| {
        let kind = text(l, "source").split(':').next().unwrap().to_owned();
        (kind, l["pos"].as_i64().unwrap(), text(l, "reason"), text(l, "state"))
    };
    letters.as_array().unwrap().iter().map(state).collect()
}

const AT: &str = "2024-05-01T10:00:00Z";

#[test]
fn letters_of_a_mended_script_are_replayed_once_and_nothing_is_left_over() {
    let Some(brokers) = broker("dead_letters: a mended script") else { return };
    let bench = bench(&brokers, &script(true, 0.0));
    bench.create_topics();
    let mut records: Vec<Sent> = (0..20).map(|i| sent(i * 2, Some(event(i * 2, AT, 0)))).collect();
    // Dead: 20 and 21 by the script, 22 too but longer than a letter keeps, 23 not JSON, 24 null.
    records.push(sent(41, Some(event(41, AT, 0))));
    records.push(sent(43, Some(event(43, AT, 0))));
    let long = event(45, AT, 200 << 10);
    records.push(sent(45, Some(long.clone())));
    records.push(sent(50, Some(b"{".to_vec())));
    records.push(sent(52, None));
    produce(&brokers, bench.topic("features"), &records);
    let node = bench.node("process,store");
    assert_eq!(node.verify()["dead_letters"], 5);
    let kafka = |pos: i64, reason: &str, state: &str| {
        ("kafka".to_owned(), pos, reason.to_owned(), state.to_owned())
    };
    let open = BTreeSet::from([
        kafka(20, "exception", "open"),
        kafka(21, "exception", "open"),
        kafka(22, "exception", "open"),
        kafka(23, "invalid_json", "open"),
        kafka(24, "null_payload", "open"),
    ]);
    assert_eq!(states(&node), open);
    let source = format!("kafka:features/{}/0", bench.topic("features"));
    let shown = run_json_pretty(&node, &["dlq", "show", &source, "23"]);
    assert_eq!((&shown["raw_text"], &shown["raw"]), (&json!("{"), &json!("7b")));
    let shown = run_json_pretty(&node, &["dlq", "show", &source, "22"]);
    assert_eq!(shown["raw_len"], long.len());
    assert_eq!(shown["raw_text"].as_str().unwrap().len(), 64 << 10);
    assert!(shown["detail"].as_str().unwrap().contains("odd"), "{shown}");

    let plan = dlq(&node, &["replay", "--dry-run"]);
    assert_eq!(plan["replays"], json!([{"replay_id": null, "stream": "features", "letters": 4}]));
    assert_eq!((&plan["refused_total"], &plan["refused"][0]["pos"]), (&json!(1), &json!(24)));
    assert_eq!(states(&node), open, "a look changes nothing");

    // What still cannot be decoded dies again: a new letter, of the replay.
    let outcome = dlq(&node, &["replay", "--reason", "invalid_json", "--stream", "features"]);
    assert_eq!(outcome["replays"][0]["letters"], 1, "{outcome}");
    done(&node);
    let replay = |pos: i64, reason: &str, state: &str| {
        ("replay".to_owned(), pos, reason.to_owned(), state.to_owned())
    };
    let after = states(&node);
    assert!(after.contains(&kafka(23, "invalid_json", "resolved")), "{after:?}");
    assert!(after.contains(&replay(0, "invalid_json", "open")), "{after:?}");
    node.stop_well();

    mend(&bench, &script(false, 0.0));
    let node = bench.node("process,store");
    wait_for("the node to be ready", || (node.get("/readyz").0 == 200).then_some(()));
    let outcome = dlq(&node, &["replay"]);
    assert_eq!(outcome["replays"][0]["letters"], 4, "{outcome}");
    assert_eq!(outcome["refused_total"], 1);
    done(&node);
    let rows = node.query(
        "SELECT f.entity_id, f.value, f.event_id::VARCHAR AS event_id, count(*) AS n, f.pos,
                bool_and(f.created_at = l.recorded_at) AS times
         FROM features_table f JOIN sources s USING (source_no)
         JOIN dead_letters l ON l.event_id = f.event_id
         WHERE s.source LIKE 'replay:features/%' GROUP BY ALL ORDER BY f.pos",
    );
    for (place, i) in [41, 43, 45].into_iter().enumerate() {
        let id = Uuid::from_u128(i + 1).to_string();
        let row = json!({"entity_id": format!("e{i}"), "value": i as f64, "event_id": id, "n": 1,
                         "pos": place, "times": true});
        assert_eq!(rows[place], row, "{rows:#}");
    }
    assert_eq!(rows.as_array().unwrap().len(), 3);
    let after = states(&node);
    for pos in 20..=22 {
        assert!(after.contains(&kafka(pos, "exception", "resolved")), "{after:?}");
    }
    assert!(after.contains(&replay(0, "invalid_json", "resolved")), "{after:?}");
    assert!(after.contains(&replay(3, "invalid_json", "open")), "{after:?}");
    assert!(after.contains(&kafka(24, "null_payload", "open")), "{after:?}");

    let again = dlq(&node, &["replay", "--reason", "exception"]);
    assert_eq!(again, json!({"replays": [], "refused": [], "refused_total": 0, "more": false}));
    let totals = node.verify();
    assert_eq!((&totals["landed_rows"], &totals["dead_letters"]), (&json!(23), &json!(7)));
    node.stop_well();
}

/// `show` prints its one object over several lines.
fn run_json_pretty(node: &NodeProcess, args: &[&str]) -> Value {
    let output = millstream().args(args).args(["--http", &node.http.to_string()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Letters of the replay that is killed.
const LETTERS: usize = 4_000;

#[test]
fn a_replay_goes_on_where_a_killed_node_left_it() {
    let Some(brokers) = broker("dead_letters: kill -9 in a replay") else { return };
    let mut bench = bench(&brokers, &script(false, 0.001));
    // Small batches: many boundaries for a kill to fall on.
    bench.config.batch.max_rows = 100;
    bench.create_topics();
    // Without a zone every one of them is dead, until the stream says which zone it is.
    let records: Vec<Sent> =
        (0..LETTERS).map(|i| sent(i, Some(event(i, "2024-05-01T10:00:00", 0)))).collect();
    produce(&brokers, bench.topic("features"), &records);
    let node = bench.node("process,store");
    assert_eq!(node.verify()["dead_letters"], LETTERS);
    node.stop_well();

    bench.config.streams[0].timezone = Some("UTC".into());
    let mut node = bench.node("process,store");
    wait_for("the node to be ready", || (node.get("/readyz").0 == 200).then_some(()));
    let outcome = dlq(&node, &["replay", "--reason", "invalid_timestamp"]);
    assert_eq!(outcome["replays"][0]["letters"], LETTERS, "{outcome}");
    let at = |node: &NodeProcess| -> usize {
        let rows = node.query("SELECT next_pos FROM sources WHERE source LIKE 'replay:features/%'");
        rows[0]["next_pos"].as_u64().unwrap_or(0) as usize
    };
    for kill in 1..=2 {
        let position = wait_for("the replay to move", || {
            let at = at(&node);
            (at > LETTERS * kill / 4).then_some(at)
        });
        assert!(position < LETTERS, "the replay was over before it could be killed");
        node.kill();
        node = bench.node("process,store");
    }
    done(&node);
    let again = dlq(&node, &["replay"]);
    assert_eq!(again, json!({"replays": [], "refused": [], "refused_total": 0, "more": false}));
    let report = node.verify();
    assert_eq!(report["landed_rows"], LETTERS);
    let rows = node.query(
        "SELECT count(*) AS n, count(DISTINCT entity_id) AS entities, count(DISTINCT pos) AS places,
                min(pos) AS first, max(pos) AS last FROM features_table",
    );
    let expected = json!([{"n": LETTERS, "entities": LETTERS, "places": LETTERS, "first": 0,
                           "last": LETTERS - 1}]);
    assert_eq!(rows, expected);
    let resolved = states(&node).iter().filter(|(.., state)| state == "resolved").count();
    assert_eq!(resolved, LETTERS);
    node.stop_well();
}
