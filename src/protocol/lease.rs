//! Leases of Python workers: who may have one, and when Redis may say so.
//!
//! All on one clock, that of Redis. A lease is live until its expiry; `permits_from` is the moment
//! from which Redis may grant.
//!
//! | operation | state | answer and effect |
//! |---|---|---|
//! | any | `permits_from` is not known | it becomes `now` + lease time; then as below |
//! | acquire | `now < permits_from` | refused |
//! | acquire | N leases or more are live | refused; the node wants one for [`WANT_MS`] |
//! | acquire | fewer than N are live, another node that wants one has fewer than the asker | likewise |
//! | acquire | fewer than N are live, else | granted until `now` + lease time |
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
//! **Between nodes.** Every answer tells the asker how few leases the poorest other node has that
//! wants one. What a node owes it is [`owes`]; it is paid when a batch ends. So permits spread evenly
//! over the nodes that have work, and no batch is interrupted for it.
//!
//! | the poorest that wants | own leases | owed |
//! |---|---|---|
//! | none wants | | nothing |
//! | has `p` | at least `p` + 2 | one now |
//! | has none | one | one when it had its turn |
//! | has `p` > 0 | at most `p` + 1 | nothing |
//!
//! **Within a node**, lanes — streams, and older versions of theirs — share what the node can have:
//! all N while some are free, and once a question was refused, those that it holds. While a lane has
//! work and no worker, the worker of another that ends a batch leaves as [`makes_room`] says:
//!
//! | its lane has | permits within reach | it leaves |
//! |---|---|---|
//! | more than a fair share of them, and more than one | | now |
//! | | fewer than there are lanes | when it had its turn |
//! | | else | not |
//!
//! The script of the WorkerSemaphore mirrors [`Leases::apply`]; a test holds one against the other.

use std::collections::BTreeMap;

/// The part of the lease time after which a worker without renewals leaves. The rest is the margin
/// in which it is killed and reaped.
pub const HEARTBEAT_SHARE: f64 = 0.7;

/// How long after a question that was refused a node counts as wanting a lease, in milliseconds. It
/// asks far more often.
pub const WANT_MS: i64 = 1_000;

/// What a node owes to others that want leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Debt {
    /// Nothing.
    Nothing,
    /// One lease when its holder had its turn.
    AfterATurn,
    /// One lease at the next end of a batch.
    Now,
}

/// See the module's table: `poorest` has the fewest leases of the other nodes that want one.
#[must_use]
pub fn owes(own: usize, poorest: Option<usize>) -> Debt {
    match poorest {
        Some(poorest) if own >= poorest + 2 => Debt::Now,
        Some(0) if own == 1 => Debt::AfterATurn,
        _ => Debt::Nothing,
    }
}

/// See the module's last table: whether a worker leaves for a lane that has none. `workers` has its own
/// lane, `lanes` there are that have work or workers.
#[must_use]
pub fn makes_room(workers: usize, within_reach: usize, lanes: usize, had_its_turn: bool) -> bool {
    let fair = within_reach / lanes.max(1);
    workers > fair.max(1) || (fair == 0 && had_its_turn)
}

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

/// What Redis knows. A lease belongs to the node that stands before the first `/` of its name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leases {
    /// When the first lease may be granted, in milliseconds; `None`: everything was lost.
    pub permits_from_ms: Option<i64>,
    /// Expiry of each lease by name, in milliseconds.
    pub live: BTreeMap<String, i64>,
    /// Until when each node counts as wanting a lease, in milliseconds.
    pub wanting: BTreeMap<String, i64>,
}

impl Leases {
    /// Leases of a node.
    fn of(&self, node: &str) -> usize {
        self.live.keys().filter(|lease| lease.split('/').next() == Some(node)).count()
    }

    /// The fewest leases that one of the other nodes has that want one.
    #[must_use]
    pub fn poorest(&self, node: &str, now_ms: i64) -> Option<usize> {
        let others = self.wanting.iter().filter(|(n, until)| **until > now_ms && *n != node);
        others.map(|(other, _)| self.of(other)).min()
    }

