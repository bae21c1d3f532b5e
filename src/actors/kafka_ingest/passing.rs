//! Positions without records: transaction markers and aborted records never reach a consumer, so a
//! log that ends with them would never seem to be read to its end.
//!
//! librdkafka tells only in its statistics how far it has fetched. A position is believed to be
//! passed when two statistics in a row say the same:
//!
//! | fetched up to | records that wait for us | since the last statistics | answer |
//! |---|---|---|---|
//! | at most the lane's position | | | nothing |
//! | beyond it | some | | nothing: they come |
//! | beyond it | none | another position of the lane or of the fetcher, or none seen | remembered |
//! | beyond it | none | the same | everything up to there is passed |
//!
//! A pause or a seek throws away what was fetched, so after either it is looked at anew.

use crate::protocol::source::Position;
use std::collections::HashMap;

/// What statistics say of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Its topic.
    pub topic: String,
    /// Its number.
    pub partition: i32,
    /// The offset that is fetched next; negative when there is none.
    pub next_offset: i64,
    /// Records that were fetched and not polled yet.
    pub waiting: i64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Passing(HashMap<(String, i32), (Position, i64)>);

impl Passing {
    /// Takes what statistics say of a partition whose lane is at `position`; up to where it may go.
    pub fn observe(&mut self, fetched: &Fetched, position: Position) -> Option<Position> {
        let key = (fetched.topic.clone(), fetched.partition);
        if fetched.next_offset <= position || fetched.waiting != 0 {
            self.0.remove(&key);
            return None;
        }
        let seen = (position, fetched.next_offset);
        (self.0.insert(key, seen) == Some(seen)).then_some(fetched.next_offset)
    }

    /// A partition is not read just now.
    pub fn forget(&mut self, fetched: &Fetched) {
        self.0.remove(&(fetched.topic.clone(), fetched.partition));
    }

    /// None is read just now.
    pub fn forget_all(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetched(next_offset: i64, waiting: i64) -> Fetched {
        Fetched { topic: "t".into(), partition: 0, next_offset, waiting }
    }

    #[test]
    fn each_row_of_the_table() {
        let mut passing = Passing::default();
        assert_eq!(passing.observe(&fetched(10, 0), 10), None);
        assert_eq!(passing.observe(&fetched(12, 3), 10), None);
        assert_eq!(passing.observe(&fetched(12, 0), 10), None, "seen for the first time");
        assert_eq!(passing.observe(&fetched(12, 0), 11), None, "a record came in between");
        assert_eq!(passing.observe(&fetched(13, 0), 11), None, "more was fetched in between");
        assert_eq!(passing.observe(&fetched(13, 0), 11), Some(13));
    }

    #[test]
    fn a_pause_makes_it_look_anew() {
        let mut passing = Passing::default();
        passing.observe(&fetched(12, 0), 10);
        passing.forget_all();
        assert_eq!(passing.observe(&fetched(12, 0), 10), None);
        passing.forget(&fetched(12, 0));
        assert_eq!(passing.observe(&fetched(12, 0), 10), None);
    }
}
