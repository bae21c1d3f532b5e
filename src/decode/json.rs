//! One JSON object into the row that comes next, driven by the declared schema.
//!
//! serde_json's streaming parser calls back for each field; there is no tree of values.

use super::{
    Bad,
    cells::{self, Cell},
    columns::Column,
    envelope::Envelope,
    reasons, timestamp,
};
use crate::config::{FieldType, StreamConfig};
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, Visitor};
use std::{cell, cell::RefCell, fmt};
use uuid::Uuid;

/// The key that carries the producer's UUID when the record has no header for it.
pub(super) const EVENT_ID: &str = "event_id";

/// The schema, as the parser needs it.
#[derive(Debug)]
pub struct Plan {
    fields: Vec<(String, FieldType)>,
    naive_is_utc: bool,
    reads_event_id: bool,
    /// Index of the entity's column.
    pub entity: usize,
    /// Index of the event timestamp's column.
    pub event_time: usize,
    /// Index of the producer's timestamp, when the schema declares it.
    pub created_at: Option<usize>,
    /// Further columns that must not be null.
    pub required: Vec<usize>,
    /// Columns that must stand in the object, though they may be null.
    pub stated: Vec<usize>,
    /// The row is the field `data` of an object whose field `table` must be this.
    pub table: Option<&'static str>,
}

impl Plan {
    /// The stream was validated: its entity, event time and required fields are declared.
    pub fn new(stream: &StreamConfig) -> Self {
        let index = |name: &str| stream.schema.iter().position(|f| f.name == name);
        Self {
            fields: stream.schema.iter().map(|f| (f.name.clone(), f.kind)).collect(),
            naive_is_utc: stream.timezone.is_some(),
            reads_event_id: index(EVENT_ID).is_none(),
            entity: index(&stream.entity).unwrap_or_default(),
            event_time: index(&stream.event_time).unwrap_or_default(),
            created_at: index(&stream.created_at),
            required: stream.required.iter().filter_map(|name| index(name)).collect(),
            stated: Vec::new(),
            table: None,
        }
    }

    /// The rules of field `i`, for a value that goes into `column`.
    pub(super) fn value<'a>(
        &'a self,
        i: usize,
        column: &'a mut Column,
        found: &'a Found,
    ) -> Value<'a> {
        let (name, kind) = &self.fields[i];
        Value { name, kind: *kind, column, naive_is_utc: self.naive_is_utc, found }
    }
}

/// What a callback found wrong; the parser's own error only says where.
pub(super) type Found = RefCell<Option<Bad>>;

/// Parses `text` into row `row` of the columns. On an error some of the columns may have been put.
/// `event_id` is what the object says under that key, on an error as well when it got that far.
///
/// # Errors
/// Why the record is dead.
pub fn parse(
    text: &str,
    plan: &Plan,
    columns: &mut [Column],
    row: usize,
    event_id: &cell::Cell<Option<Uuid>>,
) -> Result<(), Bad> {
    let found = Found::default();
    let mut json = serde_json::Deserializer::from_str(text);
    let visitor = Row { plan, columns, row, event_id, found: &found };
    let result = match plan.table {
        None => json.deserialize_map(visitor),
        Some(table) => json.deserialize_map(Envelope { table, row: visitor }),
    };
    let result = result.and_then(|()| json.end());
    result.map_err(|e| found.take().unwrap_or_else(|| classify(&e)))
}

fn classify(error: &serde_json::Error) -> Bad {
    let detail = error.to_string();
    let reason = match error.classify() {
        _ if detail.starts_with("number out of range") => reasons::NUMBER_OUT_OF_RANGE,
        serde_json::error::Category::Data => reasons::NOT_AN_OBJECT,
        _ => reasons::INVALID_JSON,
    };
    Bad::new(reason, detail)
}

pub(super) fn fail<E: de::Error>(found: &Found, reason: &'static str, detail: String) -> E {
    let error = E::custom(&detail);
    found.replace(Some(Bad::new(reason, detail)));
    error
}

pub(super) struct Row<'a> {
    plan: &'a Plan,
    columns: &'a mut [Column],
    row: usize,
    event_id: &'a cell::Cell<Option<Uuid>>,
    pub(super) found: &'a Found,
}

