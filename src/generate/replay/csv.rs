//! CSV: blocks of whole records, split by polars, typed by us.
//!
//! polars guesses types from the first rows and turns `007` into 7. Here the whole file is
//! read once before, and a column is a number, a boolean or a time only if all of its values
//! are: a value then looks the same in the first row and in the last. Numbers keep their digits.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Seek};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, NaiveDate, NaiveDateTime};
use polars::error::PolarsError;
use polars::prelude::{
    CsvReadOptions, DataFrame, DataType, Field, NullValues, PlSmallStr, Schema, SchemaRef,
    SerReader, StringChunked,
};

use super::{MAX_RECORD_BYTES, ReplayError, ReplayOptions, Row};
use crate::text;

/// A block is cut at the first record that ends beyond this size.
const BLOCK_BYTES: usize = 4 << 20;

/// What all the values of a column are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// No value but null so far.
    Nothing,
    Boolean,
    /// A 64-bit integer, without leading zeros or a plus.
    Integer,
    /// Anything that reads as a 64-bit float.
    Float,
    Date,
    Instant,
    Text,
}

/// The rows of a CSV file.
pub(super) struct Csv {
    blocks: Blocks,
    kinds: Vec<Kind>,
    prefixes: Vec<Vec<u8>>,
    key_index: Option<usize>,
    total_rows: u64,
    page: Vec<StringChunked>,
    /// The rows of the page that are still to be given.
    rest: Range<usize>,
}

impl Csv {
    pub(super) fn open(
        path: &Path,
        file: File,
        options: &ReplayOptions,
    ) -> Result<Self, ReplayError> {
        let mut blocks = Blocks::open(path, file, options)?;
        let names: Vec<String> = blocks.schema.iter_names().map(ToString::to_string).collect();
        let key_index = super::key_index(path, options, &names)?;
        let mut kinds = vec![Kind::Nothing; names.len()];
        while let Some(columns) = blocks.next()? {
            for (kind, column) in kinds.iter_mut().zip(&columns) {
                *kind = column.iter().flatten().fold(*kind, join);
            }
        }
        let total_rows = blocks.rows;
        blocks.rewind()?;
        Ok(Self {
            blocks,
            kinds,
            prefixes: super::json_prefixes(&names),
            key_index,
            total_rows,
            page: Vec::new(),
            rest: 0..0,
        })
    }

    pub(super) fn total_rows(&self) -> u64 {
        self.total_rows
    }

    /// Gives up to `max_rows` rows to `take`; none at the end of the file.
    pub(super) fn read(
        &mut self,
        max_rows: usize,
        take: &mut impl FnMut(Row),
    ) -> Result<(), ReplayError> {
        if self.rest.is_empty() {
            match self.blocks.next()? {
                Some(page) => {
                    self.rest = 0..page.first().map_or(0, StringChunked::len);
                    self.page = page;
                }
                None => return Ok(()),
            }
        }
        for row in self.rest.by_ref().take(max_rows) {
            let mut payload = Vec::with_capacity(256);
            let mut key = None;
            for (index, column) in self.page.iter().enumerate() {
                payload.extend_from_slice(&self.prefixes[index]);
                let start = payload.len();
                push_value(&mut payload, column.get(row), self.kinds[index]);
                if self.key_index == Some(index) {
                    key = super::key_of_json(&payload[start..]);
                }
            }
            payload.push(b'}');
            take((key, payload));
        }
        Ok(())
    }
}

/// The kind of a column of `kind` that also holds `value`.
fn join(kind: Kind, value: &str) -> Kind {
    match kind {
        Kind::Nothing => kind_of(value),
        Kind::Text => Kind::Text,
        Kind::Integer if is_integer(value) => Kind::Integer,
        Kind::Integer | Kind::Float if is_float(value) => Kind::Float,
        Kind::Boolean if is_boolean(value) => Kind::Boolean,
        Kind::Date if is_date(value) => Kind::Date,
        Kind::Instant if instant_of(value).is_some() => Kind::Instant,
        _ => Kind::Text,
    }
}

fn kind_of(value: &str) -> Kind {
    if is_integer(value) {
        Kind::Integer
    } else if is_float(value) {
        Kind::Float
    } else if is_boolean(value) {
        Kind::Boolean
    } else if is_date(value) {
        Kind::Date
    } else if instant_of(value).is_some() {
        Kind::Instant
    } else {
        Kind::Text
    }
}

fn is_boolean(value: &str) -> bool {
    matches!(value, "true" | "false" | "True" | "False" | "TRUE" | "FALSE")
}

fn is_integer(value: &str) -> bool {
    let digits = value.strip_prefix('-').unwrap_or(value);
    let canonical = digits == "0" || digits.starts_with(|c: char| ('1'..='9').contains(&c));
    canonical && value != "-0" && value.parse::<i64>().is_ok()
}

