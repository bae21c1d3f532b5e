//! The threads that touch DuckDB: one writes, the others read.

use super::METER;
use crate::{
    actors::RedisQueueServer,
    messages::{Applied, EntryDuty, QueueEntry, QueueReply, QueueRequest, WriteRequest},
    store::{
        StoreError,
        audit::{Audit, NewestValue, audit, check, newest_values},
        database::{Database, DatabaseOptions},
        reader::{self, ReadError},
        writer::Writer,
    },
    supervision::{FatalSender, Link, Undelivered},
    telemetry::{self, catalogue as m},
};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use duckdb::Connection;
use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// Entries that one transaction takes at most.
const GROUP_ENTRIES: usize = 64;
/// Reading threads: a long audit must not hold up a short question.
const READERS: usize = 2;
/// How long one query of a client may take.
const QUERY_DEADLINE: Duration = Duration::from_secs(20);
/// How often the thread looks up from an empty queue.
const IDLE: Duration = Duration::from_millis(500);

/// The books, and the newest value of every feature with the name of its source.
pub type Audited = (Audit, Vec<(String, NewestValue)>);

/// Something to read.
#[derive(Debug)]
pub enum ReadJob {
    /// One SELECT.
    Query {
        /// Its text.
        sql: String,
        /// The Arrow IPC stream.
        done: oneshot::Sender<Result<Vec<u8>, ReadError>>,
    },
    /// The audit and what the online store must hold.
    Verify {
        /// All batches, not only those since the last clean audit.
        full: bool,
        /// The books, and the newest value of every feature with its source.
        done: oneshot::Sender<Result<Audited, StoreError>>,
    },
}

/// What the writer thread needs.
#[derive(Debug)]
pub struct WriterThreadParts {
    /// The file.
    pub database: DatabaseOptions,
    /// Rows after which a group is committed.
    pub group_rows: usize,
    /// How long a group waits for further writes.
    pub group_wait: Duration,
    /// Where answers go.
    pub server: Link<RedisQueueServer>,
    /// Where to say that the store cannot go on.
    pub fatal: FatalSender,
}

enum Job {
    Entry(Box<QueueEntry>),
    Audited(i64),
    Stop,
}

/// The running threads.
#[derive(Debug)]
pub struct WriterThread {
    jobs: Sender<Job>,
    reads: Sender<ReadJob>,
    writing: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl WriterThread {
    /// Opens the database, audits it and starts the threads.
    ///
    /// # Errors
    /// [`StoreError`]: another store owns the file, it cannot be opened, or its books are broken.
    pub fn start(parts: WriterThreadParts) -> Result<Self, StoreError> {
        let file = parts.database.file.clone();
        let writer = Writer::new(Database::open(parts.database.clone())?)?;
        let reading = writer.database().reader()?;
        let (checks, last_batch_seq) = check(&reading, audited_to(&reading)?)?;
        if let Some(broken) = checks.iter().find(|c| !c.ok) {
            return Err(StoreError::Unbalanced(format!("{}: {}", broken.id, broken.detail)));
        }
        writer.note_audit(last_batch_seq)?;
        tracing::info!(file = %file.display(), batches = last_batch_seq, "database opened; its books balance");

        let (jobs, received) = crossbeam_channel::unbounded();
        let (reads, to_read) = crossbeam_channel::unbounded();
        let open_error = |e: std::io::Error| StoreError::Open {
            file: file.display().to_string(),
            reason: e.to_string(),
        };
        let mut reader = Some(reading);
        for number in 0..READERS {
            let connection = match reader.take() {
                Some(connection) => connection,
                None => writer.database().reader()?,
            };
            let (to_read, audited) = (to_read.clone(), jobs.clone());
            // They end when the last sender of reads is gone; nothing waits for them.
            std::thread::Builder::new()
                .name(format!("duckdb-reader-{number}"))
                .spawn(move || read_loop(&connection, &to_read, &audited))
                .map_err(open_error)?;
        }
        let fatal = parts.fatal.clone();
        let writing = std::thread::Builder::new()
            .name("duckdb-writer".into())
            .spawn(move || {
                let work = || Writing { parts, writer, jobs: received }.run();
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
                    fatal.report("duckdb_writer", "the writer thread panicked");
                }
            })
            .map_err(open_error)?;
        Ok(Self { jobs, reads, writing: Mutex::new(Some(writing)) })
    }

