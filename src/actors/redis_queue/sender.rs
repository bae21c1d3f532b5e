//! The sending side.

use super::{
    parts::QueueParts,
    prepare::{NotQueued, Outgoing, SentPart, prepare, wants_chunks},
    transport::{Answered, Queued, ToQueue, listen, put_on_queue, write_online},
};
use crate::{
    actors::{FileUpload, KafkaIngest, Replayer},
    config::Config,
    messages::{
        Acknowledged, CloseSource, FeatureBatch, OfSource, OpenSource, PartVerdict, QueueReply,
        SourceOpened,
    },
    planted,
    protocol::{
        apply::Decision,
        source::{OpenReply, SourceName, Urgency},
        window::{PartRange, SendWindows},
    },
    queue::{self, Keys, encode_open},
    supervision::Undelivered,
    telemetry::{StageMeter, traces::Step},
};
use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Message, WrapFuture};
use redis::aio::ConnectionManager;
use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::{Semaphore, mpsc};
use tracing::Instrument as _;

pub(super) const METER: StageMeter = StageMeter::new("redis_queue");

/// A write that is unanswered for so long is looked for on the queue.
const LOOK_AFTER: Duration = Duration::from_secs(3);
/// How long an unanswered open is remembered.
const OPEN_KEPT: Duration = Duration::from_secs(120);
/// Bulk batches that may stand on the queue unanswered: some in the store's hands and one behind.
const BULK_AHEAD: usize = 3;
/// How often an acknowledgement is offered to a KafkaIngest that is between two lives.
const ACK_TRIES: u32 = 100;

/// See the module.
pub struct RedisQueue {
    config: Arc<Config>,
    keys: Keys,
    parts: QueueParts,
    /// By urgency: files do not hold up what is live.
    windows: [SendWindows<Outgoing>; Urgency::ALL.len()],
    unanswered: BTreeMap<u64, Unanswered>,
    last_round: u64,
    to_queue: Option<mpsc::UnboundedSender<ToQueue>>,
    /// Connections for online writes, by urgency: one's calls do not wait behind the other's.
    online: [Option<ConnectionManager>; Urgency::ALL.len()],
    /// Bulk parts become online one after the other: putting their calls together takes this actor's
    /// thread.
    bulk_turn: Arc<Semaphore>,
}

/// The fields of an entry, shared by its first and any further sending.
pub(super) type SharedFields = Arc<Vec<(&'static str, Vec<u8>)>>;

/// The answer that the planted defect `queue_trimmed` takes for given when an entry has left the queue.
fn as_if_done<'a>(parts: impl Iterator<Item = &'a PartRange>) -> QueueReply {
    let done = |part: &PartRange| PartVerdict {
        source: part.source.clone(),
        token: part.token,
        decision: Decision::Duplicate,
        next_pos: part.to,
    };
    QueueReply::Written { verdicts: parts.map(done).collect() }
}

/// What stands on the queue, or is about to.
#[derive(Debug)]
struct Unanswered {
    /// The entry's id, once Redis told it.
    id: Option<String>,
    /// `None` for an open, which KafkaIngest asks again by itself.
    fields: Option<SharedFields>,
    parts: Vec<SentPart>,
    sources: Vec<SourceName>,
    sent_at: Instant,
    /// When it is looked for on the queue.
    look_at: Instant,
    /// It was looked for once and not found: its answer may have been on the way just then.
    missed: bool,
}

impl Unanswered {
    /// Its time on the queue, in its batch's trace.
    fn step(&self) -> Step {
        let of = |first: &SentPart| first.way.queue(first.range.token, self.sent_at);
        self.parts.first().map(of).unwrap_or_default()
    }
}

impl RedisQueue {
    /// An instance with empty windows: what an earlier one had in hand is read again.
    #[must_use]
    pub fn new(config: Arc<Config>, parts: QueueParts) -> Self {
        Self {
            keys: Keys::new(&config.node.namespace),
            config,
            parts,
            windows: Default::default(),
            unanswered: BTreeMap::new(),
            // Rounds of an earlier instance must not be taken for ours.
            last_round: u64::from(rand::random::<u32>()) << 32,
            to_queue: None,
            online: [None, None],
            bulk_turn: Arc::new(Semaphore::new(1)),
        }
    }

