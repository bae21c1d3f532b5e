//! BatchAccumulator: records into batches, closed by rows, bytes, age or script version.
//!
//! Takes [`SourceBatch`]es from KafkaIngest, FileUpload and Replayer, gives [`EventBatch`]es to the
//! PythonWorkerSupervisor: one open batch a stream and [`Urgency`], which parts of many sources share.
//! Promises that parts of one source stay in order. The rule is [`crate::protocol::accumulator`].

use crate::{
    actors::PythonWorkerSupervisor,
    config::Config,
    messages::{Drain, EventBatch, SourceBatch},
    protocol::{
        accumulator::{Accumulator, CloseReason, Closed, Limits, Part},
        source::Urgency,
    },
    supervision::{Link, Undelivered},
    telemetry::{self, StageMeter},
};
use actix::{Actor, AsyncContext, Context, Handler, SpawnHandle};
use std::time::{Duration, Instant};

const METER: StageMeter = StageMeter::new("batch_accumulator");

/// See the module.
#[derive(Debug)]
pub struct BatchAccumulator {
    /// By the stream's index, then by urgency.
    open: Vec<[Accumulator<SourceBatch>; Urgency::ALL.len()]>,
    next: Link<PythonWorkerSupervisor>,
    timer: Option<SpawnHandle>,
}

impl BatchAccumulator {
    /// With nothing open.
    #[must_use]
    pub fn new(config: &Config, next: Link<PythonWorkerSupervisor>) -> Self {
        let limits = Limits {
            max_rows: config.batch.max_rows,
            max_bytes: config.batch.max_bytes,
            max_age: Duration::from_millis(config.batch.max_age_ms),
        };
        let open =
            config.streams.iter().map(|_| Urgency::ALL.map(|_| Accumulator::new(limits))).collect();
        Self { open, next, timer: None }
    }

    fn hand_on(&self, stream: usize, closed: Closed<SourceBatch>) {
        // Pinned here, once: all parts have the same version.
        let pinned = closed.parts.first().and_then(|part| part.pinned.clone());
        let batch = EventBatch::new(stream, pinned, closed.parts);
        crate::crash_point!("b_closed");
        let rows = batch.rows();
        telemetry::batch_closed(closed.reason.name(), rows);
        let ranges = || batch.parts.iter().map(|p| format!("{} [{}, {})", p.source, p.from, p.to));
        let reason = closed.reason.name();
        tracing::debug!(batch = %batch.id, rows, reason, ranges = ?ranges().collect::<Vec<_>>(), "closed");
        batch.way.step_since("accumulate", batch.since()).text("reason", reason).end();
        match self.next.deliver(batch) {
            Ok(()) => METER.sent(rows),
            // Its tickets report, and its sources are read again.
            Err(Undelivered(batch)) => {
                METER.error("abandoned");
                tracing::debug!(batch = %batch.id, "abandoned: nobody takes it");
            }
        }
    }

    /// Hands on what `which` closes, the live first.
    fn close(
        &mut self,
        mut which: impl FnMut(&mut Accumulator<SourceBatch>) -> Option<Closed<SourceBatch>>,
    ) {
        for urgency in Urgency::ALL {
            for stream in 0..self.open.len() {
                if let Some(closed) = which(&mut self.open[stream][urgency as usize]) {
                    self.hand_on(stream, closed);
                }
            }
        }
    }

    /// Closes what is old enough and wakes up when the next one will be.
    fn tick(&mut self, ctx: &mut Context<Self>) {
        let now = Instant::now();
        self.close(|open| open.tick(now));
        if let Some(timer) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        let open = || self.open.iter().flatten();
        if let Some(at) = open().filter_map(Accumulator::deadline).min() {
            let wait = at.saturating_duration_since(now);
            self.timer = Some(ctx.run_later(wait, |actor, ctx| {
                actor.timer = None;
                actor.tick(ctx);
            }));
        }
        // They wait for more of their kind, not for the next stage.
        METER.queue_depth(self.open.iter().flatten().filter(|a| a.waiting() > 0).count());
    }
}

impl Actor for BatchAccumulator {
    type Context = Context<Self>;
}

impl Handler<SourceBatch> for BatchAccumulator {
    type Result = ();

    fn handle(&mut self, batch: SourceBatch, ctx: &mut Self::Context) {
        let work = METER.begin();
        METER.received(batch.rows());
        let stream = batch.stream;
        let Some(of_stream) = self.open.get_mut(stream) else { return };
        let open = &mut of_stream[batch.source.urgency() as usize];
        for closed in open.push(batch, Instant::now()) {
            self.hand_on(stream, closed);
        }
        self.tick(ctx);
        work.done();
    }
}

impl Handler<Drain> for BatchAccumulator {
    type Result = ();

    fn handle(&mut self, _: Drain, _: &mut Self::Context) {
        self.close(|open| open.close(CloseReason::Drain));
    }
}
