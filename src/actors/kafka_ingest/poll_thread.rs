//! The thread that polls Kafka. It lives as long as the node; instances of the KafkaIngest actor
//! adopt it, so that killing the actor never costs a rebalance.

use super::{
    context::{IngestContext, Rebalanced},
    lane::{HALTED_RETRY, Lane, LaneState, Opened, REOPEN_AFTER, Reading, Taken},
};
use crate::{
    actors::BatchAccumulator,
    config::Config,
    kafka::{self, AcknowledgedPositions},
    messages::{Acknowledged, Credit, Record, SourceBatch, SourceOpened},
    protocol::{
        source::{OpenReply, SourceName, Token},
        ticket::{Abandoned, Ticket},
    },
    supervision::{FatalSender, Link},
    telemetry::{StageMeter, catalogue as m},
};
use crossbeam_channel::{Receiver, Sender};
use rdkafka::{
    Message as _, Offset, Timestamp, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer},
    message::{BorrowedMessage, Headers},
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::{Semaphore, mpsc};
use uuid::Uuid;

const METER: StageMeter = StageMeter::new("kafka_ingest");

/// Header that carries the producer's UUID, as text or as its 16 bytes.
pub const EVENT_ID_HEADER: &str = "event_id";

/// Longest wait for a record; commands and acknowledgements are looked at at least this often.
const POLL_TIMEOUT: Duration = Duration::from_millis(5);
/// A chunk is handed on when its first record is so old, even while records keep coming.
const CHUNK_AGE: Duration = Duration::from_millis(4);
/// Records a chunk: large enough that a message costs nothing, small enough to fill batches well.
const CHUNK_ROWS: usize = 8_192;
/// Offsets are committed at most so often.
const COMMIT_EVERY: Duration = Duration::from_millis(200);
/// A seek that librdkafka does not take yet is tried again after so long.
const SEEK_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes that a record costs in memory besides its payload.
const RECORD_OVERHEAD: usize = 64;

/// What the thread is told.
#[derive(Debug)]
pub enum Command {
    /// The store's answer to an open.
    Opened(SourceOpened),
    /// DuckDB holds more.
    Acknowledged(Acknowledged),
    /// Hand on what was polled and poll no more; answered when that is done.
    Quiesce(Sender<()>),
    /// Commit what is acknowledged and leave the group; the thread ends.
    Stop,
}

/// A partition whose position the store must tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its source.
    pub source: SourceName,
    /// Topic.
    pub topic: String,
    /// Partition of the topic.
    pub partition: i32,
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
    /// Where partitions that must be opened go: the actor's instance asks the store.
    pub wanted: mpsc::UnboundedSender<Wanted>,
    /// Positions that DuckDB acknowledged.
    pub acknowledged: Arc<AcknowledgedPositions>,
    /// The pool of KiB in flight.
    pub credit: Arc<Semaphore>,
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
        let context = IngestContext {
            rebalanced: Mutex::default(),
            acknowledged: parts.acknowledged.clone(),
        };
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

struct Polling {
    parts: PollThreadParts,
    consumer: Arc<BaseConsumer<IngestContext>>,
    commands: Receiver<Command>,
    abandoned: mpsc::UnboundedReceiver<Abandoned>,
    abandon: mpsc::UnboundedSender<Abandoned>,
    status: IngestStatus,
    lanes: Vec<Lane>,
    /// The lane of the last record: records come in runs of one partition.
    last: usize,
    /// Chunks that wait for credit or for the accumulator, in order.
    stuck: VecDeque<SourceBatch>,
    total_credit: usize,
    chunk_rows: usize,
    chunk_bytes: usize,
    paused: bool,
    quiesced: bool,
    stopping: bool,
    last_commit: Instant,
    committed: BTreeMap<(String, i32), i64>,
    blocked_since: Option<Instant>,
}

