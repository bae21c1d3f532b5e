use super::*;
use polars::prelude::*;

/// Writes `frame` as Parquet with row groups of `group_rows`.
fn parquet(frame: &mut DataFrame, group_rows: usize) -> (TempDir, PathBuf) {
    let (folder, path) = file("a.parquet", "");
    ParquetWriter::new(File::create(&path).unwrap())
        .with_compression(ParquetCompression::Snappy)
        .with_row_group_size(Some(group_rows))
        .finish(frame)
        .unwrap();
    (folder, path)
}

fn odd_frame() -> DataFrame {
    let instants = Int64Chunked::from_slice_options("us".into(), &[Some(0), Some(-1), None]);
    let nanos = Int64Chunked::from_slice_options("ns".into(), &[Some(1), None, Some(i64::MAX)]);
    let millis = Int64Chunked::from_slice_options("ms".into(), &[None, Some(1), Some(1 << 50)]);
    let days = Int32Chunked::from_slice_options("day".into(), &[Some(19_782), Some(-1), None]);
    let list = Series::new(
        "list".into(),
        [
            Series::new("".into(), [Some(1i64), None]),
            Series::new("".into(), Vec::<Option<i64>>::new()),
            Series::new("".into(), [Some(i64::MIN), Some(0)]),
        ],
    );
    DataFrame::new_infer_height(vec![
        Column::new("te\"xt".into(), [Some("a\u{0}\"\n"), Some(""), None]),
        Column::new("int".into(), [Some(i64::MIN), None, Some(7)]),
        Column::new("unsigned".into(), [Some(u64::MAX), None, Some(0)]),
        Column::new("float".into(), [Some(f64::NAN), Some(1e300), Some(f64::NEG_INFINITY)]),
        Column::new("single".into(), [Some(0.1f32), Some(f32::INFINITY), None]),
        Column::new("flag".into(), [Some(true), Some(false), None]),
        Column::new("bytes".into(), [Some(b"text".as_slice()), Some(b"\xFF\x00"), None]),
        instants.into_datetime(TimeUnit::Microseconds, Some(TimeZone::UTC)).into_column(),
        nanos.into_datetime(TimeUnit::Nanoseconds, None).into_column(),
        millis.into_datetime(TimeUnit::Milliseconds, None).into_column(),
        days.into_date().into_column(),
        list.into_column(),
    ])
    .unwrap()
}

#[test]
fn parquet_values_become_json() {
    let (_folder, path) = parquet(&mut odd_frame(), 2);
    let expected = [
        json!({"te\"xt": "a\u{0}\"\n", "int": i64::MIN, "unsigned": u64::MAX, "float": null,
            "single": 0.1, "flag": true, "bytes": "text", "us": "1970-01-01T00:00:00.000000Z",
            "ns": "1970-01-01T00:00:00.000000001Z", "ms": null, "day": "2024-02-29",
            "list": [1, null]}),
        json!({"te\"xt": "", "int": null, "unsigned": null, "float": 1e300, "single": null,
            "flag": false, "bytes": "\\xff00", "us": "1969-12-31T23:59:59.999999Z", "ns": null,
            "ms": "1970-01-01T00:00:00.001Z", "day": "1969-12-31", "list": []}),
        json!({"te\"xt": null, "int": 7, "unsigned": 0, "float": null, "single": null,
            "flag": null, "bytes": null, "us": null, "ns": "2262-04-11T23:47:16.854775807Z",
            "ms": "+37648-05-06T22:07:22.624Z", "day": null, "list": [i64::MIN, 0]}),
    ];
    let rows = values(&path, &ReplayOptions::default());
    assert_eq!(rows.len(), expected.len());
    for (row, expected) in rows.iter().zip(&expected) {
        assert_eq!(row, expected);
    }
    assert_eq!(keys(&path, "te\"xt"), [Some("a\0\"\n".to_owned()), Some(String::new()), None]);
    assert_eq!(keys(&path, "int")[0].as_deref(), Some("-9223372036854775808"));
    assert_eq!(keys(&path, "list"), [None, None, None]);
    let error = refusal(&path, &keyed("INT"));
    assert_eq!(miette::Diagnostic::help(&error).unwrap().to_string(), "did you mean \"int\"?");
}

