//! Traces over OTLP: one a batch, whose trace id is the batch's id, so that an id in a log line finds it.
//!
//! | span | from | to | in |
//! |---|---|---|---|
//! | `batch`, the root | its first record was polled | its last part is answered or given up | `process` |
//! | `accumulate` | its first record was polled | it is closed | `process` |
//! | `decode` | a worker is there for it | its records are columns | `process` |
//! | `transform` | they go to the worker | the script's rows are back | `process` |
//! | `online write` | its critical features go to Redis | they are there | `process` |
//! | `queue` | it is put on the queue | it is answered | `process` |
//! | `commit`, below `queue` | its transaction begins | it is committed | `store` |
//!
//! What is tried again has a span for each try; one that failed says so. The ids of `batch` and `queue`
//! come from the batch, so that all processes agree on them without telling each other.
//!
//! Called once a batch and step, never once an event. While nothing is exported, a batch costs one atomic
//! load. Else its spans go into a queue in memory that threads of their own empty; what finds it full is
//! dropped: nobody waits for a receiver.

use crate::{
    config::TelemetryConfig,
    messages::{PartHeader, WriteHeader},
    protocol::{apply::Decision, source::Token},
};
use anyhow::Context as _;
use opentelemetry::{
    InstrumentationScope, KeyValue, Value,
    trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    trace::{
        BatchSpanProcessor, SpanData, SpanEvents, SpanExporter, SpanLinks, SpanProcessor as _,
    },
};
use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};
use tokio::runtime::Runtime;
use uuid::Uuid;

/// How long the end of the program waits for spans that are not sent yet.
pub const LAST_WORDS: Duration = Duration::from_secs(3);

static EXPORT: OnceLock<Export> = OnceLock::new();

/// What exports, while anything is.
struct Export {
    processor: BatchSpanProcessor,
    scope: InstrumentationScope,
    node: String,
    share: f64,
    ended: AtomicU64,
    exported: Arc<AtomicU64>,
    _carrier: Carrier,
}

/// Carries the connection on a thread of its own, so that it outlives the node's.
struct Carrier(Option<Runtime>);

impl Carrier {
    fn new() -> std::io::Result<Self> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).thread_name("otlp").enable_all().build()?;
        Ok(Self(Some(runtime)))
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        // Where the start fails, which is on a thread that must not wait.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Exports from now on, where a receiver is configured; once a process.
///
/// # Errors
/// When its address cannot be used. That it cannot be reached is none.
pub fn start(config: &TelemetryConfig, node: &str) -> anyhow::Result<()> {
    if config.otlp.is_empty() || config.otlp_sample <= 0.0 || EXPORT.get().is_some() {
        return Ok(());
    }
    let carrier = Carrier::new()?;
    let exporter = {
        let _context = carrier.0.as_ref().map(Runtime::enter);
        let builder = opentelemetry_otlp::SpanExporter::builder().with_tonic();
        builder.with_endpoint(&config.otlp).build().context("`telemetry.otlp`")?
    };
    let exported = Arc::new(AtomicU64::new(0));
    let mut telling = Telling {
        inner: exporter,
        receiver: config.otlp.clone(),
        is_failing: AtomicBool::new(false),
        exported: exported.clone(),
    };
    telling.set_resource(&resource(node));
    let export = Export {
        processor: BatchSpanProcessor::builder(telling).build(),
        scope: InstrumentationScope::builder("millstream").build(),
        node: node.to_owned(),
        share: config.otlp_sample,
        ended: AtomicU64::new(0),
        exported,
        _carrier: carrier,
    };
    // Another node of this process may have been faster; its export serves both.
    if EXPORT.set(export).is_ok() {
        let (receiver, share) = (&config.otlp, config.otlp_sample);
        tracing::info!(receiver, share, "traces of batches are exported");
    }
    Ok(())
}

/// Whether any are: one atomic load.
#[must_use]
pub fn are_exported() -> bool {
    EXPORT.get().is_some()
}

/// Who sends; what `OTEL_RESOURCE_ATTRIBUTES` says is added.
fn resource(node: &str) -> Resource {
    Resource::builder()
        .with_service_name("millstream")
        .with_attribute(KeyValue::new("service.instance.id", node.to_owned()))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build()
}

/// Sends what is not sent yet, and exports nothing more. Blocks, for so long at most.
pub fn stop(patience: Duration) {
    let Some(export) = EXPORT.get() else { return };
    let ended = export.processor.shutdown_with_timeout(patience);
    let missing = export
        .ended
        .load(Ordering::Relaxed)
        .saturating_sub(export.exported.load(Ordering::Relaxed));
    if let Err(OTelSdkError::AlreadyShutdown) = ended {
        return;
    }
    if missing > 0 {
        tracing::warn!(spans = missing, "traces are not whole: spans were not exported");
    }
}

/// Whether the traces of this batch are exported: by the bits of its id that are random whatever made it.
fn is_sampled(batch: Uuid, share: f64) -> bool {
    let random = batch.as_u128() as u32;
    !batch.is_nil() && f64::from(random) < share * (f64::from(u32::MAX) + 1.0)
}

