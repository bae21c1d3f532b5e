//! Parquet: the declared columns, read by polars in slices of row groups.
//!
//! Types are those of the Parquet schema; what a writer says beside it about its own types is not
//! needed. An instant without a zone is UTC: the type has no zone, and no text that could lack one.
//! A date is its midnight in UTC. An instant is floored to the unit of the declared type.

use super::{
    CHUNK_BYTES, Checked, FileError, FileKind, FileLimits, MAX_ROW_BYTES,
    columns::{Converted, convert, fits, row_bytes},
    csv::EVENT_ID,
    pages, plain, reasons,
};
use crate::{
    config::{SchemaField, StreamConfig},
    decode::Cells,
};
use polars::prelude::{
    ArrowDataType, ArrowSchema, FileMetadataRef, ParallelStrategy, ParquetReader, PolarsResult,
    SerReader, Series,
};
use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
};
use uuid::Uuid;

/// How much of a row group is held at a time, by the decompressed size of its pages.
const SLICE_BYTES: u64 = 32 << 20;
/// How many values are held at a time: what a dictionary says in two bits takes 8 or 16 bytes
/// once it is read.
const SLICE_VALUES: u64 = 4 << 20;

/// The rows of a file.
pub(super) struct ParquetRows {
    plain: File,
    metadata: FileMetadataRef,
    fields: Arc<[SchemaField]>,
    /// Declared fields that the file has, with nothing but nulls in them.
    nulls: Vec<usize>,
    /// Declared fields that are read, in the order of `names`.
    read: Vec<usize>,
    names: Vec<String>,
    /// Whether the last of `names` is the producer's UUID, which is no field.
    has_event_id: bool,
    /// What each row group holds, in the columns that are read.
    groups: Vec<Group>,
    next_group: usize,
    /// The first row that is still to be read from the file.
    next_row: u64,
    /// The end of the row group that it is in.
    group_end: u64,
    page: Vec<Series>,
    /// The number of the page's first row.
    page_start: u64,
    /// The rows of the page that are still to be given.
    rest: Range<usize>,
}

#[derive(Debug, Clone, Copy)]
struct Group {
    rows: u64,
    bytes: u64,
}

impl ParquetRows {
    pub fn open(
        path: &Path,
        kind: FileKind,
        stream: &StreamConfig,
        limits: &FileLimits,
    ) -> Result<Self, FileError> {
        let plain = plain::open_seekable(path, kind, limits)?;
        let (metadata, schema, own_types) = guarded(|| read_footer(&plain))?;
        let columns = metadata.schema().columns().len();
        if columns > limits.max_columns {
            return Err(FileError::too_many_columns(columns, limits.max_columns));
        }
        let mut seen = HashSet::new();
        let names = metadata.schema().fields().iter().map(|field| field.name());
        if let Some(name) = names.clone().find(|name| !seen.insert(*name)) {
            return Err(FileError::duplicate_column(name));
        }
        let known: Vec<String> = names.map(str::to_owned).collect();
        for (what, name) in [("entity", &stream.entity), ("event_time", &stream.event_time)] {
            if !known.contains(name) {
                return Err(FileError::missing_column(what, name, &known));
            }
        }
        let mut rows = Self {
            plain,
            metadata,
            fields: stream.schema.clone().into(),
            nulls: Vec::new(),
            read: Vec::new(),
            names: Vec::new(),
            has_event_id: false,
            groups: Vec::new(),
            next_group: 0,
            next_row: 0,
            group_end: 0,
            page: Vec::new(),
            page_start: 0,
            rest: 0..0,
        };
        rows.choose_columns(&schema, own_types.as_ref())?;
        rows.count_rows(limits)?;
        Ok(rows)
    }

