//! What the sending side does with Redis: online values, entries onto the queue, answers off the
//! node's list. Each goes on until Redis has done it; an error holds up what comes behind it, so
//! that the order stays.

use super::{
    durable::DurablePositions,
    sender::{METER, RedisQueue, SharedFields},
};
use crate::{
    messages::{FeatureBatch, FeaturePart},
    online::{self, OnlineOutcome, Promise},
    planted,
    protocol::source::Urgency,
    queue::{self, Keys, RETRY, RedisLink, decode_reply},
    telemetry::{self, catalogue as m},
};
use actix::{Addr, Message};
use redis::{Value, aio::ConnectionManager};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc};

/// How long one look for an answer waits.
const LISTEN: Duration = Duration::from_secs(5);
/// Entries that one round trip puts on the queue at most.
const ENTRIES_A_TRIP: usize = 16;
/// When a part is tried again at the latest that must not be online before what another script
/// version made.
const SETTLING: Duration = Duration::from_millis(500);

/// Entries that the planted defect `queue_trimmed` leaves on the queue.
const TRIMMED_TO: usize = 2;

/// An entry on its way to the queue.
pub(super) struct ToQueue {
    pub(super) round: u64,
    pub(super) fields: SharedFields,
    /// Its entry was lost, and perhaps what it had put online.
    pub(super) again: bool,
}

/// An entry is on the queue.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Queued {
    pub(super) round: u64,
    pub(super) id: String,
}

/// An answer came.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Answered(pub(super) queue::Answer);

/// Writes a batch's critical features online. Gives the batch back without the parts whose token
/// is not the current one: either the source has another owner, or Redis lost the token, and only
/// opening it again can tell. Going on to DuckDB with them would leave the online value behind.
/// With a `turn`, parts are written one after the other.
///
/// # Errors
/// When Redis is not the Redis it was; the whole batch must be read again.
pub(super) async fn write_online(
    mut batch: FeatureBatch,
    connection: ConnectionManager,
    turn: Option<&Semaphore>,
    keys: &Keys,
    generation: &str,
    durable: &DurablePositions,
) -> Result<FeatureBatch, GenerationChanged> {
    let started = Instant::now();
    let script_sha256 = batch.script_sha256.clone();
    // Side by side: while Redis works on one part, the next one is put together.
    let writing = std::mem::take(&mut batch.parts).into_iter().map(|part| {
        let (connection, script_sha256) = (&connection, &script_sha256);
        async move {
            let outcome =
                write_part(connection, turn, keys, generation, &part, script_sha256, durable).await;
            (part, outcome)
        }
    });
    let mut written = Vec::new();
    for (part, outcome) in futures::future::join_all(writing).await {
        match outcome {
            OnlineOutcome::Written => {
                observe(&part);
                written.push(part);
            }
            OnlineOutcome::Fenced | OnlineOutcome::Early => {
                let source = &part.source;
                tracing::debug!(%source, "the token is not the current one; its part is read again");
            }
            OnlineOutcome::Generation => return Err(GenerationChanged),
        }
    }
    metrics::histogram!(m::REDIS_WRITE).record(started.elapsed());
    batch.parts = written;
    Ok(batch)
}

/// Redis lost everything since this node learned its generation.
#[derive(Debug, thiserror::Error)]
#[error("Redis lost everything")]
pub(super) struct GenerationChanged;

