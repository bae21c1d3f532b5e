//! Feeding a source whose records lie at hand into the flow: a replay of dead letters, a file.
//!
//! Such a source has positions `[0, total)`. The store says where to go on; each range carries a
//! ticket, and when one comes back unsettled the source is opened again. So each position is
//! accounted once, across kills and restarts, and whoever sent before is fenced by the token.

use crate::{
    actors::{
        BatchAccumulator, RedisQueue,
        redis_queue::{rows, select},
    },
    config::Config,
    messages::{
        CloseSource, Credit, OpenSource, RECORD_OVERHEAD, Records, SourceBatch, SourceOpened,
    },
    protocol::{
        source::{OpenReply, OpenRequest, Position, Promised, SourceAttributes, SourceName, Token},
        ticket::{Abandoned, Ticket},
    },
    queue::{Keys, RedisLink},
    supervision::{Link, Undelivered},
    text::sql_literal,
};
use anyhow::bail;
use std::{
    cell::RefCell,
    collections::HashMap,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{
    Semaphore,
    mpsc::{self, UnboundedReceiver, UnboundedSender},
};

/// How long the store may take to open a source.
const OPENING: Duration = Duration::from_secs(30);
/// How often the store's position is asked for at the end of a source.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// Records of one part at most: a worker, Redis and DuckDB have them in their hands for tens of
/// milliseconds, and what is live waits for that.
const PIECE_ROWS: usize = 16_384;
/// A peer between two lives, or a source that was abandoned, is tried again after so long.
const SOON: Duration = Duration::from_millis(50);

/// What a feeder needs of its node.
#[derive(Clone)]
pub struct FeederParts {
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
}

/// What the RedisQueue tells of a source.
pub enum Heard {
    /// The answer to its open.
    Opened(SourceOpened),
    /// The store has some more of it.
    Acknowledged,
}

/// Who hears of which source; shared between an actor and its tasks.
#[derive(Clone, Default)]
pub struct Ears(Rc<RefCell<HashMap<SourceName, UnboundedSender<Heard>>>>);

impl Ears {
    /// Passes on what was told of a source; nobody may be listening any more.
    pub fn tell(&self, source: &SourceName, heard: Heard) {
        if let Some(sender) = self.0.borrow().get(source) {
            // The receiver belongs to a task that may just have ended.
            let _ = sender.send(heard);
        }
    }

    fn listen(&self, source: &SourceName) -> Listening {
        let (sender, heard) = mpsc::unbounded_channel();
        self.0.borrow_mut().insert(source.clone(), sender);
        Listening { ears: self.clone(), source: source.clone(), heard }
    }
}

/// What is told of one source, as long as this lives.
struct Listening {
    ears: Ears,
    source: SourceName,
    heard: UnboundedReceiver<Heard>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.ears.0.borrow_mut().remove(&self.source);
    }
}

/// A share of the bytes in flight that the sources of one kind may hold together, in KiB.
#[derive(Clone)]
pub struct Share {
    /// What is free of it.
    pub credit: Arc<Semaphore>,
    /// All of it.
    pub total: usize,
}

/// What is to be fed.
#[derive(Debug, Clone)]
pub struct Feed {
    /// Index of the stream in the configuration.
    pub stream: usize,
    /// The source.
    pub source: SourceName,
    /// Its positions are `[0, total)`.
    pub total: Position,
}

/// Where the records come from.
pub(crate) trait Supply {
    /// Records at the positions from `from` on, without a hole: at least one, at most `most`.
    async fn records(&mut self, from: Position, most: usize) -> anyhow::Result<Records>;

    /// Whether this node may still feed the source; asked before each opening.
    async fn is_ours(&mut self) -> anyhow::Result<bool> {
        Ok(true)
    }
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fed {
    /// Every position is accounted for.
    Landed,
    /// Another node feeds it now.
    Gone,
}

/// A source, opened.
struct Opened {
    promised: Option<Promised>,
    token: Token,
    source_no: i32,
    next_pos: Position,
}

/// The way on after some records were sent.
enum Step {
    /// They are all with the store.
    Done,
    /// Some were lost on the way: the source is opened again.
    Again,
}

/// See the module.
pub struct Feeder {
    parts: FeederParts,
    keys: Keys,
    ears: Ears,
    share: Option<Share>,
}

impl Feeder {
    /// A feeder for the sources that `ears` hears of; together they hold no more than `share`.
    #[must_use]
    pub fn new(parts: FeederParts, ears: Ears, share: Option<Share>) -> Self {
        let keys = Keys::new(&parts.config.node.namespace);
        Self { parts, keys, ears, share }
    }

    /// Brings a source to its end.
    ///
    /// # Errors
    /// When it is halted, its records cannot be had, or the store does not answer for long. It can
    /// be tried again.
    pub(crate) async fn feed(&self, feed: &Feed, supply: &mut impl Supply) -> anyhow::Result<Fed> {
        let mut listening = self.ears.listen(&feed.source);
        let (abandon, mut abandoned) = mpsc::unbounded_channel();
        loop {
            if !supply.is_ours().await? {
                return Ok(Fed::Gone);
            }
            let opened = self.open(feed, &mut listening).await?;
            let sent = self.send(feed, supply, &opened, &abandon, &mut abandoned).await;
            let step = match sent {
                Ok(Step::Done) => self.landed(feed, &opened, &mut listening, &mut abandoned).await,
                other => other,
            };
            match step {
                Ok(Step::Again) => tokio::time::sleep(SOON).await,
                ended => {
                    // Between two lives its windows are gone, and the source with them.
                    let _ = self.parts.queue.deliver(CloseSource(feed.source.clone()));
                    ended?;
                    self.forget(&feed.source).await;
                    return Ok(Fed::Landed);
                }
            }
        }
    }

