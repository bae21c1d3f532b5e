//! Parquet: slices of row groups, read by polars.

use std::fs::File;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use polars::prelude::{
    AnyValue, ArrowDataType, FileMetadataRef, ParallelStrategy, ParquetReader, PolarsResult,
    SerReader, Series, TimeUnit,
};

use super::{ReplayError, ReplayOptions, Row};
use crate::text;

/// How much of a row group is held at a time, by the uncompressed size that the file states.
const SLICE_BYTES: usize = 32 << 20;
/// How many values are held at a time: what a dictionary says in two bits takes 8 or 16 bytes
/// once it is read.
const SLICE_VALUES: usize = 4 << 20;

/// The rows of a Parquet file.
pub(super) struct Parquet {
    path: PathBuf,
    file: File,
    metadata: FileMetadataRef,
    prefixes: Vec<Vec<u8>>,
    key_index: Option<usize>,
    next_group: usize,
    /// The first row that is still to be read from the file.
    next_row: usize,
    /// The end of the row group that it is in.
    group_end: usize,
    page: Vec<Series>,
    /// The rows of the page that are still to be given.
    rest: Range<usize>,
}

impl Parquet {
    pub(super) fn open(
        path: &Path,
        file: File,
        options: &ReplayOptions,
    ) -> Result<Self, ReplayError> {
        let (schema, metadata) = guarded(path, || {
            let mut reader = ParquetReader::new(file.try_clone()?);
            Ok((reader.schema()?, reader.get_metadata()?.clone()))
        })?;
        for (name, field) in schema.iter() {
            if !is_plain(field.dtype()) {
                return Err(ReplayError::UnsupportedColumn {
                    path: path.to_owned(),
                    column: name.to_string(),
                    dtype: format!("{:?}", field.dtype()),
                });
            }
        }
        let names: Vec<String> = schema.iter_names().map(ToString::to_string).collect();
        Ok(Self {
            path: path.to_owned(),
            file,
            prefixes: super::json_prefixes(&names),
            key_index: super::key_index(path, options, &names)?,
            metadata,
            next_group: 0,
            next_row: 0,
            group_end: 0,
            page: Vec::new(),
            rest: 0..0,
        })
    }

    pub(super) fn total_rows(&self) -> u64 {
        self.metadata.num_rows as u64
    }

    /// Gives up to `max_rows` rows to `take`; none at the end of the file.
    pub(super) fn read(
        &mut self,
        max_rows: usize,
        take: &mut impl FnMut(Row),
    ) -> Result<(), ReplayError> {
        if self.rest.is_empty() {
            let Some(slice) = self.next_slice() else {
                return Ok(());
            };
            self.rest = 0..slice.len();
            // Freed before the next one is read, so that two are never held.
            self.page.clear();
            self.page = guarded(&self.path, || self.read_slice(slice))?;
        }
        for row in self.rest.by_ref().take(max_rows) {
            let mut payload = Vec::with_capacity(256);
            let mut key = None;
            for (index, column) in self.page.iter().enumerate() {
                payload.extend_from_slice(&self.prefixes[index]);
                let start = payload.len();
                let value =
                    column.get(row).map_err(|source| ReplayError::polars(&self.path, source))?;
                push_value(&mut payload, &value);
                if self.key_index == Some(index) {
                    key = super::key_of_json(&payload[start..]);
                }
            }
            if self.page.is_empty() {
                payload.push(b'{');
            }
            payload.push(b'}');
            take((key, payload));
        }
        Ok(())
    }

    /// The rows to read next: a row group, or one of the even slices of a larger one.
    fn next_slice(&mut self) -> Option<Range<usize>> {
        while self.next_row == self.group_end {
            let group = self.metadata.row_groups.get(self.next_group)?;
            self.next_group += 1;
            self.group_end = self.group_end.saturating_add(group.num_rows());
        }
        // The group that is being read is the one before the next.
        let group = self.metadata.row_groups.get(self.next_group - 1)?;
        let values = group.num_rows().saturating_mul(group.n_columns());
        let parts = (group.total_byte_size() / SLICE_BYTES).max(values / SLICE_VALUES) + 1;
        let rows = group.num_rows().div_ceil(parts);
        let start = self.next_row;
        self.next_row = self.group_end.min(start.saturating_add(rows));
        Some(start..self.next_row)
    }

    fn read_slice(&self, slice: Range<usize>) -> PolarsResult<Vec<Series>> {
        let mut reader = ParquetReader::new(self.file.try_clone()?);
        reader.set_metadata(self.metadata.clone());
        let mut frame = reader
            .with_slice(Some((slice.start, slice.len())))
            .read_parallel(ParallelStrategy::Columns)
            .finish()?;
        frame.rechunk_mut();
        let columns = frame.into_columns();
        Ok(columns.iter().map(|column| column.as_materialized_series().clone()).collect())
    }
}

