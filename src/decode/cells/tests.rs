//! A row as cells has the fate of the JSON object that it stands for.

use super::*;
use crate::{
    config::StreamConfig,
    decode::{Decoded, Decoder, reasons},
    messages::{Payload, Record, Records},
};
use proptest::prelude::*;

const NOW: i64 = 1_700_000_000_000_000;
const KINDS: [FieldType; 8] = [
    FieldType::String,
    FieldType::Int64,
    FieldType::Float64,
    FieldType::Bool,
    FieldType::Timestamp,
    FieldType::TimestampS,
    FieldType::TimestampMs,
    FieldType::TimestampUs,
];

/// An entity, an event time and a field `x` of the kind that is tried.
fn stream(kind: FieldType) -> StreamConfig {
    let fields = [("id", FieldType::String), ("at", FieldType::TimestampUs), ("x", kind)];
    StreamConfig {
        entity: "id".into(),
        event_time: "at".into(),
        required: Vec::new(),
        schema: fields.map(|(name, kind)| SchemaField { name: name.into(), kind }).into(),
        ..StreamConfig::shipped().remove(0)
    }
}

fn texts(all: &[&str]) -> Texts {
    let mut texts = Texts::default();
    all.iter().for_each(|text| texts.push(text));
    texts
}

fn cells(stream: &StreamConfig, x: CellValues, rows: usize) -> Arc<Cells> {
    let column = |values| Some(CellColumn { values, valid: None });
    let columns = vec![
        column(CellValues::Text(texts(&vec!["e"; rows]))),
        column(CellValues::Int(vec![NOW; rows])),
        column(x),
    ];
    let fields = stream.schema.clone().into();
    Arc::new(Cells::new(fields, rows, columns, Vec::new(), BTreeMap::new()))
}

fn decode(stream: &StreamConfig, records: Records) -> Decoded {
    Decoder::new(Arc::new(stream.clone())).decode(&[&[records]], NOW).unwrap()
}

/// The same rows as the JSON that their dead letters would keep.
fn as_json(cells: &Cells) -> Records {
    let mut records = Records::default();
    for row in 0..cells.rows() {
        records.push(Record {
            position: row as i64,
            timestamp_us: 5,
            event_id: cells.event_id(row),
            payload: Payload::Json(&cells.json(row)),
        });
    }
    records
}

fn fates(decoded: &Decoded) -> (Vec<i64>, Vec<(i64, &str)>) {
    let dead = decoded.dead[0].iter().map(|l| (l.pos, l.reason.as_str())).collect();
    (decoded.positions.clone(), dead)
}

/// Panics unless cells and JSON agree; gives what they agree on.
fn agreed(kind: FieldType, x: CellValues, rows: usize) -> Decoded {
    let stream = stream(kind);
    let cells = cells(&stream, x, rows);
    let from_json = decode(&stream, as_json(&cells));
    let from_cells = decode(&stream, Records::of_cells(0, 5, cells));
    assert_eq!(from_cells.batch, from_json.batch);
    assert_eq!(fates(&from_cells), fates(&from_json), "{kind:?}: {from_cells:?} {from_json:?}");
    for (a, b) in from_cells.dead[0].iter().zip(&from_json.dead[0]) {
        assert_eq!((&a.raw, &a.raw_sha256, &a.entity_id), (&b.raw, &b.raw_sha256, &b.entity_id));
    }
    from_cells
}

#[test]
fn text_without_a_type_is_read_as_json_would_have_it() {
    let all = [
        "",
        "0",
        "-0",
        "7",
        "-7",
        "+7",
        "007",
        "1.5",
        ".5",
        "1.",
        "1e3",
        "1E-3",
        "1e",
        "1e999",
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775809",
        "1_000",
        " 7",
        "7 ",
        "true",
        "false",
        "True",
        "null",
        "NaN",
        "inf",
        "\"7\"",
        "[1]",
        "{}",
        "x\u{0}y",
        "2023-11-14T22:13:20Z",
        "2023-11-14T23:13:20.123456789+01:00",
        "2023-11-14T22:13:20",
        "2023-11-14",
        "yesterday",
        "Grüße \"\\\n\t",
    ];
    for kind in KINDS {
        agreed(kind, CellValues::Untyped(texts(&all)), all.len());
    }
    let dead = |kind, text| {
        let decoded = agreed(kind, CellValues::Untyped(texts(&[text])), 1);
        decoded.dead[0].first().map(|letter| letter.reason.clone())
    };
    for (kind, text, reason) in [
        (FieldType::Int64, "+7", Some(reasons::WRONG_TYPE)),
        (FieldType::Int64, "007", Some(reasons::WRONG_TYPE)),
        (FieldType::Int64, "1.0", Some(reasons::WRONG_TYPE)),
        (FieldType::Int64, "9223372036854775808", Some(reasons::NUMBER_OUT_OF_RANGE)),
        (FieldType::Float64, "1e999", Some(reasons::NUMBER_OUT_OF_RANGE)),
        (FieldType::Float64, "x", Some(reasons::WRONG_TYPE)),
        (FieldType::Bool, "TRUE", Some(reasons::WRONG_TYPE)),
        (FieldType::Bool, "true", None),
        (FieldType::Timestamp, "yesterday", Some(reasons::INVALID_TIMESTAMP)),
        (FieldType::TimestampS, "9223372036854775807", Some(reasons::NUMBER_OUT_OF_RANGE)),
        (FieldType::Float64, "", None),
    ] {
        assert_eq!(dead(kind, text).as_deref(), reason, "{kind:?} {text:?}");
    }
}