/// Waits until what another script version made before the part is durable; a source that was closed
/// meanwhile is read again.
async fn write_part(
    connection: &ConnectionManager,
    turn: Option<&Semaphore>,
    keys: &Keys,
    generation: &str,
    part: &FeaturePart,
    script_sha256: &str,
    durable: &DurablePositions,
) -> OnlineOutcome {
    loop {
        let (source, token, values) = (&part.source, part.token, &part.online);
        let known = durable.get(source);
        let settled = known.is_some_and(|seen| part.from <= seen.durable);
        let promise = Promise { to: part.to, script_sha256, settled };
        // Not kept while it waits: what must become durable first may wait for the turn, too. Nobody
        // closes the semaphore.
        let permit = match turn {
            Some(turn) => turn.acquire().await.ok(),
            None => None,
        };
        let written =
            online::write(connection, keys, generation, source, token, &promise, values).await;
        drop(permit);
        match (written, known) {
            (Ok(OnlineOutcome::Early), Some(seen)) => {
                let follow = durable.may_follow(source, part.from, script_sha256, seen);
                // What Redis knows and this node does not, is asked for again.
                let _ = tokio::time::timeout(SETTLING, follow).await;
            }
            (Ok(outcome), _) => {
                if outcome == OnlineOutcome::Written {
                    durable.promised(source, script_sha256);
                }
                return outcome;
            }
            (Err(error), _) => {
                METER.error("redis");
                tracing::warn!(%error, "the online write failed; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

fn observe(part: &FeaturePart) {
    // A replayed record is old by nature, a row of a file waits for its turn: neither says how fast the
    // way is.
    if part.online.is_empty() || part.source.urgency() == Urgency::Bulk {
        return;
    }
    let now = chrono::Utc::now().timestamp_micros();
    for at in &part.sampled_timestamps_us {
        telemetry::end_to_end("online", (now - at).max(0) as f64 / 1e6);
    }
}

/// Puts entries on the queue in the order in which they come, until the actor ends.
pub(super) async fn put_on_queue(
    redis: RedisLink,
    key: String,
    reply_to: String,
    mut entries: mpsc::UnboundedReceiver<ToQueue>,
    own: Addr<RedisQueue>,
) {
    let mut connection = redis.manager_at_last().await;
    let mut trip = Vec::with_capacity(ENTRIES_A_TRIP);
    while entries.recv_many(&mut trip, ENTRIES_A_TRIP).await > 0 {
        let _work = METER.begin();
        let mut pipeline = redis::pipe();
        for entry in &trip {
            let add = pipeline.cmd("XADD").arg(&key);
            if planted!("queue_trimmed") {
                add.arg("MAXLEN").arg(TRIMMED_TO);
            }
            add.arg("*").arg("to").arg(&reply_to).arg("round").arg(entry.round);
            if entry.again {
                add.arg("again").arg("1");
            }
            for (name, value) in entry.fields.iter() {
                add.arg(*name).arg(value.as_slice());
            }
        }
        let ids: Vec<String> = loop {
            match pipeline.query_async(&mut connection).await {
                Ok(ids) => break ids,
                Err(error) => {
                    METER.error("redis");
                    tracing::warn!(%error, "the queue does not take entries; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        crate::crash_point!("f_enqueued");
        for (entry, id) in trip.drain(..).zip(ids) {
            // A full mailbox would be a defect; without the id the entry is not looked for.
            let _ = own.try_send(Queued { round: entry.round, id });
        }
    }
}

/// Takes answers off this node's list until the actor ends.
pub(super) async fn listen(redis: RedisLink, key: String, own: Addr<RedisQueue>) {
    loop {
        match queue::blocking_connection(&redis, LISTEN).await {
            Ok(mut connection) => loop {
                let popped: redis::RedisResult<Option<(String, Value)>> = redis::cmd("BLPOP")
                    .arg(&key)
                    .arg(LISTEN.as_secs())
                    .query_async(&mut connection)
                    .await;
                match popped {
                    Ok(None) => {}
                    Ok(Some((_, value))) => match decode_reply(&value) {
                        // A full mailbox would be a defect; the write is answered again as a
                        // duplicate.
                        Ok(answer) => drop(own.try_send(Answered(answer))),
                        Err(error) => tracing::error!(%error, "an answer cannot be read"),
                    },
                    Err(error) => {
                        tracing::warn!(%error, "no answers: Redis does not answer");
                        break;
                    }
                }
            },
            Err(error) => tracing::warn!(%error, "no answers: Redis cannot be reached"),
        }
        tokio::time::sleep(RETRY).await;
    }
}
