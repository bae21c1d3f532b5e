//! KafkaIngest: records of the topics into the pipeline, from where DuckDB says.
//!
//! Takes records from Kafka, gives [`SourceBatch`](crate::messages::SourceBatch)es to the
//! BatchAccumulator. Promises:
//!
//! * a source is read from the position that the store told with the newest token, in both
//!   directions, whatever the broker's committed offset is;
//! * a batch that is dropped anywhere before the store acknowledged it is read again;
//! * an offset is committed only when DuckDB holds everything before it;
//! * when the pipeline is full, partitions pause while polling goes on, so no rebalance follows.
//!
//! The polling itself is done by a thread ([`PollThread`]) that survives this actor. The actor
//! asks the store for positions and passes answers on.

mod context;
mod hand_on;
mod holds;
mod lag;
mod lane;
mod passing;
mod place;
mod poll_thread;
mod polling;

pub use holds::StreamHolds;
pub use poll_thread::{Command, PartitionStatus, PollThread, PollThreadParts, Wanted};

use crate::{
    actors::RedisQueue,
    config::{Config, StartAt},
    kafka,
    messages::{Acknowledged, CloseSource, OpenSource, SourceOpened},
    planted,
    protocol::source::{OpenReply, OpenRequest, Position, SourceAttributes, SourceName},
    supervision::{Link, Undelivered},
    telemetry::{self, StageMeter},
};
use actix::{Actor, AsyncContext, Context, Handler, WrapFuture};
use context::IngestContext;
use rdkafka::{
    TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

const METER: StageMeter = StageMeter::new("kafka_ingest");

/// A topic's partitions are counted again after so long.
const COUNT_AGAIN: Duration = Duration::from_secs(10);
/// Partitions that came later → older ones that they wait for → the ends these had, once asked.
type Discovered = HashMap<SourceName, Vec<(SourceName, Option<Position>)>>;

/// How often an open is offered to a RedisQueue that is between two lives.
const HAND_OVER_TRIES: u32 = 200;
/// The pause between two offers.
const HAND_OVER_PAUSE: Duration = Duration::from_millis(10);

/// Partitions that wait to be opened. The receiver survives the actor.
pub type WantedReceiver = Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Wanted>>>;

/// See the module.
pub struct KafkaIngest {
    thread: Arc<PollThread>,
    wanted: WantedReceiver,
    queue: Link<RedisQueue>,
    asker: Arc<Asker>,
}

/// Asks the broker what an open must say.
struct Asker {
    config: Arc<Config>,
    thread: Arc<PollThread>,
    owner: String,
    /// Set for an embedded broker, which has no lasting identity of its own.
    ephemeral_cluster: Option<String>,
    cluster_id: Mutex<Option<String>>,
    /// Partitions of each topic, and when they were counted.
    counted: Mutex<HashMap<String, (i32, Instant)>>,
    /// Partitions that came later, with the ends of the older ones that they wait for.
    discovered: Mutex<Discovered>,
}

impl KafkaIngest {
    /// An instance that adopts the running thread. `ephemeral_cluster` is the made-up id of an
    /// embedded broker.
    #[must_use]
    pub fn new(
        config: Arc<Config>,
        thread: Arc<PollThread>,
        wanted: WantedReceiver,
        queue: Link<RedisQueue>,
        owner: String,
        ephemeral_cluster: Option<String>,
    ) -> Self {
        let asker = Asker {
            config,
            thread: thread.clone(),
            owner,
            ephemeral_cluster,
            cluster_id: Mutex::new(None),
            counted: Mutex::default(),
            discovered: Mutex::default(),
        };
        Self { thread, wanted, queue, asker: Arc::new(asker) }
    }
}

impl Asker {
    /// Blocks on the broker.
    fn request(
        &self,
        source: SourceName,
        topic: &str,
        partition: i32,
    ) -> anyhow::Result<OpenRequest> {
        let consumer = self.thread.consumer();
        let attributes = match &self.ephemeral_cluster {
            Some(id) => SourceAttributes { cluster_id: Some(id.clone()), topic_id: None },
            None => SourceAttributes {
                cluster_id: self.cluster_id(),
                topic_id: kafka::topic_id(
                    consumer.client().native_client(),
                    topic,
                    kafka::BROKER_TIMEOUT,
                ),
            },
        };
        let ends = self.ends(&consumer, &source)?;
        let partitions = self.partitions(&consumer, topic)?;
        // Last: the store holds the log's end against its own position, which writes of the owner before
        // still move.
        let (low, high) = kafka::watermarks(&consumer, topic, partition)?;
        let mut start = match self.config.kafka.start {
            StartAt::Earliest => low,
            StartAt::Latest => high,
        };
        if planted!("start_at_committed") {
            start = committed(&consumer, topic, partition)?.unwrap_or(start);
        }
        Ok(OpenRequest {
            source,
            owner: self.owner.clone(),
            attributes,
            start,
            low,
            high,
            ephemeral: self.ephemeral_cluster.is_some(),
            partitions,
            ends,
        })
    }

    /// Partitions of a topic. A number that is a little old is good enough: a partition beyond it is
    /// taken for one that came later, and then waits for the others.
    fn partitions(
        &self,
        consumer: &BaseConsumer<IngestContext>,
        topic: &str,
    ) -> anyhow::Result<Option<i32>> {
        let counted = || self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((n, at)) = counted().get(topic)
            && at.elapsed() < COUNT_AGAIN
        {
            return Ok(Some(*n));
        }
        let metadata = consumer.fetch_metadata(Some(topic), kafka::BROKER_TIMEOUT)?;
        let n = metadata.topics().first().and_then(|t| i32::try_from(t.partitions().len()).ok());
        if let Some(n) = n {
            counted().insert(topic.to_owned(), (n, Instant::now()));
        }
        Ok(n)
    }

    /// The ends of older partitions that this one waits for, as they were when that was first known.
    fn ends(
        &self,
        consumer: &BaseConsumer<IngestContext>,
        source: &SourceName,
    ) -> anyhow::Result<Vec<(SourceName, Position)>> {
        let mut known = self.discovered().get(source).cloned().unwrap_or_default();
        for (older, end) in &mut known {
            if end.is_none()
                && let Some((topic, partition)) = older.kafka_partition()
            {
                *end = Some(kafka::watermarks(consumer, topic, partition)?.1);
            }
        }
        if !known.is_empty() {
            self.discovered().insert(source.clone(), known.clone());
        }
        Ok(known.into_iter().filter_map(|(older, end)| Some((older, end?))).collect())
    }

    /// The store told which older partitions a source waits for.
    fn waits_for(&self, source: &SourceName, older: &[SourceName]) {
        let mut discovered = self.discovered();
        let known = discovered.entry(source.clone()).or_default();
        for name in older {
            if !known.iter().any(|(known, _)| known == name) {
                known.push((name.clone(), None));
            }
        }
    }

    /// A panicking holder leaves the map whole.
    fn discovered(&self) -> std::sync::MutexGuard<'_, Discovered> {
        self.discovered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cluster_id(&self) -> Option<String> {
        let known = self.cluster_id.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if known.is_some() {
            return known;
        }
        let asked = self.thread.consumer().client().fetch_cluster_id(kafka::BROKER_TIMEOUT);
        self.cluster_id.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&asked);
        asked
    }
}

