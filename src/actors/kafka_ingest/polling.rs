//! The loop of the poll thread: records and commands in, lanes from state to state.

use super::{
    context::{IngestContext, Rebalanced},
    lag::Lag,
    lane::{
        HALTED_RETRY, Lane, LaneState, Opened, REOPEN_AFTER, REOPEN_AFTER_AT_MOST, Reading, Taken,
        WAITING_RETRY,
    },
    passing::Passing,
    place,
    poll_thread::{Command, IngestStatus, PollThreadParts, Wanted},
};
use crate::{
    kafka::{self, EVENT_ID_HEADER},
    messages::{Record, SourceBatch, SourceOpened},
    protocol::{
        source::{OpenReply, SourceName, Token},
        ticket::Abandoned,
    },
    telemetry::StageMeter,
};
use crossbeam_channel::Receiver;
use rdkafka::{
    Message as _, Timestamp,
    consumer::{BaseConsumer, CommitMode, Consumer},
    message::{BorrowedMessage, Headers},
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::sync::mpsc;
use uuid::Uuid;

pub(super) const METER: StageMeter = StageMeter::new("kafka_ingest");

/// Longest wait for a record; commands and acknowledgements are looked at at least this often.
const POLL_TIMEOUT: Duration = Duration::from_millis(5);
/// Records a chunk: large enough that a message costs nothing, small enough to fill batches well.
const CHUNK_ROWS: usize = 8_192;
/// Offsets are committed at most so often.
const COMMIT_EVERY: Duration = Duration::from_millis(200);
/// How long leaving the group may take.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(3);
/// The configured brokers are tried again when none was connected for so long.
const SECONDS_WITHOUT_BROKER: u32 = 3;
pub(super) struct Polling {
    pub(super) parts: PollThreadParts,
    pub(super) consumer: Arc<BaseConsumer<IngestContext>>,
    commands: Receiver<Command>,
    abandoned: mpsc::UnboundedReceiver<Abandoned>,
    pub(super) abandon: mpsc::UnboundedSender<Abandoned>,
    pub(super) status: IngestStatus,
    pub(super) lanes: Vec<Lane>,
    /// The lane of the last record: records come in runs of one partition.
    last: usize,
    /// Chunks that wait for credit or for the accumulator, in order.
    pub(super) stuck: VecDeque<SourceBatch>,
    pub(super) total_credit: usize,
    pub(super) chunk_rows: usize,
    pub(super) chunk_bytes: usize,
    pub(super) paused: bool,
    /// Streams that stand still beside that.
    pub(super) held: Vec<bool>,
    pub(super) quiesced: bool,
    stopping: bool,
    pub(super) last_commit: Instant,
    pub(super) last_full_commit: Instant,
    pub(super) committed: BTreeMap<(String, i32), i64>,
    pub(super) passing: Passing,
    /// When this thread last said how it spent its time, and the time on a processor it had then.
    pub(super) told: (Instant, Duration),
}

impl Polling {
    pub(super) fn new(
        parts: PollThreadParts,
        consumer: Arc<BaseConsumer<IngestContext>>,
        commands: Receiver<Command>,
        status: IngestStatus,
    ) -> Self {
        let (abandon, abandoned) = mpsc::unbounded_channel();
        let batch = &parts.config.batch;
        let held = vec![false; parts.config.streams.len()];
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
            held,
            quiesced: false,
            stopping: false,
            last_commit: Instant::now(),
            last_full_commit: Instant::now(),
            committed: BTreeMap::new(),
            passing: Passing::default(),
            told: (Instant::now(), Duration::ZERO),
        }
    }

    pub(super) fn run(mut self) {
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
        // Whatever became of the asynchronous ones.
        self.committed.clear();
        self.commit(CommitMode::Sync);
        self.leave();
    }

    /// Leaves the group. A consumer that is closed while it has partitions can end the process: an
    /// assertion of librdkafka fails when a rebalance comes in between (its issue 4792).
    fn leave(&self) {
        self.consumer.unsubscribe();
        let until = Instant::now() + LEAVE_TIMEOUT;
        while self.consumer.assignment().is_ok_and(|list| list.count() > 0)
            && Instant::now() < until
        {
            // The revocation is called back from here.
            self.consumer.poll(POLL_TIMEOUT);
        }
    }

    fn chores(&mut self, idle: bool) {
        self.rebalanced();
        self.obey();
        self.follow_holds();
        self.reopen_abandoned();
        self.advance_lanes();
        self.probe_quiet();
        self.cut_chunks(idle);
        self.push_stuck();
        self.balance();
        if self.last_commit.elapsed() >= COMMIT_EVERY {
            self.commit(CommitMode::Async);
            self.publish();
            self.tell_times();
            self.remember_brokers();
        }
    }

    fn remember_brokers(&self) {
        let without = &self.consumer.context().without_broker;
        if without.load(Ordering::Relaxed) >= SECONDS_WITHOUT_BROKER {
            without.store(0, Ordering::Relaxed);
            let brokers = &self.parts.config.kafka.brokers;
            kafka::remember_brokers(self.consumer.client().native_client(), brokers);
        }
    }

    fn poll_error(&mut self, error: &rdkafka::error::KafkaError) {
        use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
        METER.error("kafka");
        match error {
            KafkaError::MessageConsumptionFatal(code) => {
                self.parts.fatal.report("kafka_ingest", format!("librdkafka gave up: {code}"));
            }
            // A position that the broker does not have: librdkafka fetches no more of that
            // partition, and does not say which. Each is opened again, and the store halts the one
            // whose position lies outside the log.
            KafkaError::MessageConsumption(Code::AutoOffsetReset | Code::OffsetOutOfRange) => {
                tracing::warn!(%error, "a position is not in the broker's log; opening again");
                for i in 0..self.lanes.len() {
                    if matches!(self.lanes[i].state, LaneState::Reading(_)) {
                        self.reopen(i);
                    }
                }
            }
            _ => tracing::warn!(%error, "Kafka"),
        }
    }

    fn take(&mut self, message: &BorrowedMessage<'_>) {
        let Some(i) = self.lane_of(message.topic(), message.partition()) else { return };
        if matches!(&self.lanes[i].state, LaneState::Reading(r) if r.ends_before(message.offset()))
        {
            self.cut(i);
        }
        let LaneState::Reading(reading) = &mut self.lanes[i].state else { return };
        let record = Record {
            position: message.offset(),
            timestamp_us: timestamp_us(message.timestamp()),
            event_id: event_id(message),
            payload: message.payload().into(),
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
            Taken::Doubt(_) => self.doubt(i),
            Taken::Reseek(position) => {
                let lane = &self.lanes[i];
                let sought = place::seek(&self.consumer, &lane.topic, lane.partition, position);
                if let Err(error) = sought {
                    tracing::warn!(%error, source = %lane.source, "seek refused; opening the source again");
                    self.reopen(i);
                }
            }
        }
    }

    pub(super) fn lane_of(&mut self, topic: &str, partition: i32) -> Option<usize> {
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
                    for lane in self.lanes.iter().filter(|lane| gone(lane)) {
                        // The receiver lives in the node as long as this thread.
                        let _ = self.parts.wanted.send(Wanted::Close(lane.source.clone()));
                    }
                    self.lanes.retain(|lane| !gone(lane));
                    // Whoever reads them next reads these again.
                    let lanes = &self.lanes;
                    self.stuck.retain(|batch| lanes.iter().any(|l| l.source == batch.source));
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
        let state = LaneState::opening(REOPEN_AFTER);
        let lag = Lag::default();
        let refused_once = false;
        self.lanes.push(Lane { stream, topic, partition, source, state, lag, refused_once });
        self.ask(self.lanes.len() - 1);
    }

    /// Has the actor ask the store for the lane's position.
    fn ask(&mut self, i: usize) {
        let lane = &mut self.lanes[i];
        lane.state = match std::mem::replace(&mut lane.state, LaneState::opening(REOPEN_AFTER)) {
            // Until the answer comes it stays what it is, and says why.
            LaneState::Halted { reason, .. } => LaneState::Halted { since: Instant::now(), reason },
            LaneState::Waiting { older, .. } => LaneState::Waiting { since: Instant::now(), older },
            LaneState::Opening { wait, .. } => {
                LaneState::opening((wait * 2).min(REOPEN_AFTER_AT_MOST))
            }
            _ => LaneState::opening(REOPEN_AFTER),
        };
        lane.lag.reopened();
        let Lane { source, topic, partition, .. } = lane;
        // Chunks that wait under the old token would only be refused.
        self.stuck.retain(|batch| batch.source != *source);
        let wanted =
            Wanted::Open { source: source.clone(), topic: topic.clone(), partition: *partition };
        // The receiver lives in the node as long as this thread.
        let _ = self.parts.wanted.send(wanted);
    }

    /// Throws away what was read since the store's position and reads it again.
    pub(super) fn reopen(&mut self, i: usize) {
        let lane = &self.lanes[i];
        if let Err(error) = place::pause(&self.consumer, &lane.topic, lane.partition) {
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
                Command::Probed { source, from, to } => self.probed(&source, from, to),
                Command::AskAgain => {
                    for i in 0..self.lanes.len() {
                        if matches!(self.lanes[i].state, LaneState::Halted { .. }) {
                            self.ask(i);
                        }
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

    fn opened(&mut self, SourceOpened { source, reply, asked }: SourceOpened) {
        let Some(i) = self.lanes.iter().position(|lane| lane.source == source) else { return };
        let lane = &mut self.lanes[i];
        let refused = asked && matches!(reply, OpenReply::Halted { .. });
        let was_refused = std::mem::replace(&mut lane.refused_once, refused);
        match reply {
            // A newer token than the one in use, whatever the lane does: an open that was asked
            // twice is answered twice, and only the last token may write.
            OpenReply::Opened { token, source_no, next_pos, promised }
                if lane.token().is_none_or(|known| token.number > known.number) =>
            {
                if let LaneState::Reading(_) = lane.state
                    && let Err(error) = place::pause(&self.consumer, &lane.topic, lane.partition)
                {
                    tracing::warn!(%error, %source, "pause refused");
                }
                self.consumer.context().handed_on(source.clone(), next_pos);
                // In both directions: DuckDB may have been restored.
                self.parts.acknowledged.set(&lane.topic, lane.partition, next_pos);
                // A log that was halted may be another one by now.
                if let LaneState::Halted { .. } = lane.state
                    && let Err(error) =
                        place::assign_anew(&self.consumer, &lane.topic, lane.partition, next_pos)
                {
                    tracing::warn!(%error, %source, "the partition was not assigned anew");
                }
                lane.lag.reopened();
                lane.state = LaneState::Seeking(Opened { token, source_no, next_pos, promised });
            }
            OpenReply::Opened { .. } => {}
            OpenReply::Waiting { older } => {
                let known = matches!(lane.state, LaneState::Waiting { .. });
                if !known {
                    tracing::info!(%source, older = ?older, "a partition that came later waits for older ones");
                }
                lane.state = LaneState::Waiting { since: Instant::now(), older };
            }
            // Of two opens the earlier one is refused late: the store has said since where to read.
            OpenReply::Halted { reason } if refused && lane.token().is_some() => {
                tracing::info!(%source, reason, "an open that is past was refused");
                lane.refused_once = false;
            }
            OpenReply::Halted { reason } if refused && !was_refused => {
                tracing::info!(%source, reason, "the store refuses the source; asking again");
                self.ask(i);
            }
            OpenReply::Halted { reason } => {
                tracing::error!(%source, reason, "the source is halted");
                if let Err(error) = place::pause(&self.consumer, &lane.topic, lane.partition) {
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
                LaneState::Opening { since, wait } if since.elapsed() >= *wait => self.ask(i),
                LaneState::Halted { since, .. } if since.elapsed() >= HALTED_RETRY => self.ask(i),
                LaneState::Waiting { since, .. } if since.elapsed() >= WAITING_RETRY => self.ask(i),
                LaneState::Seeking(opened) => {
                    let opened = opened.clone();
                    self.seek(i, opened);
                }
                _ => {}
            }
        }
    }

    fn seek(&mut self, i: usize, opened: Opened) {
        let stands = self.stands(self.lanes[i].stream);
        let lane = &mut self.lanes[i];
        let set = if stands { place::seek } else { place::resume };
        if let Err(error) = set(&self.consumer, &lane.topic, lane.partition, opened.next_pos) {
            // The partition is not far enough in its assignment; the next round tries again.
            tracing::debug!(%error, source = %lane.source, "seek not taken yet");
            return;
        }
        lane.state = LaneState::Reading(Reading::new(opened));
    }
}

impl LaneState {
    fn opening(wait: Duration) -> Self {
        Self::Opening { since: Instant::now(), wait }
    }
}

impl Lane {
    pub(super) fn token(&self) -> Option<Token> {
        match &self.state {
            LaneState::Reading(reading) => Some(reading.opened.token),
            LaneState::Seeking(opened) => Some(opened.token),
            _ => None,
        }
    }
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
