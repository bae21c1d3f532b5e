//! Plain write requests: rows that any client puts on the stream `{ns}:writes`.
//!
//! Input: entries with a field `json` and, optionally, `reply`. Output: writes to the DuckDbWriter,
//! answers on the lists that clients named. The stream is a source like any other, `writes:<ns>`:
//! an entry's id is its position, a batch's range runs from where the last one ended, and a batch
//! that the store does not take makes the source open again. Several instances in turn, or even
//! at once, cannot store an entry twice: the store's token and watermark decide.
//!
//! An entry leaves the stream together with its answer, and only after the store's verdict. Killed
//! in between, the next instance finds the entry pending, below the store's position, and looks up
//! in DuckDB what became of it.

mod batch;
mod entries;

use super::server::{BLOCK, ensure_group};
use crate::{
    actors::DuckDbWriter,
    config::Config,
    decode::Decoder,
    messages::{EntryDuty, OnlineValue, QueueEntry, QueueReply, QueueRequest, WriteRequest},
    online::{self, OnlineOutcome, Promise},
    protocol::{
        plain_writes::{self, EntryId},
        source::{OpenReply, OpenRequest, Position, SourceAttributes, SourceName, Token},
    },
    queue::{self, Keys, RETRY, ReadingSlot, RedisLink},
    supervision::{Link, Undelivered},
    telemetry::StageMeter,
};
use actix::{Actor, AsyncContext, Context, WrapFuture};
use anyhow::{Context as _, bail};
use batch::{Batch, Effect};
use entries::{Answer, Entry};
use redis::aio::{ConnectionManager, MultiplexedConnection};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::oneshot;

const METER: StageMeter = StageMeter::new("redis_queue");

/// The longest wait between two attempts while the store or Redis cannot go on.
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// Online values whose rows may be durable while Redis lost the values in between: the next opening
/// writes them again. They outlive an instance, because after a FLUSHALL no entry tells of them.
pub type Owed = Arc<Mutex<Vec<OnlineValue>>>;

/// Takes plain write requests off their stream, see the module.
pub struct PlainWrites {
    config: Arc<Config>,
    redis: RedisLink,
    writer: Link<DuckDbWriter>,
    owed: Owed,
    reading: ReadingSlot,
}

impl PlainWrites {
    /// An instance that first reads what an earlier one left unanswered.
    #[must_use]
    pub fn new(
        config: Arc<Config>,
        redis: RedisLink,
        writer: Link<DuckDbWriter>,
        owed: Owed,
        reading: ReadingSlot,
    ) -> Self {
        Self { config, redis, writer, owed, reading }
    }
}

impl Actor for PlainWrites {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let serving = Serving {
            keys: Keys::new(&self.config.node.namespace),
            source: plain_writes::source(&self.config.node.namespace),
            decoder: Decoder::plain_writes(),
            config: self.config.clone(),
            redis: self.redis.clone(),
            writer: self.writer.clone(),
            owed: self.owed.clone(),
            reading: self.reading.clone(),
        };
        ctx.spawn(async move { serving.run().await }.into_actor(self));
    }
}

/// What the task of one instance works with.
struct Serving {
    config: Arc<Config>,
    keys: Keys,
    source: SourceName,
    decoder: Decoder,
    redis: RedisLink,
    writer: Link<DuckDbWriter>,
    owed: Owed,
    reading: ReadingSlot,
}

/// The source, opened.
struct Opened {
    token: Token,
    source_no: i32,
    /// Everything before it is in DuckDB.
    next_pos: Position,
    /// Redis' generation when it was opened.
    generation: String,
}

impl Serving {
    /// Goes on until the actor ends. Whatever goes wrong, the way back is the same: open again.
    async fn run(self) {
        let mut wait = RETRY;
        loop {
            let mut progress = false;
            if let Err(error) = self.serve(&mut progress).await {
                METER.error("plain_writes");
                let error = format!("{error:#}");
                tracing::warn!(error, "plain writes are not served; opening their source again");
            }
            wait = if progress { RETRY } else { (wait * 2).min(LONGEST_RETRY) };
            tokio::time::sleep(wait).await;
        }
    }