/// The half of an id that is never zero: it holds the bits that say how the id is to be read.
fn lower_half(id: Uuid) -> u64 {
    id.as_u64_pair().1
}

fn trace_id(batch: Uuid) -> TraceId {
    TraceId::from_bytes(batch.into_bytes())
}

fn root_id(batch: Uuid) -> SpanId {
    SpanId::from_bytes(lower_half(batch).to_be_bytes())
}

/// Of the writes of one batch each has another: the tokens of their first parts are not the same.
fn queue_id(batch: Uuid, first: Token) -> SpanId {
    SpanId::from_bytes((lower_half(batch) ^ lower_half(first.id)).to_be_bytes())
}

/// What the transaction with a write says of it.
fn of_write(write: &WriteHeader) -> Vec<KeyValue> {
    let sum = |count: fn(&PartHeader) -> i64| write.parts.iter().map(count).sum::<i64>();
    let stream = write.parts.first().and_then(|part| part.source.stream()).unwrap_or_default();
    vec![
        KeyValue::new("stream", stream.to_owned()),
        KeyValue::new("events", sum(|part| part.n_in)),
        KeyValue::new("sources", write.parts.len() as i64),
        KeyValue::new("rows", sum(|part| part.n_rows)),
        KeyValue::new("dead", sum(|part| part.n_dead)),
        KeyValue::new("script", write.transform.clone()),
        KeyValue::new("script_version", write.script_sha256.clone()),
        KeyValue::new("processed_by", write.node.clone()),
    ]
}

/// How far apart two clocks may be read: a thread that is put aside in between would shift its spans.
const APART: Duration = Duration::from_micros(50);

/// What both clocks showed at one moment. All spans that a process makes of a batch go by the same, so
/// that they fit into each other.
#[derive(Debug, Clone, Copy)]
struct Clock {
    at: Instant,
    wall: SystemTime,
}

impl Clock {
    /// Now, unless the machine is so busy that three tries do not catch it.
    fn read() -> Self {
        let read = || Self { at: Instant::now(), wall: SystemTime::now() };
        let mut clock = read();
        for _ in 0..2 {
            if clock.at.elapsed() < APART {
                break;
            }
            clock = read();
        }
        clock
    }

    /// What the clock on the wall showed then.
    fn wall(self, at: Instant) -> SystemTime {
        let then = match at.checked_duration_since(self.at) {
            Some(after) => self.wall.checked_add(after),
            None => self.wall.checked_sub(self.at.saturating_duration_since(at)),
        };
        then.unwrap_or(self.wall)
    }
}

fn any_id() -> SpanId {
    SpanId::from_bytes(rand::random::<u64>().max(1).to_be_bytes())
}

/// The exporter, with what it says.
#[derive(Debug)]
struct Telling {
    inner: opentelemetry_otlp::SpanExporter,
    receiver: String,
    is_failing: AtomicBool,
    exported: Arc<AtomicU64>,
}

impl SpanExporter for Telling {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let result = self.inner.export(batch).await;
        let receiver = &self.receiver;
        match &result {
            Ok(()) => {
                self.exported.fetch_add(spans, Ordering::Relaxed);
                if self.is_failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(receiver, "traces are exported again");
                }
            }
            // Said once, not with every batch.
            Err(error) if !self.is_failing.swap(true, Ordering::Relaxed) => {
                tracing::warn!(receiver, %error, "traces cannot be exported; everything else goes on");
            }
            Err(_) => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// A step of a batch on its way. One that is dropped unfinished is not exported; nor is one of a batch
/// whose trace is not.
#[derive(Debug, Default)]
#[must_use]
pub struct Step(Option<Box<Begun>>);

#[derive(Debug)]
struct Begun {
    batch: Uuid,
    name: &'static str,
    id: SpanId,
    parent: SpanId,
    kind: SpanKind,
    clock: Clock,
    since: Instant,
    attributes: Vec<KeyValue>,
}

impl Begun {
    fn end(self, status: Status) {
        let Some(export) = EXPORT.get() else { return };
        export.ended.fetch_add(1, Ordering::Relaxed);
        export.processor.on_end(self.data(status, &export.node, export.scope.clone()));
    }

    fn data(mut self, status: Status, node: &str, scope: InstrumentationScope) -> SpanData {
        self.attributes.push(KeyValue::new("node", node.to_owned()));
        SpanData {
            span_context: SpanContext::new(
                trace_id(self.batch),
                self.id,
                TraceFlags::SAMPLED,
                false,
                TraceState::NONE,
            ),
            parent_span_id: self.parent,
            parent_span_is_remote: self.kind == SpanKind::Consumer,
            span_kind: self.kind,
            name: self.name.into(),
            start_time: self.clock.wall(self.since),
            end_time: self.clock.wall(Instant::now()),
            attributes: self.attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status,
            instrumentation_scope: scope,
        }
    }
}

impl Step {
    /// The transaction with a write, which began at `since`; another process put the write on the queue.
    pub fn commit(write: &WriteHeader, since: Instant) -> Self {
        let begun = || {
            let (share, first) = (EXPORT.get()?.share, write.parts.first()?);
            is_sampled(write.batch_id, share).then(|| Begun {
                batch: write.batch_id,
                name: "commit",
                id: any_id(),
                parent: queue_id(write.batch_id, first.token),
                kind: SpanKind::Consumer,
                clock: Clock::read(),
                since,
                attributes: of_write(write),
            })
        };
        Self(begun().map(Box::new))
    }

