//! Why a file is refused, and what to do about it.

use serde::{Deserialize, Serialize};
use std::{fmt, io};

/// Why files are refused: the closed list.
pub mod reasons {
    /// No bytes, or none but white space, where the format needs some.
    pub const EMPTY_FILE: &str = "empty_file";
    /// The file ends in the middle.
    pub const CUT_OFF: &str = "cut_off";
    /// Something stands behind the end.
    pub const TRAILING_DATA: &str = "trailing_data";
    /// An array of JSON whose syntax is broken.
    pub const INVALID_JSON: &str = "invalid_json";
    /// JSON within JSON, deeper than anyone needs.
    pub const TOO_DEEP: &str = "too_deep";
    /// JSON, but not an array.
    pub const NOT_AN_ARRAY: &str = "not_an_array";
    /// Lines that are no JSON objects.
    pub const NOT_NDJSON: &str = "not_ndjson";
    /// The bytes are of another format than was said.
    pub const WRONG_FORMAT: &str = "wrong_format";
    /// The bytes are compressed otherwise than was said.
    pub const WRONG_COMPRESSION: &str = "wrong_compression";
    /// Compressed bytes that cannot be decompressed, or garbage behind them.
    pub const DAMAGED_COMPRESSION: &str = "damaged_compression";
    /// zstd that wants more memory than 128 MiB to be decompressed.
    pub const WINDOW_TOO_LARGE: &str = "window_too_large";
    /// Larger than a file may be once it is decompressed.
    pub const TOO_LARGE: &str = "too_large";
    /// Decompression makes it larger by more than it may.
    pub const RATIO_TOO_HIGH: &str = "ratio_too_high";
    /// More rows than a file may have.
    pub const TOO_MANY_ROWS: &str = "too_many_rows";
    /// More columns than a file may have.
    pub const TOO_MANY_COLUMNS: &str = "too_many_columns";
    /// One row that is longer than 16 MiB.
    pub const ROW_TOO_LARGE: &str = "row_too_large";
    /// Names of columns that are not UTF-8.
    pub const INVALID_UTF8: &str = "invalid_utf8";
    /// Two columns of one name.
    pub const DUPLICATE_COLUMN: &str = "duplicate_column";
    /// The entity or the event timestamp has no column.
    pub const MISSING_COLUMN: &str = "missing_column";
    /// A column whose values can never be what is declared.
    pub const COLUMN_TYPE: &str = "column_type";
    /// A row with more or fewer fields than the header.
    pub const RAGGED_ROW: &str = "ragged_row";
    /// A quote that is never closed.
    pub const UNCLOSED_QUOTE: &str = "unclosed_quote";
    /// Parquet whose parts contradict each other.
    pub const DAMAGED_PARQUET: &str = "damaged_parquet";
    /// Parquet that counts its rows differently in different places.
    pub const ROW_COUNT: &str = "row_count";
    /// Checking it takes more memory than it may.
    pub const OUT_OF_MEMORY: &str = "out_of_memory";
    /// Checking it takes longer than it may.
    pub const TIMEOUT: &str = "timeout";
    /// The process that checked it died.
    pub const CHECK_CRASHED: &str = "check_crashed";
    /// It cannot be read: the system's fault, not the file's.
    pub const UNREADABLE: &str = "unreadable";

    /// All of them.
    pub const ALL: [&str; 28] = [
        EMPTY_FILE,
        CUT_OFF,
        TRAILING_DATA,
        INVALID_JSON,
        TOO_DEEP,
        NOT_AN_ARRAY,
        NOT_NDJSON,
        WRONG_FORMAT,
        WRONG_COMPRESSION,
        DAMAGED_COMPRESSION,
        WINDOW_TOO_LARGE,
        TOO_LARGE,
        RATIO_TOO_HIGH,
        TOO_MANY_ROWS,
        TOO_MANY_COLUMNS,
        ROW_TOO_LARGE,
        INVALID_UTF8,
        DUPLICATE_COLUMN,
        MISSING_COLUMN,
        COLUMN_TYPE,
        RAGGED_ROW,
        UNCLOSED_QUOTE,
        DAMAGED_PARQUET,
        ROW_COUNT,
        OUT_OF_MEMORY,
        TIMEOUT,
        CHECK_CRASHED,
        UNREADABLE,
    ];
}