/// Calls `read` and takes a panic for a file that is damaged: polars trusts what the footer and
/// the pages of a file say about themselves.
fn guarded<T>(path: &Path, read: impl FnOnce() -> PolarsResult<T>) -> Result<T, ReplayError> {
    // Nothing that a panic could leave half done is used again: the replay ends with the error.
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(result) => result.map_err(|source| ReplayError::polars(path, source)),
        Err(_) => Err(ReplayError::Damaged { path: path.to_owned() }),
    }
}

/// Whether values of this type have a plain form in JSON, and this build of polars reads them.
fn is_plain(dtype: &ArrowDataType) -> bool {
    use ArrowDataType as T;
    match dtype {
        T::Null
        | T::Boolean
        | T::Int8
        | T::Int16
        | T::Int32
        | T::Int64
        | T::UInt8
        | T::UInt16
        | T::UInt32
        | T::UInt64
        | T::Float32
        | T::Float64
        | T::Utf8
        | T::LargeUtf8
        | T::Utf8View
        | T::Binary
        | T::LargeBinary
        | T::BinaryView
        | T::Date32
        | T::Date64
        | T::Timestamp(..)
        | T::Time32(_)
        | T::Time64(_) => true,
        T::Dictionary(_, values, _) => {
            matches!(**values, T::Utf8 | T::LargeUtf8 | T::Utf8View)
        }
        T::List(items) | T::LargeList(items) => is_plain(items.dtype()),
        _ => false,
    }
}

/// Appends a value as JSON. Bytes are a string where they are UTF-8, else hexadecimal after `\x`.
fn push_value(buf: &mut Vec<u8>, value: &AnyValue<'_>) {
    if let Some(string) = value.get_str() {
        return text::push_string(buf, string);
    }
    match value {
        AnyValue::Boolean(truth) => {
            buf.extend_from_slice(if *truth { b"true" } else { b"false" });
        }
        AnyValue::Int8(int) => text::push_i64(buf, i64::from(*int)),
        AnyValue::Int16(int) => text::push_i64(buf, i64::from(*int)),
        AnyValue::Int32(int) => text::push_i64(buf, i64::from(*int)),
        AnyValue::Int64(int) => text::push_i64(buf, *int),
        AnyValue::UInt8(int) => text::push_u64(buf, u64::from(*int)),
        AnyValue::UInt16(int) => text::push_u64(buf, u64::from(*int)),
        AnyValue::UInt32(int) => text::push_u64(buf, u64::from(*int)),
        AnyValue::UInt64(int) => text::push_u64(buf, *int),
        AnyValue::Float32(float) => text::push_f32(buf, *float),
        AnyValue::Float64(float) => text::push_f64(buf, *float),
        AnyValue::Binary(bytes) => push_bytes(buf, bytes),
        AnyValue::BinaryOwned(bytes) => push_bytes(buf, bytes),
        AnyValue::Date(days) => {
            buf.push(b'"');
            text::push_date(buf, i64::from(*days));
            buf.push(b'"');
        }
        // polars keeps instants in UTC whatever their zone.
        AnyValue::Datetime(instant, unit, _) => push_instant(buf, *instant, *unit),
        AnyValue::DatetimeOwned(instant, unit, _) => push_instant(buf, *instant, *unit),
        AnyValue::Time(nanos) => {
            buf.push(b'"');
            text::push_clock(
                buf,
                nanos.div_euclid(1_000_000_000),
                nanos.rem_euclid(1_000_000_000),
                9,
            );
            buf.push(b'"');
        }
        AnyValue::List(items) => {
            buf.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    buf.push(b',');
                }
                push_value(buf, &item);
            }
            buf.push(b']');
        }
        // Null; no other type passes `is_plain`.
        _ => buf.extend_from_slice(b"null"),
    }
}

fn push_instant(buf: &mut Vec<u8>, instant: i64, unit: TimeUnit) {
    let decimals = match unit {
        TimeUnit::Milliseconds => 3,
        TimeUnit::Microseconds => 6,
        TimeUnit::Nanoseconds => 9,
    };
    buf.push(b'"');
    text::push_instant(buf, instant, decimals);
    buf.push(b'"');
}

fn push_bytes(buf: &mut Vec<u8>, bytes: &[u8]) {
    use std::io::Write;
    match std::str::from_utf8(bytes) {
        Ok(string) => text::push_string(buf, string),
        Err(_) => {
            buf.extend_from_slice(b"\"\\\\x");
            for byte in bytes {
                // Writing to a vector cannot fail.
                let _ = write!(buf, "{byte:02x}");
            }
            buf.push(b'"');
        }
    }
}
