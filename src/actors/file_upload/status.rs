//! What the store knows of uploads.

use crate::{
    actors::redis_queue::{Row, rows, select},
    files::{Compression, FileFormat, FileKind},
    proto::UploadStatus,
    queue::{Keys, RedisLink},
    text::sql_literal,
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

fn found(row: Row<'_>) -> Found {
    let (rows, done, reason) = (row.count(8), row.count(11), row.owned(12));
    let state = match () {
        () if done >= rows => LANDED,
        () if !reason.is_empty() => HALTED,
        () => ACCEPTED,
    };
    let status = UploadStatus {
        upload_id: row.owned(0),
        idempotency_key: row.owned(1),
        stream: row.owned(2),
        filename: row.owned(3),
        format: row.owned(4),
        compression: row.owned(5),
        size: row.count(6),
        sha256: row.owned(7),
        state: state.to_owned(),
        reason,
        rows,
        rows_done: done,
        kept: row.count(13),
        dead_letters: row.count(14),
        filtered: row.count(15),
        source: row.owned(9),
    };
    Found { status, owner: row.owned(10) }
}

/// An upload; `None`: the store knows none of that name.
///
/// # Errors
/// When the store cannot be asked.
pub async fn find(redis: &RedisLink, keys: &Keys, which: &Which) -> anyhow::Result<Option<Found>> {
    let condition = match which {
        Which::Id(id) => format!("u.upload_id = {}", sql_literal(id)),
        Which::Key(key) => format!("u.idempotency_key = {}", sql_literal(key)),
    };
    let batches = select(redis, keys, find_sql(&condition, 1)).await?;
    Ok(rows(&batches).next().map(found))
}

/// Uploads by their ids; unknown ones are missing.
///
/// # Errors
/// When the store cannot be asked.
pub async fn find_all(
    redis: &RedisLink,
    keys: &Keys,
    ids: &[String],
) -> anyhow::Result<Vec<Found>> {
    let names = ids.iter().map(|id| sql_literal(id)).collect::<Vec<_>>().join(", ");
    let condition = format!("u.upload_id IN ({names})");
    let batches = select(redis, keys, find_sql(&condition, ids.len())).await?;
    Ok(rows(&batches).map(found).collect())
}

/// The newest uploads.
///
/// # Errors
/// When the store cannot be asked.
pub async fn newest(redis: &RedisLink, keys: &Keys, most: usize) -> anyhow::Result<Vec<Found>> {
    let batches = select(redis, keys, find_sql("true", most)).await?;
    Ok(rows(&batches).map(found).collect())
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
        sql_literal(owner)
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
    for row in rows(&select(redis, keys, unfinished_sql(owner)).await?) {
        let format = row.owned(3).parse::<FileFormat>().map_err(anyhow::Error::msg)?;
        let compression = row.owned(4).parse::<Compression>().map_err(anyhow::Error::msg)?;
        uploads.push(Unfinished {
            upload_id: row.owned(0),
            stream: row.owned(1),
            source: row.owned(2),
            kind: FileKind { format, compression },
            rows: row.int(5).unwrap_or_default(),
            registered_at_us: row.int(6).unwrap_or_default(),
        });
    }
    Ok(uploads)
}

/// The sources of all uploads of which a row is missing, whichever nodes have their files, with their
/// rows.
///
/// # Errors
/// When the store cannot be asked.
pub async fn not_landed(redis: &RedisLink, keys: &Keys) -> anyhow::Result<Vec<(String, i64)>> {
    let batches = select(redis, keys, not_landed_sql()).await?;
    Ok(rows(&batches).map(|row| (row.owned(0), row.int(1).unwrap_or_default())).collect())
}

fn not_landed_sql() -> String {
    format!(
        "SELECT u.source, u.rows::BIGINT FROM uploads u LEFT JOIN {SOURCES} s ON s.source = u.source
         WHERE coalesce(s.next_pos, 0) < u.rows ORDER BY u.registered_at, u.upload_id"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::RecordBatch;

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
        let bounds = crate::messages::QueryBounds::default();
        let bytes = crate::store::reader::query(&store(), sql, bounds, 1 << 30, || false).unwrap();
        let reader =
            arrow::ipc::reader::StreamReader::try_new(std::io::Cursor::new(bytes), None).unwrap();
        reader.map(Result::unwrap).filter(|batch| batch.num_rows() > 0).collect()
    }

    #[test]
    fn the_store_says_how_far_an_upload_is() {
        let batches = asked(&find_sql("u.idempotency_key = 'k''k'", 1));
        let Found { status, owner } = rows(&batches).map(found).next().unwrap();
        assert_eq!((owner.as_str(), status.state.as_str()), ("n", ACCEPTED));
        assert_eq!((status.rows, status.rows_done, status.size), (5, 3, 9));
        assert_eq!((status.kept, status.dead_letters, status.filtered), (1, 1, 1));
        assert!(asked(&find_sql("u.upload_id = 'other'", 1)).is_empty());
        assert_eq!(asked(&find_sql("u.upload_id IN ('other', 'i')", 2))[0].num_rows(), 1);
        assert_eq!(asked(&unfinished_sql("n"))[0].num_rows(), 1);
        assert!(asked(&unfinished_sql("other")).is_empty());
        let missing = asked(&not_landed_sql());
        assert_eq!(rows(&missing).map(|row| row.count(1)).collect::<Vec<_>>(), [5]);
    }
}
