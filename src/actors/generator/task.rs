//! The producer tasks.

use super::{gate::EmbeddedGate, tally::Tally};
use crate::{
    config::Config,
    generate::{Builtin, EventId, EventMaker},
    kafka::{self, EVENT_ID_HEADER},
};
use rdkafka::{
    ClientContext, Message as _,
    error::{KafkaError, RDKafkaErrorCode},
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer},
};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// How long a stopped task waits for the broker's last acknowledgements.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(30);
/// Events between two looks at the clock, the gate and the stop flag.
const BURST: u64 = 64;

/// What the tasks need.
#[derive(Debug, Clone)]
pub struct GeneratorParts {
    /// Rate, seed, mix, streams, broker.
    pub config: Arc<Config>,
    /// Keeps within an embedded broker's memory.
    pub gate: Option<Arc<EmbeddedGate>>,
    /// Keep every id, for a verdict.
    pub keep_ids: bool,
    /// End by itself after so many events over all tasks.
    pub count: Option<u64>,
    /// Make nothing until [`GeneratorTasks::release`].
    pub hold: bool,
}

/// The running tasks.
#[derive(Debug)]
pub struct GeneratorTasks {
    tally: Arc<Tally>,
    stop: Arc<AtomicBool>,
    held: Arc<AtomicBool>,
    failed: Arc<AtomicBool>,
    streams: Vec<Builtin>,
    config: Arc<Config>,
    joins: Mutex<Vec<std::thread::JoinHandle<()>>>,
}

impl GeneratorTasks {
    /// Starts the tasks; they take the shipped streams in turn.
    ///
    /// # Errors
    /// When the configuration has none of the shipped streams, or no producer can be made.
    pub fn start(parts: &GeneratorParts) -> anyhow::Result<Arc<Self>> {
        let config = &parts.config;
        let configured: Vec<(Builtin, String)> = Builtin::ALL
            .into_iter()
            .filter_map(|b| {
                let stream = config.streams.iter().find(|s| s.name == b.name())?;
                Some((b, stream.topic.clone()))
            })
            .collect();
        anyhow::ensure!(
            !configured.is_empty(),
            "the generator makes events of the streams `features` and `clicks`, and neither is configured; \
             run without the role `generate`, or send a file with `millstream generate --replay`"
        );
        let n = usize::from(config.generator.tasks);
        let tally = Arc::new(Tally::new(n, parts.keep_ids));
        let (stop, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let held = Arc::new(AtomicBool::new(parts.hold));
        // Runs with the same seed must not make the same ids.
        let run = EventId::run_tag(config.generator.seed, rand::random());
        let (mut joins, mut streams) = (Vec::with_capacity(n), Vec::with_capacity(n));
        for number in 0..n {
            let (stream, topic) = configured[number % configured.len()].clone();
            streams.push(stream);
            let task = Task {
                number,
                topic,
                run,
                maker: EventMaker::new(stream, config.generator.seed, &config.generator.mix),
                rate: config.generator.rate / n as f64,
                limit: parts.count.map(|count| {
                    let (each, rest) = (count / n as u64, count % n as u64);
                    each + u64::from((number as u64) < rest)
                }),
                gate: parts.gate.clone(),
                tally: tally.clone(),
                stop: stop.clone(),
                held: held.clone(),
            };
            let producer = task.producer(config)?;
            let failed = failed.clone();
            let name = format!("generator-{number}");
            joins.push(std::thread::Builder::new().name(name).spawn(move || {
                if let Err(error) = task.run(&producer) {
                    tracing::error!(%error, task = task.number, "a generator task ended");
                    failed.store(true, Ordering::Relaxed);
                }
            })?);
        }
        let config = config.clone();
        Ok(Arc::new(Self { tally, stop, held, failed, streams, config, joins: Mutex::new(joins) }))
    }

    /// What was sent.
    #[must_use]
    pub fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    /// Whether a task ended by an error.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// The maker of a task's events.
    #[must_use]
    pub fn maker(&self, task: usize) -> EventMaker {
        let generator = &self.config.generator;
        EventMaker::new(self.streams[task], generator.seed, &generator.mix)
    }

    /// Lets held tasks begin.
    pub fn release(&self) {
        self.held.store(false, Ordering::Relaxed);
    }

    /// Whether every task has ended by itself.
    #[must_use]
    pub fn is_done(&self) -> bool {
        let joins = self.joins.lock().unwrap_or_else(PoisonError::into_inner);
        joins.iter().all(std::thread::JoinHandle::is_finished)
    }

    /// Makes no more events and waits for the broker's last acknowledgements. Blocks.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        for join in std::mem::take(&mut *self.joins.lock().unwrap_or_else(PoisonError::into_inner))
        {
            if join.join().is_err() {
                self.failed.store(true, Ordering::Relaxed);
                tracing::error!("a generator task panicked");
            }
        }
    }
}

