//! Replayer: dead letters, sent through the script again.
//!
//! Input: replays that the store has written down (through the [`ReplayDesk`]). Output:
//! [`SourceBatch`]es to the BatchAccumulator, as from any other source: a replay is the source
//! `replay:<stream>/<id>`, the place of a letter in it is its position. Promises that each place is
//! accounted once, across kills and restarts: the store's position says where to go on, and its
//! token fences whoever sent before. A replay belongs to the node by whose name it was registered.

mod desk;
mod letters;

pub use desk::{Outcome, Refused, Registered, ReplayDesk};
pub use letters::{Filter, quoted};

use crate::{
    actors::{BatchAccumulator, RedisQueue},
    config::Config,
    messages::{
        Acknowledged, CloseSource, Credit, OpenSource, RECORD_OVERHEAD, Record, Records,
        SourceBatch, SourceOpened,
    },
    protocol::{
        source::{OpenReply, OpenRequest, Position, Promised, SourceAttributes, SourceName, Token},
        ticket::{Abandoned, Ticket},
    },
    queue::{Keys, RedisLink},
    supervision::{Link, Undelivered},
};
use actix::{Actor, AsyncContext, Context, Handler, WrapFuture};
use anyhow::{Context as _, bail};
use letters::{Resent, Unfinished};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{
    Semaphore,
    mpsc::{self, UnboundedReceiver, UnboundedSender},
};

/// How often it looks for replays that are not done.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long the store may take to open a source.
const OPENING: Duration = Duration::from_secs(30);
/// How often the store's position is asked for at the end of a replay.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// A peer between two lives, or a source that was abandoned, is tried again after so long.
const SOON: Duration = Duration::from_millis(50);

/// What outlives an instance.
#[derive(Clone)]
pub struct ReplayerParts {
    /// The configuration.
    pub config: Arc<Config>,
    /// Redis.
    pub redis: RedisLink,
    /// This run of this node, for people.
    pub owner: String,
    /// Where sources are opened.
    pub queue: Link<RedisQueue>,
    /// Where batches go.
    pub accumulator: Link<BatchAccumulator>,
    /// The pool of bytes in flight, in KiB.
    pub credit: Arc<Semaphore>,
    /// All of it.
    pub total_credit: usize,
    /// Tells when there is something to do.
    pub desk: Arc<ReplayDesk>,
}

/// See the module.
pub struct Replayer {
    parts: ReplayerParts,
    heard: Option<UnboundedSender<Heard>>,
}

/// What the RedisQueue told.
enum Heard {
    Opened(SourceOpened),
    Acknowledged,
}

impl Replayer {
    /// An instance that goes on where the store is.
    #[must_use]
    pub fn new(parts: ReplayerParts) -> Self {
        Self { parts, heard: None }
    }

    fn tell(&self, heard: Heard) {
        if let Some(sender) = &self.heard {
            // The receiver is a task of this actor, and ends with it.
            let _ = sender.send(heard);
        }
    }
}

impl Actor for Replayer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let (sender, heard) = mpsc::unbounded_channel();
        self.heard = Some(sender);
        let keys = Keys::new(&self.parts.config.node.namespace);
        let replaying = Replaying { parts: self.parts.clone(), keys, heard };
        ctx.spawn(replaying.run().into_actor(self));
    }
}

impl Handler<SourceOpened> for Replayer {
    type Result = ();

    fn handle(&mut self, opened: SourceOpened, _: &mut Self::Context) {
        self.tell(Heard::Opened(opened));
    }
}

impl Handler<Acknowledged> for Replayer {
    type Result = ();

    fn handle(&mut self, _: Acknowledged, _: &mut Self::Context) {
        self.tell(Heard::Acknowledged);
    }
}

struct Replaying {
    parts: ReplayerParts,
    keys: Keys,
    heard: UnboundedReceiver<Heard>,
}

/// A replay's source, opened.
struct Opened {
    promised: Option<Promised>,
    token: Token,
    source_no: i32,
    next_pos: Position,
}

/// The way on after some letters were sent.
enum Step {
    /// They are all with the store.
    Done,
    /// Some were lost on the way: the source is opened again.
    Again,
}