impl<'de> DeserializeSeed<'de> for Row<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Row<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut expected = 0;
        while let Some(key) = map.next_key_seed(Key { plan: self.plan, expected })? {
            match key {
                Name::Field(i) => {
                    expected = i + 1;
                    let column = &mut self.columns[i];
                    if column.is_put(self.row) {
                        let detail =
                            format!("`{}` stands twice in the object", self.plan.fields[i].0);
                        return Err(fail(self.found, reasons::DUPLICATE_FIELD, detail));
                    }
                    map.next_value_seed(self.plan.value(i, column, self.found))?;
                }
                Name::EventId => self.event_id.set(map.next_value_seed(EventId)?),
                Name::Unknown => map.next_value_seed(SKIP)?,
            }
        }
        Ok(())
    }
}

enum Name {
    Field(usize),
    EventId,
    Unknown,
}

/// Finds a key's column; producers keep the order of their fields, so the expected one is tried
/// first.
struct Key<'a> {
    plan: &'a Plan,
    expected: usize,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Name;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Name, D::Error> {
        d.deserialize_identifier(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<Name, E> {
        let fields = &self.plan.fields;
        if fields.get(self.expected).is_some_and(|(name, _)| name == key) {
            return Ok(Name::Field(self.expected));
        }
        Ok(match fields.iter().position(|(name, _)| name == key) {
            Some(i) => Name::Field(i),
            None if self.plan.reads_event_id && key == EVENT_ID => Name::EventId,
            None => Name::Unknown,
        })
    }
}

/// One field's value into its column.
pub(super) struct Value<'a> {
    name: &'a str,
    kind: FieldType,
    column: &'a mut Column,
    naive_is_utc: bool,
    found: &'a Found,
}

impl Value<'_> {
    fn wrong<E: de::Error>(&self, got: &str) -> E {
        let detail = format!("`{}` is declared {}, but is {got}", self.name, type_name(self.kind));
        fail(self.found, reasons::WRONG_TYPE, detail)
    }

    fn out_of_range<E: de::Error>(&self, value: impl fmt::Display) -> E {
        let detail = format!("`{}` cannot hold {value}", self.name);
        fail(self.found, reasons::NUMBER_OUT_OF_RANGE, detail)
    }

    fn instant<E: de::Error>(self, value: i64, micros_each: i64) -> Result<(), E> {
        match value.checked_mul(micros_each) {
            Some(us) => {
                self.column.put_i64(us);
                Ok(())
            }
            None => Err(self.out_of_range(value)),
        }
    }

    /// Puts a value that is no JSON text, as if it were.
    ///
    /// # Errors
    /// Why its record is dead.
    pub(super) fn put(self, cell: Cell<'_>) -> Result<(), Bad> {
        let found = self.found;
        let put: Result<(), serde_json::Error> = match cell {
            Cell::Null => self.visit_unit(),
            Cell::Untyped(text) if cells::is_literal(text, self.kind) => {
                let name = self.name;
                let put = serde_json::Deserializer::from_str(text).deserialize_any(self);
                return put.map_err(|_: serde_json::Error| {
                    // By its grammar it is a number; what is left is its size.
                    found.take().unwrap_or_else(|| {
                        let detail = format!("`{name}` cannot hold {text}");
                        Bad::new(reasons::NUMBER_OUT_OF_RANGE, detail)
                    })
                });
            }
            Cell::Untyped(text) | Cell::Text(text) => self.visit_str(text),
            Cell::Int(v) => self.visit_i64(v),
            Cell::Unsigned(v) => self.visit_u64(v),
            Cell::Float(v) => self.visit_f64(v),
            Cell::Bool(v) => self.visit_bool(v),
            Cell::Instant(count, decimals) => self.put_instant(count, decimals),
        };
        put.map_err(|e| found.take().unwrap_or_else(|| classify(&e)))
    }

    /// An instant, floored to what the declared type can say. What JSON cannot say at all is judged
    /// as its text would be.
    fn put_instant<E: de::Error>(self, count: i64, decimals: u8) -> Result<(), E> {
        if let Some(unit) = cells::unit_decimals(self.kind) {
            let count = cells::in_unit(count, decimals, unit);
            return match i64::try_from(count) {
                Ok(count) => self.visit_i64(count),
                Err(_) => Err(self.out_of_range(count)),
            };
        }
        if self.kind == FieldType::Timestamp {
            let us = cells::in_unit(count, decimals, 6);
            if let Some(us) =
                i64::try_from(us).ok().filter(|us| timestamp::RFC_3339_US.contains(us))
            {
                self.column.put_i64(us);
                return Ok(());
            }
        }
        self.visit_str(&cells::instant_text(count, decimals))
    }
}

