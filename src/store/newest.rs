//! The newest values as DuckDB knows them: what the online store must hold.

use super::{
    StoreError,
    audit::in_snapshot,
    isolate::{RefusedEvent, RefusedRow},
};
use crate::{
    messages::{OnlineValue, Repair, Stage},
    protocol::{source::Position, version::Version},
    text,
};
use duckdb::{Connection, Row, ToSql, params};

/// Values that are handed on at once.
const CHUNK: usize = 4_096;

/// The newest row of one feature of one entity.
#[derive(Debug, Clone, PartialEq)]
pub struct NewestValue {
    /// The name of its source.
    pub source: String,
    /// Whose, which, what, and its place in the version order.
    pub value: OnlineValue,
    /// Number of the token under which it was written.
    pub token_number: u32,
}

/// A piece of what the online store must hold.
#[derive(Debug)]
pub enum Piece {
    /// Newest values.
    Values(Vec<NewestValue>),
    /// Values that may be online though their rows were refused.
    Repairs(Vec<Repair>),
    /// That was all up to this batch.
    End {
        /// The last batch that was looked at.
        to_batch_seq: i64,
    },
}

const COLUMNS: &str = "source, entity_id, feature_name, value, epoch_us(event_timestamp),
                       epoch_us(created_at), source_no, pos, sub, coalesce(written_under, 0)";

/// Rows with what is needed to order them; the ledger knows the token.
const FROM: &str = "features_table JOIN sources USING (source_no)
     LEFT JOIN (SELECT batch_seq, token_no AS written_under FROM ingest_ledger) USING (batch_seq)";

const NEWEST_FIRST: &str =
    "ORDER BY event_timestamp DESC, created_at DESC, source_no DESC, pos DESC, sub DESC";

fn read(row: &Row<'_>) -> duckdb::Result<NewestValue> {
    let token_number: i32 = row.get(9)?;
    let version = Version {
        event_timestamp: row.get(4)?,
        created_at: row.get(5)?,
        source_no: row.get(6)?,
        pos: row.get(7)?,
        sub: row.get(8)?,
    };
    let value = OnlineValue {
        entity_id: row.get(1)?,
        feature_name: row.get(2)?,
        value: row.get(3)?,
        version,
    };
    Ok(NewestValue { source: row.get(0)?, value, token_number: token_number.cast_unsigned() })
}

/// The newest value of every entity and feature among the rows of batches after `after_batch_seq`,
/// piece by piece; then the repairs that refused rows of these batches need. All of one snapshot.
/// Ends early when `give` says that nobody listens any more.
///
/// # Errors
/// [`StoreError`].
pub fn replay(
    connection: &Connection,
    after_batch_seq: i64,
    mut give: impl FnMut(Piece) -> bool,
) -> Result<(), StoreError> {
    in_snapshot(connection, || {
        let sql = "SELECT coalesce(max(batch_seq), 0) FROM ingest_ledger";
        let to_batch_seq =
            connection.query_row(sql, [], |row| row.get(0)).map_err(StoreError::of_statement)?;
        if to_batch_seq > after_batch_seq
            && !(values(connection, "batch_seq > ?", params![after_batch_seq], &mut give)?
                && give(Piece::Repairs(refused_after(connection, after_batch_seq)?)))
        {
            return Ok(());
        }
        give(Piece::End { to_batch_seq });
        Ok(())
    })
}

fn values(
    connection: &Connection,
    condition: &str,
    parameters: &[&dyn ToSql],
    give: &mut impl FnMut(Piece) -> bool,
) -> Result<bool, StoreError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM {FROM} WHERE {condition}
         QUALIFY row_number() OVER (PARTITION BY entity_id, feature_name {NEWEST_FIRST}) = 1"
    );
    let mut statement = connection.prepare(&sql).map_err(StoreError::of_statement)?;
    let mut rows = statement.query(parameters).map_err(StoreError::of_statement)?;
    let mut chunk = Vec::with_capacity(CHUNK);
    while let Some(row) = rows.next().map_err(StoreError::of_statement)? {
        chunk.push(read(row).map_err(StoreError::of_statement)?);
        if chunk.len() == CHUNK && !give(Piece::Values(std::mem::take(&mut chunk))) {
            return Ok(false);
        }
    }
    Ok(give(Piece::Values(chunk)))
}

/// The newest value of every entity and feature, with the name of its source.
///
/// # Errors
/// [`StoreError`].
pub fn newest_values(connection: &Connection) -> Result<Vec<NewestValue>, StoreError> {
    all_values(connection, "batch_seq > ?", params![0])
}

