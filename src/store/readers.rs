//! Connections for readers, which the writer can take back at any moment.
//!
//! A file can be opened again only when no connection to it is left in the process. So a reader gets
//! its connection for one question only, and gives it back; the writer interrupts those that are
//! still at it and waits for them.

use duckdb::{Connection, InterruptHandle};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, RwLock, TryLockError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// How often readers are interrupted while the writer waits for them.
const INTERRUPT_EVERY: Duration = Duration::from_millis(2);

/// The open database as readers see it. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Readers(Arc<Gate>);

#[derive(Debug, Default)]
struct Gate {
    /// Held for reading as long as a question runs, for writing while the database is closed.
    source: RwLock<Option<Mutex<Connection>>>,
    running: Mutex<Running>,
    /// DuckDB's, in bytes.
    memory_limit: AtomicUsize,
}

#[derive(Default)]
struct Running {
    last: u64,
    handles: HashMap<u64, Arc<InterruptHandle>>,
    /// Whether the database is being closed: a question that starts now is interrupted, too.
    closing: bool,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { handles, closing, .. } = self;
        f.debug_struct("Running")
            .field("questions", &handles.len())
            .field("closing", closing)
            .finish()
    }
}

/// The database is closed just now, or has no connection to give.
#[derive(Debug, thiserror::Error)]
#[error("the database is being opened again; ask again in a moment")]
pub struct Closed;

impl Readers {
    /// Runs `work` on a connection of its own.
    ///
    /// # Errors
    /// [`Closed`].
    pub fn with<T>(&self, work: impl FnOnce(&Connection) -> T) -> Result<T, Closed> {
        let source = self.0.source.read().unwrap_or_else(PoisonError::into_inner);
        let connection = match &*source {
            Some(first) => {
                let first = first.lock().unwrap_or_else(PoisonError::into_inner);
                first.try_clone().map_err(|_| Closed)?
            }
            None => return Err(Closed),
        };
        let number = {
            let mut running = self.running();
            if running.closing {
                return Err(Closed);
            }
            running.last += 1;
            let number = running.last;
            running.handles.insert(number, connection.interrupt_handle());
            number
        };
        // Also when `work` panics, or the writer would interrupt a connection that is gone.
        let _done = Done { gate: &self.0, number };
        Ok(work(&connection))
    }

    /// DuckDB's memory limit, in bytes.
    #[must_use]
    pub fn memory_limit(&self) -> usize {
        self.0.memory_limit.load(Ordering::Relaxed)
    }

    /// Lets readers in.
    pub(super) fn open(&self, connection: Connection, memory_limit: usize) {
        self.0.memory_limit.store(memory_limit, Ordering::Relaxed);
        *self.0.source.write().unwrap_or_else(PoisonError::into_inner) =
            Some(Mutex::new(connection));
        self.running().closing = false;
    }

    /// Interrupts every question and waits until no connection is left.
    pub(super) fn close(&self) {
        loop {
            {
                let mut running = self.running();
                running.closing = true;
                running.handles.values().for_each(|handle| handle.interrupt());
            }
            let mut source = match self.0.source.try_write() {
                Ok(source) => source,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                // Interrupted again and again: it has no effect on a question just before it runs.
                Err(TryLockError::WouldBlock) => {
                    std::thread::sleep(INTERRUPT_EVERY);
                    continue;
                }
            };
            *source = None;
            return;
        }
    }

    /// A poisoned lock only says that a holder panicked between two map operations.
    fn running(&self) -> std::sync::MutexGuard<'_, Running> {
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Done<'a> {
    gate: &'a Gate,
    number: u64,
}

impl Drop for Done<'_> {
    fn drop(&mut self) {
        let mut running = self.gate.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.handles.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_interrupts_the_questions_and_waits_for_them() {
        let readers = Readers::default();
        assert!(readers.with(|_| ()).is_err());
        readers.open(Connection::open_in_memory().unwrap(), 1 << 30);
        let (started, has_started) = std::sync::mpsc::channel();
        let asking = {
            let readers = readers.clone();
            std::thread::spawn(move || {
                readers.with(|connection| {
                    started.send(()).unwrap();
                    let endless = "SELECT count(*) FROM range(10000000000) a, range(1000000) b";
                    connection.query_row(endless, [], |row| row.get::<_, i64>(0)).is_err()
                })
            })
        };
        has_started.recv().unwrap();
        readers.close();
        assert!(asking.join().unwrap().unwrap(), "it was interrupted");
        assert!(readers.with(|_| ()).is_err());
        readers.open(Connection::open_in_memory().unwrap(), 1 << 30);
        assert!(readers.with(|_| ()).is_ok());
    }
}