    fn generation(&self) -> String {
        self.parts.generation.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts everything whose turn it is on the queue.
    fn pump(&mut self) {
        for urgency in Urgency::ALL {
            while self.has_room(urgency)
                && let Some(Outgoing { fields, parts, rows }) =
                    self.windows[urgency as usize].next_sendable()
            {
                METER.sent(rows);
                let sources = parts.iter().map(|p| p.range.source.clone()).collect();
                let batch = parts.first().map(|part| part.batch_id).unwrap_or_default();
                tracing::debug!(%batch, rows, "onto the queue");
                self.enqueue(fields, true, parts, sources);
            }
        }
        let waiting: usize = self.windows.iter().map(SendWindows::waiting).sum();
        // Opens are asked again by whoever wants them; what was lost of them waits for nobody.
        let writes = || self.unanswered.values().filter(|u| u.fields.is_some());
        // In the order of their rounds, which is nearly that of their ages.
        METER.waiting(waiting + writes().count(), writes().next().map(|first| first.sent_at));
    }

    /// Whether another batch may stand on the queue: what is live waits behind few of the others.
    fn has_room(&self, urgency: Urgency) -> bool {
        let is_bulk = |u: &&Unanswered| {
            u.fields.is_some() && u.sources.iter().any(|s| s.urgency() == Urgency::Bulk)
        };
        urgency == Urgency::Live || self.unanswered.values().filter(is_bulk).count() < BULK_AHEAD
    }

    fn windows(&mut self, source: &SourceName) -> &mut SendWindows<Outgoing> {
        &mut self.windows[source.urgency() as usize]
    }

    fn enqueue(
        &mut self,
        fields: SharedFields,
        is_write: bool,
        parts: Vec<SentPart>,
        sources: Vec<SourceName>,
    ) {
        self.last_round += 1;
        let round = self.last_round;
        let unanswered = Unanswered {
            id: None,
            fields: is_write.then(|| fields.clone()),
            parts,
            sources,
            sent_at: Instant::now(),
            look_at: Instant::now() + LOOK_AFTER,
            missed: false,
        };
        self.unanswered.insert(round, unanswered);
        self.send(ToQueue { round, fields, again: false });
    }

    fn send(&self, entry: ToQueue) {
        // The receiver is a task of this actor: it ends with it, and everything is read again.
        if let Some(to_queue) = &self.to_queue {
            let _ = to_queue.send(entry);
        }
    }

    /// Hands a message to KafkaIngest, which may be between two lives.
    fn tell_ingest<M>(&self, message: M, tries: u32, ctx: &mut Context<Self>)
    where
        KafkaIngest: Handler<M>,
        Replayer: Handler<M>,
        FileUpload: Handler<M>,
        M: Message + OfSource + Send + 'static,
        M::Result: Send,
    {
        if message.source().is_replay() {
            // Between two lives it opens its source again, and hears then.
            let _ = self.parts.replayer.deliver(message);
            return;
        }
        if message.source().is_upload() {
            let _ = self.parts.uploads.deliver(message);
            return;
        }
        let Err(Undelivered(message)) = self.parts.ingest.deliver(message) else { return };
        if tries == 0 {
            tracing::warn!("KafkaIngest does not come back; what it was to hear is dropped");
        } else {
            let soon = Duration::from_millis(20);
            ctx.run_later(soon, move |actor, ctx| actor.tell_ingest(message, tries - 1, ctx));
        }
    }

    /// What was read of a source under its present token no longer counts: it blocks nobody. An
    /// open that is unanswered for very long has left the queue.
    fn close(&mut self, source: &SourceName) {
        self.windows(source).close(source);
        self.parts.durable.close(source);
        self.unanswered.retain(|_, u| {
            u.fields.is_some() || !u.sources.contains(source) || u.sent_at.elapsed() < OPEN_KEPT
        });
        self.pump();
    }

    fn settle(&mut self, part: SentPart, verdict: PartVerdict, ctx: &mut Context<Self>) {
        self.windows(&verdict.source).answered(&part.range);
        if verdict.decision.is_ok() {
            self.parts.durable.advance(&verdict.source, verdict.next_pos);
            part.ticket.settle();
            part.way.landed();
            if let Some((topic, partition)) = verdict.source.kafka_partition() {
                self.parts.acknowledged.advance(topic, partition, verdict.next_pos);
            }
            let acknowledged = Acknowledged {
                source: verdict.source,
                sampled_timestamps_us: part.sampled_timestamps_us,
            };
            self.tell_ingest(acknowledged, ACK_TRIES, ctx);
        } else {
            let next = verdict.next_pos == part.range.from;
            if part.chunk.is_some() && verdict.decision == Decision::Gap && next {
                // Nothing is missing before it: the store could not read its rows.
                self.parts.spool.doubt();
            }
            // The ticket is dropped unsettled, which makes the source open again.
            self.windows(&verdict.source).lost(&part.range);
            tracing::warn!(
                batch = %part.batch_id,
                source = %verdict.source,
                from = part.range.from,
                to = part.range.to,
                next_pos = verdict.next_pos,
                answer = verdict.decision.name(),
                "the store did not take a batch; its source is read again"
            );
        }
    }

    /// Looks for writes that are unanswered for long, and sends again those that left the queue.
    fn look(&mut self, ctx: &mut Context<Self>) {
        let Some(mut connection) = self.online[Urgency::Live as usize].clone() else { return };
        let old: Vec<(u64, String)> = self
            .unanswered
            .iter()
            .filter(|(_, u)| u.fields.is_some() && u.look_at <= Instant::now())
            .filter_map(|(round, u)| Some((*round, u.id.clone()?)))
            .collect();
        if old.is_empty() {
            return;
        }
        let key = self.keys.queue();
        let looking = async move {
            // Only whether it is there: the entry itself may be megabytes.
            let script =
                redis::Script::new("return #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])");
            let mut found = Vec::with_capacity(old.len());
            for (round, id) in old {
                let there: redis::RedisResult<i64> =
                    script.key(&key).arg(id).invoke_async(&mut connection).await;
                found.push((round, there));
            }
            found
        };
        ctx.spawn(looking.into_actor(self).map(|found, actor, ctx| {
            for (round, there) in found {
                match there {
                    Ok(0) => actor.missing(round, ctx),
                    Ok(_) => {}
                    Err(error) => tracing::warn!(%error, "the queue could not be looked at"),
                }
            }
        }));
    }

    /// Redis lost data: whatever is unanswered may have left the queue, and is looked for at once.
    fn suspect_all(&mut self) {
        for unanswered in self.unanswered.values_mut() {
            unanswered.missed = true;
            unanswered.look_at = Instant::now();
        }
    }

    fn missing(&mut self, round: u64, ctx: &mut Context<Self>) {
        let Some(unanswered) = self.unanswered.get_mut(&round) else { return };
        if !std::mem::replace(&mut unanswered.missed, true) {
            return;
        }
        if planted!("queue_trimmed") {
            let reply = as_if_done(unanswered.parts.iter().map(|part| &part.range));
            return ctx.notify(Answered(queue::Answer { round, reply, held_us: 0 }));
        }
        if let Some(fields) = unanswered.fields.clone() {
            unanswered.step().fail("it left the queue unanswered");
            tracing::warn!(round, "a write left the queue unanswered; sending it again");
            unanswered.id = None;
            unanswered.missed = false;
            unanswered.sent_at = Instant::now();
            unanswered.look_at = Instant::now() + LOOK_AFTER;
            self.send(ToQueue { round, fields, again: true });
        }
    }
}

impl Actor for RedisQueue {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // What an earlier instance had is read again.
        METER.waiting(0, None);
        let (to_queue, entries) = mpsc::unbounded_channel();
        self.to_queue = Some(to_queue);
        // A list of its own: an earlier instance may still be waiting at the last one, and would take
        // an answer that is meant for this.
        let instance = self.last_round >> 32;
        let replies = self.keys.replies(&format!("{}:{instance:x}", self.parts.node_id));
        let redis = &self.parts.redis;
        let putting =
            put_on_queue(redis.clone(), self.keys.queue(), replies.clone(), entries, ctx.address());
        ctx.spawn(putting.into_actor(self));
        ctx.spawn(listen(redis.clone(), replies, ctx.address()).into_actor(self));
        for urgency in Urgency::ALL {
            let redis = redis.clone();
            let connecting = async move { redis.manager_at_last().await };
            ctx.spawn(
                connecting
                    .into_actor(self)
                    .map(move |c, actor, _| actor.online[urgency as usize] = Some(c)),
            );
        }
        ctx.run_interval(Duration::from_secs(1), Self::look);
    }
}

