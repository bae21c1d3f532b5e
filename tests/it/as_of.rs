//! AS OF reads, judged by the oracle in plain Python (`tests/asof`): every row of the table of answers,
//! and random histories with late, tied, corrected and expired rows.

use arrow::{
    array::{Array, AsArray, Int64Array, RecordBatch, StringArray},
    datatypes::{Float64Type, Int64Type},
};
use duckdb::Connection;
use millstream::{
    messages::{AsOfRequest, Watermark, question_schema},
    protocol::{as_of::Mode, status::Status},
    store::{as_of::as_of, reader::ReadError, schema},
};
use serde_json::Value;
use std::{path::Path, process::Command, sync::Arc, time::Duration};

const DEADLINE: Duration = Duration::from_secs(60);

/// What is said of a feature for a question: value by its bits, status, event timestamp.
type Told = (Option<u64>, String, Option<i64>);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A store with these rows of history, all of one batch.
fn store<'a>(rows: impl IntoIterator<Item = &'a Value>) -> Connection {
    let store = Connection::open_in_memory().unwrap();
    store.execute_batch(schema::DDL).unwrap();
    store
        .execute_batch(
            "CREATE TEMP TABLE loaded (entity_id VARCHAR, feature_name VARCHAR, value DOUBLE, event_us BIGINT,
                 created_us BIGINT, available_us BIGINT, source_no INTEGER, pos BIGINT, sub INTEGER)",
        )
        .unwrap();
    let mut appender = store.appender("loaded").unwrap();
    for row in rows {
        let text = |name: &str| row[name].as_str().unwrap();
        let int = |name: &str| row[name].as_i64().unwrap();
        appender
            .append_row(duckdb::params![
                row["entity"][0].as_str().unwrap(),
                text("feature_name"),
                row["value"].as_f64(),
                int("event_timestamp_us"),
                int("created_at_us"),
                int("available_at_us"),
                int("source_no") as i32,
                int("pos"),
                int("sub") as i32
            ])
            .unwrap();
    }
    appender.flush().unwrap();
    drop(appender);
    store
        .execute_batch(
            "INSERT INTO features_table
             SELECT DISTINCT entity_id, feature_name, value, make_timestamptz(event_us),
                    make_timestamptz(created_us), NULL::UUID, make_timestamptz(available_us), 1, source_no, pos, sub
             FROM loaded",
        )
        .unwrap();
    store
}

fn questions<'a>(spine: impl IntoIterator<Item = &'a Value>) -> (RecordBatch, Vec<i64>) {
    let (entities, instants): (Vec<&str>, Vec<i64>) = spine
        .into_iter()
        .map(|q| (q["entity"][0].as_str().unwrap(), q["at_us"].as_i64().unwrap()))
        .unzip();
    let columns: [Arc<dyn Array>; 2] =
        [Arc::new(StringArray::from(entities)), Arc::new(Int64Array::from(instants.clone()))];
    (RecordBatch::try_new(question_schema(), columns.into()).unwrap(), instants)
}

/// Options as the oracle writes them.
struct Options {
    request: AsOfRequest,
    max_age_us: Option<i64>,
}

fn options(options: &Value, features: &Value, watermark_us: i64) -> Options {
    let mode = match options["mode"].as_str() {
        Some("event-time") => Mode::EventTime,
        _ => Mode::AsKnown,
    };
    let features = features.as_array().unwrap().iter();
    let request = AsOfRequest {
        features: features.map(|f| f.as_str().unwrap().to_owned()).collect(),
        mode,
        strict: options["strict"].as_bool().unwrap_or(false),
        watermark: Some(Watermark { stamp_us: watermark_us, batch_seq: 1 }),
    };
    Options { request, max_age_us: options["ttl_us"].as_i64() }
}