#[test]
fn parquet_of_many_row_groups_keeps_every_row() {
    let rows = 10_000i64;
    let mut frame = DataFrame::new_infer_height(vec![
        Column::new("id".into(), (0..rows).collect::<Vec<_>>()),
        Column::new("name".into(), (0..rows).map(|row| format!("n{row}")).collect::<Vec<_>>()),
    ])
    .unwrap();
    for group_rows in [700, 10_000] {
        let (_folder, path) = parquet(&mut frame, group_rows);
        for max_rows in [1, 333, 100_000] {
            let mut replay = Replay::open(&path, &keyed("name")).unwrap();
            assert_eq!(replay.total_rows(), Some(rows as u64));
            for (row, record) in read(&mut replay, max_rows).iter().enumerate() {
                assert_eq!(record.key, Some(format!("n{row}").into_bytes()));
                assert_eq!(
                    record.payload,
                    format!(r#"{{"id":{row},"name":"n{row}"}}"#).into_bytes()
                );
            }
        }
    }
}

#[test]
fn parquet_without_rows_and_files_that_are_not_parquet() {
    let (_folder, path) = parquet(&mut odd_frame().head(Some(0)), 10);
    assert_eq!(values(&path, &ReplayOptions::default()), Vec::<Value>::new());
    for content in ["", "PAR1", "{\"a\":1}\n", "PAR1 and something that is no footer PAR1"] {
        let (_folder, path) = file("a.parquet", content);
        let error = refusal(&path, &ReplayOptions::default());
        assert!(matches!(error, ReplayError::Polars { .. }), "{error}");
    }
}

#[test]
fn a_damaged_parquet_file_is_an_error_and_never_a_panic() {
    let (_folder, path) = parquet(&mut odd_frame(), 2);
    let whole = std::fs::read(&path).unwrap();
    let mut refused = 0;
    for at in 4..whole.len() - 8 {
        let mut damaged = whole.clone();
        damaged[at] ^= 0xFF;
        std::fs::write(&path, damaged).unwrap();
        match Replay::open(&path, &ReplayOptions::default()) {
            Ok(mut replay) => {
                while let Some(batch) = replay.next_batch(10) {
                    refused += u32::from(batch.is_err());
                }
            }
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 100, "{refused}");
}

#[test]
fn a_parquet_column_without_a_json_form_is_named() {
    let spans = Int64Chunked::from_slice("span".into(), &[1]).into_duration(TimeUnit::Microseconds);
    let mut frame = DataFrame::new_infer_height(vec![spans.into_column()]).unwrap();
    let (_folder, path) = parquet(&mut frame, 10);
    let error = refusal(&path, &ReplayOptions::default());
    assert!(
        matches!(&error, ReplayError::UnsupportedColumn { column, .. } if column == "span"),
        "{error}"
    );
}

/// A float that serde_json reads exactly; it may be off by the last bit for others.
fn sixteenths(value: Option<i32>) -> Option<f64> {
    value.map(|value| f64::from(value) / 16.0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_row_survives_parquet(
        rows in prop::collection::vec((any::<Option<String>>(), any::<Option<i64>>(), any::<Option<i32>>()), 1..20),
        group_rows in 1usize..30,
    ) {
        let mut frame = DataFrame::new_infer_height(vec![
            Column::new("s".into(), rows.iter().map(|row| row.0.as_deref()).collect::<Vec<_>>()),
            Column::new("i".into(), rows.iter().map(|row| row.1).collect::<Vec<_>>()),
            Column::new("f".into(), rows.iter().map(|row| sixteenths(row.2)).collect::<Vec<_>>()),
        ]).unwrap();
        let (_folder, path) = parquet(&mut frame, group_rows);
        let expected: Vec<Value> =
            rows.iter().map(|(s, i, f)| json!({"s": s, "i": i, "f": sixteenths(*f)})).collect();
        prop_assert_eq!(values(&path, &ReplayOptions::default()), expected);
    }
}
