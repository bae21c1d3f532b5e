//! `millstream features asof` and `POST /get-historical-features` against a running node. Which row
//! answers is judged in `as_of.rs`.

use super::{ROWS, bench, line, load};
use crate::support::{Bench, DEADLINE, NodeProcess, millstream, wait_for};
use arrow::{
    array::{ArrayRef, AsArray, RecordBatch, StringArray},
    ipc::{reader::StreamReader, writer::StreamWriter},
};
use serde_json::{Value, json};
use std::{
    path::Path,
    process::Output,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

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

/// The same spine as JSON, over gRPC, and on the command line from Arrow.
#[test]
fn every_way_of_asking_gives_the_same_answer() {
    let bench = bench();
    let node = node(&bench);
    let (users, at) = (["half", "nobody", "empty"], "2026-02-01T00:00:00Z");
    let times = [at; 3];
    let question = "features=score&mode=event-time&max_age_s=100000000";
    let path = format!("/get-historical-features?{question}");
    let body = json!({ "entities": { "entity_id": users, "event_timestamp": times, "label": [1, 2, null] } });
    let (status, told) = node.post(&path, &body);
    assert_eq!(status, 200, "{told}");
    assert_eq!(
        told["metadata"]["feature_names"],
        json!(["entity_id", "event_timestamp", "label", "score"])
    );
    assert_eq!(told["results"][2]["values"], json!([1, 2, null]));
    assert_eq!(
        told["results"][3],
        json!({
            "values": [0.1, null, null], "statuses": ["PRESENT", "NOT_FOUND", "NULL_VALUE"],
            "event_timestamps": ["2026-01-01T12:00:00.123456Z", null, "2026-01-01T12:00:00.500Z"],
        })
    );
    for (body, word) in [
        (json!({ "entities": { "entity_id": [1, "a"] } }), "`entity_id`"),
        (json!({ "entities": { "entity_id": ["a"] } }), "no column `event_timestamp`"),
        (json!({ "entities": {}, "more": 1 }), "`more`"),
    ] {
        let (status, told) = node.post(&path, &body);
        assert!(status == 400 && told.to_string().contains(word), "{status} {told}");
    }

    let ids: ArrayRef = Arc::new(StringArray::from(users.to_vec()));
    let times: ArrayRef = Arc::new(StringArray::from(vec![at; 3]));
    let spine =
        RecordBatch::try_from_iter([("entity_id", ids), ("event_timestamp", times)]).unwrap();
    let mut writer = StreamWriter::try_new(Vec::new(), &spine.schema()).unwrap();
    writer.write(&spine).unwrap();
    let spine = writer.into_inner().unwrap();
    let (as_of, over_grpc) = super::runtime().block_on(over_grpc(&node, &spine));
    assert!(as_of.is_some_and(|us| us > 1_767_225_600_000_000), "{as_of:?}");
    let file = bench.dir.path().join("spine.arrow");
    std::fs::write(&file, &spine).unwrap();
    let output = bench.dir.path().join("answer.arrow");
    let more = ["--features", "score", "--mode", "event-time", "--ttl", "100000000s"];
    let said = asof(&node, &file, &output, &more);
    assert!(said.status.success(), "{said:?}");
    let of = |bytes: &[u8]| {
        let batches = StreamReader::try_new(bytes, None).unwrap();
        batches.collect::<Result<Vec<_>, _>>().unwrap()
    };
    assert_eq!(of(&std::fs::read(&output).unwrap()), of(&over_grpc));
    let names: Vec<_> =
        of(&over_grpc)[0].schema().fields().iter().map(|f| f.name().clone()).collect();
    assert_eq!(names[2..], ["score", "score__status", "score__event_timestamp"]);
    node.stop_well();
}

/// The watermark's stamp, and the answer.
async fn over_grpc(node: &NodeProcess, spine: &[u8]) -> (Option<i64>, Vec<u8>) {
    use millstream::proto::{
        AsOfMode, HistoricalFeaturesQuestion, HistoricalFeaturesRequest,
        feature_service_client::FeatureServiceClient,
        historical_features_reply::Part as Reply,
        historical_features_request::Part::{Question, Spine},
    };
    let at = format!("http://{}", node.grpc);
    let mut reads = FeatureServiceClient::connect(at).await.unwrap();
    let question = HistoricalFeaturesQuestion {
        features: vec!["stats:score".into()],
        mode: AsOfMode::EventTime.into(),
        max_age_us: Some(100_000_000_000_000),
        ..Default::default()
    };
    // Cut anywhere.
    let pieces = spine.chunks(100).map(|piece| Spine(piece.to_vec()));
    let parts = std::iter::once(Question(question)).chain(pieces);
    let requests: Vec<_> =
        parts.map(|part| HistoricalFeaturesRequest { part: Some(part) }).collect();
    let reply = reads.get_historical_features(futures::stream::iter(requests)).await.unwrap();
    let (mut replies, mut as_of, mut rows) = (reply.into_inner(), None, Vec::new());
    while let Some(reply) = replies.message().await.unwrap() {
        match reply.part.unwrap() {
            Reply::Watermark(watermark) => as_of = watermark.stamp_us,
            Reply::Rows(bytes) => rows.extend(bytes),
        }
    }
    let nothing = reads.get_historical_features(futures::stream::iter([])).await.unwrap_err();
    assert_eq!(nothing.code(), tonic::Code::InvalidArgument);
    (as_of, rows)
}

/// However a test ends, what runs beside it ends too.
struct SetAtTheEnd<'a>(&'a AtomicBool);

