//! AS OF: which row of a feature's history answers a question about an instant T.
//!
//! W is the stamp of the last commit that the answer may know of; no question sees beyond it.
//!
//! | mode | a row is seen when | strict |
//! |---|---|---|
//! | [`Mode::AsKnown`] | `available_at <= T` and `available_at <= W` | `available_at < T` |
//! | [`Mode::EventTime`] | `event_timestamp <= T` and `event_timestamp <= W` | `event_timestamp < T` |
//!
//! Of the rows that are seen the one with the greatest version answers, whichever came last.
//!
//! So of each entity's history only the rows count that were the greatest when they came into sight: a row
//! that an earlier visible one exceeds is never an answer. They are kept in the order of the instants
//! at which they came into sight, one an instant; a question is then a binary search.

use super::version::Version;

/// By which time a row comes into sight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// When it was in the store: what could have been known at T.
    AsKnown,
    /// When it became true, however late it came: for backfills; it knows the future of T.
    EventTime,
}

/// The history of one feature: a row an index, in any order.
#[derive(Debug)]
pub struct History<V> {
    /// Numbers of the entities.
    pub entities: Vec<u32>,
    /// When the rows were available, UTC microseconds.
    pub available_at: Vec<i64>,
    /// Their places in the version order.
    pub versions: Vec<Version>,
    /// What they say.
    pub values: Vec<V>,
}

impl<V> Default for History<V> {
    fn default() -> Self {
        let (entities, available_at) = (Vec::new(), Vec::new());
        Self { entities, available_at, versions: Vec::new(), values: Vec::new() }
    }
}

/// A question: the number of an entity, and T in UTC microseconds.
pub type Question = (u32, i64);

/// What a feature's history has to say about instants.
#[derive(Debug)]
pub struct Timeline<V> {
    /// Where each entity's moments begin; one more than there are entities.
    begins: Vec<u32>,
    /// Moments: when the answer changes …
    at: Vec<i64>,
    /// … and the event timestamp and the value that it has from then on.
    told: Vec<(i64, V)>,
}

impl<V: Copy> Timeline<V> {
    /// The timeline of entities `[0, n_entities)`. Rows of others are not allowed.
    ///
    /// # Panics
    /// When the columns differ in length, a row is of another entity, or there are 2³² rows.
    #[must_use]
    pub fn new(history: History<V>, mode: Mode, n_entities: usize) -> Self {
        let History { entities, available_at, versions, values } = history;
        let n = entities.len();
        assert!(n == available_at.len() && n == versions.len() && n == values.len());
        assert!(u32::try_from(n).is_ok());
        let mut ends = vec![0_u32; n_entities + 1];
        entities.iter().for_each(|entity| ends[*entity as usize + 1] += 1);
        for i in 0..n_entities {
            ends[i + 1] += ends[i];
        }
        // Rows by entity, each entity's in the order in which they came: they are nearly sorted.
        let mut rows = vec![0_u32; n];
        let mut next = ends.clone();
        for (row, entity) in (0_u32..).zip(&entities) {
            let place = &mut next[*entity as usize];
            rows[*place as usize] = row;
            *place += 1;
        }
        let mut timeline =
            Self { begins: Vec::with_capacity(n_entities + 1), at: Vec::new(), told: Vec::new() };
        let mut own = Vec::new();
        for entity in 0..n_entities {
            timeline.begins.push(timeline.at.len() as u32);
            // Side by side, so that sorting does not wait for the memory.
            own.clear();
            own.extend(rows[ends[entity] as usize..ends[entity + 1] as usize].iter().map(|row| {
                let row = *row as usize;
                let sight = match mode {
                    Mode::AsKnown => available_at[row],
                    Mode::EventTime => versions[row].event_timestamp,
                };
                (sight, versions[row], values[row])
            }));
            own.sort_unstable_by_key(|(sight, version, _)| (*sight, *version));
            timeline.add(&own);
        }
        timeline.begins.push(timeline.at.len() as u32);
        timeline
    }

    /// Adds an entity's rows, in the order in which they came into sight.
    fn add(&mut self, rows: &[(i64, Version, V)]) {
        let mut greatest: Option<(i64, Version)> = None;
        for (at, version, value) in rows {
            let told = (version.event_timestamp, *value);
            match greatest {
                Some((_, known)) if known >= *version => continue,
                Some((then, _)) if then == *at => {
                    if let Some(last) = self.told.last_mut() {
                        *last = told;
                    }
                }
                _ => {
                    self.at.push(*at);
                    self.told.push(told);
                }
            }
            greatest = Some((*at, *version));
        }
    }

