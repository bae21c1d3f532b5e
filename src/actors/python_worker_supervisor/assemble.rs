//! From what the script gave back to the effect of each part: rows in place, counts, dead letters,
//! the newest online values.

use super::status::is_failure;
use crate::{
    config::StreamConfig,
    decode::{self, Decoded},
    messages::{
        DeadLetter, EventBatch, FeatureBatch, FeaturePart, OnlineValue, Record, Records,
        SourceBatch, Stage, feature_row_schema,
    },
    online::newest_of_rows,
    planted,
    python::Script,
};
use arrow::{
    array::{
        Array, ArrayRef, AsArray, BooleanArray, FixedSizeBinaryArray, Int32Array, Int64Array,
        RecordBatch, TimestampMicrosecondArray, UInt32Array,
    },
    buffer::{BooleanBuffer, Buffer, NullBuffer},
    compute::filter_record_batch,
    datatypes::{TimestampMicrosecondType, UInt32Type},
    error::ArrowError,
};
use std::{collections::BTreeMap, sync::Arc};

/// Record timestamps that are kept of a part, for latency.
const SAMPLES: usize = 8;

/// Why a row of the batch is dead after decoding: stage `transform`, reason, detail.
pub type Rejections = BTreeMap<u32, (String, String)>;

/// What the script made of the good rows.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Feature rows in the worker's canonical layout, sorted by `_row`.
    pub rows: RecordBatch,
    /// Rows that are dead.
    pub rejected: Rejections,
}

impl Outcome {
    /// The events on which the script failed, rather than rejected them, in their order.
    pub fn failed_rows(&self) -> impl Iterator<Item = u32> {
        let rejected = self.rejected.iter();
        rejected.filter(|(_, (reason, _))| is_failure(reason)).map(|(row, _)| *row)
    }

    /// How many feature rows come from events before `row`.
    #[must_use]
    pub fn rows_before(&self, row: u32) -> usize {
        self.rows.column(0).as_primitive::<UInt32Type>().values().partition_point(|r| *r < row)
    }
}

/// The effect of one part, without the duties that its batch has.
#[derive(Debug)]
pub struct Effect {
    n_in: i64,
    n_kept: i64,
    n_filtered: i64,
    rows: RecordBatch,
    dead: Vec<DeadLetter>,
    online: Vec<OnlineValue>,
    sampled_timestamps_us: Vec<i64>,
}

impl Effect {
    /// That of no records.
    fn none() -> Self {
        Self {
            n_in: 0,
            n_kept: 0,
            n_filtered: 0,
            rows: RecordBatch::new_empty(feature_row_schema()),
            dead: Vec::new(),
            online: Vec::new(),
            sampled_timestamps_us: Vec::new(),
        }
    }

    /// The part that had it: tickets and credit go over.
    fn of(self, part: SourceBatch) -> FeaturePart {
        FeaturePart {
            source: part.source,
            token: part.token,
            from: part.from,
            to: part.to,
            n_in: self.n_in,
            n_kept: self.n_kept,
            n_filtered: self.n_filtered,
            rows: self.rows,
            dead: self.dead,
            online: self.online,
            ticket: part.ticket,
            credit: part.credit,
            sampled_timestamps_us: self.sampled_timestamps_us,
        }
    }
}

/// A batch with what [`assemble`] made of its parts.
#[must_use]
pub fn features(batch: EventBatch, script: &Script, effects: Vec<Effect>) -> FeatureBatch {
    FeatureBatch {
        id: batch.id,
        way: batch.way,
        stream: batch.stream,
        transform: script.name.clone(),
        script_sha256: script.sha256.clone(),
        parts: effects.into_iter().zip(batch.parts).map(|(e, part)| e.of(part)).collect(),
    }
}

/// A batch without records, which moves positions on: no script has anything to do with it.
#[must_use]
pub fn no_features(stream: &StreamConfig, batch: EventBatch) -> FeatureBatch {
    FeatureBatch {
        id: batch.id,
        way: batch.way,
        stream: batch.stream,
        transform: stream.transform.clone(),
        script_sha256: String::new(),
        parts: batch.parts.into_iter().map(|part| Effect::none().of(part)).collect(),
    }
}

