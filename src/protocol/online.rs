//! The online rule: which online writes take effect.
//!
//! A write carries a generation, a source's token and values with their versions. Whether it is
//! admitted at all is decided by the first row that fits:
//!
//! | found in Redis | verdict |
//! |---|---|
//! | no generation, or another one than the write's | [`Admission::Generation`], no effect |
//! | no token of the source, or another one than the write's | [`Admission::Fenced`], no effect |
//! | else | [`Admission::Admitted`]: each value by the next table |
//!
//! | stored version | the value |
//! |---|---|
//! | none | is written |
//! | smaller than the value's | is written |
//! | equal or greater | is kept out |
//!
//! Versions are packed texts ([`Version::pack`](super::version::Version::pack)), which end with the
//! number of the token: of two equal versions the newer owner's wins. As the greatest version wins
//! whatever the order, writes may be repeated and reordered at will.
//!
//! An admitted write also notes its promise. Parts of a source are written as they are done, not in
//! order:
//!
//! | promise that is noted | everything before the part is durable | the new one |
//! |---|---|---|
//! | of the same version, less far | any | is noted |
//! | of the same version, as far or farther | any | is kept out: a promise never shrinks |
//! | none, or of another script version | yes | is noted |
//! | none, or of another script version | no | [`Admission::Early`]: the write waits |
//!
//! So what is online beyond the durable position was made by one version, which one promise can
//! name, and a script that is swapped in mid-flow costs each source one round trip.
//!
//! `src/online/write_online.lua` is the same rule inside Redis; a test drives both with the same
//! random writes and compares what is stored in the end.

use super::{source::Promised, version::PACKED_LEN};

/// What becomes of a new promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromiseFate {
    /// It takes the place of the one that is noted.
    Noted,
    /// The one that is noted says as much.
    KeptOut,
    /// It must wait, and its write with it.
    Early,
}

/// What becomes of a new promise, by the table of the module.
#[must_use]
pub fn promise_fate(noted: Option<&Promised>, new: &Promised, settled: bool) -> PromiseFate {
    match noted {
        Some(noted) if noted.script_sha256 == new.script_sha256 => {
            if noted.to < new.to {
                PromiseFate::Noted
            } else {
                PromiseFate::KeptOut
            }
        }
        _ if settled => PromiseFate::Noted,
        _ => PromiseFate::Early,
    }
}

/// What becomes of a write as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Its values are decided one by one.
    Admitted,
    /// The source has another owner.
    Fenced,
    /// What another script version has shown before is not durable yet.
    Early,
    /// Redis is not the Redis that the writer knew.
    Generation,
}

/// What Redis holds for the source of a write.
#[derive(Debug, Clone, Copy)]
pub struct OnlineRule<'a> {
    /// The generation; `None` when Redis lost it.
    pub generation: Option<&'a str>,
    /// The token that may write the source online, as text; `None` when there is none.
    pub token: Option<&'a str>,
}

impl OnlineRule<'_> {
    /// Decides on a write as a whole by the first table of the module.
    #[must_use]
    pub fn admit(&self, generation: &str, token: &str) -> Admission {
        if self.generation != Some(generation) {
            Admission::Generation
        } else if self.token != Some(token) {
            Admission::Fenced
        } else {
            Admission::Admitted
        }
    }

    /// Decides on a write and its values: `None` when it is not admitted, else whether each value
    /// takes effect. A value is the stored field's version, if there is one, and the packed version
    /// that is offered; no two values of a write may be for the same field.
    ///
    /// # Errors
    /// [`Admission::Generation`] or [`Admission::Fenced`]: nothing takes effect.
    pub fn decide<'v>(
        &self,
        generation: &str,
        token: &str,
        values: impl IntoIterator<Item = (Option<&'v str>, &'v str)>,
    ) -> Result<Vec<bool>, Admission> {
        match self.admit(generation, token) {
            Admission::Admitted => {
                Ok(values.into_iter().map(|(stored, offered)| wins(stored, offered)).collect())
            }
            refused => Err(refused),
        }
    }
}

/// Whether the offered version takes the place of the stored one, by the second table of the
/// module. For packed texts and for anything that is ordered like them.
#[must_use]
pub fn wins<V: Ord + ?Sized>(stored: Option<&V>, offered: &V) -> bool {
    stored.is_none_or(|stored| stored < offered)
}

/// The packed version at the end of a stored field; `None` when the field is too short to have one.
#[must_use]
pub fn stored_version(field: &str) -> Option<&str> {
    field.get(field.len().checked_sub(PACKED_LEN)?..)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::version::Version;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn packed(event_timestamp: i64, pos: i64, token_number: u32) -> String {
        Version { event_timestamp, created_at: 0, source_no: 1, pos, sub: 0 }.pack(token_number)
    }

    #[test]
    fn each_row_of_the_first_table() {
        for (generation, token, admission) in [
            (None, Some("t"), Admission::Generation),
            (Some("other"), Some("t"), Admission::Generation),
            (Some("other"), None, Admission::Generation),
            (Some("g"), None, Admission::Fenced),
            (Some("g"), Some("other"), Admission::Fenced),
            (Some("g"), Some("t"), Admission::Admitted),
        ] {
            let rule = OnlineRule { generation, token };
            assert_eq!(rule.admit("g", "t"), admission, "{rule:?}");
            let offered = packed(1, 1, 1);
            let decided = rule.decide("g", "t", [(None, offered.as_str())]);
            let expected =
                if admission == Admission::Admitted { Ok(vec![true]) } else { Err(admission) };
            assert_eq!(decided, expected);
        }
    }

    #[test]
    fn each_row_of_the_second_table() {
        let stored = packed(5, 5, 3);
        assert!(wins(None, stored.as_str()));
        assert!(!wins(Some(stored.as_str()), &stored), "the same value again changes nothing");
        for (offered, expected) in [
            (packed(6, 0, 1), true),
            (packed(5, 6, 1), true),
            (packed(5, 5, 4), true),
            (packed(5, 5, 2), false),
            (packed(5, 4, 9), false),
            (packed(4, 9, 9), false),
        ] {
            assert_eq!(wins(Some(stored.as_str()), &offered), expected, "{offered}");
        }
    }

    #[test]
    fn a_field_ends_with_its_version() {
        let version = packed(7, 8, 9);
        assert_eq!(stored_version(&format!("1.5|time|{version}")), Some(version.as_str()));
        assert_eq!(stored_version("1.5"), None);
        assert_eq!(stored_version(&"ä".repeat(50)), Some(&*"ä".repeat(36)));
        assert_eq!(stored_version(&format!("{}x", "ä".repeat(50))), None, "cut inside a character");
    }

    proptest! {
        /// However admitted writes are repeated and reordered, the greatest version stays.
        #[test]
        fn the_order_of_writes_does_not_matter(
            mut writes in prop::collection::vec((0u8..3, -2i64..3, 0i64..3, 1u32..4), 1..40),
            again in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
        ) {
            let newest = |writes: &[(u8, i64, i64, u32)]| {
                let mut stored: BTreeMap<u8, String> = BTreeMap::new();
                for (key, time, pos, token) in writes {
                    let offered = packed(*time, *pos, *token);
                    if wins(stored.get(key), &offered) {
                        stored.insert(*key, offered);
                    }
                }
                stored
            };
            let once = newest(&writes);
            writes.extend(again.iter().map(|i| writes[i.index(writes.len())]).collect::<Vec<_>>());
            writes.reverse();
            prop_assert_eq!(newest(&writes), once);
        }
    }
}
