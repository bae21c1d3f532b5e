//! Event ids: the tracking number that an event keeps through all services.
//!
//! An id is a UUID of version 7 (RFC 9562, section 5.7), so it sorts by time in every store and
//! every tool knows it. The bits that the RFC leaves to chance say who made the event, which
//! lets the judge recompute the event from its id alone:
//!
//! ```text
//!  bits 127..80   79..76   75..64        63..62   61..56       55..48   47..8   7..0
//!       unix ms   7        run (high 12) 0b10     run (low 6)  task     seq     check
//! ```
//!
//! `check` is a hash of the rest. It tells our ids from the version 7 UUIDs of other producers
//! in 255 of 256 cases; it is no protection against forgery.

use super::hash::mix64;
use uuid::Uuid;

/// Bits of the run tag.
const RUN_BITS: u32 = 18;
/// Bits of the sequence number.
const SEQ_BITS: u32 = 40;
/// Bits of the time in milliseconds.
const TIME_BITS: u32 = 48;
/// The RFC's version nibble and variant bits, in their place.
const VERSION_AND_VARIANT: u128 = (0x7 << 76) | (0b10 << 62);

/// The id of one generated event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId {
    uuid: Uuid,
}

/// What an [`EventId`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdParts {
    /// When the event was made, in milliseconds since 1970 UTC; 48 bits.
    pub unix_ms: u64,
    /// The tag of the run that made it, see [`EventId::run_tag`]; 18 bits.
    pub run: u32,
    /// The producer task within the run.
    pub task: u8,
    /// The number of the event within the task; 40 bits.
    pub seq: u64,
}

impl EventId {
    /// The greatest sequence number that an id can hold.
    pub const MAX_SEQ: u64 = (1 << SEQ_BITS) - 1;

    /// The id of event `seq` of `task` in the run tagged `run`, made at `unix_ms`.
    ///
    /// Only the low 48 bits of the time, 18 of the run and 40 of the sequence number count:
    /// enough for the year 10889 and a trillion events a task.
    pub fn new(unix_ms: u64, run: u32, task: u8, seq: u64) -> Self {
        let unix_ms = u128::from(unix_ms) & ((1 << TIME_BITS) - 1);
        let run = u128::from(run) & ((1 << RUN_BITS) - 1);
        let seq = u128::from(seq) & u128::from(Self::MAX_SEQ);
        let unchecked = (unix_ms << 80)
            | ((run >> 6) << 64)
            | ((run & 0x3F) << 56)
            | (u128::from(task) << 48)
            | (seq << 8)
            | VERSION_AND_VARIANT;
        Self { uuid: Uuid::from_u128(unchecked | u128::from(check(unchecked))) }
    }

    /// The tag of a run: a hash of its seed and of `nonce`, whatever tells this run from
    /// others with the same seed (the start time, say; 0 for a run that shall be repeatable).
    pub const fn run_tag(seed: u64, nonce: u64) -> u32 {
        (mix64(mix64(seed) ^ nonce) >> (64 - RUN_BITS)) as u32
    }

    /// `uuid` as one of our ids; `None` when [`EventId::parse`] says so.
    pub fn from_uuid(uuid: Uuid) -> Option<Self> {
        Self::parse(uuid).map(|_| Self { uuid })
    }

    /// What `uuid` says; `None` when it is not of version 7, not of the RFC's variant, or its
    /// check bits show that another producer made it.
    pub fn parse(uuid: Uuid) -> Option<IdParts> {
        let bits = uuid.as_u128();
        let marked = bits & ((0xF << 76) | (0b11 << 62)) == VERSION_AND_VARIANT;
        (marked && bits & 0xFF == u128::from(check(bits))).then(|| Self { uuid }.parts())
    }

    /// What this id says.
    pub fn parts(&self) -> IdParts {
        let bits = self.uuid.as_u128();
        IdParts {
            unix_ms: (bits >> 80) as u64,
            run: (((bits >> 64) & 0xFFF) << 6 | ((bits >> 56) & 0x3F)) as u32,
            task: (bits >> 48) as u8,
            seq: (bits >> 8) as u64 & Self::MAX_SEQ,
        }
    }

