//! The canonical feature rows, and how the output of a script is brought into them.
//!
//! Everything downstream of Python sees one layout only: [`canonical`]. [`normalise`] accepts the
//! layouts that polars, pyarrow and pandas export and refuses what cannot be meant, always naming
//! the first offending row. A refusal concerns the whole batch; finding the guilty event is the
//! caller's business.

use std::sync::{Arc, LazyLock};

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, RecordBatch, RecordBatchOptions,
    TimestampMicrosecondArray, UInt32Array, new_null_array,
};
use arrow::compute::{CastOptions, cast_with_options, filter_record_batch, take_record_batch};
use arrow::datatypes::{
    DataType, Field, Float64Type, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType, UInt32Type,
};

/// Which event of the input batch a row came from, counted from 0.
pub const ROW: &str = "_row";
/// Whom the feature describes.
pub const ENTITY_ID: &str = "entity_id";
/// What the feature is called.
pub const FEATURE_NAME: &str = "feature_name";
/// Its value; null is a value.
pub const VALUE: &str = "value";
/// When it became true, in the world of the event.
pub const EVENT_TIMESTAMP: &str = "event_timestamp";
/// When it was made; null where the script says nothing, for the node to fill.
pub const CREATED_AT: &str = "created_at";

/// The columns in their order.
const COLUMNS: [&str; 6] = [ROW, ENTITY_ID, FEATURE_NAME, VALUE, EVENT_TIMESTAMP, CREATED_AT];

static CANONICAL: LazyLock<SchemaRef> = LazyLock::new(|| {
    let instant = || DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC")));
    Arc::new(Schema::new(vec![
        Field::new(ROW, DataType::UInt32, false),
        Field::new(ENTITY_ID, DataType::Utf8, false),
        Field::new(FEATURE_NAME, DataType::Utf8, false),
        Field::new(VALUE, DataType::Float64, true),
        Field::new(EVENT_TIMESTAMP, instant(), false),
        Field::new(CREATED_AT, instant(), true),
    ]))
});

/// The layout of feature rows: `_row: UInt32`, `entity_id: Utf8`, `feature_name: Utf8`,
/// `value: Float64` (nullable), `event_timestamp: Timestamp(µs, "UTC")`,
/// `created_at: Timestamp(µs, "UTC")` (nullable).
pub fn canonical() -> SchemaRef {
    Arc::clone(&CANONICAL)
}

/// Why a script's output is refused. Rows are counted from 0 within the output.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutputError {
    /// A column that every feature row needs is not there.
    #[error("the column {column:?} is missing; the output has {found}")]
    Missing {
        /// The column.
        column: &'static str,
        /// The columns that are there.
        found: String,
    },
    /// A column that feature rows do not have, or have once only. Refused rather than dropped: it
    /// is most often a slip of the pen.
    #[error("the column {column:?} is unknown or comes twice; feature rows have {}", COLUMNS.join(", "))]
    Unknown {
        /// The column.
        column: String,
    },
    /// A column of a type that cannot mean what the column means.
    #[error("the column {column:?} has the type {found}, expected {expected}")]
    Type {
        /// The column.
        column: &'static str,
        /// Its type.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// Timestamps without a time zone could mean any hour.
    #[error(
        "the column {column:?} holds timestamps without a time zone; make them UTC \
         (polars: .dt.replace_time_zone(\"UTC\"), pandas: .dt.tz_localize(\"UTC\"))"
    )]
    Naive {
        /// The column.
        column: &'static str,
    },
    /// Nothing where something must be.
    #[error("the column {column:?} is null in row {at}")]
    Null {
        /// The column.
        column: &'static str,
        /// The first such row.
        at: usize,
    },
    /// NaN or infinity, which are no feature values.
    #[error(
        "the value in row {at} is {found}, which is not a finite number (use null for \"no value\")"
    )]
    NotFinite {
        /// The first such row.
        at: usize,
        /// `NaN`, `inf` or `-inf`.
        found: String,
    },
    /// A value that the canonical type cannot hold.
    #[error("the column {column:?} in row {at} does not fit {expected}")]
    OutOfRange {
        /// The column.
        column: &'static str,
        /// The first such row.
        at: usize,
        /// What it must fit.
        expected: &'static str,
    },
    /// Without `_row` an output row can only mean the input row at its place.
    #[error(
        "the output has {n_out} rows for {n_in} events and no column \"_row\"; keep \"_row\" from the \
         input when rows are filtered, added or reordered"
    )]
    Count {
        /// Rows in the output.
        n_out: usize,
        /// Events in the input.
        n_in: u32,
    },
    /// A `_row` that is no event of the input.
    #[error("\"_row\" in row {at} is {row}, but the input has {n_in} events")]
    NoSuchRow {
        /// The first such row.
        at: usize,
        /// The `_row` it holds.
        row: u32,
        /// Events in the input.
        n_in: u32,
    },
    /// Arrow itself could not work with the data.
    #[error("the output cannot be read: {0}")]
    Arrow(String),
}

