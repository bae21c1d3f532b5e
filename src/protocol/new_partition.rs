//! New partitions of a topic wait for the old ones.
//!
//! When a topic gets more partitions, keys move: later records of an entity come into another
//! partition than earlier ones. So that their effects stay in order, a partition that came later is
//! read only when every older one has passed the end that it had when the newer one was discovered.
//!
//! A partition is *older* than partition `p` when it was first opened while the topic had at most
//! `p` partitions. The partitions that a topic had from the beginning are not older than each other.
//!
//! | the store knows | answer |
//! |---|---|
//! | no older partition of the same stream and topic | [`Verdict::Read`] |
//! | an older one whose end at discovery was not told | [`Verdict::Wait`]: tell it |
//! | an older one that has not passed that end | [`Verdict::Wait`] |
//! | else | [`Verdict::Read`] |

use super::source::{Position, SourceName};

/// Another partition of the same stream and topic, as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sibling {
    /// Its name.
    pub source: SourceName,
    /// The first position whose effect is not in DuckDB.
    pub next_pos: Position,
    /// Partitions that the topic had when it was first opened; `None`: not known, which makes it no
    /// older than any.
    pub topic_partitions: Option<i32>,
}

/// Whether a partition that the store does not know yet may be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Read,
    /// Not before these have passed their ends.
    Wait(Vec<SourceName>),
}

/// See the module. `ends` are the high watermarks of the other partitions when `partition` was
/// discovered.
#[must_use]
pub fn verdict(partition: i32, siblings: &[Sibling], ends: &[(SourceName, Position)]) -> Verdict {
    let behind = |s: &&Sibling| {
        let is_older = s.topic_partitions.is_some_and(|n| n <= partition);
        let end = ends.iter().find(|(source, _)| *source == s.source).map(|(_, end)| *end);
        is_older && end.is_none_or(|end| s.next_pos < end)
    };
    let waits: Vec<SourceName> = siblings.iter().filter(behind).map(|s| s.source.clone()).collect();
    if waits.is_empty() { Verdict::Read } else { Verdict::Wait(waits) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sibling(partition: i32, next_pos: i64, topic_partitions: i32) -> Sibling {
        let source = SourceName::kafka("s", "t", partition);
        Sibling { source, next_pos, topic_partitions: Some(topic_partitions) }
    }

    #[test]
    fn each_row_of_the_table() {
        let name = |p| SourceName::kafka("s", "t", p);
        let old = [sibling(0, 10, 2), sibling(1, 5, 2)];
        assert_eq!(verdict(2, &[], &[]), Verdict::Read);
        assert_eq!(verdict(2, &old, &[]), Verdict::Wait(vec![name(0), name(1)]));
        let ends = [(name(0), 10), (name(1), 6)];
        assert_eq!(verdict(2, &old, &ends), Verdict::Wait(vec![name(1)]));
        let passed = [sibling(0, 10, 2), sibling(1, 6, 2)];
        assert_eq!(verdict(2, &passed, &ends), Verdict::Read);
    }

    #[test]
    fn partitions_of_the_beginning_do_not_wait_for_each_other() {
        assert_eq!(verdict(1, &[sibling(0, 0, 2)], &[]), Verdict::Read);
        // 2 and 3 came together, later than 0 and 1.
        let siblings = [sibling(0, 7, 2), sibling(3, 0, 4)];
        let ends = [(SourceName::kafka("s", "t", 0), 7)];
        assert_eq!(verdict(2, &siblings, &ends), Verdict::Read);
    }
}
