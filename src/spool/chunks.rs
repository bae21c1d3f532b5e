//! Rows as Parquet files on the way to the store: written here, read by `store/chunks.rs`.

use super::chunk_folder;
use crate::messages::{ChunkFile, feature_row_schema};
use anyhow::Context as _;
use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{Float64Type, Int32Type, Int64Type, TimestampMicrosecondType},
};
use polars::prelude::{
    BinaryChunked, Column, DataFrame, Float64Chunked, Int32Chunked, Int64Chunked, IntoColumn,
    NewChunkedArray, ParquetCompression, ParquetWriter, StatisticsOptions, StringChunked, TimeUnit,
    TimeZone,
};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};
use uuid::Uuid;

/// Bytes that are hashed and written at once.
const BUFFER_BYTES: usize = 256 << 10;

/// Writes the chunks of one node.
#[derive(Debug)]
pub struct ChunkSpool {
    folder: PathBuf,
    /// What the names of this node's files begin with: other nodes' files are left alone.
    prefix: String,
}

impl ChunkSpool {
    /// The chunks of `node` in a spool. What an earlier life of the node has left is taken away:
    /// its parts are read again.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn new(spool: &Path, node: &str) -> io::Result<Self> {
        let folder = chunk_folder(spool);
        std::fs::create_dir_all(&folder)?;
        let hash = format!("{:x}", Sha256::digest(node));
        let prefix = format!("{}-", &hash[..16]);
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)) {
                remove(&entry.path());
            }
        }
        Ok(Self { folder, prefix })
    }

    /// Writes rows (see [`crate::messages::feature_row_schema`]) to a file that lives as long as the
    /// [`Chunk`]. It is not forced to the disk: lost, it is made again. Blocks.
    ///
    /// # Errors
    /// The system's word, or that of polars; nothing is left of the file then.
    pub fn write(&self, rows: &RecordBatch) -> anyhow::Result<Chunk> {
        let id = format!("{}{}", self.prefix, Uuid::now_v7().simple());
        let unfinished = Unfinished(self.folder.join(format!("{id}.tmp")));
        let file = File::create_new(&unfinished.0)
            .with_context(|| format!("cannot make {}", unfinished.0.display()))?;
        let mut file = Hashing { file, hash: Sha256::new() };
        let mut buffered = BufWriter::with_capacity(BUFFER_BYTES, &mut file);
        write_parquet(rows, &mut buffered)?;
        buffered.flush()?;
        drop(buffered);
        let sha256 = format!("{:x}", file.hash.finalize());
        let name = format!("{id}.parquet");
        let path = self.folder.join(&name);
        std::fs::rename(&unfinished.0, &path)?;
        crate::crash_point!("u_chunk_written");
        Ok(Chunk { path, file: ChunkFile { name, sha256 } })
    }
}

/// A file with rows; dropped, it is deleted.
#[derive(Debug)]
pub struct Chunk {
    path: PathBuf,
    file: ChunkFile,
}

impl Chunk {
    /// What the header of its part says.
    #[must_use]
    pub fn file(&self) -> &ChunkFile {
        &self.file
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// A file under its first name; gone, once it was renamed.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// What cannot be deleted is left for the node's next start.
fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::debug!(%error, path = %path.display(), "a chunk could not be deleted");
        }
        _ => {}
    }
}

struct Hashing {
    file: File,
    hash: Sha256,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hash.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// One row group, so that the rows are read in their order.
fn write_parquet(rows: &RecordBatch, to: impl Write + Send) -> anyhow::Result<()> {
    let mut frame = DataFrame::new(rows.num_rows(), columns(rows)?)?;
    ParquetWriter::new(to)
        .with_compression(ParquetCompression::Lz4Raw)
        .with_statistics(StatisticsOptions::empty())
        .with_row_group_size(Some(rows.num_rows().max(1)))
        .set_parallel(false)
        .finish(&mut frame)?;
    Ok(())
}

fn columns(rows: &RecordBatch) -> anyhow::Result<Vec<Column>> {
    let expected = feature_row_schema();
    let types = expected.fields().iter().map(|field| field.data_type());
    anyhow::ensure!(
        rows.columns().iter().map(|column| column.data_type()).eq(types),
        "these are no feature rows"
    );
    let text = |i: usize, name: &str| {
        let column = rows.column(i).as_string::<i32>();
        let values = (0..column.len()).map(|row| column.value(row));
        StringChunked::from_iter_values(name.into(), values).into_column()
    };
    let instants = |i: usize, name: &str| {
        let column = rows.column(i).as_primitive::<TimestampMicrosecondType>();
        Int64Chunked::from_slice(name.into(), column.values())
            .into_datetime(TimeUnit::Microseconds, Some(TimeZone::UTC))
            .into_column()
    };
    let values = rows.column(2).as_primitive::<Float64Type>();
    let ids = rows.column(5).as_fixed_size_binary();
    let ids = (0..ids.len()).map(|row| ids.is_valid(row).then(|| ids.value(row)));
    let positions = rows.column(6).as_primitive::<Int64Type>().values();
    let subs = rows.column(7).as_primitive::<Int32Type>().values();
    Ok(vec![
        text(0, "entity_id"),
        text(1, "feature_name"),
        Float64Chunked::from_iter_options("value".into(), values.iter()).into_column(),
        instants(3, "event_timestamp"),
        instants(4, "created_at"),
        BinaryChunked::from_iter_options("event_id".into(), ids).into_column(),
        Int64Chunked::from_slice("pos".into(), positions).into_column(),
        Int32Chunked::from_slice("sub".into(), subs).into_column(),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        std::fs::read_dir(chunk_folder(dir))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_chunk_lives_as_long_as_its_guard() {
        let dir = tempfile::tempdir().unwrap();
        let spool = ChunkSpool::new(dir.path(), "n").unwrap();
        let chunk = spool.write(&RecordBatch::new_empty(feature_row_schema())).unwrap();
        let bytes = std::fs::read(chunk.path()).unwrap();
        assert_eq!(chunk.file().sha256, format!("{:x}", Sha256::digest(&bytes)));
        assert_eq!(names(dir.path()), std::slice::from_ref(&chunk.file().name));
        drop(chunk);
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn a_node_takes_away_what_it_left_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let rows = RecordBatch::new_empty(feature_row_schema());
        let left = |node: &str| {
            let chunk = ChunkSpool::new(dir.path(), node).unwrap().write(&rows).unwrap();
            // As if the node had died.
            let name = chunk.file().name.clone();
            std::mem::forget(chunk);
            name
        };
        let (mine, other) = (left("a"), left("b"));
        assert_eq!(names(dir.path()).len(), 2);
        ChunkSpool::new(dir.path(), "a").unwrap();
        assert_eq!(names(dir.path()), [other]);
        assert!(super::super::is_plain(&mine));
    }

    #[test]
    fn nothing_is_left_of_a_chunk_that_cannot_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let spool = ChunkSpool::new(dir.path(), "n").unwrap();
        let others = RecordBatch::new_empty(crate::messages::dead_letter_schema());
        spool.write(&others).unwrap_err();
        assert!(names(dir.path()).is_empty());
    }
}