    /// Says something about it in words.
    pub fn text(mut self, key: &'static str, value: &str) -> Self {
        self.say(key, || value.to_owned().into());
        self
    }

    /// Says a number of it.
    pub fn count(mut self, key: &'static str, value: usize) -> Self {
        self.say(key, || i64::try_from(value).unwrap_or(i64::MAX).into());
        self
    }

    fn say(&mut self, key: &'static str, value: impl FnOnce() -> Value) {
        if let Some(begun) = &mut self.0 {
            begun.attributes.push(KeyValue::new(key, value()));
        }
    }

    /// It is done.
    pub fn end(self) {
        if let Some(begun) = self.0 {
            begun.end(Status::Unset);
        }
    }

    /// It is done, with these decisions on its parts.
    pub fn answered(self, decisions: impl IntoIterator<Item = Decision>) {
        if self.0.is_none() {
            return;
        }
        // The worst that was said of any.
        let not_applied: Vec<Decision> =
            decisions.into_iter().filter(|d| *d != Decision::Apply).collect();
        match not_applied.iter().find(|d| !d.is_ok()).or(not_applied.first()) {
            None => self.end(),
            Some(duplicate) if duplicate.is_ok() => self.text("answer", duplicate.name()).end(),
            Some(refused) => self.text("answer", refused.name()).fail("the store did not take it"),
        }
    }

    /// It failed, for this reason.
    pub fn fail(self, why: &str) {
        if let Some(begun) = self.0 {
            begun.end(Status::error(why.to_owned()));
        }
    }
}

/// The whole way of a batch, as the root of its trace: it ends when nobody holds the batch any more.
/// Nothing for a batch whose trace is not exported.
#[derive(Debug, Clone, Default)]
pub struct Way(Option<Arc<Whole>>);

#[derive(Debug)]
struct Whole {
    batch: Uuid,
    clock: Clock,
    since: Instant,
    parts: usize,
    landed: AtomicUsize,
    /// What its steps say as well.
    attributes: Vec<KeyValue>,
}

impl Way {
    /// That of a batch of so many parts and events, which began at `since`.
    #[must_use]
    pub fn begin(batch: Uuid, stream: &str, parts: usize, events: usize, since: Instant) -> Self {
        let sampled = EXPORT.get().is_some_and(|export| is_sampled(batch, export.share));
        let whole = || Whole {
            batch,
            clock: Clock::read(),
            since,
            parts,
            landed: AtomicUsize::new(0),
            attributes: vec![
                KeyValue::new("stream", stream.to_owned()),
                KeyValue::new("events", events as i64),
                KeyValue::new("sources", parts as i64),
            ],
        };
        Self(sampled.then(|| Arc::new(whole())))
    }

    /// A step that begins now.
    pub fn step(&self, name: &'static str) -> Step {
        self.step_since(name, Instant::now())
    }

    /// A step that began at `since`.
    pub fn step_since(&self, name: &'static str, since: Instant) -> Step {
        Step(self.0.as_ref().map(|whole| Box::new(whole.step(name, since))))
    }

    /// Its time on the queue since it was put there; `first`: the token of its first part.
    pub fn queue(&self, first: Token, since: Instant) -> Step {
        let mut step = self.step_since("queue", since);
        if let Some(begun) = &mut step.0 {
            begun.id = queue_id(begun.batch, first);
            begun.kind = SpanKind::Producer;
        }
        step
    }

    /// The effect of one of its parts is durable.
    pub fn landed(&self) {
        if let Some(whole) = &self.0 {
            whole.landed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Whole {
    fn step(&self, name: &'static str, since: Instant) -> Begun {
        Begun {
            batch: self.batch,
            name,
            id: any_id(),
            parent: root_id(self.batch),
            kind: SpanKind::Internal,
            clock: self.clock,
            since,
            attributes: self.attributes.clone(),
        }
    }

    fn root(&self) -> Begun {
        let (id, parent) = (root_id(self.batch), SpanId::INVALID);
        Begun { id, parent, ..self.step("batch", self.since) }
    }

    fn outcome(&self) -> Status {
        match self.parts - self.landed.load(Ordering::Relaxed).min(self.parts) {
            0 => Status::Unset,
            lost => Status::error(format!("{lost} parts did not land; they are read again")),
        }
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        self.root().end(self.outcome());
    }
}

#[cfg(test)]
mod tests;
