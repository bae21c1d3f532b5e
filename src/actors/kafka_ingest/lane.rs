//! One partition as the poll thread sees it.
//!
//! | state | partition | leaves it when |
//! |---|---|---|
//! | opening | paused | the store answers the open: seeking, or halted |
//! | seeking | paused | librdkafka accepted the seek: reading |
//! | reading | flowing, or paused for back-pressure | a ticket comes back unsettled: opening |
//! | waiting | paused | the store lets it in: it is asked again every moment |
//! | halted | paused | an operator adopts it: the store is asked again now and then |

use crate::{
    messages::{Record, Records},
    protocol::source::{Position, SourceName, Token},
};
use std::time::{Duration, Instant};

/// An open that is not answered is asked again after so long, and then after twice as long each
/// time: a store that is slow must not find ever more of them on its queue.
pub const REOPEN_AFTER: Duration = Duration::from_millis(400);

/// The longest of these waits.
pub const REOPEN_AFTER_AT_MOST: Duration = Duration::from_secs(10);

/// A halted source is asked for again after so long, in case that an operator has decided.
pub const HALTED_RETRY: Duration = Duration::from_secs(15);

/// A partition that waits for older ones is asked for again after so long.
pub const WAITING_RETRY: Duration = Duration::from_millis(250);

/// One partition.
#[derive(Debug)]
pub struct Lane {
    /// Index of the stream in the configuration.
    pub stream: usize,
    /// Topic.
    pub topic: String,
    /// Partition of the topic.
    pub partition: i32,
    /// The source's name.
    pub source: SourceName,
    /// See the module.
    pub state: LaneState,
}

/// What the store said of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// The token to write under.
    pub token: Token,
    /// The small integer of the source.
    pub source_no: i32,
    /// Where to read.
    pub next_pos: Position,
}

/// See the module.
#[derive(Debug)]
pub enum LaneState {
    /// The store was asked.
    Opening {
        /// When.
        since: Instant,
        /// When it is asked again.
        wait: Duration,
    },
    /// librdkafka is to be set to the position.
    Seeking(Opened),
    /// Records come in.
    Reading(Reading),
    /// It came later than others of its topic, which must get on first.
    Waiting {
        /// When it was asked last.
        since: Instant,
        /// Which.
        older: Vec<SourceName>,
    },
    /// An operator must decide.
    Halted {
        /// When it was asked last.
        since: Instant,
        /// Why.
        reason: String,
    },
}

/// What a lane does with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is in the chunk.
    Kept,
    /// It lies before the position: already read.
    Stale,
    /// The first record after a seek lies behind the position. A hole is believed only when it is
    /// seen twice: seek again.
    Reseek(Position),
}

/// A lane that reads.
#[derive(Debug)]
pub struct Reading {
    /// What the store said when the source was opened.
    pub opened: Opened,
    /// The position that comes next.
    pub next: Position,
    /// The first position of the chunk.
    pub chunk_from: Position,
    /// Records that were not handed on yet.
    pub chunk: Records,
    /// When the first of them came.
    pub chunk_since: Option<Instant>,
    first: First,
}

/// The first record after a seek or a resume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    /// It is still to come.
    Awaited,
    /// It was this one, behind the position, and a second seek was made.
    SeenAt(Position),
    /// It came.
    Settled,
}

impl Reading {
    /// Reads from where the store said.
    #[must_use]
    pub fn new(opened: Opened) -> Self {
        Self {
            opened,
            next: opened.next_pos,
            chunk_from: opened.next_pos,
            chunk: Records::default(),
            chunk_since: None,
            first: First::Awaited,
        }
    }

    /// The partition was paused and goes on: its first record is looked at again.
    pub fn resumed(&mut self) {
        self.first = First::Awaited;
    }

    /// Takes a record of this partition.
    pub fn take(&mut self, record: Record<'_>, now: Instant) -> Taken {
        if record.position < self.next {
            return Taken::Stale;
        }
        if record.position > self.next
            && self.first != First::Settled
            && self.first != First::SeenAt(record.position)
        {
            self.first = First::SeenAt(record.position);
            return Taken::Reseek(self.next);
        }
        self.first = First::Settled;
        self.chunk_since.get_or_insert(now);
        self.next = record.position + 1;
        self.chunk.push(record);
        Taken::Kept
    }

    /// Moves on to `to` over positions that hold no record for us — transaction markers, aborted
    /// records. The range that was passed; `None` when there is a chunk, which will cover it.
    pub fn pass(&mut self, to: Position) -> Option<(Position, Position)> {
        if self.chunk_since.is_some() || to <= self.next {
            return None;
        }
        let from = std::mem::replace(&mut self.chunk_from, to);
        self.next = to;
        Some((from, to))
    }

    /// Takes the chunk out, with its range.
    pub fn cut(
        &mut self,
        next_capacity: (usize, usize),
    ) -> Option<(Records, Position, Position, Instant)> {
        let since = self.chunk_since.take()?;
        let fresh = Records::with_capacity(next_capacity.0, next_capacity.1);
        let records = std::mem::replace(&mut self.chunk, fresh);
        let from = std::mem::replace(&mut self.chunk_from, self.next);
        Some((records, from, self.next, since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(next_pos: i64) -> Reading {
        Reading::new(Opened { token: Token::after(0), source_no: 1, next_pos })
    }

    fn take(reading: &mut Reading, position: i64) -> Taken {
        let record = Record { position, timestamp_us: 0, event_id: None, payload: Some(b"x") };
        reading.take(record, Instant::now())
    }

    #[test]
    fn records_before_the_position_are_not_read_again() {
        let mut r = reading(10);
        assert_eq!(take(&mut r, 9), Taken::Stale);
        assert_eq!(take(&mut r, 10), Taken::Kept);
        assert_eq!(take(&mut r, 10), Taken::Stale);
        assert_eq!(r.chunk.len(), 1);
    }

    #[test]
    fn a_hole_after_a_seek_is_believed_only_when_seen_twice() {
        let mut r = reading(10);
        assert_eq!(take(&mut r, 15), Taken::Reseek(10));
        assert_eq!(take(&mut r, 10), Taken::Kept, "the second seek brought it");

        let mut r = reading(10);
        assert_eq!(take(&mut r, 15), Taken::Reseek(10));
        assert_eq!(take(&mut r, 15), Taken::Kept, "the log really has a hole");
        assert_eq!(take(&mut r, 18), Taken::Kept, "holes in the middle of the flow are the log's");
        let (records, from, to, _) = r.cut((0, 0)).unwrap();
        assert_eq!((records.len(), from, to), (2, 10, 19), "the range covers the holes");
    }

    #[test]
    fn positions_without_records_are_passed_once_and_never_over_a_chunk() {
        let mut r = reading(10);
        assert_eq!(r.pass(13), Some((10, 13)));
        assert_eq!(r.pass(13), None);
        take(&mut r, 13);
        assert_eq!(r.pass(20), None, "the chunk comes first");
        let (_, from, to, _) = r.cut((0, 0)).unwrap();
        assert_eq!((from, to), (13, 14));
    }

    #[test]
    fn chunks_join_without_a_gap() {
        let mut r = reading(0);
        take(&mut r, 0);
        take(&mut r, 1);
        let (_, from, to, _) = r.cut((0, 0)).unwrap();
        assert_eq!((from, to), (0, 2));
        assert!(r.cut((0, 0)).is_none());
        r.resumed();
        take(&mut r, 2);
        let (_, from, to, _) = r.cut((0, 0)).unwrap();
        assert_eq!((from, to), (2, 3));
    }
}
