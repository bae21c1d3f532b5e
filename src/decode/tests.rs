//! Every kind of bad record beside good ones.

use super::*;
use crate::messages::Record;
use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float64Type, TimestampMicrosecondType, UInt32Type};
use proptest::prelude::*;

const NOW: i64 = 1_700_000_000_000_000;

fn decoder(change: impl FnOnce(&mut StreamConfig)) -> Decoder {
    let mut stream = StreamConfig::shipped().remove(0);
    change(&mut stream);
    Decoder::new(Arc::new(stream))
}

fn records(payloads: &[Option<&[u8]>]) -> Records {
    let mut records = Records::default();
    for (i, payload) in payloads.iter().enumerate() {
        let record = Record {
            position: 100 + i as i64,
            timestamp_us: NOW,
            event_id: None,
            payload: (*payload).into(),
        };
        records.push(record);
    }
    records
}

fn decode_one(decoder: &Decoder, payload: Option<&[u8]>) -> Result<Decoded, (String, String)> {
    let records = [records(&[payload])];
    let decoded = decoder.decode(&[&records], NOW).unwrap();
    match decoded.dead[0].first() {
        Some(letter) => Err((letter.reason.clone(), letter.detail.clone())),
        None => Ok(decoded),
    }
}

const GOOD: &str =
    r#"{"entity_id":"e","feature_name":"f","value":1.5,"validated_at":"2023-11-14T22:13:20Z"}"#;

