//! Records to columns: JSON is parsed once, straight into the declared columns.
//!
//! Takes the raw records of a batch, gives one Arrow batch of the good ones — the declared fields
//! and `_row` — and a dead letter for each bad one. A bad record never takes a good one with it:
//! what it had already put into the columns is taken back.
//!
//! The rows of CSV and Parquet files come as [`Cells`] and go the same way without being JSON in
//! between; the rules are the same ones.
//!
//! Checked here: UTF-8, JSON, declared types, required fields, the event timestamp and its bounds,
//! finite numbers, size. The reasons are listed in [`reasons`].

mod cells;
mod columns;
mod envelope;
mod json;
pub mod reasons;
pub mod timestamp;

use crate::{
    config::{FieldType, StreamConfig},
    messages::{DeadLetter, Payload, Records, Stage},
};
use arrow::{
    array::{ArrayRef, RecordBatch, UInt32Array},
    datatypes::{DataType, Field, Schema, SchemaRef},
    error::ArrowError,
};
pub use cells::{CellColumn, CellValues, Cells, ObjectText, Texts};
use columns::Column;
use std::{cell::Cell, sync::Arc};
use uuid::Uuid;

/// Longest record that is decoded, in bytes.
pub const MAX_RECORD_BYTES: usize = 1 << 20;

/// Earliest event timestamp, 1900-01-01, UTC microseconds: before it a clock was wrong.
const MIN_TIMESTAMP_US: i64 = -2_208_988_800_000_000;

/// Why a record is dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bad {
    /// One of [`reasons`].
    pub reason: &'static str,
    /// What a person needs to mend it.
    pub detail: String,
}

