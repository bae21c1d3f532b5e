//! What the store knows of uploads.

use crate::{
    actors::{redis_queue::select, replayer::quoted},
    files::{Compression, FileFormat, FileKind},
    proto::UploadStatus,
    queue::{Keys, RedisLink},
};
use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::Int64Type,
};

/// The store has the rows' file; not all of them are in DuckDB yet.
pub const ACCEPTED: &str = "accepted";
/// Every row is accounted for.
pub const LANDED: &str = "landed";
/// It does not go on until an operator adopts its source.
pub const HALTED: &str = "halted";

/// Which upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// The server's name for it.
    Id(String),
    /// The client's.
    Key(String),
}

/// An upload, as the store knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// What a client may know.
    pub status: UploadStatus,
    /// The node that has the file.
    pub owner: String,
}

/// A source that was adopted anew has several rows: the newest counts.
const SOURCES: &str = "(FROM sources WHERE source LIKE 'upload:%'
                        QUALIFY source_no = max(source_no) OVER (PARTITION BY source))";

fn find_sql(condition: &str, limit: usize) -> String {
    let counted = |column: &str| {
        format!(
            "(SELECT coalesce(sum({column}), 0)::BIGINT FROM ingest_ledger l
              WHERE l.source_no = s.source_no)"
        )
    };
    format!(
        "SELECT u.upload_id, u.idempotency_key, u.stream, u.filename, u.format, u.compression,
                u.size::BIGINT, u.sha256, u.rows::BIGINT, u.source, u.owner,
                coalesce(s.next_pos, 0)::BIGINT, coalesce(s.halted, ''), {}, {}, {}
         FROM uploads u LEFT JOIN {SOURCES} s ON s.source = u.source
         WHERE {condition} ORDER BY u.registered_at DESC LIMIT {limit}",
        counted("n_kept"),
        counted("n_dead"),
        counted("n_filtered")
    )
}

fn text(batch: &RecordBatch, column: usize, i: usize) -> String {
    let values = batch.column(column).as_string::<i32>();
    if values.is_valid(i) { values.value(i).to_owned() } else { String::new() }
}

fn number(batch: &RecordBatch, column: usize, i: usize) -> i64 {
    batch.column(column).as_primitive::<Int64Type>().value(i)
}

fn found(batch: &RecordBatch, i: usize) -> Found {
    let count = |column| number(batch, column, i).max(0).cast_unsigned();
    let (rows, done, reason) = (count(8), count(11), text(batch, 12, i));
    let state = match () {
        () if done >= rows => LANDED,
        () if !reason.is_empty() => HALTED,
        () => ACCEPTED,
    };
    let status = UploadStatus {
        upload_id: text(batch, 0, i),
        idempotency_key: text(batch, 1, i),
        stream: text(batch, 2, i),
        filename: text(batch, 3, i),
        format: text(batch, 4, i),
        compression: text(batch, 5, i),
        size: count(6),
        sha256: text(batch, 7, i),
        state: state.to_owned(),
        reason,
        rows,
        rows_done: done,
        kept: count(13),
        dead_letters: count(14),
        filtered: count(15),
        source: text(batch, 9, i),
    };
    Found { status, owner: text(batch, 10, i) }
}

/// An upload; `None`: the store knows none of that name.
///
/// # Errors
/// When the store cannot be asked.
pub async fn find(redis: &RedisLink, keys: &Keys, which: &Which) -> anyhow::Result<Option<Found>> {
    let condition = match which {
        Which::Id(id) => format!("u.upload_id = {}", quoted(id)),
        Which::Key(key) => format!("u.idempotency_key = {}", quoted(key)),
    };
    let batches = select(redis, keys, find_sql(&condition, 1)).await?;
    Ok(batches.iter().find(|batch| batch.num_rows() > 0).map(|batch| found(batch, 0)))
}

/// The newest uploads.
///
/// # Errors
/// When the store cannot be asked.
pub async fn newest(redis: &RedisLink, keys: &Keys, most: usize) -> anyhow::Result<Vec<Found>> {
    let batches = select(redis, keys, find_sql("true", most)).await?;
    Ok(batches.iter().flat_map(|b| (0..b.num_rows()).map(|i| found(b, i))).collect())
}

