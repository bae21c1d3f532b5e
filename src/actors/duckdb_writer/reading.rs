//! The threads that read DuckDB. Each question gets a connection of its own, which the writer can
//! take back when it must open the file again.

use super::thread::Job;
use crate::{
    messages::{AsOfRequest, QueryBounds, Watermark},
    protocol::source::Position,
    store::{
        StoreError, as_of,
        audit::{Audit, audit, audited_to},
        newest::{NewestValue, Piece, newest_of_part, newest_values, replay, sampled},
        reader::{self, ReadError},
        readers::Readers,
    },
};
use arrow::{array::RecordBatch, ipc::reader::StreamReader};
use crossbeam_channel::{Receiver, Sender};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};
use tokio::sync::{mpsc, oneshot};

/// How long questions about the past may take.
const AS_OF_DEADLINE: Duration = Duration::from_secs(300);

/// How long a sample may take.
const SAMPLE_DEADLINE: Duration = Duration::from_secs(60);

/// The books, and the newest value of every feature.
pub type Audited = (Audit, Vec<NewestValue>);

/// Whether a feature (second) from a source (first) is critical.
pub type IsCritical = Box<dyn Fn(&str, &str) -> bool + Send>;

/// Something to read.
pub enum ReadJob {
    /// One SELECT.
    Query {
        /// Its text.
        sql: String,
        /// What it may cost.
        bounds: QueryBounds,
        /// Whether the program itself asks.
        own: bool,
        /// The Arrow IPC stream; dropping the receiver ends the reading.
        done: oneshot::Sender<Result<Vec<u8>, ReadError>>,
    },
    /// The audit and what the online store must hold.
    Verify {
        /// All batches, not only those since the last clean audit.
        full: bool,
        /// The books, and the newest value of every feature.
        done: oneshot::Sender<Result<Audited, StoreError>>,
    },
    /// What the online store must hold of one part that came as a chunk.
    Part {
        /// Its source.
        source_no: i32,
        /// First position.
        from: Position,
        /// The position after the last.
        to: Position,
        /// The newest value of every feature.
        done: oneshot::Sender<Result<Vec<NewestValue>, StoreError>>,
    },
    /// The newest values of a sample of critical keys.
    Sample {
        /// So many keys at most.
        keys: usize,
        /// Whether a feature from a source is critical.
        is_critical: IsCritical,
        /// Their newest values.
        done: oneshot::Sender<Result<Vec<NewestValue>, ReadError>>,
    },
    /// Questions about the past.
    AsOf {
        /// What is asked.
        request: AsOfRequest,
        /// The questions' rows, as an Arrow IPC stream.
        questions: Vec<u8>,
        /// A batch of answers a feature; dropping the receiver ends the reading.
        answers: mpsc::UnboundedSender<RecordBatch>,
        /// Up to where it looked.
        done: oneshot::Sender<Result<Watermark, ReadError>>,
    },
    /// What the online store must hold of batches after one.
    Replay {
        /// That batch.
        after_batch_seq: i64,
        /// The pieces; dropping the receiver ends the reading.
        pieces: mpsc::Sender<Result<Piece, StoreError>>,
    },
}

impl ReadJob {
    /// Whether the program itself waits for it, to answer writes or to go on with its work.
    pub(super) fn is_own(&self) -> bool {
        matches!(self, Self::Part { .. } | Self::Replay { .. } | Self::Query { own: true, .. })
    }
}

/// Answers questions until the last sender of them is gone.
pub(super) fn read_loop(readers: &Readers, jobs: &Receiver<ReadJob>, writer: &Sender<Job>) {
    while let Ok(job) = jobs.recv() {
        // A defect, in DuckDB's binding or here, costs its question the answer, and not the thread.
        let answered = catch_unwind(AssertUnwindSafe(|| answer(readers, job, writer)));
        if answered.is_err() {
            tracing::error!("a read of DuckDB panicked");
        }
    }
}

/// Whoever asked may have stopped waiting; then nobody wants the answer.
fn answer(readers: &Readers, job: ReadJob, writer: &Sender<Job>) {
    match job {
        ReadJob::Query { sql, bounds, own, done } => {
            let is_gone = || done.is_closed();
            // What the program asks itself is small, and not to blame for what clients take.
            let memory = if own { usize::MAX } else { readers.memory_limit() };
            let answer = readers
                .with(|connection| reader::query(connection, &sql, bounds, memory, is_gone))
                .unwrap_or_else(|closed| Err(ReadError::Failed(closed.to_string())));
            let _ = done.send(answer);
        }
        ReadJob::Verify { full, done } => {
            let found = readers
                .with(|connection| {
                    let after = if full { 0 } else { audited_to(connection)? };
                    Ok((audit(connection, after)?, newest_values(connection)?))
                })
                .unwrap_or_else(|closed| Err(StoreError::Closed(closed)));
            if let Ok((books, _)) = &found
                && books.ok()
            {
                // The writer is gone only when the node stops.
                let _ = writer.send(Job::Audited(books.totals.last_batch_seq));
            }
            let _ = done.send(found);
        }
        ReadJob::Part { source_no, from, to, done } => {
            let found = readers
                .with(|connection| newest_of_part(connection, source_no, from, to))
                .unwrap_or_else(|closed| Err(StoreError::Closed(closed)));
            let _ = done.send(found);
        }
        ReadJob::Sample { keys, is_critical, done } => {
            let sampled = readers
                .with(|connection| {
                    let is_gone = || done.is_closed();
                    reader::with_deadline(connection, SAMPLE_DEADLINE, is_gone, || {
                        let sampled = sampled(connection, keys, &*is_critical);
                        sampled.map_err(|error| ReadError::Failed(error.to_string()))
                    })
                })
                .unwrap_or_else(|closed| Err(ReadError::Failed(closed.to_string())));
            let _ = done.send(sampled);
        }
        ReadJob::AsOf { request, questions, answers, done } => {
            let answered = only_batch(&questions).and_then(|questions| {
                readers
                    .with(|connection| {
                        let told = |batch| answers.send(batch).is_ok();
                        let is_gone = || answers.is_closed();
                        let deadline = AS_OF_DEADLINE;
                        as_of::as_of(connection, &questions, &request, deadline, is_gone, told)
                    })
                    .unwrap_or_else(|closed| Err(ReadError::Failed(closed.to_string())))
            });
            let _ = done.send(answered);
        }
        ReadJob::Replay { after_batch_seq, pieces } => {
            let replayed = readers
                .with(|connection| {
                    replay(connection, after_batch_seq, |piece| {
                        pieces.blocking_send(Ok(piece)).is_ok()
                    })
                })
                .unwrap_or_else(|closed| Err(StoreError::Closed(closed)));
            if let Err(error) = replayed {
                let _ = pieces.blocking_send(Err(error));
            }
        }
    }
}

/// The batch of an Arrow IPC stream that has one.
fn only_batch(bytes: &[u8]) -> Result<RecordBatch, ReadError> {
    let refused = |why: &dyn std::fmt::Display| {
        ReadError::Refused(format!("the questions cannot be read: {why}"))
    };
    let mut batches = StreamReader::try_new(bytes, None).map_err(|error| refused(&error))?;
    match (batches.next(), batches.next()) {
        (Some(Ok(batch)), None) => Ok(batch),
        (Some(Err(error)), _) => Err(refused(&error)),
        _ => Err(refused(&"there is not one batch of them")),
    }
}