/// A number with a point or an exponent, or not finite. Numbers that are integers in form but
/// not in [`is_integer`], such as `007` or 20 digits, are identifiers rather.
fn is_float(value: &str) -> bool {
    let digits = value.strip_prefix(['-', '+']).unwrap_or(value);
    let whole = digits.bytes().all(|byte| byte.is_ascii_digit());
    let identifier = whole && !is_integer(value) && value != "-0";
    let leading_zero =
        digits.starts_with('0') && digits[1..].starts_with(|c: char| c.is_ascii_digit());
    !identifier && !leading_zero && value.parse::<f64>().is_ok()
}

fn is_date(value: &str) -> bool {
    value.len() == 10 && NaiveDate::parse_from_str(value, "%Y-%m-%d").is_ok()
}

/// The instant that `value` says, in microseconds or nanoseconds since 1970 and the decimals of
/// that unit. Without a zone it is taken as UTC.
fn instant_of(value: &str) -> Option<(i64, u8)> {
    if value.len() < "2024-01-01 00:00".len() || !value.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let instant = match DateTime::parse_from_rfc3339(value) {
        Ok(instant) => instant.to_utc(),
        Err(_) => {
            let naive = [
                "%Y-%m-%dT%H:%M:%S%.f",
                "%Y-%m-%d %H:%M:%S%.f",
                "%Y-%m-%d %H:%M",
                "%Y-%m-%dT%H:%M",
            ]
            .iter()
            .find_map(|format| NaiveDateTime::parse_from_str(value, format).ok())?;
            naive.and_utc()
        }
    };
    let nanos = instant.timestamp_subsec_nanos();
    if nanos % 1_000_000_000 == 0 {
        Some((instant.timestamp(), 0))
    } else if nanos % 1000 == 0 {
        Some((instant.timestamp_micros(), 6))
    } else {
        instant.timestamp_nanos_opt().map(|nanos| (nanos, 9))
    }
}

/// Appends a field of a column of `kind` as JSON.
fn push_value(buf: &mut Vec<u8>, value: Option<&str>, kind: Kind) {
    let Some(value) = value else {
        return buf.extend_from_slice(b"null");
    };
    match kind {
        Kind::Integer if is_integer(value) => buf.extend_from_slice(value.as_bytes()),
        Kind::Float if is_float(value) => push_number(buf, value),
        Kind::Boolean if is_boolean(value) => {
            let truth: &[u8] = if value.starts_with(['t', 'T']) { b"true" } else { b"false" };
            buf.extend_from_slice(truth);
        }
        Kind::Instant => match instant_of(value) {
            Some((instant, decimals)) => {
                buf.push(b'"');
                text::push_instant(buf, instant, decimals);
                buf.push(b'"');
            }
            None => text::push_string(buf, value),
        },
        // Also what does not fit its kind, which takes a file that changed while it was read.
        _ => text::push_string(buf, value),
    }
}

/// Appends a number digit by digit if JSON can say it so, else as it reads; null if not finite.
fn push_number(buf: &mut Vec<u8>, value: &str) {
    let number = value.parse::<f64>().unwrap_or(f64::NAN);
    if number.is_finite() && serde_json::from_str::<f64>(value).is_ok() {
        buf.extend_from_slice(value.as_bytes());
    } else {
        text::push_f64(buf, number);
    }
}

/// A CSV file as blocks of string columns.
struct Blocks {
    path: PathBuf,
    reader: BufReader<File>,
    /// Where the first record begins, after the header.
    body: u64,
    schema: SchemaRef,
    nulls: Option<NullValues>,
    /// The records of the block being filled.
    block: Vec<u8>,
    /// The records read since the header.
    rows: u64,
}

impl Blocks {
    fn open(path: &Path, file: File, options: &ReplayOptions) -> Result<Self, ReplayError> {
        let nulls = options.null_values.iter().map(|text| text.as_str().into()).collect();
        let mut blocks = Self {
            path: path.to_owned(),
            reader: BufReader::with_capacity(1 << 18, file),
            body: 0,
            schema: Arc::new(Schema::default()),
            nulls: (!options.null_values.is_empty()).then_some(NullValues::AllColumns(nulls)),
            block: Vec::new(),
            rows: 0,
        };
        blocks.read_header()?;
        Ok(blocks)
    }

    fn read_header(&mut self) -> Result<(), ReplayError> {
        while self.block.is_empty() {
            if !self.append_record()? {
                return Err(ReplayError::NoHeader { path: self.path.clone() });
            }
        }
        let mut header = std::mem::take(&mut self.block);
        if header.starts_with(b"\xEF\xBB\xBF") {
            header.drain(..3);
        }
        let width = fields(&header);
        // The header is split as a record of its own, so that polars renames nothing.
        let names =
            parse(&self.path, header, string_schema((0..width).map(|i| format!("{i}"))), None)?;
        let mut schema = Schema::default();
        for name in &names {
            let name = PlSmallStr::from(name.get(0).unwrap_or(""));
            if schema.insert(name.clone(), DataType::String).is_some() {
                let column = name.to_string();
                return Err(ReplayError::DuplicateColumn { path: self.path.clone(), column });
            }
        }
        self.schema = Arc::new(schema);
        self.body =
            self.reader.stream_position().map_err(|source| ReplayError::io(&self.path, source))?;
        Ok(())
    }