/// Puts the effects of a batch's parts together.
///
/// # Errors
/// When the columns do not fit, which is a defect.
pub fn assemble(
    stream: &StreamConfig,
    batch: &EventBatch,
    decoded: &Decoded,
    outcome: Outcome,
    now_us: i64,
) -> Result<Vec<Effect>, ArrowError> {
    let Outcome { rows, mut rejected } = outcome;
    let rows = refuse_late_offenders(stream, rows, &mut rejected, now_us)?;
    let row_numbers = rows.column(0).as_primitive::<UInt32Type>().values().to_vec();
    let mut parts = Vec::with_capacity(batch.parts.len());
    let (mut row_start, mut out_start) = (0, 0);
    let mut dead = decoded.dead.iter();
    for (part, &row_end) in batch.parts.iter().zip(&decoded.part_ends) {
        let out_end =
            out_start + row_numbers[out_start..].partition_point(|r| (*r as usize) < row_end);
        let slice = rows.slice(out_start, out_end - out_start);
        let mut letters = dead.next().cloned().unwrap_or_default();
        for (row, (reason, detail)) in rejected.range(row_start as u32..row_end as u32) {
            letters.push(
                transform_letter(part, decoded, *row, stream, reason, detail)
                    .ok_or_else(|| ArrowError::ComputeError(format!("row {row} has no record")))?,
            );
        }
        letters.sort_by_key(|letter| letter.pos);
        if planted!("bad_rows_dropped") {
            letters.clear();
        }
        parts.push(effect(stream, part, decoded, slice, letters, row_end - row_start)?);
        (row_start, out_start) = (row_end, out_end);
    }
    Ok(parts)
}

/// A script may move timestamps: a record with an output outside the bounds is dead as a whole.
fn refuse_late_offenders(
    stream: &StreamConfig,
    rows: RecordBatch,
    rejected: &mut Rejections,
    now_us: i64,
) -> Result<RecordBatch, ArrowError> {
    let tolerance_us = stream.future_tolerance_s.cast_signed() * 1_000_000;
    let numbers = rows.column(0).as_primitive::<UInt32Type>();
    let times = rows.column(4).as_primitive::<TimestampMicrosecondType>();
    let before = rejected.len();
    for (row, time) in numbers.values().iter().zip(times.values()) {
        if let Err(bad) = decode::check_event_time(*time, now_us, tolerance_us) {
            rejected.entry(*row).or_insert_with(|| (bad.reason.to_owned(), bad.detail));
        }
    }
    if rejected.len() == before {
        return Ok(rows);
    }
    let keep: BooleanArray =
        numbers.values().iter().map(|row| Some(!rejected.contains_key(row))).collect();
    filter_record_batch(&rows, &keep)
}

/// The raw record of a row, found again in its part.
fn record_of<'a>(part: &'a SourceBatch, decoded: &Decoded, row: usize) -> Option<Record<'a>> {
    let mut index = decoded.record_of_row[row] as usize;
    for records in &part.records {
        if index < records.len() {
            return records.get(index);
        }
        index -= records.len();
    }
    None
}

fn transform_letter(
    part: &SourceBatch,
    decoded: &Decoded,
    row: u32,
    stream: &StreamConfig,
    reason: &str,
    detail: &str,
) -> Option<DeadLetter> {
    let mut record = record_of(part, decoded, row as usize)?;
    // Its header's, else its field's.
    record.event_id = Some(decoded.event_ids[row as usize]).filter(|id| !id.is_nil());
    let entity = decoded.batch.column_by_name(&stream.entity).map(|c| entity_text(c, row as usize));
    Some(DeadLetter::with_reason(&record, entity, Stage::Transform, reason.into(), detail.into()))
}

fn entity_text(column: &ArrayRef, row: usize) -> String {
    match column.as_string_opt::<i32>() {
        Some(text) => text.value(row).to_owned(),
        None => column
            .as_primitive_opt::<arrow::datatypes::Int64Type>()
            .map(|ints| ints.value(row).to_string())
            .unwrap_or_default(),
    }
}

/// The effect of one part. `good` is how many of its records went to the script.
fn effect(
    stream: &StreamConfig,
    part: &SourceBatch,
    decoded: &Decoded,
    rows: RecordBatch,
    dead: Vec<DeadLetter>,
    good: usize,
) -> Result<Effect, ArrowError> {
    let n_in = part.records.iter().map(Records::len).sum::<usize>();
    let numbers = rows.column(0).as_primitive::<UInt32Type>();
    let (subs, kept) = number_outputs(numbers);
    let rows = place(&rows, decoded, subs)?;
    let online = if stream.critical.is_empty() {
        Vec::new()
    } else {
        newest_of_rows(|feature| stream.is_critical(feature), part.source_no, &rows)
    };
    let n_dead = dead.len();
    debug_assert!(n_in >= good && kept + n_dead <= n_in);
    let sampled_timestamps_us = sample(&part.records);
    Ok(Effect {
        n_in: n_in as i64,
        n_kept: kept as i64,
        n_filtered: (n_in - kept - n_dead) as i64,
        rows,
        dead,
        online,
        sampled_timestamps_us,
    })
}

