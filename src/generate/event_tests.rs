use super::*;
use chrono::{DateTime, Utc};
use proptest::prelude::*;
use serde_json::Value;
use std::collections::{HashMap, HashSet};

const NOW_MS: u64 = 1_760_000_000_123;

fn ids(count: u64) -> impl Iterator<Item = EventId> {
    (0..count).map(|seq| EventId::new(NOW_MS + seq / 50, 77, (seq % 3) as u8, seq))
}

fn maker(stream: Builtin) -> EventMaker {
    EventMaker::new(stream, 42, &Mix::default())
}

/// Only events of one sort.
fn only(change: fn(&mut Mix)) -> Mix {
    let mut mix = Mix { late: 0.0, duplicate: 0.0, malformed: 0.0, future: 0.0, ..Mix::default() };
    change(&mut mix);
    mix.validate().unwrap();
    mix
}

fn object(event: &Event) -> serde_json::Map<String, Value> {
    let payload = event.payload.as_deref().expect("a payload");
    serde_json::from_slice(payload).unwrap_or_else(|error| {
        panic!("{error}: {}", String::from_utf8_lossy(payload));
    })
}

fn instant(value: &Value) -> DateTime<Utc> {
    let text = value.as_str().unwrap();
    assert!(text.ends_with('Z'), "{text}");
    DateTime::parse_from_rfc3339(text).unwrap().to_utc()
}

/// The event time of `event`, relative to its id, in seconds.
fn offset_seconds(event: &Event, field: &str) -> f64 {
    let made = event.id.parts().unix_ms as f64 / 1000.0;
    instant(&object(event)[field]).timestamp_micros() as f64 / 1e6 - made
}

proptest! {
    #[test]
    fn an_event_is_a_pure_function_of_stream_seed_and_id(
        seed: u64, unix_ms in 0u64..4_000_000_000_000, run in 0u32..1 << 18, task: u8,
        seq in 0u64..1 << 40,
    ) {
        let id = EventId::new(unix_ms, run, task, seq);
        // A tenth of everything, so that few cases reach all the sorts.
        let mix = Mix { late: 0.1, duplicate: 0.1, malformed: 0.4, future: 0.1, ..Mix::default() };
        for stream in Builtin::ALL {
            let event = EventMaker::new(stream, seed, &mix).make(id);
            let again = EventMaker::new(stream, seed, &mix);
            // What is made between does not matter.
            again.make(EventId::new(unix_ms, run, task, seq ^ 1));
            prop_assert_eq!(&again.make(id), &event);
            prop_assert_eq!(again.fate(id), event.fate);
            prop_assert_eq!(again.duplicate(id), event.duplicate);
            prop_assert_eq!(event.id, id);
            let dead = matches!(event.fate, Fate::Dead { .. });
            prop_assert!(!(event.late && dead));
            if !dead {
                object(&event);
            }
        }
    }
}

#[test]
fn another_seed_stream_or_run_makes_other_events() {
    let id = EventId::new(NOW_MS, 1, 0, 5);
    let payload =
        |seed, id| EventMaker::new(Builtin::Features, seed, &only(|_| ())).make(id).payload;
    assert_ne!(payload(1, id), payload(2, id));
    assert_ne!(payload(1, id), payload(1, EventId::new(NOW_MS, 2, 0, 5)));
    assert_ne!(payload(1, id), payload(1, EventId::new(NOW_MS, 1, 1, 5)));
}

#[test]
fn shares_are_those_of_the_mix() {
    for stream in Builtin::ALL {
        let maker = maker(stream);
        let count = 400_000;
        let mut shares = HashMap::<&str, f64>::new();
        for id in ids(count) {
            let event = maker.make(id);
            let mut note = |what| *shares.entry(what).or_default() += 1.0 / count as f64;
            match event.fate {
                Fate::Dead { reason: reasons::FUTURE_TIMESTAMP } => note("future"),
                Fate::Dead { .. } => note("malformed"),
                Fate::Filtered => note("filtered"),
                Fate::Good { rows: 2 } => note("two rows"),
                Fate::Good { rows } => assert_eq!(rows, 1),
            }
            if event.late {
                note("late");
            }
            if event.duplicate {
                note("duplicate");
            }
        }
        let near = |what: &str, expected: f64| {
            let share = shares.get(what).copied().unwrap_or_default();
            // Six standard deviations.
            let tolerance = 6.0 * (expected / count as f64).sqrt();
            assert!((share - expected).abs() <= tolerance, "{what}: {share}, not {expected}");
        };
        near("late", 0.02);
        near("duplicate", 0.01);
        near("malformed", 0.005);
        near("future", 0.002);
        let live = 1.0 - 0.005 - 0.002;
        near("filtered", if stream == Builtin::Clicks { 0.15 * live } else { 0.0 });
        near("two rows", if stream == Builtin::Clicks { 0.03 * live } else { 0.0 });
    }
}

