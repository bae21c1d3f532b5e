//! What the store does with a batch that arrives, and why that is enough.
//!
//! | on arrival | decision |
//! |---|---|
//! | the source is unknown, or the token is not the current one | [`Decision::Fenced`], no effect |
//! | `to <= next_pos` | [`Decision::Duplicate`], no effect |
//! | `from > next_pos` | [`Decision::Gap`], no effect |
//! | `from < next_pos < to` | [`Decision::Overlap`], no effect |
//! | `from == next_pos` | [`Decision::Apply`] |
//! | `from == next_pos`, but its rows are in a file that is not there or not what it should be | [`Decision::Gap`], no effect: its source is read again |
//!
//! The decisions of one group are made on a copy of its sources' watermarks that moves along with the
//! group and is thrown away when the transaction rolls back.

use super::source::{Position, SourceName, Token};
use crate::planted;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// What the store knows of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceState {
    /// The small integer that stands for the source in the tables.
    pub source_no: i32,
    /// The only token that may write.
    pub token: Token,
    /// The first position whose effect is not in DuckDB.
    pub next_pos: Position,
}

/// The answer to one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Decision {
    /// Its effect goes into this transaction.
    Apply,
    /// Its effect is in DuckDB already.
    Duplicate,
    /// A batch before it is missing.
    Gap,
    /// A part of its effect is in DuckDB already, a part is not.
    Overlap,
    /// Somebody else has opened the source since.
    Fenced,
}

impl Decision {
    /// The name in metrics and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Apply => "apply",
            Self::Duplicate => "duplicate",
            Self::Gap => "gap",
            Self::Overlap => "overlap",
            Self::Fenced => "fenced",
        }
    }

    /// Whether the batch's effect is in DuckDB once the transaction is committed.
    #[must_use]
    pub fn is_ok(self) -> bool {
        matches!(self, Self::Apply | Self::Duplicate)
    }
}

/// The watermarks that a group of batches sees and moves; thrown away on rollback.
#[derive(Debug, Clone, Default)]
pub struct Watermarks {
    sources: HashMap<SourceName, SourceState>,
}

impl Watermarks {
    /// Sets what is known of a source.
    pub fn insert(&mut self, source: SourceName, state: SourceState) {
        self.sources.insert(source, state);
    }

    /// What is known of a source.
    #[must_use]
    pub fn get(&self, source: &SourceName) -> Option<&SourceState> {
        self.sources.get(source)
    }

    /// A copy of what is known of some sources: a group names few of them, and a store may know many.
    #[must_use]
    pub fn of<'a>(&self, sources: impl IntoIterator<Item = &'a SourceName>) -> Self {
        let known = |source: &SourceName| Some((source.clone(), *self.sources.get(source)?));
        Self { sources: sources.into_iter().filter_map(known).collect() }
    }

    /// Takes over what a copy of some sources became.
    pub fn take(&mut self, moved: Self) {
        self.sources.extend(moved.sources);
    }

    /// All sources, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&SourceName, &SourceState)> {
        self.sources.iter()
    }

    /// Decides on the batch `[from, to)`, without moving anything.
    /// An empty batch (`from == to`) only says that nothing is there.
    #[must_use]
    pub fn decide(
        &self,
        source: &SourceName,
        token: Token,
        from: Position,
        to: Position,
    ) -> Decision {
        let Some(state) = self.sources.get(source) else { return Decision::Fenced };
        if state.token != token {
            // Were only this comparison missing, the rows below would refuse nearly all that a former
            // owner still sends. The defect is that of a store that has no notion of an owner.
            if planted!("no_token_check") { Decision::Apply } else { Decision::Fenced }
        } else if to <= state.next_pos {
            Decision::Duplicate
        } else if from > state.next_pos && !gaps_are_taken() {
            Decision::Gap
        } else if from < state.next_pos {
            Decision::Overlap
        } else {
            Decision::Apply
        }
    }

    /// Decides on the batch `[from, to)` and, when it applies, moves the watermark.
    pub fn offer(
        &mut self,
        source: &SourceName,
        token: Token,
        from: Position,
        to: Position,
    ) -> Decision {
        let decision = self.decide(source, token, from, to);
        if decision == Decision::Apply
            && let Some(state) = self.sources.get_mut(source)
        {
            state.next_pos = to;
        }
        decision
    }
}

