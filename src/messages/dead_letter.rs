//! Dead letters: bad records, kept with everything that is needed to mend them.

use super::records::Record;
use crate::decode::Bad;
use arrow::{
    array::{
        BinaryBuilder, FixedSizeBinaryBuilder, Int64Builder, RecordBatch, StringBuilder,
        TimestampMicrosecondBuilder,
    },
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
    error::ArrowError,
};
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};
use uuid::Uuid;

/// Bytes of a raw record that a dead letter keeps; length and hash are those of the whole.
pub const DEAD_LETTER_RAW_BYTES: usize = 64 << 10;

/// Where a record was found bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Before the script: bytes, JSON, schema, bounds.
    Decode,
    /// In the script, or in what it gave back.
    Transform,
    /// DuckDB refused the row.
    Store,
}

impl Stage {
    /// The name in the table and in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Transform => "transform",
            Self::Store => "store",
        }
    }
}

/// What a reason begins with when a script failed on a row; any other of a script's reasons is its
/// own word.
pub const SCRIPT_FAILURES: [&str; 7] = [
    "exception",
    "contract",
    "timeout",
    "out_of_memory",
    "worker_protocol",
    "worker_signal",
    "worker_exit",
];

/// A reason as a label: reasons that scripts give themselves would make one without bounds.
#[must_use]
pub fn reason_label<'a>(stage: &str, reason: &'a str) -> &'a str {
    let head = reason.split(':').next().unwrap_or_default();
    let own = stage == Stage::Transform.name() && !SCRIPT_FAILURES.contains(&head);
    if own { "rejected_by_script" } else { head }
}

/// One bad record.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Its position in its source.
    pub pos: i64,
    /// The producer's UUID.
    pub event_id: Option<Uuid>,
    /// Its entity, when it could be read.
    pub entity_id: Option<String>,
    /// Where it was found bad.
    pub stage: Stage,
    /// A word from a closed list, fit for a label.
    pub reason: String,
    /// What a person needs: which field, which value, a traceback.
    pub detail: String,
    /// The first [`DEAD_LETTER_RAW_BYTES`] of the record.
    pub raw: Option<Vec<u8>>,
    /// The whole record's length; `None` for a null payload.
    pub raw_len: Option<i64>,
    /// SHA-256 of the whole record, lower-case hex.
    pub raw_sha256: Option<String>,
    /// The record's own timestamp, UTC microseconds: a replay of it falls back on it.
    pub recorded_at_us: Option<i64>,
}

impl DeadLetter {
    /// A letter for `record`.
    #[must_use]
    pub fn of(record: &Record<'_>, entity_id: Option<String>, stage: Stage, bad: Bad) -> Self {
        let Bad { reason, detail } = bad;
        Self::with_reason(record, entity_id, stage, reason.to_owned(), detail)
    }

    /// A letter whose reason was not known when the program was written.
    #[must_use]
    pub fn with_reason(
        record: &Record<'_>,
        entity_id: Option<String>,
        stage: Stage,
        reason: String,
        detail: String,
    ) -> Self {
        let raw = record.payload.raw();
        let raw = raw.as_deref();
        Self {
            pos: record.position,
            event_id: record.event_id,
            entity_id,
            stage,
            reason,
            detail,
            raw: raw.map(|r| r[..r.len().min(DEAD_LETTER_RAW_BYTES)].to_vec()),
            raw_len: raw.map(|r| r.len() as i64),
            raw_sha256: raw.map(|r| format!("{:x}", Sha256::digest(r))),
            recorded_at_us: Some(record.timestamp_us),
        }
    }
}

/// The field of a producer's UUID, marked so that DuckDB takes it as one.
pub(crate) fn uuid_field(name: &str) -> Field {
    let extension = HashMap::from([("ARROW:extension:name".to_owned(), "arrow.uuid".to_owned())]);
    Field::new(name, DataType::FixedSizeBinary(16), true).with_metadata(extension)
}

fn instant() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// The columns in which dead letters travel to the store.
#[must_use]
pub fn dead_letter_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        Arc::new(Schema::new(vec![
            Field::new("pos", DataType::Int64, false),
            uuid_field("event_id"),
            Field::new("entity_id", DataType::Utf8, true),
            Field::new("stage", DataType::Utf8, false),
            Field::new("reason", DataType::Utf8, false),
            Field::new("detail", DataType::Utf8, false),
            Field::new("raw", DataType::Binary, true),
            Field::new("raw_len", DataType::Int64, true),
            Field::new("raw_sha256", DataType::Utf8, true),
            Field::new("recorded_at", instant(), true),
        ]))
    });
    SCHEMA.clone()
}

/// Letters as columns.
///
/// # Errors
/// Only when the columns do not make a batch, which is a defect.
pub fn dead_letters_to_arrow(letters: &[DeadLetter]) -> Result<RecordBatch, ArrowError> {
    let mut pos = Int64Builder::new();
    let mut event_id = FixedSizeBinaryBuilder::new(16);
    let mut entity_id = StringBuilder::new();
    let mut stage = StringBuilder::new();
    let mut reason = StringBuilder::new();
    let mut detail = StringBuilder::new();
    let mut raw = BinaryBuilder::new();
    let mut raw_len = Int64Builder::new();
    let mut raw_sha256 = StringBuilder::new();
    let mut recorded_at = TimestampMicrosecondBuilder::new().with_timezone("UTC");
    for letter in letters {
        pos.append_value(letter.pos);
        match letter.event_id {
            Some(id) => event_id.append_value(id.as_bytes())?,
            None => event_id.append_null(),
        }
        entity_id.append_option(letter.entity_id.as_deref());
        stage.append_value(letter.stage.name());
        reason.append_value(&letter.reason);
        detail.append_value(&letter.detail);
        raw.append_option(letter.raw.as_deref());
        raw_len.append_option(letter.raw_len);
        raw_sha256.append_option(letter.raw_sha256.as_deref());
        recorded_at.append_option(letter.recorded_at_us);
    }
    RecordBatch::try_new(
        dead_letter_schema(),
        vec![
            Arc::new(pos.finish()),
            Arc::new(event_id.finish()),
            Arc::new(entity_id.finish()),
            Arc::new(stage.finish()),
            Arc::new(reason.finish()),
            Arc::new(detail.finish()),
            Arc::new(raw.finish()),
            Arc::new(raw_len.finish()),
            Arc::new(raw_sha256.finish()),
            Arc::new(recorded_at.finish()),
        ],
    )
}
