//! Questions about the past.

use crate::protocol::as_of::Mode;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, LazyLock};

/// What many questions ask of the store. The questions themselves are rows, see
/// [`question_schema`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AsOfRequest {
    /// Names of features; the answer has a batch for each, in this order.
    pub features: Vec<String>,
    /// By which time a row is seen.
    pub mode: Mode,
    /// Whether a row that comes into sight at the very instant of a question is not seen by it.
    pub strict: bool,
    /// Up to where the store is to look; none: up to its last commit. The parts of one large question
    /// are asked with the first one's answer, so that all see the same.
    pub watermark: Option<Watermark>,
}

/// Up to where an answer looks: what came later changes nothing about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watermark {
    /// The stamp of the last commit, UTC microseconds.
    pub stamp_us: i64,
    /// The last batch.
    pub batch_seq: i64,
}

/// Rows of questions: the entity, and the instant in UTC microseconds.
#[must_use]
pub fn question_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        Arc::new(Schema::new(vec![
            Field::new("entity_id", DataType::Utf8, false),
            Field::new("at_us", DataType::Int64, false),
        ]))
    });
    SCHEMA.clone()
}

/// Rows of answers about one feature, in the order of the questions: the value, and the event timestamp
/// of the row that answers in UTC microseconds; without one, nothing is found.
#[must_use]
pub fn as_of_answer_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        Arc::new(Schema::new(vec![
            Field::new("value", DataType::Float64, true),
            Field::new("event_timestamp_us", DataType::Int64, true),
        ]))
    });
    SCHEMA.clone()
}
