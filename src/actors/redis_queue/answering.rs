//! Answers of the store, and the online store's soundness behind them.
//!
//! Nothing is answered before the online store holds it: a write whose sender saw another
//! generation of Redis is put online again first. Answers are given by a script that makes sure that
//! Redis is the one that the store has looked at; when it is not, Redis lost data, and
//!
//! 1. a new generation is set, so that every online write of before is repeated;
//! 2. the newest values of what may be lost are replayed from DuckDB, beside the answers;
//! 3. until that is done, the online store is not complete, and says so.

use super::server::METER;
use crate::{
    actors::duckdb_writer::{ReadJob, WriterThread},
    config::Config,
    messages::{
        Applied, AppliedEntry, DurablePart, DurableRows, OnlineDuty, OnlineValue, QueueReply,
    },
    online::{
        self, OnlineOutcome,
        marks::{self, Look, LookError},
    },
    protocol::source::{OpenReply, Promised, SourceName},
    queue::{Keys, RETRY, RedisLink, STORE_GROUP, encode_reply},
    store::newest::{NewestValue, Piece},
    supervision::FatalSender,
    telemetry::catalogue as m,
};
use anyhow::{Context as _, bail};
use redis::{Script, Value, aio::ConnectionManager};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinSet},
};

/// Seconds that an answer waits for a node that is gone.
const REPLY_TTL_S: i64 = 3_600;
/// How often Redis is looked at while there is nothing to answer.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Pieces of a replay that wait for Redis.
const PIECES: usize = 2;

const ANSWER: &str = include_str!("answer.lua");

/// Redis is not the one that the store has looked at.
struct Lost;

/// See the module.
pub(super) struct Answering {
    config: Arc<Config>,
    redis: RedisLink,
    keys: Keys,
    thread: Arc<WriterThread>,
    fatal: FatalSender,
    critical: String,
    /// Its end says up to which batch the online store is complete.
    replay: JoinSet<anyhow::Result<i64>>,
}

impl Answering {
    pub(super) fn new(
        config: Arc<Config>,
        redis: RedisLink,
        keys: Keys,
        thread: Arc<WriterThread>,
        fatal: FatalSender,
    ) -> Self {
        let critical = marks::fingerprint(&config.streams);
        Self { config, redis, keys, thread, fatal, critical, replay: JoinSet::new() }
    }

