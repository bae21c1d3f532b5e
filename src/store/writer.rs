//! The writer: the only place that changes DuckDB.
//!
//! Rows, dead letters, ledger lines and watermarks of a group of writes go into one transaction.
//! That transaction is what makes Millstream exactly-once; everything before it may happen any
//! number of times.
//!
//! A group is decided on a copy of the watermarks, which replaces the original only after COMMIT.

use super::{StoreError, columns, database::Database};
use crate::{
    messages::{PartHeader, PartVerdict, RegisterReplay, WriteRequest},
    protocol::{
        apply::{Decision, SourceState, Watermarks},
        source::{OpenReply, OpenRequest, SourceAttributes, SourceName, Token, halt_reason},
    },
};
use arrow::{array::RecordBatch, compute::concat_batches};
use duckdb::{Connection, params};
use std::collections::{HashMap, HashSet};

/// Below so many rows a part is copied together with its neighbours before it is appended: DuckDB
/// takes vectors of 2,048 rows, and a chunk a part would leave most of them empty.
const CONCAT_BELOW_ROWS: usize = 2_048;

/// What one committed group did.
#[derive(Debug, Default)]
pub struct Committed {
    /// One list of verdicts a write, in order.
    pub verdicts: Vec<Vec<PartVerdict>>,
    /// Events whose effect the group added.
    pub events: u64,
    /// Feature rows that the group added.
    pub rows: u64,
    /// Dead letters that the group added.
    pub dead_letters: u64,
}

/// Owns the database and the watermarks.
#[derive(Debug)]
pub struct Writer {
    database: Database,
    marks: Watermarks,
    attributes: HashMap<SourceName, SourceAttributes>,
    next_batch_seq: i64,
    last_stamp_us: i64,
}

impl Writer {
    /// Reads the watermarks and notes the opening in `service_meta`.
    ///
    /// # Errors
    /// [`StoreError`]: the file is not readable, or its tables are not what they should be.
    pub fn new(database: Database) -> Result<Self, StoreError> {
        let mut writer = Self {
            database,
            marks: Watermarks::default(),
            attributes: HashMap::new(),
            next_batch_seq: 1,
            last_stamp_us: 0,
        };
        writer.load()?;
        writer.note_opening()?;
        Ok(writer)
    }

    /// The database, for further connections and its size.
    #[must_use]
    pub fn database(&self) -> &Database {
        &self.database
    }

