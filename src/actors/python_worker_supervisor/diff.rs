//! What one script version makes of a batch, held against what another made of it.

use super::assemble::Outcome;
use crate::{
    messages::{FeaturePart, Stage},
    python::schema,
};
use arrow::{
    array::{Array, AsArray, RecordBatch, UInt32Array},
    datatypes::{Float64Type, Int64Type, TimestampMicrosecondType, UInt32Type},
    error::ArrowError,
};
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, sync::Arc};

/// Rows that a difference shows one by one.
const SHOWN: usize = 5;

/// What became of a feature row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Only the new version makes it.
    Added,
    /// Only the old one made it.
    Gone,
    /// Both make it, with another value or another time.
    Changed,
}

/// One row that differs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// How it differs.
    pub change: Change,
    /// The event that it comes from, counted in the batch.
    pub row: u32,
    /// Whose feature.
    pub entity_id: String,
    /// Which feature.
    pub feature_name: String,
    /// Value and event timestamp under the old version.
    pub before: Option<String>,
    /// The same under the new one.
    pub after: Option<String>,
}

/// The difference of two versions over one batch. Feature rows are the same when they come from the
/// same event and have the same entity and feature; of several, the first is held against the first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// Rows that only the new version makes.
    pub added: usize,
    /// Rows that only the old version made.
    pub gone: usize,
    /// Rows with another value or event timestamp.
    pub changed: usize,
    /// Rows that are equal.
    pub same: usize,
    /// Events that the old version rejected or failed on.
    pub dead_before: usize,
    /// Events that the new one rejects or fails on.
    pub dead_after: usize,
    /// The first few that differ.
    pub examples: Vec<Example>,
}

/// Event, entity, feature, and which of those.
type Key<'a> = (u32, &'a str, &'a str, u32);
/// Value and event timestamp.
type Held = (Option<u64>, i64);

impl Difference {
    /// From what the old version made of a batch to what the new one makes.
    #[must_use]
    pub fn between(before: &Outcome, after: &Outcome) -> Self {
        let (old, new) = (keyed(&before.rows), keyed(&after.rows));
        let mut found = Self {
            dead_before: before.rejected.len(),
            dead_after: after.rejected.len(),
            ..Self::default()
        };
        let in_old: HashMap<Key<'_>, Held> = old.iter().copied().collect();
        let in_new: HashMap<Key<'_>, Held> = new.iter().copied().collect();
        for (key, held) in &new {
            match in_old.get(key) {
                None => {
                    found.added += 1;
                    found.show(Change::Added, key, None, Some(*held));
                }
                Some(known) if known == held => found.same += 1,
                Some(known) => {
                    found.changed += 1;
                    found.show(Change::Changed, key, Some(*known), Some(*held));
                }
            }
        }
        for (key, held) in old.iter().filter(|(key, _)| !in_new.contains_key(key)) {
            found.gone += 1;
            found.show(Change::Gone, key, Some(*held), None);
        }
        found
    }

    /// From what a node would have landed under the old version to what it would have landed under
    /// the new one, of the same records. An example's row is its record's position.
    ///
    /// # Errors
    /// When the columns do not fit, which is a defect.
    pub fn between_parts(before: &FeaturePart, after: &FeaturePart) -> Result<Self, ArrowError> {
        let mut found = Self::between(&outcome_of(before)?, &outcome_of(after)?);
        // A row that cannot be told is as good as the last one that can.
        let first = u32::try_from(before.from).unwrap_or(u32::MAX);
        found.examples.iter_mut().for_each(|e| e.row = e.row.saturating_add(first));
        Ok(found)
    }

    /// The difference over both batches.
    pub fn add(&mut self, next: Self) {
        self.added += next.added;
        self.gone += next.gone;
        self.changed += next.changed;
        self.same += next.same;
        self.dead_before += next.dead_before;
        self.dead_after += next.dead_after;
        for example in next.examples {
            if self.has_room(example.change) {
                self.examples.push(example);
            }
        }
    }

