//! What was sent: the generator's side of the books.

use crate::generate::{EventFile, EventId, EventMaker, Fate};
use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use uuid::Uuid;

/// Counts what was acknowledged, by the broker or by the node that took a file; with ids, if a
/// verdict is wanted at the end.
#[derive(Debug)]
pub struct Tally {
    acknowledged: AtomicU64,
    refused: AtomicU64,
    tasks: Vec<Option<Mutex<TaskTally>>>,
}

#[derive(Debug, Default)]
struct TaskTally {
    /// In the order of sequence numbers: the id, and how often it was taken.
    sent: Vec<(Uuid, u8)>,
}

/// What must be in the store once things are quiet.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Records that the broker acknowledged, and rows of files that were accepted.
    pub produced: u64,
    /// By id: rows of `features_table`.
    pub rows: BTreeMap<Uuid, u64>,
    /// By id: dead letters.
    pub dead: BTreeMap<Uuid, u64>,
    /// By reason: dead letters.
    pub dead_reasons: BTreeMap<&'static str, u64>,
    /// Records that the script filters.
    pub filtered: u64,
}

impl Tally {
    /// For so many tasks. Without `keep_ids` only totals are kept, and memory stays flat.
    #[must_use]
    pub fn new(tasks: usize, keep_ids: bool) -> Self {
        let task = || keep_ids.then(|| Mutex::new(TaskTally::default()));
        Self {
            acknowledged: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            tasks: (0..tasks).map(|_| task()).collect(),
        }
    }

    /// Records that the broker took, and rows of files that a node took.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Records and rows that were not taken.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// A record is about to be sent for the first time; sequence numbers come in order.
    pub(super) fn sending(&self, task: usize, id: EventId) {
        if let Some(Some(tally)) = self.tasks.get(task) {
            let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            tally.sent.push((id.uuid(), 0));
        }
    }

    /// The broker answered for a record.
    pub(super) fn answered(&self, task: usize, seq: usize, taken: bool) {
        if !taken {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
        if let Some(Some(tally)) = self.tasks.get(task) {
            let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, times)) = tally.sent.get_mut(seq) {
                *times += 1;
            }
        }
    }

    /// A node took a file; known only now, as what a file holds counts all at once.
    pub(super) fn file_taken(&self, task: usize, file: &EventFile) {
        self.acknowledged.fetch_add(file.rows(), Ordering::Relaxed);
        if let Some(Some(tally)) = self.tasks.get(task) {
            let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            tally.sent.extend(file.events.iter().map(|(id, times)| (id.uuid(), *times)));
        }
    }

    /// A node refused a file: none of its rows counts.
    pub(super) fn file_refused(&self, file: &EventFile) {
        self.refused.fetch_add(file.rows(), Ordering::Relaxed);
    }

    /// What must have become of everything that was acknowledged. Empty without ids.
    #[must_use]
    pub fn expected(&self, maker_of: impl Fn(usize) -> EventMaker) -> Expected {
        let mut expected = Expected { produced: self.acknowledged(), ..Expected::default() };
        for (task, tally) in self.tasks.iter().enumerate() {
            let Some(tally) = tally else { continue };
            let maker = maker_of(task);
            let tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            for (uuid, times) in tally.sent.iter().filter(|(_, times)| *times > 0) {
                let Some(id) = EventId::from_uuid(*uuid) else { continue };
                let times = u64::from(*times);
                match maker.fate(id) {
                    Fate::Good { rows } => {
                        expected.rows.insert(*uuid, times * u64::from(rows));
                    }
                    Fate::Filtered => expected.filtered += times,
                    Fate::Dead { reason } => {
                        expected.dead.insert(*uuid, times);
                        *expected.dead_reasons.entry(reason).or_default() += times;
                    }
                }
            }
        }
        expected
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::{Builtin, FileFormat, Mix};

    #[test]
    fn a_file_counts_once_it_is_taken() {
        let maker = EventMaker::new(Builtin::Clicks, 1, &Mix::default());
        let ids = (0..500).map(|seq| EventId::new(1_760_000_000_000, 1, 2, seq));
        let file = maker.file(FileFormat::Json, ids).unwrap();
        let tally = Tally::new(3, true);
        let expected = || tally.expected(|_| maker.clone());
        tally.file_refused(&file);
        assert_eq!((tally.acknowledged(), tally.refused()), (0, file.rows()));
        assert_eq!(expected(), Expected::default());
        tally.file_taken(2, &file);
        let expected = expected();
        assert_eq!(expected.produced, file.rows());
        let dead: u64 = expected.dead.values().sum();
        let kept = expected.rows.keys().map(|id| {
            let of = |(known, _): &&(EventId, u8)| known.uuid() == *id;
            u64::from(file.events.iter().find(of).unwrap().1)
        });
        assert_eq!(kept.sum::<u64>() + dead + expected.filtered, file.rows());
    }
}
