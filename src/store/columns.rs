//! The columns that the store adds to what it receives.

use arrow::{
    array::{
        Array, ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch, StringArray,
        TimestampMicrosecondArray,
    },
    compute::kernels::arity::{binary, unary},
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType},
    error::ArrowError,
};
use std::sync::{Arc, LazyLock};

use crate::{
    config::AsKnown,
    messages::{dead_letter_schema, feature_row_schema},
};

/// What is the same for all rows of a part.
#[derive(Debug, Clone, Copy)]
pub struct Placement<'a> {
    /// The ledger line that the rows belong to.
    pub batch_seq: i64,
    /// The source.
    pub source_no: i32,
    /// The transaction's stamp, UTC microseconds.
    pub stamp_us: i64,
    /// From when on its rows count as known.
    pub as_known: AsKnown,
    /// The script's version.
    pub script_sha256: &'a str,
}

fn instant() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

fn with_fields(base: &SchemaRef, range: std::ops::Range<usize>) -> Vec<Field> {
    base.fields()[range].iter().map(|f| f.as_ref().clone()).collect()
}

/// `features_table`, in its order.
fn features_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        let received = feature_row_schema();
        let mut fields = with_fields(&received, 0..6);
        fields.extend([
            Field::new("available_at", instant(), false),
            Field::new("batch_seq", DataType::Int64, false),
            Field::new("source_no", DataType::Int32, false),
        ]);
        fields.extend(with_fields(&received, 6..8));
        Arc::new(Schema::new(fields))
    });
    SCHEMA.clone()
}

/// `dead_letters`, in its order.
fn dead_letters_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        let mut fields = vec![
            Field::new("batch_seq", DataType::Int64, false),
            Field::new("source_no", DataType::Int32, false),
        ];
        fields.extend(with_fields(&dead_letter_schema(), 0..9));
        fields.extend([
            Field::new("script_sha256", DataType::Utf8, false),
            Field::new("stored_at", instant(), false),
        ]);
        fields.extend(with_fields(&dead_letter_schema(), 9..10));
        Arc::new(Schema::new(fields))
    });
    SCHEMA.clone()
}

/// Feature rows as `features_table` wants them. A row becomes known when it is true and stored:
/// `available_at = greatest(event_timestamp, stamp)`; where it counts from when it was made,
/// `greatest(event_timestamp, least(created_at, stamp))`.
///
/// # Errors
/// When `rows` is not in [`feature_row_schema`].
pub fn feature_rows(rows: &RecordBatch, place: Placement<'_>) -> Result<RecordBatch, ArrowError> {
    let n = rows.num_rows();
    let instants = |i: usize| {
        rows.column(i).as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(|| {
            ArrowError::SchemaError(format!(
                "{} is not in microseconds",
                rows.schema().field(i).name()
            ))
        })
    };
    let (event_timestamps, stamp_us) = (instants(3)?, place.stamp_us);
    let available: TimestampMicrosecondArray = match place.as_known {
        AsKnown::Arrival => unary(event_timestamps, |event_us| event_us.max(stamp_us)),
        AsKnown::CreatedAt => binary(event_timestamps, instants(4)?, |event_us, created_us| {
            event_us.max(created_us.min(stamp_us))
        })?,
    };
    let mut columns: Vec<ArrayRef> = rows.columns()[0..6].to_vec();
    columns.push(Arc::new(available.with_timezone("UTC")));
    columns.push(Arc::new(Int64Array::from_value(place.batch_seq, n)));
    columns.push(Arc::new(Int32Array::from_value(place.source_no, n)));
    columns.extend_from_slice(&rows.columns()[6..8]);
    RecordBatch::try_new(features_schema(), columns)
}

/// Dead letters as `dead_letters` wants them.
///
/// # Errors
/// When `letters` is not in [`dead_letter_schema`].
pub fn dead_letter_rows(
    letters: &RecordBatch,
    place: Placement<'_>,
) -> Result<RecordBatch, ArrowError> {
    let n = letters.num_rows();
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_value(place.batch_seq, n)),
        Arc::new(Int32Array::from_value(place.source_no, n)),
    ];
    columns.extend_from_slice(&letters.columns()[0..9]);
    let script: StringArray = std::iter::repeat_n(Some(place.script_sha256), n).collect();
    columns.push(Arc::new(script));
    let at = TimestampMicrosecondArray::from_value(place.stamp_us, n).with_timezone("UTC");
    columns.push(Arc::new(at));
    columns.push(letters.column(9).clone());
    debug_assert!(columns.iter().all(|c| c.len() == n));
    RecordBatch::try_new(dead_letters_schema(), columns)
}
