//! The writer thread: groups of entries into transactions, and what is done when one fails.
//!
//! | what happens | answer |
//! |---|---|
//! | DuckDB refuses data of a group | rolled back; its writes are tried one by one |
//! | DuckDB refuses data of a single write | the rows at fault become dead letters, the rest lands |
//! | a write is refused, but none of its rows is | its sources halt |
//! | a statement fails for another reason, or a COMMIT's outcome is unknown | the file is opened again, the watermarks are believed, the group is decided again; nothing is answered until that succeeds |
//! | the file cannot be opened again for long | the node ends |
//! | the store died over an entry three times | it is put aside, its sources halt |

use super::{
    METER, spans,
    thread::{Job, WriterThreadParts},
    waiting::{Decided, Waiting},
};
use crate::{
    failpoint,
    messages::{
        Applied, AppliedEntry, DurablePart, DurableRows, EntryDuty, OnlineDuty, QueueEntry,
        QueueReply, QueueRequest, Repair, WriteRequest,
    },
    planted,
    protocol::{apply::Decision, quarantine::Handling},
    store::{StoreError, attempts::AttemptNote, newest, writer::Writer},
    supervision::Undelivered,
    telemetry::{self, catalogue as m},
};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

/// Entries that one transaction takes at most.
const GROUP_ENTRIES: usize = 64;
/// A transaction of so many rows is worth its fixed cost, and waits for no more.
const ROWS_WORTH_IT: usize = 10_000;
/// How often the thread looks up from an empty queue.
const IDLE: Duration = Duration::from_millis(500);
/// After trouble the file is opened again after so long, then after twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest of these pauses.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A file that cannot be opened for so long ends the node: whoever starts it again may have made
/// room, or see what is wrong.
const GIVE_UP_AFTER: Duration = Duration::from_secs(120);

pub(super) struct Writing {
    parts: WriterThreadParts,
    writer: Writer,
    note: AttemptNote,
    jobs: Receiver<Job>,
    stopping: Arc<AtomicBool>,
    /// The last batch that is durable, for others.
    durable_to: Arc<AtomicI64>,
    pause: Duration,
    /// When the last transaction ended.
    ended_at: Instant,
}

impl Writing {
    pub(super) fn new(
        parts: WriterThreadParts,
        writer: Writer,
        note: AttemptNote,
        jobs: Receiver<Job>,
        stopping: Arc<AtomicBool>,
        durable_to: Arc<AtomicI64>,
    ) -> Self {
        let ended_at = Instant::now();
        Self { parts, writer, note, jobs, stopping, durable_to, pause: FIRST_PAUSE, ended_at }
    }

