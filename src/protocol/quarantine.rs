//! Quarantine: an entry that kills the store must not kill it for ever.
//!
//! The store notes which entries it is applying. Those that were being applied when it died are
//! suspects from then on, until they have been applied once.
//!
//! | times that the store died while it applied the entry | what happens to it |
//! |---|---|
//! | 0 | it shares a transaction with others |
//! | 1 to [`CRASHES`] − 1 | it is applied alone, so that it incriminates nobody else |
//! | [`CRASHES`] or more | it is quarantined: kept aside, and its sources halt |

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Deaths of the store after which an entry is quarantined.
pub const CRASHES: u32 = 3;

/// How an entry is to be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handling {
    /// Together with others.
    Grouped,
    /// In a transaction of its own.
    Alone,
    /// Not at all.
    Quarantined,
}

/// What is known of entries that the store died over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempts {
    /// Entry id → times that the store died while it was applied.
    crashes: BTreeMap<String, u32>,
    /// Entries that are being applied.
    applying: BTreeSet<String>,
}

impl Attempts {
    /// What a new life of the store makes of its predecessor's note.
    #[must_use]
    pub fn after_a_death(mut self) -> Self {
        for id in std::mem::take(&mut self.applying) {
            *self.crashes.entry(id).or_default() += 1;
        }
        self
    }

    /// How an entry is to be applied.
    #[must_use]
    pub fn handling(&self, id: &str) -> Handling {
        match self.crashes.get(id) {
            None | Some(0) => Handling::Grouped,
            Some(n) if *n < CRASHES => Handling::Alone,
            Some(_) => Handling::Quarantined,
        }
    }

    /// These are applied from now on.
    pub fn begin<'a>(&mut self, ids: impl IntoIterator<Item = &'a str>) {
        self.applying = ids.into_iter().map(str::to_owned).collect();
    }

    /// What was being applied is decided, however: it killed nobody.
    pub fn end(&mut self) {
        for id in std::mem::take(&mut self.applying) {
            self.crashes.remove(&id);
        }
    }

    /// The entry was put aside.
    pub fn forget(&mut self, id: &str) {
        self.crashes.remove(id);
    }

    /// Whether there is nothing to note.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.crashes.is_empty() && self.applying.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_of_the_table() {
        let mut attempts = Attempts::default();
        let mut seen = Vec::new();
        for _ in 0..=CRASHES {
            seen.push(attempts.handling("1-1"));
            attempts.begin(["1-1"]);
            attempts = attempts.after_a_death();
        }
        use Handling::{Alone, Grouped, Quarantined};
        assert_eq!(seen, [Grouped, Alone, Alone, Quarantined]);
        attempts.forget("1-1");
        assert!(attempts.is_empty());
    }

    #[test]
    fn whoever_shared_the_transaction_is_cleared_when_it_is_applied() {
        let mut attempts = Attempts::default();
        attempts.begin(["1-1", "1-2"]);
        attempts = attempts.after_a_death();
        assert_eq!(attempts.handling("1-2"), Handling::Alone);
        attempts.begin(["1-2"]);
        attempts.end();
        assert_eq!(attempts.handling("1-2"), Handling::Grouped);
        assert_eq!(attempts.handling("1-1"), Handling::Alone);
    }
}
