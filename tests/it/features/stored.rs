//! Lists, history and the way of an event, on the command line.

use super::{ROWS, bench, line, load};
use crate::support::{millstream, run_json};
use serde_json::{Value, json};
use std::process::Command;

#[test]
fn features_are_listed_and_an_event_is_traced() {
    let bench = bench();
    let node = bench.node("process,store");
    let traced = "0199a1b2-0000-7000-8000-000000000001";
    let mut rows = ROWS.map(|(e, f, v, at)| line(e, f, v, at)).concat();
    // One that is traced, and one that is no event.
    let event = json!({ "entity_id": "t", "feature_name": "score", "value": 4.5, "event_id": traced,
                        "validated_at": "2026-01-03T00:00:00Z", "created_at": "2026-01-03T00:00:01Z" });
    rows += &format!("{event}\n");
    load(&bench, &node, "rows.ndjson", &rows);

    let http = node.http.to_string();
    let command = |args: &[&str]| {
        let mut command: Command = millstream();
        command.args(args).args(["--http", &http]);
        command
    };
    let json_of = |args: &[&str]| run_json(command(args).arg("--json"));
    let listed = json_of(&["features", "list"]);
    let counts =
        |row: &Value| (row["feature_name"].clone(), row["n_rows"].clone(), row["n_null"].clone());
    assert_eq!(counts(&listed[0]), (json!("clicks"), json!(3), json!(1)));
    assert_eq!(counts(&listed[1]), (json!("score"), json!(6), json!(1)));
    let history = json_of(&["features", "history", "half", "--feature", "score"]);
    let values: Vec<_> =
        history.as_array().unwrap().iter().map(|row| row["value"].clone()).collect();
    assert_eq!(values, [json!(0.1), json!(9.0)], "the version order, not that of arrival");
    assert_eq!(history[0]["transform"], "validate_features");
    let entities = json_of(&["features", "entities", "score", "--limit", "2"]);
    assert_eq!(entities.as_array().unwrap().len(), 2);
    assert_eq!(entities[0]["entity_id"], "t");

    let told = json_of(&["trace", traced]);
    assert_eq!(told["values"][0]["value"], json!(4.5));
    assert_eq!(told["values"][0]["pos"], json!(8));
    let text = String::from_utf8(command(&["trace", traced]).output().unwrap().stdout).unwrap();
    assert!(text.contains("score of t = 4.5") && text.contains("upload:stats/"), "{text}");
    let nobody = command(&["trace", "0199a1b2-0000-7000-8000-000000000002"]).output().unwrap();
    assert_eq!(nobody.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("filtered"), "{nobody:?}");
    let table =
        String::from_utf8(command(&["features", "list", "s*"]).output().unwrap().stdout).unwrap();
    assert!(table.contains("score") && !table.contains("clicks"), "{table}");
    node.stop_well();
}