    fn load(&mut self) -> Result<(), StoreError> {
        let connection = self.database.connection();
        let mut marks = Watermarks::default();
        let mut attributes = HashMap::new();
        let mut statement = connection
            .prepare(
                "SELECT source_no, source, token::VARCHAR, token_no, next_pos, cluster_id, topic_id
                 FROM sources
                 QUALIFY source_no = max(source_no) OVER (PARTITION BY source)",
            )
            .map_err(StoreError::Statement)?;
        let mut rows = statement.query([]).map_err(StoreError::Statement)?;
        while let Some(row) = rows.next().map_err(StoreError::Statement)? {
            let read = || -> duckdb::Result<(SourceName, SourceState, SourceAttributes)> {
                let id: String = row.get(2)?;
                let id = uuid::Uuid::parse_str(&id).map_err(|e| {
                    duckdb::Error::FromSqlConversionFailure(
                        2,
                        duckdb::types::Type::Text,
                        Box::new(e),
                    )
                })?;
                let number: i32 = row.get(3)?;
                let token = Token { id, number: number.cast_unsigned() };
                let state = SourceState { source_no: row.get(0)?, token, next_pos: row.get(4)? };
                let attributes =
                    SourceAttributes { cluster_id: row.get(5)?, topic_id: row.get(6)? };
                let name: String = row.get(1)?;
                Ok((SourceName(name.into()), state, attributes))
            };
            let (name, state, its) = read().map_err(StoreError::Statement)?;
            marks.insert(name.clone(), state);
            attributes.insert(name, its);
        }
        let (last_seq, last_stamp): (i64, i64) = connection
            .query_row(
                "SELECT coalesce(max(batch_seq), 0), coalesce(epoch_us(max(committed_at)), 0)
                 FROM ingest_ledger",
                [],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .map_err(StoreError::Statement)?;
        self.marks = marks;
        self.attributes = attributes;
        self.next_batch_seq = last_seq + 1;
        self.last_stamp_us = self.last_stamp_us.max(last_stamp);
        Ok(())
    }

    fn note_opening(&self) -> Result<(), StoreError> {
        let sql = "INSERT INTO service_meta
                   SELECT coalesce(max(service_epoch), 0) + 1, ?, ?, now(), false,
                          coalesce(max(audited_to_batch_seq), 0) FROM service_meta";
        let pid = std::process::id().cast_signed();
        self.database
            .connection()
            .execute(sql, params![crate::config::hostname(), pid])
            .map(|_| ())
            .map_err(StoreError::Statement)
    }

    /// Notes that the store was closed in order, and writes the log back into the file.
    ///
    /// # Errors
    /// [`StoreError`]; the data is durable all the same.
    pub fn close(self) -> Result<(), StoreError> {
        self.database
            .connection()
            .execute_batch(
                "UPDATE service_meta SET clean_shutdown = true
                 WHERE service_epoch = (SELECT max(service_epoch) FROM service_meta);
                 CHECKPOINT;",
            )
            .map_err(StoreError::Statement)
    }

    /// Notes up to which batch the books were audited and found clean.
    ///
    /// # Errors
    /// [`StoreError::Statement`].
    pub fn note_audit(&self, to_batch_seq: i64) -> Result<(), StoreError> {
        let sql = "UPDATE service_meta SET audited_to_batch_seq = ?
                   WHERE service_epoch = (SELECT max(service_epoch) FROM service_meta)";
        let connection = self.database.connection();
        connection.execute(sql, params![to_batch_seq]).map(|_| ()).map_err(StoreError::Statement)
    }

    /// Opens a source: a fresh token, the position to read from.
    ///
    /// | the store knows | answer |
    /// |---|---|
    /// | nothing of the name | a new source at `start` |
    /// | other attributes, and the broker is ephemeral | a new source at `start` under a new number |
    /// | something that [`halt_reason`] refuses | halted |
    /// | else | the next token, `next_pos` |
    ///
    /// # Errors
    /// [`StoreError::Statement`] with nothing changed; [`StoreError::UnknownCommit`].
    pub fn open_source(&mut self, open: &OpenRequest) -> Result<OpenReply, StoreError> {
        let name = &open.source;
        let mut attributes = open.attributes.clone();
        let (token, source_no, next_pos) = match self.marks.get(name) {
            Some(state) if !(open.ephemeral && self.attributes.get(name) != Some(&attributes)) => {
                let known = self.attributes.get(name).cloned().unwrap_or_default();
                if let Some(reason) = halt_reason(&known, state.next_pos, open) {
                    return Ok(OpenReply::Halted { reason });
                }
                attributes.cluster_id = attributes.cluster_id.or(known.cluster_id);
                attributes.topic_id = attributes.topic_id.or(known.topic_id);
                let token = Token::after(state.token.number);
                (token, Some(state.source_no), state.next_pos)
            }
            known => (Token::after(known.map_or(0, |s| s.token.number)), None, open.start),
        };
        let source_no = self.in_transaction(|connection| {
            record_open(connection, open, &attributes, token, source_no, next_pos)
        })?;
        crate::crash_point!("a_opened");
        self.marks.insert(name.clone(), SourceState { source_no, token, next_pos });
        self.attributes.insert(name.clone(), attributes);
        Ok(OpenReply::Opened { token, source_no, next_pos, promised: None })
    }

    /// Decides on a group of writes and commits the effect of those that apply, all or nothing.
    ///
    /// # Errors
    /// [`StoreError::Statement`]: rolled back, nothing happened. [`StoreError::UnknownCommit`]:
    /// only opening the file again can tell. [`StoreError::Unbalanced`]: rolled back; a rule was broken.
    pub fn apply(&mut self, writes: &[&WriteRequest]) -> Result<Committed, StoreError> {
        let mut trial = self.marks.clone();
        let mut group = Group::new(self.stamp(), self.next_batch_seq);
        let mut committed = Committed::default();
        for write in writes {
            let mut verdicts = Vec::with_capacity(write.header.parts.len());
            for (i, part) in write.header.parts.iter().enumerate() {
                let decision = trial.offer(&part.source, part.token, part.from, part.to);
                let state = trial.get(&part.source);
                if let (Decision::Apply, Some(state)) = (decision, state) {
                    group.add(write, i, state.source_no)?;
                }
                verdicts.push(PartVerdict {
                    source: part.source.clone(),
                    token: part.token,
                    decision,
                    next_pos: state.map_or(0, |s| s.next_pos),
                });
            }
            committed.verdicts.push(verdicts);
        }
        if group.lines.is_empty() {
            return Ok(committed);
        }
        for part in group.lines.iter().map(|line| line.part) {
            committed.events += part.n_in.cast_unsigned();
            committed.rows += part.n_rows.cast_unsigned();
            committed.dead_letters += part.n_dead.cast_unsigned();
        }
        let next_batch_seq = group.next_batch_seq;
        let marks = &self.marks;
        self.in_transaction(|connection| {
            crate::crash_point!("g_begun");
            group.write(connection, marks, &trial)?;
            crate::crash_point!("g_in_transaction");
            Ok(())
        })?;
        crate::crash_point!("g_committed");
        self.marks = trial;
        self.next_batch_seq = next_batch_seq;
        Ok(committed)
    }

    /// Fixes what a replay contains; gives the number of its letters.
    ///
    /// # Errors
    /// [`StoreError::Statement`], [`StoreError::Columns`] with nothing changed;
    /// [`StoreError::UnknownCommit`].
    pub fn register_replay(&mut self, replay: &RegisterReplay) -> Result<i64, StoreError> {
        let stamp_us = self.stamp();
        self.in_transaction(|connection| super::replays::register(connection, replay, stamp_us))
    }

    /// Each transaction has one stamp, and stamps strictly increase.
    fn stamp(&mut self) -> i64 {
        self.last_stamp_us = chrono::Utc::now().timestamp_micros().max(self.last_stamp_us + 1);
        self.last_stamp_us
    }

    /// Runs `work` between BEGIN and COMMIT. Any error of `work` rolls back.
    fn in_transaction<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let connection = self.database.connection();
        connection.execute_batch("BEGIN TRANSACTION").map_err(StoreError::Statement)?;
        match work(connection) {
            Ok(value) => {
                connection.execute_batch("COMMIT").map_err(StoreError::UnknownCommit)?;
                Ok(value)
            }
            Err(error) => match connection.execute_batch("ROLLBACK") {
                Ok(()) => Err(error),
                // What cannot be rolled back is as unknown as a COMMIT that failed.
                Err(rollback) => Err(StoreError::UnknownCommit(rollback)),
            },
        }
    }
}