#[test]
fn every_bad_record_has_its_reason() {
    let d = decoder(|_| {});
    let deep = format!(
        "{}{}{}",
        &GOOD[..GOOD.len() - 1],
        r#","x":"#,
        "[".repeat(300) + &"]".repeat(300) + "}"
    );
    let with = |field: &str, value: &str| {
        let mut object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(GOOD).unwrap();
        object.remove(field);
        let rest = serde_json::to_string(&object).unwrap();
        format!("{},\"{field}\":{value}}}", &rest[..rest.len() - 1])
    };
    let without = |field: &str| {
        let mut object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(GOOD).unwrap();
        object.remove(field);
        serde_json::to_string(&object).unwrap()
    };
    let huge = with("entity_id", &format!("\"{}\"", "x".repeat(10 << 20)));
    let mut not_utf8 = GOOD.as_bytes().to_vec();
    not_utf8[15] = 0xff;
    let text = |s: &str| Some(s.as_bytes().to_vec());
    for (payload, reason) in [
        (None, reasons::NULL_PAYLOAD),
        (text(""), reasons::EMPTY_PAYLOAD),
        (text(&GOOD[..30]), reasons::INVALID_JSON),
        (text(&format!("{GOOD} x")), reasons::INVALID_JSON),
        (text(&deep), reasons::INVALID_JSON),
        (text(&with("value", "NaN")), reasons::INVALID_JSON),
        (text(&with("value", "Infinity")), reasons::INVALID_JSON),
        (Some(not_utf8), reasons::INVALID_UTF8),
        (text("[1,2]"), reasons::NOT_AN_OBJECT),
        (text("17"), reasons::NOT_AN_OBJECT),
        (text(&without("entity_id")), reasons::MISSING_ENTITY),
        (text(&with("entity_id", "null")), reasons::MISSING_ENTITY),
        (text(&with("entity_id", "\"\"")), reasons::EMPTY_ENTITY),
        (text(&without("validated_at")), reasons::MISSING_EVENT_TIMESTAMP),
        (text(&with("validated_at", "null")), reasons::MISSING_EVENT_TIMESTAMP),
        (text(&without("feature_name")), reasons::MISSING_FIELD),
        (text(&with("value", "\"NaN\"")), reasons::WRONG_TYPE),
        (text(&with("value", "{}")), reasons::WRONG_TYPE),
        (text(&with("value", "[1]")), reasons::WRONG_TYPE),
        (text(&with("value", "true")), reasons::WRONG_TYPE),
        (text(&with("entity_id", "5")), reasons::WRONG_TYPE),
        (text(&with("value", "1e999")), reasons::NUMBER_OUT_OF_RANGE),
        (text(&with("validated_at", "\"yesterday\"")), reasons::INVALID_TIMESTAMP),
        (text(&with("validated_at", "\"2023-11-14T22:13:20\"")), reasons::INVALID_TIMESTAMP),
        (text(&with("validated_at", "\"2023-11-14T23:13:20Z\"")), reasons::FUTURE_TIMESTAMP),
        (text(&with("validated_at", "\"1066-10-14T12:00:00Z\"")), reasons::TIMESTAMP_OUT_OF_RANGE),
        (
            text(&format!("{},{}", &GOOD[..GOOD.len() - 1], r#""value":2}"#)),
            reasons::DUPLICATE_FIELD,
        ),
        (text(&huge), reasons::RECORD_TOO_LARGE),
    ] {
        let shown = payload
            .as_deref()
            .map(|p| String::from_utf8_lossy(&p[..p.len().min(120)]).into_owned());
        match decode_one(&d, payload.as_deref()) {
            Ok(_) => panic!("{shown:?} is good, but should be {reason}"),
            Err((found, detail)) => assert_eq!(found, reason, "{shown:?}: {detail}"),
        }
    }
}

#[test]
fn a_bad_record_takes_no_good_one_with_it() {
    let d = decoder(|_| {});
    // Bad only at its last field: what came before it must be taken back.
    let late = r#"{"feature_name":"f2","value":9,"entity_id":"gone","validated_at":5}"#;
    let null = r#"{"entity_id":"n","feature_name":"f","value":null,"validated_at":"2023-11-14T22:13:20.5Z"}"#;
    let payloads = [
        Some(GOOD.as_bytes()),
        Some(late.as_bytes()),
        None,
        Some(null.as_bytes()),
        Some(b"{".as_slice()),
    ];
    let records = [records(&payloads)];
    let decoded = d.decode(&[&records], NOW).unwrap();
    assert_eq!(decoded.positions, [100, 103]);
    assert_eq!(decoded.record_of_row, [0, 3]);
    let entities = decoded.batch.column(0).as_string::<i32>();
    assert_eq!((entities.value(0), entities.value(1)), ("e", "n"));
    let values = decoded.batch.column(2).as_primitive::<Float64Type>();
    assert_eq!((values.value(0), values.is_null(1)), (1.5, true), "a null value is a value");
    let times = decoded.batch.column(3).as_primitive::<TimestampMicrosecondType>();
    assert_eq!(times.values().to_vec(), [NOW, NOW + 500_000]);
    let rows = decoded.batch.column_by_name("_row").unwrap().as_primitive::<UInt32Type>();
    assert_eq!(rows.values().to_vec(), [0, 1]);
    let dead: Vec<_> = decoded.dead[0].iter().map(|l| (l.pos, l.reason.as_str())).collect();
    assert_eq!(dead, [(101, "wrong_type"), (102, "null_payload"), (104, "invalid_json")]);
    assert_eq!(decoded.dead[0][0].entity_id.as_deref(), Some("gone"));
    assert_eq!(decoded.dead[0][2].raw.as_deref(), Some(b"{".as_slice()));
    assert_eq!(decoded.dead[0][2].raw_sha256.as_ref().unwrap().len(), 64);
}

#[test]
fn parts_keep_their_rows_apart() {
    let d = decoder(|_| {});
    let (a, b) =
        ([records(&[Some(GOOD.as_bytes()), None])], [records(&[None, Some(GOOD.as_bytes())])]);
    let decoded = d.decode(&[&a, &b], NOW).unwrap();
    assert_eq!(decoded.part_ends, [1, 2]);
    assert_eq!((decoded.dead[0][0].pos, decoded.dead[1][0].pos), (101, 100));
}

#[test]
fn ids_come_from_the_header_or_the_field_and_unknown_fields_are_left_alone() {
    let d = decoder(|_| {});
    let id = "018bcfe5-6800-7000-8000-000000000001";
    let with = |extra: &str| format!("{},{extra}}}", &GOOD[..GOOD.len() - 1]);
    let id_of = |extra: &str| decode_one(&d, Some(with(extra).as_bytes())).unwrap().event_ids[0];
    assert_eq!(id_of(&format!("\"event_id\":\"{id}\"")).to_string(), id);
    assert!(id_of("\"event_id\":[1,{\"a\":null}]").is_nil());
    assert!(id_of("\"other\":{\"entity_id\":\"not me\"}").is_nil());

    let bad = GOOD.replacen('{', &format!("{{\"event_id\":\"{id}\","), 1).replace("1.5", "\"1.5\"");
    let null = records(&[Some(bad.as_bytes()), Some(b"{\"value\":[]}"), None]);
    let decoded = d.decode(&[&[null]], NOW).unwrap();
    let ids: Vec<_> = decoded.dead[0].iter().map(|letter| letter.event_id).collect();
    assert_eq!(ids, [Some(id.parse().unwrap()), None, None], "a bad record keeps the id it says");
}

#[test]
fn created_at_is_the_producers_or_the_records() {
    let d = decoder(|_| {});
    assert_eq!(decode_one(&d, Some(GOOD.as_bytes())).unwrap().created_at_us, [NOW]);
    let made = format!("{},\"created_at\":\"2023-11-14T22:13:19Z\"}}", &GOOD[..GOOD.len() - 1]);
    assert_eq!(decode_one(&d, Some(made.as_bytes())).unwrap().created_at_us, [NOW - 1_000_000]);
}

#[test]
fn zoneless_timestamps_are_read_when_the_stream_says_so() {
    let d = decoder(|s| s.timezone = Some("UTC".into()));
    let naive = GOOD.replace("20Z", "20");
    assert!(decode_one(&d, Some(naive.as_bytes())).is_ok());
}

#[test]
fn every_generated_event_has_the_fate_that_the_generator_says() {
    use crate::generate::{Builtin, EventId, EventMaker, Fate, Mix};
    let mix = Mix { malformed: 0.5, future: 0.1, ..Mix::default() };
    let now_us = 1_760_000_000_000_000;
    for (stream, builtin) in StreamConfig::shipped().into_iter().zip(Builtin::ALL) {
        assert_eq!(stream.name, builtin.name());
        let d = Decoder::new(Arc::new(stream));
        let maker = EventMaker::new(builtin, 7, &mix);
        for seq in 0..4_000 {
            let event = maker.make(EventId::new(now_us / 1_000, 1, 0, seq));
            let one = [records(&[event.payload.as_deref()])];
            let decoded = d.decode(&[&one], now_us as i64).unwrap();
            let shown = event.payload.as_deref().map(String::from_utf8_lossy);
            match (event.fate, decoded.dead[0].first()) {
                (Fate::Dead { reason }, Some(letter)) => {
                    assert_eq!(letter.reason, reason, "{shown:?}")
                }
                (Fate::Dead { reason }, None) => {
                    panic!("{shown:?} is good, but should be {reason}")
                }
                (_, Some(letter)) => panic!("{shown:?} is {}, but should be good", letter.reason),
                (_, None) => {}
            }
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_panic_or_vanish(payloads in prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..80)), 0..20)) {
        let d = decoder(|_| {});
        let borrowed: Vec<Option<&[u8]>> = payloads.iter().map(Option::as_deref).collect();
        let records = [records(&borrowed)];
        let decoded = d.decode(&[&records], NOW).unwrap();
        prop_assert_eq!(decoded.positions.len() + decoded.dead[0].len(), payloads.len());
    }

    /// Whatever is bad in between, the good rows come out as they went in.
    #[test]
    fn good_rows_survive_any_neighbours(kinds in prop::collection::vec(0u8..4, 1..60)) {
        let d = decoder(|_| {});
        let payloads: Vec<Vec<u8>> = kinds.iter().enumerate().map(|(i, kind)| match kind {
            0 => format!(r#"{{"entity_id":"e{i}","feature_name":"f","value":{i},"validated_at":"2023-11-14T22:13:20Z"}}"#),
            1 => format!(r#"{{"entity_id":"bad{i}","value":"x"}}"#),
            2 => format!(r#"{{"feature_name":"bad{i}""#),
            _ => format!(r#"{{"entity_id":"bad{i}","feature_name":"f","value":1}}"#),
        }.into_bytes()).collect();
        let borrowed: Vec<Option<&[u8]>> = payloads.iter().map(|p| Some(p.as_slice())).collect();
        let records = [records(&borrowed)];
        let decoded = d.decode(&[&records], NOW).unwrap();
        let good: Vec<usize> = (0..kinds.len()).filter(|i| kinds[*i] == 0).collect();
        let entities = decoded.batch.column(0).as_string::<i32>();
        let values = decoded.batch.column(2).as_primitive::<Float64Type>();
        prop_assert_eq!(decoded.batch.num_rows(), good.len());
        for (row, i) in good.into_iter().enumerate() {
            prop_assert_eq!(entities.value(row), format!("e{i}"));
            prop_assert_eq!(values.value(row), i as f64);
        }
    }
}
