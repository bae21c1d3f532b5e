//! The simulated world: its parties, its clock, its dice, and what its events and scripts are.

use super::{
    broker::Broker, defects::Defect, process::Node, redis::Redis, store::Store, trace::Trace,
};
use millstream::protocol::source::{SourceName, Token};
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// Partitions of the one topic.
pub const PARTITIONS: usize = 3;
/// Process nodes.
pub const NODES: usize = 3;
/// Entities; each lives in one partition.
pub const ENTITIES: usize = 6;
/// Script versions.
pub const SCRIPTS: u8 = 3;
/// Workers that may live at once.
pub const CAP: usize = 2;
/// How long a lease lives without renewal, in ticks of the clock.
pub const LEASE: u64 = 400;
/// What the store is told to hold online.
pub const CRITICAL: &str = "f0";
/// The feature that [`CRITICAL`] names.
pub const CRITICAL_FEATURE: u8 = 0;
/// Steps within which the world must be quiet once faults have stopped.
pub const QUIET_WITHIN: u64 = 60_000;

macro_rules! counted {
    ($($name:ident),* $(,)?) => {
        /// What is counted over a run: every kind of fault and every kind of decision.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Count { $(#[allow(missing_docs)] $name),* }
        /// Their names, in order.
        pub const COUNTED: &[&str] = &[$(stringify!($name)),*];
    };
}

counted! {
    Apply, Duplicate, Gap, Overlap, Fenced, OnlineWritten, OnlineFenced, OnlineGeneration,
    KeptOut, Looked, Replayed, Renewed, Repeated, SentAgain, Refused, Halted, PromiseHonoured,
    PromiseAwaited, Reopened, Reseek, RedisEmptied, RedisRestarted, RedisLostEnd, ReplyLost,
    RequestLost, AnswerLost, Swapped, StoreCrash, StatementError, CommitUnknown, Restored, NodeCrash,
    NodePaused, ActorDied, Rebalanced, PartitionLost, OffsetLost, WorkerLeft, LeaseRefused, ChunkGone,
}

/// Tallies by [`Count`].
pub type Counts = Vec<u64>;

/// A promise that was broken.
#[derive(Debug, Clone)]
pub struct Violation {
    /// Which check saw it.
    pub check: &'static str,
    /// What it saw.
    pub detail: String,
}

/// How often what goes wrong, per thousand; drawn anew for each seed.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// A request or its reply is lost.
    pub net: u32,
    /// Something is killed, paused, emptied or rebalanced.
    pub blow: u32,
    /// A statement or a COMMIT goes wrong.
    pub store: u32,
}

/// See the module.
pub struct World {
    /// Dice.
    pub rng: SmallRng,
    /// The clock, in ticks; Redis' clock as well.
    pub now: u64,
    /// Whether things go wrong.
    pub faults: bool,
    /// How often.
    pub rates: Rates,
    /// What is planted.
    pub defect: Option<Defect>,
    /// What happened.
    pub trace: Trace,
    /// How often.
    pub counts: Counts,
    /// The first promise that was broken.
    pub violation: Option<Violation>,
    /// Parties.
    pub broker: Broker,
    /// Parties.
    pub redis: Redis,
    /// Parties.
    pub store: Store,
    /// Parties.
    pub nodes: Vec<Node>,
    /// Workers whose node is gone: when they leave.
    pub orphans: Vec<u64>,
    /// Names of the sources by partition.
    pub sources: Vec<SourceName>,
    /// When Redis is killed next, besides by chance.
    pub restart_at: u64,
    /// A stranger has written to the queue.
    pub strayed: bool,
    last_id: u64,
}

