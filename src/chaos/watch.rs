//! Looking on while faults are done: committed offsets against DuckDB's positions, memory of the nodes.

use super::{
    http::Http,
    offsets::{CommittedOffsets, ahead, positions_at},
    processes::resident_bytes,
    rig::Living,
};
use crate::{config::Config, kafka::AcknowledgedPositions, protocol::source::SourceName};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// The pace of looking.
const PACE: Duration = Duration::from_millis(100);
/// Violations that are told at most.
const MOST: usize = 20;

type Look = Box<dyn FnMut(&Mutex<Seen>) + Send>;

/// Looks until it is ended.
pub struct Watch {
    ended: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    threads: Vec<JoinHandle<()>>,
}

/// What was seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Samples that had offsets to compare.
    pub offsets: usize,
    /// Offsets that were ahead.
    pub ahead: Vec<String>,
    /// The most resident memory by node, in bytes.
    pub peak_bytes: BTreeMap<&'static str, u64>,
}

impl Watch {
    /// Begins to look. `direct` says where the broker is, `nodes` who can be asked for positions, which
    /// are noted in `acknowledged` for a generator that must not run ahead.
    ///
    /// # Errors
    /// When there is no client or thread to be had.
    pub fn start(
        direct: &Config,
        http: &Http,
        nodes: Vec<SocketAddr>,
        living: Living,
        acknowledged: Arc<AcknowledgedPositions>,
    ) -> anyhow::Result<Self> {
        let (ended, seen) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Seen>>::default());
        let offsets = CommittedOffsets::new(direct)?;
        let thread = |name: &str, mut look: Look| {
            let (ended, seen) = (ended.clone(), seen.clone());
            std::thread::Builder::new().name(name.into()).spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    look(&seen);
                    std::thread::park_timeout(PACE);
                }
            })
        };
        let http = http.clone();
        let look_at_offsets = move |seen: &Mutex<Seen>| {
            let Some(offsets) = offsets.get() else { return };
            // Asked after the offsets: positions only grow. A node between two lives does not answer;
            // there are others, and other samples.
            let Some(positions) = nodes.iter().find_map(|node| positions_at(&http, *node)) else {
                return;
            };
            for (source, next_pos) in &positions {
                if let Some((topic, partition)) =
                    SourceName(source.as_str().into()).kafka_partition()
                {
                    acknowledged.set(topic, partition, *next_pos);
                }
            }
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.offsets += usize::from(!offsets.is_empty());
            let room = MOST.saturating_sub(seen.ahead.len());
            seen.ahead.extend(ahead(&offsets, &positions).into_iter().take(room));
        };
        let look_at_memory = move |seen: &Mutex<Seen>| {
            for (name, pid) in living.all() {
                let Some(bytes) = resident_bytes(pid) else { continue };
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                let peak = seen.peak_bytes.entry(name).or_default();
                *peak = bytes.max(*peak);
            }
        };
        let threads = vec![
            thread("chaos-offsets", Box::new(look_at_offsets))?,
            thread("chaos-memory", Box::new(look_at_memory))?,
        ];
        Ok(Self { ended, seen, threads })
    }

    /// What was seen up to now.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks no more; what was seen.
    #[must_use]
    pub fn end(mut self) -> Seen {
        self.stop();
        self.seen()
    }

    fn stop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // A panic in it has been printed; fewer samples tell of it.
            let _ = thread.join();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop();
    }
}