#[test]
fn entities_are_skewed_and_keys_are_entities() {
    for stream in Builtin::ALL {
        let maker = EventMaker::new(stream, 42, &only(|_| ()));
        let mut seen = HashMap::<Vec<u8>, u32>::new();
        for id in ids(100_000) {
            let event = maker.make(id);
            let fields = object(&event);
            let key = event.key.clone().unwrap();
            let entity = match stream {
                Builtin::Features => fields["entity_id"].as_str().unwrap().to_owned(),
                Builtin::Clicks => fields["user_id"].as_u64().unwrap().to_string(),
            };
            assert_eq!(key, entity.into_bytes());
            *seen.entry(key).or_default() += 1;
        }
        let first: &[u8] = if stream == Builtin::Features { b"user-000001" } else { b"1" };
        // 1 / sum(k^-1.1 for k in 1..=10000) = 0.150
        let share = f64::from(seen[first]) / 100_000.0;
        assert!((share - 0.150).abs() < 0.01, "{share}");
        assert!(seen.len() > 3000, "{}", seen.len());
    }
}

#[test]
fn feature_events_say_what_the_schema_says() {
    let maker = EventMaker::new(Builtin::Features, 1, &only(|_| ()));
    let (mut names, mut nulls, mut same_instant) = (HashSet::new(), 0, 0);
    for id in ids(20_000) {
        let event = maker.make(id);
        let fields = object(&event);
        assert_eq!(fields.len(), 5);
        names.insert(fields["feature_name"].as_str().unwrap().to_owned());
        match &fields["value"] {
            Value::Null => nulls += 1,
            value => assert!(value.as_f64().unwrap().is_finite()),
        }
        let offset = offset_seconds(&event, "validated_at");
        assert!((-1e-6..0.001).contains(&offset), "{offset}");
        let pause = instant(&fields["created_at"]) - instant(&fields["validated_at"]);
        assert!((0..=2_000_000).contains(&pause.num_microseconds().unwrap()));
        same_instant += u32::from(pause.is_zero());
    }
    assert_eq!(names.len(), 20);
    assert!((300..500).contains(&nulls), "{nulls}");
    assert!((9_000..11_000).contains(&same_instant), "{same_instant}");
}

#[test]
fn click_events_have_the_rows_of_their_action() {
    let maker = EventMaker::new(Builtin::Clicks, 1, &only(|_| ()));
    let mut shapes = HashSet::new();
    for id in ids(20_000) {
        let event = maker.make(id);
        let fields = object(&event);
        let action = fields["action"].as_str().unwrap();
        let fate = match action {
            "scroll" => Fate::Filtered,
            "view" | "click" | "add_to_cart" => Fate::Good { rows: 1 },
            "purchase" => Fate::Good { rows: 2 },
            other => panic!("{other}"),
        };
        assert_eq!(event.fate, fate);
        assert!((-1e-6..0.001).contains(&offset_seconds(&event, "timestamp")));
        let number = |field: &str| fields.get(field).is_some_and(Value::is_number);
        assert_eq!(number("amount"), matches!(action, "add_to_cart" | "purchase"));
        assert_eq!(number("duration_ms"), matches!(action, "view" | "scroll"));
        assert_eq!(fields.get("page").is_some_and(Value::is_string), action != "purchase");
        shapes.insert((action.to_owned(), fields.len()));
    }
    // Each action comes with what it lacks as null and left out.
    assert_eq!(shapes.len(), 10, "{shapes:?}");
}