impl Drop for SetAtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// More questions than are asked at once, while rows come in: all of it is as of one commit.
#[test]
fn a_spine_of_two_chunks_is_answered_as_of_one_commit_and_whoever_leaves_costs_nothing() {
    const QUESTIONS: usize = 1_050_000;
    let bench = bench();
    let node = node(&bench);
    let users: ArrayRef =
        Arc::new(StringArray::from_iter_values((0..QUESTIONS).map(|i| format!("u{}", i % 9))));
    let labels: ArrayRef = Arc::new(arrow::array::Int64Array::from_iter(0..QUESTIONS as i64));
    let times: ArrayRef = Arc::new(
        arrow::array::TimestampMicrosecondArray::from_value(4_000_000_000_000_000, QUESTIONS)
            .with_timezone("UTC"),
    );
    let spine = RecordBatch::try_from_iter([
        ("entity_id", users),
        ("label", labels),
        ("event_timestamp", times),
    ])
    .unwrap();
    let mut writer = StreamWriter::try_new(Vec::new(), &spine.schema()).unwrap();
    writer.write(&spine).unwrap();
    let spine = writer.into_inner().unwrap();
    let (done, landed) = (AtomicBool::new(false), AtomicU32::new(0));
    let url =
        format!("http://{}/get-historical-features?features=score&mode=event-time", node.http);
    let answer = std::thread::scope(|scope| {
        // Values that come all the while.
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let n = landed.load(Ordering::Relaxed);
                let rows: String = (0..9)
                    .map(|u| {
                        line(&format!("u{u}"), "score", Some(f64::from(n)), "2026-01-05T00:00:00Z")
                    })
                    .collect();
                load(&bench, &node, &format!("more-{n}.ndjson"), &rows);
                landed.fetch_add(1, Ordering::Relaxed);
            }
        });
        let _done = SetAtTheEnd(&done);
        wait_for("the first values", || {
            let n = node.query("SELECT count(*) AS n FROM features_table WHERE entity_id = 'u8'");
            (n[0]["n"].as_i64() > Some(0)).then_some(())
        });
        super::runtime().block_on(async {
            let client = reqwest::Client::new();
            // Two that leave before the end.
            for _ in 0..2 {
                let gone = client.post(&url).body(spine.clone()).send();
                let gone = tokio::time::timeout(Duration::from_millis(400), gone).await;
                drop(gone);
            }
            // Until values have come in the middle of an answer.
            let until = std::time::Instant::now() + DEADLINE;
            loop {
                assert!(std::time::Instant::now() < until, "no value came in an answer");
                let before = landed.load(Ordering::Relaxed);
                let answer = client.post(&url).body(spine.clone()).send().await.unwrap();
                assert!(answer.status().is_success());
                let bytes = answer.bytes().await.unwrap();
                if landed.load(Ordering::Relaxed) > before {
                    break bytes;
                }
            }
        })
    });
    let (mut next, mut values) = (0, std::collections::BTreeMap::new());
    for batch in StreamReader::try_new(answer.as_ref(), None).unwrap() {
        let batch = batch.unwrap();
        let (users, labels) = (batch.column(0).as_string::<i32>(), batch.column(1));
        let labels = labels.as_primitive::<arrow::datatypes::Int64Type>();
        let scores = batch.column(3).as_primitive::<arrow::datatypes::Float64Type>();
        for i in 0..batch.num_rows() {
            assert_eq!(labels.value(i), next, "in the order of the questions");
            next += 1;
            let known = values.entry(users.value(i).to_owned()).or_insert(scores.value(i));
            assert_eq!(known.to_bits(), scores.value(i).to_bits(), "one commit for all chunks");
        }
    }
    assert_eq!((next, values.len()), (QUESTIONS as i64, 9));
    node.stop_well();
}

/// History of a file may count from when it was made.
#[test]
fn history_that_is_loaded_later_counts_from_when_it_was_made_where_the_stream_says_so() {
    let mut bench = bench();
    bench.config.streams[0].as_known = millstream::config::AsKnown::CreatedAt;
    let node = node(&bench);
    // Enough rows to go to the store as a file, too.
    let rows: String = (0..2_000)
        .map(|i| line(&format!("many{i}"), "score", Some(1.0), "2026-01-01T12:00:00Z"))
        .collect();
    load(&bench, &node, "many.ndjson", &rows);
    for entity in ["half", "many7"] {
        let body = json!({ "entities": {
            "entity_id": [entity, entity],
            "event_timestamp": ["2026-01-01T11:59:59Z", "2026-01-01T12:00:01Z"],
        } });
        let (status, told) = node.post("/get-historical-features?features=score", &body);
        assert_eq!(status, 200, "{told}");
        let known = &told["results"][2]["statuses"];
        // The value of eleven o'clock was made then.
        let before = if entity == "half" { "PRESENT" } else { "NOT_FOUND" };
        assert_eq!(*known, json!([before, "PRESENT"]), "{entity}");
    }
    node.stop_well();
}