    async fn open(&self, feed: &Feed, listening: &mut Listening) -> anyhow::Result<Opened> {
        let Feed { source, total, .. } = feed;
        let open = OpenRequest {
            source: source.clone(),
            owner: self.parts.owner.clone(),
            attributes: SourceAttributes::default(),
            start: 0,
            low: 0,
            high: *total,
            ephemeral: false,
            partitions: None,
            ends: Vec::new(),
        };
        // An answer to an earlier question must not be taken for this one's.
        while listening.heard.try_recv().is_ok() {}
        if let Err(Undelivered(_)) = self.parts.queue.deliver(OpenSource(open)) {
            bail!("the queue is between two lives");
        }
        let answer = async {
            while let Some(heard) = listening.heard.recv().await {
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

    /// Sends all records that the store does not have.
    async fn send(
        &self,
        feed: &Feed,
        supply: &mut impl Supply,
        opened: &Opened,
        abandon: &UnboundedSender<Abandoned>,
        abandoned: &mut UnboundedReceiver<Abandoned>,
    ) -> anyhow::Result<Step> {
        let Feed { stream, source, total } = feed;
        let mut from = opened.next_pos;
        // The accumulator joins parts but never splits one.
        let at_once = self.parts.config.batch.max_rows.clamp(1, PIECE_ROWS);
        while from < *total {
            // What was shown online already runs under the version that showed it.
            let promised = opened.promised.as_ref().filter(|p| from < p.to);
            let most = promised.map_or(at_once, |p| at_once.min((p.to - from) as usize));
            let records = supply.records(from, most).await?;
            let to = from + records.len() as i64;
            let ticket = Ticket::new(source.clone(), opened.token, from, to, abandon.clone());
            let credit = self.credit(&records).await?;
            if lost(abandoned, opened.token) {
                return Ok(Step::Again);
            }
            let mut batch = SourceBatch {
                stream: *stream,
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
        Ok(Step::Done)
    }

    /// A share of the pool of bytes in flight, as soon as there is one; first one of the kind's own,
    /// so that whoever waits for it holds nothing of the pool.
    async fn credit(&self, records: &Records) -> anyhow::Result<Credit> {
        let kib = ((records.bytes() + records.len() * RECORD_OVERHEAD) >> 10) + 1;
        let of = |total: usize| u32::try_from(kib.min(total)).unwrap_or(u32::MAX);
        let mut credit = match &self.share {
            None => Credit::default(),
            Some(Share { credit, total }) => {
                Credit::new(credit.clone().acquire_many_owned(of(*total)).await?)
            }
        };
        let pool = self.parts.credit.clone();
        credit.join(Credit::new(pool.acquire_many_owned(of(self.parts.total_credit)).await?));
        Ok(credit)
    }

    /// Waits until the store has everything.
    async fn landed(
        &self,
        feed: &Feed,
        opened: &Opened,
        listening: &mut Listening,
        abandoned: &mut UnboundedReceiver<Abandoned>,
    ) -> anyhow::Result<Step> {
        loop {
            if next_pos(&self.parts.redis, &self.keys, &feed.source).await? >= feed.total {
                return Ok(Step::Done);
            }
            let told = tokio::time::timeout(ASK_EVERY, listening.heard.recv()).await;
            if let Ok(Some(Heard::Opened(SourceOpened { source, reply, .. }))) = told
                && let OpenReply::Halted { reason } = reply
                && source == feed.source
            {
                bail!("{reason}");
            }
            if lost(abandoned, opened.token) {
                return Ok(Step::Again);
            }
        }
    }
}

impl Feeder {
    /// Takes a source that has ended out of Redis: nobody will write under its token any more, and
    /// sources like it come again and again.
    async fn forget(&self, source: &SourceName) {
        let forgetting = async {
            let mut connection = self.parts.redis.manager().await?;
            let mut pipeline = redis::pipe();
            pipeline.hdel(self.keys.tokens(), source.0.as_ref()).ignore();
            pipeline.hdel(self.keys.promised(), source.0.as_ref()).ignore();
            pipeline.exec_async(&mut connection).await
        };
        if let Err(error) = forgetting.await {
            tracing::debug!(%error, %source, "two fields of an ended source stay in Redis");
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

/// The store's position in a source.
async fn next_pos(redis: &RedisLink, keys: &Keys, source: &SourceName) -> anyhow::Result<i64> {
    let sql = format!(
        "SELECT coalesce(arg_max(next_pos, source_no), 0) FROM sources WHERE source = {}",
        sql_literal(&source.0)
    );
    let batches = select(redis, keys, sql).await?;
    Ok(rows(&batches).next().and_then(|row| row.int(0)).unwrap_or_default())
}
