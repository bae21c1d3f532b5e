//! How old the oldest record of a partition is that DuckDB does not hold yet.
//!
//! | on its way | the log goes on behind what is durable | answer |
//! |---|---|---|
//! | chunks | | age of the first record of the first one that is not durable |
//! | nothing | no | 0 |
//! | nothing: the partition stands, or was opened just now | yes | age of what became durable last: the next record is hardly older |
//! | likewise, and nothing became durable yet | yes | 0: not known |

use crate::protocol::source::Position;
use std::collections::VecDeque;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Lag {
    /// The end of each chunk that was handed on, and the timestamp of its first record.
    on_its_way: VecDeque<(Position, i64)>,
    /// The timestamp of the last chunk that became durable.
    durable_us: Option<i64>,
    /// The end of the log, as the statistics said last.
    end: Position,
}

impl Lag {
    /// Records up to `to` were handed on; the first has this timestamp.
    pub(super) fn handed_on(&mut self, to: Position, first_us: i64) {
        self.on_its_way.push_back((to, first_us));
    }

    /// What was on its way is read again.
    pub(super) fn reopened(&mut self) {
        self.on_its_way.clear();
    }

    /// The log ends here.
    pub(super) fn ends_at(&mut self, end: Position) {
        self.end = end;
    }

    /// The answer, when everything before `durable` is durable.
    pub(super) fn seconds(&mut self, durable: Position, now_us: i64) -> f64 {
        while let Some((to, first_us)) = self.on_its_way.front().copied()
            && to <= durable
        {
            self.durable_us = Some(first_us);
            self.on_its_way.pop_front();
        }
        let oldest = match self.on_its_way.front() {
            Some((_, first_us)) => Some(*first_us),
            None => self.durable_us.filter(|_| self.end > durable),
        };
        oldest.map_or(0.0, |at| (now_us - at).max(0) as f64 / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_of_the_table() {
        let mut lag = Lag::default();
        lag.ends_at(30);
        assert_eq!(lag.seconds(0, 9_000_000), 0.0, "not known");
        lag.handed_on(10, 1_000_000);
        lag.handed_on(20, 4_000_000);
        assert_eq!(lag.seconds(0, 9_000_000), 8.0);
        assert_eq!(lag.seconds(15, 9_000_000), 5.0, "the first is durable");
        assert_eq!(lag.seconds(20, 9_000_000), 5.0, "ten more lie in the log");
        lag.ends_at(20);
        assert_eq!(lag.seconds(20, 9_000_000), 0.0);
        lag.handed_on(25, 6_000_000);
        lag.reopened();
        assert_eq!(lag.seconds(20, 9_000_000), 0.0);
    }
}
