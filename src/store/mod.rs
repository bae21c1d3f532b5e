//! DuckDB: the tables, the one transaction that makes exactly-once, the audit, the reads.
//!
//! | module | what |
//! |---|---|
//! | [`schema`] | the tables |
//! | [`lock`] | one process a file |
//! | [`database`] | opening the file |
//! | [`sources`] | opening, adopting and halting a source |
//! | [`group`] | what one transaction writes |
//! | [`chunks`] | rows that came as a file in the spool |
//! | [`isolate`] | the rows of a write that DuckDB refuses become dead letters |
//! | [`readers`] | connections for readers, which the writer can take back |
//! | [`attempts`] | which entry was being applied when the store died |
//! | [`writer`] | opens and writes: rows, dead letters, ledger and watermark in one transaction |
//! | [`audit`] | ledger against tables, duplicates, online against newest |
//! | [`newest`] | the newest values, as the online store must have them |
//! | [`replays`] | what a replay of dead letters contains |
//! | [`uploads`] | which uploads are known, by their keys |
//! | [`scripts`] | what happened to each stream's script, and the texts of all versions |
//! | [`reader`] | one SELECT to an Arrow stream |

pub mod as_of;
pub mod attempts;
pub mod audit;
pub mod chunks;
pub mod columns;
pub mod database;
pub mod group;
pub mod isolate;
pub mod lock;
pub mod newest;
pub mod reader;
pub mod readers;
pub mod replays;
pub mod schema;
pub mod scripts;
pub mod sources;
pub mod uploads;
pub mod writer;

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process owns the file.
    #[error(
        "another store owns {file} ({holder}): only one `store` may run on a database; \
         stop that one or choose another `--data-dir`"
    )]
    Locked {
        /// The database.
        file: String,
        /// What its holder wrote into the lock file.
        holder: String,
    },
    /// DuckDB refuses the data and would do so again: a constraint, a value that does not fit. The
    /// transaction was rolled back, nothing of it happened.
    #[error("DuckDB refuses the data: {0}")]
    Refused(#[source] duckdb::Error),
    /// A statement failed for another reason — no room, no memory, a device: the transaction was
    /// rolled back. The same may work later, after the file was opened again.
    #[error("a statement failed: {0}")]
    Statement(#[source] duckdb::Error),
    /// COMMIT failed: whether it happened is unknown until the file was opened again.
    #[error("the outcome of a COMMIT is unknown: {0}")]
    UnknownCommit(#[source] duckdb::Error),
    /// The file cannot be opened, or is not what it should be.
    #[error("cannot open the database {file}: {reason}")]
    Open {
        /// The database.
        file: String,
        /// DuckDB's or the system's word.
        reason: String,
    },
    /// A rule of the protocol is broken; going on would make it worse.
    #[error("the store's books do not balance: {0}")]
    Unbalanced(String),
    /// The file is being opened again.
    #[error(transparent)]
    Closed(readers::Closed),
    /// Columns that should fit do not.
    #[error("columns: {0}")]
    Columns(#[from] arrow::error::ArrowError),
}

impl StoreError {
    /// Tells data that DuckDB will never take from trouble of the store's own. DuckDB's C interface
    /// gives the kind of an error only in its message. What is not known to be the data's fault is
    /// taken for trouble: then the store tries again, and nothing is declared dead for a full disk.
    #[must_use]
    pub fn of_statement(error: duckdb::Error) -> Self {
        const DATA: [&str; 7] = [
            "constraint failed",
            "Constraint Error",
            "Conversion Error",
            "Could not convert",
            "Could not cast",
            "Invalid Input Error",
            "Out of Range Error",
        ];
        let text = error.to_string();
        // An error that spoils the whole database mentions what led to it.
        let is_data = DATA.iter().any(|kind| text.contains(kind)) && !text.contains("FATAL");
        if is_data { Self::Refused(error) } else { Self::Statement(error) }
    }

    /// Whether the file must be opened again before anything of it can be trusted.
    #[must_use]
    pub fn needs_reopening(&self) -> bool {
        matches!(self, Self::UnknownCommit(_) | Self::Statement(_))
    }
}
