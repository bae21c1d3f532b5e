//! Uploads: what the store is asked to write down, and what it answers.

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
    /// The id that the upload of this key has: not the request's when another request was first.
    pub upload_id: String,
    /// Why the request is refused: the key stands for other bytes, another stream or format.
    pub conflict: Option<String>,
    /// Whether every row is accounted for.
    pub landed: bool,
}
