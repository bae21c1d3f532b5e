//! The rows of a part as a Parquet file in the spool: found, checked, and taken into the tables.
//!
//! A file that is not there, or is not what its header says, is no reason to halt: its part is
//! answered as a gap, its source is read again, and the file is made anew.

use super::{StoreError, columns::Placement};
use crate::{
    config::AsKnown,
    messages::{ChunkFile, feature_row_schema},
    spool::is_plain,
};
use arrow::{
    array::RecordBatch,
    compute::{CastOptions, cast_with_options, concat_batches},
    error::ArrowError,
};
use duckdb::Connection;
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

/// Bytes that are hashed at once.
const BUFFER_BYTES: usize = 256 << 10;

/// The file of a chunk in the folder of chunks, if it is what its header says; else why not.
///
/// # Errors
/// For people.
pub fn find(folder: Option<&Path>, chunk: &ChunkFile) -> Result<PathBuf, String> {
    let folder = folder.ok_or("the store has no folder of chunks")?;
    if !is_plain(&chunk.name) {
        return Err("its name is not that of a file".into());
    }
    let path = folder.join(&chunk.name);
    let found = hash_of(&path).map_err(|e| e.to_string())?;
    if found != chunk.sha256 {
        return Err(format!("its SHA-256 is {found} instead of {}", chunk.sha256));
    }
    Ok(path)
}

fn hash_of(path: &Path) -> std::io::Result<String> {
    // Not through a link: what the folder holds was put there by a node.
    if !std::fs::symlink_metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is no regular file"));
    }
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(format!("{:x}", hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// Takes the rows of a chunk into `features_table`, inside of a transaction.
///
/// # Errors
/// [`StoreError::Refused`], [`StoreError::Statement`]; [`StoreError::Unbalanced`] when it has
/// another number of rows than its header says.
pub(super) fn insert(
    connection: &Connection,
    path: &Path,
    place: Placement<'_>,
    n_rows: i64,
) -> Result<(), StoreError> {
    let Placement { batch_seq, source_no, stamp_us, as_known, .. } = place;
    let stamp = format!("make_timestamptz({stamp_us}::BIGINT)");
    let known = match as_known {
        AsKnown::Arrival => stamp,
        AsKnown::CreatedAt => format!("least(created_at, {stamp})"),
    };
    // Without the step between, DuckDB builds row groups side by side and puts them together again,
    // which takes longer than the insert itself.
    let sql = format!(
        "INSERT INTO features_table
         WITH chunk AS MATERIALIZED (
             SELECT entity_id, feature_name, value, event_timestamp, created_at, event_id::UUID,
                    greatest(event_timestamp, {known}),
                    {batch_seq}::BIGINT, {source_no}::INTEGER, pos, sub
             FROM {})
         FROM chunk",
        table(path)?
    );
    let inserted = connection.execute(&sql, []).map_err(StoreError::of_statement)?;
    crate::crash_point!("u_chunk_read");
    if inserted as i64 == n_rows {
        return Ok(());
    }
    let name = path.display();
    Err(StoreError::Unbalanced(format!("{name} has {inserted} rows, its header says {n_rows}")))
}

/// The rows of a chunk, see [`feature_row_schema`].
///
/// # Errors
/// [`StoreError`].
pub fn load(connection: &Connection, path: &Path) -> Result<RecordBatch, StoreError> {
    let sql = format!(
        "SELECT entity_id, feature_name, value, event_timestamp, created_at, event_id, pos, sub FROM {}",
        table(path)?
    );
    let mut statement = connection.prepare(&sql).map_err(StoreError::of_statement)?;
    let batches: Vec<RecordBatch> = statement
        .query_arrow([])
        .map_err(StoreError::of_statement)?
        .map(|batch| typed(&batch))
        .collect::<Result<_, _>>()?;
    Ok(concat_batches(&feature_row_schema(), &batches)?)
}

/// Columns as DuckDB gives them, in the types in which rows travel.
fn typed(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let schema = feature_row_schema();
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    let columns = batch
        .columns()
        .iter()
        .zip(schema.fields())
        .map(|(column, field)| cast_with_options(column, field.data_type(), &strict))
        .collect::<Result<_, _>>()?;
    RecordBatch::try_new(schema, columns)
}

/// The file as a table: its columns are those that are in it, whatever the names of its folders.
fn table(path: &Path) -> Result<String, StoreError> {
    let text = path.to_str().ok_or_else(|| StoreError::Open {
        file: path.display().to_string(),
        reason: "its path is not UTF-8".into(),
    })?;
    Ok(format!("read_parquet('{}', hive_partitioning = false)", text.replace('\'', "''")))
}

#[cfg(test)]
mod tests;
