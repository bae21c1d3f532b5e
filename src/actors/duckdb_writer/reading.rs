//! The threads that read DuckDB. Each question gets a connection of its own, which the writer can
//! take back when it must open the file again.

use super::thread::Job;
use crate::{
    protocol::source::Position,
    store::{
        StoreError,
        audit::{Audit, audit, audited_to},
        newest::{NewestValue, Piece, newest_of_part, newest_values, replay},
        reader::{self, ReadError},
        readers::Readers,
    },
};
use crossbeam_channel::{Receiver, Sender};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How long one query of a client may take.
const QUERY_DEADLINE: Duration = Duration::from_secs(20);

/// The books, and the newest value of every feature.
pub type Audited = (Audit, Vec<NewestValue>);

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
    /// What the online store must hold of batches after one.
    Replay {
        /// That batch.
        after_batch_seq: i64,
        /// The pieces; dropping the receiver ends the reading.
        pieces: mpsc::Sender<Result<Piece, StoreError>>,
    },
}

/// Answers questions until the last sender of them is gone.
pub(super) fn read_loop(readers: &Readers, jobs: &Receiver<ReadJob>, writer: &Sender<Job>) {
    while let Ok(job) = jobs.recv() {
        // Whoever asked may have stopped waiting; then nobody wants the answer.
        match job {
            ReadJob::Query { sql, done } => {
                let answer = readers
                    .with(|connection| reader::query(connection, &sql, QUERY_DEADLINE))
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
}