/// Hears of the broker's acknowledgements.
struct Delivery {
    task: usize,
    tally: Arc<Tally>,
    gate: Option<Arc<EmbeddedGate>>,
}

impl ClientContext for Delivery {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "Kafka, producing");
    }
}

impl ProducerContext for Delivery {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, seq: usize) {
        match result {
            Ok(message) => {
                if let Some(gate) = &self.gate {
                    let bytes = message.payload_len() + message.key_len();
                    gate.produced(message.topic(), message.partition(), message.offset(), bytes);
                }
                self.tally.answered(self.task, seq, true);
            }
            Err((error, _)) => {
                tracing::warn!(%error, "the broker did not take an event");
                self.tally.answered(self.task, seq, false);
            }
        }
    }
}

struct Task {
    number: usize,
    topic: String,
    run: u32,
    maker: EventMaker,
    /// Events a second; 0: flat out.
    rate: f64,
    /// Events to make; `None`: until it is stopped.
    limit: Option<u64>,
    gate: Option<Arc<EmbeddedGate>>,
    tally: Arc<Tally>,
    stop: Arc<AtomicBool>,
    held: Arc<AtomicBool>,
}

impl Task {
    fn producer(&self, config: &Config) -> anyhow::Result<ThreadedProducer<Delivery>> {
        let mut settings = kafka::client_config(&config.kafka);
        settings
            .set("enable.idempotence", "true")
            .set("linger.ms", "5")
            .set("message.timeout.ms", "60000")
            // An embedded broker is small: little may be on its way that the gate does not see.
            .set("queue.buffering.max.kbytes", if self.gate.is_some() { "256" } else { "65536" });
        let context =
            Delivery { task: self.number, tally: self.tally.clone(), gate: self.gate.clone() };
        Ok(settings.create_with_context(context)?)
    }

    fn run(&self, producer: &ThreadedProducer<Delivery>) -> anyhow::Result<()> {
        while self.held.load(Ordering::Relaxed) && !self.stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let start = Instant::now();
        let mut seq = 0u64;
        let limit = self.limit.unwrap_or(u64::MAX);
        while seq < limit && !self.stop.load(Ordering::Relaxed) {
            if self.gate.as_ref().is_some_and(|gate| gate.is_full()) {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
            let due = if self.rate > 0.0 {
                (start.elapsed().as_secs_f64() * self.rate) as u64
            } else {
                u64::MAX
            };
            if due <= seq {
                std::thread::sleep(Duration::from_millis(2));
                continue;
            }
            for _ in 0..BURST.min(due.min(limit) - seq) {
                self.make(producer, seq)?;
                seq += 1;
            }
        }
        producer.flush(FLUSH_TIMEOUT)?;
        Ok(())
    }

    fn make(&self, producer: &ThreadedProducer<Delivery>, seq: u64) -> anyhow::Result<()> {
        let now_ms = chrono::Utc::now().timestamp_millis().cast_unsigned();
        // The number of tasks fits, as the configuration holds it in a u8.
        let id = EventId::new(now_ms, self.run, self.number as u8, seq);
        let event = self.maker.make(id);
        self.tally.sending(self.number, id);
        let text = id.uuid().hyphenated().to_string();
        for _ in 0..if event.duplicate { 2 } else { 1 } {
            send(
                producer,
                &self.topic,
                event.key.as_deref(),
                event.payload.as_deref(),
                &text,
                seq as usize,
            )?;
        }
        Ok(())
    }
}

/// Sends one event with its id in the header; waits while the producer's queue is full.
pub(crate) fn send<C: ProducerContext<DeliveryOpaque = usize>>(
    producer: &ThreadedProducer<C>,
    topic: &str,
    key: Option<&[u8]>,
    payload: Option<&[u8]>,
    event_id: &str,
    opaque: usize,
) -> Result<(), KafkaError> {
    let headers = OwnedHeaders::new_with_capacity(1)
        .insert(Header { key: EVENT_ID_HEADER, value: Some(event_id) });
    let mut record =
        BaseRecord::<[u8], [u8], usize>::with_opaque_to(topic, opaque).headers(headers);
    record.key = key;
    record.payload = payload;
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                record = back;
                std::thread::sleep(Duration::from_millis(1));
            }
            Err((error, _)) => return Err(error),
        }
    }
}