    /// One row of the table: whether it was done.
    pub fn apply(
        &mut self,
        rule: LeaseRule,
        now_ms: i64,
        ask: Operation,
        node: &str,
        lease: &str,
    ) -> bool {
        let from = *self.permits_from_ms.get_or_insert(now_ms + rule.lease_ms);
        self.live.retain(|_, expiry| *expiry > now_ms);
        self.wanting.retain(|_, until| *until > now_ms);
        let done = match ask {
            Operation::Acquire if now_ms < from => false,
            Operation::Acquire => {
                let fair = self.poorest(node, now_ms).is_none_or(|p| self.of(node) <= p);
                let granted = self.live.len() < rule.cap && fair;
                if granted {
                    self.wanting.remove(node);
                } else {
                    self.wanting.insert(node.to_owned(), now_ms + WANT_MS);
                }
                granted
            }
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

    fn ask(leases: &mut Leases, now_ms: i64, operation: Operation, lease: &str) -> bool {
        leases.apply(RULE, now_ms, operation, "n", lease)
    }

    #[test]
    fn each_row_of_the_table() {
        use Operation::{Acquire, Release, Renew};
        let mut lost = Leases::default();
        assert!(!ask(&mut lost, 1_000, Acquire, "a"), "what lives is not known yet");
        assert_eq!(lost.permits_from_ms, Some(1_100));
        assert!(!ask(&mut lost, 1_099, Acquire, "a"));
        assert!(ask(&mut lost, 1_100, Acquire, "a"));

        let mut leases = fresh();
        assert!(ask(&mut leases, 0, Acquire, "a"));
        assert!(ask(&mut leases, 10, Acquire, "b"));
        assert!(!ask(&mut leases, 10, Acquire, "c"), "two are live");
        assert!(ask(&mut leases, 99, Renew, "a"));
        assert!(ask(&mut leases, 110, Acquire, "c"), "b has expired");
        assert!(!ask(&mut leases, 110, Renew, "b"), "it is not put back");
        assert!(!ask(&mut leases, 110, Release, "b"));
        assert!(ask(&mut leases, 110, Release, "c"));
        assert!(!ask(&mut leases, 110, Release, "c"));
        assert_eq!(leases.live, BTreeMap::from([("a".to_owned(), 199)]));
        // Renewals start the clock of a Redis that lost everything as well.
        let mut lost = Leases::default();
        assert!(!ask(&mut lost, 50, Renew, "a"));
        assert_eq!(lost, Leases { permits_from_ms: Some(150), ..Leases::default() });
    }

    #[test]
    fn a_node_that_has_fewer_comes_first() {
        use Operation::{Acquire, Release};
        let rule = LeaseRule { cap: 3, lease_ms: 10_000 };
        let mut leases = fresh();
        for lease in ["a/1", "a/2", "a/3"] {
            assert!(leases.apply(rule, 0, Acquire, "a", lease), "nobody else wants one");
        }
        assert_eq!(leases.poorest("a", 0), None);
        assert!(!leases.apply(rule, 1, Acquire, "b", "b/1"));
        assert_eq!(leases.poorest("a", 1), Some(0));
        assert!(leases.apply(rule, 2, Release, "a", "a/1"));
        assert!(!leases.apply(rule, 2, Acquire, "a", "a/4"), "b has none");
        assert!(leases.apply(rule, 3, Acquire, "b", "b/1"));
        // Both want more: the one with fewer gets it, whoever asks first.
        assert!(!leases.apply(rule, 4, Acquire, "b", "b/2"));
        assert!(leases.apply(rule, 5, Release, "a", "a/2"));
        assert!(leases.apply(rule, 6, Acquire, "a", "a/4"), "as many as b");
        // One that asks no more is waited for no longer.
        assert_eq!(leases.poorest("a", 4 + WANT_MS - 1), Some(1));
        assert_eq!(leases.poorest("a", 4 + WANT_MS), None);
    }

    #[test]
    fn each_row_of_the_table_of_debts() {
        assert_eq!(owes(3, None), Debt::Nothing);
        assert_eq!(owes(2, Some(0)), Debt::Now);
        assert_eq!(owes(3, Some(1)), Debt::Now);
        assert_eq!(owes(1, Some(0)), Debt::AfterATurn);
        assert_eq!(owes(2, Some(1)), Debt::Nothing);
        assert_eq!(owes(0, Some(0)), Debt::Nothing);
    }

    #[test]
    fn each_row_of_the_table_of_lanes() {
        assert!(makes_room(3, 3, 2, false), "more than one of three");
        assert!(!makes_room(1, 3, 2, true), "there is one for either");
        assert!(!makes_room(1, 1, 2, false), "its turn is not over");
        assert!(makes_room(1, 1, 2, true), "the other two are with other nodes");
        assert!(makes_room(2, 2, 2, false), "both with one lane");
        assert!(makes_room(2, 2, 3, false), "its second one");
        assert!(makes_room(1, 2, 3, true));
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
                        if leases.apply(RULE, now, Operation::Acquire, "n", &lease) {
                            workers.push((lease, now));
                        }
                    }
                    Step::RenewAll => {
                        for (lease, renewed) in &mut workers {
                            if leases.apply(RULE, now, Operation::Renew, "n", lease) {
                                *renewed = now;
                            }
                        }
                    }
                    Step::Leave => {
                        if let Some((lease, _)) = workers.pop() {
                            leases.apply(RULE, now, Operation::Release, "n", &lease);
                        }
                    }
                    Step::Lose => leases = Leases::default(),
                }
                prop_assert!(workers.len() <= RULE.cap, "{workers:?}");
            }
        }
    }
}
