//! How far every open source is durable, as its answers say, and which script version promised last.

use crate::protocol::source::{Position, SourceName};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;

/// Positions before which everything is in DuckDB, by source. Outlives the instances of the
/// [`RedisQueue`](super::RedisQueue).
#[derive(Debug, Default)]
pub struct DurablePositions {
    known: Mutex<Known>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Known {
    sources: HashMap<SourceName, Standing>,
    /// How often anything has changed.
    changes: u64,
}

/// What is known of an open source.
#[derive(Debug, Clone, Default)]
struct Standing {
    durable: Position,
    /// The version whose promise was recorded last, as far as this node wrote it.
    promised: Option<String>,
    /// Which change was its last.
    last_change: u64,
}

/// A look at a source, from which one can wait for what comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Everything before is in DuckDB.
    pub durable: Position,
    last_change: u64,
}

impl DurablePositions {
    /// The source is read from here on.
    pub fn opened(&self, source: SourceName, next_pos: Position) {
        let mut known = self.lock();
        known.changes += 1;
        let last_change = known.changes;
        known.sources.insert(source, Standing { durable: next_pos, promised: None, last_change });
        drop(known);
        self.changed.notify_waiters();
    }

    /// The store took a part. A source that is closed stays closed.
    pub fn advance(&self, source: &SourceName, next_pos: Position) {
        self.change(source, |standing| {
            let further = next_pos > standing.durable;
            standing.durable = next_pos.max(standing.durable);
            further
        });
    }

    /// A part of the source is online that this version made.
    pub fn promised(&self, source: &SourceName, script_sha256: &str) {
        self.change(source, |standing| {
            let other = standing.promised.as_deref() != Some(script_sha256);
            if other {
                standing.promised = Some(script_sha256.to_owned());
            }
            other
        });
    }

    /// The source is not read here for now.
    pub fn close(&self, source: &SourceName) {
        self.lock().sources.remove(source);
        self.changed.notify_waiters();
    }

    /// `None`: it is not open.
    #[must_use]
    pub fn get(&self, source: &SourceName) -> Option<Seen> {
        let known = self.lock();
        let standing = known.sources.get(source)?;
        Some(Seen { durable: standing.durable, last_change: standing.last_change })
    }

    /// Waits until a part of the source that begins at `from`, made by this version, may go online
    /// as it could not at the look: all before it is durable, or a part of the same version went
    /// before it. Returns at once when the source is not open any more. Cancel-safe.
    pub async fn may_follow(
        &self,
        source: &SourceName,
        from: Position,
        script_sha256: &str,
        seen: Seen,
    ) {
        let ready = || {
            let known = self.lock();
            known.sources.get(source).is_none_or(|now| {
                let same = now.promised.as_deref() == Some(script_sha256);
                now.last_change != seen.last_change && (from <= now.durable || same)
            })
        };
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            if ready() {
                return;
            }
            changed.await;
        }
    }

    fn change(&self, source: &SourceName, change: impl FnOnce(&mut Standing) -> bool) {
        let known = &mut *self.lock();
        let Some(standing) = known.sources.get_mut(source) else { return };
        if change(standing) {
            known.changes += 1;
            standing.last_change = known.changes;
            // Whoever wakes waits for the lock for a moment.
            self.changed.notify_waiters();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // A panicking holder leaves no entry half-changed.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[test]
    fn a_part_follows_when_all_before_it_is_durable_or_one_of_its_version_went_before() {
        let (positions, source) = (DurablePositions::default(), SourceName("s".into()));
        positions.opened(source.clone(), 10);
        let look = || positions.get(&source).unwrap();
        let is_ready = |from, version, seen| {
            positions.may_follow(&source, from, version, seen).now_or_never().is_some()
        };

        let seen = look();
        positions.promised(&source, "old");
        assert!(!is_ready(20, "new", seen), "another version promised");
        positions.advance(&source, 19);
        assert!(!is_ready(20, "new", seen), "one event is missing");
        positions.advance(&source, 20);
        assert!(is_ready(20, "new", seen));
        assert!(!is_ready(30, "new", seen));
        positions.promised(&source, "new");
        assert!(is_ready(30, "new", seen), "a part of its version went before it");
        assert!(!is_ready(30, "new", look()), "it was refused after that: something else is amiss");
        positions.promised(&source, "new");
        assert!(!is_ready(30, "new", look()), "nothing has changed");
        positions.close(&source);
        assert!(is_ready(30, "new", seen) && positions.get(&source).is_none());
    }

    #[tokio::test]
    async fn whoever_waits_is_woken() {
        let (positions, source) = (DurablePositions::default(), SourceName("s".into()));
        positions.opened(source.clone(), 0);
        let seen = positions.get(&source).unwrap();
        for change in ["advance", "open again", "close"] {
            let waiting = positions.may_follow(&source, 5, "v", seen);
            tokio::pin!(waiting);
            assert!(waiting.as_mut().now_or_never().is_none());
            match change {
                "advance" => positions.advance(&source, 5),
                "open again" => positions.opened(source.clone(), 5),
                _ => positions.close(&source),
            }
            waiting.await;
            positions.opened(source.clone(), 0);
            let now = positions.get(&source).unwrap();
            assert_ne!(now, seen, "another life");
        }
    }
}