/// The newest value of every entity and feature among the durable rows of a source in `[from, to)`.
///
/// # Errors
/// [`StoreError`].
pub fn newest_of_part(
    connection: &Connection,
    source_no: i32,
    from: Position,
    to: Position,
) -> Result<Vec<NewestValue>, StoreError> {
    // The batches are named so that DuckDB passes over all others.
    let condition = "source_no = ? AND pos >= ? AND pos < ? AND batch_seq IN
         (SELECT batch_seq FROM ingest_ledger WHERE source_no = ? AND to_pos > ? AND from_pos < ?)";
    all_values(connection, condition, params![source_no, from, to, source_no, from, to])
}

fn all_values(
    connection: &Connection,
    condition: &str,
    parameters: &[&dyn ToSql],
) -> Result<Vec<NewestValue>, StoreError> {
    let mut all = Vec::new();
    values(connection, condition, parameters, &mut |piece| {
        if let Piece::Values(values) = piece {
            all.extend(values);
        }
        true
    })?;
    Ok(all)
}

/// The newest values of a random sample of keys, of features that `is_critical` says are (source, then
/// name). Each row of the history is as likely to name its key.
///
/// # Errors
/// [`StoreError`].
pub fn sampled(
    connection: &Connection,
    keys: usize,
    is_critical: &dyn Fn(&str, &str) -> bool,
) -> Result<Vec<NewestValue>, StoreError> {
    let sql =
        "SELECT DISTINCT source, feature_name FROM features_table JOIN sources USING (source_no)";
    let mut statement = connection.prepare(sql).map_err(StoreError::of_statement)?;
    let known = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
    let known = known.and_then(Iterator::collect::<duckdb::Result<Vec<(String, String)>>>);
    let mut features: Vec<String> = known
        .map_err(StoreError::of_statement)?
        .into_iter()
        .filter(|(source, feature)| is_critical(source, feature))
        .map(|(_, feature)| text::sql_literal(&feature))
        .collect();
    features.sort_unstable();
    features.dedup();
    if features.is_empty() {
        return Ok(Vec::new());
    }
    let condition = format!(
        "(entity_id, feature_name) IN (
             SELECT (entity_id, feature_name) FROM (
                 SELECT entity_id, feature_name FROM features_table WHERE feature_name IN ({})
             ) USING SAMPLE reservoir({keys} ROWS))",
        features.join(", ")
    );
    all_values(connection, &condition, params![])
}

/// What the online store needs when these rows were refused.
///
/// # Errors
/// [`StoreError`].
pub fn repairs(
    connection: &Connection,
    source_no: i32,
    refused: &[RefusedRow],
) -> Result<Vec<Repair>, StoreError> {
    refused.iter().map(|row| repair(connection, source_no, row)).collect()
}

fn repair(connection: &Connection, source_no: i32, row: &RefusedRow) -> Result<Repair, StoreError> {
    let RefusedRow { entity_id, feature_name, event_timestamp_us, created_at_us, pos, sub, .. } =
        row;
    let refused = Version {
        event_timestamp: *event_timestamp_us,
        created_at: *created_at_us,
        source_no,
        pos: *pos,
        sub: *sub,
    };
    Ok(Repair {
        entity_id: entity_id.clone(),
        feature_name: feature_name.clone(),
        refused,
        newest: newest_where(
            connection,
            "entity_id = ? AND feature_name = ?",
            params![entity_id, feature_name],
        )?,
        newest_of_feature: newest_where(connection, "feature_name = ?", params![feature_name])?,
    })
}

fn newest_where(
    connection: &Connection,
    condition: &str,
    parameters: &[&dyn ToSql],
) -> Result<Option<(OnlineValue, u32)>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM {FROM} WHERE {condition} {NEWEST_FIRST} LIMIT 1");
    match connection.query_row(&sql, parameters, read) {
        Ok(found) => Ok(Some((found.value, found.token_number))),
        Err(duckdb::Error::QueryReturnedNoRows) => Ok(None),
        Err(error) => Err(StoreError::of_statement(error)),
    }
}

/// Repairs for the letters that DuckDB itself made in batches after `after_batch_seq`.
fn refused_after(connection: &Connection, after_batch_seq: i64) -> Result<Vec<Repair>, StoreError> {
    let mut statement = connection
        .prepare("SELECT source_no, detail FROM dead_letters WHERE batch_seq > ? AND stage = ?")
        .map_err(StoreError::of_statement)?;
    let letters = statement
        .query_map(params![after_batch_seq, Stage::Store.name()], |row| {
            Ok((row.get::<_, i32>(0)?, row.get::<_, String>(1)?))
        })
        .and_then(Iterator::collect::<duckdb::Result<Vec<_>>>)
        .map_err(StoreError::of_statement)?;
    let mut all = Vec::new();
    for (source_no, detail) in letters {
        match serde_json::from_str::<RefusedEvent>(&detail) {
            Ok(event) => all.extend(repairs(connection, source_no, &event.rows)?),
            Err(error) => tracing::error!(%error, detail, "a letter of the store cannot be read"),
        }
    }
    Ok(all)
}
