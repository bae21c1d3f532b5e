//! A file on its way to a node: its header, and its bytes in chunks.

use super::UploadError;
use crate::proto::{UploadHeader, UploadRequest, upload_request::Part};
use futures::{SinkExt, channel::mpsc};
use sha2::{Digest, Sha256};
use std::{
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
};
use tokio::io::AsyncReadExt;

/// Bytes of one chunk.
pub(super) const CHUNK_BYTES: usize = 256 << 10;

/// A file that was hashed and can be sent, as often as it takes.
#[derive(Debug, Clone)]
pub struct UploadFile {
    header: UploadHeader,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    Path(PathBuf),
    Bytes(Vec<u8>),
}

impl UploadFile {
    /// A file on disk, whose events belong to `stream`. It is read once, for its hash, and again
    /// whenever it is sent; only its base name goes to the node.
    ///
    /// `format` is `json`, `ndjson`, `csv` or `parquet`; `compression` is `none`, `gzip` or `zstd`.
    ///
    /// # Errors
    /// [`UploadError::Read`].
    pub async fn open(
        path: &Path,
        stream: &str,
        format: &str,
        compression: &str,
    ) -> Result<Self, UploadError> {
        let hashed = path.to_owned();
        let hashing = tokio::task::spawn_blocking(move || hash(&hashed)).await;
        let (size, sha256) = hashing
            .unwrap_or_else(|panic| Err(std::io::Error::other(panic)))
            .map_err(|source| UploadError::Read { path: path.to_owned(), source })?;
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let header = UploadHeader {
            idempotency_key: format!("{sha256}:{stream}"),
            stream: stream.to_owned(),
            format: format.to_owned(),
            filename: name.unwrap_or_default(),
            size,
            sha256,
            compression: compression.to_owned(),
        };
        Ok(Self { header, content: Content::Path(path.to_owned()) })
    }

    /// A file that only this process has; not compressed.
    #[must_use]
    pub fn of_bytes(filename: &str, bytes: Vec<u8>, stream: &str, format: &str) -> Self {
        let sha256 = format!("{:x}", Sha256::digest(&bytes));
        let header = UploadHeader {
            idempotency_key: format!("{sha256}:{stream}"),
            stream: stream.to_owned(),
            format: format.to_owned(),
            filename: filename.to_owned(),
            size: bytes.len() as u64,
            sha256,
            compression: "none".to_owned(),
        };
        Self { header, content: Content::Bytes(bytes) }
    }

    /// The same file under a key of the caller's choice, instead of one that its bytes and stream
    /// make: `<sha256>:<stream>`.
    #[must_use]
    pub fn with_key(mut self, key: &str) -> Self {
        key.clone_into(&mut self.header.idempotency_key);
        self
    }

    /// What the node is told before the first byte.
    #[must_use]
    pub fn header(&self) -> &UploadHeader {
        &self.header
    }

    /// Hands on the header and every chunk. Ends early, and well, when nobody takes them any more:
    /// then the node has answered, or is gone.
    pub(super) async fn send(
        &self,
        mut to: mpsc::Sender<UploadRequest>,
        progress: &mut impl FnMut(u64),
    ) -> Result<(), UploadError> {
        let request = |part| UploadRequest { part: Some(part) };
        if to.send(request(Part::Header(self.header.clone()))).await.is_err() {
            return Ok(());
        }
        let mut chunks = Chunks::open(&self.content, self.header.size).await?;
        let mut sent = 0;
        while let Some(chunk) = chunks.next().await? {
            let bytes = chunk.len() as u64;
            if to.send(request(Part::Chunk(chunk))).await.is_err() {
                return Ok(());
            }
            sent += bytes;
            progress(sent);
        }
        Ok(())
    }
}

/// Size and hash of a file.
fn hash(path: &Path) -> std::io::Result<(u64, String)> {
    let mut file = std::fs::File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::new(ErrorKind::InvalidInput, "it is no file"));
    }
    let (mut hash, mut size) = (Sha256::new(), 0);
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((size, format!("{:x}", hash.finalize()))),
            Ok(n) => {
                hash.update(&buffer[..n]);
                size += n as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The bytes that were hashed, in order. What a file has grown since is not read.
enum Chunks<'a> {
    File { path: &'a Path, file: tokio::fs::File, left: u64 },
    Bytes(std::slice::Chunks<'a, u8>),
}

impl<'a> Chunks<'a> {
    async fn open(content: &'a Content, size: u64) -> Result<Self, UploadError> {
        Ok(match content {
            Content::Bytes(bytes) => Self::Bytes(bytes.chunks(CHUNK_BYTES)),
            Content::Path(path) => {
                let file = tokio::fs::File::open(path).await.map_err(|e| read_error(path, e))?;
                Self::File { path, file, left: size }
            }
        })
    }

    async fn next(&mut self) -> Result<Option<Vec<u8>>, UploadError> {
        let (path, file, left) = match self {
            Self::Bytes(chunks) => return Ok(chunks.next().map(<[u8]>::to_vec)),
            Self::File { left: 0, .. } => return Ok(None),
            Self::File { path, file, left } => (path, file, left),
        };
        let bytes = usize::try_from(*left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let mut chunk = vec![0; bytes];
        file.read_exact(&mut chunk).await.map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => {
                let shorter = "it became shorter while it was sent; send it again";
                read_error(path, std::io::Error::new(ErrorKind::UnexpectedEof, shorter))
            }
            _ => read_error(path, error),
        })?;
        *left -= bytes as u64;
        Ok(Some(chunk))
    }
}

fn read_error(path: &Path, source: std::io::Error) -> UploadError {
    UploadError::Read { path: path.to_owned(), source }
}
