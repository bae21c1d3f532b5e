//! Uploads: what the store is asked to write down, and what it answers.

use crate::protocol::source::SourceName;
use serde::{Deserialize, Serialize};

/// Asks the store to know an upload: a file that is durable in the spool of the node that asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterUpload {
    /// A UUID that the server made; the key of one that is known keeps the id that it has.
    pub upload_id: String,
    /// The client's name for it.
    pub idempotency_key: String,
    /// The stream whose script its rows go through.
    pub stream: String,
    /// The name of the node that has the file and processes it.
    pub owner: String,
    /// Lower-case hex of the SHA-256 of the bytes as sent.
    pub sha256: String,
    /// What the client calls the file.
    pub filename: String,
    /// `json`, `ndjson`, `csv` or `parquet`.
    pub format: String,
    /// `none`, `gzip` or `zstd`.
    pub compression: String,
    /// Bytes as sent.
    pub size: u64,
    /// Rows of the file: the positions of its source are `[0, rows)`.
    pub rows: i64,
    /// A known upload of the same bytes that has not landed belongs to `owner` from now on: the node
    /// that had its file is gone, or has lost it.
    pub adopt: bool,
}

/// What the store knows of a key after [`RegisterUpload`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadRegistered {
    /// The id that the upload has.
    pub upload_id: String,
    /// The source of its rows, see [`SourceName::upload`].
    pub source: SourceName,
    /// Another request had registered it before, under this key and with these bytes. The same
    /// request, known by its id, is answered as it was the first time.
    pub known: bool,
    /// Why the request is refused: the key stands for other bytes, another stream or format. The rest
    /// says what it stands for.
    pub conflict: Option<String>,
    /// The node that processes it.
    pub owner: String,
    /// Rows of the file.
    pub rows: i64,
    /// When it was registered, UTC microseconds: the timestamp of its rows as records.
    pub registered_at_us: i64,
    /// Whether every row is accounted for.
    pub landed: bool,
}
