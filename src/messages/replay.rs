//! Replays of dead letters: what the store is asked to write down, and what the Replayer hears.

use super::source::{Acknowledged, SourceOpened};
use crate::protocol::source::SourceName;
use arrow::{
    array::{BinaryBuilder, Int32Builder, Int64Builder, RecordBatch, TimestampMicrosecondBuilder},
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
    error::ArrowError,
};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, LazyLock};

/// Asks the store to fix what a replay contains.
#[derive(Debug, Clone)]
pub struct RegisterReplay {
    /// A UUID; the same one twice is the same replay.
    pub replay_id: String,
    /// The source whose positions will be the letters' places.
    pub source: SourceName,
    /// The stream whose script they go through.
    pub stream: String,
    /// The name of the node that replays it, and goes on after a restart.
    pub owner: String,
    /// The letters in their order, see [`replayed_letters_schema`].
    pub letters: RecordBatch,
}

/// What of a [`RegisterReplay`] travels as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub struct ReplayHead {
    /// See [`RegisterReplay::replay_id`].
    pub replay_id: String,
    /// See [`RegisterReplay::source`].
    pub source: SourceName,
    /// See [`RegisterReplay::stream`].
    pub stream: String,
    /// See [`RegisterReplay::owner`].
    pub owner: String,
}

/// One letter of a replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterToReplay {
    /// Its source.
    pub source_no: i32,
    /// Its position there.
    pub pos: i64,
    /// The whole record, when the letter has not kept it.
    pub payload: Option<Vec<u8>>,
    /// The record's own timestamp, UTC microseconds.
    pub recorded_at_us: Option<i64>,
}

/// The columns in which letters travel to the store.
#[must_use]
pub fn replayed_letters_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        let instant = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        Arc::new(Schema::new(vec![
            Field::new("source_no", DataType::Int32, false),
            Field::new("pos", DataType::Int64, false),
            Field::new("payload", DataType::Binary, true),
            Field::new("recorded_at", instant, true),
        ]))
    });
    SCHEMA.clone()
}

impl LetterToReplay {
    /// Letters as columns.
    ///
    /// # Errors
    /// Only when the columns do not make a batch, which is a defect.
    pub fn to_arrow(letters: &[Self]) -> Result<RecordBatch, ArrowError> {
        let mut source_no = Int32Builder::new();
        let mut pos = Int64Builder::new();
        let mut payload = BinaryBuilder::new();
        let mut recorded_at = TimestampMicrosecondBuilder::new().with_timezone("UTC");
        for letter in letters {
            source_no.append_value(letter.source_no);
            pos.append_value(letter.pos);
            payload.append_option(letter.payload.as_deref());
            recorded_at.append_option(letter.recorded_at_us);
        }
        RecordBatch::try_new(
            replayed_letters_schema(),
            vec![
                Arc::new(source_no.finish()),
                Arc::new(pos.finish()),
                Arc::new(payload.finish()),
                Arc::new(recorded_at.finish()),
            ],
        )
    }
}

/// What the RedisQueue tells the reader of a source: KafkaIngest, or the Replayer.
pub trait OfSource {
    /// Which source it is about.
    fn source(&self) -> &SourceName;
}

impl OfSource for SourceOpened {
    fn source(&self) -> &SourceName {
        &self.source
    }
}

impl OfSource for Acknowledged {
    fn source(&self) -> &SourceName {
        &self.source
    }
}