impl World {
    /// A world of one seed.
    pub fn new(seed: u64, defect: Option<Defect>, trace: bool) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let rates = Rates {
            net: [0, 10, 40, 120][rng.random_range(0..4)],
            blow: [6, 20, 50, 120][rng.random_range(0..4)],
            store: [0, 10, 60][rng.random_range(0..3)],
        };
        let mut world = Self {
            broker: Broker::new(&mut rng),
            rng,
            now: 1,
            faults: true,
            rates,
            defect,
            trace: Trace::new(trace),
            counts: vec![0; COUNTED.len()],
            violation: None,
            redis: Redis::default(),
            store: Store::default(),
            nodes: Vec::new(),
            orphans: Vec::new(),
            sources: (0..PARTITIONS).map(|p| SourceName::kafka("s", "t", p as i32)).collect(),
            restart_at: 0,
            strayed: false,
            last_id: 0,
        };
        // Some worlds begin with one script everywhere.
        let same = world.rng.random_bool(0.3);
        for _ in 0..NODES {
            let script = if same { 0 } else { world.rng.random_range(0..SCRIPTS) };
            let incarnation = world.fresh_id();
            world.nodes.push(Node::new(incarnation, script));
        }
        world
    }

    /// Whether this defect is planted.
    pub fn has(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    /// A number that was never given before.
    pub fn fresh_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// A token that follows `number`, made of this world's dice so that a seed repeats itself.
    pub fn fresh_token(&mut self, number: u32) -> Token {
        let id = uuid::Uuid::from_u128(
            u128::from(self.fresh_id()) << 64 | self.rng.random::<u64>() as u128,
        );
        Token { id, number: number + 1 }
    }

    /// One of `n`.
    pub fn pick(&mut self, n: usize) -> usize {
        self.rng.random_range(0..n)
    }

    /// A throw of the dice that never comes up once faults have stopped.
    pub fn goes_wrong(&mut self, per_mille: u32) -> bool {
        self.faults && self.rng.random_range(0..1_000) < per_mille
    }

    /// Counts.
    pub fn count(&mut self, what: Count) {
        self.counts[what as usize] += 1;
    }

    /// Notes a broken promise; the first one counts.
    pub fn broken(&mut self, check: &'static str, detail: String) {
        if self.violation.is_none() {
            self.violation = Some(Violation { check, detail });
        }
    }

    /// What becomes of a command to Redis on its way.
    pub fn net(&mut self) -> Net {
        let rate = self.rates.net;
        if !self.goes_wrong(rate) {
            Net::Done
        } else if self.rng.random_bool(0.5) {
            self.count(Count::ReplyLost);
            Net::ReplyLost
        } else {
            self.count(Count::RequestLost);
            Net::RequestLost
        }
    }
}

/// What becomes of a command to Redis on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Net {
    /// Done, and its caller knows.
    Done,
    /// Done, but its caller sees an error.
    ReplyLost,
    /// Not done; its caller sees an error.
    RequestLost,
}

/// One event.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    /// Whose event.
    pub entity: u8,
    /// When it became true; events come out of this order.
    pub event_timestamp: i64,
    /// When it was made.
    pub created_at: i64,
    /// Everything else about it.
    pub hash: u32,
}

/// What a script makes of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// One row or two: feature and value.
    Kept(&'static [u8], i32),
    /// Nothing, on purpose.
    Filtered,
    /// A dead letter.
    Dead,
}

/// What version `script` makes of an event: a pure function, and another one for each version.
pub fn run_script(event: &Event, script: u8) -> Fate {
    let mut h = u64::from(event.hash) << 8 | u64::from(script);
    h = (h ^ (h >> 15)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    h ^= h >> 29;
    let value = (h >> 40) as i32;
    match h % 10 {
        0 | 1 => Fate::Filtered,
        2 => Fate::Dead,
        3 => Fate::Kept(&[1], value),
        4 => Fate::Kept(&[0, 1], value),
        5 => Fate::Kept(&[0, 0], value),
        _ => Fate::Kept(&[0], value),
    }
}

/// How a script version is called.
pub fn script_name(script: u8) -> &'static str {
    ["A", "B", "C"][usize::from(script)]
}

/// The version of that name.
pub fn script_of(name: &str) -> u8 {
    name.as_bytes()[0] - b'A'
}
