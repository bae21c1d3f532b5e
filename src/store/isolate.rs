//! The rows of a write that DuckDB refuses become dead letters; the others land.
//!
//! A write that is refused alone is tried in halves, in transactions that are always rolled back,
//! until the rows at fault are known. An event with such a row is dead as a whole: an event is
//! either kept or dead, never both.

use super::{StoreError, columns, group};
use crate::config::AsKnown;
use crate::messages::{DeadLetter, Stage, WriteRequest, dead_letter_schema, dead_letters_to_arrow};
use arrow::{
    array::{Array, AsArray, BooleanArray, RecordBatch},
    compute::{concat_batches, filter_record_batch},
    datatypes::{Float64Type, Int32Type, Int64Type, TimestampMicrosecondType},
};
use duckdb::Connection;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The reason of a dead letter that DuckDB made.
pub const REASON: &str = "refused_by_store";

/// A row that will never be stored though it may be online.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RefusedRow {
    /// Whose value.
    pub entity_id: String,
    /// Of which feature.
    pub feature_name: String,
    /// The value, when it was not null.
    pub value: Option<f64>,
    /// When it became true, UTC microseconds.
    pub event_timestamp_us: i64,
    /// When the producer made it, UTC microseconds.
    pub created_at_us: i64,
    /// The position of its event.
    pub pos: i64,
    /// Which output of that event.
    pub sub: i32,
}

/// What the letter of a refused event says in its detail, for people and for the repair of the
/// online store after a crash.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RefusedEvent {
    /// DuckDB's word.
    pub error: String,
    /// All rows of the event.
    pub rows: Vec<RefusedRow>,
}

/// A write without the events that DuckDB refuses.
#[derive(Debug)]
pub struct Isolated {
    /// What can be stored.
    pub write: WriteRequest,
    /// What cannot, by part.
    pub refused: Vec<Vec<RefusedRow>>,
}

/// Finds the rows at fault and turns their events into dead letters. `None` when no single row is
/// refused: then it is not the rows.
///
/// # Errors
/// [`StoreError`]: DuckDB has other trouble than these rows.
pub fn isolate(
    connection: &Connection,
    write: &WriteRequest,
) -> Result<Option<Isolated>, StoreError> {
    let mut isolated = Isolated { write: write.clone(), refused: Vec::new() };
    let mut found = false;
    for i in 0..write.header.parts.len() {
        let mut faults = BTreeMap::new();
        bisect(connection, write, i, 0, write.rows[i].num_rows(), &mut faults)?;
        found |= !faults.is_empty();
        isolated.refused.push(bury(&mut isolated.write, i, &faults)?);
    }
    Ok(found.then_some(isolated))
}

/// Tries `len` rows of part `i` from `offset` on; halves them when they are refused.
fn bisect(
    connection: &Connection,
    write: &WriteRequest,
    i: usize,
    offset: usize,
    len: usize,
    faults: &mut BTreeMap<usize, String>,
) -> Result<(), StoreError> {
    if len == 0 {
        return Ok(());
    }
    match trial(connection, write, i, offset, len) {
        Ok(()) => Ok(()),
        Err(StoreError::Refused(error)) if len == 1 => {
            faults.insert(offset, error.to_string());
            Ok(())
        }
        Err(StoreError::Refused(_)) => {
            let half = len / 2;
            bisect(connection, write, i, offset, half, faults)?;
            bisect(connection, write, i, offset + half, len - half, faults)
        }
        Err(error) => Err(error),
    }
}

/// Appends the rows in a transaction that is rolled back.
fn trial(
    connection: &Connection,
    write: &WriteRequest,
    i: usize,
    offset: usize,
    len: usize,
) -> Result<(), StoreError> {
    let place = columns::Placement {
        batch_seq: 0,
        source_no: 0,
        stamp_us: 0,
        as_known: AsKnown::Arrival,
        script_sha256: &write.header.script_sha256,
    };
    let rows = columns::feature_rows(&write.rows[i].slice(offset, len), place)?;
    connection.execute_batch("BEGIN TRANSACTION").map_err(StoreError::of_statement)?;
    let appended = group::append(connection, "features_table", vec![rows]);
    connection.execute_batch("ROLLBACK").map_err(StoreError::UnknownCommit)?;
    appended
}

/// Moves the events of the faulty rows of part `i` from its rows to its dead letters.
fn bury(
    write: &mut WriteRequest,
    i: usize,
    faults: &BTreeMap<usize, String>,
) -> Result<Vec<RefusedRow>, StoreError> {
    let rows = write.rows[i].clone();
    let positions = rows.column(6).as_primitive::<Int64Type>();
    let mut dead: BTreeMap<i64, RefusedEvent> = BTreeMap::new();
    for (row, error) in faults {
        let event = RefusedEvent { error: error.clone(), rows: Vec::new() };
        dead.entry(positions.value(*row)).or_insert(event);
    }
    if dead.is_empty() {
        return Ok(Vec::new());
    }
    for row in 0..rows.num_rows() {
        if let Some(event) = dead.get_mut(&positions.value(row)) {
            event.rows.push(refused_row(&rows, row));
        }
    }
    let keep: BooleanArray =
        positions.values().iter().map(|pos| Some(!dead.contains_key(pos))).collect();
    write.rows[i] = filter_record_batch(&rows, &keep)?;
    let letters = dead.iter().map(|(pos, event)| letter(&rows, *pos, event)).collect::<Vec<_>>();
    let letters = dead_letters_to_arrow(&letters)?;
    write.dead[i] = concat_batches(&dead_letter_schema(), [&write.dead[i], &letters])?;
    let part = &mut write.header.parts[i];
    let events = dead.len() as i64;
    part.n_kept -= events;
    part.n_dead += events;
    part.n_rows = write.rows[i].num_rows() as i64;
    Ok(dead.into_values().flat_map(|event| event.rows).collect())
}

fn refused_row(rows: &RecordBatch, row: usize) -> RefusedRow {
    let values = rows.column(2).as_primitive::<Float64Type>();
    let instant = |i: usize| rows.column(i).as_primitive::<TimestampMicrosecondType>().value(row);
    RefusedRow {
        entity_id: rows.column(0).as_string::<i32>().value(row).to_owned(),
        feature_name: rows.column(1).as_string::<i32>().value(row).to_owned(),
        value: values.is_valid(row).then(|| values.value(row)),
        event_timestamp_us: instant(3),
        created_at_us: instant(4),
        pos: rows.column(6).as_primitive::<Int64Type>().value(row),
        sub: rows.column(7).as_primitive::<Int32Type>().value(row),
    }
}

/// The raw record is not here any more: Kafka has it, under the letter's source and position.
fn letter(rows: &RecordBatch, pos: i64, event: &RefusedEvent) -> DeadLetter {
    let row = rows.column(6).as_primitive::<Int64Type>().values().iter().position(|p| *p == pos);
    let ids = rows.column(5).as_fixed_size_binary();
    let event_id = row
        .filter(|row| ids.is_valid(*row))
        .and_then(|row| uuid::Uuid::from_slice(ids.value(row)).ok());
    DeadLetter {
        pos,
        event_id,
        entity_id: event.rows.first().map(|row| row.entity_id.clone()),
        stage: Stage::Store,
        reason: REASON.to_owned(),
        // A struct of plain fields always makes JSON.
        detail: serde_json::to_string(event).unwrap_or_else(|_| event.error.clone()),
        raw: None,
        raw_len: None,
        raw_sha256: None,
        recorded_at_us: None,
    }
}