impl Handler<OpenSource> for RedisQueue {
    type Result = ();

    fn handle(&mut self, OpenSource(open): OpenSource, _: &mut Self::Context) {
        self.close(&open.source);
        match encode_open(&open) {
            Ok(fields) => self.enqueue(Arc::new(fields), false, Vec::new(), vec![open.source]),
            Err(error) => tracing::error!(%error, "an open cannot be written"),
        }
    }
}

impl Handler<CloseSource> for RedisQueue {
    type Result = ();

    fn handle(&mut self, CloseSource(source): CloseSource, _: &mut Self::Context) {
        self.close(&source);
    }
}

impl Handler<FeatureBatch> for RedisQueue {
    type Result = ();

    fn handle(&mut self, batch: FeatureBatch, ctx: &mut Self::Context) {
        let work = METER.begin();
        METER.received(batch.parts.iter().map(|p| p.n_in).sum::<i64>().cast_unsigned() as usize);
        let generation = self.generation();
        let (parts, keys) = (self.parts.clone(), self.keys.clone());
        let stream = self.config.streams[batch.stream].name.clone();
        let as_known = self.config.streams[batch.stream].as_known;
        let urgency = batch.urgency();
        let connection = self.online[urgency as usize].clone();
        let bulk_turn = self.bulk_turn.clone();
        // Of the highest level, so that errors have it whatever else is said.
        let span = tracing::error_span!("batch", id = %batch.id, stream);
        let told = span.clone();
        let step = batch.way.step("online write");
        let preparing = async move {
            let connection = match connection {
                Some(connection) => connection,
                None => parts.redis.manager_at_last().await,
            };
            let mut asking = connection.clone();
            let turn = (urgency == Urgency::Bulk).then_some(&*bulk_turn);
            let written = write_online(batch, connection, turn, &keys, &generation, &parts.durable);
            let batch = match written.await {
                Ok(batch) => batch,
                Err(changed) => {
                    step.fail(&changed.to_string());
                    parts.renew_generation(&keys).await?;
                    return Err(NotQueued::Generation(format!(
                        "{changed}; the batch of {stream} is read again"
                    )));
                }
            };
            step.end();
            crate::crash_point!("e_online");
            if batch.parts.is_empty() {
                return Ok(None);
            }
            let (node, spool) = (parts.node_name.clone(), parts.spool.clone());
            let shared = wants_chunks(&batch) && spool.is_shared(&mut asking, &keys).await;
            let prepared = tokio::task::spawn_blocking(move || {
                prepare(batch, node, generation, as_known, shared.then(|| spool.chunks()))
            })
            .await;
            Ok(Some(prepared.map_err(anyhow::Error::from)??))
        };
        let preparing = preparing.instrument(span).into_actor(self);
        ctx.spawn(preparing.map(move |prepared, actor, _| match prepared {
            Ok(Some((ranges, outgoing))) => {
                work.done();
                told.in_scope(|| tracing::debug!("its critical features are online"));
                actor.windows[urgency as usize].push(ranges, outgoing);
                actor.pump();
            }
            Ok(None) => {}
            // Its tickets were dropped with it: its sources open again.
            Err(NotQueued::Generation(why)) => {
                METER.error("generation");
                told.in_scope(|| tracing::warn!(why, "a batch was not queued"));
                actor.suspect_all();
            }
            Err(NotQueued::Other(error)) => {
                let error = format!("{error:#}");
                told.in_scope(|| tracing::error!(error, "a batch was not queued"));
            }
        }));
    }
}

