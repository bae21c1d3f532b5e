use super::*;
mod parquet_files;

use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::PathBuf;
use tempfile::TempDir;

fn keyed(field: &str) -> ReplayOptions {
    ReplayOptions { key_field: Some(field.to_owned()), ..ReplayOptions::default() }
}

/// A file of this name and content, in a folder that goes with the guard.
fn file(name: &str, content: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    (folder, path)
}

/// All records, in batches of `max_rows`; checks that their numbers are without gaps.
fn read(replay: &mut Replay, max_rows: usize) -> Vec<ReplayRecord> {
    let mut records = Vec::new();
    while let Some(batch) = replay.next_batch(max_rows) {
        let batch = batch.unwrap();
        assert!((1..=max_rows.max(1)).contains(&batch.len()));
        records.extend(batch);
    }
    assert!(replay.next_batch(max_rows).is_none());
    for (number, record) in records.iter().enumerate() {
        assert_eq!(record.row, number as u64);
    }
    if let Some(total) = replay.total_rows() {
        assert_eq!(total, records.len() as u64);
    }
    records
}

/// The payloads of a whole file as JSON.
fn values(path: &Path, options: &ReplayOptions) -> Vec<Value> {
    let records = read(&mut Replay::open(path, options).unwrap(), 2);
    let parse = |record: &ReplayRecord| {
        serde_json::from_slice(&record.payload)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&record.payload)))
    };
    records.iter().map(parse).collect()
}

fn csv(content: &str) -> Vec<Value> {
    let (_folder, path) = file("a.csv", content);
    values(&path, &ReplayOptions::default())
}

fn keys(path: &Path, field: &str) -> Vec<Option<String>> {
    read(&mut Replay::open(path, &keyed(field)).unwrap(), 7)
        .into_iter()
        .map(|record| record.key.map(|key| String::from_utf8(key).unwrap()))
        .collect()
}

fn refusal(path: &Path, options: &ReplayOptions) -> ReplayError {
    match Replay::open(path, options) {
        Err(error) => error,
        Ok(mut replay) => loop {
            match replay.next_batch(100) {
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    assert!(replay.next_batch(100).is_none(), "an error is the end");
                    break error;
                }
                None => panic!("{} was taken", path.display()),
            }
        },
    }
}

#[test]
fn formats_are_told_by_their_extension() {
    let format = |name: &str| Format::of(Path::new(name));
    assert_eq!(format("a.ndjson"), Some(Format::Ndjson));
    assert_eq!(format("/x/a.b.JSONL"), Some(Format::Ndjson));
    assert_eq!(format("a.json"), Some(Format::Ndjson));
    assert_eq!(format("a.Csv"), Some(Format::Csv));
    assert_eq!(format("a.parquet"), Some(Format::Parquet));
    assert_eq!(format("a.csv.gz"), None);
    assert_eq!(format("csv"), None);
    let error = refusal(Path::new("/nowhere/a.txt"), &ReplayOptions::default());
    assert!(matches!(error, ReplayError::UnknownFormat { .. }), "{error}");
    let error = refusal(Path::new("/nowhere/a.csv"), &ReplayOptions::default());
    assert!(error.to_string().contains("/nowhere/a.csv"), "{error}");
    assert!(miette::Diagnostic::help(&error).is_some());
}

#[test]
fn ndjson_is_passed_through_byte_for_byte() {
    let content = b"\xEF\xBB\xBF {\"k\": 1.50, \"b\":\"\xC3\xA9\"}\r\n\n   \r\nnot json\n{\"k\":\"x\xFF\"}\n[]";
    for name in ["a.ndjson", "a.jsonl", "a.json"] {
        let (_folder, path) = file(name, content);
        for max_rows in [0, 1, 3, 100] {
            let mut replay = Replay::open(&path, &keyed("k")).unwrap();
            let records = read(&mut replay, max_rows);
            let payloads: Vec<&[u8]> = records.iter().map(|r| r.payload.as_slice()).collect();
            let expected: [&[u8]; 4] =
                [b" {\"k\": 1.50, \"b\":\"\xC3\xA9\"}", b"not json", b"{\"k\":\"x\xFF\"}", b"[]"];
            assert_eq!(payloads, expected);
            assert_eq!(records[0].key.as_deref(), Some(b"1.5".as_slice()));
            assert!(records[1..].iter().all(|record| record.key.is_none()));
        }
    }
}

#[test]
fn an_empty_ndjson_file_has_no_rows() {
    for content in ["", "\n\n", " "] {
        let (_folder, path) = file("a.ndjson", content);
        assert_eq!(values(&path, &ReplayOptions::default()), Vec::<Value>::new());
    }
}

