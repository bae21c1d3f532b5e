//! What is said of a feature of an entity at an instant, online and as of the past alike.
//!
//! | found | status | value |
//! |---|---|---|
//! | nothing | [`Status::NotFound`] | none |
//! | a row that is older than allowed | [`Status::OutsideMaxAge`] | none, never an older one |
//! | NULL | [`Status::NullValue`] | none, never an older one |
//! | a value | [`Status::Present`] | it |
//!
//! A row is as old as its event timestamp is at the instant that is asked about; exactly as old as
//! allowed is valid.

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// There is a value.
    Present,
    /// The newest version is NULL.
    NullValue,
    /// There is no row.
    NotFound,
    /// The newest version is older than allowed.
    OutsideMaxAge,
}

impl Status {
    /// Status and value of what was found: its value and event timestamp. Times and ages are in
    /// microseconds.
    #[must_use]
    pub fn of(
        found: Option<(Option<f64>, i64)>,
        at_us: i64,
        max_age_us: Option<i64>,
    ) -> (Self, Option<f64>) {
        let Some((value, event_timestamp_us)) = found else { return (Self::NotFound, None) };
        let age_us = at_us.saturating_sub(event_timestamp_us);
        match value {
            _ if max_age_us.is_some_and(|most| age_us > most) => (Self::OutsideMaxAge, None),
            None => (Self::NullValue, None),
            Some(value) => (Self::Present, Some(value)),
        }
    }

    /// Its name, which is Feast's, too.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Present => "PRESENT",
            Self::NullValue => "NULL_VALUE",
            Self::NotFound => "NOT_FOUND",
            Self::OutsideMaxAge => "OUTSIDE_MAX_AGE",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_of_the_table() {
        use Status::{NotFound, NullValue, OutsideMaxAge, Present};
        let (value, null) = (Some((Some(-0.5), 1_000)), Some((None, 1_000)));
        for (found, at, most, expected) in [
            (None, 0, Some(1), (NotFound, None)),
            (value, 1_007, None, (Present, Some(-0.5))),
            (value, 1_007, Some(7), (Present, Some(-0.5))),
            (value, 1_007, Some(6), (OutsideMaxAge, None)),
            (null, 1_007, Some(7), (NullValue, None)),
            (null, 1_007, Some(6), (OutsideMaxAge, None)),
            (value, 990, Some(1), (Present, Some(-0.5))),
            (value, i64::MAX, Some(1), (OutsideMaxAge, None)),
        ] {
            assert_eq!(Status::of(found, at, most), expected, "{found:?} {at} {most:?}");
        }
    }
}