/// Why a file is refused as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct FileError {
    /// One of [`reasons`], fit for a label.
    pub reason: String,
    /// What is wrong, as a sentence.
    pub detail: String,
    /// Where, in bytes from the beginning of the decompressed file.
    pub byte: Option<u64>,
    /// In which row, from 0, as the positions of the file's source count.
    pub row: Option<u64>,
    /// What to do about it.
    pub hint: String,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)?;
        match (self.row, self.byte) {
            (Some(row), Some(byte)) => write!(f, " (row {row}, byte {byte}, both from 0)")?,
            (Some(row), None) => write!(f, " (row {row}, from 0)")?,
            (None, Some(byte)) => write!(f, " (byte {byte}, from 0)")?,
            (None, None) => {}
        }
        if self.hint.is_empty() { Ok(()) } else { write!(f, "; {}", self.hint) }
    }
}

impl FileError {
    pub(super) fn new(
        reason: &'static str,
        detail: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            reason: reason.into(),
            detail: detail.into(),
            byte: None,
            row: None,
            hint: hint.into(),
        }
    }

    pub(super) fn at(self, row: u64, byte: u64) -> Self {
        Self { row: Some(row), byte: Some(byte), ..self }
    }

    pub(super) fn at_row(self, row: u64) -> Self {
        Self { row: Some(row), ..self }
    }

    pub(super) fn at_byte(self, byte: u64) -> Self {
        Self { byte: Some(byte), ..self }
    }

    pub(super) fn cut_off(detail: impl Into<String>) -> Self {
        Self::new(reasons::CUT_OFF, detail, "write the file anew and send it whole")
    }

    pub(super) fn too_many_rows(most: u64) -> Self {
        let detail = format!("the file has more than {most} rows");
        Self::new(reasons::TOO_MANY_ROWS, detail, "split it, or raise `uploads.max_rows`")
    }

    pub(super) fn too_many_columns(columns: usize, most: usize) -> Self {
        let detail = format!("the file has {columns} columns, at most {most} are read");
        let hint = "leave out what the stream does not declare, or raise `uploads.max_columns`";
        Self::new(reasons::TOO_MANY_COLUMNS, detail, hint)
    }

    pub(super) fn row_too_large(row: u64) -> Self {
        let detail = format!("one row is longer than {} MiB", super::MAX_ROW_BYTES >> 20);
        let hint =
            "is it the right format? in CSV an unclosed quote makes the rest of the file one row";
        Self::new(reasons::ROW_TOO_LARGE, detail, hint).at_row(row)
    }

    pub(super) fn duplicate_column(name: &str) -> Self {
        let detail = format!("two columns are named {name:?}");
        Self::new(reasons::DUPLICATE_COLUMN, detail, "rename one of them")
    }

    pub(super) fn missing_column(what: &str, name: &str, known: &[String]) -> Self {
        let detail = format!("the file has no column {name:?}, the {what} of the stream");
        let shown: Vec<&str> = known.iter().take(20).map(String::as_str).collect();
        let more = if known.len() > shown.len() { ", …" } else { "" };
        let hint = format!("its columns are: {}{more}", shown.join(", "));
        Self::new(reasons::MISSING_COLUMN, detail, hint)
    }

    /// What a reader of the file says; a refusal that travelled through it comes out again.
    pub(super) fn from_io(error: &io::Error) -> Self {
        if let Some(refusal) = error.get_ref().and_then(|e| e.downcast_ref::<Self>()) {
            return refusal.clone();
        }
        let hint = "this is not the file's fault: look at the disk of the node, then send it again";
        Self::new(reasons::UNREADABLE, format!("the file cannot be read: {error}"), hint)
    }
}

impl From<FileError> for io::Error {
    fn from(error: FileError) -> Self {
        Self::other(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_words_and_refusals_travel_through_readers() {
        let mut known = reasons::ALL.to_vec();
        known.sort_unstable();
        known.dedup();
        assert_eq!(known.len(), reasons::ALL.len());
        let word = |r: &&str| r.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b == b'8');
        assert!(known.iter().all(word));
        let error = FileError::row_too_large(7).at_byte(9);
        assert_eq!(FileError::from_io(&error.clone().into()), error);
        assert!(error.to_string().contains("(row 7, byte 9, both from 0); is it"), "{error}");
        let text = serde_json::to_string(&error).unwrap();
        assert_eq!(serde_json::from_str::<FileError>(&text).unwrap(), error);
    }
}
