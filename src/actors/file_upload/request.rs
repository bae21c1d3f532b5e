//! What a client says of its file before it sends it.

use super::refusal::Refusal;
use crate::{
    config::Config,
    files::FileKind,
    proto::{UploadHeader, UploadStatus},
};

/// Bytes of a key, at most.
const MOST_KEY: usize = 200;
/// Characters of a file's name that are kept.
const MOST_NAME: usize = 200;

/// A header that makes sense.
pub(super) struct Request {
    pub key: String,
    pub stream: usize,
    pub kind: FileKind,
    pub filename: String,
    pub size: u64,
    pub sha256: String,
}

impl Request {
    /// The header, if it makes sense.
    pub fn of(header: UploadHeader, config: &Config) -> Result<Self, Refusal> {
        let UploadHeader {
            idempotency_key: key,
            stream,
            format,
            filename,
            size,
            sha256,
            compression,
        } = header;
        if key.is_empty() || key.len() > MOST_KEY || key.chars().any(char::is_control) {
            let why = format!("the idempotency key is not 1 to {MOST_KEY} bytes of plain text");
            return Err(Refusal::invalid("bad_key", why, "the file's SHA-256 makes a good key"));
        }
        let streams = &config.streams;
        let Some(stream) = streams.iter().position(|s| s.name == stream) else {
            let names: Vec<&str> = streams.iter().map(|s| s.name.as_str()).collect();
            let why = format!("there is no stream {stream:?}");
            let hint = format!("name one of: {}", names.join(", "));
            return Err(Refusal::not_found("unknown_stream", why, &hint));
        };
        let format = format.parse().map_err(|_| {
            let why = format!("the format {format:?} is not known");
            Refusal::invalid("unknown_format", why, "say json, ndjson, csv or parquet")
        })?;
        let compression = compression.parse().map_err(|_| {
            let why = format!("the compression {compression:?} is not known");
            Refusal::invalid("unknown_compression", why, "say none, gzip or zstd")
        })?;
        let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        if sha256.len() != 64 || !sha256.chars().all(is_hex) {
            let why = "`sha256` is not 64 lower-case hexadecimal digits";
            return Err(Refusal::invalid("bad_sha256", why, "give the SHA-256 of the whole file"));
        }
        let most = config.uploads.max_file_bytes;
        if size > most {
            let why = format!("the file has {size} bytes, at most {most} are taken");
            let hint = "send it in several files, or raise `uploads.max_file_bytes`";
            return Err(Refusal::invalid("file_too_large", why, hint));
        }
        // A name is for people: it never becomes a path.
        let filename =
            filename.chars().filter(|c| !c.is_control()).take(MOST_NAME).collect::<String>();
        let kind = FileKind { format, compression };
        Ok(Self { key, stream, kind, filename, size, sha256 })
    }

    /// Whether it names the very upload that the store knows.
    pub fn is(&self, known: &UploadStatus, config: &Config) -> bool {
        self.sha256 == known.sha256
            && self.size == known.size
            && config.streams[self.stream].name == known.stream
            && self.kind.format.as_str() == known.format
            && self.kind.compression.as_str() == known.compression
    }
}
