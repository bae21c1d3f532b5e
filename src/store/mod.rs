//! DuckDB: the tables, the one transaction that makes exactly-once, the audit, the reads.
//!
//! | module | what |
//! |---|---|
//! | [`schema`] | the tables |
//! | [`lock`] | one process a file |
//! | [`database`] | opening the file |
//! | [`writer`] | opens and writes: rows, dead letters, ledger and watermark in one transaction |
//! | [`audit`] | ledger against tables, duplicates, online against newest |
//! | [`replays`] | what a replay of dead letters contains |
//! | [`reader`] | one SELECT to an Arrow stream |

pub mod audit;
pub mod columns;
pub mod database;
pub mod lock;
pub mod reader;
pub mod replays;
pub mod schema;
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
    /// A statement failed: the transaction was rolled back, nothing of it happened.
    #[error("DuckDB refused a statement: {0}")]
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
    /// Columns that should fit do not.
    #[error("columns: {0}")]
    Columns(#[from] arrow::error::ArrowError),
}
