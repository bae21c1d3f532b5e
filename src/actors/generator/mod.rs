//! Generator: made-up events into Kafka and as files over gRPC, each a pure function of its id.
//!
//! Takes nothing, gives records on the topics of the shipped streams, from two or more producer
//! tasks, seeded, at a rate or flat out; and files of such events, from one more task, where a node
//! takes them. Promises that every record carries its id in the header `event_id` and every row of a
//! file in the field of that name, and that the [`Tally`] knows every id that the broker or the node
//! acknowledged, so that a judge can tell what must have become of it.
//!
//! The tasks are threads that survive this actor; an instance adopts them.

mod gate;
mod tally;
mod task;
mod upload;

pub use gate::EmbeddedGate;
pub use tally::{Expected, Tally};
pub(crate) use task::send;
pub use task::{GeneratorParts, GeneratorTasks};

use crate::telemetry::StageMeter;
use actix::{Actor, AsyncContext, Context};
use std::{sync::Arc, time::Duration};

const METER: StageMeter = StageMeter::new("generator");

/// See the module.
#[derive(Debug)]
pub struct Generator {
    tasks: Arc<GeneratorTasks>,
    shown: u64,
}

impl Generator {
    /// An instance that adopts the running tasks.
    #[must_use]
    pub fn new(tasks: Arc<GeneratorTasks>) -> Self {
        let shown = tasks.tally().acknowledged();
        Self { tasks, shown }
    }

    fn show(&mut self) {
        let acknowledged = self.tasks.tally().acknowledged();
        METER.sent(acknowledged.saturating_sub(self.shown) as usize);
        self.shown = acknowledged;
        if self.tasks.has_failed() {
            METER.error("task");
        }
    }
}

impl Actor for Generator {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(Duration::from_millis(250), |actor, _| actor.show());
    }
}
