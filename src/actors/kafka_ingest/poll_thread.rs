//! The thread that polls Kafka. It lives as long as the node; instances of the KafkaIngest actor
//! adopt it, so that killing the actor never costs a rebalance.

use super::{context::IngestContext, holds::StreamHolds, polling::Polling};
use crate::{
    actors::BatchAccumulator,
    config::Config,
    kafka::{self, AcknowledgedPositions},
    messages::SourceOpened,
    protocol::source::{Position, SourceName},
    supervision::{FatalSender, Link},
};
use crossbeam_channel::Sender;
use rdkafka::consumer::{BaseConsumer, Consumer};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::{Semaphore, mpsc};

/// What the thread is told.
#[derive(Debug)]
pub enum Command {
    /// The store's answer to an open.
    Opened(SourceOpened),
    /// What a probe found.
    Probed {
        /// The source.
        source: SourceName,
        /// Where its lane was.
        from: Position,
        /// There is no record in `[from, to)`; `None`: that is not known.
        to: Option<Position>,
    },
    /// An operator has decided on a source: ask the store again for all that are halted.
    AskAgain,
    /// Hand on what was polled and poll no more; answered when that is done.
    Quiesce(Sender<()>),
    /// Commit what is acknowledged and leave the group; the thread ends.
    Stop,
}

/// What the thread wants the actor to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The store must tell the position of a partition.
    Open {
        /// Its source.
        source: SourceName,
        /// Topic.
        topic: String,
        /// Partition of the topic.
        partition: i32,
    },
    /// Nothing comes of a partition though its log goes on: is there a record at all?
    Probe {
        /// Its source.
        source: SourceName,
        /// Topic.
        topic: String,
        /// Partition of the topic.
        partition: i32,
        /// The lane's position.
        from: Position,
    },
    /// A partition went to another node.
    Close(SourceName),
}

/// What the thread tells the status page.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct PartitionStatus {
    /// `opening`, `seeking`, `reading`, `halted`.
    pub state: &'static str,
    /// Why it is halted.
    pub reason: Option<String>,
    /// The position that is read next.
    pub position: Option<i64>,
    /// The position that the store acknowledged.
    pub acknowledged: Option<i64>,
}

/// The partitions of this node by source.
pub type IngestStatus = Arc<Mutex<BTreeMap<String, PartitionStatus>>>;

/// What the thread needs.
pub struct PollThreadParts {
    /// The node's configuration.
    pub config: Arc<Config>,
    /// Where records go.
    pub accumulator: Link<BatchAccumulator>,
    /// Where partitions that must be opened or were revoked go: the actor's instance tells others.
    pub wanted: mpsc::UnboundedSender<Wanted>,
    /// Positions that DuckDB acknowledged.
    pub acknowledged: Arc<AcknowledgedPositions>,
    /// The pool of KiB in flight.
    pub credit: Arc<Semaphore>,
    /// Streams that are to stand still.
    pub holds: Arc<StreamHolds>,
    /// Where to say that the thread cannot go on.
    pub fatal: FatalSender,
}

/// The running thread.
pub struct PollThread {
    commands: Sender<Command>,
    consumer: Arc<BaseConsumer<IngestContext>>,
    status: IngestStatus,
    join: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl PollThread {
    /// Joins the consumer group and starts polling.
    ///
    /// # Errors
    /// When the settings are refused or no thread can be made.
    pub fn start(parts: PollThreadParts) -> anyhow::Result<Arc<Self>> {
        let context = IngestContext::new(parts.acknowledged.clone());
        let consumer: BaseConsumer<IngestContext> =
            kafka::consumer_config(&parts.config.kafka).create_with_context(context)?;
        let topics: Vec<&str> = parts.config.streams.iter().map(|s| s.topic.as_str()).collect();
        consumer.subscribe(&topics)?;
        let consumer = Arc::new(consumer);
        let (commands, received) = crossbeam_channel::unbounded();
        let status = IngestStatus::default();
        let polling = Polling::new(parts, consumer.clone(), received, status.clone());
        let join =
            std::thread::Builder::new().name("kafka-poll".into()).spawn(move || polling.run())?;
        Ok(Arc::new(Self { commands, consumer, status, join: Mutex::new(Some(join)) }))
    }

    /// Tells the thread something. A thread that ended has said why to `fatal`.
    pub fn tell(&self, command: Command) {
        // An error means that the thread ended, which is either asked for or fatal.
        let _ = self.commands.send(command);
    }

    /// The consumer, for questions to the broker from other threads.
    #[must_use]
    pub fn consumer(&self) -> Arc<BaseConsumer<IngestContext>> {
        self.consumer.clone()
    }

    /// The partitions of this node.
    #[must_use]
    pub fn status(&self) -> BTreeMap<String, PartitionStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Commits, leaves the group and waits for the thread's end. Blocks.
    pub fn stop(&self) {
        self.tell(Command::Stop);
        let join = self.join.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(join) = join
            && join.join().is_err()
        {
            tracing::error!("the Kafka poll thread panicked");
        }
    }
}