/// The offset that the group has committed, for the planted defect `start_at_committed`.
fn committed(
    consumer: &BaseConsumer<IngestContext>,
    topic: &str,
    partition: i32,
) -> anyhow::Result<Option<Position>> {
    let mut list = TopicPartitionList::with_capacity(1);
    list.add_partition(topic, partition);
    let found = consumer.committed_offsets(list, kafka::BROKER_TIMEOUT)?;
    Ok(found.elements().first().and_then(|element| element.offset().to_raw()).filter(|at| *at >= 0))
}

/// Opens sources as the poll thread wants them, until the actor ends.
async fn open_wanted(wanted: WantedReceiver, asker: Arc<Asker>, queue: Link<RedisQueue>) {
    // Held until the actor ends: the next instance waits here until this one is really gone.
    let mut wanted = wanted.lock().await;
    while let Some(next) = wanted.recv().await {
        let (source, topic, partition) = match next {
            Wanted::Open { source, topic, partition } => (source, topic, partition),
            Wanted::Probe { source, topic, partition, from } => {
                tokio::task::spawn_local(probe(asker.clone(), source, topic, partition, from));
                continue;
            }
            Wanted::Close(source) => {
                // Between two lives its windows are gone, and the source with them.
                let _ = queue.deliver(CloseSource(source));
                continue;
            }
        };
        let asker = asker.clone();
        let queue = queue.clone();
        // Side by side: many partitions come at once, and each costs a round trip or two.
        tokio::task::spawn_local(async move {
            let named = source.clone();
            let request =
                tokio::task::spawn_blocking(move || asker.request(named, &topic, partition)).await;
            match request {
                Ok(Ok(open)) => hand_over(open, &queue).await,
                Ok(Err(error)) => {
                    METER.error("kafka");
                    tracing::warn!(%source, error = %format!("{error:#}"), "the broker did not answer; asking again soon");
                }
                Err(error) => tracing::error!(%source, %error, "asking the broker panicked"),
            }
        });
    }
}

