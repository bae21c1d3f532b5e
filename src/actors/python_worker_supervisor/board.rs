//! Which script version every stream runs on this node, and what is known of it. Outlives the
//! actors: the TransformDeployer writes it, the PythonWorkerSupervisor goes by it.

use super::{assemble::Outcome, status::lock};
use crate::{protocol::script_history::ScriptState, python::Script};
use arrow::array::RecordBatch;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

/// For so long after it took over, a version is held against the one before for every row on which
/// it fails; afterwards only when it fails on many.
pub const PROBATION: Duration = Duration::from_secs(60);

/// Rows of a batch that are kept for trials.
const TRIAL_ROWS: usize = 10_000;

/// What a stream runs.
#[derive(Debug)]
pub struct Current {
    /// As the store has it.
    pub state: ScriptState,
    /// The active version, with the parameters that count.
    pub script: Arc<Script>,
    /// The versions before it, should it turn out bad; the newest first.
    pub fallbacks: Vec<Arc<Script>>,
    /// Since when this node runs it.
    pub since: Instant,
    /// When its file was saved, if it came from one that was saved just before.
    pub saved_at: Option<SystemTime>,
}

impl Current {
    /// Whether it is new.
    #[must_use]
    pub fn is_on_probation(&self) -> bool {
        self.since.elapsed() < PROBATION
    }
}

/// The last real batch of a stream, for trials.
#[derive(Debug, Clone)]
pub struct LastBatch {
    /// What the script was given.
    pub events: RecordBatch,
    /// What came out.
    pub outcome: Outcome,
    /// By which version.
    pub sha256: String,
    /// How long it took in a process that was there; `None`: one had to be started for it.
    pub took: Option<Duration>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct ScriptBoard {
    current: Mutex<HashMap<usize, Arc<Current>>>,
    last: Mutex<HashMap<usize, Arc<LastBatch>>>,
    /// Streams whose version has had no batch yet.
    fresh: Mutex<HashMap<usize, String>>,
}

impl ScriptBoard {
    /// What a stream runs; `None`: that is not known yet.
    #[must_use]
    pub fn current(&self, stream: usize) -> Option<Arc<Current>> {
        lock(&self.current).get(&stream).cloned()
    }

    /// A stream runs something else, unless what is known is newer. Whether it was taken.
    pub fn show(&self, stream: usize, next: Current) -> bool {
        let mut current = lock(&self.current);
        let known = current.get(&stream);
        if known.is_some_and(|known| known.state.seq > next.state.seq) {
            return false;
        }
        let is_other = known.is_none_or(|known| known.script.sha256 != next.script.sha256);
        let sha256 = next.script.sha256.clone();
        current.insert(stream, Arc::new(next));
        // Two locks are never held at once: others take them in another order.
        drop(current);
        if is_other {
            lock(&self.fresh).insert(stream, sha256);
        }
        true
    }

    /// A batch went through a version; when it is the first one since the version's file was saved,
    /// how long that took.
    pub fn first_batch(&self, stream: usize, sha256: &str) -> Option<Duration> {
        let mut fresh = lock(&self.fresh);
        if fresh.get(&stream).is_none_or(|version| version != sha256) {
            return None;
        }
        fresh.remove(&stream);
        drop(fresh);
        let saved_at = self.current(stream)?.saved_at?;
        // A clock that was set back tells nothing.
        saved_at.elapsed().ok()
    }

    /// Keeps a batch and what came out of it for the next trial.
    pub fn keep(&self, stream: usize, mut batch: LastBatch) {
        if batch.events.num_rows() > TRIAL_ROWS {
            batch.cut(TRIAL_ROWS);
        }
        lock(&self.last).insert(stream, Arc::new(batch));
    }

    /// The last batch that was kept.
    #[must_use]
    pub fn last(&self, stream: usize) -> Option<Arc<LastBatch>> {
        lock(&self.last).get(&stream).cloned()
    }
}

impl LastBatch {
    /// Only the first rows; the time that they took is their share.
    fn cut(&mut self, rows: usize) {
        let share = rows as f64 / self.events.num_rows() as f64;
        self.took = self.took.map(|took| took.mul_f64(share));
        self.events = self.events.slice(0, rows);
        let end = self.outcome.rows_before(rows as u32);
        self.outcome.rows = self.outcome.rows.slice(0, end);
        self.outcome.rejected.retain(|row, _| (*row as usize) < rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn current(seq: i64, text: &str, saved_at: Option<SystemTime>) -> Current {
        Current {
            state: ScriptState { seq, ..ScriptState::default() },
            script: Arc::new(Script::new("s", Path::new("s.py"), text)),
            fallbacks: Vec::new(),
            since: Instant::now(),
            saved_at,
        }
    }

    #[test]
    fn what_is_newer_stays() {
        let board = ScriptBoard::default();
        assert!(board.current(0).is_none());
        assert!(board.show(0, current(2, "b", None)));
        assert!(!board.show(0, current(1, "a", None)), "it was overtaken");
        assert_eq!(&*board.current(0).unwrap().script.source, "b");
        assert!(board.show(1, current(1, "a", None)), "each stream for itself");
    }

    #[test]
    fn the_first_batch_after_a_save_is_told_once() {
        let board = ScriptBoard::default();
        let (old, new) = (current(1, "a", None), current(2, "b", Some(SystemTime::now())));
        let (a, b) = (old.script.sha256.clone(), new.script.sha256.clone());
        board.show(0, old);
        assert_eq!(board.first_batch(0, &a), None, "nobody saved it just now");
        board.show(0, new);
        assert_eq!(board.first_batch(0, &a), None, "an older batch");
        assert!(board.first_batch(0, &b).is_some());
        assert_eq!(board.first_batch(0, &b), None);
    }

    #[test]
    fn a_long_batch_is_cut_with_what_came_out_of_it() {
        use super::super::diff::tests::outcome;
        use arrow::array::{ArrayRef, UInt32Array};
        let n = 2 * TRIAL_ROWS as u32;
        let numbers: ArrayRef = Arc::new(UInt32Array::from_iter_values(0..n));
        let rows: Vec<_> =
            (0..n).flat_map(|row| [(row, "a", None, 0), (row, "b", None, 0)]).collect();
        let mut made = outcome(&rows, 0);
        for row in [3, n - 1] {
            made.rejected.insert(row, ("exception".into(), String::new()));
        }
        let board = ScriptBoard::default();
        let events = RecordBatch::try_from_iter([("_row", numbers)]).unwrap();
        let took = Some(Duration::from_secs(2));
        board.keep(0, LastBatch { events, outcome: made, sha256: "v".into(), took });
        let kept = board.last(0).unwrap();
        assert_eq!(
            (kept.events.num_rows(), kept.outcome.rows.num_rows()),
            (TRIAL_ROWS, 2 * TRIAL_ROWS)
        );
        assert_eq!(kept.outcome.failed_rows().collect::<Vec<_>>(), [3]);
        assert_eq!(kept.took, Some(Duration::from_secs(1)));
        assert!(board.last(1).is_none());
    }
}