#[test]
fn one_big_json_document_is_refused_with_a_way_out() {
    for content in ["[\n{\"a\":1}\n]", "\n{\n \"a\": 1\n}", "[{\"a\":1},{\"a\":2}]"] {
        let (_folder, path) = file("a.json", content);
        let error = refusal(&path, &ReplayOptions::default());
        assert!(matches!(error, ReplayError::NotLines { .. }), "{error}");
        assert!(miette::Diagnostic::help(&error).unwrap().to_string().contains("jq"));
    }
}

#[test]
fn a_line_without_an_end_is_refused() {
    let (_folder, path) = file("a.ndjson", "");
    let sparse = File::options().write(true).open(&path).unwrap();
    sparse.set_len(MAX_RECORD_BYTES as u64 + 5).unwrap();
    let error = refusal(&path, &ReplayOptions::default());
    assert!(matches!(error, ReplayError::RecordTooLong { row: 0, .. }), "{error}");
}

#[test]
fn csv_columns_get_the_type_that_fits_all_their_values() {
    let rows = csv(concat!(
        "int,float,bool,date,time,zip,big,mixed,none\r\n",
        "1,1,true,2024-02-29,2013-01-01T10:00:00Z,01234,1,x,\r\n",
        "-5,1.50,FALSE,1969-12-31,2013-01-01 05:00:00,99999,12345678901234567890,1,\r\n",
        ",nan,,,2013-01-01 05:00:00.25+02:00,,,,\r\n",
        "9223372036854775807,-1e5,True,9999-12-31,2013-01-01 05:00,7,2,true,\r\n",
    ));
    let expected = [
        json!({"int": 1, "float": 1, "bool": true, "date": "2024-02-29",
            "time": "2013-01-01T10:00:00Z", "zip": "01234", "big": "1", "mixed": "x", "none": null}),
        json!({"int": -5, "float": 1.5, "bool": false, "date": "1969-12-31",
            "time": "2013-01-01T05:00:00Z", "zip": "99999", "big": "12345678901234567890",
            "mixed": "1", "none": null}),
        json!({"int": null, "float": null, "bool": null, "date": null,
            "time": "2013-01-01T03:00:00.250000Z", "zip": null, "big": null, "mixed": null,
            "none": null}),
        json!({"int": i64::MAX, "float": -1e5, "bool": true, "date": "9999-12-31",
            "time": "2013-01-01T05:00:00Z", "zip": "7", "big": "2", "mixed": "true", "none": null}),
    ];
    assert_eq!(rows, expected);
}

#[test]
fn csv_numbers_keep_their_digits() {
    let (_folder, path) = file("a.csv", "x\n1.10\n-0\n.5\n5.\n1e999\n+2.5\n3\n1E5\n");
    let records = read(&mut Replay::open(&path, &keyed("x")).unwrap(), 100);
    let payloads: Vec<_> =
        records.iter().map(|record| std::str::from_utf8(&record.payload).unwrap()).collect();
    let expected = [
        r#"{"x":1.10}"#,
        r#"{"x":-0}"#,
        r#"{"x":0.5}"#,
        r#"{"x":5.0}"#,
        r#"{"x":null}"#,
        r#"{"x":2.5}"#,
        r#"{"x":3}"#,
        r#"{"x":1E5}"#,
    ];
    assert_eq!(payloads, expected);
    assert_eq!(records[0].key.as_deref(), Some(b"1.10".as_slice()));
    assert_eq!(records[4].key, None);
}

#[test]
fn csv_quotes_breaks_and_blank_lines() {
    let rows = csv(
        "\u{feff}\"a,1\",\"b \"\"q\"\"\"\n\"x\ny\",\"say \"\"hi\"\"\"\n\n\r\n\"é,\r\n\",\\t\nlast,\u{1F980}",
    );
    let expected = [
        json!({"a,1": "x\ny", "b \"q\"": "say \"hi\""}),
        json!({"a,1": "é,\r\n", "b \"q\"": "\\t"}),
        json!({"a,1": "last", "b \"q\"": "🦀"}),
    ];
    assert_eq!(rows, expected);
}

#[test]
fn csv_null_values_and_keys() {
    let (_folder, path) = file("a.csv", "tail,delay,NA\nN1,3,NA\nNA,NA,x\n,-2.5,\n");
    let options = ReplayOptions { null_values: vec!["NA".to_owned()], ..keyed("tail") };
    let expected = [
        json!({"tail": "N1", "delay": 3, "NA": null}),
        json!({"tail": null, "delay": null, "NA": "x"}),
        json!({"tail": null, "delay": -2.5, "NA": null}),
    ];
    assert_eq!(values(&path, &options), expected);
    let mut replay = Replay::open(&path, &options).unwrap();
    let keys: Vec<_> = read(&mut replay, 9).into_iter().map(|record| record.key).collect();
    assert_eq!(keys, [Some(b"N1".to_vec()), None, None]);
    assert_eq!(super::tests::keys(&path, "tail")[1].as_deref(), Some("NA"));
}