    /// Which columns are read, and that their types can be what is declared.
    fn choose_columns(
        &mut self,
        schema: &Arc<ArrowSchema>,
        own_types: Option<&Arc<ArrowSchema>>,
    ) -> Result<(), FileError> {
        for (i, field) in self.fields.clone().iter().enumerate() {
            let Some(found) = schema.get(&field.name) else { continue };
            let own = own_types.and_then(|own| own.get(&field.name));
            if own.is_some_and(|own| *own.dtype() == ArrowDataType::Null) {
                self.nulls.push(i);
                continue;
            }
            fits(&field.name, found.dtype(), field.kind)?;
            self.read.push(i);
            self.names.push(field.name.clone());
        }
        let declared = self.fields.iter().any(|field| field.name == EVENT_ID);
        let text = schema.get(EVENT_ID).is_some_and(|field| {
            use ArrowDataType as T;
            matches!(field.dtype(), T::Utf8 | T::LargeUtf8 | T::Utf8View)
        });
        self.has_event_id = text && !declared;
        if self.has_event_id {
            self.names.push(EVENT_ID.to_owned());
        }
        Ok(())
    }

    /// Holds what footer, row groups and pages count against each other.
    fn count_rows(&mut self, limits: &FileLimits) -> Result<(), FileError> {
        let forged = |detail: String| {
            let hint = "the file is damaged or forged: write it anew";
            FileError::new(reasons::ROW_COUNT, detail, hint)
        };
        let length = self.plain.metadata().map_err(|e| FileError::from_io(&e))?.len();
        let (mut sum, mut bytes) = (0u64, 0u64);
        for (n, group) in self.metadata.row_groups.iter().enumerate() {
            let rows = group.num_rows() as u64;
            let mut in_group = 0;
            for name in &self.names {
                let mut chunks = group.columns_under_root_iter(name).into_iter().flatten();
                let (Some(chunk), None) = (chunks.next(), chunks.next()) else {
                    return Err(forged(format!("row group {n} has not one column {name:?}")));
                };
                let range = guarded(|| Ok(chunk.byte_range()))?;
                if range.end > length || chunk.num_values() < 0 {
                    let detail = format!("row group {n} has {name:?} where the file has ended");
                    let hint = "the file is damaged or forged: write it anew";
                    return Err(FileError::new(reasons::DAMAGED_PARQUET, detail, hint));
                }
                let pages = pages::walk(&self.plain, range)?;
                if pages.values != rows || chunk.num_values().unsigned_abs() != rows {
                    return Err(forged(format!(
                        "row group {n} counts {rows} rows, but its column {name:?} {} and the pages of \
                         that {}",
                        chunk.num_values(),
                        pages.values
                    )));
                }
                in_group += pages.bytes;
            }
            self.groups.push(Group { rows, bytes: in_group });
            (sum, bytes) = (sum.saturating_add(rows), bytes.saturating_add(in_group));
            if sum > limits.max_rows {
                return Err(FileError::too_many_rows(limits.max_rows));
            }
        }
        let said = self.metadata.num_rows as u64;
        if sum != said {
            return Err(forged(format!(
                "the footer counts {said} rows, but the row groups {sum} in all"
            )));
        }
        check_size(bytes, length, limits)
    }

    /// Rows of the file.
    pub fn rows(&self) -> u64 {
        self.metadata.num_rows as u64
    }

    /// Passes rows before `row`.
    pub fn skip_to(&mut self, row: u64) {
        if row < self.page_start + self.rest.start as u64 {
            return;
        }
        if row <= self.page_start + self.rest.end as u64 {
            self.rest.start = (row - self.page_start) as usize;
            return;
        }
        self.rest = 0..0;
        while self.group_end <= row {
            let Some(group) = self.groups.get(self.next_group) else { break };
            self.next_group += 1;
            self.group_end += group.rows;
        }
        self.next_row = row.min(self.group_end);
    }

    /// Up to `most` rows, fewer when they are large; the first one's number.
    pub fn next(&mut self, most: usize) -> Result<Option<(u64, Cells)>, FileError> {
        if self.rest.is_empty() && !self.read_page()? {
            return Ok(None);
        }
        let first = self.page_start + self.rest.start as u64;
        let rows = self.rows_of_a_chunk(most)?;
        let range = self.rest.start..self.rest.start + rows;
        self.rest.start = range.end;
        let cells = guarded(|| self.cells(range))?;
        Ok(Some((first, cells)))
    }