impl Handler<Queued> for RedisQueue {
    type Result = ();

    fn handle(&mut self, Queued { round, id }: Queued, _: &mut Self::Context) {
        if let Some(unanswered) = self.unanswered.get_mut(&round) {
            unanswered.id = Some(id);
        }
    }
}

impl Handler<Answered> for RedisQueue {
    type Result = ();

    fn handle(&mut self, Answered(answer): Answered, ctx: &mut Self::Context) {
        // An answer to an earlier instance, or a second one, is nobody's.
        let Some(unanswered) = self.unanswered.remove(&answer.round) else { return };
        let step = unanswered.step();
        match answer.reply {
            QueueReply::Opened { source, reply } => {
                if let OpenReply::Opened { token, next_pos, .. } = &reply {
                    self.windows(&source).opened(source.clone(), *token, *next_pos);
                    self.parts.durable.opened(source.clone(), *next_pos);
                }
                self.tell_ingest(SourceOpened { source, reply, asked: true }, 1, ctx);
            }
            // Operators ask under a list of their own.
            QueueReply::Adopted { .. } => {}
            QueueReply::Written { verdicts } => {
                let held = Duration::from_micros(answer.held_us);
                METER.answered(held, unanswered.sent_at.elapsed());
                step.answered(verdicts.iter().map(|v| v.decision));
                for (part, verdict) in unanswered.parts.into_iter().zip(verdicts) {
                    self.settle(part, verdict, ctx);
                }
            }
            // Nobody asks for these through this actor.
            QueueReply::Registered { .. } | QueueReply::Noted(_) | QueueReply::Uploaded(_) => {}
            QueueReply::Refused { reason } => {
                METER.error("unreadable");
                step.fail(&reason);
                for source in unanswered.sources {
                    let reply = OpenReply::Halted { reason: reason.clone() };
                    let halt = SourceOpened { source, reply, asked: false };
                    self.tell_ingest(halt, ACK_TRIES, ctx);
                }
            }
        }
        self.pump();
    }
}
