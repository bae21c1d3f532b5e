//! What the status page and the metrics say of the workers.

use crate::{messages::SCRIPT_FAILURES, python::ProcessHandle, telemetry::catalogue as m};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
};

/// The workers of this node, for the status page.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct WorkerStatus {
    /// Its stream.
    pub stream: String,
    /// The script's version.
    pub script_sha256: String,
    /// The process, once it runs; told as its id.
    #[serde(rename = "pid")]
    pub process: Option<ProcessHandle>,
    /// Whether it has a batch.
    pub busy: bool,
    /// Batches that its process has had.
    pub batches: u64,
    /// Seconds that it had batches.
    pub busy_s: f64,
    /// Resident memory after its last batch, in bytes.
    pub resident_bytes: u64,
    /// Seconds from the start of its process until its script was loaded.
    pub start_s: Option<f64>,
}

/// What a stream runs, for the status page.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct ScriptStatus {
    /// Name of the script.
    pub name: String,
    /// The active version; `None`: the store has not told yet.
    pub version: Option<String>,
    /// The version to fall back to.
    pub fallback: Option<String>,
    /// Parameters that count now.
    pub params: serde_json::Map<String, serde_json::Value>,
    /// Why the stream's events wait.
    pub paused: Option<String>,
    /// The version that is on trial.
    pub trying: Option<String>,
    /// What happened to it last on this node.
    pub last: Option<ScriptEventStatus>,
    /// Seconds from saving the file of the active version to the first batch under it.
    pub swap_s: Option<f64>,
}

/// One event of a script's history, for the status page.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ScriptEventStatus {
    /// `deployed`, `refused`, `rolled_back`, …
    pub action: &'static str,
    /// The version that it is about.
    pub version: String,
    /// Why.
    pub reason: String,
    /// When.
    pub at: chrono::DateTime<chrono::Utc>,
}

/// Shared with the status page: workers by number, and streams that wait for their script.
#[derive(Debug, Default)]
pub struct PythonStatus {
    /// Live workers.
    pub workers: Mutex<HashMap<u64, WorkerStatus>>,
    /// Stream → why it waits: its script does not load, or is suspected.
    pub broken: Mutex<HashMap<String, String>>,
    /// Stream → the version that is suspected.
    pub suspected: Mutex<HashMap<String, String>>,
    /// Stream → its script.
    pub scripts: Mutex<BTreeMap<String, ScriptStatus>>,
}

impl PythonStatus {
    /// Tells the metric what the workers' memory is.
    pub(super) fn show_memory(&self) {
        let bytes: u64 = lock(&self.workers).values().map(|worker| worker.resident_bytes).sum();
        metrics::gauge!(m::WORKER_RSS).set(bytes as f64);
    }

    /// The processes that live now, each with the stream that it works for.
    #[must_use]
    pub fn processes(&self) -> Vec<(ProcessHandle, String)> {
        let workers = lock(&self.workers);
        let known = workers.values().filter_map(|w| Some((w.process.clone()?, w.stream.clone())));
        known.filter(|(process, _)| process.is_alive()).collect()
    }

    /// Whether an operator holds a stream.
    #[must_use]
    pub fn is_paused(&self, stream: &str) -> bool {
        lock(&self.scripts).get(stream).is_some_and(|script| script.paused.is_some())
    }

    /// The version of a stream's script that is suspected, if one is.
    #[must_use]
    pub fn suspected(&self, stream: &str) -> Option<String> {
        lock(&self.suspected).get(stream).cloned()
    }
}

/// A poisoned lock only says that a holder panicked between two map operations.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a reason says that the script failed on a row, rather than rejected it.
pub(super) fn is_failure(reason: &str) -> bool {
    SCRIPT_FAILURES.contains(&reason.split(':').next().unwrap_or_default())
}
