//! Raw records, as a source gave them: one buffer of payloads and a few columns beside it, or rows of
//! a file that come as columns.

use crate::decode::Cells;
use std::{borrow::Cow, sync::Arc};
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
                Some(mine) if Arc::ptr_eq(mine.semaphore(), permit.semaphore()) => {
                    mine.merge(permit);
                }
                _ => self.0.push(permit),
            }
        }
    }
}

/// What a record says.
#[derive(Debug, Clone, Copy)]
pub enum Payload<'a> {
    /// Nothing: a tombstone.
    Null,
    /// Bytes, which should be a JSON object.
    Json(&'a [u8]),
    /// A row of a file that has columns.
    Row(&'a Cells, usize),
}

impl<'a> Payload<'a> {
    /// The bytes that a dead letter keeps: those of the record, or the JSON object that the row
    /// stands for.
    #[must_use]
    pub fn raw(self) -> Option<Cow<'a, [u8]>> {
        match self {
            Self::Null => None,
            Self::Json(bytes) => Some(bytes.into()),
            Self::Row(cells, row) => Some(cells.json(row).into()),
        }
    }
}

impl<'a> From<Option<&'a [u8]>> for Payload<'a> {
    fn from(bytes: Option<&'a [u8]>) -> Self {
        bytes.map_or(Self::Null, Self::Json)
    }
}

impl<'a> From<&'a [u8]> for Payload<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Json(bytes)
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
    /// What it says.
    pub payload: Payload<'a>,
}

/// Rows of a file, one behind the other.
#[derive(Debug, Clone)]
struct FileRows {
    first_position: i64,
    timestamp_us: i64,
    cells: Arc<Cells>,
}

impl FileRows {
    fn get(&self, row: usize) -> Record<'_> {
        Record {
            // A file has far fewer rows than 2^63.
            position: self.first_position + row as i64,
            timestamp_us: self.timestamp_us,
            event_id: self.cells.event_id(row),
            payload: Payload::Row(&self.cells, row),
        }
    }
}

/// Records of one source in the order of their positions.
#[derive(Debug, Clone, Default)]
pub struct Records {
    /// Rows of a file, before all that was pushed.
    file: Option<Box<FileRows>>,
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
            file: None,
            positions: Vec::with_capacity(records),
            timestamps_us: Vec::with_capacity(records),
            event_ids: Vec::with_capacity(records),
            payloads: Vec::with_capacity(bytes),
            ends: Vec::with_capacity(records),
            null_payloads: Vec::new(),
        }
    }

    /// The rows of a file at positions from `first_position` on; all of them have the timestamp.
    #[must_use]
    pub fn of_cells(first_position: i64, timestamp_us: i64, cells: Arc<Cells>) -> Self {
        let file = FileRows { first_position, timestamp_us, cells };
        Self { file: Some(Box::new(file)), ..Self::default() }
    }

    /// Copies a record in; the only copy between librdkafka's buffer and the columns.
    pub fn push(&mut self, record: Record<'_>) {
        match record.payload {
            Payload::Json(payload) => self.payloads.extend_from_slice(payload),
            Payload::Row(cells, row) => self.payloads.extend_from_slice(&cells.json(row)),
            // A batch has far fewer records than 2^32.
            Payload::Null => self.null_payloads.push(self.positions.len() as u32),
        }
        self.positions.push(record.position);
        self.timestamps_us.push(record.timestamp_us);
        self.event_ids.push(record.event_id.unwrap_or(Uuid::nil()));
        self.ends.push(self.payloads.len());
    }

    /// Records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.file_rows() + self.positions.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Payload bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.payloads.len() + self.file.as_ref().map_or(0, |file| file.cells.bytes())
    }

    fn file_rows(&self) -> usize {
        self.file.as_ref().map_or(0, |file| file.cells.rows())
    }

    /// The `i`-th record.
    #[must_use]
    pub fn get(&self, i: usize) -> Option<Record<'_>> {
        let i = match &self.file {
            None => i,
            Some(file) if i < file.cells.rows() => return Some(file.get(i)),
            Some(file) => i - file.cells.rows(),
        };
        let start = if i == 0 { 0 } else { *self.ends.get(i - 1)? };
        let end = *self.ends.get(i)?;
        // A null payload is as rare as it is empty: only then is the list searched.
        let is_null = start == end && self.null_payloads.binary_search(&(i as u32)).is_ok();
        let payload = &self.payloads[start..end];
        Some(Record {
            position: self.positions[i],
            timestamp_us: self.timestamps_us[i],
            event_id: Some(self.event_ids[i]).filter(|id| !id.is_nil()),
            payload: if is_null { Payload::Null } else { Payload::Json(payload) },
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
                payload: (*payload).into(),
            });
        }
        let null = |r: &Record<'_>| matches!(r.payload, Payload::Null);
        assert_eq!(
            records.iter().map(|r| null(&r)).collect::<Vec<_>>(),
            payloads.map(|p| p.is_none())
        );
        let back: Vec<_> = records.iter().map(|r| r.payload.raw()).collect();
        assert_eq!(back, payloads.map(|p| p.map(Cow::from)));
        assert_eq!(records.get(3).unwrap().event_id, Some(Uuid::from_u128(7)));
        assert_eq!(records.get(0).unwrap().event_id, None);
        assert_eq!(records.bytes(), 4);
    }
}
