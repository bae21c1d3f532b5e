//! When a batch closes: at so many rows, so many bytes, when its oldest part is so old, or when a
//! part comes that must run under another script version.
//!
//! | a part comes | the open batch |
//! |---|---|
//! | with another [`Part::pin`] than the open parts | closes first |
//! | beyond the rows or bytes | closes first |
//! | that fills it | closes with it |
//! | when the oldest part is as old as may be | closes with it |
//!
//! A batch may hold parts of many sources, so that many quiet partitions share one call into
//! Python; the parts of one source that follow each other are merged.

use std::time::{Duration, Instant};

/// Why a batch was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// The next part would exceed the rows.
    Rows,
    /// The next part would exceed the bytes.
    Bytes,
    /// The oldest part has waited long enough.
    Age,
    /// The next part runs under another script version.
    Pin,
    /// The pipeline drains.
    Drain,
}

impl CloseReason {
    /// The label in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Bytes => "bytes",
            Self::Age => "age",
            Self::Pin => "pin",
            Self::Drain => "drain",
        }
    }
}

/// When a batch closes — whichever comes first.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Events a batch.
    pub max_rows: usize,
    /// Payload bytes a batch.
    pub max_bytes: usize,
    /// Age of the oldest part.
    pub max_age: Duration,
}

/// A part of a batch: records of one source, in order.
pub trait Part: Sized {
    /// Events.
    fn rows(&self) -> usize;
    /// Payload bytes.
    fn bytes(&self) -> usize;
    /// The script version that it must run under; `None`: whichever is the current one. Parts of
    /// one batch have the same.
    fn pin(&self) -> Option<&str>;
    /// Takes the part that follows in the same source; gives it back when it does not follow.
    ///
    /// # Errors
    /// The part that does not follow.
    fn merge(&mut self, next: Self) -> Result<(), Self>;
}

/// A closed batch.
#[derive(Debug)]
pub struct Closed<P> {
    /// Its parts, in the order of arrival.
    pub parts: Vec<P>,
    /// Why it was closed.
    pub reason: CloseReason,
    /// When its oldest part came.
    pub opened_at: Instant,
}

#[derive(Debug)]
struct Open<P> {
    parts: Vec<P>,
    rows: usize,
    bytes: usize,
    opened_at: Instant,
}

/// Collects parts into batches.
#[derive(Debug)]
pub struct Accumulator<P> {
    limits: Limits,
    open: Option<Open<P>>,
}