/// Writes the row of a source that is opened and gives its number.
fn record_open(
    connection: &Connection,
    open: &OpenRequest,
    attributes: &SourceAttributes,
    token: Token,
    source_no: Option<i32>,
    next_pos: i64,
) -> Result<i32, StoreError> {
    let (id, number) = (token.id.to_string(), token.number.cast_signed());
    let SourceAttributes { cluster_id, topic_id } = attributes;
    if let Some(source_no) = source_no {
        let changed = connection
            .execute(
                "UPDATE sources SET token = ?, token_no = ?, owner = ?, cluster_id = ?,
                        topic_id = ?, updated_at = now() WHERE source_no = ?",
                params![id, number, open.owner, cluster_id, topic_id, source_no],
            )
            .map_err(StoreError::Statement)?;
        return exactly_one(changed, &open.source).map(|()| source_no);
    }
    connection
        .query_row(
            "INSERT INTO sources
             SELECT nextval('source_numbers'), ?, ?, ?, ?, ?, ?, ?, ?, now() RETURNING source_no",
            params![
                open.source.0.as_ref(),
                id,
                number,
                open.owner,
                next_pos,
                next_pos,
                cluster_id,
                topic_id
            ],
            |row| row.get(0),
        )
        .map_err(StoreError::Statement)
}

