//! Whether this node shares its spool with the store.

use super::{ChunkSpool, MARK, is_plain};
use crate::{online::marks, queue::Keys};
use redis::aio::ConnectionManager;
use std::{
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long what was seen is believed.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// After the store could not read a file, no further one is written for so long.
const DOUBT_FOR: Duration = Duration::from_secs(60);

/// The spool of a `process` node. Outlives the instances of the
/// [`RedisQueue`](crate::actors::RedisQueue).
#[derive(Debug)]
pub struct SharedSpool {
    folder: PathBuf,
    chunks: ChunkSpool,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// When it was looked last, and whether the store's mark was there.
    looked: Option<(Instant, bool)>,
    doubted: Option<Instant>,
}

impl SharedSpool {
    /// The spool in `folder`, without what an earlier life of this node has left of its chunks.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn new(folder: &Path, node: &str) -> io::Result<Self> {
        let chunks = ChunkSpool::new(folder, node)?;
        Ok(Self { folder: folder.to_owned(), chunks, seen: Mutex::default() })
    }

    /// Where chunks are written.
    #[must_use]
    pub fn chunks(&self) -> &ChunkSpool {
        &self.chunks
    }

    /// Whether the store reads what is written here. When that cannot be known, it does not.
    pub async fn is_shared(&self, redis: &mut ConnectionManager, keys: &Keys) -> bool {
        if let Some(known) = self.known() {
            return known;
        }
        let shared = match marks::database(redis, keys).await {
            Ok(Some(id)) if is_plain(&id) => {
                let mark = self.folder.join(format!("{MARK}{id}"));
                tokio::fs::try_exists(mark).await.unwrap_or(false)
            }
            Ok(_) => false,
            Err(error) => {
                tracing::debug!(%error, "whose the spool is cannot be known");
                false
            }
        };
        self.lock().looked = Some((Instant::now(), shared));
        shared
    }

    /// The store could not read a chunk: for a while rows travel over the queue, so that the source
    /// gets on whatever is wrong with the folder.
    pub fn doubt(&self) {
        self.lock().doubted = Some(Instant::now());
    }

    fn known(&self) -> Option<bool> {
        let seen = self.lock();
        if seen.doubted.is_some_and(|since| since.elapsed() < DOUBT_FOR) {
            return Some(false);
        }
        seen.looked.filter(|(at, _)| at.elapsed() < LOOK_EVERY).map(|(_, shared)| shared)
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        // A panicking holder leaves nothing half-changed.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_is_believed_for_a_while_and_doubt_goes_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let spool = SharedSpool::new(dir.path(), "n").unwrap();
        assert_eq!(spool.known(), None);
        spool.lock().looked = Some((Instant::now(), true));
        assert_eq!(spool.known(), Some(true));
        spool.doubt();
        assert_eq!(spool.known(), Some(false));
    }
}
