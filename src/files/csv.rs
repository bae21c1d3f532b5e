//! CSV: the cells of the declared columns, as text.
//!
//! A cell is read under its declared type by the decoder: numbers as JSON has them, `true` and
//! `false`, timestamps as text. An empty cell is null, whether it is quoted or not: CSV libraries do
//! not tell the two apart. Columns that nobody declared are left alone.

use super::{CHUNK_BYTES, window::Source};
use super::{Checked, FileError, FileLimits, MAX_ROW_BYTES, reasons, sniff::looks_like};
use crate::{
    config::{SchemaField, StreamConfig},
    decode::{self, Bad, CellColumn, CellValues, Cells, ObjectText, Texts},
};
use csv::ByteRecord;
use std::{
    collections::{BTreeMap, HashSet},
    io::{ErrorKind, Read},
    sync::Arc,
};
use uuid::Uuid;

/// Bytes that the parser reads at once.
const READ_BYTES: usize = 128 << 10;
/// A row of one field that is put behind the file. The parser takes the end of a file for the end of
/// a quote; if this row does not come out, a quote was open.
const LAST: &[u8] = b"\n\x04end\x04\n";
const LAST_FIELD: &[u8] = b"\x04end\x04";

/// The rows of a file.
pub(super) struct CsvRows {
    reader: csv::Reader<Tail>,
    record: ByteRecord,
    names: Vec<String>,
    fields: Arc<[SchemaField]>,
    /// For each declared field its column in the file.
    columns: Vec<Option<usize>>,
    event_id: Option<usize>,
    /// The row that comes next.
    row: u64,
    /// All rows were read.
    ended: bool,
}

impl CsvRows {
    pub fn new(
        source: Source,
        stream: &StreamConfig,
        limits: &FileLimits,
    ) -> Result<Self, FileError> {
        let tail = Tail { source, given: 0, allowed: 0, last: LAST };
        let reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .buffer_capacity(READ_BYTES)
            .from_reader(tail);
        let mut rows = Self {
            reader,
            record: ByteRecord::new(),
            names: Vec::new(),
            fields: stream.schema.clone().into(),
            columns: Vec::new(),
            event_id: None,
            row: 0,
            ended: false,
        };
        rows.read_header(stream, limits)?;
        Ok(rows)
    }

    fn read_header(&mut self, stream: &StreamConfig, limits: &FileLimits) -> Result<(), FileError> {
        if !self.read_record()? {
            let hint = "a CSV file begins with a line of column names";
            return Err(FileError::new(reasons::EMPTY_FILE, "the file is empty", hint));
        }
        if self.record.len() > limits.max_columns {
            return Err(FileError::too_many_columns(self.record.len(), limits.max_columns));
        }
        let names = self.record.iter().map(|name| std::str::from_utf8(name).map(str::to_owned));
        let names: Vec<String> = names.collect::<Result<_, _>>().map_err(|error| {
            let detail = format!("the names of the columns are not UTF-8: {error}");
            FileError::new(reasons::INVALID_UTF8, detail, "write the file in UTF-8")
        })?;
        let place = |name: &str| names.iter().position(|n| n == name);
        for (what, name) in [("entity", &stream.entity), ("event_time", &stream.event_time)] {
            if place(name).is_none() {
                return Err(match looks_like(self.record.as_slice()) {
                    Some((what @ ("a JSON array" | "JSON objects" | "HTML or XML"), hint)) => {
                        let detail = format!("the file is said to be csv, but looks like {what}");
                        FileError::new(reasons::WRONG_FORMAT, detail, hint)
                    }
                    _ => FileError::missing_column(what, name, &names),
                });
            }
        }
        let mut seen = HashSet::with_capacity(names.len());
        if let Some(name) = names.iter().find(|name| !seen.insert(name.as_str())) {
            return Err(FileError::duplicate_column(name));
        }
        self.columns = self.fields.iter().map(|field| place(&field.name)).collect();
        let declared = self.fields.iter().any(|field| field.name == EVENT_ID);
        self.event_id = place(EVENT_ID).filter(|_| !declared);
        self.names = names;
        Ok(())
    }

    /// Reads the next row into `record`; false at the end of the file.
    fn read_row(&mut self) -> Result<bool, FileError> {
        if !self.read_record()? {
            return Ok(false);
        }
        if self.record.len() != self.names.len() {
            let (found, expected) = (self.record.len(), self.names.len());
            let detail = format!("a row has {found} fields, but the header {expected}");
            let hint = "quote the fields that contain commas, quotes or line breaks";
            return Err(self.here(FileError::new(reasons::RAGGED_ROW, detail, hint)));
        }
        self.row += 1;
        Ok(true)
    }

    fn read_record(&mut self) -> Result<bool, FileError> {
        if self.ended {
            return Ok(false);
        }
        // What the parser may swallow until it gives the next record.
        let begin = self.reader.position().byte();
        self.reader.get_mut().allowed = begin + (MAX_ROW_BYTES + 2 * READ_BYTES) as u64;
        let read = self.reader.read_byte_record(&mut self.record).map_err(|error| {
            match error.into_kind() {
                csv::ErrorKind::Io(error) if error.kind() == ErrorKind::FileTooLarge => {
                    FileError::row_too_large(self.row).at_byte(begin)
                }
                csv::ErrorKind::Io(error) => FileError::from_io(&error),
                // Rows may be of any length here, and nothing is deserialised.
                _ => FileError::row_too_large(self.row).at_byte(begin),
            }
        })?;
        if self.record.as_slice().len() > MAX_ROW_BYTES {
            return Err(FileError::row_too_large(self.row).at_byte(begin));
        }
        if !self.reader.get_ref().has_ended() {
            return Ok(true);
        }
        let last_field = self.record.iter().next_back().unwrap_or_default();
        if !read || last_field.ends_with(LAST) {
            return Err(self.unclosed(begin));
        }
        self.ended = self.is_behind_the_last();
        Ok(!self.ended)
    }