impl Polling {
    fn new(
        parts: PollThreadParts,
        consumer: Arc<BaseConsumer<IngestContext>>,
        commands: Receiver<Command>,
        status: IngestStatus,
    ) -> Self {
        let (abandon, abandoned) = mpsc::unbounded_channel();
        let batch = &parts.config.batch;
        Self {
            total_credit: parts.credit.available_permits(),
            chunk_rows: CHUNK_ROWS.min(batch.max_rows),
            chunk_bytes: (batch.max_bytes / 4).max(1),
            parts,
            consumer,
            commands,
            abandoned,
            abandon,
            status,
            lanes: Vec::new(),
            last: 0,
            stuck: VecDeque::new(),
            paused: false,
            quiesced: false,
            stopping: false,
            last_commit: Instant::now(),
            committed: BTreeMap::new(),
            blocked_since: None,
        }
    }

    fn run(mut self) {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.poll_loop()));
        if outcome.is_err() {
            self.parts.fatal.report("kafka_ingest", "the poll thread panicked");
        }
    }

    fn poll_loop(&mut self) {
        let mut until_chores = 0u32;
        while !self.stopping {
            let wait = if self.has_open_chunk() { Duration::ZERO } else { POLL_TIMEOUT };
            let consumer = self.consumer.clone();
            let idle = match consumer.poll(wait) {
                Some(Ok(message)) => {
                    self.take(&message);
                    false
                }
                Some(Err(error)) => {
                    self.poll_error(&error);
                    true
                }
                None => true,
            };
            // Chores cost a few locks: with records flowing they are done every so many.
            until_chores += 1;
            if idle || until_chores >= 512 {
                until_chores = 0;
                self.chores(idle);
            }
        }
        self.commit(CommitMode::Sync);
    }

    fn chores(&mut self, idle: bool) {
        self.rebalanced();
        self.obey();
        self.reopen_abandoned();
        self.advance_lanes();
        self.cut_chunks(idle);
        self.push_stuck();
        self.balance();
        if self.last_commit.elapsed() >= COMMIT_EVERY {
            self.commit(CommitMode::Async);
            self.publish();
        }
    }

    fn poll_error(&self, error: &rdkafka::error::KafkaError) {
        use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
        METER.error("kafka");
        match error {
            KafkaError::MessageConsumptionFatal(code) => {
                self.parts.fatal.report("kafka_ingest", format!("librdkafka gave up: {code}"));
            }
            // Said while a partition is being set to its position; the seek that follows mends it.
            KafkaError::MessageConsumption(Code::AutoOffsetReset) => {
                tracing::debug!(%error, "a position did not resolve");
            }
            _ => tracing::warn!(%error, "Kafka"),
        }
    }

    fn take(&mut self, message: &BorrowedMessage<'_>) {
        let Some(i) = self.lane_of(message.topic(), message.partition()) else { return };
        let LaneState::Reading(reading) = &mut self.lanes[i].state else { return };
        let record = Record {
            position: message.offset(),
            timestamp_us: timestamp_us(message.timestamp()),
            event_id: event_id(message),
            payload: message.payload(),
        };
        match reading.take(record, Instant::now()) {
            Taken::Kept => {
                if reading.chunk.len() >= self.chunk_rows
                    || reading.chunk.bytes() >= self.chunk_bytes
                {
                    self.cut(i);
                    self.push_stuck();
                }
            }
            Taken::Stale => {}
            Taken::Reseek(position) => {
                let lane = &self.lanes[i];
                let sought = self.consumer.seek(
                    &lane.topic,
                    lane.partition,
                    Offset::Offset(position),
                    SEEK_TIMEOUT,
                );
                if let Err(error) = sought {
                    tracing::warn!(%error, source = %lane.source, "seek refused; opening the source again");
                    self.reopen(i);
                }
            }
        }
    }

    fn lane_of(&mut self, topic: &str, partition: i32) -> Option<usize> {
        let is = |lane: &Lane| lane.partition == partition && lane.topic == topic;
        if !self.lanes.get(self.last).is_some_and(is) {
            self.last = self.lanes.iter().position(is)?;
        }
        Some(self.last)
    }

    fn has_open_chunk(&self) -> bool {
        self.lanes.iter().any(|lane| match &lane.state {
            LaneState::Reading(reading) => reading.chunk_since.is_some(),
            _ => false,
        })
    }

    /// Partitions came or went.
    fn rebalanced(&mut self) {
        let context = self.consumer.context().clone();
        let events =
            std::mem::take(&mut *context.rebalanced.lock().unwrap_or_else(PoisonError::into_inner));
        for event in events {
            match event {
                Rebalanced::Assigned(partitions) => {
                    tracing::info!(count = partitions.len(), "partitions assigned");
                    for (topic, partition) in partitions {
                        self.add_lane(topic, partition);
                    }
                }
                Rebalanced::Revoked(partitions) => {
                    tracing::info!(count = partitions.len(), "partitions revoked");
                    let gone = |lane: &Lane| {
                        partitions.iter().any(|(t, p)| *t == lane.topic && *p == lane.partition)
                    };
                    self.lanes.retain(|lane| !gone(lane));
                    self.committed.retain(|key, _| !partitions.contains(key));
                }
            }
        }
    }

    fn add_lane(&mut self, topic: String, partition: i32) {
        let streams = &self.parts.config.streams;
        let Some(stream) = streams.iter().position(|s| s.topic == topic) else { return };
        let source = SourceName::kafka(&streams[stream].name, &topic, partition);
        self.lanes.retain(|lane| lane.source != source);
        let state = LaneState::Opening(Instant::now());
        self.lanes.push(Lane { stream, topic, partition, source, state });
        self.ask(self.lanes.len() - 1);
    }

    /// Has the actor ask the store for the lane's position.
    fn ask(&mut self, i: usize) {
        let lane = &mut self.lanes[i];
        lane.state = LaneState::Opening(Instant::now());
        let Lane { source, topic, partition, .. } = lane;
        let wanted = Wanted { source: source.clone(), topic: topic.clone(), partition: *partition };
        // The receiver lives in the node as long as this thread.
        let _ = self.parts.wanted.send(wanted);
    }

    /// Throws away what was read since the store's position and reads it again.
    fn reopen(&mut self, i: usize) {
        let lane = &self.lanes[i];
        if let Err(error) = self.consumer.pause(&one(&lane.topic, lane.partition)) {
            tracing::warn!(%error, source = %lane.source, "pause refused");
        }
        self.ask(i);
    }

    fn reopen_abandoned(&mut self) {
        while let Ok(Abandoned { source, token, from }) = self.abandoned.try_recv() {
            let current = |lane: &Lane| lane.source == source && lane.token() == Some(token);
            if let Some(i) = self.lanes.iter().position(current) {
                METER.error("abandoned");
                tracing::debug!(%source, from, "a batch was dropped unsettled: reading again");
                self.reopen(i);
            }
        }
    }

    fn obey(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Opened(opened) => self.opened(opened),
                Command::Acknowledged(acknowledged) => {
                    let Acknowledged { source, next_pos, .. } = acknowledged;
                    if let Some(lane) = self.lanes.iter().find(|lane| lane.source == source) {
                        self.parts.acknowledged.advance(&lane.topic, lane.partition, next_pos);
                    }
                }
                Command::Quiesce(done) => {
                    self.quiesced = true;
                    self.set_paused(true);
                    self.cut_chunks(true);
                    self.push_stuck();
                    // Whoever asked may have stopped waiting.
                    let _ = done.send(());
                }
                Command::Stop => self.stopping = true,
            }
        }
    }

    fn opened(&mut self, SourceOpened { source, reply }: SourceOpened) {
        let Some(lane) = self.lanes.iter_mut().find(|lane| lane.source == source) else { return };
        match reply {
            // Only the answer to an open question counts; a later one would carry a later token.
            OpenReply::Opened { token, source_no, next_pos }
                if matches!(lane.state, LaneState::Opening(_)) =>
            {
                self.parts.acknowledged.advance(&lane.topic, lane.partition, next_pos);
                lane.state = LaneState::Seeking(Opened { token, source_no, next_pos });
            }
            OpenReply::Opened { .. } => {}
            OpenReply::Halted { reason } => {
                tracing::error!(%source, reason, "the source is halted");
                if let Err(error) = self.consumer.pause(&one(&lane.topic, lane.partition)) {
                    tracing::warn!(%error, %source, "pause refused");
                }
                lane.state = LaneState::Halted { since: Instant::now(), reason };
            }
        }
    }

    /// Takes the steps that lanes wait for.
    fn advance_lanes(&mut self) {
        for i in 0..self.lanes.len() {
            match &self.lanes[i].state {
                LaneState::Opening(since) if since.elapsed() >= REOPEN_AFTER => self.ask(i),
                LaneState::Halted { since, .. } if since.elapsed() >= HALTED_RETRY => self.ask(i),
                LaneState::Seeking(opened) => {
                    let opened = *opened;
                    self.seek(i, opened);
                }
                _ => {}
            }
        }
    }

    fn seek(&mut self, i: usize, opened: Opened) {
        let lane = &mut self.lanes[i];
        let offset = Offset::Offset(opened.next_pos);
        if let Err(error) = self.consumer.seek(&lane.topic, lane.partition, offset, SEEK_TIMEOUT) {
            // The partition is not far enough in its assignment; the next round tries again.
            tracing::debug!(%error, source = %lane.source, "seek not taken yet");
            return;
        }
        lane.state = LaneState::Reading(Reading::new(opened));
        if !self.paused {
            let list = one(&lane.topic, lane.partition);
            if let Err(error) = self.consumer.resume(&list) {
                tracing::warn!(%error, source = %lane.source, "resume refused");
            }
        }
    }

    /// Turns chunks that are old enough, or all when nothing more is there, into batches.
    fn cut_chunks(&mut self, all: bool) {
        for i in 0..self.lanes.len() {
            let due = match &self.lanes[i].state {
                LaneState::Reading(r) => {
                    r.chunk_since.is_some_and(|t| all || t.elapsed() >= CHUNK_AGE)
                }
                _ => false,
            };
            if due {
                self.cut(i);
            }
        }
    }

    fn cut(&mut self, i: usize) {
        let lane = &mut self.lanes[i];
        let LaneState::Reading(reading) = &mut lane.state else { return };
        let size = (reading.chunk.len(), reading.chunk.bytes());
        let Some((records, from, to, polled_at)) = reading.cut(size) else { return };
        let Opened { token, source_no, .. } = reading.opened;
        let source = lane.source.clone();
        let ticket = Ticket::new(source.clone(), token, from, to, self.abandon.clone());
        self.stuck.push_back(SourceBatch {
            stream: lane.stream,
            source,
            token,
            source_no,
            from,
            to,
            records: vec![records],
            ticket,
            credit: Credit::default(),
            polled_at,
        });
    }

    /// Hands chunks on, in order, as far as there is credit and an accumulator.
    fn push_stuck(&mut self) {
        while let Some(mut batch) = self.stuck.pop_front() {
            let rows: usize = batch.records.iter().map(crate::messages::Records::len).sum();
            let bytes: usize = batch.records.iter().map(crate::messages::Records::bytes).sum();
            let kib = ((bytes + rows * RECORD_OVERHEAD) >> 10) + 1;
            let kib = u32::try_from(kib.min(self.total_credit)).unwrap_or(u32::MAX);
            match self.parts.credit.clone().try_acquire_many_owned(kib) {
                Ok(permit) => batch.credit = Credit::new(permit),
                Err(_) => {
                    self.stuck.push_front(batch);
                    break;
                }
            }
            METER.received(rows);
            match self.parts.accumulator.deliver(batch) {
                Ok(()) => METER.sent(rows),
                Err(crate::supervision::Undelivered(mut batch)) => {
                    // The accumulator is between two lives: its credit goes back meanwhile.
                    batch.credit = Credit::default();
                    self.stuck.push_front(batch);
                    break;
                }
            }
        }
        METER.queue_depth(self.stuck.len());
    }

    /// Pauses while chunks are stuck and resumes with a wide hysteresis: pausing drops what
    /// librdkafka has prefetched.
    fn balance(&mut self) {
        if self.quiesced {
            return;
        }
        if !self.paused && self.stuck.len() > 1 {
            self.blocked_since = Some(Instant::now());
            self.set_paused(true);
        } else if self.paused
            && self.stuck.is_empty()
            && self.parts.credit.available_permits() * 2 >= self.total_credit
        {
            if let Some(since) = self.blocked_since.take() {
                METER.blocked(since.elapsed());
            }
            self.set_paused(false);
        }
    }

    fn set_paused(&mut self, pause: bool) {
        self.paused = pause;
        let mut list = TopicPartitionList::new();
        for lane in &mut self.lanes {
            if let LaneState::Reading(reading) = &mut lane.state {
                list.add_partition(&lane.topic, lane.partition);
                reading.resumed();
            }
        }
        if list.count() == 0 {
            return;
        }
        let done = if pause { self.consumer.pause(&list) } else { self.consumer.resume(&list) };
        if let Err(error) = done {
            tracing::warn!(%error, pause, "pausing or resuming was refused");
        }
    }

    /// Commits acknowledged positions, and only those.
    fn commit(&mut self, mode: CommitMode) {
        self.last_commit = Instant::now();
        let mut list = TopicPartitionList::new();
        for lane in &self.lanes {
            let Some(next) = self.parts.acknowledged.get(&lane.topic, lane.partition) else {
                continue;
            };
            let key = (lane.topic.clone(), lane.partition);
            if self.committed.get(&key) == Some(&next) {
                continue;
            }
            if list.add_partition_offset(&lane.topic, lane.partition, Offset::Offset(next)).is_ok()
            {
                self.committed.insert(key, next);
            }
        }
        if list.count() > 0
            && let Err(error) = self.consumer.commit(&list, mode)
        {
            tracing::warn!(%error, "offset commit refused; DuckDB's positions count");
            self.committed.clear();
        }
    }

    /// Tells the status page.
    fn publish(&self) {
        let mut halted = 0;
        let mut status = BTreeMap::new();
        for lane in &self.lanes {
            let mut s = PartitionStatus {
                acknowledged: self.parts.acknowledged.get(&lane.topic, lane.partition),
                ..PartitionStatus::default()
            };
            match &lane.state {
                LaneState::Opening(_) => s.state = "opening",
                LaneState::Seeking(_) => s.state = "seeking",
                LaneState::Reading(reading) => {
                    s.state = "reading";
                    s.position = Some(reading.next);
                }
                LaneState::Halted { reason, .. } => {
                    halted += 1;
                    s.state = "halted";
                    s.reason = Some(reason.clone());
                }
            }
            status.insert(lane.source.to_string(), s);
        }
        metrics::gauge!(m::KAFKA_HALTED).set(f64::from(halted));
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

impl Lane {
    fn token(&self) -> Option<Token> {
        match &self.state {
            LaneState::Reading(reading) => Some(reading.opened.token),
            LaneState::Seeking(opened) => Some(opened.token),
            _ => None,
        }
    }
}

fn one(topic: &str, partition: i32) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(1);
    list.add_partition(topic, partition);
    list
}

fn timestamp_us(timestamp: Timestamp) -> i64 {
    match timestamp {
        Timestamp::CreateTime(ms) | Timestamp::LogAppendTime(ms) => ms.saturating_mul(1_000),
        // Brokers since 0.10 always say; without it the moment of reading is the nearest truth.
        Timestamp::NotAvailable => chrono::Utc::now().timestamp_micros(),
    }
}

fn event_id(message: &BorrowedMessage<'_>) -> Option<Uuid> {
    let header = message.headers()?.iter().find(|h| h.key == EVENT_ID_HEADER)?;
    let value = header.value?;
    Uuid::from_slice(value).or_else(|_| Uuid::try_parse_ascii(value)).ok()
}
