//! Plain write requests as a source: the id of an entry of their Redis stream is its position.
//!
//! An entry id is `ms-seq`; its position is `ms · 2²⁰ + seq`, so that positions order as ids do.
//! Ids that do not fit (`seq ≥ 2²⁰`, or a `ms` that is too large) are refused: two of them could
//! share a position.

use super::source::{Position, SourceName};
use std::fmt;

/// Bits of a position that hold the id's sequence number.
const SEQ_BITS: u32 = 20;

/// Sequence numbers from this one on do not fit into a position.
const SEQ_END: u64 = 1 << SEQ_BITS;

/// Milliseconds from this one on do not fit: the position after the last must be one, too.
const MS_END: u64 = (1 << (63 - SEQ_BITS)) - 1;

/// The id of an entry of a Redis stream. Ids order as they are compared here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    /// Milliseconds since 1970-01-01 UTC, by Redis' clock or as the client said.
    pub ms: u64,
    /// Number within the millisecond.
    pub seq: u64,
}

impl EntryId {
    /// Reads `ms-seq`; `None` when it is not that.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (ms, seq) = text.split_once('-')?;
        Some(Self { ms: ms.parse().ok()?, seq: seq.parse().ok()? })
    }

    /// The position that the id stands for.
    ///
    /// # Errors
    /// A sentence, when the id is not one that positions can hold.
    pub fn position(self) -> Result<Position, String> {
        let Self { ms, seq } = self;
        if seq >= SEQ_END {
            return Err(format!("the sequence number {seq} is not below {SEQ_END}"));
        }
        if ms >= MS_END {
            return Err(format!("{ms} ms is not below {MS_END}"));
        }
        Ok((ms << SEQ_BITS | seq).cast_signed())
    }

    /// The id that stands for a position; `None` for a negative one, which no id has.
    #[must_use]
    pub fn of_position(position: Position) -> Option<Self> {
        let bits = u64::try_from(position).ok()?;
        Some(Self { ms: bits >> SEQ_BITS, seq: bits & (SEQ_END - 1) })
    }

    /// The time that the id tells, UTC microseconds; the last one that there is for ids beyond.
    #[must_use]
    pub fn timestamp_us(self) -> i64 {
        i64::try_from(self.ms.saturating_mul(1_000)).unwrap_or(i64::MAX)
    }

    /// Whether so few sequence numbers are left in this millisecond that the stream should go on
    /// in the next: while a clock stands still, or went back, Redis only counts the number up.
    #[must_use]
    pub fn is_nearly_full(self) -> bool {
        self.seq >= SEQ_END / 2
    }

    /// The first id of the next millisecond; `None` when its position would not be one.
    #[must_use]
    pub fn next_ms(self) -> Option<Self> {
        let next = Self { ms: self.ms.checked_add(1)?, seq: 0 };
        next.position().is_ok().then_some(next)
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// The source that the plain writes of a namespace are.
#[must_use]
pub fn source(namespace: &str) -> SourceName {
    SourceName(format!("writes:{namespace}").into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(ms: u64, seq: u64) -> EntryId {
        EntryId { ms, seq }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert_eq!(id(0, 0).position(), Ok(0));
        assert_eq!(id(1, 1).position(), Ok((1 << 20) + 1));
        assert!(id(0, SEQ_END - 1).position().is_ok());
        assert!(id(0, SEQ_END).position().unwrap_err().contains("1048576"));
        assert!(id(0, u64::MAX).position().is_err());
        let last = id(MS_END - 1, SEQ_END - 1).position().unwrap();
        assert!(last.checked_add(1).is_some(), "the position after the last is one");
        assert!(id(MS_END, 0).position().is_err());
        assert!(id(u64::MAX, 0).position().is_err());
        assert_eq!(EntryId::of_position(-1), None);
    }

    #[test]
    fn ids_are_read_as_redis_writes_them() {
        assert_eq!(EntryId::parse("1700000000123-7"), Some(id(1_700_000_000_123, 7)));
        assert_eq!(
            EntryId::parse("18446744073709551615-18446744073709551615"),
            Some(id(u64::MAX, u64::MAX))
        );
        for text in ["", "-", "1", "1-", "-1", "a-1", "1-2-3", "18446744073709551616-0"] {
            assert_eq!(EntryId::parse(text), None, "{text}");
        }
        assert_eq!(id(5, 6).to_string(), "5-6");
    }

    #[test]
    fn a_full_millisecond_goes_on_in_the_next() {
        assert!(!id(5, 10).is_nearly_full());
        assert!(id(5, SEQ_END - 1).is_nearly_full());
        assert_eq!(id(5, SEQ_END).next_ms(), Some(id(6, 0)));
        assert_eq!(id(MS_END - 1, 0).next_ms(), None);
        assert_eq!(id(u64::MAX, 0).next_ms(), None);
    }

    #[test]
    fn times_are_microseconds_and_never_overflow() {
        assert_eq!(id(1_700_000_000_123, 9).timestamp_us(), 1_700_000_000_123_000);
        assert_eq!(id(u64::MAX, 0).timestamp_us(), i64::MAX);
    }

    proptest! {
        #[test]
        fn the_mapping_loses_nothing(ms in 0..MS_END, seq in 0..SEQ_END) {
            let position = id(ms, seq).position().unwrap();
            prop_assert!(position >= 0);
            prop_assert_eq!(EntryId::of_position(position), Some(id(ms, seq)));
        }

        #[test]
        fn positions_order_as_ids_do(a in (0..MS_END, 0..SEQ_END), b in (0..MS_END, 0..SEQ_END)) {
            let (a, b) = (id(a.0, a.1), id(b.0, b.1));
            prop_assert_eq!(a.cmp(&b), a.position().unwrap().cmp(&b.position().unwrap()));
        }

        #[test]
        fn ids_survive_their_text(ms in any::<u64>(), seq in any::<u64>()) {
            prop_assert_eq!(EntryId::parse(&id(ms, seq).to_string()), Some(id(ms, seq)));
        }
    }
}