    /// Whether the versions make the same of it.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.added + self.gone + self.changed == 0 && self.dead_before == self.dead_after
    }

    fn show(&mut self, change: Change, key: &Key<'_>, before: Option<Held>, after: Option<Held>) {
        if !self.has_room(change) {
            return;
        }
        let (row, entity_id, feature_name, _) = *key;
        self.examples.push(Example {
            change,
            row,
            entity_id: entity_id.to_owned(),
            feature_name: feature_name.to_owned(),
            before: before.map(readable),
            after: after.map(readable),
        });
    }

    /// A few of each kind say more than many of one.
    fn has_room(&self, change: Change) -> bool {
        self.examples.iter().filter(|example| example.change == change).count() < SHOWN
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { added, gone, changed, same, dead_before, dead_after, .. } = self;
        write!(f, "{added} rows added, {gone} gone, {changed} changed, {same} the same")?;
        if dead_before != dead_after {
            write!(f, "; dead events {dead_before} before, {dead_after} now")?;
        }
        Ok(())
    }
}

/// Rows in the canonical layout, in their order.
fn keyed(rows: &RecordBatch) -> Vec<(Key<'_>, Held)> {
    let column = |name| rows.column_by_name(name);
    let (Some(row), Some(entity), Some(feature), Some(value), Some(at)) = (
        column(schema::ROW),
        column(schema::ENTITY_ID),
        column(schema::FEATURE_NAME),
        column(schema::VALUE),
        column(schema::EVENT_TIMESTAMP),
    ) else {
        return Vec::new();
    };
    let row = row.as_primitive::<UInt32Type>().values();
    let (entity, feature) = (entity.as_string::<i32>(), feature.as_string::<i32>());
    let value = value.as_primitive::<Float64Type>();
    let at = at.as_primitive::<TimestampMicrosecondType>().values();
    let mut seen: HashMap<(u32, &str, &str), u32> = HashMap::new();
    (0..rows.num_rows())
        .map(|i| {
            let (entity, feature) = (entity.value(i), feature.value(i));
            let nth = seen.entry((row[i], entity, feature)).or_default();
            *nth += 1;
            let held = (value.is_valid(i).then(|| value.value(i).to_bits()), at[i]);
            ((row[i], entity, feature, *nth), held)
        })
        .collect()
}

/// A part as its worker gave it back: its rows by number instead of position, and of its letters
/// those that the script is the cause of.
fn outcome_of(part: &FeaturePart) -> Result<Outcome, ArrowError> {
    let columns = part.rows.columns();
    // A batch has far fewer records than 2^32.
    let number = |position: i64| (position - part.from) as u32;
    let positions = columns[6].as_primitive::<Int64Type>().values();
    let mut of_worker =
        vec![Arc::new(UInt32Array::from_iter_values(positions.iter().map(|p| number(*p)))) as _];
    of_worker.extend_from_slice(&columns[..5]);
    let letters = part.dead.iter().filter(|letter| letter.stage == Stage::Transform);
    let rejected = letters.map(|l| (number(l.pos), (l.reason.clone(), l.detail.clone())));
    let rejected = rejected.collect();
    Ok(Outcome { rows: RecordBatch::try_new(schema::canonical(), of_worker)?, rejected })
}