    async fn serve(&self, progress: &mut bool) -> anyhow::Result<()> {
        let mut reading = self.reading.connect(&self.redis, BLOCK).await?;
        let mut commands = self.redis.manager().await?;
        let stream = self.keys.writes();
        ensure_group(&mut reading, &stream).await?;
        let mut opened = self.open(&mut commands).await?;
        self.reach(&mut commands, opened.next_pos).await?;
        self.pay(&mut commands, &opened).await?;
        // Own pending entries first: what an earlier instance read is older than what is new.
        let mut pending = true;
        let mut count = entries::FIRST_COUNT;
        loop {
            let found = entries::read(&mut reading, &stream, pending, count).await?;
            if found.is_empty() {
                pending = false;
                continue;
            }
            count = entries::next_count(count, &found);
            let work = METER.begin();
            METER.received(found.len());
            self.take(&mut commands, &mut opened, found).await?;
            work.done();
            *progress = true;
        }
    }

    /// Ids of entries to come must not fall below the store's position, even if Redis lost the
    /// stream and its clock went back.
    async fn reach(&self, commands: &mut ConnectionManager, next: Position) -> anyhow::Result<()> {
        match EntryId::of_position(next - 1) {
            Some(last) => Ok(entries::forward(commands, &self.keys.writes(), last).await?),
            None => Ok(()),
        }
    }

    fn owed(&self) -> MutexGuard<'_, Vec<OnlineValue>> {
        // A panicking holder cannot leave the list half-changed.
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes online what is owed. A value whose row is not durable yet is only early.
    async fn pay(&self, commands: &mut ConnectionManager, opened: &Opened) -> anyhow::Result<()> {
        let owed = self.owed().clone();
        if !owed.is_empty() {
            self.put_online(commands, opened, opened.next_pos, &owed).await?;
            self.owed().clear();
        }
        Ok(())
    }

    /// Asks the writer something and waits for its verdict. `id` is the same when the same is
    /// asked again.
    async fn ask(&self, id: String, request: QueueRequest) -> anyhow::Result<QueueReply> {
        let (answer, verdict) = oneshot::channel();
        let duty = EntryDuty::direct(answer);
        let entry = QueueEntry { id, reply_to: String::new(), round: 0, request, duty };
        match self.writer.deliver(entry) {
            Ok(()) => verdict.await.context("the writer was killed before it decided"),
            Err(Undelivered(_)) => bail!("the writer is between two lives"),
        }
    }

    async fn open(&self, commands: &mut ConnectionManager) -> anyhow::Result<Opened> {
        let generation = queue::generation_at_last(&self.redis, &self.keys).await?;
        let open = OpenRequest {
            source: self.source.clone(),
            owner: self.config.node_name(),
            attributes: SourceAttributes::default(),
            start: 0,
            low: 0,
            high: Position::MAX,
            ephemeral: false,
            partitions: None,
            ends: Vec::new(),
        };
        match self.ask(format!("open {}", self.source), QueueRequest::Open(open)).await? {
            QueueReply::Opened {
                reply: OpenReply::Opened { token, source_no, next_pos, .. },
                ..
            } => {
                entries::put_token(commands, &self.keys, &self.source, token).await?;
                Ok(Opened { token, source_no, next_pos, generation })
            }
            other => bail!("the store does not open {}: {other:?}", self.source),
        }
    }

    /// Brings entries to their end: stored and answered, found to be stored, or quarantined.
    async fn take(
        &self,
        commands: &mut ConnectionManager,
        opened: &mut Opened,
        found: Vec<Entry>,
    ) -> anyhow::Result<()> {
        let mut answers = Vec::with_capacity(found.len());
        let (mut fresh, mut earlier) = (Vec::new(), Vec::new());
        for entry in found {
            match entry.id.position() {
                // A client took it back; there is nothing left to store.
                Ok(_) if entry.deleted => answers.push(Answer::nothing(entry)),
                Ok(at) if at < opened.next_pos => earlier.push((at, entry)),
                Ok(at) => fresh.push((at, entry)),
                Err(detail) => {
                    answers.push(Answer::quarantined(entry, "id_is_no_position", detail))
                }
            }
        }
        if !earlier.is_empty() {
            answers.extend(self.look_up(opened, earlier).await?);
        }
        let mut last = None;
        if let Some((at, entry)) = fresh.last() {
            last = Some(entry.id);
            let to = at + 1;
            let batch = batch::decode(&self.decoder, &fresh)?;
            let effects = self.store(commands, opened, batch, to).await?;
            crate::crash_point!("i_plain_decided");
            opened.next_pos = to;
            answers.extend(fresh.into_iter().zip(effects).map(|((_, e), f)| Answer::of(e, f)));
        }
        let stranger = answers.iter().filter(|a| a.is_quarantined()).map(Answer::id).max();
        METER.sent(answers.len());
        entries::answer(commands, &self.keys, answers).await?;
        crate::crash_point!("i_plain_answered");
        let stream = self.keys.writes();
        if let Some(stranger) = stranger {
            // An id that no good one can follow must not keep out every later one as well.
            let floor = EntryId::of_position(opened.next_pos - 1);
            if !entries::mend(commands, &stream, floor).await? {
                last = last.max(Some(stranger));
            }
        }
        match last.filter(|id| id.is_nearly_full()).and_then(EntryId::next_ms) {
            Some(next) => Ok(entries::forward(commands, &stream, next).await?),
            None => Ok(()),
        }
    }