/// Brings a script's output for `n_in` events into the [`canonical`] layout, sorted by `_row`
/// (stable: outputs of one event keep their order).
///
/// Casts whole-number entity ids and every kind of text to text, numbers and booleans to
/// `Float64`, timestamps of any unit and zone to UTC microseconds. A missing `created_at` becomes
/// null. A missing `_row` becomes `0..n_in`, where the counts agree.
///
/// # Errors
/// [`OutputError`], for the batch as a whole.
pub fn normalise(batch: RecordBatch, n_in: u32) -> Result<RecordBatch, OutputError> {
    let n_out = batch.num_rows();
    let found = batch.schema();
    for (index, field) in found.fields().iter().enumerate() {
        let name = field.name();
        if !COLUMNS.contains(&name.as_str()) || found.index_of(name).ok() != Some(index) {
            return Err(OutputError::Unknown { column: name.clone() });
        }
    }
    let required = |column: &'static str| {
        batch.column_by_name(column).ok_or_else(|| OutputError::Missing {
            column,
            found: found
                .fields()
                .iter()
                .map(|field| field.name().as_str())
                .collect::<Vec<_>>()
                .join(", "),
        })
    };

    let entity_id = text(ENTITY_ID, required(ENTITY_ID)?, true)?;
    let feature_name = text(FEATURE_NAME, required(FEATURE_NAME)?, false)?;
    let value = number(required(VALUE)?)?;
    let event_timestamp = instant(EVENT_TIMESTAMP, required(EVENT_TIMESTAMP)?)?;
    refuse_null(EVENT_TIMESTAMP, &event_timestamp)?;
    let created_at = match batch.column_by_name(CREATED_AT) {
        Some(column) => instant(CREATED_AT, column)?,
        None => new_null_array(CANONICAL.field(5).data_type(), n_out),
    };
    let row = match batch.column_by_name(ROW) {
        Some(column) => row_numbers(column)?,
        None if n_out == n_in as usize => Arc::new(UInt32Array::from_iter_values(0..n_in)),
        None => return Err(OutputError::Count { n_out, n_in }),
    };

    let rows = RecordBatch::try_new_with_options(
        canonical(),
        vec![row, entity_id, feature_name, value, event_timestamp, created_at],
        &RecordBatchOptions::new().with_row_count(Some(n_out)),
    )
    .map_err(|error| OutputError::Arrow(error.to_string()))?;
    check_range(&rows, n_in)?;
    sort(rows)
}

/// Whether `rows` is what [`normalise`] promises for a batch of `n_in` events. Cheap: looks at the
/// layout and at `_row` only.
///
/// # Errors
/// A sentence on what is wrong.
pub(super) fn check(rows: &RecordBatch, n_in: u32) -> Result<(), String> {
    if rows.schema_ref() != &canonical() {
        return Err(format!("feature rows with the columns {:?}", rows.schema_ref().fields()));
    }
    check_range(rows, n_in).map_err(|error| error.to_string())?;
    if !row_column(rows).values().is_sorted() {
        return Err("feature rows out of order".into());
    }
    Ok(())
}

/// Leaves out the rows whose `_row` is marked in `dropped` (indexed by `_row`).
pub(super) fn without(rows: RecordBatch, dropped: &[bool]) -> Result<RecordBatch, OutputError> {
    if !dropped.contains(&true) {
        return Ok(rows);
    }
    let keep: BooleanArray = row_column(&rows)
        .values()
        .iter()
        .map(|row| Some(!dropped.get(*row as usize).copied().unwrap_or(false)))
        .collect();
    filter_record_batch(&rows, &keep).map_err(|error| OutputError::Arrow(error.to_string()))
}

fn row_column(rows: &RecordBatch) -> &UInt32Array {
    // Column 0 of the canonical layout is `_row: UInt32`; callers have established the layout.
    rows.column(0).as_primitive::<UInt32Type>()
}

fn check_range(rows: &RecordBatch, n_in: u32) -> Result<(), OutputError> {
    match row_column(rows).values().iter().enumerate().find(|(_, row)| **row >= n_in) {
        Some((at, row)) => Err(OutputError::NoSuchRow { at, row: *row, n_in }),
        None => Ok(()),
    }
}