    /// The id as a UUID.
    pub const fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// 64 bits that depend on every bit of the id and on `salt`.
    pub(crate) fn hash(&self, salt: u64) -> u64 {
        let (high, low) = self.uuid.as_u64_pair();
        mix64(mix64(salt ^ high) ^ low)
    }
}

impl From<EventId> for Uuid {
    fn from(id: EventId) -> Self {
        id.uuid
    }
}

impl std::fmt::Display for EventId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.uuid.fmt(f)
    }
}

/// The check bits of an id; its low 8 bits do not count.
const fn check(bits: u128) -> u8 {
    let high = (bits >> 64) as u64;
    let low = (bits as u64) & !0xFF;
    (mix64(mix64(high) ^ low) >> 56) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_id_keeps_its_parts_and_is_a_valid_version_7_uuid(
            unix_ms in 0u64..1 << 48, run in 0u32..1 << 18, task: u8, seq in 0u64..1 << 40,
        ) {
            let id = EventId::new(unix_ms, run, task, seq);
            let parts = IdParts { unix_ms, run, task, seq };
            prop_assert_eq!(id.parts(), parts);
            prop_assert_eq!(EventId::parse(id.uuid()), Some(parts));
            prop_assert_eq!(EventId::from_uuid(id.uuid()), Some(id));
            prop_assert_eq!(id.uuid().get_version_num(), 7);
            prop_assert_eq!(id.uuid().get_variant(), uuid::Variant::RFC4122);
            // `uuid` reads the time of the id where RFC 9562 puts it.
            let (seconds, nanos) = id.uuid().get_timestamp().unwrap().to_unix();
            prop_assert_eq!(seconds * 1000 + u64::from(nanos) / 1_000_000, unix_ms);
        }

        #[test]
        fn ids_of_one_task_sort_by_time_and_number(
            ms in 0u64..1 << 48, later in 0u64..1 << 48, run in 0u32..1 << 18, seq in 0u64..1 << 39,
        ) {
            let id = EventId::new(ms, run, 3, seq);
            prop_assert!(id < EventId::new(ms, run, 3, seq + 1));
            if later > ms {
                prop_assert!(id < EventId::new(later, run, 3, 0));
            }
        }

        #[test]
        fn the_text_form_keeps_the_id(unix_ms in 0u64..1 << 48, seq in 0u64..1 << 40) {
            let id = EventId::new(unix_ms, 9, 1, seq);
            let read = Uuid::parse_str(&id.to_string()).unwrap();
            prop_assert_eq!(EventId::from_uuid(read), Some(id));
        }
    }

    #[test]
    fn ids_of_others_are_not_ours() {
        assert_eq!(EventId::parse(Uuid::nil()), None);
        assert_eq!(EventId::parse(Uuid::max()), None);
        assert_eq!(EventId::parse(Uuid::new_v4()), None);
        let ours = EventId::new(1_700_000_000_000, 5, 0, 42).uuid().as_u128();
        let wrong_variant = Uuid::from_u128(ours | (0b11 << 62));
        assert_eq!(EventId::parse(wrong_variant), None);
        let foreign = (0..10_000).filter(|_| EventId::parse(Uuid::now_v7()).is_some());
        // 10,000 / 256 = 39 slip through on average; 100 is ten standard deviations away.
        assert!(foreign.count() < 100);
    }

    #[test]
    fn too_wide_parts_are_cut_and_do_not_touch_their_neighbours() {
        let id = EventId::new(u64::MAX, u32::MAX, u8::MAX, u64::MAX);
        assert_eq!(id.parts().seq, EventId::MAX_SEQ);
        assert_eq!(id.parts().run, (1 << 18) - 1);
        assert_eq!(id.parts().unix_ms, (1 << 48) - 1);
        assert!(EventId::parse(id.uuid()).is_some());
    }

    #[test]
    fn the_run_tag_fits_and_depends_on_seed_and_nonce() {
        assert!(EventId::run_tag(1, 0) < 1 << 18);
        assert_ne!(EventId::run_tag(1, 0), EventId::run_tag(2, 0));
        assert_ne!(EventId::run_tag(1, 0), EventId::run_tag(1, 1));
        assert_eq!(EventId::run_tag(1, 7), EventId::run_tag(1, 7));
    }
}