    /// Whether the record is the one that was put behind the file.
    fn is_behind_the_last(&self) -> bool {
        let at_end = self.reader.position().byte() + 1 >= self.reader.get_ref().given;
        at_end && self.record.len() == 1 && &self.record[0] == LAST_FIELD
    }

    fn unclosed(&self, begin: u64) -> FileError {
        let detail = "a quote is never closed: the file was cut off, or a quote is not doubled";
        let hint = "quote a field as \"…\" and write a quote within it as \"\"";
        FileError::new(reasons::UNCLOSED_QUOTE, detail, hint).at(self.row, begin)
    }

    fn here(&self, error: FileError) -> FileError {
        error.at(self.row, self.record.position().map_or(0, csv::Position::byte))
    }

    /// Passes rows before `row`.
    pub fn skip_to(&mut self, row: u64) -> Result<(), FileError> {
        while self.row < row && self.read_row()? {}
        Ok(())
    }

    /// Up to `most` rows, fewer when they are large; the first one's number.
    pub fn next(&mut self, most: usize) -> Result<Option<(u64, Cells)>, FileError> {
        let first = self.row;
        let mut texts: Vec<Option<Texts>> =
            self.columns.iter().map(|column| column.map(|_| Texts::default())).collect();
        let mut event_ids = Vec::new();
        let mut refused = BTreeMap::new();
        let (mut rows, mut bytes) = (0, 0);
        while rows < most && bytes < CHUNK_BYTES && self.read_row()? {
            let bad = self.not_utf8();
            for (texts, column) in texts.iter_mut().zip(&self.columns) {
                if let (Some(texts), Some(column)) = (texts, column) {
                    let cell = if bad.is_some() { &b""[..] } else { &self.record[*column] };
                    // It was looked at above.
                    texts.push(std::str::from_utf8(cell).unwrap_or_default());
                    bytes += cell.len() + 8;
                }
            }
            if let Some(column) = self.event_id {
                let id = Uuid::try_parse_ascii(&self.record[column]).unwrap_or(Uuid::nil());
                event_ids.push(id);
            }
            if let Some(bad) = bad {
                let raw = self.whole_row();
                bytes += raw.len();
                refused.insert(rows, (bad, raw));
            }
            rows += 1;
        }
        let column = |texts| CellColumn { values: CellValues::Untyped(texts), valid: None };
        let columns = texts.into_iter().map(|texts| texts.map(column)).collect();
        let cells = Cells::new(self.fields.clone(), rows, columns, event_ids, refused);
        Ok((rows > 0).then_some((first, cells)))
    }

    /// Why the row is dead when one of its cells is not UTF-8.
    fn not_utf8(&self) -> Option<Bad> {
        if self.record.as_slice().is_ascii() {
            return None;
        }
        self.record.iter().enumerate().find_map(|(i, cell)| {
            let error = std::str::from_utf8(cell).err()?;
            let detail = format!("`{}`: {error}", self.names[i]);
            Some(Bad::new(decode::reasons::INVALID_UTF8, detail))
        })
    }

    /// The row with all its columns and bytes as they are; as JSON it is not UTF-8 either.
    fn whole_row(&self) -> Vec<u8> {
        let mut object = ObjectText::default();
        for (name, cell) in self.names.iter().zip(&self.record) {
            object.text_field(name.as_bytes(), cell);
        }
        object.finish()
    }
}

/// The column that carries the producer's UUID, unless the stream declares it as a field.
pub(super) const EVENT_ID: &str = "event_id";

/// Reads all rows.
pub(super) fn check(
    source: Source,
    stream: &StreamConfig,
    limits: &FileLimits,
) -> Result<Checked, FileError> {
    let mut rows = CsvRows::new(source, stream, limits)?;
    while rows.read_row()? {
        if rows.row > limits.max_rows {
            return Err(FileError::too_many_rows(limits.max_rows));
        }
    }
    let bytes = rows.reader.get_ref().given - LAST.len() as u64;
    Ok(Checked { rows: rows.row, bytes })
}

/// A file with [`LAST`] behind it, and no more than a row may have.
struct Tail {
    source: Source,
    /// Bytes given so far.
    given: u64,
    /// Bytes that may be given.
    allowed: u64,
    /// What is still to be given behind the file.
    last: &'static [u8],
}

impl Tail {
    /// Whether all of it was given.
    fn has_ended(&self) -> bool {
        self.last.is_empty()
    }
}

impl Read for Tail {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.given > self.allowed {
            return Err(ErrorKind::FileTooLarge.into());
        }
        let mut n = self.source.read(buffer)?;
        if n == 0 {
            n = self.last.read(buffer)?;
        }
        self.given += n as u64;
        Ok(n)
    }
}