#[test]
fn late_and_future_events_have_moved_event_times() {
    const DAY: f64 = 86_400.0;
    for (stream, field) in [(Builtin::Features, "validated_at"), (Builtin::Clicks, "timestamp")] {
        let late = EventMaker::new(stream, 9, &only(|mix| mix.late = 1.0));
        let future = EventMaker::new(stream, 9, &only(|mix| mix.future = 1.0));
        let mut days = 0;
        for id in ids(5_000) {
            let event = late.make(id);
            assert!(event.late);
            let offset = offset_seconds(&event, field);
            assert!((-3.0 * DAY..=-59.99).contains(&offset), "{offset}");
            days += u32::from(offset < -DAY);
            let event = future.make(id);
            assert!(!event.late);
            assert_eq!(event.fate, Fate::Dead { reason: reasons::FUTURE_TIMESTAMP });
            let offset = offset_seconds(&event, field);
            assert!((3600.0..=30.0 * DAY + 0.01).contains(&offset), "{offset}");
            if stream == Builtin::Clicks {
                assert_ne!(object(&event)["action"], "scroll");
            }
        }
        assert!((1_400..2_000).contains(&days), "{days}");
        // The first day of the epoch leaves no room for three days.
        assert!(offset_seconds(&late.make(EventId::new(0, 0, 0, 0)), field) <= 0.001);
    }
}

/// The reason that a plain decoder with serde_json gives for the payload of a malformed event:
/// an oracle apart from the tables of defects.
fn judged(stream: Builtin, payload: Option<&[u8]>) -> Option<&'static str> {
    let (entity, time, texts, numbers): (_, _, &[&str], &[&str]) = match stream {
        Builtin::Features => {
            ("entity_id", "validated_at", &["entity_id", "feature_name"], &["value"])
        }
        Builtin::Clicks => {
            ("user_id", "timestamp", &["action", "page"], &["user_id", "duration_ms", "amount"])
        }
    };
    let Some(payload) = payload else {
        return Some(reasons::NULL_PAYLOAD);
    };
    if payload.is_empty() {
        return Some(reasons::EMPTY_PAYLOAD);
    }
    let Ok(text) = std::str::from_utf8(payload) else {
        return Some(reasons::INVALID_UTF8);
    };
    let value: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(error) if error.to_string().contains("out of range") => {
            return Some(reasons::NUMBER_OUT_OF_RANGE);
        }
        Err(_) => return Some(reasons::INVALID_JSON),
    };
    let Some(fields) = value.as_object() else {
        return Some(reasons::NOT_AN_OBJECT);
    };
    let given = |field: &&&str| fields.get(**field).filter(|value| !value.is_null()).is_some();
    if texts.iter().filter(given).any(|field| !fields[*field].is_string())
        || numbers.iter().filter(given).any(|field| !fields[*field].is_number())
    {
        return Some(reasons::WRONG_TYPE);
    }
    match fields.get(entity) {
        None | Some(Value::Null) => return Some(reasons::MISSING_ENTITY),
        Some(Value::String(entity)) if entity.is_empty() => return Some(reasons::EMPTY_ENTITY),
        Some(_) => {}
    }
    match fields.get(time) {
        None | Some(Value::Null) => return Some(reasons::MISSING_EVENT_TIMESTAMP),
        Some(value) => {
            if DateTime::parse_from_rfc3339(value.as_str()?).is_err() {
                return Some(reasons::INVALID_TIMESTAMP);
            }
        }
    }
    let missing = stream == Builtin::Features && !fields.contains_key("feature_name");
    missing.then_some(reasons::MISSING_FIELD)
}

#[test]
fn every_malformed_kind_comes_and_is_what_it_claims() {
    for stream in Builtin::ALL {
        let maker = EventMaker::new(stream, 3, &only(|mix| mix.malformed = 1.0));
        let good = EventMaker::new(stream, 3, &only(|_| ()));
        let mut seen = HashSet::new();
        for id in ids(20_000) {
            let event = maker.make(id);
            let Fate::Dead { reason } = event.fate else { panic!("{event:?}") };
            let found = judged(stream, event.payload.as_deref());
            let text = event.payload.as_deref().map(String::from_utf8_lossy);
            assert_eq!(found, Some(reason), "{text:?}");
            seen.insert(reason);
            let key = event.key.expect("malformed events keep their key");
            assert!(key.starts_with(if stream == Builtin::Features { b"user-" } else { b"" }));
            assert_eq!(judged(stream, good.make(id).payload.as_deref()), None);
        }
        let expected: HashSet<_> = stream.defects().iter().map(|defect| defect.reason).collect();
        assert_eq!(seen, expected);
        assert_eq!(seen.len(), if stream == Builtin::Features { 12 } else { 10 });
    }
}

#[test]
fn a_mix_that_was_not_validated_still_makes_events() {
    let mix = Mix { late: f64::NAN, malformed: 7.0, entities: 0, zipf: f64::NAN, ..Mix::default() };
    for stream in Builtin::ALL {
        for id in ids(100) {
            EventMaker::new(stream, 1, &mix).make(id);
        }
    }
}
