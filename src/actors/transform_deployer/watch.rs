//! When to look at the files of scripts: at once when the system says that one was written, and now
//! and then in any case, because not every file system says so.

use notify_debouncer_full::{
    DebounceEventResult, Debouncer, RecommendedCache, new_debouncer,
    notify::{RecommendedWatcher, RecursiveMode},
};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::sync::Notify;

/// A file is looked at when nothing was written for so long: editors write in several steps.
const QUIET: Duration = Duration::from_millis(50);

/// Watches a folder as long as it lives.
pub struct Watch {
    changed: Arc<Notify>,
    _watcher: Option<Debouncer<RecommendedWatcher, RecommendedCache>>,
}

impl Watch {
    /// Watches a folder with all that is in it; where that cannot be done, it says so and never wakes
    /// anybody.
    #[must_use]
    pub fn start(folder: &Path) -> Self {
        let changed = Arc::new(Notify::new());
        let tell = changed.clone();
        let started = new_debouncer(QUIET, None, move |result: DebounceEventResult| match result {
            Ok(events) if events.iter().all(|event| event.kind.is_access()) => {}
            // Errors too: it may have missed something.
            _ => tell.notify_one(),
        })
        .and_then(|mut watcher| {
            watcher.watch(folder, RecursiveMode::Recursive)?;
            Ok(watcher)
        });
        let watcher = started.inspect_err(|error| {
            tracing::warn!(
                %error,
                folder = %folder.display(),
                "the folder of the scripts cannot be watched; it is looked at every second instead"
            );
        });
        Self { changed, _watcher: watcher.ok() }
    }

    /// Waits until something was written.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_is_written_or_renamed_wakes_and_one_that_is_read_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let watch = Watch::start(dir.path());
        let soon = |seconds| tokio::time::timeout(Duration::from_secs(seconds), watch.changed());
        std::fs::write(dir.path().join("new~"), "x").unwrap();
        soon(10).await.unwrap();
        std::fs::rename(dir.path().join("new~"), dir.path().join("script.py")).unwrap();
        soon(10).await.unwrap();
        std::fs::read(dir.path().join("script.py")).unwrap();
        assert!(soon(1).await.is_err(), "nothing was written");
    }

    #[tokio::test]
    async fn a_folder_that_is_not_there_is_not_watched() {
        let dir = tempfile::tempdir().unwrap();
        let watch = Watch::start(&dir.path().join("absent"));
        let woken = tokio::time::timeout(Duration::from_millis(200), watch.changed()).await;
        assert!(woken.is_err());
    }
}
