//! The producer tasks.

use super::{gate::EmbeddedGate, tally::Tally, upload::UploadTask};
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
    net::SocketAddr,
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
    /// The gRPC address of this process's own node, when it takes files: they go there unless
    /// `generator.upload_to` names another.
    pub own_grpc: Option<SocketAddr>,
    /// How long a stop waits for the answer to a file that is on its way.
    pub stop_patience: Duration,
}

impl GeneratorParts {
    /// The patience of a node that stops.
    pub const STOP_PATIENCE: Duration = Duration::from_secs(30);

    /// The shipped streams that are configured, with their topics.
    fn streams(&self) -> Vec<(Builtin, String)> {
        let topic = |b: Builtin| self.config.streams.iter().find(|s| s.name == b.name());
        let shipped = Builtin::ALL.into_iter();
        shipped.filter_map(|b| Some((b, topic(b)?.topic.clone()))).collect()
    }

    fn maker(&self, stream: Builtin) -> EventMaker {
        EventMaker::new(stream, self.config.generator.seed, &self.config.generator.mix)
    }

    /// Where files go and how often; `None`: none are made. A count of events is one of records: then
    /// there are no files.
    fn uploads(&self) -> Option<(String, Duration)> {
        let generator = &self.config.generator;
        if self.count.is_some() || generator.upload_every_s <= 0.0 {
            return None;
        }
        let to = match generator.upload_to.as_str() {
            "" => self.own_grpc?.to_string(),
            address => address.to_owned(),
        };
        // A year stands for never.
        Some((to, Duration::from_secs_f64(generator.upload_every_s.min(365.0 * 86_400.0))))
    }
}

/// The running tasks.
#[derive(Debug)]
pub struct GeneratorTasks {
    tally: Arc<Tally>,
    stop: Arc<AtomicBool>,
    held: Arc<AtomicBool>,
    failed: Arc<AtomicBool>,
    /// The stream of each task; those after the producers' are of files.
    streams: Vec<Builtin>,
    config: Arc<Config>,
    joins: Mutex<Vec<std::thread::JoinHandle<()>>>,
}

impl GeneratorTasks {
    /// Starts the tasks; they take the shipped streams in turn. Another one uploads files, where there
    /// is a node for them.
    ///
    /// # Errors
    /// When the configuration has none of the shipped streams, or no producer can be made.
    pub fn start(parts: &GeneratorParts) -> anyhow::Result<Arc<Self>> {
        let config = &parts.config;
        let configured = parts.streams();
        anyhow::ensure!(
            !configured.is_empty(),
            "the generator makes events of the streams `features` and `clicks`, and neither is configured; \
             run without the role `generate`, or send a file with `millstream generate --replay`"
        );
        let n = usize::from(config.generator.tasks);
        // The files of each stream have a number of their own among the tasks.
        let of_files = if parts.uploads().is_some() { configured.len() } else { 0 };
        let tally = Arc::new(Tally::new(n + of_files, parts.keep_ids));
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
                maker: parts.maker(stream),
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
            joins
                .push(spawn(&format!("generator-{number}"), &failed, move || task.run(&producer))?);
        }
        if let Some((to, every)) = parts.uploads() {
            let of_files = configured.iter().map(|(stream, _)| *stream);
            streams.extend(of_files.clone());
            let task = UploadTask {
                to,
                every,
                patience: parts.stop_patience,
                events: config.generator.upload_rows,
                run,
                // They fit, as the configuration leaves room for them.
                streams: (n..).zip(of_files).map(|(i, s)| (i as u8, parts.maker(s))).collect(),
                tally: tally.clone(),
                stop: stop.clone(),
                held: held.clone(),
            };
            joins.push(spawn("generator-files", &failed, move || task.run())?);
        }
        let (config, joins) = (config.clone(), Mutex::new(joins));
        Ok(Arc::new(Self { tally, stop, held, failed, streams, config, joins }))
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

    /// Makes no more events and waits for the last acknowledgements, of the broker and of the node
    /// that takes files. Blocks.
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

/// Runs a task on a thread of its own; its error is told and noted.
fn spawn(
    name: &str,
    failed: &Arc<AtomicBool>,
    task: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    let (failed, shown) = (failed.clone(), name.to_owned());
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        if let Err(error) = task() {
            tracing::error!(error = format!("{error:#}"), task = shown, "a generator task ended");
            failed.store(true, Ordering::Relaxed);
        }
    })
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