    /// Event timestamp and value of the row that answers; `None`: none is seen.
    #[must_use]
    pub fn answer(&self, (entity, at): Question, strict: bool, watermark: i64) -> Option<(i64, V)> {
        let entity = entity as usize;
        let (begin, end) = (self.begins[entity] as usize, self.begins[entity + 1] as usize);
        let is_seen = |then: i64| then <= watermark && if strict { then < at } else { then <= at };
        let seen = self.at[begin..end].partition_point(|then| is_seen(*then));
        seen.checked_sub(1).map(|last| self.told[begin + last])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn version(event_timestamp: i64, pos: i64) -> Version {
        Version { event_timestamp, created_at: 0, source_no: 1, pos, sub: 0 }
    }

    /// Rows whose values are their numbers.
    fn history(rows: &[(u32, i64, i64)]) -> History<usize> {
        let mut history = History::default();
        for (pos, (entity, available_at, event)) in (0..).zip(rows) {
            history.entities.push(*entity);
            history.available_at.push(*available_at);
            history.versions.push(version(*event, pos));
            history.values.push(history.values.len());
        }
        history
    }

    /// The definition: looks at every row.
    fn looked_up(
        history: &History<usize>,
        mode: Mode,
        (entity, at): Question,
        strict: bool,
        watermark: i64,
    ) -> Option<usize> {
        let seen = |row: &usize| {
            let then = match mode {
                Mode::AsKnown => history.available_at[*row],
                Mode::EventTime => history.versions[*row].event_timestamp,
            };
            history.entities[*row] == entity
                && then <= watermark
                && (then < at || (!strict && then == at))
        };
        (0..history.entities.len()).filter(seen).max_by_key(|row| history.versions[*row])
    }

    #[test]
    fn each_row_of_the_table() {
        // The second comes later and is older; the third is seen with the fourth.
        let rows = [(0, 10, 9), (0, 20, 3), (0, 30, 28), (0, 30, 29), (2, 5, 5)];
        let known = Timeline::new(history(&rows), Mode::AsKnown, 3);
        let at = |entity, at, strict, w| known.answer((entity, at), strict, w).map(|told| told.1);
        assert_eq!(
            [9, 10, 20, 29, 30, 99].map(|t| at(0, t, false, 99)),
            [None, Some(0), Some(0), Some(0), Some(3), Some(3)]
        );
        assert_eq!([10, 11, 30, 31].map(|t| at(0, t, true, 99)), [None, Some(0), Some(0), Some(3)]);
        assert_eq!(
            [at(0, 99, false, 29), at(0, 99, true, 30), at(0, 99, false, 9)],
            [Some(0), Some(3), None]
        );
        assert_eq!(
            [at(1, 99, false, 99), at(2, 5, false, 99), at(2, 4, false, 99)],
            [None, Some(4), None]
        );
        let by_event = Timeline::new(history(&rows), Mode::EventTime, 3);
        let at = |at, strict| by_event.answer((0, at), strict, 99).map(|told| told.1);
        assert_eq!(
            [2, 3, 9, 28, 29].map(|t| at(t, false)),
            [None, Some(1), Some(0), Some(2), Some(3)]
        );
        assert_eq!([3, 9, 29].map(|t| at(t, true)), [None, Some(1), Some(2)]);
    }

    proptest! {
        #[test]
        fn any_question_is_answered_as_by_looking_at_every_row(
            rows in prop::collection::vec((0u32..3, 0i64..12, 0i64..12), 0..40),
            questions in prop::collection::vec((0u32..3, -1i64..14), 1..20),
            strict: bool,
            watermark in -1i64..14,
        ) {
            let all = history(&rows);
            for mode in [Mode::AsKnown, Mode::EventTime] {
                let timeline = Timeline::new(history(&rows), mode, 3);
                for question in &questions {
                    let row = looked_up(&all, mode, *question, strict, watermark);
                    prop_assert_eq!(
                        timeline.answer(*question, strict, watermark),
                        row.map(|row| (all.versions[row].event_timestamp, row)),
                        "{:?} {:?}", mode, question
                    );
                }
            }
        }
    }
}
