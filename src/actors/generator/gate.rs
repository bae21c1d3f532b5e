//! Keeps a generator within what the embedded broker can hold.
//!
//! librdkafka's mock cluster keeps about 5 MiB a partition, in memory, and drops the oldest beyond
//! that. So what was produced and not yet acknowledged by DuckDB stays under a bound a partition.

use crate::kafka::{AcknowledgedPositions, TopicPartition};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

/// Bytes a partition between the producer and DuckDB's acknowledgement.
const MAX_OUTSTANDING_BYTES: u64 = 2 << 20;

/// Bytes that a record costs in the broker besides key and payload: header, framing.
const RECORD_OVERHEAD: u64 = 96;

/// See the module.
#[derive(Debug)]
pub struct EmbeddedGate {
    acknowledged: Arc<AcknowledgedPositions>,
    produced: Mutex<HashMap<TopicPartition, Partition>>,
}

#[derive(Debug, Default)]
struct Partition {
    outstanding: u64,
    /// Offset and bytes of what is not acknowledged yet, in the order of the offsets.
    records: VecDeque<(i64, u64)>,
}

impl EmbeddedGate {
    /// A gate that follows these acknowledgements.
    #[must_use]
    pub fn new(acknowledged: Arc<AcknowledgedPositions>) -> Self {
        Self { acknowledged, produced: Mutex::default() }
    }

    /// The broker took a record.
    pub fn produced(&self, topic: &str, partition: i32, offset: i64, bytes: usize) {
        let bytes = bytes as u64 + RECORD_OVERHEAD;
        let mut produced = self.produced.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (topic.to_owned(), partition);
        let partition = produced.entry(key).or_default();
        partition.outstanding += bytes;
        partition.records.push_back((offset, bytes));
    }

    /// Whether a producer must wait.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let mut produced = self.produced.lock().unwrap_or_else(PoisonError::into_inner);
        let mut full = false;
        for ((topic, number), partition) in produced.iter_mut() {
            let next = self.acknowledged.get(topic, *number).unwrap_or(0);
            while let Some((offset, bytes)) = partition.records.front().copied()
                && offset < next
            {
                partition.outstanding -= bytes;
                partition.records.pop_front();
            }
            full |= partition.outstanding >= MAX_OUTSTANDING_BYTES;
        }
        full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_closes_at_the_bound_and_opens_with_acknowledgements() {
        let acknowledged = Arc::new(AcknowledgedPositions::default());
        let gate = EmbeddedGate::new(acknowledged.clone());
        let record = 1 << 19;
        for offset in 0..4 {
            assert!(!gate.is_full());
            gate.produced("t", 0, offset, record);
        }
        assert!(gate.is_full());
        gate.produced("t", 1, 0, 10);
        acknowledged.set("t", 0, 1);
        assert!(!gate.is_full());
    }
}
