//! Reads of DuckDB, through the queue.

use super::as_of::AsOfRequest;
use actix::Message;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What one query may cost. Beyond the limits of [`QueryBounds::within_limits`] nothing is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueryBounds {
    /// How long it may run, in milliseconds.
    pub deadline_ms: u64,
    /// Rows of its answer.
    pub max_rows: usize,
    /// Bytes of its answer as an Arrow IPC stream.
    pub max_bytes: usize,
}

impl QueryBounds {
    /// As much as is ever granted: two minutes, ten million rows, 64 MiB.
    pub const LIMITS: Self =
        Self { deadline_ms: 120_000, max_rows: 10_000_000, max_bytes: 64 << 20 };

    /// These bounds, or the limits where they are narrower.
    #[must_use]
    pub fn within_limits(self) -> Self {
        Self {
            deadline_ms: self.deadline_ms.min(Self::LIMITS.deadline_ms),
            max_rows: self.max_rows.min(Self::LIMITS.max_rows),
            max_bytes: self.max_bytes.min(Self::LIMITS.max_bytes),
        }
    }

    /// How long it may run.
    #[must_use]
    pub fn deadline(self) -> Duration {
        Duration::from_millis(self.deadline_ms)
    }

    /// What is said of an answer that is larger.
    #[must_use]
    pub fn exceeded(self) -> String {
        let Self { max_rows, max_bytes, .. } = self;
        format!(
            "the answer is larger than {max_rows} rows or {max_bytes} bytes: narrow the query, or export a range of \
             time"
        )
    }
}

/// 20 s, a million rows, 64 MiB.
impl Default for QueryBounds {
    fn default() -> Self {
        Self { deadline_ms: 20_000, max_rows: 1_000_000, ..Self::LIMITS }
    }
}

/// A read of DuckDB, through the queue.
#[derive(Debug, Clone, Serialize, Deserialize, Message)]
#[rtype(result = "()")]
pub enum ReadRequest {
    /// One SELECT.
    Query {
        /// Its text.
        sql: String,
        /// How long it may take, and how large its answer may be.
        bounds: QueryBounds,
        /// Whether the program itself asks, to go on with its work.
        #[serde(default)]
        own: bool,
    },
    /// The audit of ledger, tables and online store.
    Verify {
        /// All batches, not only those since the last clean audit.
        full: bool,
    },
    /// Comparison of online and offline on a sample.
    Skew {
        /// Keys to compare.
        keys: usize,
    },
    /// Questions about the past; they travel as rows beside the request.
    AsOf(AsOfRequest),
}

/// How the online values of a sample of critical keys stand to the newest ones in DuckDB.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skew {
    /// Keys that were compared: entities with a feature.
    pub keys: usize,
    /// The same version and value.
    pub equal: usize,
    /// Online is newer: critical features go there first.
    pub ahead: usize,
    /// Online is older.
    pub behind: usize,
    /// Not online.
    pub missing: usize,
    /// The same version with another value.
    pub different: usize,
    /// Redis holds something else.
    pub unreadable: usize,
    /// Some of those that do not agree.
    pub examples: Vec<String>,
}

impl Skew {
    /// Whether online and offline agree.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.equal + self.ahead == self.keys
    }
}

/// What a read gives.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ReadReply {
    /// An Arrow IPC stream follows.
    Arrow,
    /// A JSON text follows.
    Json,
    /// An Arrow IPC stream follows, and another answer after it.
    Piece,
    /// Why it was refused or failed; the kind decides the HTTP status.
    Failed {
        /// The client's fault rather than the store's.
        refused: bool,
        /// One sentence.
        reason: String,
    },
}
