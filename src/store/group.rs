//! What the transaction of a group of writes puts into the tables.

use super::{StoreError, chunks, columns, sources::exactly_one};
use crate::{
    config::AsKnown,
    messages::{PartHeader, WriteRequest},
    protocol::{apply::Watermarks, source::SourceName},
};
use arrow::{array::RecordBatch, compute::concat_batches};
use duckdb::{Connection, params};
use std::{collections::HashSet, path::PathBuf};

/// Below so many rows a part is copied together with its neighbours before it is appended: DuckDB
/// takes vectors of 2,048 rows, and a chunk a part would leave most of them empty.
const CONCAT_BELOW_ROWS: usize = 2_048;

/// A ledger line in the making.
pub(super) struct Line<'a> {
    batch_seq: i64,
    source_no: i32,
    pub(super) part: &'a PartHeader,
    write: &'a WriteRequest,
}

/// The rows of a part.
enum Rows<'a> {
    Sent(RecordBatch),
    Chunk { path: PathBuf, place: columns::Placement<'a>, n_rows: i64 },
}

/// What the transaction of a group will write.
pub(super) struct Group<'a> {
    stamp_us: i64,
    pub(super) next_batch_seq: i64,
    rows: Vec<Rows<'a>>,
    dead: Vec<RecordBatch>,
    pub(super) lines: Vec<Line<'a>>,
}

impl<'a> Group<'a> {
    pub(super) fn new(stamp_us: i64, next_batch_seq: i64) -> Self {
        Self { stamp_us, next_batch_seq, rows: Vec::new(), dead: Vec::new(), lines: Vec::new() }
    }

    /// Takes part `i` of a write in; its counts must add up. `chunk`: the file with its rows, which
    /// are counted when they are read.
    pub(super) fn add(
        &mut self,
        write: &'a WriteRequest,
        i: usize,
        source_no: i32,
        chunk: Option<PathBuf>,
    ) -> Result<(), StoreError> {
        let part = &write.header.parts[i];
        let (rows, dead) = (&write.rows[i], &write.dead[i]);
        let sent = if chunk.is_some() { 0 } else { part.n_rows };
        let balanced = part.n_in == part.n_kept + part.n_dead + part.n_filtered
            && sent == rows.num_rows() as i64
            && part.n_dead == dead.num_rows() as i64
            && part.n_in <= part.to - part.from;
        if !balanced {
            let detail = format!("the counts of {} [{}, {})", part.source, part.from, part.to);
            return Err(StoreError::Unbalanced(detail));
        }
        let place = columns::Placement {
            batch_seq: self.next_batch_seq,
            source_no,
            stamp_us: self.stamp_us,
            // Only files are history.
            as_known: match part.source.is_upload() {
                true => write.header.as_known,
                false => AsKnown::Arrival,
            },
            script_sha256: &write.header.script_sha256,
        };
        if let Some(path) = chunk {
            self.rows.push(Rows::Chunk { path, place, n_rows: part.n_rows });
        } else if rows.num_rows() > 0 {
            self.rows.push(Rows::Sent(columns::feature_rows(rows, place)?));
        }
        if dead.num_rows() > 0 {
            self.dead.push(columns::dead_letter_rows(dead, place)?);
        }
        self.lines.push(Line { batch_seq: self.next_batch_seq, source_no, part, write });
        self.next_batch_seq += 1;
        Ok(())
    }

    /// Writes rows, dead letters and ledger lines.
    pub(super) fn write(&mut self, connection: &Connection) -> Result<(), StoreError> {
        put(connection, std::mem::take(&mut self.rows))?;
        append(connection, "dead_letters", std::mem::take(&mut self.dead))?;
        let committed_at = self.committed_at()?;
        let mut ledger = connection.appender("ingest_ledger").map_err(StoreError::of_statement)?;
        for Line { batch_seq, source_no, part, write } in &self.lines {
            let header = &write.header;
            ledger
                .append_row(params![
                    batch_seq,
                    source_no,
                    part.token.number.cast_signed(),
                    part.from,
                    part.to,
                    part.n_in,
                    part.n_kept,
                    part.n_dead,
                    part.n_filtered,
                    part.n_rows,
                    header.transform,
                    header.script_sha256,
                    header.node,
                    committed_at,
                ])
                .map_err(StoreError::of_statement)?;
        }
        ledger.flush().map_err(StoreError::of_statement)
    }

    /// Moves the watermarks, in the same transaction.
    pub(super) fn move_watermarks(
        &self,
        connection: &Connection,
        before: &Watermarks,
        after: &Watermarks,
    ) -> Result<(), StoreError> {
        move_watermarks(connection, &self.lines, before, after, &self.committed_at()?)
    }

    fn committed_at(&self) -> Result<String, StoreError> {
        chrono::DateTime::from_timestamp_micros(self.stamp_us)
            .map(|t| t.to_rfc3339_opts(chrono::SecondsFormat::Micros, true))
            .ok_or_else(|| StoreError::Unbalanced("the clock is out of range".into()))
    }
}

/// Puts rows into their table, in their order.
fn put(connection: &Connection, all: Vec<Rows<'_>>) -> Result<(), StoreError> {
    let mut sent = Vec::new();
    for rows in all {
        match rows {
            Rows::Sent(batch) => sent.push(batch),
            Rows::Chunk { path, place, n_rows } => {
                append(connection, "features_table", std::mem::take(&mut sent))?;
                chunks::insert(connection, &path, place, n_rows)?;
            }
        }
    }
    append(connection, "features_table", sent)
}

/// One UPDATE a source, which must change exactly the row that the decisions were made on.
fn move_watermarks(
    connection: &Connection,
    lines: &[Line<'_>],
    before: &Watermarks,
    after: &Watermarks,
    at: &str,
) -> Result<(), StoreError> {
    let mut update = connection
        .prepare_cached(
            "UPDATE sources SET next_pos = ?, updated_at = ?::TIMESTAMPTZ
             WHERE source_no = ? AND token = ?::UUID AND next_pos = ?",
        )
        .map_err(StoreError::of_statement)?;
    let sources: HashSet<&SourceName> = lines.iter().map(|line| &line.part.source).collect();
    for source in sources {
        let (Some(old), Some(new)) = (before.get(source), after.get(source)) else {
            return Err(StoreError::Unbalanced(format!(
                "{source} was applied without being known"
            )));
        };
        let changed = update
            .execute(params![
                new.next_pos,
                at,
                new.source_no,
                new.token.id.to_string(),
                old.next_pos
            ])
            .map_err(StoreError::of_statement)?;
        exactly_one(changed, source)?;
    }
    Ok(())
}

/// Appends and flushes: the appender checks its rows only then.
///
/// # Errors
/// [`StoreError::Refused`] when a row cannot be taken; which one is not said.
pub(super) fn append(
    connection: &Connection,
    table: &str,
    batches: Vec<RecordBatch>,
) -> Result<(), StoreError> {
    let Some(first) = batches.first() else { return Ok(()) };
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let batches = if batches.len() > 1 && rows / batches.len() < CONCAT_BELOW_ROWS {
        vec![concat_batches(&first.schema(), &batches)?]
    } else {
        batches
    };
    let mut appender = connection.appender(table).map_err(StoreError::of_statement)?;
    for batch in batches {
        appender.append_record_batch(batch).map_err(StoreError::of_statement)?;
    }
    appender.flush().map_err(StoreError::of_statement)
}