fn type_name(kind: FieldType) -> &'static str {
    match kind {
        FieldType::String => "a string",
        FieldType::Int64 => "an integer",
        FieldType::Float64 => "a number",
        FieldType::Bool => "true or false",
        FieldType::Timestamp => "an RFC 3339 timestamp",
        FieldType::TimestampS => "integer seconds",
        FieldType::TimestampMs => "integer milliseconds",
        FieldType::TimestampUs => "integer microseconds",
    }
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(type_name(self.kind))
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        self.column.put_null();
        Ok(())
    }

    fn visit_bool<E: de::Error>(self, v: bool) -> Result<(), E> {
        if self.column.put_bool(v) { Ok(()) } else { Err(self.wrong("true or false")) }
    }

    fn visit_i64<E: de::Error>(self, v: i64) -> Result<(), E> {
        match self.kind {
            FieldType::Int64 | FieldType::TimestampUs => self.instant(v, 1),
            FieldType::TimestampMs => self.instant(v, 1_000),
            FieldType::TimestampS => self.instant(v, 1_000_000),
            FieldType::Float64 => {
                // Beyond 2^53 a double rounds, as every JSON reader does.
                self.column.put_f64(v as f64);
                Ok(())
            }
            _ => Err(self.wrong("a number")),
        }
    }

    fn visit_u64<E: de::Error>(self, v: u64) -> Result<(), E> {
        match i64::try_from(v) {
            Ok(v) => self.visit_i64(v),
            Err(_) if self.kind == FieldType::Float64 => {
                self.column.put_f64(v as f64);
                Ok(())
            }
            Err(_) if self.kind == FieldType::String => Err(self.wrong("a number")),
            Err(_) => Err(self.out_of_range(v)),
        }
    }

    fn visit_f64<E: de::Error>(self, v: f64) -> Result<(), E> {
        match self.kind {
            FieldType::Float64 if v.is_finite() => {
                self.column.put_f64(v);
                Ok(())
            }
            FieldType::Float64 => Err(self.out_of_range(v)),
            _ => Err(self.wrong("a number with a fraction")),
        }
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<(), E> {
        match self.kind {
            FieldType::String if self.column.put_text(v) => Ok(()),
            FieldType::Timestamp => match timestamp::parse(v, self.naive_is_utc) {
                Ok(us) => {
                    self.column.put_i64(us);
                    Ok(())
                }
                Err(why) => {
                    let shown: String = v.chars().take(80).collect();
                    let detail = format!("`{}`: {shown:?} {why}", self.name);
                    Err(fail(self.found, reasons::INVALID_TIMESTAMP, detail))
                }
            },
            _ => Err(self.wrong("a string")),
        }
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(self.wrong("an array"))
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(self.wrong("an object"))
    }
}

/// A producer's UUID; anything else under that key is no tracking number and is left alone.
struct EventId;

impl<'de> DeserializeSeed<'de> for EventId {
    type Value = Option<Uuid>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        let mut text = None;
        d.deserialize_any(Skip { text: Some(&mut text) })?;
        Ok(text.and_then(|t| Uuid::parse_str(&t).ok()))
    }
}

/// Steps over any value by recursion, so that the parser's depth limit holds for fields that
/// nobody declared; `serde::de::IgnoredAny` would follow any depth.
pub(super) struct Skip<'a> {
    /// Where a string goes, if it is wanted.
    pub(super) text: Option<&'a mut Option<String>>,
}

pub(super) const SKIP: Skip<'static> = Skip { text: None };

impl<'de> DeserializeSeed<'de> for Skip<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Skip<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<(), E> {
        if let Some(text) = self.text {
            *text = Some(v.to_owned());
        }
        Ok(())
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(SKIP)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_key_seed(SKIP)?.is_some() {
            map.next_value_seed(SKIP)?;
        }
        Ok(())
    }
}
