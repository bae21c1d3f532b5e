//! What KafkaIngest hands to the BatchAccumulator, and what that hands on.

use super::records::{Credit, Records};
use crate::{
    planted,
    protocol::{
        accumulator::Part,
        source::{Position, SourceName, Token, Urgency},
        ticket::Ticket,
    },
    telemetry::traces::{self, Way},
};
use actix::Message;
use std::{sync::Arc, time::Instant};
use uuid::Uuid;

/// Records of one source in positions `[from, to)`, which may have holes.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct SourceBatch {
    /// Index of the stream in the configuration.
    pub stream: usize,
    /// Whose records.
    pub source: SourceName,
    /// The token under which they were read.
    pub token: Token,
    /// The small integer that stands for the source in the tables.
    pub source_no: i32,
    /// First position.
    pub from: Position,
    /// The position after the last.
    pub to: Position,
    /// The script version that it must run under, as SHA-256: values that it made of these records
    /// were promised online. `None`: the current one.
    pub pinned: Option<Arc<str>>,
    /// The records, in pieces as they were polled.
    pub records: Vec<Records>,
    /// Reports the range when it is dropped unsettled.
    pub ticket: Ticket,
    /// Share of the pool of bytes in flight.
    pub credit: Credit,
    /// When the first record was polled.
    pub polled_at: Instant,
}

impl Part for SourceBatch {
    fn rows(&self) -> usize {
        self.records.iter().map(Records::len).sum()
    }

    fn bytes(&self) -> usize {
        self.records.iter().map(Records::bytes).sum()
    }

    fn pin(&self) -> Option<&str> {
        self.pinned.as_deref()
    }

    fn merge(&mut self, mut next: Self) -> Result<(), Self> {
        if let Err(ticket) = self.ticket.join(next.ticket) {
            next.ticket = ticket;
            return Err(next);
        }
        self.to = next.to;
        if planted!("order_lost") {
            std::mem::swap(&mut self.records, &mut next.records);
        }
        self.records.append(&mut next.records);
        self.credit.join(next.credit);
        Ok(())
    }
}

/// Events of one stream that go through its script in one call. Parts of several sources share a
/// call, live ones and those of files never do; each keeps its own range and gets its own verdict.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct EventBatch {
    /// What it is called in logs, from here to DuckDB; its time is that of its closing.
    pub id: Uuid,
    /// The root of its trace.
    pub way: Way,
    /// Index of the stream in the configuration.
    pub stream: usize,
    /// The script version that all its parts must run under, as SHA-256; `None`: the current one.
    pub pinned: Option<Arc<str>>,
    /// A part a source, or two when it was opened again in between.
    pub parts: Vec<SourceBatch>,
}

impl EventBatch {
    /// A batch that has just been closed.
    #[must_use]
    pub fn new(stream: usize, pinned: Option<Arc<str>>, parts: Vec<SourceBatch>) -> Self {
        let id = Uuid::now_v7();
        let mut batch = Self { id, way: Way::default(), stream, pinned, parts };
        batch.way = batch.begun();
        batch
    }

    /// The root of its trace: it began with its first record.
    fn begun(&self) -> Way {
        if !traces::are_exported() {
            return Way::default();
        }
        let stream = self.parts.first().and_then(|part| part.source.stream()).unwrap_or_default();
        Way::begin(self.id, stream, self.parts.len(), self.rows(), self.since())
    }

    /// When its first record was polled.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.parts.iter().map(|part| part.polled_at).min().unwrap_or_else(Instant::now)
    }

    /// Events over all parts.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.parts.iter().map(Part::rows).sum()
    }

    /// Payload bytes over all parts.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(Part::bytes).sum()
    }

    /// How urgent it is: all its parts are equally so.
    #[must_use]
    pub fn urgency(&self) -> Urgency {
        self.parts.first().map_or(Urgency::Live, |part| part.source.urgency())
    }

    /// A batch for each part, under the same id.
    #[must_use]
    pub fn split(self) -> Vec<Self> {
        let Self { id, way, stream, pinned, parts } = self;
        let alone = |part| {
            let (way, pinned) = (way.clone(), pinned.clone());
            Self { id, way, stream, pinned, parts: vec![part] }
        };
        parts.into_iter().map(alone).collect()
    }
}