    /// Online first, then DuckDB. Gives the effect of each entry.
    async fn store(
        &self,
        commands: &mut ConnectionManager,
        opened: &Opened,
        batch: Batch,
        to: Position,
    ) -> anyhow::Result<Vec<Effect>> {
        let Opened { token, source_no, next_pos, generation } = opened;
        let source = &self.source;
        let values = batch.critical(&self.config.streams, *source_no);
        self.put_online(commands, opened, to, &values).await?;
        crate::crash_point!("e_plain_online");
        *self.owed() = values;
        let node = self.config.node_name();
        let range = batch::Range { source: source.clone(), token: *token, from: *next_pos, to };
        let write: WriteRequest = batch.request(node, generation.clone(), range)?;
        let id = format!("{source} {next_pos}");
        let verdict = match self.ask(id, QueueRequest::Write(write)).await? {
            QueueReply::Written { verdicts } => verdicts.into_iter().next(),
            other => bail!("the store does not take a batch of {source}: {other:?}"),
        };
        let verdict = verdict.context("the store gave no verdict")?;
        if !verdict.decision.is_ok() {
            let (answer, next_pos) = (verdict.decision.name(), verdict.next_pos);
            bail!(
                "the store did not take [{next_pos}, {to}) of {source}: {answer}, it is at {next_pos}"
            );
        }
        // Redis is still the one that took the values, now that their rows are durable: whatever it
        // loses from here on, DuckDB has to put back.
        self.put_online(commands, opened, to, &[]).await?;
        self.owed().clear();
        Ok(batch.effects)
    }

    /// Writes values online; without any it only makes sure that Redis is what it was.
    async fn put_online(
        &self,
        commands: &mut ConnectionManager,
        opened: &Opened,
        to: Position,
        values: &[OnlineValue],
    ) -> anyhow::Result<()> {
        let Opened { token, generation, .. } = opened;
        let (keys, source) = (&self.keys, &self.source);
        // One batch at a time: everything before it is durable.
        let promise = Promise { to, script_sha256: "", settled: true };
        match online::write(commands, keys, generation, source, *token, &promise, values).await? {
            OnlineOutcome::Written => Ok(()),
            OnlineOutcome::Fenced => bail!("{source} was opened by another, or Redis was emptied"),
            OnlineOutcome::Early => bail!("{source} promised a script, which is a defect"),
            OnlineOutcome::Generation => bail!("Redis lost everything"),
        }
    }

    /// What became of entries that lie below the store's position: an earlier instance stored them
    /// and was killed before it answered. One that DuckDB does not know was never seen before: its
    /// id lies in the past.
    async fn look_up(
        &self,
        opened: &Opened,
        earlier: Vec<(Position, Entry)>,
    ) -> anyhow::Result<Vec<Answer>> {
        let positions: Vec<Position> = earlier.iter().map(|(at, _)| *at).collect();
        let stored = entries::stored(&self.redis, &self.keys, opened.source_no, &positions).await?;
        let answers = earlier.into_iter().map(|(at, entry)| match stored.get(&at) {
            Some(effect) => Answer::of(entry, effect.clone()).into_duplicate(),
            None => {
                let next = EntryId::of_position(opened.next_pos);
                let next = next.map(|id| id.to_string()).unwrap_or_default();
                let detail = format!("ids before {next} are taken; add it again");
                Answer::quarantined(entry, "id_in_the_past", detail)
            }
        });
        Ok(answers.collect())
    }
}

/// The connection on which entries are read.
type Reading = MultiplexedConnection;
