//! Version order: which of two values of one feature of one entity is the newer.
//!
//! Everywhere the same: `(event_timestamp, created_at, source_no, pos, sub)`, all integers, the
//! greatest wins. It is known before DuckDB has seen the row, so Redis and DuckDB agree.

/// The place of a value in the version order. Field order is the order of comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// When it became true, UTC microseconds.
    pub event_timestamp: i64,
    /// When the producer made it, UTC microseconds.
    pub created_at: i64,
    /// The small integer of its source.
    pub source_no: i32,
    /// The position of its record.
    pub pos: i64,
    /// Which output of that record.
    pub sub: i32,
}

/// Characters of [`Version::pack`]: five integers and a token number in hexadecimal.
pub const PACKED_LEN: usize = 16 + 16 + 8 + 16 + 8 + 8;

impl Version {
    /// Text whose byte order is the version order, for comparison inside Redis: each integer as
    /// fixed-width lower-case hexadecimal with its sign bit flipped, then the token's number, so
    /// that the newer owner of a source wins among equal versions.
    #[must_use]
    pub fn pack(&self, token_number: u32) -> String {
        const DIGITS: [char; 16] =
            ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
        let mut out = String::with_capacity(PACKED_LEN);
        let mut push = |bytes: &[u8]| {
            for byte in bytes {
                out.push(DIGITS[usize::from(byte >> 4)]);
                out.push(DIGITS[usize::from(byte & 15)]);
            }
        };
        let wide = |v: i64| (v.cast_unsigned() ^ (1 << 63)).to_be_bytes();
        let narrow = |v: i32| (v.cast_unsigned() ^ (1 << 31)).to_be_bytes();
        push(&wide(self.event_timestamp));
        push(&wide(self.created_at));
        push(&narrow(self.source_no));
        push(&wide(self.pos));
        push(&narrow(self.sub));
        push(&token_number.to_be_bytes());
        out
    }

    /// Reads what [`Version::pack`] wrote; `None` when it is not that.
    #[must_use]
    pub fn unpack(text: &str) -> Option<(Self, u32)> {
        if text.len() != PACKED_LEN || !text.is_ascii() {
            return None;
        }
        let wide = |at: usize| {
            let v = u64::from_str_radix(&text[at..at + 16], 16).ok()?;
            Some((v ^ (1 << 63)).cast_signed())
        };
        let narrow = |at: usize| u32::from_str_radix(&text[at..at + 8], 16).ok();
        let signed = |at: usize| Some((narrow(at)? ^ (1 << 31)).cast_signed());
        let version = Self {
            event_timestamp: wide(0)?,
            created_at: wide(16)?,
            source_no: signed(32)?,
            pos: wide(40)?,
            sub: signed(56)?,
        };
        Some((version, narrow(64)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_version() -> impl Strategy<Value = Version> {
        // Small ranges beside the extremes, so that equal prefixes are common.
        let wide = || prop_oneof![-2i64..3, Just(i64::MIN), Just(i64::MAX), any::<i64>()];
        let narrow = || prop_oneof![-2i32..3, any::<i32>()];
        (wide(), wide(), narrow(), wide(), narrow()).prop_map(
            |(event_timestamp, created_at, source_no, pos, sub)| Version {
                event_timestamp,
                created_at,
                source_no,
                pos,
                sub,
            },
        )
    }

    proptest! {
        #[test]
        fn packed_text_orders_like_the_version(a in any_version(), b in any_version()) {
            prop_assert_eq!(a.cmp(&b), a.pack(7).cmp(&b.pack(7)));
        }

        #[test]
        fn packing_loses_nothing(v in any_version(), token in any::<u32>()) {
            prop_assert_eq!(Version::unpack(&v.pack(token)), Some((v, token)));
        }

        #[test]
        fn among_equal_versions_the_newer_token_wins(v in any_version(), a in any::<u32>(), b in any::<u32>()) {
            prop_assert_eq!(a.cmp(&b), v.pack(a).cmp(&v.pack(b)));
        }
    }

    #[test]
    fn the_fields_are_compared_in_their_order() {
        let v = |e, c, s, p, u| Version {
            event_timestamp: e,
            created_at: c,
            source_no: s,
            pos: p,
            sub: u,
        };
        assert!(v(2, 0, 0, 0, 0) > v(1, 9, 9, 9, 9));
        assert!(v(1, 2, 0, 0, 0) > v(1, 1, 9, 9, 9));
        assert!(v(1, 1, 2, 0, 0) > v(1, 1, 1, 9, 9));
        assert!(v(1, 1, 1, 2, 0) > v(1, 1, 1, 1, 9));
        assert!(v(1, 1, 1, 1, 2) > v(1, 1, 1, 1, 1));
    }
}
