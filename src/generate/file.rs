//! Made-up events as a file: the same pure functions of their ids as those on a topic.
//!
//! Each row has the field `event_id` besides those of its event, since a row of a file has no header
//! for it; an event that is to be sent twice stands in the file twice. A file has the events of its ids
//! but for some malformed ones, since a file with a torn row would be refused as a whole:
//!
//! | format | a malformed event is left out when |
//! |---|---|
//! | JSON, an array of objects | its payload is no JSON object: torn, nested too deep, not UTF-8, a number that no double holds, another value, nothing at all |
//! | Parquet | of these, or it has a value that its typed column cannot hold |
//!
//! What is malformed and left in a Parquet file lacks a required field (NULL), or has an empty entity.
//! The ids that stand in a file come with it: only these were sent.

use super::{Builtin, EventId, EventMaker, clicks, features};
use crate::decode::timestamp;
use polars::prelude::{
    Column, DataFrame, Int64Chunked, IntoColumn, NewChunkedArray, ParquetWriter, PolarsResult,
    TimeUnit, TimeZone,
};
use serde_json::{Map, Value};
use std::iter::repeat_n;

/// What a file of events is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileFormat {
    /// One array of objects.
    Json,
    /// Apache Parquet, with typed columns.
    Parquet,
}

impl FileFormat {
    /// Its name, which is also its extension.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Parquet => "parquet",
        }
    }
}

/// A file, and the events that stand in it.
#[derive(Debug, Clone)]
pub struct EventFile {
    /// The whole file.
    pub bytes: Vec<u8>,
    /// Each id, and in how many rows it stands: once or twice.
    pub events: Vec<(EventId, u8)>,
}

impl EventFile {
    /// Rows of the file.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.events.iter().map(|(_, times)| u64::from(*times)).sum()
    }
}

/// What a column of a Parquet file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// UTF-8.
    Text,
    /// 64-bit integers.
    Int,
    /// Doubles.
    Float,
    /// Microseconds since 1970 UTC.
    Instant,
}

/// The name and kind of each field of an event.
pub(super) type Fields = &'static [(&'static str, Kind)];

struct Row {
    id: EventId,
    payload: Vec<u8>,
    object: Map<String, Value>,
}

impl EventMaker {
    /// The events of `ids` as a file.
    ///
    /// # Errors
    /// polars' word, which is a defect here.
    pub fn file(
        &self,
        format: FileFormat,
        ids: impl IntoIterator<Item = EventId>,
    ) -> PolarsResult<EventFile> {
        let fields = match self.stream() {
            Builtin::Features => features::FIELDS,
            Builtin::Clicks => clicks::FIELDS,
        };
        let (mut rows, mut events) = (Vec::new(), Vec::new());
        for id in ids {
            let event = self.make(id);
            let payload = event.payload.unwrap_or_default();
            let Ok(object) = serde_json::from_slice::<Map<String, Value>>(&payload) else {
                continue;
            };
            let fits = |(name, kind): &(&str, Kind)| kind.holds(object.get(*name));
            if format == FileFormat::Parquet && !fields.iter().all(fits) {
                continue;
            }
            events.push((id, if event.duplicate { 2 } else { 1 }));
            rows.push(Row { id, payload, object });
        }
        let twice = rows.iter().zip(&events);
        let rows: Vec<&Row> =
            twice.flat_map(|(row, (_, times))| repeat_n(row, usize::from(*times))).collect();
        let bytes = match format {
            FileFormat::Json => json(&rows),
            FileFormat::Parquet => parquet(fields, &rows)?,
        };
        Ok(EventFile { bytes, events })
    }
}

/// The payloads byte for byte, but for the id in front.
fn json(rows: &[&Row]) -> Vec<u8> {
    let mut bytes = b"[".to_vec();
    for (place, Row { id, payload, .. }) in rows.iter().enumerate() {
        bytes.extend_from_slice(if place == 0 { b"\n" } else { b",\n" });
        bytes.extend_from_slice(format!("{{\"event_id\":\"{id}\",").as_bytes());
        // An event has fields: what follows its brace is the first of them.
        bytes.extend_from_slice(payload.trim_ascii_start().get(1..).unwrap_or_default());
    }
    bytes.extend_from_slice(b"\n]\n");
    bytes
}

fn parquet(fields: Fields, rows: &[&Row]) -> PolarsResult<Vec<u8>> {
    let ids: Vec<String> = rows.iter().map(|row| row.id.to_string()).collect();
    let mut columns = vec![Column::new("event_id".into(), ids)];
    for (name, kind) in fields {
        let values: Vec<Option<&Value>> = rows.iter().map(|row| row.object.get(*name)).collect();
        columns.push(kind.column(name, &values));
    }
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes).finish(&mut DataFrame::new_infer_height(columns)?)?;
    Ok(bytes)
}

impl Kind {
    /// Whether a column of this kind can hold the value; it holds every null.
    fn holds(self, value: Option<&Value>) -> bool {
        let Some(value) = value.filter(|value| !value.is_null()) else { return true };
        match self {
            Self::Text => value.is_string(),
            Self::Int => value.is_i64(),
            Self::Float => value.is_number(),
            Self::Instant => micros(value).is_some(),
        }
    }

    /// A column of values that it holds.
    fn column(self, name: &str, values: &[Option<&Value>]) -> Column {
        fn each<'a, T>(
            values: &[Option<&'a Value>],
            of: impl Fn(&'a Value) -> Option<T>,
        ) -> Vec<Option<T>> {
            values.iter().map(|value| value.and_then(&of)).collect()
        }
        let name = name.into();
        match self {
            Self::Text => Column::new(name, each(values, Value::as_str)),
            Self::Int => Column::new(name, each(values, Value::as_i64)),
            Self::Float => Column::new(name, each(values, Value::as_f64)),
            Self::Instant => Int64Chunked::from_slice_options(name, &each(values, micros))
                .into_datetime(TimeUnit::Microseconds, Some(TimeZone::UTC))
                .into_column(),
        }
    }
}

fn micros(value: &Value) -> Option<i64> {
    timestamp::parse(value.as_str()?, false).ok()
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