fn exactly_one(changed: usize, source: &SourceName) -> Result<(), StoreError> {
    if changed == 1 {
        return Ok(());
    }
    Err(StoreError::Unbalanced(format!("{changed} rows of `sources` instead of one for {source}")))
}

/// A ledger line in the making.
struct Line<'a> {
    batch_seq: i64,
    source_no: i32,
    part: &'a PartHeader,
    write: &'a WriteRequest,
}

/// What the transaction of a group will write.
struct Group<'a> {
    stamp_us: i64,
    next_batch_seq: i64,
    rows: Vec<RecordBatch>,
    dead: Vec<RecordBatch>,
    lines: Vec<Line<'a>>,
}

impl<'a> Group<'a> {
    fn new(stamp_us: i64, next_batch_seq: i64) -> Self {
        Self { stamp_us, next_batch_seq, rows: Vec::new(), dead: Vec::new(), lines: Vec::new() }
    }

    /// Takes part `i` of a write in; its counts must add up.
    fn add(&mut self, write: &'a WriteRequest, i: usize, source_no: i32) -> Result<(), StoreError> {
        let part = &write.header.parts[i];
        let (rows, dead) = (&write.rows[i], &write.dead[i]);
        let balanced = part.n_in == part.n_kept + part.n_dead + part.n_filtered
            && part.n_rows == rows.num_rows() as i64
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
            script_sha256: &write.header.script_sha256,
        };
        if rows.num_rows() > 0 {
            self.rows.push(columns::feature_rows(rows, place)?);
        }
        if dead.num_rows() > 0 {
            self.dead.push(columns::dead_letter_rows(dead, place)?);
        }
        self.lines.push(Line { batch_seq: self.next_batch_seq, source_no, part, write });
        self.next_batch_seq += 1;
        Ok(())
    }

    fn write(
        self,
        connection: &Connection,
        before: &Watermarks,
        after: &Watermarks,
    ) -> Result<(), StoreError> {
        append(connection, "features_table", self.rows)?;
        append(connection, "dead_letters", self.dead)?;
        let committed_at = chrono::DateTime::from_timestamp_micros(self.stamp_us)
            .map(|t| t.to_rfc3339_opts(chrono::SecondsFormat::Micros, true))
            .ok_or_else(|| StoreError::Unbalanced("the clock is out of range".into()))?;
        let mut ledger = connection.appender("ingest_ledger").map_err(StoreError::Statement)?;
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
                .map_err(StoreError::Statement)?;
        }
        ledger.flush().map_err(StoreError::Statement)?;
        drop(ledger);
        move_watermarks(connection, &self.lines, before, after, &committed_at)
    }
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
        .map_err(StoreError::Statement)?;
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
            .map_err(StoreError::Statement)?;
        exactly_one(changed, source)?;
    }
    Ok(())
}

/// Appends and flushes: the appender checks its rows only then.
fn append(
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
    let mut appender = connection.appender(table).map_err(StoreError::Statement)?;
    for batch in batches {
        appender.append_record_batch(batch).map_err(StoreError::Statement)?;
    }
    appender.flush().map_err(StoreError::Statement)
}

#[cfg(test)]
mod tests;
