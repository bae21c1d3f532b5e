//! One batch through one worker: a task of its own, which runs to its end whatever becomes of the
//! actor that started it. Its result may always be handed on: effects are fenced by tokens and
//! tickets.

use super::{
    METER,
    assemble::{self, Effect, Outcome},
    board::LastBatch,
    runner::Worker,
    slot::{News, Shift},
    status::lock,
    verdict::{self, Standing, Stopped},
};
use crate::{
    actors::{KafkaIngest, RedisQueue},
    config::Config,
    decode::{Decoded, Decoder},
    messages::{EventBatch, SourceOpened},
    protocol::source::OpenReply,
    supervision::{Link, Undelivered},
    telemetry::traces::Step,
};
use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};
use tracing::Instrument as _;

/// What a batch needs besides its worker.
pub(super) struct Job {
    pub config: Arc<Config>,
    pub decoder: Decoder,
    pub next: Link<RedisQueue>,
    pub ingest: Link<KafkaIngest>,
    pub batch: EventBatch,
}

impl Job {
    /// Runs the batch and gives the worker back.
    pub async fn run(self, shift: Shift, worker: Worker) {
        let stream = self.config.streams.get(self.batch.stream).map_or("", |s| s.name.as_str());
        let span = tracing::error_span!("batch", id = %self.batch.id, stream);
        self.run_in_span(shift, worker).instrument(span).await;
    }

    async fn run_in_span(self, shift: Shift, mut worker: Worker) {
        let Self { config, decoder, next, ingest, batch } = self;
        let work = METER.begin();
        let rows = batch.rows();
        let script = worker.script();
        let step = batch.way.step("decode");
        let (batch, decoded) = match decode(decoder, batch).await {
            Ok(both) => both,
            Err(failed) => {
                step.fail(&failed.why);
                return failed.tell(shift, worker, &ingest).await;
            }
        };
        step.count("dead", decoded.dead.iter().map(Vec::len).sum()).end();
        crate::crash_point!("c_decoded");
        let board = &shift.slot().board;
        let standing = shift.key().pinned.is_none().then(|| {
            let current = board.current(batch.stream);
            let own = current.filter(|current| current.script.sha256 == script.sha256);
            Standing {
                trust: shift.slot().trust(batch.stream),
                fallbacks: own
                    .as_ref()
                    .map(|current| current.fallbacks.clone())
                    .unwrap_or_default(),
                on_probation: own.is_some_and(|current| current.is_on_probation()),
            }
        });
        let (warm, began) = (worker.pid().is_some(), Instant::now());
        let step = batch.way.step("transform").text("script", &script.name);
        let step = step.text("script_version", &script.sha256);
        let outcome = verdict::run(&mut worker, &decoded.batch, standing.as_ref()).await;
        trace(step, &outcome);
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(Stopped::LeaseLost) => {
                tracing::warn!(
                    script = script.name,
                    "a worker's lease was lost, or its fork server died; its batch runs again"
                );
                return shift.dismiss(worker, News::Again(vec![batch]));
            }
            Err(Stopped::Suspected { why, roll_back_to }) => {
                let (key, sha256) = (shift.key().clone(), script.sha256.clone());
                let news = News::Suspected { key, batch, sha256, why, roll_back_to };
                return shift.dismiss(worker, news);
            }
            Err(Stopped::Broken(error)) => {
                let why = verdict::describe(&error);
                let news = News::Broken(shift.key().clone(), batch, script.sha256.clone(), why);
                return shift.dismiss(worker, news);
            }
        };
        if standing.is_some() && decoded.batch.num_rows() > 0 {
            let stream = &config.streams[batch.stream].name;
            shift.slot().had_batch(batch.stream, stream, &script, || LastBatch {
                events: decoded.batch.clone(),
                outcome: outcome.clone(),
                sha256: script.sha256.clone(),
                took: warm.then(|| began.elapsed()),
            });
        }
        crate::crash_point!("d_transformed");
        let assembled = put_together(config, batch, decoded, outcome).await;
        let (batch, effects) = match assembled {
            Ok(both) => both,
            Err(failed) => return failed.tell(shift, worker, &ingest).await,
        };
        {
            let mut strikes = lock(&shift.slot().strikes);
            batch.parts.iter().for_each(|part| strikes.succeeded(&part.source, part.from, part.to));
        }
        match worker.grow_older() {
            None => shift.give_back(worker),
            // Its permit waits for it; this batch does not.
            Some(cause) => drop(tokio::task::spawn_local(async move {
                worker.retire(cause).await;
                shift.give_back(worker);
            })),
        }
        let features = assemble::features(batch, &script, effects);
        work.done();
        tracing::debug!(rows, script = script.name, "transformed");
        match next.deliver(features) {
            Ok(()) => METER.sent(rows),
            // Its tickets report, and its sources are read again.
            Err(Undelivered(_)) => METER.error("abandoned"),
        }
    }
}

