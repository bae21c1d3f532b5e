//! What the tests stand on: a broker, benches with folders and topics of their own, node processes.

mod bench;
pub mod judge;
mod kafka;
mod node;
mod redis;
mod samples;
mod scripts;
mod slots;

pub use bench::{Bench, expected};
pub use kafka::{Broker, Sent, admin, broker, left_out, produce, produce_with};
pub use millstream::chaos::offsets::CommittedOffsets;
pub use node::{NodeProcess, millstream, run_json};
pub use redis::RedisServer;
pub use samples::Watch;
pub use scripts::{ended, event, file, says, script_of, scripted, transforms};
pub use slots::Slot;

pub use millstream::chaos::processes::{Frozen, resident_bytes, signal};

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Long enough for anything here on a busy machine; a test that needs it all has failed.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// Held by a test that runs a node inside of this process: its counters are those of the process. Taken
/// after the test's slot, so that no two tests wait for each other.
pub fn the_only_node() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    // Poisoned by a test that failed: this one is on its own all the same.
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until `condition` gives something.
///
/// # Panics
/// When it has not within [`DEADLINE`].
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < until, "waited {DEADLINE:?} for {what}");
        // The pace of looking, not a wait for something to be over.
        std::thread::park_timeout(Duration::from_millis(20));
    }
}
