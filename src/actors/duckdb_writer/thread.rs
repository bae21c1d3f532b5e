//! The threads that touch DuckDB: one writes, the others read. They outlive the actor.

use super::{
    reading::{ReadJob, read_loop},
    writing::Writing,
};
use crate::{
    actors::RedisQueueServer,
    failpoint,
    messages::QueueEntry,
    store::{
        StoreError,
        attempts::AttemptNote,
        audit::{audited_to, check},
        database::{Database, DatabaseOptions},
        writer::Writer,
    },
    supervision::{FatalSender, Link},
};
use crossbeam_channel::Sender;
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

/// Threads that read for clients: a long audit must not hold up a short question.
const CLIENT_READERS: usize = 2;
/// Threads that read for the program itself: a long replay must not hold up a short question either.
const OWN_READERS: usize = 2;

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

/// What the writer thread is given to do.
pub(super) enum Job {
    Entry(Box<QueueEntry>),
    Audited(i64),
    Stop,
}

/// The running threads.
#[derive(Debug)]
pub struct WriterThread {
    jobs: Sender<Job>,
    reads: Sender<ReadJob>,
    own_reads: Sender<ReadJob>,
    stopping: Arc<AtomicBool>,
    database_id: String,
    durable_to: Arc<AtomicI64>,
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
        let connection = writer.database().connection();
        let (checks, last_batch_seq) = check(connection, audited_to(connection)?)?;
        if let Some(broken) = checks.iter().find(|c| !c.ok) {
            let broken = StoreError::Unbalanced(format!("{}: {}", broken.id, broken.detail));
            // What a planted defect did is for the judge to find.
            if !failpoint::any_planted() {
                return Err(broken);
            }
            tracing::error!(%broken, "going on all the same: a defect is planted");
        }
        writer.note_audit(last_batch_seq)?;
        let database_id = writer.database_id()?;
        tracing::info!(file = %file.display(), batches = last_batch_seq, "database opened; its books balance");

        let (jobs, received) = crossbeam_channel::unbounded();
        let (reads, to_read) = crossbeam_channel::unbounded();
        // What the program itself waits for is not held up by clients.
        let (own_reads, own_to_read) = crossbeam_channel::unbounded();
        let open_error = |e: std::io::Error| StoreError::Open {
            file: file.display().to_string(),
            reason: e.to_string(),
        };
        let note = AttemptNote::open(&file).map_err(open_error)?;
        let client_readers = std::iter::repeat_n(to_read, CLIENT_READERS);
        let own_readers = std::iter::repeat_n(own_to_read, OWN_READERS);
        for (number, to_read) in client_readers.chain(own_readers).enumerate() {
            let (readers, audited) = (writer.database().readers(), jobs.clone());
            // They end when the last sender of reads is gone; nothing waits for them.
            std::thread::Builder::new()
                .name(format!("duckdb-reader-{number}"))
                .spawn(move || read_loop(&readers, &to_read, &audited))
                .map_err(open_error)?;
        }
        let fatal = parts.fatal.clone();
        let stopping = Arc::new(AtomicBool::new(false));
        let asked_to_stop = stopping.clone();
        let durable_to = Arc::new(AtomicI64::new(last_batch_seq));
        let told = durable_to.clone();
        let writing = std::thread::Builder::new()
            .name("duckdb-writer".into())
            .spawn(move || {
                let work = || {
                    Writing::new(parts, writer, note, received, asked_to_stop, told).run();
                };
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
                    fatal.report("duckdb_writer", "the writer thread panicked");
                }
            })
            .map_err(open_error)?;
        let writing = Mutex::new(Some(writing));
        Ok(Self { jobs, reads, own_reads, stopping, database_id, durable_to, writing })
    }

    /// The database's own name.
    #[must_use]
    pub fn database_id(&self) -> &str {
        &self.database_id
    }

    /// The last batch that is durable.
    #[must_use]
    pub fn durable_to(&self) -> i64 {
        self.durable_to.load(Ordering::Acquire)
    }

    /// Has an entry written. Its answer goes to the RedisQueue's serving side.
    pub fn write(&self, entry: QueueEntry) {
        // A thread that ended has said why; the entry is dropped and stays pending.
        let _ = self.jobs.send(Job::Entry(Box::new(entry)));
    }

    /// Has something read.
    pub fn read(&self, job: ReadJob) {
        // A thread that ended drops the job, which its asker notices.
        let _ = if job.is_own() { self.own_reads.send(job) } else { self.reads.send(job) };
    }

    /// Closes the database in order and waits for the writer's end. Blocks.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
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