/// Never, but for defects: a queue that is trimmed has holes, and whoever trusts it must take them.
fn gaps_are_taken() -> bool {
    planted!("loose_contiguity") || planted!("queue_trimmed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(next_pos: Position) -> (Watermarks, SourceName, Token) {
        let source = SourceName::kafka("s", "t", 0);
        let token = Token::after(0);
        let mut marks = Watermarks::default();
        marks.insert(source.clone(), SourceState { source_no: 1, token, next_pos });
        (marks, source, token)
    }

    #[test]
    fn a_copy_of_some_sources_leaves_the_others_alone() {
        let (mut marks, source, token) = at(10);
        let (other, stranger) = (SourceName::kafka("s", "t", 1), SourceName::kafka("s", "t", 2));
        marks.insert(other.clone(), SourceState { source_no: 2, token, next_pos: 5 });
        let mut trial = marks.of([&source, &source, &stranger]);
        assert_eq!(trial.iter().count(), 1);
        assert_eq!(trial.offer(&source, token, 10, 20), Decision::Apply);
        assert_eq!(marks.get(&source).unwrap().next_pos, 10, "a copy");
        marks.take(trial);
        let next = |source| marks.get(source).unwrap().next_pos;
        assert_eq!((next(&source), next(&other)), (20, 5));
        assert_eq!(marks.get(&stranger), None);
    }

    #[test]
    fn each_row_of_the_decision_table() {
        for (from, to, decision, next) in [
            (10, 20, Decision::Apply, 20),
            (5, 10, Decision::Duplicate, 10),
            (0, 3, Decision::Duplicate, 10),
            (11, 20, Decision::Gap, 10),
            (9, 11, Decision::Overlap, 10),
            (10, 10, Decision::Duplicate, 10),
        ] {
            let (mut marks, source, token) = at(10);
            assert_eq!(marks.offer(&source, token, from, to), decision, "[{from}, {to})");
            assert_eq!(marks.get(&source).unwrap().next_pos, next);
        }
    }

    #[test]
    fn another_token_or_source_is_fenced_whatever_its_range() {
        let (mut marks, source, token) = at(10);
        assert_eq!(marks.offer(&source, Token::after(token.number), 10, 20), Decision::Fenced);
        let same_number = Token { id: uuid::Uuid::new_v4(), number: token.number };
        assert_eq!(marks.offer(&source, same_number, 10, 20), Decision::Fenced);
        let stranger = SourceName::kafka("s", "t", 1);
        assert_eq!(marks.offer(&stranger, token, 10, 20), Decision::Fenced);
        assert_eq!(marks.get(&source).unwrap().next_pos, 10);
    }

    proptest! {
        /// However batches are repeated and reordered, each position is applied at most once, in
        /// order, and without holes.
        #[test]
        fn every_position_is_applied_once(
            cuts in prop::collection::btree_set(1i64..200, 1..20),
            picks in prop::collection::vec(any::<prop::sample::Index>(), 0..200),
        ) {
            let cuts: Vec<i64> = std::iter::once(0).chain(cuts).collect();
            let batches: Vec<(i64, i64)> = cuts.windows(2).map(|w| (w[0], w[1])).collect();
            let (mut marks, source, token) = at(0);
            let mut applied = 0;
            for pick in picks {
                let (from, to) = batches[pick.index(batches.len())];
                if marks.offer(&source, token, from, to) == Decision::Apply {
                    prop_assert_eq!(from, applied);
                    applied = to;
                }
                prop_assert_eq!(marks.get(&source).unwrap().next_pos, applied);
            }
        }
    }
}