    fn cells(&self, range: Range<usize>) -> PolarsResult<Cells> {
        let rows = range.len();
        let slice = |series: &Series| series.slice(range.start as i64, rows);
        let mut columns: Vec<_> = self.fields.iter().map(|_| None).collect();
        let mut not_text = Vec::new();
        for (series, &field) in self.page.iter().zip(&self.read) {
            let Converted { column, not_utf8 } = convert(&slice(series))?;
            columns[field] = Some(column);
            not_text.extend(not_utf8.into_iter().map(|bad| (field, bad)));
        }
        for &field in &self.nulls {
            columns[field] = Some(super::columns::nulls());
        }
        let event_ids = match self.page.last().filter(|_| self.has_event_id) {
            None => Vec::new(),
            Some(series) => {
                let id = |text: Option<&str>| text.and_then(|text| Uuid::parse_str(text).ok());
                slice(series).str()?.iter().map(|text| id(text).unwrap_or(Uuid::nil())).collect()
            }
        };
        let mut cells = Cells::new(self.fields.clone(), rows, columns, event_ids, BTreeMap::new());
        for (field, (row, bytes, bad)) in not_text {
            cells.refuse(row, field, &bytes, bad);
        }
        Ok(cells)
    }

    /// How many of the page's rows make a chunk: at least one, and not much more than its bytes.
    fn rows_of_a_chunk(&self, most: usize) -> Result<usize, FileError> {
        let most = self.rest.len().min(most.max(1));
        let slice = self.rest.start..self.rest.start + most;
        let sizes = guarded(|| row_bytes(&self.page, slice))?;
        let mut bytes = 0;
        let fit = sizes.iter().take_while(|size| {
            bytes += **size;
            bytes <= CHUNK_BYTES
        });
        Ok(fit.count().max(1))
    }

    /// Reads the next slice of a row group; false at the end of the file.
    fn read_page(&mut self) -> Result<bool, FileError> {
        let Some(slice) = self.next_slice() else { return Ok(false) };
        let rows = (slice.end - slice.start) as usize;
        // Freed before the next one is read, so that two are never held.
        self.page.clear();
        let page = guarded(|| self.read_slice(&slice))?;
        if page.len() != self.names.len() || page.iter().any(|series| series.len() != rows) {
            let detail = format!("{rows} rows from row {} on cannot be read", slice.start);
            let hint = "the file is damaged or forged: write it anew";
            return Err(FileError::new(reasons::ROW_COUNT, detail, hint).at_row(slice.start));
        }
        (self.page, self.page_start, self.rest) = (page, slice.start, 0..rows);
        Ok(true)
    }

    /// The rows to read next: a row group, or one of the even slices of a larger one.
    fn next_slice(&mut self) -> Option<Range<u64>> {
        while self.next_row == self.group_end {
            let group = self.groups.get(self.next_group)?;
            self.next_group += 1;
            self.group_end += group.rows;
        }
        // The group that is being read is the one before the next.
        let group = self.groups.get(self.next_group - 1)?;
        let values = group.rows.saturating_mul(self.names.len() as u64);
        let parts = (group.bytes / SLICE_BYTES).max(values / SLICE_VALUES) + 1;
        let start = self.next_row;
        self.next_row = self.group_end.min(start + group.rows.div_ceil(parts).max(1));
        Some(start..self.next_row)
    }

