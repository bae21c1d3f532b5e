//! Files of events: checked as a whole first, then read row by row as records.
//!
//! Takes a file that is durable, gives [`Records`] whose positions are the numbers of its rows, from
//! 0. What holds:
//!
//! - *All or nothing.* [`check`] reads the whole file once. What is broken, cut off, forged, or larger
//!   than it may be is refused with a reason of [`reasons`], before any row of it lands. Of a file that
//!   passed, [`FileReader`] gives exactly as many rows as were counted, from whatever row on.
//! - *A bad row is a bad row.* It becomes a dead letter in the decoder, with the same reason in every
//!   format: JSON, NDJSON, CSV and Parquet of the same rows give the same columns.
//! - *Bounded.* No more than one row (16 MiB) or one slice of a row group is held at a time, and no more
//!   is decompressed than the limits say. [`check_in_child`] does it in a process of its own, whose
//!   memory has a limit.
//!
//! | format | is | rows |
//! |---|---|---|
//! | `json` | one array | its elements |
//! | `ndjson` | lines | the lines that are not blank |
//! | `csv` | a header, UTF-8 | the records; an empty cell is null, quoted or not |
//! | `parquet` | columns | those of the footer; only declared columns and `event_id` are read |
//!
//! A cut of CSV in its last cell, or of lines between two of them, leaves a whole file: no reader can
//! see that. The hash that comes with an upload does.

mod child;
mod columns;
mod csv;
mod error;
pub mod hostile;
mod json;
mod ndjson;
mod pages;
mod parquet;
mod plain;
mod sniff;
mod window;

pub use child::{check_in_child, child_main};
pub use error::{FileError, reasons};

use crate::{
    config::{Config, StreamConfig},
    messages::{Payload, Record, Records},
};
use serde::{Deserialize, Serialize};
use std::{fmt, path::Path, str::FromStr, sync::Arc};

/// Longest row, in bytes; a longer one refuses the file. Rows above
/// [`MAX_RECORD_BYTES`](crate::decode::MAX_RECORD_BYTES) are dead letters.
pub const MAX_ROW_BYTES: usize = 16 << 20;

/// Bytes of rows that are handed on at once, about.
const CHUNK_BYTES: usize = 8 << 20;

/// How a file has its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileFormat {
    /// One JSON array of objects.
    Json,
    /// One JSON object a line.
    Ndjson,
    /// CSV with a header.
    Csv,
    /// Parquet.
    Parquet,
}

impl FileFormat {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Json, Self::Ndjson, Self::Csv, Self::Parquet];

    /// Its name in requests, tables and labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Ndjson => "ndjson",
            Self::Csv => "csv",
            Self::Parquet => "parquet",
        }
    }
}

impl FromStr for FileFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|format| format.as_str() == text).ok_or_else(|| {
            format!("no format is called {text:?}: it can be json, ndjson, csv or parquet")
        })
    }
}

/// How a whole file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all; what a Parquet file does within is its own affair.
    None,
    /// gzip, of any number of members.
    Gzip,
    /// zstd, of any number of frames.
    Zstd,
}

impl Compression {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::None, Self::Gzip, Self::Zstd];

    /// Its name in requests, tables and labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

impl FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|compression| compression.as_str() == text);
        let none = text.is_empty().then_some(Self::None);
        named.or(none).ok_or_else(|| {
            format!("no compression is called {text:?}: it can be none, gzip or zstd")
        })
    }
}

/// What a file is said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileKind {
    /// How it has its rows.
    pub format: FileFormat,
    /// How it is compressed.
    pub compression: Compression,
}

impl FileKind {
    /// What the name of a file says: `.json`, `.ndjson` or `.jsonl`, `.csv`, `.parquet`, and `.gz` or
    /// `.zst` behind it.
    #[must_use]
    pub fn of_path(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let (name, compression) = match name.rsplit_once('.')? {
            (name, "gz") => (name, Compression::Gzip),
            (name, "zst") => (name, Compression::Zstd),
            _ => (name.as_str(), Compression::None),
        };
        let format = match name.rsplit_once('.')?.1 {
            "json" => FileFormat::Json,
            "ndjson" | "jsonl" => FileFormat::Ndjson,
            "csv" => FileFormat::Csv,
            "parquet" => FileFormat::Parquet,
            _ => return None,
        };
        Some(Self { format, compression })
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.format.as_str())?;
        match self.compression {
            Compression::None => Ok(()),
            compression => write!(f, ", {}", compression.as_str()),
        }
    }
}

/// What a file may cost; see [`UploadsConfig`](crate::config::UploadsConfig).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileLimits {
    /// Bytes once it is decompressed.
    pub max_decompressed_bytes: u64,
    /// How many times larger it may become by decompression, beyond 16 MiB.
    pub max_ratio: u64,
    /// Rows.
    pub max_rows: u64,
    /// Columns.
    pub max_columns: usize,
    /// Memory that its check may take.
    pub check_memory_bytes: u64,
}

