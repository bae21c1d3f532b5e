//! Streams whose batches pile up before Python — one that is paused, waits for its script, or is slow —
//! stand still in Kafka, so that the pool of bytes in flight is left to the others.
//!
//! | live batches of the stream that wait | flows now | stands now |
//! |---|---|---|
//! | more than its share of the pool | stands | stands |
//! | more than half of its share | flows | stands |
//! | less | flows | flows |
//!
//! A stream's share is the pool by the number of streams and one more. The only stream of a node needs
//! none of this.

use std::sync::atomic::{AtomicBool, Ordering};

/// Which streams are to stand still. The PythonWorkerSupervisor says so, the poll thread obeys.
#[derive(Debug)]
pub struct StreamHolds {
    held: Vec<AtomicBool>,
    share: usize,
}

impl StreamHolds {
    /// Nothing stands still; `pool` is in bytes.
    #[must_use]
    pub fn new(streams: usize, pool: usize) -> Self {
        let held = (0..streams).map(|_| AtomicBool::new(false)).collect();
        let share = if streams > 1 { pool / (streams + 1) } else { usize::MAX };
        Self { held, share }
    }

    /// So many bytes of a stream's batches wait, by the table of the module.
    pub fn piled_up(&self, stream: usize, bytes: usize) {
        let Some(held) = self.held.get(stream) else { return };
        let limit = if held.load(Ordering::Relaxed) { self.share / 2 } else { self.share };
        held.store(bytes > limit, Ordering::Relaxed);
    }

    /// Whether a stream is to stand still.
    #[must_use]
    pub fn is_held(&self, stream: usize) -> bool {
        self.held.get(stream).is_some_and(|held| held.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_of_the_table() {
        let holds = StreamHolds::new(2, 300);
        for (bytes, held) in [(100, false), (101, true), (51, true), (50, false), (100, false)] {
            holds.piled_up(0, bytes);
            assert_eq!(holds.is_held(0), held, "{bytes}");
        }
        holds.piled_up(1, 1_000);
        assert!(holds.is_held(1) && !holds.is_held(0), "each for itself");
        let only = StreamHolds::new(1, 300);
        only.piled_up(0, 10_000);
        assert!(!only.is_held(0));
    }
}
