//! The object `ctx` that scripts are given.

use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::wire::{Frame, Kind, LogLine, Rejected};
use super::worker::Channel;

/// Longest detail of a rejected row, in bytes. Longer ones lose their middle: a traceback says the
/// most at its ends.
const MAX_DETAIL_BYTES: usize = 4096;

/// What a script can tell the node, and what it was configured with.
#[pyclass(frozen, module = "millstream", name = "Context")]
pub(super) struct Context {
    /// The script's parameters from the configuration.
    #[pyo3(get)]
    params: Py<PyDict>,
    batch: Mutex<Verdicts>,
    channel: Arc<Channel>,
}

/// What was decided about the events of the current batch.
#[derive(Default)]
struct Verdicts {
    /// By `_row`: whether it is rejected. Its length is the batch's.
    dropped: Vec<bool>,
    rejected: Vec<Rejected>,
}

impl Context {
    pub fn new(params: Py<PyDict>, channel: Arc<Channel>) -> Self {
        Self { params, batch: Mutex::default(), channel }
    }

    /// Starts a batch of `n_in` events, none of them rejected.
    pub fn begin(&self, n_in: usize) {
        *self.verdicts() = Verdicts { dropped: vec![false; n_in], rejected: Vec::new() };
    }

    /// Ends the batch: which rows are rejected (by `_row`), and why (sorted by row).
    pub fn end(&self) -> (Vec<bool>, Vec<Rejected>) {
        let Verdicts { dropped, mut rejected } = std::mem::take(&mut *self.verdicts());
        rejected.sort_by_key(|rejected| rejected.row);
        (dropped, rejected)
    }

    /// Rejects a row; only the first reason of a row counts. False when there is no such row.
    pub fn reject_row(&self, row: usize, reason: &str, detail: &str) -> bool {
        let mut verdicts = self.verdicts();
        match verdicts.dropped.get_mut(row) {
            None => return false,
            Some(true) => return true,
            Some(dropped) => *dropped = true,
        }
        // Row counts are u32 from the start (`_row: UInt32`).
        verdicts.rejected.push(Rejected {
            row: row as u32,
            reason: reason.to_owned(),
            detail: shorten(detail),
        });
        true
    }

    /// Whether a row was rejected.
    pub fn is_rejected(&self, row: usize) -> bool {
        self.verdicts().dropped.get(row).copied().unwrap_or(false)
    }

    fn verdicts(&self) -> std::sync::MutexGuard<'_, Verdicts> {
        // Nothing panics while the lock is held in a way that leaves half a verdict behind.
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Context {
    /// reject(row, reason, detail="")
    ///
    /// Makes a dead letter of one event, named by its `_row`; output rows for it are dropped.
    /// `reason` becomes a label: a short word of a small set, with the particulars in `detail`.
    #[pyo3(signature = (row, reason, detail = ""))]
    fn reject(&self, row: i64, reason: &str, detail: &str) -> PyResult<()> {
        let known = usize::try_from(row).is_ok_and(|row| self.reject_row(row, reason, detail));
        if known {
            Ok(())
        } else {
            Err(PyValueError::new_err(format!("no event of this batch has the _row {row}")))
        }
    }

    /// log(message, level="info", **fields)
    ///
    /// Writes a line to the node's log, under the names of the script and the worker.
    #[pyo3(signature = (message, level = "info", **fields))]
    fn log(
        &self,
        py: Python<'_>,
        message: &Bound<'_, PyAny>,
        level: &str,
        fields: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<()> {
        let mut message = message.str()?.to_string_lossy().into_owned();
        for (name, value) in fields.into_iter().flat_map(|fields| fields.iter()) {
            message.push_str(&format!(" {name}={value}"));
        }
        let line = LogLine { level: level.to_owned(), message: shorten(&message) };
        if let Ok(frame) = Frame::new(Kind::Log, &line) {
            // A lost log line must not fail a batch; a lost parent ends the worker elsewhere.
            let _ = py.detach(|| self.channel.send(&frame));
        }
        Ok(())
    }

    fn __repr__(&self) -> String {
        "<millstream context>".to_owned()
    }
}

fn shorten(text: &str) -> String {
    if text.len() <= MAX_DETAIL_BYTES {
        return text.to_owned();
    }
    // The end of a traceback names the exception: it gets the larger part.
    let boundary = |from: usize| {
        (from..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len())
    };
    let head = boundary(MAX_DETAIL_BYTES / 4);
    let tail = boundary(text.len() - MAX_DETAIL_BYTES / 4 * 3);
    format!("{}\n[… {} bytes left out …]\n{}", &text[..head], tail - head, &text[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_details_keep_their_ends() {
        let text = format!("first{}last", "ä".repeat(10_000));
        let short = shorten(&text);
        assert!(short.len() < MAX_DETAIL_BYTES + 64);
        assert!(
            short.starts_with("first") && short.ends_with("last") && short.contains("left out")
        );
        assert_eq!(shorten("short"), "short");
    }
}
