//! DuckDbWriter: the only way into DuckDB.
//!
//! Takes [`QueueEntry`]s from the RedisQueue's serving side, gives [`Applied`](crate::messages::Applied)
//! back. Promises: what is answered is committed; entries are decided in the order of the queue;
//! many writes share a transaction; nothing is answered when a COMMIT's outcome is unknown.
//!
//! The writing itself is done by a thread ([`WriterThread`]) that survives this actor, so that
//! there are never two writers.

mod reading;
mod spans;
mod thread;
mod waiting;
mod writing;

pub use reading::ReadJob;
pub use thread::{WriterThread, WriterThreadParts};

use crate::{messages::QueueEntry, telemetry::StageMeter};
use actix::{Actor, Context, Handler};
use std::sync::Arc;

const METER: StageMeter = StageMeter::new("duckdb_writer");

/// See the module.
#[derive(Debug)]
pub struct DuckDbWriter {
    thread: Arc<WriterThread>,
}

impl DuckDbWriter {
    /// An instance that adopts the running thread.
    #[must_use]
    pub fn new(thread: Arc<WriterThread>) -> Self {
        Self { thread }
    }
}

impl Actor for DuckDbWriter {
    type Context = Context<Self>;
}

impl Handler<QueueEntry> for DuckDbWriter {
    type Result = ();

    fn handle(&mut self, entry: QueueEntry, _: &mut Self::Context) {
        self.thread.write(entry);
    }
}
