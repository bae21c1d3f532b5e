//! The serving side: entries off the queue to the DuckDbWriter, answers back.

use super::{answering::Answering, gauges, online_check, reads};
use crate::{
    actors::{DuckDbWriter, duckdb_writer::WriterThread},
    config::Config,
    messages::{Applied, EntryDuty, QueueEntry},
    queue::{Keys, RETRY, ReadingSlot, RedisLink, STORE_GROUP, decode_entry},
    supervision::{FatalSender, Link, Undelivered},
    telemetry::StageMeter,
};
use actix::{Actor, AsyncContext, Context, Handler, WrapFuture};
use redis::{
    aio::MultiplexedConnection,
    streams::{StreamId, StreamReadReply},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{Semaphore, mpsc};

pub(super) const METER: StageMeter = StageMeter::new("redis_queue");

/// How long one look at a stream waits.
pub(super) const BLOCK: Duration = Duration::from_millis(500);
/// Entries in hand: read and not yet answered.
const ENTRIES_IN_HAND: usize = 64;
/// Entries that one read takes at most.
const ENTRIES_A_READ: usize = 16;
/// The store's name in its group. There is one store, and its successor takes over what it had.
pub(super) const CONSUMER: &str = "store";

/// See the module.
pub struct RedisQueueServer {
    config: Arc<Config>,
    redis: RedisLink,
    writer: Link<DuckDbWriter>,
    thread: Arc<WriterThread>,
    fatal: FatalSender,
    reading: ReadingSlot,
    answers: Option<mpsc::UnboundedSender<Applied>>,
}

impl RedisQueueServer {
    /// An instance that first reads what an earlier one left unanswered.
    #[must_use]
    pub fn new(
        config: Arc<Config>,
        redis: RedisLink,
        writer: Link<DuckDbWriter>,
        thread: Arc<WriterThread>,
        fatal: FatalSender,
        reading: ReadingSlot,
    ) -> Self {
        Self { config, redis, writer, thread, fatal, reading, answers: None }
    }
}

impl Actor for RedisQueueServer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let keys = Keys::new(&self.config.node.namespace);
        let (answers, to_answer) = mpsc::unbounded_channel();
        self.answers = Some(answers);
        let (redis, reading) = (self.redis.clone(), self.reading.clone());
        let serving = serve(redis, reading, keys.clone(), self.writer.clone());
        ctx.spawn(serving.into_actor(self));
        let answering = Answering::new(
            self.config.clone(),
            self.redis.clone(),
            keys.clone(),
            self.thread.clone(),
            self.fatal.clone(),
        );
        ctx.spawn(answering.run(to_answer).into_actor(self));
        let looking = online_check::look_now_and_then(
            self.redis.clone(),
            keys.clone(),
            self.config.clone(),
            self.thread.clone(),
        );
        ctx.spawn(looking.into_actor(self));
        let gauges = gauges::keep(self.redis.clone(), keys.clone(), self.config.clone());
        ctx.spawn(gauges.into_actor(self));
        let reading =
            reads::serve(self.redis.clone(), keys, self.config.clone(), self.thread.clone());
        ctx.spawn(reading.into_actor(self));
    }
}

impl Handler<Applied> for RedisQueueServer {
    type Result = ();

    fn handle(&mut self, applied: Applied, _: &mut Self::Context) {
        if let Some(answers) = &self.answers {
            // The receiver is a task of this actor; entries that it does not answer stay pending
            // and are read again by the next instance.
            let _ = answers.send(applied);
        }
    }
}

/// Makes the consumer group of a stream unless it is there.
pub(super) async fn ensure_group(
    connection: &mut MultiplexedConnection,
    stream: &str,
) -> redis::RedisResult<()> {
    let made: redis::RedisResult<()> = redis::cmd("XGROUP")
        .arg("CREATE")
        .arg(stream)
        .arg(STORE_GROUP)
        .arg("0")
        .arg("MKSTREAM")
        .query_async(connection)
        .await;
    match made {
        Err(e) if e.code() == Some("BUSYGROUP") => Ok(()),
        other => other,
    }
}

/// Reads entries after `cursor`: `>` for new ones, an id for own pending ones.
pub(super) async fn read_entries(
    connection: &mut MultiplexedConnection,
    stream: &str,
    cursor: &str,
    count: usize,
) -> redis::RedisResult<Vec<StreamId>> {
    let reply: Option<StreamReadReply> = redis::cmd("XREADGROUP")
        .arg("GROUP")
        .arg(STORE_GROUP)
        .arg(CONSUMER)
        .arg("COUNT")
        .arg(count)
        .arg("BLOCK")
        .arg(BLOCK.as_millis() as u64)
        .arg("STREAMS")
        .arg(stream)
        .arg(cursor)
        .query_async(connection)
        .await?;
    Ok(reply.into_iter().flat_map(|r| r.keys).flat_map(|k| k.ids).collect())
}

/// Takes entries off the queue until the actor ends: own pending ones first, then new ones.
async fn serve(redis: RedisLink, reading: ReadingSlot, keys: Keys, writer: Link<DuckDbWriter>) {
    let room = Arc::new(Semaphore::new(ENTRIES_IN_HAND));
    let (dropped, mut was_dropped) = mpsc::unbounded_channel();
    loop {
        match reading.connect(&redis, BLOCK).await {
            Ok(mut connection) => {
                if let Err(error) =
                    read_on(&mut connection, &keys, &writer, &room, &dropped, &mut was_dropped)
                        .await
                {
                    METER.error("redis");
                    tracing::warn!(%error, "the queue cannot be read; trying again");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the queue cannot be read: Redis cannot be reached")
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn read_on(
    connection: &mut MultiplexedConnection,
    keys: &Keys,
    writer: &Link<DuckDbWriter>,
    room: &Arc<Semaphore>,
    dropped: &mpsc::UnboundedSender<()>,
    was_dropped: &mut mpsc::UnboundedReceiver<()>,
) -> redis::RedisResult<()> {
    let stream = keys.queue();
    ensure_group(connection, &stream).await?;
    let mut pending_after = Some("0".to_owned());
    // Since the last read nothing was read for so long, for want of room: what came onto the stream
    // meanwhile has waited for the store, not for Redis.
    let mut full = Duration::ZERO;
    loop {
        // Entries were dropped unanswered: they are pending, and are read again from the first.
        while was_dropped.try_recv().is_ok() {
            pending_after = Some("0".to_owned());
        }
        let cursor = pending_after.as_deref().unwrap_or(">");
        let entries = read_entries(connection, &stream, cursor, ENTRIES_A_READ).await?;
        if let Some(after) = &mut pending_after {
            match entries.last() {
                Some(last) => after.clone_from(&last.id),
                None => pending_after = None,
            }
        }
        let now = Instant::now();
        let taken = now.checked_sub(std::mem::take(&mut full)).unwrap_or(now);
        for entry in entries {
            let asked = Instant::now();
            // The semaphore is never closed.
            let Ok(room) = room.clone().acquire_owned().await else { return Ok(()) };
            full += asked.elapsed();
            let (reply_to, round, request) = decode_entry(&entry);
            let duty = EntryDuty::new(dropped.clone(), room, taken);
            let entry = QueueEntry { id: entry.id, reply_to, round, request, duty };
            if let Err(Undelivered(entry)) = writer.deliver(entry) {
                // Between two lives: dropping the entry has it read again from the pending ones.
                drop(entry);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}
