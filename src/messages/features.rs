//! What the PythonWorkerSupervisor hands to the RedisQueue.

use super::{
    dead_letter::{DeadLetter, uuid_field},
    records::Credit,
};
use crate::{
    protocol::{
        source::{Position, SourceName, Token, Urgency},
        ticket::Ticket,
        version::Version,
    },
    telemetry::traces::Way,
};
use actix::Message;
use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
};
use std::sync::{Arc, LazyLock};
use uuid::Uuid;

/// The columns in which feature rows travel to the store; it adds `available_at`, `batch_seq` and
/// `source_no`. Times are UTC microseconds.
#[must_use]
pub fn feature_row_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        let instant = || DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        Arc::new(Schema::new(vec![
            Field::new("entity_id", DataType::Utf8, false),
            Field::new("feature_name", DataType::Utf8, false),
            Field::new("value", DataType::Float64, true),
            Field::new("event_timestamp", instant(), false),
            Field::new("created_at", instant(), false),
            uuid_field("event_id"),
            Field::new("pos", DataType::Int64, false),
            Field::new("sub", DataType::Int32, false),
        ]))
    });
    SCHEMA.clone()
}

/// The newest value of one feature of one entity within a part, for the online store.
#[derive(Debug, Clone, PartialEq)]
pub struct OnlineValue {
    /// Whose value.
    pub entity_id: String,
    /// Of which feature.
    pub feature_name: String,
    /// `None`: the value is null, which is a value.
    pub value: Option<f64>,
    /// Its place in the version order.
    pub version: Version,
}

/// The effect of a part: its rows, its dead letters, its counts.
#[derive(Debug)]
pub struct FeaturePart {
    /// Whose positions.
    pub source: SourceName,
    /// The token under which they were read.
    pub token: Token,
    /// First position.
    pub from: Position,
    /// The position after the last.
    pub to: Position,
    /// Events in the range.
    pub n_in: i64,
    /// Events with at least one row.
    pub n_kept: i64,
    /// Events that the script filtered.
    pub n_filtered: i64,
    /// Rows, see [`feature_row_schema`].
    pub rows: RecordBatch,
    /// Bad events.
    pub dead: Vec<DeadLetter>,
    /// The newest value of each critical feature.
    pub online: Vec<OnlineValue>,
    /// Reports the range when it is dropped unsettled.
    pub ticket: Ticket,
    /// Share of the pool of bytes in flight.
    pub credit: Credit,
    /// Record timestamps of a few events, UTC microseconds, for end-to-end latency.
    pub sampled_timestamps_us: Vec<i64>,
}

/// The effect of an event batch, on its way to the stores.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct FeatureBatch {
    /// The id of the events' batch.
    pub id: Uuid,
    /// The root of its trace.
    pub way: Way,
    /// Index of the stream in the configuration.
    pub stream: usize,
    /// Name of the script that made it.
    pub transform: String,
    /// The script's version.
    pub script_sha256: String,
    /// Its parts, as they were read; all equally urgent.
    pub parts: Vec<FeaturePart>,
}

impl FeatureBatch {
    /// How urgent it is.
    #[must_use]
    pub fn urgency(&self) -> Urgency {
        self.parts.first().map_or(Urgency::Live, |part| part.source.urgency())
    }
}