fn sort(rows: RecordBatch) -> Result<RecordBatch, OutputError> {
    let row = row_column(&rows).values();
    if row.is_sorted() {
        return Ok(rows);
    }
    // Arrow's own sort is not stable.
    let mut order: Vec<u32> = (0..rows.num_rows() as u32).collect();
    order.sort_by_key(|index| row[*index as usize]);
    take_record_batch(&rows, &UInt32Array::from(order))
        .map_err(|error| OutputError::Arrow(error.to_string()))
}

fn refuse_null(column: &'static str, array: &ArrayRef) -> Result<(), OutputError> {
    match first_null(array) {
        Some(at) => Err(OutputError::Null { column, at }),
        None => Ok(()),
    }
}

fn first_null(array: &ArrayRef) -> Option<usize> {
    // Logical: in a dictionary the keys may be valid and the value behind them null.
    let nulls = array.logical_nulls()?;
    (0..array.len()).find(|index| nulls.is_null(*index))
}

/// Casts, and refuses what does not survive the cast.
fn cast(
    column: &'static str,
    array: &ArrayRef,
    to: &DataType,
    expected: &'static str,
) -> Result<ArrayRef, OutputError> {
    if array.data_type() == to {
        return Ok(Arc::clone(array));
    }
    let options = CastOptions { safe: true, ..CastOptions::default() };
    let cast = cast_with_options(array, to, &options)
        .map_err(|error| OutputError::Arrow(error.to_string()))?;
    if let Some(now) = cast.logical_nulls() {
        let before = array.logical_nulls();
        let lost = |index: &usize| {
            now.is_null(*index) && before.as_ref().is_none_or(|nulls| nulls.is_valid(*index))
        };
        if let Some(at) = (0..array.len()).find(lost) {
            return Err(OutputError::OutOfRange { column, at, expected });
        }
    }
    Ok(cast)
}

fn text(
    column: &'static str,
    array: &ArrayRef,
    whole_numbers: bool,
) -> Result<ArrayRef, OutputError> {
    let mut kind = array.data_type();
    if let DataType::Dictionary(_, values) = kind {
        kind = values;
    }
    let is_text = matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    // A column of nulls passes here, for the plainer refusal below.
    if !(is_text || kind.is_null() || (whole_numbers && kind.is_integer())) {
        let expected = if whole_numbers { "text or whole numbers" } else { "text" };
        return Err(OutputError::Type { column, found: array.data_type().to_string(), expected });
    }
    refuse_null(column, array)?;
    cast(column, array, &DataType::Utf8, "text")
}

fn number(array: &ArrayRef) -> Result<ArrayRef, OutputError> {
    let kind = array.data_type();
    if !(kind.is_numeric() || matches!(kind, DataType::Boolean | DataType::Null)) {
        return Err(OutputError::Type {
            column: VALUE,
            found: kind.to_string(),
            expected: "numbers or booleans",
        });
    }
    let array = cast(VALUE, array, &DataType::Float64, "a 64-bit float")?;
    let values: &Float64Array = array.as_primitive::<Float64Type>();
    // All values first: the common case needs no look at the nulls.
    if !values.values().iter().all(|value| value.is_finite()) {
        let bad = |index: &usize| values.is_valid(*index) && !values.value(*index).is_finite();
        if let Some(at) = (0..values.len()).find(bad) {
            return Err(OutputError::NotFinite { at, found: values.value(at).to_string() });
        }
    }
    Ok(array)
}

fn instant(column: &'static str, array: &ArrayRef) -> Result<ArrayRef, OutputError> {
    let zone = match array.data_type() {
        DataType::Timestamp(_, Some(zone)) => Some(Arc::clone(zone)),
        DataType::Timestamp(_, None) => return Err(OutputError::Naive { column }),
        DataType::Null => return Ok(new_null_array(CANONICAL.field(4).data_type(), array.len())),
        other => {
            let expected = "timestamps with a time zone";
            return Err(OutputError::Type { column, found: other.to_string(), expected });
        }
    };
    let micros = cast(
        column,
        array,
        &DataType::Timestamp(TimeUnit::Microsecond, zone),
        "microseconds in 64 bits",
    )?;
    // Arrow stores instants as UTC whatever the zone: the zone is a label for display.
    let relabelled: TimestampMicrosecondArray =
        micros.as_primitive::<TimestampMicrosecondType>().clone().with_timezone("UTC");
    Ok(Arc::new(relabelled))
}

fn row_numbers(array: &ArrayRef) -> Result<ArrayRef, OutputError> {
    if !(array.data_type().is_integer() || array.data_type().is_null()) {
        return Err(OutputError::Type {
            column: ROW,
            found: array.data_type().to_string(),
            expected: "whole numbers",
        });
    }
    refuse_null(ROW, array)?;
    cast(ROW, array, &DataType::UInt32, "a row number")
}

#[cfg(test)]
#[path = "schema_tests.rs"]
mod tests;