    pub(super) fn run(mut self) {
        loop {
            let first = match self.jobs.recv_timeout(IDLE) {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) => {
                    METER.waiting(0, None);
                    metrics::gauge!(m::DUCKDB_FILE).set(self.writer.database().file_bytes() as f64);
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut after = Some(first);
            while let Some(job) = after.take() {
                let step = match job {
                    Job::Stop => {
                        if let Err(error) = self.writer.close() {
                            tracing::warn!(%error, "the database was not closed in order; its log has everything");
                        }
                        return;
                    }
                    Job::Audited(to) => {
                        if let Err(error) = self.writer.note_audit(to) {
                            tracing::warn!(%error, "the audit was not noted; the next one will be");
                        }
                        Ok(None)
                    }
                    Job::Entry(entry) => self.entry(*entry),
                };
                if planted!("answer_before_commit") {
                    std::thread::sleep(failpoint::WINDOW);
                    self.writer.commit_late();
                }
                match step {
                    Ok(next) => after = next,
                    Err(error) => {
                        if !self.stopping.load(Ordering::Relaxed) {
                            // Nothing was answered: all of it is pending, and read again by whoever
                            // opens the file next and believes its watermarks.
                            self.parts.fatal.report("duckdb_writer", error.to_string());
                        }
                        return;
                    }
                }
            }
        }
    }

    /// Handles an entry, with the writes that wait behind it; gives back the job that ended the
    /// group.
    fn entry(&mut self, entry: QueueEntry) -> Result<Option<Job>, StoreError> {
        let QueueEntry { id, reply_to, round, request, duty } = entry;
        METER.waiting(self.jobs.len(), None);
        let reply = match request {
            QueueRequest::Write(write) => {
                return self.write(Waiting { id, reply_to, round, write, duty });
            }
            QueueRequest::Open(open) => {
                let reply = self.safely(|writer| writer.open_source(&open))?;
                reply.map(|reply| QueueReply::Opened { source: open.source.clone(), reply })
            }
            QueueRequest::Adopt { source, at } => {
                let known = self.safely(|writer| writer.adopt(&source, at))?;
                known.map(|known| QueueReply::Adopted { known })
            }
            QueueRequest::Register(replay) => {
                let letters = self.safely(|writer| writer.register_replay(&replay))?;
                letters.map(|letters| QueueReply::Registered { letters })
            }
            QueueRequest::Note(note) => {
                let noted = self.safely(|writer| writer.note_script(&note))?;
                noted.map(QueueReply::Noted)
            }
            QueueRequest::Upload(upload) => {
                let registered = self.safely(|writer| writer.register_upload(&upload))?;
                registered.map(QueueReply::Uploaded)
            }
            QueueRequest::Unreadable(reason) => {
                tracing::error!(reason, "an entry of the queue cannot be read");
                Err(reason)
            }
        };
        let reply = reply.unwrap_or_else(|reason| QueueReply::Refused { reason });
        let (online, held) = (None, duty.held());
        let entry = AppliedEntry { id, reply_to, round, reply, online, quarantine: false, held };
        self.answer(vec![Decided { entry, duty }]);
        Ok(None)
    }

    /// Does something until the store has no trouble of its own with it; why DuckDB refuses it
    /// otherwise.
    fn safely<T>(
        &mut self,
        mut work: impl FnMut(&mut Writer) -> Result<T, StoreError>,
    ) -> Result<Result<T, String>, StoreError> {
        loop {
            match work(&mut self.writer) {
                Ok(value) => {
                    self.pause = FIRST_PAUSE;
                    return Ok(Ok(value));
                }
                Err(error) if error.needs_reopening() => self.recover(&error)?,
                Err(error) => {
                    METER.error("statement");
                    return Ok(Err(error.to_string()));
                }
            }
        }
    }

    /// Opens the file again after trouble, as often as it takes.
    fn recover(&mut self, trouble: &StoreError) -> Result<(), StoreError> {
        METER.error("commit");
        tracing::error!(%trouble, "nothing is answered until the database was opened again");
        let since = Instant::now();
        loop {
            if self.stopping.load(Ordering::Relaxed) {
                return Err(StoreError::Open {
                    file: self.parts.database.file.display().to_string(),
                    reason: format!("stopped while in trouble: {trouble}"),
                });
            }
            std::thread::sleep(self.pause);
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            match self.writer.reopen() {
                Ok(()) => {
                    tracing::warn!("the database was opened again; its watermarks count");
                    return Ok(());
                }
                Err(error) if since.elapsed() < GIVE_UP_AFTER => {
                    tracing::error!(%error, "the database cannot be opened again yet");
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn write(&mut self, first: Waiting) -> Result<Option<Job>, StoreError> {
        match self.note.handling(&first.id) {
            Handling::Quarantined => self.quarantine(first).map(|()| None),
            Handling::Alone => {
                tracing::warn!(
                    entry = first.id,
                    "the store died over this entry; applying it alone"
                );
                METER.received(first.events());
                self.transact(vec![first]).map(|()| None)
            }
            Handling::Grouped => self.group(first),
        }
    }

    /// Keeps an entry aside and halts its sources until an operator has looked at it.
    fn quarantine(&mut self, waiting: Waiting) -> Result<(), StoreError> {
        let reason = format!(
            "the store died again and again over entry {} of the queue; it is kept in the stream \
             `quarantine` of the namespace. `millstream sources adopt SOURCE --at here` tries its \
             records again",
            waiting.id
        );
        METER.error("quarantine");
        tracing::error!(entry = waiting.id, "quarantined; its sources are halted");
        for source in waiting.sources() {
            let halted = self.safely(|writer| writer.halt(&source, &reason))?;
            if let Err(error) = halted {
                tracing::error!(error, %source, "the source could not be halted");
            }
        }
        self.writer.keep_chunks(&waiting.write);
        self.noted(|note| note.forget(&waiting.id));
        let mut decided = waiting.decided(QueueReply::Refused { reason }, None);
        decided.entry.quarantine = true;
        self.answer(vec![decided]);
        Ok(())
    }

    /// Takes the writes that are there, or come within the wait, into one transaction, up to the
    /// group's size. Writes that come while a transaction commits share the next one. The wait begins
    /// with the end of the last transaction: what comes after a pause is written at once, and small
    /// writes in quick succession do not cost a transaction each.
    fn group(&mut self, first: Waiting) -> Result<Option<Job>, StoreError> {
        let wait_until = self.ended_at + self.parts.group_wait;
        let mut rows = first.rows();
        let mut group = vec![first];
        let mut after = None;
        while rows < self.parts.group_rows && group.len() < GROUP_ENTRIES {
            let next = match rows {
                ..ROWS_WORTH_IT => self.jobs.recv_deadline(wait_until).ok(),
                _ => self.jobs.try_recv().ok(),
            };
            let entry = match next {
                Some(Job::Entry(entry)) => *entry,
                Some(other) => {
                    after = Some(other);
                    break;
                }
                None => break,
            };
            match Waiting::of(entry) {
                Ok(waiting) if self.note.handling(&waiting.id) == Handling::Grouped => {
                    rows += waiting.rows();
                    group.push(waiting);
                }
                Ok(Waiting { id, reply_to, round, write, duty }) => {
                    let request = QueueRequest::Write(write);
                    let entry = QueueEntry { id, reply_to, round, request, duty };
                    after = Some(Job::Entry(Box::new(entry)));
                    break;
                }
                Err(other) => {
                    after = Some(Job::Entry(other));
                    break;
                }
            }
        }
        METER.received(group.iter().map(Waiting::events).sum());
        METER.waiting(self.jobs.len(), None);
        self.transact(group)?;
        METER.waiting(self.jobs.len(), None);
        Ok(after)
    }

    /// Applies a group, noted for the case that the store dies over it, and answers it.
    fn transact(&mut self, group: Vec<Waiting>) -> Result<(), StoreError> {
        let work = METER.begin();
        self.noted(|note| note.begin(group.iter().map(|w| w.id.as_str())));
        let batches: Vec<String> =
            group.iter().map(|w| w.write.header.batch_id.to_string()).collect();
        let _span = tracing::error_span!("write", batches = batches.join(" ")).entered();
        let decided = self.apply(group)?;
        tracing::debug!(batch_seq = self.writer.last_batch_seq(), "durable");
        self.noted(AttemptNote::end);
        self.ended_at = Instant::now();
        work.done();
        metrics::gauge!(m::DUCKDB_FILE).set(self.writer.database().file_bytes() as f64);
        self.answer(decided);
        Ok(())
    }

    /// Without the note a death is not counted, which harms nobody: on a full disk it cannot be
    /// written.
    fn noted(&mut self, write: impl FnOnce(&mut AttemptNote) -> std::io::Result<()>) {
        if let Err(error) = write(&mut self.note) {
            tracing::debug!(%error, "the note of what is being applied cannot be written");
        }
    }

    /// See the table of the module.
    fn apply(&mut self, group: Vec<Waiting>) -> Result<Vec<Decided>, StoreError> {
        loop {
            let error = match self.commit(&group) {
                Ok(replies) => {
                    self.pause = FIRST_PAUSE;
                    return Ok(self.decide(group, replies));
                }
                Err(error) => error,
            };
            if error.needs_reopening() {
                self.recover(&error)?;
            } else if group.len() > 1 {
                METER.error("statement");
                tracing::warn!(%error, writes = group.len(), "a group was rolled back; trying its writes one by one");
                let mut decided = Vec::with_capacity(group.len());
                for waiting in group {
                    decided.extend(self.apply(vec![waiting])?);
                }
                return Ok(decided);
            } else {
                METER.error("statement");
                let mut decided = Vec::with_capacity(1);
                for waiting in group {
                    decided.extend(self.isolate(waiting, &error)?);
                }
                return Ok(decided);
            }
        }
    }

    fn commit(&mut self, group: &[Waiting]) -> Result<Vec<QueueReply>, StoreError> {
        let writes: Vec<&WriteRequest> = group.iter().map(|w| &w.write).collect();
        commit(&mut self.writer, &writes)
    }

    /// Applies a write that DuckDB refuses without the events at fault, which become dead letters.
    fn isolate(
        &mut self,
        mut waiting: Waiting,
        error: &StoreError,
    ) -> Result<Vec<Decided>, StoreError> {
        if matches!(error, StoreError::Refused(_))
            && let Err(gone) = self.writer.take_in(&mut waiting.write)
        {
            tracing::warn!(%gone, "a chunk is gone; its write is decided again");
            if gone.needs_reopening() {
                self.recover(&gone)?;
            }
            return self.apply(vec![waiting]);
        }
        let isolated = match error {
            StoreError::Refused(_) => self.safely(|writer| writer.isolate(&waiting.write))?,
            _ => Ok(None),
        };
        let reason = match isolated {
            Ok(Some(isolated)) => {
                let applied = self.safely(|writer| commit(writer, &[&isolated.write]))?;
                match applied {
                    Ok(replies) => {
                        return Ok(vec![self.isolated(waiting, isolated, replies)?]);
                    }
                    Err(reason) => reason,
                }
            }
            Ok(None) => error.to_string(),
            Err(reason) => reason,
        };
        tracing::error!(reason, "DuckDB refuses a write; its sources halt");
        Ok(vec![waiting.decided(QueueReply::Refused { reason }, None)])
    }

    fn isolated(
        &mut self,
        mut waiting: Waiting,
        isolated: crate::store::isolate::Isolated,
        replies: Vec<QueueReply>,
    ) -> Result<Decided, StoreError> {
        let mut repairs: Vec<Repair> = Vec::new();
        for (part, refused) in isolated.write.header.parts.iter().zip(&isolated.refused) {
            let Some(source_no) = self.writer.source_no(&part.source) else { continue };
            tracing::error!(source = %part.source, rows = refused.len(), "DuckDB refused rows; they are dead letters");
            let found = self.safely(|writer| {
                newest::repairs(writer.database().connection(), source_no, refused)
            })?;
            match found {
                Ok(found) => repairs.extend(found),
                Err(error) => tracing::error!(error, "online values of refused rows stay"),
            }
        }
        waiting.write = isolated.write;
        let mut decided = self.decide(vec![waiting], replies);
        let mut only = decided.remove(0);
        if let Some(duty) = &mut only.entry.online {
            duty.repairs = repairs;
        }
        Ok(only)
    }

    /// Answers and online duties of a group that is committed.
    fn decide(&self, group: Vec<Waiting>, replies: Vec<QueueReply>) -> Vec<Decided> {
        let decide = |(waiting, reply): (Waiting, QueueReply)| {
            let duty = self.online_duty(&waiting.write, &reply);
            waiting.decided(reply, Some(duty))
        };
        group.into_iter().zip(replies).map(decide).collect()
    }

    fn online_duty(&self, write: &WriteRequest, reply: &QueueReply) -> OnlineDuty {
        let verdicts = match reply {
            QueueReply::Written { verdicts } => verdicts.as_slice(),
            _ => &[],
        };
        let parts = verdicts
            .iter()
            .zip(write.header.parts.iter().zip(&write.rows))
            // A duplicate too: it may be the write whose COMMIT nobody saw succeed.
            .filter(|(verdict, (part, _))| verdict.decision.is_ok() && part.n_rows > 0)
            .filter_map(|(verdict, (part, rows))| {
                let source_no = self.writer.source_no(&verdict.source)?;
                let (source, token) = (verdict.source.clone(), verdict.token);
                let rows = match part.chunk {
                    Some(_) => DurableRows::Stored { from: part.from, to: part.to },
                    None => DurableRows::Sent(rows.clone()),
                };
                Some(DurablePart { source, source_no, token, rows })
            })
            .collect();
        let generation = write.header.generation.clone();
        OnlineDuty { generation, again: write.again, parts, repairs: Vec::new() }
    }

    fn answer(&self, decided: Vec<Decided>) {
        let (mut entries, mut duties) = (Vec::new(), Vec::new());
        for Decided { mut entry, duty } in decided {
            let Some((duty, reply)) = duty.answer_directly(entry.reply) else { continue };
            entry.reply = reply;
            entries.push(entry);
            duties.push(duty);
        }
        let durable_to = self.writer.last_batch_seq();
        self.durable_to.store(durable_to, Ordering::Release);
        if entries.is_empty() {
            return;
        }
        let applied = Applied { entries, durable_to };
        match self.parts.server.deliver(applied) {
            Ok(()) => duties.into_iter().for_each(EntryDuty::done),
            // The serving side is between two lives: its next instance reads the entries again and
            // answers them as duplicates.
            Err(Undelivered(_)) => drop(duties),
        }
    }
}

fn commit(writer: &mut Writer, writes: &[&WriteRequest]) -> Result<Vec<QueueReply>, StoreError> {
    let started = Instant::now();
    let committed = writer.apply(writes);
    spans::tell(writes, started, &committed);
    let committed = committed?;
    metrics::histogram!(m::DUCKDB_COMMIT).record(started.elapsed());
    telemetry::committed(committed.events, committed.rows, committed.dead_letters);
    METER.sent(usize::try_from(committed.events).unwrap_or(usize::MAX));
    let replies = committed.verdicts.into_iter().zip(writes).map(|(verdicts, write)| {
        for (verdict, dead) in verdicts.iter().zip(&write.dead) {
            telemetry::decided(verdict.decision);
            if verdict.decision == Decision::Apply {
                telemetry::dead_letters(dead);
            }
        }
        QueueReply::Written { verdicts }
    });
    Ok(replies.collect())
}
