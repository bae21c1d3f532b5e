//! A real file as events: NDJSON, CSV or Parquet, a batch at a time.
//!
//! Every row becomes one [`ReplayRecord`] with a JSON object as its payload. Rows are numbered
//! from 0 without gaps, so that each can be accounted for afterwards.
//!
//! | format | payload | held in memory |
//! |---|---|---|
//! | NDJSON | the line, byte for byte, without its line break; blank lines are skipped | one line |
//! | CSV | an object, one field a column; empty fields are null; types are found by reading the file once before | a block of 4 MiB, or one record if longer |
//! | Parquet | an object, one field a column | a slice of a row group: 32 MiB as the file states it, and four million values |
//!
//! In CSV and Parquet, instants are written as RFC 3339 in UTC with a `Z`, with the decimals of
//! their unit. **Times without a zone are taken as UTC.** Dates are `YYYY-MM-DD`. Floats that are
//! not finite are null. A malformed NDJSON line is passed on as it is: to refuse it, with a
//! reason, is the work of the stream that it is sent to.

mod csv;
mod error;
mod lines;
mod parquet;

use std::fs::File;
use std::path::Path;

pub use error::ReplayError;

/// The longest line or CSV record that is taken; far above what a Kafka broker accepts.
pub const MAX_RECORD_BYTES: usize = 64 << 20;

/// How a file is read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplayOptions {
    /// The field that becomes the record's key, as text; `None` for records without a key. A
    /// row in which it is null, absent, an array or an object has no key.
    pub key_field: Option<String>,
    /// CSV fields with exactly one of these texts are null, besides empty ones: `NA` in files
    /// written by R.
    pub null_values: Vec<String>,
}

/// One row of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayRecord {
    /// The number of the row in the file, from 0; blank lines and headers do not count.
    pub row: u64,
    /// The text of the key field.
    pub key: Option<Vec<u8>>,
    /// The row as JSON.
    pub payload: Vec<u8>,
}

/// The formats of files, told by their extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON document a line: `.ndjson`, `.jsonl`, `.json`.
    Ndjson,
    /// Comma-separated values in UTF-8 with a header, quoted as in RFC 4180: `.csv`.
    Csv,
    /// Apache Parquet: `.parquet`.
    Parquet,
}

impl Format {
    /// The format that the extension of `path` stands for, in any case of letters.
    pub fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "ndjson" | "jsonl" | "json" => Some(Self::Ndjson),
            "csv" => Some(Self::Csv),
            "parquet" => Some(Self::Parquet),
            _ => None,
        }
    }
}

/// A file being replayed, from its first row to its last.
pub struct Replay {
    source: Source,
    format: Format,
    next_row: u64,
    finished: bool,
}

enum Source {
    Lines(lines::Lines),
    Csv(Box<csv::Csv>),
    Parquet(Box<parquet::Parquet>),
}

/// Key and payload of one row.
type Row = (Option<Vec<u8>>, Vec<u8>);

impl Replay {
    /// Opens `path`. A CSV file is read through once, for the types of its columns.
    ///
    /// # Errors
    ///
    /// When the format is unknown, the file cannot be read, is not of its format, holds a column
    /// that cannot be said in JSON, or lacks the key column. Each says what to do.
    pub fn open(path: impl AsRef<Path>, options: &ReplayOptions) -> Result<Self, ReplayError> {
        let path = path.as_ref();
        let format =
            Format::of(path).ok_or_else(|| ReplayError::UnknownFormat { path: path.to_owned() })?;
        let file = File::open(path).map_err(|source| ReplayError::io(path, source))?;
        let source = match format {
            Format::Ndjson => Source::Lines(lines::Lines::open(path, file, options)?),
            Format::Csv => Source::Csv(Box::new(csv::Csv::open(path, file, options)?)),
            Format::Parquet => {
                Source::Parquet(Box::new(parquet::Parquet::open(path, file, options)?))
            }
        };
        Ok(Self { source, format, next_row: 0, finished: false })
    }

    /// The format of the file.
    pub fn format(&self) -> Format {
        self.format
    }

    /// How many rows the file has; `None` for NDJSON, where only reading it would tell.
    pub fn total_rows(&self) -> Option<u64> {
        match &self.source {
            Source::Lines(_) => None,
            Source::Csv(csv) => Some(csv.total_rows()),
            Source::Parquet(parquet) => Some(parquet.total_rows()),
        }
    }

    /// The next rows, at least one and at most `max_rows` (taken as 1 when 0); often fewer at
    /// the end of a block. `None` after the last row, and after an error.
    pub fn next_batch(
        &mut self,
        max_rows: usize,
    ) -> Option<Result<Vec<ReplayRecord>, ReplayError>> {
        if self.finished {
            return None;
        }
        let max_rows = max_rows.max(1);
        let mut records = Vec::new();
        let mut next_row = self.next_row;
        let mut take = |(key, payload): Row| {
            records.push(ReplayRecord { row: next_row, key, payload });
            next_row += 1;
        };
        let read = match &mut self.source {
            Source::Lines(lines) => lines.read(max_rows, &mut take),
            Source::Csv(csv) => csv.read(max_rows, &mut take),
            Source::Parquet(parquet) => parquet.read(max_rows, &mut take),
        };
        self.next_row = next_row;
        match read {
            Ok(()) if records.is_empty() => {
                self.finished = true;
                None
            }
            Ok(()) => Some(Ok(records)),
            Err(error) => {
                self.finished = true;
                Some(Err(error))
            }
        }
    }
}

/// The key that a JSON value makes: the text of a string, a number or a boolean as written.
fn key_of_json(value: &[u8]) -> Option<Vec<u8>> {
    match value.first()? {
        b'"' => serde_json::from_slice::<String>(value).ok().map(String::into_bytes),
        b'n' | b'[' | b'{' => None,
        _ => Some(value.to_vec()),
    }
}

/// Checks that the key column is one of `columns`, and gives its index.
fn key_index(
    path: &Path,
    options: &ReplayOptions,
    columns: &[String],
) -> Result<Option<usize>, ReplayError> {
    let Some(field) = &options.key_field else {
        return Ok(None);
    };
    match columns.iter().position(|column| column == field) {
        Some(index) => Ok(Some(index)),
        None => Err(ReplayError::no_such_column(path, field, columns)),
    }
}

/// `,"name":` for each of `columns`, with `{` for the first comma: what stands before a value.
fn json_prefixes(columns: &[String]) -> Vec<Vec<u8>> {
    let prefix = |(index, name): (usize, &String)| {
        let mut prefix = vec![if index == 0 { b'{' } else { b',' }];
        crate::text::push_string(&mut prefix, name);
        prefix.push(b':');
        prefix
    };
    columns.iter().enumerate().map(prefix).collect()
}

#[cfg(test)]
mod tests;
