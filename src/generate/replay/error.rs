//! Why a file cannot be replayed, and what to do about it.

use std::path::{Path, PathBuf};

use miette::Diagnostic;
use polars::error::PolarsError;

use super::MAX_RECORD_BYTES;

/// Why a file cannot be replayed. Rows given before the error stand.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum ReplayError {
    /// The extension names none of the formats.
    #[error("{}: the extension names no format that can be replayed", path.display())]
    #[diagnostic(help(
        "name the file .ndjson, .jsonl or .json (one document a line), .csv or .parquet"
    ))]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be opened or read.
    #[error("{}: {source}", path.display())]
    #[diagnostic(help("check that the file is there and that you may read it"))]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A `.json` file with one big document.
    #[error("{}: this is one JSON document, not one a line", path.display())]
    #[diagnostic(help("turn an array into lines with: jq -c '.[]' FILE > FILE.ndjson"))]
    NotLines {
        /// The file.
        path: PathBuf,
    },
    /// A line or record beyond [`MAX_RECORD_BYTES`].
    #[error("{}: row {row} is longer than {} MiB", path.display(), MAX_RECORD_BYTES >> 20)]
    #[diagnostic(help(
        "is it the right format? In CSV, an unclosed quote makes the rest of the file one record"
    ))]
    RecordTooLong {
        /// The file.
        path: PathBuf,
        /// The row.
        row: u64,
    },
    /// A CSV file that ends within quotes.
    #[error("{}: a quote that opens in row {row} is never closed", path.display())]
    #[diagnostic(help("quote a field as \"…\" and write a quote within it as \"\""))]
    UnclosedQuote {
        /// The file.
        path: PathBuf,
        /// The row.
        row: u64,
    },
    /// A CSV file without a header.
    #[error("{}: the file is empty", path.display())]
    #[diagnostic(help("a CSV file starts with a line of column names"))]
    NoHeader {
        /// The file.
        path: PathBuf,
    },
    /// Two columns of one name.
    #[error("{}: there are two columns of the name {column:?}", path.display())]
    #[diagnostic(help("a JSON object holds each name once: rename one of them"))]
    DuplicateColumn {
        /// The file.
        path: PathBuf,
        /// The name.
        column: String,
    },
    /// A CSV record has more fields than the header.
    #[error("{}: row {row} has {found} fields, the header {expected}", path.display())]
    #[diagnostic(help("quote the fields that contain commas"))]
    Ragged {
        /// The file.
        path: PathBuf,
        /// The row.
        row: u64,
        /// The fields of the row.
        found: usize,
        /// The columns of the header.
        expected: usize,
    },
    /// The key column is not there.
    #[error("{}: there is no column {column:?} to take the key from", path.display())]
    #[diagnostic(help("{hint}"))]
    NoSuchColumn {
        /// The file.
        path: PathBuf,
        /// The name that was asked for.
        column: String,
        /// The nearest name, or all of them.
        hint: String,
    },
    /// A Parquet column of a type without a plain JSON form.
    #[error("{}: the column {column:?} is of type {dtype}, which cannot be replayed", path.display())]
    #[diagnostic(help(
        "cast it, for instance: duckdb -c \"COPY (SELECT * REPLACE ({column}::VARCHAR AS {column}) FROM 'FILE') TO 'NEW.parquet'\""
    ))]
    UnsupportedColumn {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// Its type, as Arrow names it.
        dtype: String,
    },
    /// A Parquet file whose parts contradict each other.
    #[error("{}: the file is damaged", path.display())]
    #[diagnostic(help("it may be cut off or overwritten: copy or write it anew"))]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// polars cannot make sense of the file.
    #[error("{}: {source}", path.display())]
    #[diagnostic(help(
        "is the file whole, of the format that its name says, and (CSV) in UTF-8? iconv converts it"
    ))]
    Polars {
        /// The file.
        path: PathBuf,
        /// What polars says.
        source: PolarsError,
    },
}

impl ReplayError {
    pub(super) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(super) fn polars(path: &Path, source: PolarsError) -> Self {
        Self::Polars { path: path.to_owned(), source }
    }

    pub(super) fn no_such_column(path: &Path, column: &str, known: &[String]) -> Self {
        let nearest = known
            .iter()
            .map(|name| (strsim::jaro_winkler(&name.to_lowercase(), &column.to_lowercase()), name))
            .filter(|(likeness, _)| *likeness > 0.85)
            .max_by(|a, b| a.0.total_cmp(&b.0));
        let hint = match nearest {
            Some((_, name)) => format!("did you mean {name:?}?"),
            None => format!("its columns are: {}", known.join(", ")),
        };
        Self::NoSuchColumn { path: path.to_owned(), column: column.to_owned(), hint }
    }
}