/// An upload that is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// Its id.
    pub upload_id: String,
    /// The stream whose script its rows go through.
    pub stream: String,
    /// The name of its source.
    pub source: String,
    /// How to read it.
    pub kind: FileKind,
    /// Rows of the file.
    pub rows: i64,
    /// When it was registered, UTC microseconds.
    pub registered_at_us: i64,
}

fn unfinished_sql(owner: &str) -> String {
    format!(
        "SELECT u.upload_id, u.stream, u.source, u.format, u.compression, u.rows::BIGINT,
                epoch_us(u.registered_at)
         FROM uploads u LEFT JOIN {SOURCES} s ON s.source = u.source
         WHERE u.owner = {} AND coalesce(s.next_pos, 0) < u.rows
           AND (s.halted IS NULL OR s.adopt IS NOT NULL)
         ORDER BY u.registered_at, u.upload_id",
        quoted(owner)
    )
}

/// The uploads of a node that are not done, the oldest first.
///
/// # Errors
/// When the store cannot be asked.
pub async fn unfinished(
    redis: &RedisLink,
    keys: &Keys,
    owner: &str,
) -> anyhow::Result<Vec<Unfinished>> {
    let mut uploads = Vec::new();
    for batch in select(redis, keys, unfinished_sql(owner)).await? {
        for i in 0..batch.num_rows() {
            let format = text(&batch, 3, i).parse::<FileFormat>().map_err(anyhow::Error::msg)?;
            let compression =
                text(&batch, 4, i).parse::<Compression>().map_err(anyhow::Error::msg)?;
            uploads.push(Unfinished {
                upload_id: text(&batch, 0, i),
                stream: text(&batch, 1, i),
                source: text(&batch, 2, i),
                kind: FileKind { format, compression },
                rows: number(&batch, 5, i),
                registered_at_us: number(&batch, 6, i),
            });
        }
    }
    Ok(uploads)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store with an upload of 5 rows of which 3 are accounted for.
    fn store() -> duckdb::Connection {
        let connection = duckdb::Connection::open_in_memory().unwrap();
        connection.execute_batch(crate::store::schema::DDL).unwrap();
        connection
            .execute_batch(
                "INSERT INTO uploads (upload_id, idempotency_key, sha256, stream, source, owner, filename, format,
                                      compression, size, rows, registered_at)
                     VALUES ('i', 'k''k', 'h', 's', 'upload:s/i', 'n', 'f', 'csv', 'gzip', 9, 5, now());
                 INSERT INTO sources (source_no, source, token, token_no, owner, next_pos, start_pos, updated_at)
                     VALUES (4, 'upload:s/i', gen_random_uuid(), 1, 'o', 3, 0, now());
                 INSERT INTO ingest_ledger (batch_seq, source_no, token_no, from_pos, to_pos, n_in, n_kept, n_dead,
                                            n_filtered, n_rows, transform, script_sha256, node, committed_at)
                     VALUES (1, 4, 1, 0, 2, 2, 1, 1, 0, 1, 't', 'x', 'n', now()),
                            (2, 4, 1, 2, 3, 1, 0, 0, 1, 0, 't', 'x', 'n', now());",
            )
            .unwrap();
        connection
    }

    fn asked(sql: &str) -> Vec<RecordBatch> {
        let deadline = std::time::Duration::from_secs(10);
        let bytes = crate::store::reader::query(&store(), sql, deadline).unwrap();
        let reader =
            arrow::ipc::reader::StreamReader::try_new(std::io::Cursor::new(bytes), None).unwrap();
        reader.map(Result::unwrap).filter(|batch| batch.num_rows() > 0).collect()
    }

    #[test]
    fn the_store_says_how_far_an_upload_is() {
        let batches = asked(&find_sql("u.idempotency_key = 'k''k'", 1));
        let Found { status, owner } = found(&batches[0], 0);
        assert_eq!((owner.as_str(), status.state.as_str()), ("n", ACCEPTED));
        assert_eq!((status.rows, status.rows_done, status.size), (5, 3, 9));
        assert_eq!((status.kept, status.dead_letters, status.filtered), (1, 1, 1));
        assert!(asked(&find_sql("u.upload_id = 'other'", 1)).is_empty());
        assert_eq!(asked(&unfinished_sql("n"))[0].num_rows(), 1);
        assert!(asked(&unfinished_sql("other")).is_empty());
    }
}
