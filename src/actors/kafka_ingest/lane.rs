//! One partition as the poll thread sees it.
//!
//! | state | partition | leaves it when |
//! |---|---|---|
//! | opening | paused | the store answers the open: seeking, or halted |
//! | seeking | paused, or flowing unread | librdkafka accepted the seek: reading |
//! | reading | flowing, or paused for back-pressure | a ticket comes back unsettled: opening |
//! | waiting | paused | the store lets it in: it is asked again every moment |
//! | halted | paused | an operator adopts it: the store is asked again now and then |

use super::lag::Lag;
use crate::{
    messages::{Record, Records},
    protocol::source::{Position, Promised, SourceName, Token},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// An open that is not answered is asked again after so long, and then after twice as long each
/// time: a store that is slow must not find ever more of them on its queue.
pub const REOPEN_AFTER: Duration = Duration::from_secs(1);

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
    /// How far behind it is.
    pub(super) lag: Lag,
    /// The store refused the last open. Believed when it says so again: the log's end is asked for
    /// before the store is, and writes of the owner before, which were on the queue, may have passed it
    /// meanwhile.
    pub(super) refused_once: bool,
}

/// What the store said of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The token to write under.
    pub token: Token,
    /// The small integer of the source.
    pub source_no: i32,
    /// Where to read.
    pub next_pos: Position,
    /// Up to where, and by which script version, the last owner showed values online.
    pub promised: Option<Promised>,
}

/// A chunk as it leaves its lane.
#[derive(Debug)]
pub struct Chunk {
    /// Its records.
    pub records: Records,
    /// First position.
    pub from: Position,
    /// The position after the last.
    pub to: Position,
    /// When its first record came.
    pub since: Instant,
    /// The script version that it must run under; `None`: the current one.
    pub pinned: Option<Arc<str>>,
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
    /// The first record after a seek lies behind the position: seek again.
    Reseek(Position),
    /// And so does the first one after that. Before a hole is believed, the partition is probed;
    /// nothing is taken meanwhile.
    Doubt(Position),
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
    /// It was so again: a probe tells what lies before it.
    Doubted,
    /// It came.
    Settled,
}

impl Reading {
    /// Reads from where the store said.
    #[must_use]
    pub fn new(opened: Opened) -> Self {
        Self {
            next: opened.next_pos,
            chunk_from: opened.next_pos,
            opened,
            chunk: Records::default(),
            chunk_since: None,
            first: First::Awaited,
        }
    }

    /// The partition was paused and goes on: its first record is looked at again.
    pub fn resumed(&mut self) {
        self.first = First::Awaited;
    }

    /// Whether it waits for a probe.
    #[must_use]
    pub fn is_doubted(&self) -> bool {
        self.first == First::Doubted
    }

    /// The script version that a record at `position` must run under.
    fn pin_at(&self, position: Position) -> Option<&str> {
        let promised = self.opened.promised.as_ref()?;
        (position < promised.to).then_some(&promised.script_sha256)
    }

    /// The script version that the chunk must run under: that of its first record.
    fn pin(&self) -> Option<&str> {
        self.chunk.get(0).and_then(|first| self.pin_at(first.position))
    }

    /// Whether the chunk must be cut before a record at `position` is taken: the record runs under
    /// another script version.
    #[must_use]
    pub fn ends_before(&self, position: Position) -> bool {
        self.opened.promised.is_some()
            && !self.chunk.is_empty()
            && self.pin() != self.pin_at(position)
    }

    /// Takes a record of this partition.
    pub fn take(&mut self, record: Record<'_>, now: Instant) -> Taken {
        if record.position < self.next {
            return Taken::Stale;
        }
        match self.first {
            First::Doubted => return Taken::Stale,
            First::SeenAt(before) if before == record.position => {
                self.first = First::Doubted;
                return Taken::Doubt(self.next);
            }
            First::Awaited | First::SeenAt(_) if record.position > self.next => {
                self.first = First::SeenAt(record.position);
                return Taken::Reseek(self.next);
            }
            _ => {}
        }
        self.first = First::Settled;
        self.chunk_since.get_or_insert(now);
        self.next = record.position + 1;
        self.chunk.push(record);
        Taken::Kept
    }

    /// Moves on to `to` over positions that hold no record for us — transaction markers, aborted
    /// records. What was passed; `None` when there is a chunk, which will cover it.
    pub fn pass(&mut self, to: Position) -> Option<Chunk> {
        if self.chunk_since.is_some() || to <= self.next {
            return None;
        }
        let from = std::mem::replace(&mut self.chunk_from, to);
        self.next = to;
        // Without a record it does not matter which version runs.
        let (records, since, pinned) = (Records::default(), Instant::now(), None);
        Some(Chunk { records, from, to, since, pinned })
    }

