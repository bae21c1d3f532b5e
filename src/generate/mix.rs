//! How much of what the generator makes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The shares of unusual events and the spread over entities, for one stream.
///
/// Shares are fractions of all events, in `0..=1`. An event is at most one of malformed,
/// future and late; whether it is sent twice is drawn apart from that.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Mix {
    /// Share of events that arrive long after their event time (a minute to three days).
    pub late: f64,
    /// Share of events that are sent twice under one id, like a producer's retry.
    pub duplicate: f64,
    /// Share of events that no decoder should accept.
    pub malformed: f64,
    /// Share of events whose event time lies an hour to 30 days ahead.
    pub future: f64,
    /// How many entities there are, at least 1.
    pub entities: u64,
    /// The Zipf exponent of how often an entity comes, `0..=10`; 0 is uniform.
    pub zipf: f64,
}

impl Default for Mix {
    fn default() -> Self {
        Self {
            late: 0.02,
            duplicate: 0.01,
            malformed: 0.005,
            future: 0.002,
            entities: 10_000,
            zipf: 1.1,
        }
    }
}

/// Why a [`Mix`] is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MixError {
    /// A share is not a fraction.
    #[error("{name} is {value}: a share is a fraction of all events, from 0 to 1")]
    Share {
        /// The field.
        name: &'static str,
        /// Its value.
        value: f64,
    },
    /// Malformed, future and late exclude each other, so they must fit into one.
    #[error("malformed, future and late exclude each other, yet add up to {sum}: at most 1 fits")]
    Sum {
        /// What they add up to.
        sum: f64,
    },
    /// No entities, or more than the sampler is exact for.
    #[error("entities is {0}: it must be from 1 to {max}", max = Mix::MAX_ENTITIES)]
    Entities(u64),
    /// The exponent is negative, not a number or absurdly steep.
    #[error("zipf is {0}: the exponent must be from 0 (uniform) to {max}", max = Mix::MAX_ZIPF)]
    Zipf(f64),
}

impl Mix {
    /// The most entities; floats count exactly far beyond this.
    pub const MAX_ENTITIES: u64 = 1_000_000_000_000;
    /// The steepest exponent: at 10 rank 1 has 999 of 1,000 events.
    pub const MAX_ZIPF: f64 = 10.0;

    /// Checks every field.
    ///
    /// # Errors
    ///
    /// The first field that is out of its range, see [`MixError`].
    pub fn validate(&self) -> Result<(), MixError> {
        for (name, value) in [
            ("late", self.late),
            ("duplicate", self.duplicate),
            ("malformed", self.malformed),
            ("future", self.future),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return Err(MixError::Share { name, value });
            }
        }
        let sum = self.malformed + self.future + self.late;
        // Decimal fractions such as 0.7 + 0.2 + 0.1 may add up to a hair above 1.
        if sum > 1.0 + 1e-9 {
            return Err(MixError::Sum { sum });
        }
        if !(1..=Self::MAX_ENTITIES).contains(&self.entities) {
            return Err(MixError::Entities(self.entities));
        }
        if !(0.0..=Self::MAX_ZIPF).contains(&self.zipf) {
            return Err(MixError::Zipf(self.zipf));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_fills_what_is_not_given() {
        assert_eq!(Mix::default().validate(), Ok(()));
        let mix: Mix = toml::from_str("late = 0.5").unwrap();
        assert_eq!(mix, Mix { late: 0.5, ..Mix::default() });
    }

    #[test]
    fn unknown_fields_are_refused() {
        let error = toml::from_str::<Mix>("latee = 0.5").unwrap_err();
        assert!(error.to_string().contains("latee"), "{error}");
    }

    #[test]
    fn each_bad_field_is_named() {
        let refusal = |change: fn(&mut Mix)| {
            let mut mix = Mix::default();
            change(&mut mix);
            mix.validate().unwrap_err().to_string()
        };
        assert!(refusal(|m| m.late = -0.1).starts_with("late is -0.1"));
        assert!(refusal(|m| m.duplicate = 1.5).starts_with("duplicate"));
        assert!(refusal(|m| m.malformed = f64::NAN).starts_with("malformed"));
        assert!(refusal(|m| m.future = 0.99).contains("add up to"));
        assert!(refusal(|m| m.entities = 0).starts_with("entities is 0"));
        assert!(refusal(|m| m.entities = u64::MAX).starts_with("entities"));
        assert!(refusal(|m| m.zipf = -1.0).starts_with("zipf is -1"));
        assert!(refusal(|m| m.zipf = f64::INFINITY).starts_with("zipf is inf"));
    }

    #[test]
    fn shares_may_fill_everything() {
        let mix = Mix { malformed: 0.7, future: 0.2, late: 0.1, ..Mix::default() };
        assert_eq!(mix.validate(), Ok(()));
    }
}
