//! The kinds of faults: what each does, to what, and what it needs.

use serde::{Deserialize, Serialize};
use std::{fmt, ops::RangeInclusive, str::FromStr};

/// What a fault is done to; `--targets` chooses by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Actors of a node, by name.
    Actors,
    /// Python workers.
    Workers,
    /// Whole processes.
    Processes,
    /// The redis-server.
    Redis,
    /// The Kafka broker.
    Broker,
    /// The connections to Redis and to the broker.
    Network,
    /// The disk under DuckDB.
    Disk,
    /// The wall clock of a process.
    Clock,
    /// Scripts.
    Scripts,
    /// The consumer group.
    Group,
    /// Entries of the queue.
    Queue,
    /// Files over gRPC.
    Uploads,
}

impl Target {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Actors,
        Self::Workers,
        Self::Processes,
        Self::Redis,
        Self::Broker,
        Self::Network,
        Self::Disk,
        Self::Clock,
        Self::Scripts,
        Self::Group,
        Self::Queue,
        Self::Uploads,
    ];

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Actors => "actors",
            Self::Workers => "workers",
            Self::Processes => "processes",
            Self::Redis => "redis",
            Self::Broker => "broker",
            Self::Network => "network",
            Self::Disk => "disk",
            Self::Clock => "clock",
            Self::Scripts => "scripts",
            Self::Group => "group",
            Self::Queue => "queue",
            Self::Uploads => "uploads",
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a kind needs to be possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing but the system itself.
    Nothing,
    /// A real broker that chaos has started.
    RealBroker,
    /// The in-process broker.
    InProcessBroker,
    /// Permission to mount a small file system.
    Mount,
    /// strace.
    Trace,
    /// libfaketime.
    FakeTime,
}

/// One kind of fault.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kind {
    /// Its name.
    pub name: &'static str,
    /// What it is done to.
    pub target: Target,
    /// One sentence for people.
    pub what: &'static str,
    /// For how long, in milliseconds; 0: it is done at once.
    pub lasts_ms: (u64, u64),
    /// How often it comes among others.
    pub weight: u32,
    /// What it needs.
    pub needs: Needs,
}

impl Kind {
    /// The range of its length.
    #[must_use]
    pub fn lasts(&self) -> RangeInclusive<u64> {
        self.lasts_ms.0..=self.lasts_ms.1
    }
}

const OFTEN: u32 = 5;
const NOW_AND_THEN: u32 = 2;
const SELDOM: u32 = 1;
const AT_ONCE: (u64, u64) = (0, 0);

const fn kind(
    name: &'static str,
    target: Target,
    what: &'static str,
    lasts_ms: (u64, u64),
    weight: u32,
    needs: Needs,
) -> Kind {
    Kind { name, target, what, lasts_ms, weight, needs }
}

use Needs::{FakeTime, InProcessBroker, Mount, Nothing, RealBroker, Trace};
use Target::{
    Actors, Broker, Clock, Disk, Group, Network, Processes, Queue, Redis, Scripts, Uploads, Workers,
};