    /// Has an entry written. Its answer goes to the RedisQueue's serving side.
    pub fn write(&self, entry: QueueEntry) {
        // A thread that ended has said why; the entry is dropped and stays pending.
        let _ = self.jobs.send(Job::Entry(Box::new(entry)));
    }

    /// Has something read.
    pub fn read(&self, job: ReadJob) {
        // A thread that ended drops the job, which its asker notices.
        let _ = self.reads.send(job);
    }

    /// Closes the database in order and waits for the writer's end. Blocks.
    pub fn stop(&self) {
        // An error means that it ended already.
        let _ = self.jobs.send(Job::Stop);
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writing) = writing
            && writing.join().is_err()
        {
            tracing::error!("the DuckDB writer thread panicked");
        }
    }
}

fn audited_to(connection: &Connection) -> Result<i64, StoreError> {
    let sql = "SELECT coalesce(max(audited_to_batch_seq), 0) FROM service_meta";
    connection.query_row(sql, [], |row| row.get(0)).map_err(StoreError::Statement)
}

fn read_loop(connection: &Connection, jobs: &Receiver<ReadJob>, writer: &Sender<Job>) {
    while let Ok(job) = jobs.recv() {
        match job {
            ReadJob::Query { sql, done } => {
                // Whoever asked may have stopped waiting.
                let _ = done.send(reader::query(connection, &sql, QUERY_DEADLINE));
            }
            ReadJob::Verify { full, done } => {
                let after = if full { Ok(0) } else { audited_to(connection) };
                let found = after
                    .and_then(|after| audit(connection, after))
                    .and_then(|books| Ok((books, newest_values(connection)?)));
                if let Ok((books, _)) = &found
                    && books.ok()
                {
                    // The writer is gone only when the node stops.
                    let _ = writer.send(Job::Audited(books.totals.last_batch_seq));
                }
                let _ = done.send(found);
            }
        }
    }
}

/// An entry whose answer is known.
struct Decided {
    id: String,
    reply_to: String,
    round: u64,
    reply: QueueReply,
    duty: EntryDuty,
}

/// A write that waits for its group's transaction.
struct Waiting {
    id: String,
    reply_to: String,
    round: u64,
    write: WriteRequest,
    duty: EntryDuty,
}

impl Waiting {
    /// A write; anything else comes back.
    fn of(entry: QueueEntry) -> Result<Self, Box<QueueEntry>> {
        let QueueEntry { id, reply_to, round, request, duty } = entry;
        match request {
            QueueRequest::Write(write) => Ok(Self { id, reply_to, round, write, duty }),
            request => Err(Box::new(QueueEntry { id, reply_to, round, request, duty })),
        }
    }

    fn decided(self, reply: QueueReply) -> Decided {
        let Self { id, reply_to, round, duty, .. } = self;
        Decided { id, reply_to, round, reply, duty }
    }
}

struct Writing {
    parts: WriterThreadParts,
    writer: Writer,
    jobs: Receiver<Job>,
}