impl Bad {
    pub(crate) fn new(reason: &'static str, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// The good rows of a batch and what the script does not need to see of them.
#[derive(Debug)]
pub struct Decoded {
    /// The declared columns and `_row`: 0, 1, 2, …
    pub batch: RecordBatch,
    /// A row's position in its source.
    pub positions: Vec<i64>,
    /// A row's producer UUID; nil when there is none.
    pub event_ids: Vec<Uuid>,
    /// When the producer made the row, UTC microseconds: the field, else the record's timestamp.
    pub created_at_us: Vec<i64>,
    /// A part's rows are `part_ends[i - 1]..part_ends[i]`.
    pub part_ends: Vec<usize>,
    /// A part's dead letters.
    pub dead: Vec<Vec<DeadLetter>>,
    /// Each row's index into the records of its part, to find its raw bytes again.
    pub record_of_row: Vec<u32>,
}

/// Decodes the records of one stream.
#[derive(Debug, Clone)]
pub struct Decoder {
    stream: Arc<StreamConfig>,
    schema: SchemaRef,
    plan: Arc<json::Plan>,
}

impl Decoder {
    /// A decoder for the stream's declared schema.
    #[must_use]
    pub fn new(stream: Arc<StreamConfig>) -> Self {
        let fields = stream
            .schema
            .iter()
            .map(|f| {
                let required = f.name == stream.entity
                    || f.name == stream.event_time
                    || stream.required.contains(&f.name);
                Field::new(&f.name, columns::data_type(f.kind), !required)
            })
            .chain([Field::new("_row", DataType::UInt32, false)])
            .collect::<Vec<_>>();
        let plan = Arc::new(json::Plan::new(&stream));
        Self { stream, schema: Arc::new(Schema::new(fields)), plan }
    }

    /// A decoder for plain write requests: `{"table": "features_table", "data": {…}}`, one feature
    /// row each. Its columns are `entity_id`, `feature_name`, `value`, `event_timestamp`,
    /// `created_at`, `_row`.
    #[must_use]
    pub fn plain_writes() -> Self {
        let stream = envelope::stream();
        let mut plan = json::Plan::new(&stream);
        plan.table = Some(envelope::TABLE);
        plan.stated = stream.schema.iter().position(|f| f.name == "value").into_iter().collect();
        Self { plan: Arc::new(plan), ..Self::new(Arc::new(stream)) }
    }

    /// The columns that a script of this stream gets.
    #[must_use]
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Decodes the records of a batch's parts; `now_us` bounds the event timestamps.
    ///
    /// # Errors
    /// Only when the columns do not make an Arrow batch, which is a defect of this module.
    pub fn decode(&self, parts: &[&[Records]], now_us: i64) -> Result<Decoded, ArrowError> {
        let n: usize = parts.iter().flat_map(|p| p.iter()).map(Records::len).sum();
        let mut rows = Rows::new(self, n);
        let mut part_ends = Vec::with_capacity(parts.len());
        let mut dead = Vec::with_capacity(parts.len());
        for part in parts {
            let mut letters = Vec::new();
            let mut index = 0;
            for records in *part {
                for record in records.iter() {
                    if let Err(bad) = rows.take(&record, index, now_us) {
                        let entity = rows.entity_hint.take();
                        let mut letter = DeadLetter::of(&record, entity, Stage::Decode, bad);
                        letter.event_id = letter.event_id.or(rows.event_id_hint.take());
                        letters.push(letter);
                    }
                    index += 1;
                }
            }
            part_ends.push(rows.positions.len());
            dead.push(letters);
        }
        rows.finish(part_ends, dead)
    }
}

/// The columns while they grow.
struct Rows<'a> {
    decoder: &'a Decoder,
    columns: Vec<Column>,
    positions: Vec<i64>,
    event_ids: Vec<Uuid>,
    created_at_us: Vec<i64>,
    record_of_row: Vec<u32>,
    max_timestamp_slack_us: i64,
    /// The entity of the record that was refused last, when it got that far.
    entity_hint: Option<String>,
    /// What it said of its id, likewise.
    event_id_hint: Option<Uuid>,
}

impl<'a> Rows<'a> {
    fn new(decoder: &'a Decoder, n: usize) -> Self {
        let kinds: Vec<FieldType> = decoder.stream.schema.iter().map(|f| f.kind).collect();
        Self {
            columns: kinds.into_iter().map(|kind| Column::new(kind, n)).collect(),
            positions: Vec::with_capacity(n),
            event_ids: Vec::with_capacity(n),
            created_at_us: Vec::with_capacity(n),
            record_of_row: Vec::with_capacity(n),
            max_timestamp_slack_us: decoder.stream.future_tolerance_s.cast_signed() * 1_000_000,
            entity_hint: None,
            event_id_hint: None,
            decoder,
        }
    }

    /// Adds a record's row, or leaves the columns as they were.
    fn take(
        &mut self,
        record: &crate::messages::Record<'_>,
        index: u32,
        now_us: i64,
    ) -> Result<(), Bad> {
        let plan = &self.decoder.plan;
        let row = self.positions.len();
        let event_id = Cell::new(None);
        let parsed = match record.payload {
            Payload::Json(payload) => text_of(payload)
                .and_then(|text| json::parse(text, plan, &mut self.columns, row, &event_id)),
            // Its event id stands in the record already.
            Payload::Row(cells, i) => cells.put(i, plan, &mut self.columns, row),
            Payload::Null => Err(Bad::new(reasons::NULL_PAYLOAD, "the record has no payload")),
        };
        let parsed = parsed.and_then(|()| self.check(plan, now_us));
        let event_id = event_id.get();
        match parsed {
            Ok(()) => {
                self.columns.iter_mut().for_each(|c| c.complete(row + 1));
                let made = plan.created_at.and_then(|i| self.columns[i].last_i64());
                self.created_at_us.push(made.unwrap_or(record.timestamp_us));
                self.positions.push(record.position);
                self.event_ids.push(record.event_id.or(event_id).unwrap_or(Uuid::nil()));
                self.record_of_row.push(index);
                Ok(())
            }
            Err(bad) => {
                self.event_id_hint = event_id;
                self.entity_hint = self.columns[plan.entity].text_at(row).filter(|t| !t.is_empty());
                self.columns.iter_mut().for_each(|c| c.roll_back(row));
                Err(bad)
            }
        }
    }