fn readable((value, at): Held) -> String {
    let value = value.map_or_else(|| "null".to_owned(), |bits| f64::from_bits(bits).to_string());
    let at = chrono::DateTime::from_timestamp_micros(at)
        .map(|at| at.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true));
    format!("{value} at {}", at.unwrap_or_default())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        messages::{Credit, DeadLetter, Payload, Record, feature_row_schema},
        protocol::{
            source::{SourceName, Token},
            ticket::Ticket,
        },
    };
    use arrow::array::{
        Float64Array, Int32Array, Int64Array, StringArray, TimestampMicrosecondArray,
        new_null_array,
    };

    /// Event, feature, value, event timestamp.
    pub type Row = (u32, &'static str, Option<f64>, i64);

    /// Rows of the entity `e`; the first `dead` events are rejected.
    pub fn outcome(rows: &[Row], dead: u32) -> Outcome {
        let schema = schema::canonical();
        let times = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|r| r.3));
        let columns = schema
            .fields()
            .iter()
            .map(|field| match field.name().as_str() {
                schema::ROW => {
                    Arc::new(UInt32Array::from_iter_values(rows.iter().map(|r| r.0))) as _
                }
                schema::ENTITY_ID => {
                    Arc::new(StringArray::from_iter_values(rows.iter().map(|_| "e"))) as _
                }
                schema::FEATURE_NAME => {
                    Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.1))) as _
                }
                schema::VALUE => Arc::new(rows.iter().map(|r| r.2).collect::<Float64Array>()) as _,
                schema::EVENT_TIMESTAMP => Arc::new(times.clone().with_timezone("UTC")) as _,
                _ => new_null_array(field.data_type(), rows.len()),
            })
            .collect();
        let rows = RecordBatch::try_new(schema, columns).unwrap();
        let rejected = (0..dead).map(|row| (row, ("r".to_owned(), String::new()))).collect();
        Outcome { rows, rejected }
    }

    #[test]
    fn each_kind_of_difference() {
        let before = outcome(
            &[
                (0, "a", Some(1.0), 5),
                (0, "b", None, 5),
                (1, "a", Some(2.0), 6),
                (1, "a", Some(3.0), 6),
            ],
            1,
        );
        assert!(Difference::between(&before, &before).is_none());
        let after = outcome(
            &[(0, "a", Some(1.5), 5), (0, "b", None, 5), (1, "a", Some(2.0), 6), (2, "a", None, 7)],
            3,
        );
        let found = Difference::between(&before, &after);
        assert_eq!((found.added, found.gone, found.changed, found.same), (1, 1, 1, 2));
        assert_eq!((found.dead_before, found.dead_after), (1, 3));
        let told: Vec<_> = found.examples.iter().map(|e| (e.change, e.row)).collect();
        assert_eq!(told, [(Change::Changed, 0), (Change::Added, 2), (Change::Gone, 1)]);
        assert_eq!(found.examples[0].before.as_deref(), Some("1 at 1970-01-01T00:00:00.000005Z"));
        assert!(found.to_string().ends_with("; dead events 1 before, 3 now"), "{found}");
    }

    /// What a node would have landed of an outcome of the records from `first` on.
    fn part(outcome: &Outcome, first: i64) -> FeaturePart {
        let (source, token) = (SourceName("s".into()), Token::after(0));
        let (abandoned, _) = tokio::sync::mpsc::unbounded_channel();
        let rows = outcome.rows.columns();
        let numbers = rows[0].as_primitive::<UInt32Type>().values();
        let n = numbers.len();
        let schema = feature_row_schema();
        let positions = Int64Array::from_iter_values(numbers.iter().map(|r| first + i64::from(*r)));
        let mut columns = rows[1..5].to_vec();
        columns.push(rows[4].clone());
        columns.push(new_null_array(schema.field(5).data_type(), n));
        columns.push(Arc::new(positions));
        columns.push(Arc::new(Int32Array::from(vec![0; n])));
        let letter = |pos, stage| {
            let record =
                Record { position: pos, timestamp_us: 0, event_id: None, payload: Payload::Null };
            DeadLetter::with_reason(&record, None, stage, "r".into(), String::new())
        };
        let dead = outcome.rejected.keys().map(|r| letter(first + i64::from(*r), Stage::Transform));
        FeaturePart {
            source: source.clone(),
            token,
            from: first,
            to: first + 10,
            n_in: 10,
            n_kept: 0,
            n_filtered: 0,
            rows: RecordBatch::try_new(schema, columns).unwrap(),
            dead: dead.chain([letter(first + 9, Stage::Decode)]).collect(),
            online: Vec::new(),
            ticket: Ticket::new(source, token, first, first + 10, abandoned),
            credit: Credit::default(),
            sampled_timestamps_us: Vec::new(),
        }
    }

    #[test]
    fn parts_differ_as_their_outcomes_do_and_are_summed_over_batches() {
        let before = outcome(&[(0, "a", Some(1.0), 5), (3, "b", Some(2.0), 5)], 0);
        let after = outcome(&[(0, "a", Some(1.0), 5), (3, "b", Some(7.0), 5)], 1);
        let between =
            |first| Difference::between_parts(&part(&before, first), &part(&after, first)).unwrap();
        let mut found = Difference::default();
        (0..SHOWN as i64 + 2).for_each(|batch| found.add(between(batch * 10)));
        let n = SHOWN + 2;
        assert_eq!((found.added, found.gone, found.changed, found.same), (0, 0, n, n));
        assert_eq!((found.dead_before, found.dead_after), (0, n), "not what decoding refused");
        let rows: Vec<u32> = found.examples.iter().map(|example| example.row).collect();
        assert_eq!(rows, [3, 13, 23, 33, 43]);
    }

    #[test]
    fn a_few_of_each_kind_are_shown() {
        let rows: Vec<Row> = (0..100).map(|row| (row, "a", Some(0.0), 0)).collect();
        let found = Difference::between(&outcome(&[], 0), &outcome(&rows, 0));
        assert_eq!((found.added, found.examples.len()), (100, SHOWN));
    }
}