#[test]
fn typed_cells_are_read_as_json_would_have_them() {
    let ints = [0, -1, 7, i64::MAX, i64::MIN, 1 << 53];
    let floats = [0.0, -0.0, 1.0, -1.5, 1e300, 5e-324, f64::MAX];
    for kind in KINDS {
        agreed(kind, CellValues::Null, 2);
        agreed(kind, CellValues::Text(texts(&["", "a", "2023-11-14T22:13:20Z", "7"])), 4);
        agreed(kind, CellValues::Unsigned(vec![0, 7, u64::MAX, 1 << 63]), 4);
        agreed(kind, CellValues::Bool(vec![true, false]), 2);
        agreed(kind, CellValues::Int(ints.to_vec()), ints.len());
        agreed(kind, CellValues::Float(floats.to_vec()), floats.len());
    }
    let infinite = vec![f64::INFINITY, f64::NEG_INFINITY];
    agreed(FieldType::Float64, CellValues::Float(infinite), 2);
    for decimals in [0, 3, 6, 9] {
        let counts = vec![0, 1, -1, 1_700_000_000, 1_700_000_000_123_456_789, -62_167_219_201];
        agreed(FieldType::Timestamp, CellValues::Instant { counts, decimals }, 6);
        let counts = vec![i64::MAX, i64::MIN];
        agreed(FieldType::Timestamp, CellValues::Instant { counts, decimals }, 2);
    }
    // What JSON has no word for is dead, and stays it.
    let stream = stream(FieldType::Float64);
    let nan = cells(&stream, CellValues::Float(vec![f64::NAN]), 1);
    let again = decode(&stream, as_json(&nan));
    let decoded = decode(&stream, Records::of_cells(0, 5, nan));
    assert_eq!(fates(&decoded).1, [(0, reasons::NUMBER_OUT_OF_RANGE)]);
    assert_eq!(fates(&again).1, [(0, reasons::WRONG_TYPE)]);
}

#[test]
fn long_rows_and_refused_rows_are_dead_and_keep_their_bytes() {
    let long = "\u{1}".repeat(MAX_RECORD_BYTES / 6 - 5);
    let decoded = agreed(FieldType::String, CellValues::Text(texts(&[&long, "x"])), 2);
    assert_eq!(fates(&decoded), (vec![1], vec![(0, reasons::RECORD_TOO_LARGE)]));
    let fits = "\u{1}".repeat(MAX_RECORD_BYTES / 6 - 40);
    assert!(agreed(FieldType::String, CellValues::Text(texts(&[&fits])), 1).dead[0].is_empty());

    let stream = stream(FieldType::String);
    let mut with_bytes =
        Arc::into_inner(cells(&stream, CellValues::Text(texts(&["", "b"])), 2)).unwrap();
    let bad = Bad::new(reasons::INVALID_UTF8, "not UTF-8");
    with_bytes.refuse(0, 2, b"a\xFFb\"", bad);
    assert!(with_bytes.json(0).ends_with(b"\"x\":\"a\xFFb\\\"\"}"));
    let with_bytes = Arc::new(with_bytes);
    let again = decode(&stream, as_json(&with_bytes));
    let decoded = decode(&stream, Records::of_cells(7, 5, with_bytes));
    assert_eq!(fates(&decoded), (vec![8], vec![(7, reasons::INVALID_UTF8)]));
    assert_eq!(fates(&again).1, [(0, reasons::INVALID_UTF8)]);
}

#[test]
fn numbers_are_those_of_json() {
    for (text, is) in [
        ("0", true),
        ("-1.5e+10", true),
        ("1E5", true),
        ("-", false),
        ("01", false),
        ("1.", false),
        ("1e+", false),
        ("+1", false),
        ("", false),
        ("0x1", false),
        ("1 ", false),
    ] {
        assert_eq!(is_number(text.as_bytes()), is, "{text}");
    }
}

proptest! {
    #[test]
    fn any_text_has_the_fate_of_its_json(
        all in prop::collection::vec("[-+0-9.eE]{0,8}|\\PC{0,12}|.{0,6}", 1..20),
        kind in 0usize..8,
    ) {
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        agreed(KINDS[kind], CellValues::Untyped(texts(&all)), all.len());
    }

    #[test]
    fn any_instant_has_the_fate_of_its_json(
        counts in prop::collection::vec(any::<i64>(), 1..20),
        decimals in prop::sample::select(vec![0u8, 3, 6, 9]),
        small in 0u32..40,
    ) {
        let counts: Vec<i64> = counts.into_iter().map(|c| c >> small).collect();
        let rows = counts.len();
        agreed(FieldType::Timestamp, CellValues::Instant { counts: counts.clone(), decimals }, rows);
        agreed(FieldType::TimestampUs, CellValues::Instant { counts, decimals: 6 }, rows);
    }
}