impl Writing {
    fn run(mut self) {
        loop {
            let first = match self.jobs.recv_timeout(IDLE) {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) => {
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
                    Job::Audited(to) => self.writer.note_audit(to).map(|()| None),
                    Job::Entry(entry) => self.entry(*entry),
                };
                match step {
                    Ok(next) => after = next,
                    Err(error) => {
                        METER.error("commit");
                        // Nothing was answered: all of it is pending, and read again by whoever
                        // opens the file next and believes its watermarks.
                        self.parts.fatal.report("duckdb_writer", error.to_string());
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
        match request {
            QueueRequest::Write(write) => self.group(Waiting { id, reply_to, round, write, duty }),
            QueueRequest::Open(open) => {
                let reply = match self.writer.open_source(&open) {
                    Ok(reply) => QueueReply::Opened { source: open.source.clone(), reply },
                    Err(error @ StoreError::UnknownCommit(_)) => return Err(error),
                    Err(error) => {
                        METER.error("statement");
                        QueueReply::Refused { reason: error.to_string() }
                    }
                };
                self.answer(vec![Decided { id, reply_to, round, reply, duty }]);
                Ok(None)
            }
            QueueRequest::Register(replay) => {
                let reply = match self.writer.register_replay(&replay) {
                    Ok(letters) => QueueReply::Registered { letters },
                    Err(error @ StoreError::UnknownCommit(_)) => return Err(error),
                    Err(error) => {
                        METER.error("statement");
                        QueueReply::Refused { reason: error.to_string() }
                    }
                };
                self.answer(vec![Decided { id, reply_to, round, reply, duty }]);
                Ok(None)
            }
            QueueRequest::Unreadable(reason) => {
                tracing::error!(reason, "an entry of the queue cannot be read");
                let reply = QueueReply::Refused { reason };
                self.answer(vec![Decided { id, reply_to, round, reply, duty }]);
                Ok(None)
            }
        }
    }

    /// Takes the writes that are there, or come within the wait, into one transaction, up to the
    /// group's size. Writes that come while a transaction commits share the next one.
    fn group(&mut self, first: Waiting) -> Result<Option<Job>, StoreError> {
        let started = Instant::now();
        let rows_of = |w: &Waiting| {
            w.write.rows.iter().map(arrow::array::RecordBatch::num_rows).sum::<usize>()
        };
        let mut rows = rows_of(&first);
        let mut group = vec![first];
        let mut after = None;
        while rows < self.parts.group_rows && group.len() < GROUP_ENTRIES {
            let entry = match self.jobs.recv_deadline(started + self.parts.group_wait) {
                Ok(Job::Entry(entry)) => *entry,
                Ok(other) => {
                    after = Some(other);
                    break;
                }
                Err(_) => break,
            };
            match Waiting::of(entry) {
                Ok(waiting) => {
                    rows += rows_of(&waiting);
                    group.push(waiting);
                }
                Err(other) => {
                    after = Some(Job::Entry(other));
                    break;
                }
            }
        }
        METER.received(events(&group));
        METER.queue_depth(self.jobs.len());
        let started = Instant::now();
        let decided = self.apply(group)?;
        METER.worked(started);
        metrics::gauge!(m::DUCKDB_FILE).set(self.writer.database().file_bytes() as f64);
        self.answer(decided);
        Ok(after)
    }

    /// One transaction for the group; when a statement fails, one for each of its writes.
    fn apply(&mut self, group: Vec<Waiting>) -> Result<Vec<Decided>, StoreError> {
        match self.commit(&group) {
            Ok(verdicts) => {
                Ok(group.into_iter().zip(verdicts).map(|(w, v)| w.decided(v)).collect())
            }
            Err(error @ StoreError::UnknownCommit(_)) => Err(error),
            Err(error) if group.len() == 1 => {
                METER.error("statement");
                tracing::error!(%error, "DuckDB refuses a write; its sources halt");
                let reason = error.to_string();
                Ok(group
                    .into_iter()
                    .map(|w| w.decided(QueueReply::Refused { reason: reason.clone() }))
                    .collect())
            }
            Err(error) => {
                METER.error("statement");
                tracing::warn!(%error, writes = group.len(), "a group was rolled back; trying its writes one by one");
                let mut decided = Vec::with_capacity(group.len());
                for waiting in group {
                    decided.extend(self.apply(vec![waiting])?);
                }
                Ok(decided)
            }
        }
    }

    fn commit(&mut self, group: &[Waiting]) -> Result<Vec<QueueReply>, StoreError> {
        let started = Instant::now();
        let writes: Vec<&WriteRequest> = group.iter().map(|w| &w.write).collect();
        let committed = self.writer.apply(&writes)?;
        metrics::histogram!(m::DUCKDB_COMMIT).record(started.elapsed());
        telemetry::committed(committed.events, committed.rows, committed.dead_letters);
        METER.sent(events(group));
        let replies = committed.verdicts.into_iter().map(|verdicts| {
            for verdict in &verdicts {
                telemetry::decided(verdict.decision);
            }
            QueueReply::Written { verdicts }
        });
        Ok(replies.collect())
    }

    fn answer(&self, decided: Vec<Decided>) {
        let mut duties = Vec::with_capacity(decided.len());
        let mut answers = Vec::with_capacity(decided.len());
        for Decided { id, reply_to, round, reply, duty } in decided {
            let Some((duty, reply)) = duty.answer_directly(reply) else { continue };
            answers.push((id, reply_to, round, reply));
            duties.push(duty);
        }
        if answers.is_empty() {
            return;
        }
        match self.parts.server.deliver(Applied { answers }) {
            Ok(()) => duties.into_iter().for_each(EntryDuty::done),
            // The serving side is between two lives: its next instance reads the entries again and
            // answers them as duplicates.
            Err(Undelivered(_)) => drop(duties),
        }
    }
}

fn events(group: &[Waiting]) -> usize {
    let n: i64 = group.iter().flat_map(|w| &w.write.header.parts).map(|p| p.n_in).sum();
    n.cast_unsigned() as usize
}
