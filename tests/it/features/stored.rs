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

/// Values of a range of time, and answers of a query, in files of every kind; none where it is too large.
#[test]
fn values_and_answers_go_into_files() {
    let mut bench = bench();
    let _redis = bench.redis();
    let node = bench.node("process,store");
    load(&bench, &node, "rows.ndjson", &ROWS.map(|(e, f, v, at)| line(e, f, v, at)).concat());
    let http = node.http.to_string();
    let command = |args: &[&str], output: &str| {
        let path = bench.dir.path().join(output);
        let mut command = millstream();
        command.args(args).arg("-o").arg(&path).args(["--http", &http]);
        (command.output().unwrap(), path)
    };
    let counted = |path: &std::path::Path| {
        let connection = duckdb::Connection::open_in_memory().unwrap();
        let sql = format!("SELECT count(*) FROM '{}'", path.display());
        connection.query_row(&sql, [], |row| row.get::<_, i64>(0)).unwrap()
    };
    for (args, rows) in [
        (&["features", "export"][..], 8),
        (&["features", "export", "--features", "score"], 5),
        (&["features", "export", "--from", "2026-01-01T12:00:00Z"], 5),
        (
            &[
                "features",
                "export",
                "--from",
                "2026-01-01T11:00:00Z",
                "--to",
                "2026-01-01T12:00:00Z",
            ],
            1,
        ),
        (&["features", "export", "--by", "as-known", "--from", "2100-01-01T00:00:00Z"], 0),
        (&["query", "SELECT * FROM features_table ORDER BY pos"], 8),
    ] {
        for output in ["x.parquet", "x.csv", "x.ndjson"] {
            let (said, path) = command(args, output);
            assert!(said.status.success(), "{args:?} {said:?}");
            // An NDJSON file without rows has no columns either.
            if rows > 0 || !output.ends_with("ndjson") {
                assert_eq!(counted(&path), rows, "{args:?} {output}");
            }
            std::fs::remove_file(path).unwrap();
        }
    }
    for (args, output, word) in [
        (&["query", "SELECT 1"][..], "x.xlsx", "extension"),
        (
            &["query", "SELECT * FROM features_table", "--max-rows", "7"],
            "x.csv",
            "larger than 7 rows",
        ),
        (&["features", "export", "--from", "yesterday"], "x.csv", "`from`"),
    ] {
        let (said, path) = command(args, output);
        let text = String::from_utf8_lossy(&said.stderr).replace('\n', " ");
        assert_eq!(said.status.code(), Some(2), "{text}");
        assert!(text.contains(word) && !path.exists(), "{text}");
    }
    let skew = run_json(millstream().args(["features", "skew", "--json", "--http", &http]));
    assert_eq!((&skew["keys"], &skew["equal"]), (&json!(7), &json!(7)), "{skew}");
    // What is online is not DuckDB's newest any more.
    let url = bench.config.redis.url.as_str();
    let mut redis = redis::Client::open(url).unwrap().get_connection().unwrap();
    let key = format!("{}:entity:half", bench.config.node.namespace);
    let _: () = redis::cmd("HDEL").arg(key).arg("score").query(&mut redis).unwrap();
    let said = millstream().args(["features", "skew", "--http", &http]).output().unwrap();
    let told = String::from_utf8_lossy(&said.stdout);
    assert_eq!(said.status.code(), Some(5), "{said:?}");
    assert!(told.contains("1 missing") && told.contains("half score: not online"), "{told}");
    assert_eq!(node.metric("millstream_skew_keys_total", &["result=\"missing\""]), 1.0);
    node.stop_well();
}