impl<P: Part> Accumulator<P> {
    /// An empty one.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, open: None }
    }

    /// Adds a part that came at `now`; gives the batches that this closes, oldest first: the open
    /// one when the part no longer fits, and the part's own when it fills a batch by itself.
    pub fn push(&mut self, part: P, now: Instant) -> Vec<Closed<P>> {
        let mut closed = Vec::new();
        let (rows, bytes) = (part.rows(), part.bytes());
        if let Some(open) = &self.open {
            if open.parts.first().is_some_and(|first| first.pin() != part.pin()) {
                closed.extend(self.close(CloseReason::Pin));
            } else if open.rows + rows > self.limits.max_rows {
                closed.extend(self.close(CloseReason::Rows));
            } else if open.bytes + bytes > self.limits.max_bytes {
                closed.extend(self.close(CloseReason::Bytes));
            }
        }
        let open = self.open.get_or_insert_with(|| Open {
            parts: Vec::new(),
            rows: 0,
            bytes: 0,
            opened_at: now,
        });
        open.rows += rows;
        open.bytes += bytes;
        let mut rest = Some(part);
        for mine in open.parts.iter_mut().rev() {
            match rest.take().map(|part| mine.merge(part)) {
                Some(Err(part)) => rest = Some(part),
                _ => break,
            }
        }
        open.parts.extend(rest);
        let full = if open.rows >= self.limits.max_rows {
            Some(CloseReason::Rows)
        } else if open.bytes >= self.limits.max_bytes {
            Some(CloseReason::Bytes)
        } else {
            None
        };
        closed.extend(full.and_then(|reason| self.close(reason)));
        closed.extend(self.tick(now));
        closed
    }

    /// Closes the open batch when it is old enough.
    pub fn tick(&mut self, now: Instant) -> Option<Closed<P>> {
        (self.deadline()? <= now).then(|| self.close(CloseReason::Age)).flatten()
    }

    /// When the open batch is old enough.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        Some(self.open.as_ref()?.opened_at + self.limits.max_age)
    }

    /// Closes whatever is open.
    pub fn close(&mut self, reason: CloseReason) -> Option<Closed<P>> {
        let open = self.open.take()?;
        Some(Closed { parts: open.parts, reason, opened_at: open.opened_at })
    }

    /// Events that wait in the open batch.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.open.as_ref().map_or(0, |open| open.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Positions `[from, to)` of a source, ten bytes each. The sources from 100 are pinned.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Range(u8, i64, i64);

    /// The pinned twin of a source.
    fn pinned(source: u8) -> u8 {
        source + 100
    }

    impl Part for Range {
        fn rows(&self) -> usize {
            (self.2 - self.1) as usize
        }
        fn bytes(&self) -> usize {
            10 * self.rows()
        }
        fn pin(&self) -> Option<&str> {
            (self.0 >= 100).then_some("old")
        }
        fn merge(&mut self, next: Self) -> Result<(), Self> {
            if next.0 == self.0 && next.1 == self.2 {
                self.2 = next.2;
                Ok(())
            } else {
                Err(next)
            }
        }
    }

    fn limits(max_rows: usize, max_bytes: usize) -> Limits {
        Limits { max_rows, max_bytes, max_age: Duration::from_millis(20) }
    }

    #[test]
    fn closes_at_rows_bytes_and_age() {
        let now = Instant::now();
        let mut a = Accumulator::new(limits(10, 1_000));
        assert!(a.push(Range(0, 0, 9), now).is_empty());
        let closed = a.push(Range(0, 9, 10), now);
        assert_eq!((closed.len(), closed[0].reason), (1, CloseReason::Rows));
        assert_eq!(closed[0].parts, [Range(0, 0, 10)]);

        let mut a = Accumulator::new(limits(100, 50));
        assert!(a.push(Range(0, 0, 4), now).is_empty());
        let closed = a.push(Range(0, 4, 6), now);
        assert_eq!((closed.len(), closed[0].reason), (1, CloseReason::Bytes));
        assert_eq!(a.waiting(), 2);

        let late = now + Duration::from_millis(19);
        assert!(a.tick(late).is_none());
        let closed = a.tick(late + Duration::from_millis(1)).unwrap();
        assert_eq!(closed.reason, CloseReason::Age);
        assert!(a.deadline().is_none());
    }

    #[test]
    fn a_part_that_comes_late_closes_an_old_batch_without_a_timer() {
        let now = Instant::now();
        let mut a = Accumulator::new(limits(100, 10_000));
        a.push(Range(0, 0, 1), now);
        let closed = a.push(Range(0, 1, 2), now + Duration::from_secs(1));
        assert_eq!(closed.len(), 1);
        assert_eq!(closed[0].parts, [Range(0, 0, 2)]);
    }

    #[test]
    fn another_pin_closes_the_open_batch() {
        let now = Instant::now();
        let mut a = Accumulator::new(limits(100, 10_000));
        assert!(a.push(Range(pinned(0), 0, 2), now).is_empty());
        assert!(a.push(Range(pinned(1), 0, 3), now).is_empty(), "the same version");
        let closed = a.push(Range(0, 2, 4), now);
        assert_eq!((closed.len(), closed[0].reason), (1, CloseReason::Pin));
        assert_eq!(closed[0].parts, [Range(pinned(0), 0, 2), Range(pinned(1), 0, 3)]);
        let closed = a.push(Range(pinned(1), 3, 5), now);
        assert_eq!((closed.len(), closed[0].reason), (1, CloseReason::Pin));
        assert_eq!(closed[0].parts, [Range(0, 2, 4)]);
        assert_eq!(a.waiting(), 2);
    }

    proptest! {
        /// Nothing is lost, nothing is reordered within a source, no batch exceeds its rows, and
        /// none mixes pins.
        #[test]
        fn keeps_every_position_in_order(
            steps in prop::collection::vec(
                (prop::sample::select(vec![0u8, 1, 2, 100, 101]), 1i64..8, 0u64..30),
                1..80,
            ),
        ) {
            let mut a = Accumulator::new(limits(10, 1_000_000));
            let mut now = Instant::now();
            let (mut next, mut seen) = ([0i64; 102], [0i64; 102]);
            let mut out = Vec::new();
            for (source, len, wait) in steps {
                now += Duration::from_millis(wait);
                out.extend(a.tick(now));
                let from = next[source as usize];
                next[source as usize] = from + len;
                out.extend(a.push(Range(source, from, from + len), now));
            }
            out.extend(a.close(CloseReason::Drain));
            for batch in out {
                prop_assert!(batch.parts.iter().map(Part::rows).sum::<usize>() <= 10);
                prop_assert!(batch.parts.iter().all(|p| p.pin() == batch.parts[0].pin()));
                for Range(source, from, to) in batch.parts {
                    prop_assert_eq!(from, seen[source as usize]);
                    seen[source as usize] = to;
                }
            }
            prop_assert_eq!(seen, next);
        }
    }
}