    /// Takes the chunk out, with its range; room for so many records and bytes is made for the next.
    pub fn cut(&mut self, next_capacity: (usize, usize)) -> Option<Chunk> {
        let since = self.chunk_since.take()?;
        let pinned = self.pin().map(Arc::from);
        let fresh = Records::with_capacity(next_capacity.0, next_capacity.1);
        let records = std::mem::replace(&mut self.chunk, fresh);
        let from = std::mem::replace(&mut self.chunk_from, self.next);
        Some(Chunk { records, from, to: self.next, since, pinned })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::Payload;

    fn reading(next_pos: i64) -> Reading {
        Reading::new(Opened { token: Token::after(0), source_no: 1, next_pos, promised: None })
    }

    fn take(reading: &mut Reading, position: i64) -> Taken {
        let record =
            Record { position, timestamp_us: 0, event_id: None, payload: Payload::Json(b"x") };
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
    fn a_hole_after_a_seek_is_believed_only_when_a_probe_has_found_it() {
        let mut r = reading(10);
        assert_eq!(take(&mut r, 15), Taken::Reseek(10));
        assert_eq!(take(&mut r, 10), Taken::Kept, "the second seek brought it");

        let mut r = reading(10);
        assert_eq!(take(&mut r, 15), Taken::Reseek(10));
        assert_eq!(take(&mut r, 15), Taken::Doubt(10));
        assert_eq!(take(&mut r, 16), Taken::Stale, "nothing is taken before the probe has told");
        assert!(r.is_doubted());
        let passed = r.pass(15).unwrap();
        assert_eq!((passed.from, passed.to), (10, 15));
        r.resumed();
        assert_eq!(take(&mut r, 15), Taken::Kept, "the log really has a hole");
        assert_eq!(take(&mut r, 18), Taken::Kept, "holes in the middle of the flow are the log's");
        let chunk = r.cut((0, 0)).unwrap();
        assert_eq!((chunk.records.len(), chunk.from, chunk.to), (2, 15, 19), "it covers the hole");
    }

    #[test]
    fn positions_without_records_are_passed_once_and_never_over_a_chunk() {
        let mut r = reading(10);
        let passed = r.pass(13).unwrap();
        assert_eq!((passed.from, passed.to, passed.records.len()), (10, 13, 0));
        assert!(r.pass(13).is_none());
        take(&mut r, 13);
        assert!(r.pass(20).is_none(), "the chunk comes first");
        let chunk = r.cut((0, 0)).unwrap();
        assert_eq!((chunk.from, chunk.to), (13, 14));
    }

    #[test]
    fn chunks_join_without_a_gap() {
        let mut r = reading(0);
        take(&mut r, 0);
        take(&mut r, 1);
        let Chunk { from, to, .. } = r.cut((0, 0)).unwrap();
        assert_eq!((from, to), (0, 2));
        assert!(r.cut((0, 0)).is_none());
        r.resumed();
        take(&mut r, 2);
        let Chunk { from, to, .. } = r.cut((0, 0)).unwrap();
        assert_eq!((from, to), (2, 3));
    }

    /// Reads positions as the poll thread does; ranges and pins of the chunks.
    fn chunks(mut r: Reading, positions: &[i64]) -> Vec<(i64, i64, usize, Option<String>)> {
        let mut out = Vec::new();
        let mut cut = |r: &mut Reading| {
            let Chunk { records, from, to, pinned, .. } = r.cut((0, 0)).unwrap();
            out.push((from, to, records.len(), pinned.map(|p| p.to_string())));
        };
        for &position in positions {
            if r.ends_before(position) {
                cut(&mut r);
            }
            if let Taken::Reseek(_) = take(&mut r, position) {
                // The hole is the log's own.
                r.first = First::Settled;
                assert_eq!(take(&mut r, position), Taken::Kept);
            }
        }
        cut(&mut r);
        out
    }

    #[test]
    fn chunks_are_cut_where_the_promise_ends() {
        let promised = |to| {
            let mut r = reading(10);
            r.opened.promised = Some(Promised { to, script_sha256: "old".into() });
            r
        };
        let old = || Some("old".to_owned());
        assert_eq!(
            chunks(promised(12), &[10, 11, 12, 13]),
            [(10, 12, 2, old()), (12, 14, 2, None)]
        );
        assert_eq!(
            chunks(promised(12), &[10, 15, 16]),
            [(10, 11, 1, old()), (11, 17, 2, None)],
            "the promise ends in a hole"
        );
        assert_eq!(chunks(promised(12), &[13, 14]), [(10, 15, 2, None)], "nothing is left of it");
        assert_eq!(chunks(promised(20), &[10, 11]), [(10, 12, 2, old())]);
        assert_eq!(chunks(promised(10), &[10, 11]), [(10, 12, 2, None)], "all of it is durable");
    }
}