    fn read_slice(&self, slice: &Range<u64>) -> PolarsResult<Vec<Series>> {
        let mut reader = ParquetReader::new(self.plain.try_clone()?);
        reader.set_metadata(self.metadata.clone());
        let (start, rows) = (slice.start as usize, (slice.end - slice.start) as usize);
        // By row groups: the other ways look into every group before the slice again.
        let frame = reader
            .with_slice(Some((start, rows)))
            .with_columns(Some(self.names.clone()))
            .read_parallel(ParallelStrategy::RowGroups)
            .finish()?;
        let series = |name: &String| {
            frame.column(name).map(|column| column.as_materialized_series().rechunk())
        };
        self.names.iter().map(series).collect()
    }
}

/// Reads the whole file.
pub(super) fn check(
    path: &Path,
    kind: FileKind,
    stream: &StreamConfig,
    limits: &FileLimits,
) -> Result<Checked, FileError> {
    let mut rows = ParquetRows::open(path, kind, stream, limits)?;
    let mut bytes: u64 = 0;
    let mut read = 0;
    while rows.read_page()? {
        let range = std::mem::take(&mut rows.rest);
        let sizes = guarded(|| row_bytes(&rows.page, range))?;
        for (i, size) in sizes.iter().enumerate() {
            if *size > MAX_ROW_BYTES {
                return Err(FileError::row_too_large(rows.page_start + i as u64));
            }
            bytes += *size as u64;
        }
        read += sizes.len() as u64;
        if bytes > limits.max_decompressed_bytes {
            return Err(too_large(limits));
        }
    }
    if read != rows.rows() {
        let detail = format!("{read} of {} rows can be read", rows.rows());
        let hint = "the file is damaged or forged: write it anew";
        return Err(FileError::new(reasons::ROW_COUNT, detail, hint));
    }
    Ok(Checked { rows: read, bytes: rows.groups.iter().map(|group| group.bytes).sum() })
}

fn too_large(limits: &FileLimits) -> FileError {
    let most = limits.max_decompressed_bytes;
    let detail = format!("the columns of the file have more than {most} bytes");
    FileError::new(
        reasons::TOO_LARGE,
        detail,
        "split it, or raise `uploads.max_decompressed_bytes`",
    )
}

/// Pages are compressed, too.
fn check_size(bytes: u64, length: u64, limits: &FileLimits) -> Result<(), FileError> {
    if bytes > limits.max_decompressed_bytes {
        return Err(too_large(limits));
    }
    if bytes > plain::FREE_BYTES && bytes > length.saturating_mul(limits.max_ratio) {
        let detail = format!("the file's pages become more than {} times larger", limits.max_ratio);
        let hint = "write it with less compression, or raise `uploads.max_ratio`";
        return Err(FileError::new(reasons::RATIO_TOO_HIGH, detail, hint));
    }
    Ok(())
}

/// The footer, the schema by the Parquet types alone, and what the writer says of its own types.
fn read_footer(
    file: &File,
) -> PolarsResult<(FileMetadataRef, Arc<ArrowSchema>, Option<Arc<ArrowSchema>>)> {
    let mut reader = ParquetReader::new(file.try_clone()?);
    let mut metadata = reader.get_metadata()?.clone();
    // Only asked which columns are all null; of no account when it cannot be read.
    let own = catch_unwind(AssertUnwindSafe(|| reader.schema())).ok().and_then(Result::ok);
    Arc::make_mut(&mut metadata).key_value_metadata = None;
    let mut reader = ParquetReader::new(file.try_clone()?);
    reader.set_metadata(metadata.clone());
    let schema = reader.schema()?;
    Ok((metadata, schema, own))
}

/// Calls `read` and takes a panic for a file that is damaged: polars trusts what the footer and
/// the pages of a file say about themselves.
fn guarded<T>(read: impl FnOnce() -> PolarsResult<T>) -> Result<T, FileError> {
    let hint = "is it a Parquet file, and whole? it may be cut off or overwritten: write it anew";
    // Nothing that a panic could leave half done is used again: the file is refused.
    let why = match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "its parts contradict each other".into(),
    };
    Err(FileError::new(
        reasons::DAMAGED_PARQUET,
        format!("the Parquet file cannot be read: {why}"),
        hint,
    ))
}
