//! Entries to the effect that they have: one feature row or one dead letter each.

use super::entries::Entry;
use crate::{
    config::StreamConfig,
    decode::{Decoded, Decoder},
    messages::{
        DeadLetter, OnlineValue, PartHeader, Record, Records, WriteHeader, WriteRequest,
        dead_letters_to_arrow, feature_row_schema,
    },
    online::Newest,
    protocol::{
        source::{Position, SourceName, Token},
        version::Version,
    },
};
use arrow::{
    array::{
        Array, AsArray, FixedSizeBinaryBuilder, Int32Array, Int64Array, RecordBatch,
        TimestampMicrosecondArray,
    },
    datatypes::{Float64Type, Int64Type, TimestampMicrosecondType},
    error::ArrowError,
};
use std::{collections::HashMap, sync::Arc};

/// The name of what made the rows, in the ledger.
pub const TRANSFORM: &str = "plain_write";

/// What an entry led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// A row.
    Row,
    /// A dead letter.
    Dead {
        /// From the closed list.
        reason: String,
        /// What a person needs.
        detail: String,
    },
}

/// The effect of some entries, in their order.
#[derive(Debug)]
pub struct Batch {
    /// One an entry.
    pub effects: Vec<Effect>,
    rows: RecordBatch,
    dead: Vec<DeadLetter>,
}

/// The range of a batch and who may write it.
#[derive(Debug)]
pub struct Range {
    /// Whose positions.
    pub source: SourceName,
    /// The token under which they were read.
    pub token: Token,
    /// First position.
    pub from: Position,
    /// The position after the last.
    pub to: Position,
}

/// Validates entries.
///
/// # Errors
/// Only when the columns do not make a batch, which is a defect.
pub fn decode(decoder: &Decoder, entries: &[(Position, Entry)]) -> Result<Batch, ArrowError> {
    let bytes = entries.iter().filter_map(|(_, e)| e.json.as_ref()).map(Vec::len).sum();
    let mut records = Records::with_capacity(entries.len(), bytes);
    for (position, entry) in entries {
        records.push(Record {
            position: *position,
            timestamp_us: entry.id.timestamp_us(),
            event_id: None,
            payload: entry.json.as_deref().into(),
        });
    }
    let now_us = chrono::Utc::now().timestamp_micros();
    let mut decoded = decoder.decode(&[&[records]], now_us)?;
    let dead = decoded.dead.pop().unwrap_or_default();
    let mut reasons: HashMap<Position, &DeadLetter> = dead.iter().map(|l| (l.pos, l)).collect();
    let effect = |position: &Position| match reasons.remove(position) {
        None => Effect::Row,
        Some(l) => Effect::Dead { reason: l.reason.clone(), detail: l.detail.clone() },
    };
    let effects = entries.iter().map(|(p, _)| p).map(effect).collect();
    Ok(Batch { effects, rows: rows(&decoded)?, dead })
}

/// The decoded columns as feature rows.
fn rows(decoded: &Decoded) -> Result<RecordBatch, ArrowError> {
    let n = decoded.positions.len();
    let mut ids = FixedSizeBinaryBuilder::with_capacity(n, 16);
    for id in &decoded.event_ids {
        if id.is_nil() {
            ids.append_null();
        } else {
            ids.append_value(id.as_bytes())?;
        }
    }
    let created_at = TimestampMicrosecondArray::from(decoded.created_at_us.clone());
    let mut columns = decoded.batch.columns()[..4].to_vec();
    columns.push(Arc::new(created_at.with_timezone("UTC")));
    columns.push(Arc::new(ids.finish()));
    columns.push(Arc::new(Int64Array::from(decoded.positions.clone())));
    columns.push(Arc::new(Int32Array::from_value(0, n)));
    RecordBatch::try_new(feature_row_schema(), columns)
}

impl Batch {
    /// The newest value of each feature that a configured stream calls critical.
    pub fn critical(&self, streams: &[StreamConfig], source_no: i32) -> Vec<OnlineValue> {
        let (entities, features) =
            (self.rows.column(0).as_string::<i32>(), self.rows.column(1).as_string::<i32>());
        let values = self.rows.column(2).as_primitive::<Float64Type>();
        let times = self.rows.column(3).as_primitive::<TimestampMicrosecondType>();
        let made = self.rows.column(4).as_primitive::<TimestampMicrosecondType>();
        let positions = self.rows.column(6).as_primitive::<Int64Type>();
        let mut newest = Newest::default();
        for i in 0..self.rows.num_rows() {
            if streams.iter().any(|s| s.is_critical(features.value(i))) {
                let version = Version {
                    event_timestamp: times.value(i),
                    created_at: made.value(i),
                    source_no,
                    pos: positions.value(i),
                    sub: 0,
                };
                let value = values.is_valid(i).then(|| values.value(i));
                newest.offer(entities.value(i), features.value(i), value, version);
            }
        }
        newest.into_values()
    }