    /// Goes back to the first row.
    fn rewind(&mut self) -> Result<(), ReplayError> {
        self.rows = 0;
        self.reader
            .seek(std::io::SeekFrom::Start(self.body))
            .map_err(|source| ReplayError::io(&self.path, source))?;
        Ok(())
    }

    /// The columns of the next block, all of one length above 0; `None` at the end.
    fn next(&mut self) -> Result<Option<Vec<StringChunked>>, ReplayError> {
        self.block.clear();
        let first = self.rows;
        while self.block.len() < BLOCK_BYTES {
            let start = self.block.len();
            if !self.append_record()? {
                break;
            }
            if self.block.len() == start {
                continue;
            }
            let (found, expected) = (fields(&self.block[start..]), self.schema.len());
            if found != expected {
                return Err(ReplayError::Ragged {
                    path: self.path.clone(),
                    row: self.rows,
                    found,
                    expected,
                });
            }
            self.rows += 1;
        }
        let records = self.rows - first;
        if records == 0 {
            return Ok(None);
        }
        let block = std::mem::take(&mut self.block);
        let columns = parse(&self.path, block, self.schema.clone(), self.nulls.clone())?;
        if columns.iter().any(|column| column.len() as u64 != records) {
            // No row may go missing unnoticed, should polars ever split records otherwise.
            let found = columns.first().map_or(0, StringChunked::len);
            let message = format!("{records} records from row {first} on became {found} rows");
            let source = PolarsError::ComputeError(message.into());
            return Err(ReplayError::polars(&self.path, source));
        }
        Ok(Some(columns))
    }

    /// Appends the next record to the block, with its line break as `\n`; nothing for a blank
    /// line. False at the end of the file.
    fn append_record(&mut self) -> Result<bool, ReplayError> {
        let start = self.block.len();
        let mut quotes = 0;
        loop {
            let line = self.block.len();
            let limit = (MAX_RECORD_BYTES + 1).saturating_sub(line - start) as u64;
            let read = std::io::Read::take(&mut self.reader, limit)
                .read_until(b'\n', &mut self.block)
                .map_err(|source| ReplayError::io(&self.path, source))?;
            if self.block.len() - start > MAX_RECORD_BYTES {
                return Err(ReplayError::RecordTooLong { path: self.path.clone(), row: self.rows });
            }
            quotes += self.block[line..].iter().filter(|&&byte| byte == b'"').count();
            let ended = self.block.ends_with(b"\n");
            match (quotes % 2 == 0, read) {
                // A line break within quotes belongs to the field.
                (false, 1..) if ended => {}
                (false, _) => {
                    return Err(ReplayError::UnclosedQuote {
                        path: self.path.clone(),
                        row: self.rows,
                    });
                }
                (true, 0) => return Ok(false),
                (true, _) => break,
            }
        }
        while self.block.len() > start && matches!(self.block.last(), Some(b'\n' | b'\r')) {
            self.block.pop();
        }
        if self.block.len() > start {
            self.block.push(b'\n');
        }
        Ok(true)
    }
}

/// How many fields `record` has: the commas outside of quotes, and one.
fn fields(record: &[u8]) -> usize {
    let mut quoted = false;
    let mut fields = 1;
    for &byte in record {
        quoted ^= byte == b'"';
        fields += usize::from(byte == b',' && !quoted);
    }
    fields
}

fn string_schema(names: impl Iterator<Item = String>) -> SchemaRef {
    Arc::new(names.map(|name| Field::new(name.into(), DataType::String)).collect())
}

/// The columns of `block`, whose records have as many fields as `schema` columns.
fn parse(
    path: &Path,
    block: Vec<u8>,
    schema: SchemaRef,
    nulls: Option<NullValues>,
) -> Result<Vec<StringChunked>, ReplayError> {
    let frame = || -> polars::error::PolarsResult<Vec<StringChunked>> {
        let mut frame: DataFrame = CsvReadOptions::default()
            .with_has_header(false)
            .with_infer_schema_length(Some(0))
            .with_schema(Some(schema))
            .map_parse_options(|options| options.with_null_values(nulls.clone()))
            .into_reader_with_file_handle(Cursor::new(block))
            .finish()?;
        frame.rechunk_mut();
        frame.columns().iter().map(|column| column.str().cloned()).collect()
    };
    frame().map_err(|source| ReplayError::polars(path, source))
}
