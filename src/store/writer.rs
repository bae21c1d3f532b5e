//! The writer: the only place that changes DuckDB.
//!
//! Rows, dead letters, ledger lines and watermarks of a group of writes go into one transaction.
//! That transaction is what makes Millstream exactly-once; everything before it may happen any
//! number of times.
//!
//! A group is decided on a copy of its sources' watermarks, which counts only after COMMIT.

use super::{
    StoreError, chunks,
    database::Database,
    group::Group,
    isolate::{Isolated, isolate},
    sources::{self, SourceInfo, Sources},
};
use crate::{
    failpoint,
    messages::{
        NoteScript, PartHeader, PartVerdict, RegisterReplay, RegisterUpload, ScriptNoted,
        UploadRegistered, WriteRequest,
    },
    planted,
    protocol::{
        apply::{Decision, Watermarks},
        source::{AdoptAt, OpenReply, OpenRequest, Position, SourceName},
    },
};
use duckdb::{Connection, params};
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

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
    sources: Sources,
    next_batch_seq: i64,
    last_stamp_us: i64,
}

impl Writer {
    /// Reads the watermarks and notes the opening in `service_meta`.
    ///
    /// # Errors
    /// [`StoreError`]: the file is not readable, or its tables are not what they should be.
    pub fn new(database: Database) -> Result<Self, StoreError> {
        let mut writer =
            Self { database, sources: Sources::default(), next_batch_seq: 1, last_stamp_us: 0 };
        writer.load()?;
        writer.note_opening()?;
        Ok(writer)
    }

    /// The database, for further connections and its size.
    #[must_use]
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// The small integer of a source.
    #[must_use]
    pub fn source_no(&self, source: &SourceName) -> Option<i32> {
        self.sources.marks.get(source).map(|state| state.source_no)
    }

    /// The last batch whose effect is durable; 0 when there is none.
    #[must_use]
    pub fn last_batch_seq(&self) -> i64 {
        self.next_batch_seq - 1
    }

    /// Opens the file again and believes its watermarks.
    ///
    /// # Errors
    /// [`StoreError`]: this can be tried again; until it succeeds the writer must not be used.
    pub fn reopen(&mut self) -> Result<(), StoreError> {
        self.database.reopen()?;
        self.load()
    }