    /// The write that brings the batch into DuckDB.
    ///
    /// # Errors
    /// Only when the columns do not make a batch, which is a defect.
    pub fn request(
        &self,
        node: String,
        generation: String,
        range: Range,
    ) -> Result<WriteRequest, ArrowError> {
        let Range { source, token, from, to } = range;
        let (n_kept, n_dead) = (self.rows.num_rows() as i64, self.dead.len() as i64);
        let part = PartHeader {
            source,
            token,
            from,
            to,
            n_in: n_kept + n_dead,
            n_kept,
            n_dead,
            n_filtered: 0,
            n_rows: n_kept,
            chunk: None,
        };
        let header = WriteHeader {
            node,
            batch_id: uuid::Uuid::nil(),
            transform: TRANSFORM.into(),
            script_sha256: String::new(),
            generation,
            as_known: crate::config::AsKnown::Arrival,
            parts: vec![part],
        };
        let dead = dead_letters_to_arrow(&self.dead)?;
        Ok(WriteRequest { header, again: false, rows: vec![self.rows.clone()], dead: vec![dead] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::plain_writes::EntryId;

    fn entry(ms: u64, json: Option<&str>) -> (Position, Entry) {
        let id = EntryId { ms, seq: 0 };
        let json = json.map(|j| j.as_bytes().to_vec());
        let entry = Entry { id, json, reply: None, deleted: false, fields: Vec::new() };
        (id.position().unwrap(), entry)
    }

    fn row(entity: &str, value: f64, second: u32) -> String {
        format!(
            r#"{{"table":"features_table","data":{{"entity_id":"{entity}","feature_name":"clicks_x",
                "value":{value},"event_timestamp":"2023-11-14T22:13:{second:02}Z"}}}}"#
        )
    }

    #[test]
    fn each_entry_has_its_effect_and_the_counts_add_up() {
        let ms = 1_700_000_000_000;
        let entries = [
            entry(ms, Some(&row("a", 1.0, 20))),
            entry(ms + 1, Some("{")),
            entry(ms + 2, None),
            entry(ms + 3, Some(&row("a", 2.0, 10))),
        ];
        let batch = decode(&Decoder::plain_writes(), &entries).unwrap();
        let reason = |i: usize| match &batch.effects[i] {
            Effect::Row => "",
            Effect::Dead { reason, .. } => reason,
        };
        assert_eq!([0, 1, 2, 3].map(reason), ["", "invalid_json", "null_payload", ""]);
        let (from, to) = (0, entries[3].0 + 1);
        let range =
            Range { source: "writes:x".to_owned().into(), token: Token::after(0), from, to };
        let write = batch.request("n".into(), "g".into(), range).unwrap();
        let part = &write.header.parts[0];
        assert_eq!((part.n_in, part.n_kept, part.n_dead, part.n_rows), (4, 2, 2, 2));
        assert_eq!((write.rows[0].num_rows(), write.dead[0].num_rows()), (2, 2));
        let made = write.rows[0].column(4).as_primitive::<TimestampMicrosecondType>();
        assert_eq!(made.value(1), (ms as i64 + 3) * 1_000, "the entry's own time");
    }

    #[test]
    fn only_the_newest_of_what_any_stream_calls_critical_goes_online() {
        let ms = 1_700_000_000_000;
        let entries =
            [entry(ms, Some(&row("a", 1.0, 20))), entry(ms + 3, Some(&row("a", 2.0, 10)))];
        let batch = decode(&Decoder::plain_writes(), &entries).unwrap();
        let mut streams = StreamConfig::shipped();
        let values = batch.critical(&streams, 9);
        assert_eq!(values.len(), 1);
        assert_eq!((values[0].value, values[0].version.source_no), (Some(1.0), 9));
        assert_eq!((values[0].version.pos, values[0].version.sub), (entries[0].0, 0));
        streams.iter_mut().for_each(|s| s.critical = vec!["other".into()]);
        assert!(batch.critical(&streams, 9).is_empty());
    }
}
