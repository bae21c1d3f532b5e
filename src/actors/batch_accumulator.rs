//! BatchAccumulator: records into batches, closed by rows, bytes, age or script version.
//!
//! Takes [`SourceBatch`]es from KafkaIngest, gives [`EventBatch`]es to the
//! PythonWorkerSupervisor: one open batch a stream, which parts of many sources share. Promises
//! that parts of one source stay in order. The rule is [`crate::protocol::accumulator`].

use crate::{
    actors::PythonWorkerSupervisor,
    config::Config,
    messages::{Drain, EventBatch, SourceBatch},
    protocol::accumulator::{Accumulator, CloseReason, Closed, Limits, Part},
    supervision::{Link, Undelivered},
    telemetry::{self, StageMeter},
};
use actix::{Actor, AsyncContext, Context, Handler, SpawnHandle};
use std::time::{Duration, Instant};

const METER: StageMeter = StageMeter::new("batch_accumulator");

/// See the module.
#[derive(Debug)]
pub struct BatchAccumulator {
    open: Vec<Accumulator<SourceBatch>>,
    next: Link<PythonWorkerSupervisor>,
    timer: Option<SpawnHandle>,
}

impl BatchAccumulator {
    /// One accumulator a stream.
    #[must_use]
    pub fn new(config: &Config, next: Link<PythonWorkerSupervisor>) -> Self {
        let limits = Limits {
            max_rows: config.batch.max_rows,
            max_bytes: config.batch.max_bytes,
            max_age: Duration::from_millis(config.batch.max_age_ms),
        };
        let open = config.streams.iter().map(|_| Accumulator::new(limits)).collect();
        Self { open, next, timer: None }
    }

    fn hand_on(&self, stream: usize, closed: Closed<SourceBatch>) {
        // Pinned here, once: all parts have the same version.
        let pinned = closed.parts.first().and_then(|part| part.pinned.clone());
        let batch = EventBatch { stream, pinned, parts: closed.parts };
        crate::crash_point!("b_closed");
        let rows = batch.rows();
        telemetry::batch_closed(closed.reason.name(), rows);
        match self.next.deliver(batch) {
            Ok(()) => METER.sent(rows),
            // Its tickets report, and its sources are read again.
            Err(Undelivered(_)) => METER.error("abandoned"),
        }
    }

    /// Closes what is old enough and wakes up when the next one will be.
    fn tick(&mut self, ctx: &mut Context<Self>) {
        let now = Instant::now();
        for stream in 0..self.open.len() {
            if let Some(closed) = self.open[stream].tick(now) {
                self.hand_on(stream, closed);
            }
        }
        if let Some(timer) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        if let Some(at) = self.open.iter().filter_map(Accumulator::deadline).min() {
            let wait = at.saturating_duration_since(now);
            self.timer = Some(ctx.run_later(wait, |actor, ctx| {
                actor.timer = None;
                actor.tick(ctx);
            }));
        }
        METER.queue_depth(self.open.iter().filter(|a| a.waiting() > 0).count());
    }
}

impl Actor for BatchAccumulator {
    type Context = Context<Self>;
}

impl Handler<SourceBatch> for BatchAccumulator {
    type Result = ();

    fn handle(&mut self, batch: SourceBatch, ctx: &mut Self::Context) {
        let started = Instant::now();
        METER.received(batch.rows());
        let stream = batch.stream;
        let Some(open) = self.open.get_mut(stream) else { return };
        for closed in open.push(batch, Instant::now()) {
            self.hand_on(stream, closed);
        }
        self.tick(ctx);
        METER.worked(started);
    }
}

impl Handler<Drain> for BatchAccumulator {
    type Result = ();

    fn handle(&mut self, _: Drain, _: &mut Self::Context) {
        for stream in 0..self.open.len() {
            if let Some(closed) = self.open[stream].close(CloseReason::Drain) {
                self.hand_on(stream, closed);
            }
        }
    }
}
