//! C7, at every sample: the broker's committed offsets never exceed DuckDB's positions.

use super::{Bench, CommittedOffsets, NodeProcess};
use millstream::chaos::offsets::{Positions, ahead};
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Looks on from a thread of its own while nodes come and go.
pub struct Watch {
    offsets: CommittedOffsets,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    node: Mutex<Option<SocketAddr>>,
    ended: AtomicBool,
    samples: Mutex<Samples>,
}

#[derive(Default, Debug)]
struct Samples {
    /// Samples that had offsets to compare.
    taken: usize,
    broken: Vec<String>,
}

impl Watch {
    /// Begins to look as soon as there is a node to ask.
    pub fn start(bench: &Bench) -> Self {
        let shared = Arc::new(Shared::default());
        let (seen, of) = (shared.clone(), CommittedOffsets::new(&bench.config).unwrap());
        let thread = std::thread::spawn(move || {
            while !seen.ended.load(Ordering::Relaxed) {
                seen.look(&of);
                // The pace of looking.
                std::thread::park_timeout(Duration::from_millis(50));
            }
        });
        let offsets = CommittedOffsets::new(&bench.config).unwrap();
        Self { offsets, shared, thread: Some(thread) }
    }

    /// The node that is asked from now on.
    pub fn ask(&self, node: &NodeProcess) {
        *self.shared.node.lock().unwrap() = Some(node.http);
    }

    /// A sample while no node owns the database.
    pub fn look_at_closed(&self, bench: &Bench) {
        let Some(offsets) = self.offsets.get() else { return };
        self.shared.note(&offsets, &bench.positions());
    }

    /// How many samples there were; all of them must hold.
    pub fn end(mut self) -> usize {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        let samples = self.shared.samples.lock().unwrap();
        assert!(samples.broken.is_empty(), "C7 is broken: {:#?}", samples.broken);
        samples.taken
    }
}

impl Shared {
    fn look(&self, of: &CommittedOffsets) {
        let Some(node) = *self.node.lock().unwrap() else { return };
        let Some(offsets) = of.get() else { return };
        // A node between two lives does not answer; there are other samples.
        if let Some(positions) = super::node::positions_at(node) {
            self.note(&offsets, &positions);
        }
    }

    fn note(&self, offsets: &Positions, positions: &Positions) {
        let mut samples = self.samples.lock().unwrap();
        samples.taken += usize::from(!offsets.is_empty());
        samples.broken.extend(ahead(offsets, positions));
    }
}