    /// The rules that need the whole row.
    fn check(&self, plan: &json::Plan, now_us: i64) -> Result<(), Bad> {
        let n = self.positions.len();
        let name = |i: usize| &self.decoder.stream.schema[i].name;
        if !self.columns[plan.entity].is_set(n) {
            let detail = format!("`{}` is missing or null", name(plan.entity));
            return Err(Bad::new(reasons::MISSING_ENTITY, detail));
        }
        if self.columns[plan.entity].text_is_empty(n) {
            let detail = format!("`{}` is empty", name(plan.entity));
            return Err(Bad::new(reasons::EMPTY_ENTITY, detail));
        }
        let Some(event_time) = self.columns[plan.event_time].i64_at(n) else {
            let detail = format!("`{}` is missing or null", name(plan.event_time));
            return Err(Bad::new(reasons::MISSING_EVENT_TIMESTAMP, detail));
        };
        for &i in &plan.required {
            if !self.columns[i].is_set(n) {
                let detail = format!("`{}` is missing or null", name(i));
                return Err(Bad::new(reasons::MISSING_FIELD, detail));
            }
        }
        for &i in &plan.stated {
            if !self.columns[i].is_put(n) {
                let detail = format!("`{}` is missing (null is a value)", name(i));
                return Err(Bad::new(reasons::MISSING_FIELD, detail));
            }
        }
        check_event_time(event_time, now_us, self.max_timestamp_slack_us)
    }

    fn finish(
        self,
        part_ends: Vec<usize>,
        dead: Vec<Vec<DeadLetter>>,
    ) -> Result<Decoded, ArrowError> {
        let n = self.positions.len();
        let mut arrays: Vec<ArrayRef> = Vec::with_capacity(self.columns.len() + 1);
        for column in self.columns {
            arrays.push(column.into_array()?);
        }
        // A batch has far fewer rows than 2^32: `batch.max_rows` and the size of a record say so.
        arrays.push(Arc::new(UInt32Array::from_iter_values((0..n).map(|i| i as u32))));
        Ok(Decoded {
            batch: RecordBatch::try_new(self.decoder.schema.clone(), arrays)?,
            positions: self.positions,
            event_ids: self.event_ids,
            created_at_us: self.created_at_us,
            record_of_row: self.record_of_row,
            part_ends,
            dead,
        })
    }
}

/// A payload as text, if it may be decoded at all.
fn text_of(payload: &[u8]) -> Result<&str, Bad> {
    match payload.len() {
        0 => Err(Bad::new(reasons::EMPTY_PAYLOAD, "the payload is empty")),
        bytes if bytes > MAX_RECORD_BYTES => Err(too_large(bytes)),
        _ => {
            std::str::from_utf8(payload).map_err(|e| Bad::new(reasons::INVALID_UTF8, e.to_string()))
        }
    }
}

fn too_large(bytes: usize) -> Bad {
    Bad::new(reasons::RECORD_TOO_LARGE, format!("{bytes} bytes, at most {MAX_RECORD_BYTES}"))
}

/// The bounds of an event timestamp: not before 1900, not further ahead than the tolerance. A
/// value from the future would win over every later one and freeze the online key.
///
/// # Errors
/// [`reasons::FUTURE_TIMESTAMP`] or [`reasons::TIMESTAMP_OUT_OF_RANGE`].
pub fn check_event_time(event_us: i64, now_us: i64, tolerance_us: i64) -> Result<(), Bad> {
    if event_us > now_us.saturating_add(tolerance_us) {
        let ahead = (event_us - now_us) / 1_000_000;
        let detail =
            format!("{ahead} s ahead of the clock, tolerance {} s", tolerance_us / 1_000_000);
        return Err(Bad::new(reasons::FUTURE_TIMESTAMP, detail));
    }
    if event_us < MIN_TIMESTAMP_US {
        return Err(Bad::new(reasons::TIMESTAMP_OUT_OF_RANGE, "before 1900-01-01"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