/// The answers by question, then feature.
fn answered(
    store: &Connection,
    (questions, instants): &(RecordBatch, Vec<i64>),
    options: &Options,
) -> Result<Vec<Vec<Told>>, ReadError> {
    let mut told = vec![Vec::new(); instants.len()];
    // A connection serves one question, as in a node.
    let connection = store.try_clone().unwrap();
    as_of(
        &connection,
        questions,
        &options.request,
        DEADLINE,
        || false,
        |batch| {
            let (values, times) = (
                batch.column(0).as_primitive::<Float64Type>(),
                batch.column(1).as_primitive::<Int64Type>(),
            );
            for (i, at) in instants.iter().enumerate() {
                let value = values.is_valid(i).then(|| values.value(i));
                let time = times.is_valid(i).then(|| times.value(i));
                let (status, value) = Status::of(time.map(|t| (value, t)), *at, options.max_age_us);
                told[i].push((value.map(f64::to_bits), status.name().to_owned(), time));
            }
            true
        },
    )?;
    Ok(told)
}

fn expected_cell(value: &Value, status: &Value, time: &Value) -> Told {
    (value.as_f64().map(f64::to_bits), status.as_str().unwrap().to_owned(), time.as_i64())
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn each_row_of_the_table_of_answers() {
    let mut seen = 0;
    for file in ["versions", "values", "questions"] {
        let path = root().join(format!("tests/asof/table/{file}.json"));
        let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        for case in &cases {
            let list = |name: &str| case[name].as_array().unwrap();
            let one_column = |rows: &[Value]| {
                rows.iter().all(|row| row["entity"].as_array().is_none_or(|e| e.len() == 1))
            };
            let name = case["name"].as_str().unwrap();
            let is_unknown = case["what"] == "unknown_feature";
            // Features are of one entity column; what is refused before the store is the service's.
            if !(case["kind"] == "asof" || is_unknown) || !one_column(list("history")) {
                continue;
            }
            let store = store(list("history"));
            let watermark_us = case["options"]["watermark_us"].as_i64().unwrap_or(i64::MAX);
            let options = options(&case["options"], &case["features"], watermark_us);
            let questions = questions(list("questions"));
            let answered = answered(&store, &questions, &options);
            seen += 1;
            if is_unknown {
                assert!(matches!(answered, Err(ReadError::Refused(_))), "{name}: {answered:?}");
                continue;
            }
            let expected: Vec<Vec<Told>> = list("expected")
                .iter()
                .map(|row| {
                    let cells = row.as_array().unwrap().iter();
                    cells
                        .map(|c| expected_cell(&c["value"], &c["status"], &c["event_timestamp_us"]))
                        .collect()
                })
                .collect();
            assert_eq!(answered.unwrap(), expected, "{name}");
        }
    }
    assert!(seen >= 24, "{seen} cases");
}

/// Random cases: `(seed, rows, questions, share of rows with a long history)`.
fn made(seed: u32, rows: u32, questions: u32, hot: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(root().join(".venv/bin/python"))
        .arg(root().join("tests/asof/cases.py"))
        .args(["--seed", &seed.to_string(), "--history", &rows.to_string()])
        .args(["--questions", &questions.to_string(), "--hot-share", hot, "--all", "--out"])
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    dir
}

/// Compares every answer of every mode with the oracle's; how many.
fn judged(dir: &Path) -> usize {
    let meta: Value =
        serde_json::from_slice(&std::fs::read(dir.join("meta.json")).unwrap()).unwrap();
    let store = store(&lines(&dir.join("history.ndjson")));
    let questions = questions(&lines(&dir.join("spine.ndjson")));
    let watermark_us = meta["watermark_us"].as_i64().unwrap();
    let mut cells = 0;
    for (file, asked) in meta["expected"].as_object().unwrap() {
        let options = options(asked, &meta["features"], watermark_us);
        let answered = answered(&store, &questions, &options).unwrap();
        let again = self::answered(&store, &questions, &options).unwrap();
        assert_eq!(answered, again, "{file}: asked again");
        for (i, expected) in lines(&dir.join(file)).iter().enumerate() {
            let list = |name: &str| expected[name].as_array().unwrap();
            let (values, statuses) = (list("values"), list("statuses"));
            let times = list("event_timestamps_us");
            let expected: Vec<Told> = (0..values.len())
                .map(|f| expected_cell(&values[f], &statuses[f], &times[f]))
                .collect();
            assert_eq!(answered[i], expected, "{file}, question {i}");
            cells += expected.len();
        }
    }
    cells
}

#[test]
fn a_question_looks_up_to_a_commit_and_the_last_one_unless_it_says() {
    let row = |value: f64, at: i64, available: i64, pos: i64| {
        serde_json::json!({ "entity": ["u"], "feature_name": "f", "value": value, "event_timestamp_us": at,
            "created_at_us": at, "available_at_us": available, "source_no": 1, "pos": pos, "sub": 0 })
    };
    let store = store(&[row(1.0, 10, 100, 0), row(2.0, 20, 200, 1)]);
    store
        .execute_batch(
            "UPDATE features_table SET batch_seq = 2 WHERE pos = 1;
             INSERT INTO ingest_ledger (batch_seq, source_no, token_no, from_pos, to_pos, n_in, n_kept, n_dead,
                                        n_filtered, n_rows, transform, script_sha256, node, committed_at)
                 SELECT b, 1, 1, b, b + 1, 1, 1, 0, 0, 1, 't', 's', 'n', make_timestamptz(100 * b)
                 FROM range(1, 3) t(b);",
        )
        .unwrap();
    let questions = questions(&[serde_json::json!({ "entity": ["u"], "at_us": 1_000 })]);
    let ask = |mode, watermark| {
        let connection = store.try_clone().unwrap();
        let request = AsOfRequest { features: vec!["f".into()], mode, strict: false, watermark };
        let mut value = None;
        let looked = as_of(
            &connection,
            &questions.0,
            &request,
            DEADLINE,
            || false,
            |batch| {
                value = Some(batch.column(0).as_primitive::<Float64Type>().value(0));
                true
            },
        );
        (value.unwrap(), looked.unwrap())
    };
    let first = Watermark { stamp_us: 100, batch_seq: 1 };
    let last = Watermark { stamp_us: 200, batch_seq: 2 };
    for mode in [Mode::AsKnown, Mode::EventTime] {
        assert_eq!(ask(mode, None), (2.0, last), "{mode:?}");
        assert_eq!(ask(mode, Some(first)), (1.0, first), "{mode:?}");
    }
    // Not only by its stamp: by event time a row that was committed later is not seen either.
    let late_stamp = Watermark { stamp_us: 900, ..first };
    assert_eq!(ask(Mode::EventTime, Some(late_stamp)), (1.0, late_stamp));
}

#[test]
fn what_takes_too_long_or_is_too_much_ends_with_an_error() {
    let store = store(&[]);
    store
        .execute_batch(
            "INSERT INTO features_table
             SELECT 'u', 'f', i, make_timestamptz(i), make_timestamptz(i), NULL, make_timestamptz(i), 1, 1, i, 0
             FROM range(2000000) t(i)",
        )
        .unwrap();
    let questions = questions(&[serde_json::json!({ "entity": ["u"], "at_us": 1_000 })]);
    let options = options(&Value::Null, &Value::from(vec!["f"]), i64::MAX);
    let ask = |deadline| {
        let connection = store.try_clone().unwrap();
        as_of(&connection, &questions.0, &options.request, deadline, || false, |_| true)
    };
    for deadline in [Duration::ZERO, Duration::from_millis(5)] {
        let late = ask(deadline).unwrap_err();
        assert!(matches!(late, ReadError::Deadline(_)), "{late:?}");
    }
    // The thread that was interrupted goes on to answer others.
    assert!(ask(DEADLINE).is_ok());
}

/// More rows than DuckDB hands over at once: of many entities, then of one.
#[test]
fn a_long_history_is_fetched_in_pieces_and_none_is_lost_or_doubled() {
    const ROWS: i64 = 3_000_000;
    for n_entities in [1, 20_000] {
        let store = store(&[]);
        store
            .execute_batch(&format!(
                "INSERT INTO features_table
                 SELECT 'u' || i % {n_entities}, 'f' || i % 2, i, make_timestamptz(i), make_timestamptz(i), NULL,
                        make_timestamptz(i), 1 + i // 7000, 1, i, 0
                 FROM range({ROWS}) t(i);
                 INSERT INTO ingest_ledger
                 SELECT 1 + i, 1, 1, i * 7000, least((i + 1) * 7000, {ROWS}), 7000, 7000, 0, 0,
                        least(7000, {ROWS} - i * 7000), 's', 'v', 'n', now()
                 FROM range(({ROWS} + 6999) // 7000) t(i)"
            ))
            .unwrap();
        let asked =
            |i: i64| serde_json::json!({ "entity": [format!("u{}", i % n_entities)], "at_us": i });
        let instants: Vec<i64> = (0..40_000).map(|i| i * 75 + i % 75).collect();
        let spine: Vec<Value> = instants.iter().map(|i| asked(*i)).collect();
        let last = (ROWS - 1) / 7000 + 1;
        let watermark = Some(Watermark { stamp_us: i64::MAX, batch_seq: last });
        let mut options = options(&Value::Null, &Value::from(vec!["f0", "f1"]), i64::MAX);
        options.request.watermark = watermark;
        let told = answered(&store, &questions(&spine), &options).unwrap();
        for (at, told) in instants.iter().zip(told) {
            // Every entity has values of one feature alone, where there are more entities than one.
            let newest = |feature: i64| {
                (0..2 * n_entities)
                    .map(|k| at - k)
                    .find(|i| *i >= 0 && i % n_entities == at % n_entities && i % 2 == feature)
            };
            let expected = [0, 1].map(newest);
            let got: Vec<_> = told.iter().map(|(_, _, at)| *at).collect();
            assert_eq!(got, expected, "{n_entities} entities, at {at}");
        }
    }
}

#[test]
fn random_histories_are_answered_as_the_oracle_does() {
    let mut cells = 0;
    for (seed, rows, questions, hot) in [
        (1, 20_000, 4_000, "0.5"),
        (2, 5_000, 4_000, "1.0"),
        (3, 5_000, 4_000, "0.0"),
        (4, 400, 1, "0.5"),
        (5, 400, 63, "0.5"),
        (6, 400, 64, "0.5"),
        (7, 400, 65, "0.5"),
        (8, 150, 50, "0.5"),
    ] {
        cells += judged(made(seed, rows, questions, hot).path());
    }
    assert!(cells >= 500_000, "{cells} answers");
}

#[test]
fn the_answer_does_not_depend_on_the_number_of_questions_or_threads() {
    let dir = made(9, 30_000, 100_000, "0.5");
    let lines = |name: &str| lines(&dir.path().join(name));
    let (history, spine) = (lines("history.ndjson"), lines("spine.ndjson"));
    let meta: Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("meta.json")).unwrap()).unwrap();
    let watermark_us = meta["watermark_us"].as_i64().unwrap();
    let options = options(&Value::Null, &meta["features"], watermark_us);
    let store = store(&history);
    let all = answered(&store, &questions(&spine), &options).unwrap();
    for threads in [1, 2] {
        store.execute_batch(&format!("SET threads = {threads}")).unwrap();
        for n in [1, 63, 64, 65, 100_000] {
            let some = answered(&store, &questions(&spine[..n]), &options).unwrap();
            assert!(some == all[..n], "{n} questions, {threads} threads");
        }
    }
}
