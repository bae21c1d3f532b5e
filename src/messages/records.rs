//! Raw records, as a source gave them: one buffer of payloads and a few columns beside it.

use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

/// Bytes that a record costs in memory besides its payload.
pub const RECORD_OVERHEAD: usize = 64;

/// A share of the bounded pool of payload bytes between Kafka and DuckDB's acknowledgement, in
/// KiB. Dropping it gives it back. actix bounds no mailbox that is sent to by `send`: this does.
#[derive(Debug, Default)]
pub struct Credit(Vec<OwnedSemaphorePermit>);

impl Credit {
    /// The credit that a permit stands for.
    #[must_use]
    pub fn new(permit: OwnedSemaphorePermit) -> Self {
        Self(vec![permit])
    }

    /// Adds another share.
    pub fn join(&mut self, other: Self) {
        for permit in other.0 {
            match self.0.first_mut() {
                Some(mine) if std::sync::Arc::ptr_eq(mine.semaphore(), permit.semaphore()) => {
                    mine.merge(permit);
                }
                _ => self.0.push(permit),
            }
        }
    }
}

/// One record, borrowed.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Its position in its source.
    pub position: i64,
    /// The broker's or producer's timestamp, UTC microseconds.
    pub timestamp_us: i64,
    /// The producer's UUID, from the header.
    pub event_id: Option<Uuid>,
    /// Its bytes; `None` for a null payload.
    pub payload: Option<&'a [u8]>,
}

/// Records of one source in the order of their positions.
#[derive(Debug, Clone, Default)]
pub struct Records {
    positions: Vec<i64>,
    timestamps_us: Vec<i64>,
    /// Nil when there is none.
    event_ids: Vec<Uuid>,
    payloads: Vec<u8>,
    ends: Vec<usize>,
    /// Indices of the records whose payload is null, ascending.
    null_payloads: Vec<u32>,
}

impl Records {
    /// Room for `records` of `bytes` in all.
    #[must_use]
    pub fn with_capacity(records: usize, bytes: usize) -> Self {
        Self {
            positions: Vec::with_capacity(records),
            timestamps_us: Vec::with_capacity(records),
            event_ids: Vec::with_capacity(records),
            payloads: Vec::with_capacity(bytes),
            ends: Vec::with_capacity(records),
            null_payloads: Vec::new(),
        }
    }

    /// Copies a record in; the only copy between librdkafka's buffer and the columns.
    pub fn push(&mut self, record: Record<'_>) {
        match record.payload {
            Some(payload) => self.payloads.extend_from_slice(payload),
            // A batch has far fewer records than 2^32.
            None => self.null_payloads.push(self.positions.len() as u32),
        }
        self.positions.push(record.position);
        self.timestamps_us.push(record.timestamp_us);
        self.event_ids.push(record.event_id.unwrap_or(Uuid::nil()));
        self.ends.push(self.payloads.len());
    }

    /// Records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// Payload bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.payloads.len()
    }

    /// The `i`-th record.
    #[must_use]
    pub fn get(&self, i: usize) -> Option<Record<'_>> {
        let start = if i == 0 { 0 } else { *self.ends.get(i - 1)? };
        let end = *self.ends.get(i)?;
        // A null payload is as rare as it is empty: only then is the list searched.
        let is_null = start == end && self.null_payloads.binary_search(&(i as u32)).is_ok();
        Some(Record {
            position: self.positions[i],
            timestamp_us: self.timestamps_us[i],
            event_id: Some(self.event_ids[i]).filter(|id| !id.is_nil()),
            payload: (!is_null).then(|| &self.payloads[start..end]),
        })
    }

    /// The records in order.
    pub fn iter(&self) -> impl Iterator<Item = Record<'_>> {
        (0..self.len()).filter_map(|i| self.get(i))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_null_payload_is_not_an_empty_one() {
        let mut records = Records::with_capacity(4, 64);
        let payloads: [Option<&[u8]>; 4] = [Some(b"abc"), None, Some(b""), Some(b"d")];
        for (i, payload) in payloads.iter().enumerate() {
            let event_id = (i == 3).then(|| Uuid::from_u128(7));
            records.push(Record {
                position: i as i64,
                timestamp_us: 0,
                event_id,
                payload: *payload,
            });
        }
        let back: Vec<_> = records.iter().map(|r| r.payload).collect();
        assert_eq!(back, payloads);
        assert_eq!(records.get(3).unwrap().event_id, Some(Uuid::from_u128(7)));
        assert_eq!(records.get(0).unwrap().event_id, None);
        assert_eq!(records.bytes(), 4);
    }
}