/// Every kind, in the order in which they are listed.
#[rustfmt::skip]
pub const KINDS: [Kind; 42] = [
    kind("actor-kill", Actors, "an actor is killed; its next instance goes on", AT_ONCE, OFTEN, Nothing),
    kind("actor-panic", Actors, "a handler of an actor panics", AT_ONCE, OFTEN, Nothing),
    kind("actor-error", Actors, "an actor ends with an error", AT_ONCE, OFTEN, Nothing),
    kind("worker-kill", Workers, "a Python worker gets SIGKILL", AT_ONCE, OFTEN, Nothing),
    kind("worker-stop", Workers, "a Python worker is stopped for a while", (300, 2_500), OFTEN, Nothing),
    kind("process-kill", Processes, "a node with the role process gets SIGKILL, and is started again", AT_ONCE, SELDOM, Nothing),
    kind("process-stop", Processes, "a node with the role process is stopped for a while", (300, 1_500), NOW_AND_THEN, Nothing),
    kind("process-zombie", Processes, "a node with the role process is stopped for longer than its session in the group", (5_000, 7_000), SELDOM, Nothing),
    kind("forkserver-kill", Processes, "the process of which Python workers are forks gets SIGKILL, and they with it", AT_ONCE, NOW_AND_THEN, Nothing),
    kind("store-kill", Processes, "the store gets SIGKILL, and is started again", AT_ONCE, SELDOM, Nothing),
    kind("store-stop", Processes, "the store is stopped for a while", (300, 2_500), NOW_AND_THEN, Nothing),
    kind("redis-kill", Redis, "redis-server gets SIGKILL, and is started again on its file", AT_ONCE, SELDOM, Nothing),
    kind("redis-empty", Redis, "redis-server gets SIGKILL, and is started again without its file", AT_ONCE, SELDOM, Nothing),
    kind("redis-flush", Redis, "FLUSHALL", AT_ONCE, SELDOM, Nothing),
    kind("redis-stop", Redis, "redis-server is stopped for a while", (300, 2_500), NOW_AND_THEN, Nothing),
    kind("redis-slow", Redis, "redis-server answers nobody for two thirds of the time", (1_000, 2_500), NOW_AND_THEN, Nothing),
    kind("broker-kill", Broker, "the broker gets SIGKILL, and is started again", AT_ONCE, SELDOM, RealBroker),
    kind("broker-stop", Broker, "the broker is stopped for a while", (300, 2_500), NOW_AND_THEN, RealBroker),
    kind("leader-moves", Broker, "every partition gets another leader", AT_ONCE, NOW_AND_THEN, InProcessBroker),
    kind("broker-refuses", Broker, "the broker refuses the next commits and fetches, each for another reason", AT_ONCE, NOW_AND_THEN, InProcessBroker),
    kind("redis-latency", Network, "Redis is 10 to 60 ms away", (1_000, 2_500), NOW_AND_THEN, Nothing),
    kind("redis-cut", Network, "nothing passes on the connections to Redis", (300, 2_000), NOW_AND_THEN, Nothing),
    kind("redis-reset", Network, "every connection to Redis is reset", AT_ONCE, OFTEN, Nothing),
    kind("redis-slice", Network, "what goes to and from Redis comes in pieces of a few bytes", (500, 1_500), NOW_AND_THEN, Nothing),
    kind("kafka-latency", Network, "the broker is 10 to 60 ms away", (1_000, 2_500), NOW_AND_THEN, RealBroker),
    kind("kafka-cut", Network, "nothing passes on the connections to the broker", (300, 2_000), NOW_AND_THEN, RealBroker),
    kind("kafka-reset", Network, "every connection to the broker is reset", AT_ONCE, OFTEN, RealBroker),
    kind("kafka-slice", Network, "what goes to and from the broker comes in pieces of a few bytes", (500, 1_500), NOW_AND_THEN, RealBroker),
    kind("disk-full", Disk, "the disk under DuckDB has no room", (500, 2_000), SELDOM, Mount),
    kind("disk-error", Disk, "every fsync under DuckDB fails with EIO", (300, 1_500), SELDOM, Trace),
    kind("clock-ahead", Clock, "a process's wall clock is up to 90 s ahead", (2_500, 4_500), NOW_AND_THEN, FakeTime),
    kind("clock-behind", Clock, "a process's wall clock is up to 90 s behind", (2_500, 4_500), NOW_AND_THEN, FakeTime),
    kind("script-swap", Scripts, "a script is saved anew, with another text that does the same", AT_ONCE, NOW_AND_THEN, Nothing),
    kind("script-broken", Scripts, "a script is saved that cannot be imported, or fails on every row", AT_ONCE, NOW_AND_THEN, Nothing),
    kind("script-rollback", Scripts, "an operator rolls a script back", AT_ONCE, NOW_AND_THEN, Nothing),
    kind("rebalance", Group, "another node joins the consumer group and leaves it", (1_500, 3_000), NOW_AND_THEN, Nothing),
    kind("queue-duplicate", Queue, "entries of the queue are there twice", AT_ONCE, NOW_AND_THEN, Nothing),
    kind("queue-reorder", Queue, "entries of the queue stand in reverse order", AT_ONCE, NOW_AND_THEN, Nothing),
    kind("queue-lose", Queue, "entries of the queue are deleted", AT_ONCE, NOW_AND_THEN, Nothing),
    kind("upload-hostile", Uploads, "a file that means harm is uploaded", AT_ONCE, NOW_AND_THEN, Nothing),
    kind("upload-cut", Uploads, "an upload breaks off in the middle", AT_ONCE, NOW_AND_THEN, Nothing),
    kind("upload-lies", Uploads, "an upload has another hash, size or key than it says", AT_ONCE, NOW_AND_THEN, Nothing),
];

/// The kind of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == name)
}

/// One word of `--targets`: a target or a single kind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Choice {
    /// All kinds of a target.
    Target(Target),
    /// One kind.
    Kind(&'static Kind),
}

impl Choice {
    /// Whether the kind is meant.
    #[must_use]
    pub fn holds(self, kind: &Kind) -> bool {
        match self {
            Self::Target(target) => kind.target == target,
            Self::Kind(one) => one.name == kind.name,
        }
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(target) = Target::ALL.into_iter().find(|target| target.name() == text) {
            return Ok(Self::Target(target));
        }
        if let Some(kind) = find(text) {
            return Ok(Self::Kind(kind));
        }
        let names = Target::ALL.iter().map(|t| t.name()).chain(KINDS.iter().map(|k| k.name));
        let near = crate::text::nearest(text, names)
            .map_or(String::new(), |near| format!("; did you mean `{near}`?"));
        Err(format!(
            "`{text}` is neither a target nor a kind of fault{near} (`millstream chaos --list` has all)"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_every_target_has_a_kind() {
        let names: BTreeSet<_> = KINDS.iter().map(|kind| kind.name).collect();
        assert_eq!(names.len(), KINDS.len());
        for target in Target::ALL {
            assert!(KINDS.iter().any(|kind| kind.target == target), "{target}");
            assert_eq!(target.name().parse::<Choice>(), Ok(Choice::Target(target)));
        }
        for kind in &KINDS {
            assert_eq!(kind.name.parse::<Choice>(), Ok(Choice::Kind(kind)));
            assert!(kind.lasts_ms.0 <= kind.lasts_ms.1 && kind.weight > 0, "{}", kind.name);
        }
    }

    #[test]
    fn what_is_not_known_is_said() {
        let says = "actor-kil".parse::<Choice>().unwrap_err();
        assert!(says.contains("did you mean `actor-kill`?"), "{says}");
    }
}