#[test]
fn csv_of_many_blocks_keeps_one_type_and_every_row() {
    let mut content = String::from("id,late,text\n");
    let rows = 150_000;
    for row in 0..rows {
        // The only value that is not an integer stands at the very end.
        let late = if row == rows - 1 { "1.5".to_owned() } else { row.to_string() };
        content.push_str(&format!("{row},{late},\"line {row}\n{}\"\n", "x".repeat(row % 90)));
    }
    assert!(content.len() > 9 << 20);
    let (_folder, path) = file("a.csv", &content);
    let mut replay = Replay::open(&path, &keyed("id")).unwrap();
    assert_eq!(replay.total_rows(), Some(rows as u64));
    let records = read(&mut replay, 1000);
    for (row, record) in records.iter().enumerate() {
        assert_eq!(record.key.as_deref(), Some(row.to_string().as_bytes()));
        let value: Value = serde_json::from_slice(&record.payload).unwrap();
        assert_eq!(value["text"], format!("line {row}\n{}", "x".repeat(row % 90)));
    }
    assert!(records[rows - 1].payload.starts_with(b"{\"id\":149999,\"late\":1.5,"));
}

#[test]
fn broken_csv_is_refused_by_its_row() {
    let refused = |content: &[u8], key: Option<&str>| {
        let (_folder, path) = file("a.csv", content);
        let options = ReplayOptions { key_field: key.map(str::to_owned), ..Default::default() };
        refusal(&path, &options)
    };
    assert!(matches!(refused(b"", None), ReplayError::NoHeader { .. }));
    assert!(matches!(refused(b"\n\n", None), ReplayError::NoHeader { .. }));
    let error = refused(b"a,b,a\n1,2,3\n", None);
    assert!(
        matches!(&error, ReplayError::DuplicateColumn { column, .. } if column == "a"),
        "{error}"
    );
    let error = refused(b"a,b\n1,2\n3\n", None);
    assert!(matches!(error, ReplayError::Ragged { row: 1, found: 1, expected: 2, .. }), "{error}");
    let error = refused(b"a,b\n1,2\n3,\"4\n5,6\n", None);
    assert!(matches!(error, ReplayError::UnclosedQuote { .. }), "{error}");
    let error = refused(b"name\ncaf\xE9\n", None);
    assert!(matches!(error, ReplayError::Polars { .. }), "{error}");
    let error = refused(b"tailnum,carrier\nN1,AA\n", Some("tail_num"));
    let help = miette::Diagnostic::help(&error).unwrap().to_string();
    assert_eq!(help, "did you mean \"tailnum\"?");
    let error = refused(b"tailnum,carrier\nN1,AA\n", Some("zzz"));
    let help = miette::Diagnostic::help(&error).unwrap().to_string();
    assert_eq!(help, "its columns are: tailnum, carrier");
}

#[test]
fn a_csv_header_alone_has_no_rows() {
    assert_eq!(csv("a,b\n"), Vec::<Value>::new());
    assert_eq!(csv("a,b"), Vec::<Value>::new());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_text_survives_csv(cells in prop::collection::vec((".*", "[ -~\\n\\r\",]*"), 1..20)) {
        let quote = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        // A letter in front keeps the columns text, and the fields from being empty.
        let mut content = String::from("a,b\n");
        for (a, b) in &cells {
            content.push_str(&format!("{},{}\n", quote(&format!("x{a}")), quote(&format!("y{b}"))));
        }
        let expected: Vec<Value> =
            cells.iter().map(|(a, b)| json!({"a": format!("x{a}"), "b": format!("y{b}")})).collect();
        prop_assert_eq!(csv(&content), expected);
    }

    #[test]
    fn any_line_survives_ndjson(lines in prop::collection::vec("[^\\n\\r]*[^\\n\\r\\s][^\\n\\r]*", 0..20)) {
        prop_assume!(lines.first().is_none_or(|line| !line.trim().starts_with(['[', '{', '\u{feff}'])));
        prop_assume!(lines.iter().all(|line| !line.trim_ascii().is_empty()));
        let (_folder, path) = file("a.ndjson", lines.join("\n"));
        let records = read(&mut Replay::open(&path, &ReplayOptions::default()).unwrap(), 3);
        let payloads: Vec<_> =
            records.into_iter().map(|record| String::from_utf8(record.payload).unwrap()).collect();
        prop_assert_eq!(payloads, lines);
    }
}
