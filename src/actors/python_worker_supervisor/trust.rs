//! Which script versions are suspected on this node: [`Breaker`]s that outlive the actor.

use super::status::lock;
use crate::protocol::breaker::Breaker;
use std::{
    collections::{HashMap, HashSet},
    sync::Mutex,
    time::Instant,
};

/// See the module.
#[derive(Debug)]
pub struct Trust {
    since: Instant,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    breakers: HashMap<String, Breaker>,
    /// Version → why.
    suspected: HashMap<String, String>,
    /// An operator has said that what these fail on is dead.
    accepted: HashSet<String>,
}

impl Default for Trust {
    fn default() -> Self {
        Self { since: Instant::now(), inner: Mutex::default() }
    }
}

impl Trust {
    /// A version was given `rows` and failed on `failed`; why it is suspected, if it is now.
    pub fn judge(&self, sha256: &str, rows: usize, failed: usize) -> Option<String> {
        let mut inner = lock(&self.inner);
        if inner.accepted.contains(sha256) {
            return None;
        }
        // Another worker's batch was still on its way: nothing may be dead for it either.
        if failed > 0
            && let Some(why) = inner.suspected.get(sha256)
        {
            return Some(why.clone());
        }
        let breaker = inner.breakers.entry(sha256.to_owned()).or_default();
        let now_s = self.since.elapsed().as_secs();
        let suspected = breaker.observe(now_s, rows as u64, failed as u64);
        suspected.then(|| {
            format!("it fails on more than a fifth of the rows, here on {failed} of {rows}")
        })
    }

    /// A version is suspected.
    pub fn suspect(&self, sha256: &str, why: &str) {
        let mut inner = lock(&self.inner);
        inner.breakers.remove(sha256);
        inner.suspected.insert(sha256.to_owned(), why.to_owned());
    }

    /// What a version failed on was the data's fault: it begins anew.
    pub fn forgive(&self, sha256: &str) {
        lock(&self.inner).breakers.remove(sha256);
    }

    /// A version takes over, perhaps once more: nothing is held against it.
    pub fn forget(&self, sha256: &str) {
        let mut inner = lock(&self.inner);
        inner.breakers.remove(sha256);
        inner.suspected.remove(sha256);
    }

    /// Why a version is suspected; `None`: it is not.
    #[must_use]
    pub fn why(&self, sha256: &str) -> Option<String> {
        lock(&self.inner).suspected.get(sha256).cloned()
    }

    /// Whether what a version fails on is to be dead, however much it is.
    #[must_use]
    pub fn is_accepted(&self, sha256: &str) -> bool {
        lock(&self.inner).accepted.contains(sha256)
    }

    /// An operator has decided so.
    pub fn accept(&self, sha256: &str) {
        let mut inner = lock(&self.inner);
        inner.suspected.remove(sha256);
        inner.accepted.insert(sha256.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_fails_is_suspected_until_it_is_accepted() {
        let trust = Trust::default();
        assert_eq!(trust.judge("a", 1_000, 100), None);
        let why = trust.judge("a", 1_000, 900).unwrap();
        assert!(why.contains("900 of 1000"), "{why}");
        assert_eq!(trust.why("a"), None, "the batch's fate comes first");
        trust.suspect("a", &why);
        assert_eq!(trust.why("a"), Some(why.clone()));
        assert_eq!(trust.judge("a", 10, 1), Some(why), "a batch that was still on its way");
        assert_eq!(trust.judge("a", 10, 0), None, "nothing of it would be dead");
        assert_eq!(trust.judge("b", 1_000, 0), None, "another version has its own record");
        trust.forget("a");
        assert_eq!((trust.why("a"), trust.judge("a", 1_000, 100)), (None, None));
        trust.judge("a", 1_000, 900);
        trust.forgive("a");
        assert_eq!(trust.judge("a", 1_000, 100), None, "begun anew");
        trust.suspect("a", "again");
        trust.accept("a");
        assert_eq!((trust.why("a"), trust.judge("a", 1_000, 1_000)), (None, None));
        assert!(trust.is_accepted("a"));
    }
}