/// Numbers the outputs of each record from 0, and counts the records that have any.
fn number_outputs(rows: &UInt32Array) -> (Vec<i32>, usize) {
    let mut subs = Vec::with_capacity(rows.len());
    let (mut kept, mut last) = (0, None);
    for row in rows.values() {
        let sub = match (last, subs.last()) {
            (Some(before), Some(sub)) if before == row => sub + 1,
            _ => {
                kept += 1;
                0
            }
        };
        subs.push(sub);
        last = Some(row);
    }
    (subs, kept)
}

/// The worker's rows as they travel to the store: `_row` becomes position, event id and a
/// `created_at` where the script gave none.
fn place(rows: &RecordBatch, decoded: &Decoded, subs: Vec<i32>) -> Result<RecordBatch, ArrowError> {
    let numbers = rows.column(0).as_primitive::<UInt32Type>().values();
    let given = rows.column(5).as_primitive::<TimestampMicrosecondType>();
    let created_at: TimestampMicrosecondArray = if given.null_count() == 0 {
        given.clone()
    } else {
        let fallback = |i: usize, row: u32| {
            if given.is_valid(i) { given.value(i) } else { decoded.created_at_us[row as usize] }
        };
        numbers
            .iter()
            .enumerate()
            .map(|(i, row)| Some(fallback(i, *row)))
            .collect::<TimestampMicrosecondArray>()
            .with_timezone("UTC")
    };
    let positions =
        Int64Array::from_iter_values(numbers.iter().map(|r| decoded.positions[*r as usize]));
    let mut ids = Vec::with_capacity(numbers.len() * 16);
    for row in numbers.iter() {
        ids.extend_from_slice(decoded.event_ids[*row as usize].as_bytes());
    }
    let known = BooleanBuffer::collect_bool(numbers.len(), |i| {
        !decoded.event_ids[numbers[i] as usize].is_nil()
    });
    let ids =
        FixedSizeBinaryArray::try_new(16, Buffer::from_vec(ids), Some(NullBuffer::new(known)))?;
    RecordBatch::try_new(
        feature_row_schema(),
        vec![
            rows.column(1).clone(),
            rows.column(2).clone(),
            rows.column(3).clone(),
            rows.column(4).clone(),
            Arc::new(created_at),
            Arc::new(ids),
            Arc::new(positions),
            Arc::new(Int32Array::from(subs)),
        ],
    )
}

/// A few record timestamps, evenly spread.
fn sample(records: &[Records]) -> Vec<i64> {
    let n: usize = records.iter().map(Records::len).sum();
    let step = n.div_ceil(SAMPLES).max(1);
    records.iter().flat_map(Records::iter).step_by(step).map(|r| r.timestamp_us).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        messages::Credit,
        protocol::{
            source::{SourceName, Token},
            ticket::Ticket,
        },
    };

    #[test]
    fn a_batch_without_records_only_moves_its_position() {
        let (abandon, mut abandoned) = tokio::sync::mpsc::unbounded_channel();
        let (source, token) = (SourceName::kafka("s", "t", 3), Token::after(4));
        let part = SourceBatch {
            stream: 0,
            source: source.clone(),
            token,
            source_no: 9,
            from: 10,
            to: 14,
            pinned: None,
            records: Vec::new(),
            ticket: Ticket::new(source.clone(), token, 10, 14, abandon),
            credit: Credit::default(),
            polled_at: std::time::Instant::now(),
        };
        let stream = &StreamConfig::shipped()[0];
        let batch = EventBatch::new(0, None, vec![part]);
        let features = no_features(stream, batch);
        assert_eq!((&features.transform, features.script_sha256.as_str()), (&stream.transform, ""));
        let part = features.parts.into_iter().next().unwrap();
        assert_eq!((&part.source, part.token, part.from, part.to), (&source, token, 10, 14));
        assert_eq!((part.n_in, part.n_kept, part.n_filtered, part.dead.len()), (0, 0, 0, 0));
        assert_eq!((part.rows.num_rows(), part.rows.schema()), (0, feature_row_schema()));
        assert!(abandoned.try_recv().is_err(), "the ticket went over");
        drop(part);
        assert_eq!(abandoned.try_recv().unwrap().from, 10);
    }
}