impl FileLimits {
    /// Those of a configuration.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let uploads = &config.uploads;
        Self {
            max_decompressed_bytes: uploads.max_decompressed_bytes,
            max_ratio: uploads.max_ratio,
            max_rows: uploads.max_rows,
            max_columns: uploads.max_columns,
            check_memory_bytes: uploads.check_memory_mib << 20,
        }
    }
}

/// What a sound file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// Rows, good and bad.
    pub rows: u64,
    /// Bytes once decompressed; of Parquet those of the pages that are read.
    pub bytes: u64,
}

/// Reads the whole file once. Blocks; holds no more than a row or a slice at a time.
///
/// # Errors
/// Why the file is refused as a whole.
pub fn check(
    path: &Path,
    kind: FileKind,
    stream: &StreamConfig,
    limits: &FileLimits,
) -> Result<Checked, FileError> {
    match kind.format {
        FileFormat::Json => json::check(plain::open(path, kind, limits)?, limits),
        FileFormat::Ndjson => ndjson::check(plain::open(path, kind, limits)?, limits),
        FileFormat::Csv => csv::check(plain::open(path, kind, limits)?, stream, limits),
        FileFormat::Parquet => parquet::check(path, kind, stream, limits),
    }
}

enum Rows {
    Json(json::Elements),
    Ndjson(ndjson::Lines),
    Csv(Box<csv::CsvRows>),
    Parquet(Box<parquet::ParquetRows>),
}

/// The rows of a file that passed [`check`]. Blocks.
pub struct FileReader {
    rows: Rows,
    /// The row that comes next.
    next_row: u64,
    recorded_at_us: i64,
}

impl fmt::Debug for FileReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileReader").field("next_row", &self.next_row).finish_non_exhaustive()
    }
}

impl FileReader {
    /// Opens a file at its first row; `recorded_at_us` is the timestamp of its rows as records.
    ///
    /// A compressed Parquet file is decompressed first, to a file beside it without a name, which goes when
    /// the reader goes.
    ///
    /// # Errors
    /// When the file is not there, or not what it was when it was checked.
    pub fn open(
        path: &Path,
        kind: FileKind,
        stream: &StreamConfig,
        limits: &FileLimits,
        recorded_at_us: i64,
    ) -> Result<Self, FileError> {
        let source = || plain::open(path, kind, limits);
        let rows = match kind.format {
            FileFormat::Json => Rows::Json(json::Elements::new(source()?)?),
            FileFormat::Ndjson => Rows::Ndjson(ndjson::Lines::new(source()?)?),
            FileFormat::Csv => Rows::Csv(Box::new(csv::CsvRows::new(source()?, stream, limits)?)),
            FileFormat::Parquet => {
                Rows::Parquet(Box::new(parquet::ParquetRows::open(path, kind, stream, limits)?))
            }
        };
        Ok(Self { rows, next_row: 0, recorded_at_us })
    }

    /// Passes the rows before `row`; those of a row group without reading them.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn skip_to(&mut self, row: u64) -> Result<(), FileError> {
        match &mut self.rows {
            Rows::Json(elements) => {
                while self.next_row < row && elements.next()?.is_some() {
                    self.next_row += 1;
                }
            }
            Rows::Ndjson(lines) => {
                while self.next_row < row && lines.next()?.is_some() {
                    self.next_row += 1;
                }
            }
            Rows::Csv(rows) => rows.skip_to(row)?,
            Rows::Parquet(rows) => rows.skip_to(row),
        }
        Ok(())
    }

    /// The next rows: at most `most`, and not much more than 8 MiB, but always one; `None` behind
    /// the last. A row's position is its number.
    ///
    /// # Errors
    /// When the file cannot be read; of a file that passed the check, the system's fault.
    pub fn next(&mut self, most: usize) -> Result<Option<Records>, FileError> {
        let (next_row, recorded_at_us) = (&mut self.next_row, self.recorded_at_us);
        let mut records = Records::default();
        let push = |records: &mut Records, row: u64, text: &[u8]| {
            records.push(Record {
                // A file has far fewer rows than 2^63.
                position: row as i64,
                timestamp_us: recorded_at_us,
                event_id: None,
                payload: Payload::Json(text),
            });
        };
        let wanted =
            |records: &Records| records.len() < most.max(1) && records.bytes() < CHUNK_BYTES;
        let cells = match &mut self.rows {
            Rows::Json(elements) => {
                while wanted(&records)
                    && let Some(element) = elements.next()?
                {
                    push(&mut records, *next_row, element);
                    *next_row += 1;
                }
                None
            }
            Rows::Ndjson(lines) => {
                while wanted(&records)
                    && let Some(line) = lines.next()?
                {
                    push(&mut records, *next_row, line.text);
                    *next_row += 1;
                }
                None
            }
            Rows::Csv(rows) => rows.next(most.max(1))?,
            Rows::Parquet(rows) => rows.next(most)?,
        };
        if let Some((first, cells)) = cells {
            *next_row = first + cells.rows() as u64;
            records = Records::of_cells(first as i64, recorded_at_us, Arc::new(cells));
        }
        Ok((!records.is_empty()).then_some(records))
    }
}

#[cfg(test)]
mod tests;