impl Replaying {
    async fn run(mut self) {
        let name = self.parts.config.node_name();
        loop {
            match letters::unfinished(&self.parts.redis, &self.keys, &name).await {
                Ok(replays) => {
                    for replay in replays {
                        let id = replay.replay_id.clone();
                        match self.replay(&replay).await {
                            Ok(()) => {
                                tracing::info!(replay = id, letters = replay.letters, "replayed")
                            }
                            Err(error) => {
                                let error = format!("{error:#}");
                                tracing::warn!(replay = id, error, "a replay waits; trying again");
                            }
                        }
                    }
                }
                Err(error) => {
                    tracing::debug!(error = %format!("{error:#}"), "replays cannot be looked for");
                }
            }
            tokio::select! {
                () = self.parts.desk.nudge.notified() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Brings a replay to its end.
    async fn replay(&mut self, replay: &Unfinished) -> anyhow::Result<()> {
        let streams = &self.parts.config.streams;
        let stream = streams
            .iter()
            .position(|s| s.name == replay.stream)
            .with_context(|| format!("there is no stream `{}` any more", replay.stream))?;
        let source = SourceName(replay.source.as_str().into());
        let (abandon, mut abandoned) = mpsc::unbounded_channel();
        loop {
            let opened = self.open(&source, replay.letters).await?;
            let sent = self.send(stream, replay, &source, &opened, &abandon, &mut abandoned).await;
            let step = match sent {
                Ok(Step::Done) => self.landed(replay, &source, &opened, &mut abandoned).await,
                other => other,
            };
            match step {
                Ok(Step::Again) => tokio::time::sleep(SOON).await,
                ended => {
                    // Between two lives its windows are gone, and the source with them.
                    let _ = self.parts.queue.deliver(CloseSource(source));
                    return ended.map(drop);
                }
            }
        }
    }

    async fn open(&mut self, source: &SourceName, letters: i64) -> anyhow::Result<Opened> {
        let open = OpenRequest {
            source: source.clone(),
            owner: self.parts.owner.clone(),
            attributes: SourceAttributes::default(),
            start: 0,
            low: 0,
            high: letters,
            ephemeral: false,
            partitions: None,
            ends: Vec::new(),
        };
        // An answer to an earlier question must not be taken for this one's.
        while self.heard.try_recv().is_ok() {}
        if let Err(Undelivered(_)) = self.parts.queue.deliver(OpenSource(open)) {
            bail!("the queue is between two lives");
        }
        let answer = async {
            while let Some(heard) = self.heard.recv().await {
                match heard {
                    Heard::Opened(opened) if opened.source == *source => return Some(opened.reply),
                    _ => {}
                }
            }
            None
        };
        match tokio::time::timeout(OPENING, answer).await {
            Ok(Some(OpenReply::Opened { token, source_no, next_pos, promised })) => {
                Ok(Opened { token, source_no, next_pos, promised })
            }
            Ok(Some(OpenReply::Halted { reason })) => bail!("{reason}"),
            Ok(Some(OpenReply::Waiting { .. })) => bail!("only partitions of a topic wait"),
            Ok(None) => bail!("the actor ends"),
            Err(_) => bail!("no store opened {source} within {OPENING:?}"),
        }
    }

    /// Sends all letters that the store does not have.
    async fn send(
        &self,
        stream: usize,
        replay: &Unfinished,
        source: &SourceName,
        opened: &Opened,
        abandon: &UnboundedSender<Abandoned>,
        abandoned: &mut UnboundedReceiver<Abandoned>,
    ) -> anyhow::Result<Step> {
        let mut from = opened.next_pos;
        // The accumulator joins parts but never splits one.
        let at_once = self.parts.config.batch.max_rows.max(1);
        while from < replay.letters {
            let found = letters::of_replay(&self.parts.redis, &self.keys, replay, from).await?;
            let mut rest = found.as_slice();
            while !rest.is_empty() {
                // What was shown online already runs under the version that showed it.
                let promised = opened.promised.as_ref().filter(|p| from < p.to);
                let most = promised.map_or(at_once, |p| at_once.min((p.to - from) as usize));
                let (letters, later) = rest.split_at(most.min(rest.len()));
                rest = later;
                let to = from + letters.len() as i64;
                let ticket = Ticket::new(source.clone(), opened.token, from, to, abandon.clone());
                let records = records(letters);
                let credit = self.credit(&records).await?;
                if lost(abandoned, opened.token) {
                    return Ok(Step::Again);
                }
                let mut batch = SourceBatch {
                    stream,
                    source: source.clone(),
                    token: opened.token,
                    source_no: opened.source_no,
                    from,
                    to,
                    pinned: promised.map(|p| p.script_sha256.as_str().into()),
                    records: vec![records],
                    ticket,
                    credit,
                    polled_at: Instant::now(),
                };
                while let Err(Undelivered(back)) = self.parts.accumulator.deliver(batch) {
                    batch = back;
                    tokio::time::sleep(SOON).await;
                }
                from = to;
            }
        }
        Ok(Step::Done)
    }

    /// A share of the pool of bytes in flight, as soon as there is one.
    async fn credit(&self, records: &Records) -> anyhow::Result<Credit> {
        let kib = ((records.bytes() + records.len() * RECORD_OVERHEAD) >> 10) + 1;
        let kib = u32::try_from(kib.min(self.parts.total_credit)).unwrap_or(u32::MAX);
        Ok(Credit::new(self.parts.credit.clone().acquire_many_owned(kib).await?))
    }

    /// Waits until the store has everything.
    async fn landed(
        &mut self,
        replay: &Unfinished,
        source: &SourceName,
        opened: &Opened,
        abandoned: &mut UnboundedReceiver<Abandoned>,
    ) -> anyhow::Result<Step> {
        loop {
            if letters::next_pos(&self.parts.redis, &self.keys, &replay.source).await?
                >= replay.letters
            {
                return Ok(Step::Done);
            }
            let told = tokio::time::timeout(ASK_EVERY, self.heard.recv()).await;
            if let Ok(Some(Heard::Opened(SourceOpened { source: of, reply }))) = told
                && let OpenReply::Halted { reason } = reply
                && of == *source
            {
                bail!("{reason}");
            }
            if lost(abandoned, opened.token) {
                return Ok(Step::Again);
            }
        }
    }
}

/// Whether anything that was sent under the token was dropped on its way.
fn lost(abandoned: &mut UnboundedReceiver<Abandoned>, token: Token) -> bool {
    let mut lost = false;
    while let Ok(report) = abandoned.try_recv() {
        lost |= report.token == token;
    }
    lost
}

fn records(letters: &[Resent]) -> Records {
    let bytes = letters.iter().map(|l| l.payload.len()).sum();
    let mut records = Records::with_capacity(letters.len(), bytes);
    for letter in letters {
        records.push(Record {
            position: letter.place,
            timestamp_us: letter.recorded_at_us,
            event_id: letter.event_id,
            payload: Some(&letter.payload),
        });
    }
    records
}
