//! The envelope of a plain write request: which table, and the row.

use super::{
    json::{Row, SKIP, Skip, fail},
    reasons,
};
use crate::config::{FieldType, SchemaField, StreamConfig};
use serde::de::{MapAccess, Visitor};
use std::fmt;

/// The only table that takes plain writes.
pub const TABLE: &str = "features_table";

/// The schema of the row, as if it were a stream's; topic and script of it are not used.
pub fn stream() -> StreamConfig {
    let fields = [
        ("entity_id", FieldType::String),
        ("feature_name", FieldType::String),
        ("value", FieldType::Float64),
        ("event_timestamp", FieldType::Timestamp),
        ("created_at", FieldType::Timestamp),
    ];
    StreamConfig {
        name: "plain_writes".into(),
        entity: "entity_id".into(),
        event_time: "event_timestamp".into(),
        required: vec!["feature_name".into()],
        created_at: "created_at".into(),
        schema: fields.map(|(name, kind)| SchemaField { name: name.into(), kind }).into(),
        // The bounds of time are those of the streams that ship.
        ..StreamConfig::shipped().remove(0)
    }
}

/// Reads `{"table": …, "data": {…}}`, in any order; other fields are left alone.
pub struct Envelope<'a> {
    /// What `table` must be.
    pub table: &'static str,
    /// Takes `data`.
    pub row: Row<'a>,
}

impl<'de> Visitor<'de> for Envelope<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `table` and `data`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let found = self.row.found;
        let twice = |name: &str| {
            fail(found, reasons::DUPLICATE_FIELD, format!("`{name}` stands twice in the object"))
        };
        let missing = |name: &str| {
            fail(found, reasons::MISSING_FIELD, format!("`{name}` is missing or null"))
        };
        let mut table = None;
        let mut row = Some(self.row);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "table" if table.is_some() => return Err(twice("table")),
                "table" => {
                    let mut text = None;
                    map.next_value_seed(Skip { text: Some(&mut text) })?;
                    table = Some(text);
                }
                "data" => match row.take() {
                    Some(row) => map.next_value_seed(row)?,
                    None => return Err(twice("data")),
                },
                _ => map.next_value_seed(SKIP)?,
            }
        }
        match table {
            None => return Err(missing("table")),
            Some(None) => {
                let detail = "`table` must be a string".into();
                return Err(fail(found, reasons::WRONG_TYPE, detail));
            }
            Some(Some(name)) if name != self.table => {
                let shown: String = name.chars().take(80).collect();
                let detail = format!("no plain write goes to {shown:?}, only to `{}`", self.table);
                return Err(fail(found, reasons::UNKNOWN_TABLE, detail));
            }
            Some(Some(_)) => {}
        }
        if row.is_some() { Err(missing("data")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        decode::Decoder,
        messages::{Record, Records},
    };
    use arrow::array::{Array, AsArray};

    const NOW: i64 = 1_700_000_000_000_000;
    const ROW: &str = r#"{"entity_id":"e","feature_name":"f","value":1.5,"event_timestamp":"2023-11-14T22:13:20Z"}"#;

    fn decode(text: &str) -> Result<crate::decode::Decoded, (String, String)> {
        let mut records = Records::default();
        let payload = text.as_bytes().into();
        records.push(Record { position: 7, timestamp_us: NOW - 5, event_id: None, payload });
        let decoded = Decoder::plain_writes().decode(&[&[records]], NOW).unwrap();
        match decoded.dead[0].first() {
            Some(letter) => Err((letter.reason.clone(), letter.detail.clone())),
            None => Ok(decoded),
        }
    }

    fn with(row: &str) -> String {
        format!(r#"{{"table":"features_table","data":{row}}}"#)
    }

    #[test]
    fn a_good_one_is_a_row_whatever_the_order_of_its_fields() {
        for text in
            [with(ROW), format!(r#"{{"data":{ROW},"note":{{"a":[1]}},"table":"features_table"}}"#)]
        {
            let decoded = decode(&text).unwrap();
            assert_eq!(decoded.batch.column(0).as_string::<i32>().value(0), "e");
            assert_eq!(decoded.positions, [7]);
            assert_eq!(decoded.created_at_us, [NOW - 5], "missing: the entry's own time");
        }
        let null = decode(&with(&ROW.replace("1.5", "null"))).unwrap();
        assert!(null.batch.column(2).is_null(0), "null is a value");
    }

    #[test]
    fn every_bad_one_has_its_reason() {
        let row = |from: &str, to: &str| with(&ROW.replace(from, to));
        for (text, reason) in [
            (ROW.to_owned(), reasons::MISSING_FIELD),
            (format!(r#"{{"data":{ROW}}}"#), reasons::MISSING_FIELD),
            (r#"{"table":"features_table"}"#.into(), reasons::MISSING_FIELD),
            (format!(r#"{{"table":7,"data":{ROW}}}"#), reasons::WRONG_TYPE),
            (format!(r#"{{"table":null,"data":{ROW}}}"#), reasons::WRONG_TYPE),
            (format!(r#"{{"table":"sources","data":{ROW}}}"#), reasons::UNKNOWN_TABLE),
            (with("[1]"), reasons::NOT_AN_OBJECT),
            (with("null"), reasons::NOT_AN_OBJECT),
            ("[]".into(), reasons::NOT_AN_OBJECT),
            ("{".into(), reasons::INVALID_JSON),
            (format!("{} x", with(ROW)), reasons::INVALID_JSON),
            (
                format!(r#"{{"table":"features_table","data":{ROW},"data":{ROW}}}"#),
                reasons::DUPLICATE_FIELD,
            ),
            (
                format!(r#"{{"table":"features_table","table":"x","data":{ROW}}}"#),
                reasons::DUPLICATE_FIELD,
            ),
            (row(r#""value":1.5,"#, ""), reasons::MISSING_FIELD),
            (row(r#""feature_name":"f","#, ""), reasons::MISSING_FIELD),
            (row(r#""entity_id":"e","#, ""), reasons::MISSING_ENTITY),
            (row(r#":"e""#, r#":"""#), reasons::EMPTY_ENTITY),
            (row("1.5", "\"1.5\""), reasons::WRONG_TYPE),
            (row("1.5", "1e999"), reasons::NUMBER_OUT_OF_RANGE),
            (row("2023-11-14T22:13:20Z", "2023-11-14T22:13:20"), reasons::INVALID_TIMESTAMP),
            (row("2023-11", "2024-11"), reasons::FUTURE_TIMESTAMP),
            (row("event_timestamp", "at"), reasons::MISSING_EVENT_TIMESTAMP),
        ] {
            match decode(&text) {
                Ok(_) => panic!("{text} is good, but should be {reason}"),
                Err((found, detail)) => assert_eq!(found, reason, "{text}: {detail}"),
            }
        }
    }
}
