//! What polars reads from Parquet, as cells.

use super::{FileError, reasons};
use crate::{
    config::FieldType,
    decode::{self, Bad, CellColumn, CellValues, Texts},
};
use polars::prelude::{ArrowDataType, DataType, PolarsResult, Series, TimeUnit};
use std::ops::Range;

/// A column, and the rows whose bytes are no text.
pub(super) struct Converted {
    pub column: CellColumn,
    /// Row, bytes, why.
    pub not_utf8: Vec<(usize, Vec<u8>, Bad)>,
}

/// A column of nothing but nulls.
pub(super) fn nulls() -> CellColumn {
    CellColumn { values: CellValues::Null, valid: None }
}

/// Whether a column of this type can be what is declared, for some values at least.
pub(super) fn fits(name: &str, found: &ArrowDataType, kind: FieldType) -> Result<(), FileError> {
    use ArrowDataType as T;
    let text = matches!(
        found,
        T::Utf8 | T::LargeUtf8 | T::Utf8View | T::Binary | T::LargeBinary | T::BinaryView
    );
    let integer = matches!(
        found,
        T::Int8 | T::Int16 | T::Int32 | T::Int64 | T::UInt8 | T::UInt16 | T::UInt32 | T::UInt64
    );
    let instant = matches!(found, T::Date32 | T::Date64 | T::Timestamp(..));
    let (fits, wanted) = match kind {
        FieldType::String => (text, "text"),
        FieldType::Int64 => (integer, "integers"),
        FieldType::Float64 => {
            (integer || matches!(found, T::Float32 | T::Float64), "floats or integers")
        }
        FieldType::Bool => (*found == T::Boolean, "booleans"),
        FieldType::Timestamp => (instant || text, "timestamps, dates or RFC 3339 text"),
        FieldType::TimestampS | FieldType::TimestampMs | FieldType::TimestampUs => {
            (instant || integer, "timestamps, dates or integers")
        }
    };
    if fits || *found == T::Null {
        return Ok(());
    }
    let detail = format!(
        "the column {name:?} is of type {found:?}, which can never be what the stream declares"
    );
    Err(FileError::new(reasons::COLUMN_TYPE, detail, format!("write it as {wanted}")))
}

/// Bytes of each row over all columns: of texts their own, of other values 8.
pub(super) fn row_bytes(columns: &[Series], rows: Range<usize>) -> PolarsResult<Vec<usize>> {
    let mut sizes = vec![0; rows.len()];
    let mut fixed = 0;
    for series in columns {
        match series.dtype() {
            DataType::String => {
                let slice = series.slice(rows.start as i64, rows.len());
                for (size, text) in sizes.iter_mut().zip(slice.str()?.iter()) {
                    *size += text.map_or(0, str::len);
                }
                fixed += 8;
            }
            DataType::Binary => {
                let slice = series.slice(rows.start as i64, rows.len());
                for (size, bytes) in sizes.iter_mut().zip(slice.binary()?.iter()) {
                    *size += bytes.map_or(0, <[u8]>::len);
                }
                fixed += 8;
            }
            _ => fixed += 8,
        }
    }
    sizes.iter_mut().for_each(|size| *size += fixed);
    Ok(sizes)
}

/// The values of a column.
pub(super) fn convert(series: &Series) -> PolarsResult<Converted> {
    let mut not_utf8 = Vec::new();
    let values = match series.dtype() {
        DataType::String => CellValues::Text(texts(series.str()?.iter())),
        DataType::Binary => {
            let mut texts = Texts::default();
            for (row, bytes) in series.binary()?.iter().enumerate() {
                let bytes = bytes.unwrap_or_default();
                let text = std::str::from_utf8(bytes).unwrap_or_else(|error| {
                    let detail = format!("`{}`: {error}", series.name());
                    let bad = Bad::new(decode::reasons::INVALID_UTF8, detail);
                    not_utf8.push((row, bytes.to_vec(), bad));
                    ""
                });
                texts.push(text);
            }
            CellValues::Text(texts)
        }
        DataType::UInt64 => CellValues::Unsigned(plain(series.u64()?.iter())),
        DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32 => CellValues::Int(integers(series)?),
        DataType::Float32 | DataType::Float64 => {
            CellValues::Float(plain(series.cast(&DataType::Float64)?.f64()?.iter()))
        }
        DataType::Boolean => CellValues::Bool(plain(series.bool()?.iter())),
        DataType::Date => {
            let days = integers(&series.to_physical_repr())?;
            let counts = days.into_iter().map(|days| days.saturating_mul(86_400)).collect();
            CellValues::Instant { counts, decimals: 0 }
        }
        DataType::Datetime(unit, _) => {
            let decimals = match unit {
                TimeUnit::Milliseconds => 3,
                TimeUnit::Microseconds => 6,
                TimeUnit::Nanoseconds => 9,
            };
            CellValues::Instant { counts: integers(&series.to_physical_repr())?, decimals }
        }
        // Null; no other type passes `fits`.
        _ => CellValues::Null,
    };
    let valid = (series.null_count() > 0)
        .then(|| series.is_not_null().iter().map(|v| v == Some(true)).collect());
    Ok(Converted { column: CellColumn { values, valid }, not_utf8 })
}

fn integers(series: &Series) -> PolarsResult<Vec<i64>> {
    Ok(plain(series.cast(&DataType::Int64)?.i64()?.iter()))
}

fn plain<T: Default>(values: impl Iterator<Item = Option<T>>) -> Vec<T> {
    values.map(Option::unwrap_or_default).collect()
}

fn texts<'a>(values: impl Iterator<Item = Option<&'a str>>) -> Texts {
    let mut texts = Texts::default();
    values.for_each(|text| texts.push(text.unwrap_or_default()));
    texts
}
