//! Leases of Python workers: who may have one, and when Redis may say so.
//!
//! All on one clock, that of Redis. A lease is live until its expiry; `permits_from` is the moment
//! from which Redis may grant.
//!
//! | operation | state | answer and effect |
//! |---|---|---|
//! | any | `permits_from` is not known | it becomes `now` + lease time; then as below |
//! | acquire | `now < permits_from` | refused |
//! | acquire | N leases or more are live | refused |
//! | acquire | fewer than N are live | granted until `now` + lease time |
//! | renew | the lease is live | extended until `now` + lease time |
//! | renew | it is gone | refused: it is not put back, its worker leaves by itself |
//! | release | the lease is live | ended |
//! | release | it is gone | refused, no effect |
//!
//! A Redis that lost everything does not know which workers live. Each of them leaves
//! [`HEARTBEAT_SHARE`] of a lease time after its last renewal, so one lease time after the loss
//! none is left that Redis does not know of. A Redis that is new and that nobody else can have used
//! has nothing to wait for: whoever made it sets `permits_from` to 0.
//!
//! The script of the WorkerSemaphore mirrors [`Leases::apply`]; a test holds one against the other.

use std::collections::BTreeMap;

/// The part of the lease time after which a worker without renewals leaves. The rest is the margin
/// in which it is killed and reaped.
pub const HEARTBEAT_SHARE: f64 = 0.7;

/// What is asked for a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A new one.
    Acquire,
    /// Its holder lives.
    Renew,
    /// Its worker was reaped.
    Release,
}

impl Operation {
    /// The word in the script.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Acquire => "acquire",
            Self::Renew => "renew",
            Self::Release => "release",
        }
    }
}

/// What all nodes of a namespace agree on.
#[derive(Debug, Clone, Copy)]
pub struct LeaseRule {
    /// N: leases that may be live at once.
    pub cap: usize,
    /// How long one lives without renewal, in milliseconds.
    pub lease_ms: i64,
}

/// What Redis knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leases {
    /// When the first lease may be granted, in milliseconds; `None`: everything was lost.
    pub permits_from_ms: Option<i64>,
    /// Expiry of each lease by name, in milliseconds.
    pub live: BTreeMap<String, i64>,
}

impl Leases {
    /// One row of the table: whether it was done.
    pub fn apply(&mut self, rule: LeaseRule, now_ms: i64, ask: Operation, lease: &str) -> bool {
        let from = *self.permits_from_ms.get_or_insert(now_ms + rule.lease_ms);
        self.live.retain(|_, expiry| *expiry > now_ms);
        let done = match ask {
            Operation::Acquire => now_ms >= from && self.live.len() < rule.cap,
            Operation::Renew => self.live.contains_key(lease),
            Operation::Release => return self.live.remove(lease).is_some(),
        };
        if done {
            self.live.insert(lease.to_owned(), now_ms + rule.lease_ms);
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RULE: LeaseRule = LeaseRule { cap: 2, lease_ms: 100 };

    /// A Redis that knows that nobody has a lease.
    fn fresh() -> Leases {
        Leases { permits_from_ms: Some(0), ..Leases::default() }
    }

    #[test]
    fn each_row_of_the_table() {
        use Operation::{Acquire, Release, Renew};
        let mut lost = Leases::default();
        assert!(!lost.apply(RULE, 1_000, Acquire, "a"), "what lives is not known yet");
        assert_eq!(lost.permits_from_ms, Some(1_100));
        assert!(!lost.apply(RULE, 1_099, Acquire, "a"));
        assert!(lost.apply(RULE, 1_100, Acquire, "a"));

        let mut leases = fresh();
        assert!(leases.apply(RULE, 0, Acquire, "a"));
        assert!(leases.apply(RULE, 10, Acquire, "b"));
        assert!(!leases.apply(RULE, 10, Acquire, "c"), "two are live");
        assert!(leases.apply(RULE, 99, Renew, "a"));
        assert!(leases.apply(RULE, 110, Acquire, "c"), "b has expired");
        assert!(!leases.apply(RULE, 110, Renew, "b"), "it is not put back");
        assert!(!leases.apply(RULE, 110, Release, "b"));
        assert!(leases.apply(RULE, 110, Release, "c"));
        assert!(!leases.apply(RULE, 110, Release, "c"));
        assert_eq!(leases.live, BTreeMap::from([("a".to_owned(), 199)]));
        // Renewals start the clock of a Redis that lost everything as well.
        let mut lost = Leases::default();
        assert!(!lost.apply(RULE, 50, Renew, "a"));
        assert_eq!(lost, Leases { permits_from_ms: Some(150), live: BTreeMap::new() });
    }

    /// What happens next, and after how long.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Hire,
        RenewAll,
        Leave,
        Lose,
    }

    proptest! {
        /// Whenever Redis loses everything and however renewals come: never more than N workers.
        #[test]
        fn never_more_workers_than_leases(
            steps in prop::collection::vec(
                (0i64..60, prop::sample::select(vec![
                    Step::Hire, Step::Hire, Step::Hire, Step::RenewAll, Step::Leave, Step::Lose,
                ])),
                1..120,
            ),
        ) {
            let (mut leases, mut now, mut hired) = (fresh(), 0, 0);
            // Workers: lease, and when it was renewed last.
            let mut workers: Vec<(String, i64)> = Vec::new();
            let patience = (RULE.lease_ms as f64 * HEARTBEAT_SHARE) as i64;
            for (wait, step) in steps {
                now += wait;
                workers.retain(|(_, renewed)| now - renewed < patience);
                match step {
                    Step::Hire => {
                        hired += 1;
                        let lease = format!("lease-{hired}");
                        if leases.apply(RULE, now, Operation::Acquire, &lease) {
                            workers.push((lease, now));
                        }
                    }
                    Step::RenewAll => {
                        for (lease, renewed) in &mut workers {
                            if leases.apply(RULE, now, Operation::Renew, lease) {
                                *renewed = now;
                            }
                        }
                    }
                    Step::Leave => {
                        if let Some((lease, _)) = workers.pop() {
                            leases.apply(RULE, now, Operation::Release, &lease);
                        }
                    }
                    Step::Lose => leases = Leases::default(),
                }
                prop_assert!(workers.len() <= RULE.cap, "{workers:?}");
            }
        }
    }
}
