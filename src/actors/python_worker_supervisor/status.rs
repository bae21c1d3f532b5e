//! What the status page and the metrics say of the workers.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

/// The workers of this node, for the status page.
#[derive(Debug, Clone, serde::Serialize)]
pub struct WorkerStatus {
    /// Its stream.
    pub stream: String,
    /// The script's version.
    pub script_sha256: String,
    /// The process, once it runs.
    pub pid: Option<u32>,
    /// Whether it has a batch.
    pub busy: bool,
}

/// Shared with the status page: workers by number, and streams that wait for their script.
#[derive(Debug, Default)]
pub struct PythonStatus {
    /// Live workers.
    pub workers: Mutex<HashMap<u64, WorkerStatus>>,
    /// Stream → why its script does not load.
    pub broken: Mutex<HashMap<String, String>>,
}

/// A poisoned lock only says that a holder panicked between two map operations.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reasons that scripts give themselves would make a label without bounds.
pub(super) fn label_of(reason: &str) -> &str {
    const KNOWN: [&str; 6] =
        ["exception", "contract", "timeout", "out_of_memory", "worker_protocol", "worker_signal"];
    let head = reason.split(':').next().unwrap_or_default();
    let decode = crate::decode::reasons::ALL.contains(&head);
    if decode || KNOWN.contains(&head) { head } else { "rejected_by_script" }
}
