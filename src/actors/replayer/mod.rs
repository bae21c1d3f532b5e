//! Replayer: dead letters, sent through the script again.
//!
//! Input: replays that the store has written down (through the [`ReplayDesk`]). Output:
//! [`SourceBatch`](crate::messages::SourceBatch)es to the BatchAccumulator, as from any other source: a
//! replay is the source `replay:<stream>/<id>`, the place of a letter in it is its position. How it
//! is fed is the [`feeder`](super::feeder)'s. A replay belongs to the node by whose name it was
//! registered.

mod desk;
mod letters;

pub use desk::{Outcome, Refused, Registered, ReplayDesk};
pub use letters::Filter;

use super::feeder::{Ears, Fed, Feed, Feeder, FeederParts, Heard, Supply};
use crate::{
    messages::{Acknowledged, OfSource, Payload, Record, Records, SourceOpened},
    protocol::source::{Position, SourceName},
    queue::{Keys, RedisLink},
};
use actix::{Actor, AsyncContext, Context, Handler, WrapFuture};
use anyhow::Context as _;
use letters::{Resent, Unfinished};
use std::{collections::VecDeque, sync::Arc, time::Duration};

/// How often it looks for replays that are not done.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// What outlives an instance.
#[derive(Clone)]
pub struct ReplayerParts {
    /// The way into the flow.
    pub feeder: FeederParts,
    /// Tells when there is something to do.
    pub desk: Arc<ReplayDesk>,
}

/// See the module.
pub struct Replayer {
    parts: ReplayerParts,
    ears: Ears,
}

impl Replayer {
    /// An instance that goes on where the store is.
    #[must_use]
    pub fn new(parts: ReplayerParts) -> Self {
        Self { parts, ears: Ears::default() }
    }
}

impl Actor for Replayer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let ReplayerParts { feeder, desk } = self.parts.clone();
        let keys = Keys::new(&feeder.config.node.namespace);
        let replaying = Replaying {
            feeder: Feeder::new(feeder.clone(), self.ears.clone(), None),
            parts: feeder,
            desk,
            keys,
        };
        ctx.spawn(async move { replaying.run().await }.into_actor(self));
    }
}

impl Handler<SourceOpened> for Replayer {
    type Result = ();

    fn handle(&mut self, opened: SourceOpened, _: &mut Self::Context) {
        self.ears.tell(&opened.source.clone(), Heard::Opened(opened));
    }
}

impl Handler<Acknowledged> for Replayer {
    type Result = ();

    fn handle(&mut self, acknowledged: Acknowledged, _: &mut Self::Context) {
        self.ears.tell(acknowledged.source(), Heard::Acknowledged);
    }
}

struct Replaying {
    parts: FeederParts,
    desk: Arc<ReplayDesk>,
    keys: Keys,
    feeder: Feeder,
}

impl Replaying {
    async fn run(&self) {
        let name = self.parts.config.node_name();
        loop {
            match letters::unfinished(&self.parts.redis, &self.keys, &name).await {
                Ok(replays) => {
                    for replay in replays {
                        let (id, letters) = (replay.replay_id.clone(), replay.letters);
                        match self.replay(replay).await {
                            Ok(_) => tracing::info!(replay = id, letters, "replayed"),
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
                () = self.desk.nudge.notified() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Brings a replay to its end.
    async fn replay(&self, replay: Unfinished) -> anyhow::Result<Fed> {
        let streams = &self.parts.config.streams;
        let stream = streams
            .iter()
            .position(|s| s.name == replay.stream)
            .with_context(|| format!("there is no stream `{}` any more", replay.stream))?;
        let source = SourceName(replay.source.as_str().into());
        let feed = Feed { stream, source, total: replay.letters };
        let mut letters = Letters {
            redis: self.parts.redis.clone(),
            keys: self.keys.clone(),
            replay,
            found: VecDeque::new(),
        };
        self.feeder.feed(&feed, &mut letters).await
    }
}

/// The letters of a replay, as they are needed.
struct Letters {
    redis: RedisLink,
    keys: Keys,
    replay: Unfinished,
    /// Those that were looked up and not given yet.
    found: VecDeque<Resent>,
}

impl Supply for Letters {
    async fn records(&mut self, from: Position, most: usize) -> anyhow::Result<Records> {
        if self.found.front().is_none_or(|first| first.place != from) {
            let found = letters::of_replay(&self.redis, &self.keys, &self.replay, from).await?;
            self.found = found.into();
        }
        let n = most.min(self.found.len());
        Ok(records(self.found.drain(..n)))
    }
}

fn records(letters: impl ExactSizeIterator<Item = Resent>) -> Records {
    let mut records = Records::with_capacity(letters.len(), 0);
    for letter in letters {
        records.push(Record {
            position: letter.place,
            timestamp_us: letter.recorded_at_us,
            event_id: letter.event_id,
            payload: Payload::Json(&letter.payload),
        });
    }
    records
}