    /// Gives answers, in order, until the actor ends.
    pub(super) async fn run(mut self, mut to_answer: mpsc::UnboundedReceiver<Applied>) {
        let mut connection = self.redis.manager_at_last().await;
        let mut look = self.look(&mut connection).await;
        let mut every = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                applied = to_answer.recv() => match applied {
                    Some(applied) => self.answer(&mut connection, &mut look, applied).await,
                    None => return,
                },
                Some(replayed) = self.replay.join_next() => {
                    self.replayed(&mut connection, &look, replayed).await;
                }
                _ = every.tick() => {
                    if matches!(marks::unchanged(&mut connection, &self.keys, &look).await, Ok(false)) {
                        look = self.look(&mut connection).await;
                    }
                }
            }
        }
    }

    /// Looks until Redis answers, and begins a replay when one is needed.
    async fn look(&mut self, connection: &mut ConnectionManager) -> Look {
        self.replay.shutdown().await;
        loop {
            let (database, last) = (self.thread.database_id(), self.thread.durable_to());
            let lease = Duration::from_secs_f64(self.config.python.lease_s);
            let critical = &self.critical;
            match marks::look(connection, &self.keys, database, last, critical, lease).await {
                Ok(look) => {
                    self.begin(&look);
                    return look;
                }
                Err(LookError::Redis(error)) => {
                    METER.error("redis");
                    tracing::warn!(%error, "the store cannot look at Redis; trying again");
                }
                Err(other) => {
                    self.fatal.report("redis_queue_server", other.to_string());
                    // The node ends; nothing must be answered meanwhile.
                    std::future::pending::<()>().await;
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Begins a replay; without anything to replay it only notes that all is complete.
    fn begin(&mut self, look: &Look) {
        if let Some(after) = look.replay_after {
            tracing::warn!(
                generation = look.generation,
                after_batch_seq = after,
                "the online store may lack values; putting them back from DuckDB"
            );
        }
        let after = look.replay_after.unwrap_or_else(|| self.thread.durable_to());
        self.replay.spawn_local(replay(
            self.config.clone(),
            self.redis.clone(),
            self.keys.clone(),
            self.thread.clone(),
            look.generation.clone(),
            after,
        ));
    }

    async fn replayed(
        &mut self,
        connection: &mut ConnectionManager,
        look: &Look,
        replayed: Result<anyhow::Result<i64>, JoinError>,
    ) {
        let error = match replayed {
            Ok(Ok(to_batch_seq)) => {
                match marks::note_rebuilt(connection, &self.keys, look, to_batch_seq).await {
                    Ok(true) => {
                        tracing::info!(to_batch_seq, "the online store is complete");
                        return;
                    }
                    // The next look begins again.
                    Ok(false) => return,
                    Err(error) => anyhow::Error::from(error),
                }
            }
            Ok(Err(error)) => error,
            Err(error) => error.into(),
        };
        METER.error("rebuild");
        tracing::warn!(error = %format!("{error:#}"), "the online store is not complete yet; trying again");
        tokio::time::sleep(RETRY).await;
        self.begin(look);
    }

    async fn answer(
        &mut self,
        connection: &mut ConnectionManager,
        look: &mut Look,
        mut applied: Applied,
    ) {
        let _work = METER.begin();
        loop {
            match self.try_answer(connection, look, &mut applied).await {
                Ok(Ok(depth)) => {
                    crate::crash_point!("i_answered");
                    metrics::gauge!(m::QUEUE_ENTRIES).set(depth as f64);
                    return;
                }
                Ok(Err(Lost)) => {
                    tracing::warn!(
                        "Redis lost data; nothing is answered before the store has looked"
                    );
                    *look = self.look(connection).await;
                }
                Err(error) => {
                    METER.error("redis");
                    tracing::warn!(error = %format!("{error:#}"), "answers cannot be written; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn try_answer(
        &self,
        connection: &mut ConnectionManager,
        look: &Look,
        applied: &mut Applied,
    ) -> anyhow::Result<Result<u64, Lost>> {
        for entry in &mut applied.entries {
            if let QueueReply::Opened { source, reply } = &mut entry.reply {
                fence(connection, &self.keys, source, reply).await?;
            }
            if let Some(duty) = &entry.online
                && self.see_to(connection, look, duty).await? == OnlineOutcome::Generation
            {
                return Ok(Err(Lost));
            }
        }
        // While values are being put back, `online_to` must not claim that they are there.
        let online_to =
            if self.replay.is_empty() { applied.durable_to.to_string() } else { String::new() };
        let script = Script::new(ANSWER);
        let mut call = script.prepare_invoke();
        call.arg(self.keys.namespace())
            .arg(&look.generation)
            .arg(&look.run_id)
            .arg(online_to)
            .arg(STORE_GROUP)
            .arg(REPLY_TTL_S);
        for AppliedEntry { id, reply_to, round, reply, quarantine, held, .. } in &applied.entries {
            let answer = match reply_to.as_str() {
                "" => Vec::new(),
                _ => encode_reply(*round, reply.clone(), *held)?,
            };
            call.arg(id).arg(reply_to).arg(answer).arg(u8::from(*quarantine));
        }
        match call.invoke_async(connection).await? {
            Value::Int(depth) => Ok(Ok(depth.cast_unsigned())),
            _ => Ok(Err(Lost)),
        }
    }

    /// Writes online again what may be lost, and takes back what was refused.
    async fn see_to(
        &self,
        connection: &mut ConnectionManager,
        look: &Look,
        duty: &OnlineDuty,
    ) -> anyhow::Result<OnlineOutcome> {
        let mut outcome = OnlineOutcome::Written;
        if duty.again || duty.generation != look.generation {
            for part in &duty.parts {
                let values = self.critical_values(part).await?;
                let values: Vec<_> = values.iter().map(|(v, number)| (v, *number)).collect();
                outcome =
                    online::restore(connection, &self.keys, &look.generation, &values).await?;
            }
        }
        if !duty.repairs.is_empty() {
            outcome =
                online::repair(connection, &self.keys, &look.generation, &duty.repairs).await?;
        }
        Ok(outcome)
    }
}

impl Answering {
    /// The newest value of each critical feature of a part, with the number of the token that wrote
    /// it. Rows that came as a chunk are asked of DuckDB, which has them by now.
    async fn critical_values(&self, part: &DurablePart) -> anyhow::Result<Vec<(OnlineValue, u32)>> {
        let (streams, source) = (&self.config.streams, part.source.0.as_ref());
        let is_critical = |feature: &str| online::is_critical(streams, source, feature);
        match &part.rows {
            DurableRows::Sent(rows) => {
                let values = online::newest_of_rows(is_critical, part.source_no, rows);
                Ok(values.into_iter().map(|value| (value, part.token.number)).collect())
            }
            DurableRows::Stored { from, to } => {
                let (done, found) = tokio::sync::oneshot::channel();
                let (source_no, from, to) = (part.source_no, *from, *to);
                self.thread.read(ReadJob::Part { source_no, from, to, done });
                let found = found.await.context("the store's reader ended")??;
                let critical = found.into_iter().filter(|v| is_critical(&v.value.feature_name));
                Ok(critical.map(|v| (v.value, v.token_number)).collect())
            }
        }
    }
}

/// Puts the new token into Redis, which shuts the former owner out, and only then reads what that
/// one has promised: nothing can be added to it any more.
async fn fence(
    connection: &mut ConnectionManager,
    keys: &Keys,
    source: &SourceName,
    reply: &mut OpenReply,
) -> anyhow::Result<()> {
    let OpenReply::Opened { token, next_pos, promised, .. } = reply else { return Ok(()) };
    let mut pipeline = redis::pipe();
    pipeline.atomic();
    pipeline.hset(keys.tokens(), source.0.as_ref(), token.to_string()).ignore();
    pipeline.hget(keys.promised(), source.0.as_ref());
    let (json,): (Option<String>,) = pipeline.query_async(connection).await?;
    *promised = json.and_then(|json| match serde_json::from_str::<Promised>(&json) {
        Ok(known) => Some(known).filter(|p| p.to > *next_pos),
        Err(error) => {
            tracing::error!(%error, json, %source, "what was promised cannot be read");
            None
        }
    });
    Ok(())
}

/// Puts the newest values of batches after one back online; up to which batch that is complete.
async fn replay(
    config: Arc<Config>,
    redis: RedisLink,
    keys: Keys,
    thread: Arc<WriterThread>,
    generation: String,
    after_batch_seq: i64,
) -> anyhow::Result<i64> {
    let (pieces, mut received) = mpsc::channel(PIECES);
    thread.read(ReadJob::Replay { after_batch_seq, pieces });
    let mut connection = redis.manager().await?;
    while let Some(piece) = received.recv().await {
        let outcome = match piece? {
            Piece::Values(values) => {
                let critical: Vec<_> = values
                    .iter()
                    .filter(|v| {
                        online::is_critical(&config.streams, &v.source, &v.value.feature_name)
                    })
                    .map(|NewestValue { value, token_number, .. }| (value, *token_number))
                    .collect();
                online::restore(&connection, &keys, &generation, &critical).await?
            }
            Piece::Repairs(repairs) => {
                online::repair(&mut connection, &keys, &generation, &repairs).await?
            }
            Piece::End { to_batch_seq } => return Ok(to_batch_seq),
        };
        if outcome == OnlineOutcome::Generation {
            bail!("Redis lost data again");
        }
    }
    bail!("the store's reader ended")
}
