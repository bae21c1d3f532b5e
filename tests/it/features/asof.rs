//! `millstream features asof` and `POST /get-historical-features` against a running node. Which row
//! answers is judged in `as_of.rs`.

use super::{ROWS, bench, line, load};
use crate::support::{Bench, NodeProcess, millstream};
use arrow::{
    array::{ArrayRef, RecordBatch, StringArray},
    ipc::{reader::StreamReader, writer::StreamWriter},
};
use serde_json::{Value, json};
use std::{path::Path, process::Output, sync::Arc};

fn node(bench: &Bench) -> NodeProcess {
    let node = bench.node("process,store");
    load(bench, &node, "rows.ndjson", &ROWS.map(|(e, f, v, at)| line(e, f, v, at)).concat());
    node
}

fn asof(node: &NodeProcess, spine: &Path, output: &Path, more: &[&str]) -> Output {
    millstream()
        .args(["features", "asof", "--spine"])
        .arg(spine)
        .arg("-o")
        .arg(output)
        .args(["--http", &node.http.to_string()])
        .args(more)
        .output()
        .unwrap()
}

/// The rows of a file, as JSON objects.
fn rows(file: &Path) -> Vec<Value> {
    let connection = duckdb::Connection::open_in_memory().unwrap();
    connection.execute_batch("SET TimeZone = 'UTC'").unwrap();
    let sql = format!("SELECT to_json(t)::VARCHAR FROM '{}' t", file.display());
    let mut statement = connection.prepare(&sql).unwrap();
    let rows = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
    rows.map(|row| serde_json::from_str(&row.unwrap()).unwrap()).collect()
}

fn column(rows: &[Value], name: &str) -> Vec<Value> {
    rows.iter().map(|row| row[name].clone()).collect()
}

#[test]
fn a_training_set_has_what_was_known_beside_the_questions_in_their_order() {
    let bench = bench();
    let node = node(&bench);
    let now = chrono::Utc::now().to_rfc3339();
    let dir = bench.dir.path();
    let spine = dir.join("labels.csv");
    let text = format!(
        "label,user,at,note\n1,half,{now},007\n2,nobody,{now},b\n3,whole,2026-01-02T00:00:00Z,c\n4,half,{now},d\n\
         5,old,{now},e\n"
    );
    std::fs::write(&spine, text).unwrap();
    let words = ["--features", "score,stats:clicks", "--entity", "user", "--time", "at", "--wait"];

    let known = dir.join("known.parquet");
    let output = asof(&node, &spine, &known, &words);
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("5 rows as of 20"), "{said}");
    let set = rows(&known);
    assert_eq!(column(&set, "label"), [1, 2, 3, 4, 5].map(Value::from));
    assert_eq!(column(&set, "user"), ["half", "nobody", "whole", "half", "old"].map(Value::from));
    assert_eq!(
        column(&set, "score"),
        [json!(0.1), json!(null), json!(null), json!(0.1), json!(null)]
    );
    let statuses = ["PRESENT", "NOT_FOUND", "NOT_FOUND", "PRESENT", "OUTSIDE_MAX_AGE"];
    assert_eq!(column(&set, "score__status"), statuses.map(Value::from));
    let time = set[0]["score__event_timestamp"].as_str().unwrap();
    assert!(time.starts_with("2026-01-01 12:00:00.123456"), "{time}");

    // Nothing of 2026 was known on 2 January: the rows came today.
    let by_event = dir.join("by-event.ndjson");
    let more = [&words[..], &["--mode", "event-time"]].concat();
    assert!(asof(&node, &spine, &by_event, &more).status.success());
    let set = rows(&by_event);
    assert_eq!(set[2]["score"], json!(1.0));
    assert_eq!(set[2]["clicks"], json!(3.0));

    for (csv, more, code, word) in [
        ("user,at\na,2026-01-01T00:00:00Z\n", vec!["--features", "nope"], 2, "`nope`"),
        ("user,at\na,2026-01-01T00:00:00Z\n", vec!["--features", "nope:score"], 2, "`nope`"),
        ("user,at\na,2026-01-01T00:00:00\n", vec!["--features", "score"], 2, "row 0"),
        (
            "user,at\nb,2026-01-01T00:00:00Z\n,2026-01-01T00:00:00Z\n",
            vec!["--features", "score"],
            2,
            "row 1",
        ),
        (
            "user,when\na,2026-01-01T00:00:00Z\n",
            vec!["--features", "score"],
            2,
            "\"at\" do not exist",
        ),
        (
            "user,at,score\na,2026-01-01T00:00:00Z,1\n",
            vec!["--features", "score"],
            2,
            "two columns",
        ),
    ] {
        std::fs::write(&spine, csv).unwrap();
        let more = [&more[..], &["--entity", "user", "--time", "at"]].concat();
        let output = asof(&node, &spine, &known, &more);
        let said = String::from_utf8_lossy(&output.stderr).replace('\n', " ");
        assert_eq!(output.status.code(), Some(code), "{csv}: {said}");
        assert!(said.contains(word), "{word}: {said}");
    }
    // A zone that is said.
    std::fs::write(&spine, "user,at\nwhole,2026-01-02 00:00:00\n").unwrap();
    let more = ["--features", "score", "--entity", "user", "--time", "at", "--timezone", "UTC"];
    let more = [&more[..], &["--mode", "event-time"]].concat();
    let csv = dir.join("answer.csv");
    let output = asof(&node, &spine, &csv, &more);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(rows(&csv)[0]["score"], json!(1.0));
    node.stop_well();
}

#[test]
fn the_same_question_has_the_same_bytes_and_an_empty_spine_an_empty_answer() {
    let bench = bench();
    let node = node(&bench);
    let spine = |n: usize| {
        let users: ArrayRef = Arc::new(StringArray::from(vec!["half"; n]));
        let times: ArrayRef = Arc::new(StringArray::from(vec!["2026-02-01T00:00:00Z"; n]));
        let batch =
            RecordBatch::try_from_iter([("entity_id", users), ("event_timestamp", times)]).unwrap();
        let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
        writer.write(&batch).unwrap();
        writer.into_inner().unwrap()
    };
    let runtime = super::runtime();
    let ask = |bytes: Vec<u8>| {
        let path = "/get-historical-features?features=score,clicks&mode=event-time";
        let url = format!("http://{}{path}", node.http);
        runtime.block_on(async {
            let answer = reqwest::Client::new().post(url).body(bytes).send().await.unwrap();
            assert!(answer.status().is_success());
            let as_of = answer.headers()["x-millstream-as-of"].to_str().unwrap().to_owned();
            (as_of, answer.bytes().await.unwrap())
        })
    };
    let (as_of, first) = ask(spine(1_000));
    assert!(as_of.starts_with("20"), "{as_of}");
    assert_eq!(ask(spine(1_000)), (as_of, first.clone()));
    let rows = |bytes: &[u8]| {
        let batches = StreamReader::try_new(bytes, None).unwrap();
        batches.map(|batch| batch.unwrap().num_rows()).sum::<usize>()
    };
    assert_eq!(rows(&first), 1_000);
    assert_eq!(rows(&ask(spine(0)).1), 0);
    node.stop_well();
}