/// What the script made of the batch, in its trace.
fn trace(step: Step, outcome: &Result<Outcome, Stopped>) {
    match outcome {
        Ok(outcome) => {
            step.count("rows", outcome.rows.num_rows()).count("dead", outcome.rejected.len()).end();
        }
        Err(Stopped::LeaseLost) => {
            step.fail("the worker's lease was lost, or its fork server died")
        }
        Err(Stopped::Broken(error)) => step.fail(&error.to_string()),
        Err(Stopped::Suspected { why, .. }) => step.fail(why),
    }
}

/// A batch that a defect of ours kept from going on; `None`: it is gone, and its tickets reported.
struct Failed {
    batch: Option<EventBatch>,
    why: String,
}

impl Failed {
    /// Finds the source at fault, and halts it when it fails again and again.
    async fn tell(self, shift: Shift, worker: Worker, ingest: &Link<KafkaIngest>) {
        let Self { batch, why } = self;
        let slot = shift.slot().clone();
        METER.error("defect");
        tracing::error!(why, "a batch could not be processed, which is a defect of Millstream");
        let Some(mut batch) = batch else { return shift.give_back(worker) };
        if batch.parts.len() > 1 {
            // Each source for itself: the others go on.
            shift.give_back(worker);
            return slot.tell(News::Again(batch.split()));
        }
        shift.give_back(worker);
        let Some(part) = batch.parts.pop() else { return };
        if !lock(&slot.strikes).failed(&part.source, part.from) {
            // Its ticket reports, and its source is read again.
            return;
        }
        let (source, from) = (part.source.clone(), part.from);
        let reason = format!(
            "{source} cannot be processed from position {from} on, which is a defect of Millstream: {why}"
        );
        let reply = OpenReply::Halted { reason };
        let halt = SourceOpened { source, reply, asked: false };
        // The ticket is dropped after that: what it reports must not open the source again. Without
        // an answer the source is read again, and halts the next time.
        if ingest.ask(halt).await.is_none() {
            tracing::debug!("KafkaIngest is between two lives; the source halts the next time");
        }
        drop(part);
    }
}

/// Parsing is work for a thread; the actor's own passes messages.
async fn decode(decoder: Decoder, batch: EventBatch) -> Result<(EventBatch, Decoded), Failed> {
    let decoding = tokio::task::spawn_blocking(move || {
        let decoded = guarded(|| {
            planted_defect(&batch);
            let parts: Vec<_> = batch.parts.iter().map(|p| p.records.as_slice()).collect();
            decoder.decode(&parts, chrono::Utc::now().timestamp_micros())
        });
        (batch, decoded)
    });
    finished(decoding.await)
}

/// So is putting effects together.
async fn put_together(
    config: Arc<Config>,
    batch: EventBatch,
    decoded: Decoded,
    outcome: Outcome,
) -> Result<(EventBatch, Vec<Effect>), Failed> {
    let assembling = tokio::task::spawn_blocking(move || {
        let stream = &config.streams[batch.stream];
        let now_us = chrono::Utc::now().timestamp_micros();
        let effects = guarded(|| assemble::assemble(stream, &batch, &decoded, outcome, now_us));
        (batch, effects)
    });
    finished(assembling.await)
}

fn finished<T>(
    done: Result<(EventBatch, Result<T, String>), tokio::task::JoinError>,
) -> Result<(EventBatch, T), Failed> {
    match done {
        Ok((batch, Ok(made))) => Ok((batch, made)),
        Ok((batch, Err(why))) => Err(Failed { batch: Some(batch), why }),
        // The thread pool ends with the node.
        Err(error) => Err(Failed { batch: None, why: error.to_string() }),
    }
}

/// A panic as an error: the batch must come out of it.
fn guarded<T, E: ToString>(work: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(payload) => Err(panic_text(payload.as_ref())),
    }
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
    format!("panicked: {}", text.unwrap_or("without a message"))
}

/// Tests make the decoding of one source panic.
fn planted_defect(batch: &EventBatch) {
    // Without the feature there is nothing below.
    let _ = batch;
    fail::fail_point!("c_defect", |source| {
        let source = source.unwrap_or_default();
        let hit = batch.parts.iter().any(|part| *part.source.0 == *source);
        assert!(!hit, "a planted defect");
    });
}
