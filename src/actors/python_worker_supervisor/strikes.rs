//! When a source is halted because of a defect of ours.
//!
//! A batch that cannot be decoded or put together for a defect, not for its data, is read again. It
//! would fail again at full speed, so the failures in a row from one position are counted.
//!
//! | what | the source's count |
//! |---|---|
//! | a failure from the position that failed last | one more; at [`LIMIT`] the source halts |
//! | a failure from another position | 1 |
//! | a success that covers the position that failed last | forgotten |
//! | any other success | as it was |
//! | the source halts | forgotten: it is tried anew when somebody has decided |

use crate::protocol::source::{Position, SourceName};
use std::collections::HashMap;

/// Failures in a row that halt a source.
pub const LIMIT: u32 = 3;

/// The sources whose last batch from some position failed, with that position and the count.
#[derive(Debug, Default)]
pub struct Strikes(HashMap<SourceName, (Position, u32)>);

impl Strikes {
    /// A batch of the source that began at `from` failed: whether the source must halt.
    pub fn failed(&mut self, source: &SourceName, from: Position) -> bool {
        let strikes = self.0.entry(source.clone()).or_insert((from, 0));
        *strikes = if strikes.0 == from { (from, strikes.1 + 1) } else { (from, 1) };
        let halt = strikes.1 >= LIMIT;
        if halt {
            self.0.remove(source);
        }
        halt
    }

    /// The positions `[from, to)` of the source went through.
    pub fn succeeded(&mut self, source: &SourceName, from: Position, to: Position) {
        if self.0.get(source).is_some_and(|(failed, _)| (from..to).contains(failed)) {
            self.0.remove(source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(partition: i32) -> SourceName {
        SourceName::kafka("s", "t", partition)
    }

    #[test]
    fn the_third_failure_in_a_row_from_one_position_halts() {
        let mut strikes = Strikes::default();
        assert!(!strikes.failed(&source(0), 7));
        assert!(!strikes.failed(&source(0), 7));
        assert!(!strikes.failed(&source(1), 7), "each source has a count of its own");
        assert!(strikes.failed(&source(0), 7));
        assert!(!strikes.failed(&source(0), 7), "after the halt it begins anew");
    }

    #[test]
    fn another_position_or_a_success_begins_anew() {
        let mut strikes = Strikes::default();
        for from in [7, 7, 8, 8, 7, 7] {
            assert!(!strikes.failed(&source(0), from), "{from}");
        }
        strikes.succeeded(&source(0), 0, 7);
        strikes.succeeded(&source(1), 7, 9);
        assert!(strikes.failed(&source(0), 7), "neither success was that of position 7");
        assert!(!strikes.failed(&source(0), 7));
        assert!(!strikes.failed(&source(0), 7));
        strikes.succeeded(&source(0), 5, 8);
        assert!(!strikes.failed(&source(0), 7));
    }
}