    fn load(&mut self) -> Result<(), StoreError> {
        let connection = self.database.connection();
        let sources = Sources::load(connection)?;
        let (last_seq, last_stamp): (i64, i64) = connection
            .query_row(
                "SELECT coalesce(max(batch_seq), 0), coalesce(epoch_us(max(committed_at)), 0)
                 FROM ingest_ledger",
                [],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .map_err(StoreError::of_statement)?;
        self.sources = sources;
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
            .map_err(StoreError::of_statement)
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
            .map_err(StoreError::of_statement)
    }

    /// Notes up to which batch the books were audited and found clean.
    ///
    /// # Errors
    /// [`StoreError::Statement`].
    pub fn note_audit(&self, to_batch_seq: i64) -> Result<(), StoreError> {
        let sql = "UPDATE service_meta SET audited_to_batch_seq = ?
                   WHERE service_epoch = (SELECT max(service_epoch) FROM service_meta)";
        let connection = self.database.connection();
        connection.execute(sql, params![to_batch_seq]).map(|_| ()).map_err(StoreError::of_statement)
    }

    /// The database's own name.
    ///
    /// # Errors
    /// [`StoreError::Statement`].
    pub fn database_id(&self) -> Result<String, StoreError> {
        let sql = "SELECT database_id::VARCHAR FROM store_identity";
        let connection = self.database.connection();
        connection.query_row(sql, [], |row| row.get(0)).map_err(StoreError::of_statement)
    }

    /// Opens a source: a fresh token, the position to read from. The rule is [`Sources::decide`].
    ///
    /// # Errors
    /// [`StoreError::Statement`] with nothing changed; [`StoreError::UnknownCommit`].
    pub fn open_source(&mut self, open: &OpenRequest) -> Result<OpenReply, StoreError> {
        let opening = match self.sources.decide(open) {
            Ok(opening) => opening,
            Err(answer) => return Ok(answer),
        };
        let source_no = self.in_transaction(|connection| {
            sources::record_open(connection, &open.source, &open.owner, &opening)
        })?;
        crate::crash_point!("a_opened");
        let (token, next_pos) = (opening.token, opening.next_pos);
        self.sources.opened(&open.source, opening, source_no);
        Ok(OpenReply::Opened { token, source_no, next_pos, promised: None })
    }

    /// Notes an operator's decision on a source, which its next open carries out. `false` when there
    /// is no such source.
    ///
    /// # Errors
    /// [`StoreError::Statement`] with nothing changed; [`StoreError::UnknownCommit`].
    pub fn adopt(&mut self, source: &SourceName, at: AdoptAt) -> Result<bool, StoreError> {
        self.note(source, |info| info.adopt = Some(at))
    }

    /// Halts a source until an operator adopts it.
    ///
    /// # Errors
    /// [`StoreError::Statement`] with nothing changed; [`StoreError::UnknownCommit`].
    pub fn halt(&mut self, source: &SourceName, reason: &str) -> Result<bool, StoreError> {
        self.note(source, |info| info.halted = Some(reason.to_owned()))
    }

    fn note(
        &mut self,
        source: &SourceName,
        change: impl FnOnce(&mut SourceInfo),
    ) -> Result<bool, StoreError> {
        let Some(source_no) = self.source_no(source) else { return Ok(false) };
        let mut info = self.sources.info.get(source).cloned().unwrap_or_default();
        change(&mut info);
        self.in_transaction(|connection| {
            sources::record_info(connection, source, source_no, &info)
        })?;
        self.sources.info.insert(source.clone(), info);
        Ok(true)
    }

    /// Decides on a group of writes and commits the effect of those that apply, all or nothing. A part
    /// whose chunk cannot be read is a gap.
    ///
    /// # Errors
    /// [`StoreError::Refused`]: rolled back, nothing happened; some of the data can never be stored.
    /// [`StoreError::Statement`]: rolled back; the file must be opened again.
    /// [`StoreError::UnknownCommit`]: only opening the file again can tell.
    /// [`StoreError::Unbalanced`]: rolled back; a rule was broken.
    pub fn apply(&mut self, writes: &[&WriteRequest]) -> Result<Committed, StoreError> {
        let mut unreadable = HashSet::new();
        loop {
            let error = match self.try_apply(writes, &unreadable) {
                Ok(committed) => return Ok(committed),
                Err(error) => error,
            };
            // A chunk that was taken away, or that DuckDB cannot read, while it was being read: it is
            // known now, and the group is decided again.
            let found = match &error {
                StoreError::Refused(_) | StoreError::Statement(_) => self.unreadable(writes),
                _ => return Err(error),
            };
            let before = unreadable.len();
            unreadable.extend(found);
            if unreadable.len() == before {
                return Err(error);
            }
        }
    }

    fn try_apply(
        &mut self,
        writes: &[&WriteRequest],
        unreadable: &HashSet<String>,
    ) -> Result<Committed, StoreError> {
        let parts = writes.iter().flat_map(|write| &write.header.parts);
        let mut trial = self.sources.marks.of(parts.map(|part| &part.source));
        let mut group = Group::new(self.stamp(), self.next_batch_seq);
        let mut committed = Committed::default();
        for write in writes {
            let mut verdicts = Vec::with_capacity(write.header.parts.len());
            for (i, part) in write.header.parts.iter().enumerate() {
                let (decision, chunk) = self.decide(&mut trial, part, unreadable);
                let state = trial.get(&part.source);
                if let (Decision::Apply, Some(state)) = (decision, state) {
                    group.add(write, i, state.source_no, chunk)?;
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
        let marks = &self.sources.marks;
        let moved = group.lines.first().map(|line| line.part.source.clone());
        self.in_transaction(|connection| {
            crate::crash_point!("g_begun");
            group.write(connection)?;
            if !planted!("watermark_apart") {
                group.move_watermarks(connection, marks, &trial)?;
            }
            crate::crash_point!("g_in_transaction");
            Ok(())
        })?;
        crate::crash_point!("g_committed");
        if planted!("watermark_apart") {
            std::thread::sleep(failpoint::WINDOW);
            self.in_transaction(|connection| group.move_watermarks(connection, marks, &trial))?;
        }
        if let Some(source) = moved {
            self.check_moved(&source, &trial)?;
        }
        self.sources.marks.take(trial);
        self.next_batch_seq = next_batch_seq;
        Ok(committed)
    }

    /// Decides on a part and moves its watermark in `trial`. Its chunk is looked at only when it
    /// would apply, and before anything moves: what comes behind it is then a gap as well.
    fn decide(
        &self,
        trial: &mut Watermarks,
        part: &PartHeader,
        unreadable: &HashSet<String>,
    ) -> (Decision, Option<PathBuf>) {
        let (source, token, from, to) = (&part.source, part.token, part.from, part.to);
        let mut file = None;
        if let Some(chunk) = &part.chunk
            && trial.decide(source, token, from, to) == Decision::Apply
        {
            let found = if unreadable.contains(&chunk.name) {
                Err("DuckDB cannot read it".to_owned())
            } else {
                chunks::find(self.chunks(), chunk)
            };
            match found {
                Ok(path) => file = Some(path),
                Err(reason) => {
                    let name = &chunk.name;
                    tracing::warn!(%source, from, to, name, reason, "a chunk is not used; its source is read again");
                    return (Decision::Gap, None);
                }
            }
        }
        (trial.offer(source, token, from, to), file)
    }

    fn chunks(&self) -> Option<&Path> {
        self.database.options().chunks.as_deref()
    }

    /// The chunks of a group that was rolled back which are gone, or which DuckDB cannot read.
    fn unreadable(&self, writes: &[&WriteRequest]) -> Vec<String> {
        let cannot_be_read = |path: &Path| {
            matches!(
                chunks::load(self.database.connection(), path),
                Err(StoreError::Refused(_) | StoreError::Columns(_))
            )
        };
        let parts = writes.iter().flat_map(|write| &write.header.parts);
        parts
            .filter_map(|part| part.chunk.as_ref())
            .filter(|chunk| match chunks::find(self.chunks(), chunk) {
                Ok(path) => cannot_be_read(&path),
                Err(_) => true,
            })
            .map(|chunk| chunk.name.clone())
            .collect()
    }

    /// Takes the rows of a write's chunks into the write itself, for whoever has to look at them.
    ///
    /// # Errors
    /// [`StoreError`]: a chunk cannot be read now; the write is to be decided again.
    pub fn take_in(&self, write: &mut WriteRequest) -> Result<(), StoreError> {
        for (part, rows) in write.header.parts.iter_mut().zip(&mut write.rows) {
            let Some(chunk) = &part.chunk else { continue };
            let path = chunks::find(self.chunks(), chunk).map_err(StoreError::Unbalanced)?;
            *rows = chunks::load(self.database.connection(), &path)?;
            part.chunk = None;
        }
        Ok(())
    }

    /// Keeps the chunks of a write that is put aside, so that its cause can be found.
    pub fn keep_chunks(&self, write: &WriteRequest) {
        let Some(folder) = self.chunks() else { return };
        for chunk in write.header.parts.iter().filter_map(|part| part.chunk.as_ref()) {
            let kept = folder.join(format!("quarantined-{}", chunk.name));
            let linked = chunks::find(Some(folder), chunk)
                .and_then(|path| std::fs::hard_link(path, &kept).map_err(|e| e.to_string()));
            if let Err(reason) = linked {
                tracing::warn!(
                    reason,
                    name = chunk.name,
                    "a quarantined write's chunk is not kept"
                );
            }
        }
    }

    /// A COMMIT of a transaction that was aborted can report success: the watermark tells.
    fn check_moved(&self, source: &SourceName, after: &Watermarks) -> Result<(), StoreError> {
        let Some(expected) = after.get(source) else { return Ok(()) };
        let mut statement = self
            .database
            .connection()
            .prepare_cached("SELECT next_pos FROM sources WHERE source_no = ?")
            .map_err(StoreError::UnknownCommit)?;
        let found: Position = statement
            .query_row(params![expected.source_no], |row| row.get(0))
            .map_err(StoreError::UnknownCommit)?;
        if found == expected.next_pos {
            return Ok(());
        }
        let text = format!("{source} is at {found} after a COMMIT to {}", expected.next_pos);
        Err(StoreError::UnknownCommit(duckdb::Error::ToSqlConversionFailure(text.into())))
    }

    /// Finds the rows of a write that DuckDB refuses, see [`isolate`]. It must have its rows, see
    /// [`Writer::take_in`].
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn isolate(&self, write: &WriteRequest) -> Result<Option<Isolated>, StoreError> {
        isolate(self.database.connection(), write)
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

    /// Knows an upload from now on, see [`super::uploads::register`].
    ///
    /// # Errors
    /// [`StoreError::Refused`], [`StoreError::Statement`] with nothing changed;
    /// [`StoreError::UnknownCommit`].
    pub fn register_upload(
        &mut self,
        upload: &RegisterUpload,
    ) -> Result<UploadRegistered, StoreError> {
        let stamp_us = self.stamp();
        let registered = self
            .in_transaction(|connection| super::uploads::register(connection, upload, stamp_us))?;
        crate::crash_point!("u_registered");
        Ok(registered)
    }

    /// Appends an event to the history of a stream's script.
    ///
    /// # Errors
    /// [`StoreError::Statement`] with nothing changed; [`StoreError::UnknownCommit`].
    pub fn note_script(&mut self, note: &NoteScript) -> Result<ScriptNoted, StoreError> {
        let stamp_us = self.stamp();
        self.in_transaction(|connection| super::scripts::note(connection, note, stamp_us))
    }

    /// Each transaction has one stamp, and stamps strictly increase.
    fn stamp(&mut self) -> i64 {
        self.last_stamp_us = chrono::Utc::now().timestamp_micros().max(self.last_stamp_us + 1);
        self.last_stamp_us
    }

    /// The COMMIT that the planted defect `answer_before_commit` owes, if it owes one.
    pub fn commit_late(&self) {
        // Without a transaction there is nothing to commit; and whoever asked was answered already.
        let _ = self.database.connection().execute_batch("COMMIT");
    }

    /// Runs `work` between BEGIN and COMMIT. Any error of `work` rolls back.
    fn in_transaction<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let connection = self.database.connection();
        if planted!("answer_before_commit") {
            self.commit_late();
        }
        connection.execute_batch("BEGIN TRANSACTION").map_err(StoreError::of_statement)?;
        match work(connection) {
            Ok(value) if planted!("answer_before_commit") => Ok(value),
            Ok(value) => {
                fail::fail_point!("commit_fails", |_| {
                    // Nothing happened, and nobody can know.
                    let _ = connection.execute_batch("ROLLBACK");
                    Err(unknown())
                });
                connection.execute_batch("COMMIT").map_err(StoreError::UnknownCommit)?;
                fail::fail_point!("commit_succeeds_unseen", |_| Err(unknown()));
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

/// What an armed failpoint says instead of DuckDB.
#[cfg(feature = "failpoints")]
fn unknown() -> StoreError {
    StoreError::UnknownCommit(duckdb::Error::ToSqlConversionFailure("a failpoint".into()))
}

#[cfg(test)]
mod tests;