/// Has a partition probed and tells the poll thread what can be passed.
async fn probe(
    asker: Arc<Asker>,
    source: SourceName,
    topic: String,
    partition: i32,
    from: Position,
) {
    let (config, thread) = (asker.config.clone(), asker.thread.clone());
    let probing =
        move || passing::probe(&config.kafka, &topic, partition, from).map_err(anyhow::Error::from);
    let found = tokio::task::spawn_blocking(probing).await.map_err(anyhow::Error::from).flatten();
    let to = found.unwrap_or_else(|error| {
        METER.error("kafka");
        tracing::warn!(%source, error = %format!("{error:#}"), "the partition could not be probed");
        None
    });
    thread.tell(Command::Probed { source, from, to });
}

/// Hands an open to the queue, which may be between two lives.
async fn hand_over(open: OpenRequest, queue: &Link<RedisQueue>) {
    let mut message = OpenSource(open);
    for _ in 0..HAND_OVER_TRIES {
        match queue.deliver(message) {
            Ok(()) => return,
            Err(Undelivered(back)) => message = back,
        }
        tokio::time::sleep(HAND_OVER_PAUSE).await;
    }
    tracing::warn!(source = %message.0.source, "the queue does not come back; asking again later");
}

impl Actor for KafkaIngest {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let opening = open_wanted(self.wanted.clone(), self.asker.clone(), self.queue.clone());
        ctx.spawn(opening.into_actor(self));
    }
}

impl Handler<SourceOpened> for KafkaIngest {
    type Result = ();

    fn handle(&mut self, opened: SourceOpened, _: &mut Self::Context) {
        match &opened.reply {
            OpenReply::Waiting { older } => self.asker.waits_for(&opened.source, older),
            OpenReply::Opened { .. } => drop(self.asker.discovered().remove(&opened.source)),
            OpenReply::Halted { .. } => {}
        }
        self.thread.tell(Command::Opened(opened));
    }
}

impl Handler<Acknowledged> for KafkaIngest {
    type Result = ();

    fn handle(&mut self, acknowledged: Acknowledged, _: &mut Self::Context) {
        let now = chrono::Utc::now().timestamp_micros();
        for at in &acknowledged.sampled_timestamps_us {
            telemetry::end_to_end("durable", (now - at).max(0) as f64 / 1e6);
        }
    }
}
