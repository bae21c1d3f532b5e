//! Files on the disk: what comes in, and what was accepted and is not processed yet.
//!
//! Below `uploads.spool_dir` each node has a folder of its own, whose name says nothing about
//! clients: `<hash of the node's name>-<n>/incoming` and `…/files`. Names of files are the server's. The
//! folder has an id, which stands for it in the store: whoever has locked the folder owns its uploads.
//! Two nodes of one name are not taken for each other, and a node that has lost its folder is not what it
//! was.

use crate::telemetry::catalogue::SPOOL_BYTES;
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use uuid::Uuid;

/// Nodes of one name that share a spool, at most.
const NAMESAKES: u32 = 64;

/// See the module.
#[derive(Debug)]
pub struct Spool {
    incoming: PathBuf,
    files: PathBuf,
    limit: u64,
    /// Bytes of all files, those announced and not received yet included.
    used: Arc<AtomicU64>,
    /// What it is called in the store.
    owner: String,
    /// Its id, locked as long as the node lives.
    _id: File,
    /// Held while files change places.
    moving: Mutex<()>,
}

impl Spool {
    /// Opens a node's folder; what was coming in when the node ended is removed.
    ///
    /// # Errors
    /// When no folder can be made or read.
    pub fn open(dir: &Path, node: &str, limit: u64) -> io::Result<Self> {
        let hash = format!("{:x}", Sha256::digest(node));
        let (own, id, owner) = own_folder(dir, &hash[..16], node)?;
        let (incoming, files) = (own.join("incoming"), own.join("files"));
        for folder in [&incoming, &files] {
            fs::create_dir_all(folder)?;
        }
        for entry in fs::read_dir(&incoming)? {
            fs::remove_file(entry?.path())?;
        }
        let mut used = 0;
        for entry in fs::read_dir(&files)? {
            let entry = entry?;
            if entry.path().extension().is_some() {
                // What a reader made beside a file while the node lived.
                fs::remove_file(entry.path())?;
            } else {
                used += entry.metadata()?.len();
            }
        }
        let used = Arc::new(AtomicU64::new(used));
        show(&used);
        Ok(Self { incoming, files, limit, used, owner, _id: id, moving: Mutex::default() })
    }

    /// What it is called in the store: the node's name and the folder's id.
    #[must_use]
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// Bytes of all files.
    #[cfg(test)]
    fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Room for a file of so many bytes, and its place while it comes in; `None`: the quota is
    /// reached.
    #[must_use]
    pub fn reserve(&self, bytes: u64) -> Option<Incoming> {
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        show(&self.used);
        let path = self.incoming.join(format!("{}.part", Uuid::now_v7().simple()));
        Some(Incoming { path: Some(path), bytes, used: self.used.clone() })
    }

    /// The place of an accepted file.
    #[must_use]
    pub fn file(&self, upload_id: &str) -> PathBuf {
        self.files.join(upload_id)
    }

    /// Moves a file that was received whole to its place and makes that durable. Blocks.
    ///
    /// # Errors
    /// When it cannot be; it is removed then.
    pub fn keep(&self, mut incoming: Incoming, upload_id: &str) -> io::Result<()> {
        let Some(from) = incoming.path.clone() else { return Ok(()) };
        File::open(&from)?.sync_all()?;
        let _moving = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        let to = self.file(upload_id);
        let replaced = fs::metadata(&to).map_or(0, |meta| meta.len());
        fs::rename(&from, &to)?;
        // From here on its bytes are those of an accepted file.
        incoming.path = None;
        self.used.fetch_sub(replaced, Ordering::Relaxed);
        show(&self.used);
        File::open(&self.files)?.sync_all()
    }

    /// Removes an accepted file, if it is there. Blocks.
    ///
    /// # Errors
    /// When it is there and cannot be.
    pub fn remove(&self, upload_id: &str) -> io::Result<()> {
        let _moving = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.file(upload_id);
        let bytes = match fs::metadata(&path) {
            Ok(meta) => meta.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        fs::remove_file(&path)?;
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        show(&self.used);
        Ok(())
    }

    /// Ids of the files that are there, with their ages. Blocks.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> io::Result<Vec<(String, std::time::Duration)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.files)? {
            let entry = entry?;
            if entry.path().extension().is_some() {
                continue;
            }
            let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
            found.push((entry.file_name().to_string_lossy().into_owned(), age));
        }
        Ok(found)
    }
}

/// A file that comes in; dropped, it is gone and its room is free.
#[derive(Debug)]
pub struct Incoming {
    path: Option<PathBuf>,
    bytes: u64,
    used: Arc<AtomicU64>,
}

impl Incoming {
    /// Where its bytes go.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(""))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let Some(path) = self.path.take() else { return };
        let (bytes, used) = (self.bytes, self.used.clone());
        let remove = move || {
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, file = %path.display(), "a part of a file stays in the spool");
            }
            used.fetch_sub(bytes, Ordering::Relaxed);
            show(&used);
        };
        // Removing a large file takes a disk its time.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

fn show(used: &AtomicU64) {
    metrics::gauge!(SPOOL_BYTES).set(used.load(Ordering::Relaxed) as f64);
}

/// The first folder of a node that no other uses, with its id, locked, and what it is called.
fn own_folder(dir: &Path, hash: &str, node: &str) -> io::Result<(PathBuf, File, String)> {
    for n in 0..NAMESAKES {
        let own = dir.join(format!("{hash}-{n}"));
        fs::create_dir_all(&own)?;
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).open(own.join("id"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => continue,
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let mut id = String::new();
        file.read_to_string(&mut id)?;
        if id.is_empty() {
            id = Uuid::new_v4().simple().to_string();
            file.write_all(id.as_bytes())?;
            file.sync_all()?;
        }
        return Ok((own, file, format!("{node}/{id}")));
    }
    let why = format!("{NAMESAKES} nodes that are named {node:?} use it: give each a `node.name`");
    Err(io::Error::other(why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quota_counts_what_is_announced_kept_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), "../n", 10).unwrap();
        let first = spool.reserve(6).unwrap();
        assert!(spool.reserve(5).is_none(), "announced bytes count");
        fs::write(first.path(), "123456").unwrap();
        spool.keep(first, "a").unwrap();
        assert_eq!((spool.used(), fs::read(spool.file("a")).unwrap().len()), (6, 6));
        let second = spool.reserve(4).unwrap();
        fs::write(second.path(), "12").unwrap();
        let path = second.path().to_owned();
        drop(second);
        assert!(!path.exists(), "what was given up is gone");
        assert_eq!(spool.used(), 6);
        let namesake = Spool::open(dir.path(), "../n", 10).unwrap();
        assert_eq!(namesake.used(), 0, "another node of that name has a folder of its own");
        assert_ne!(namesake.owner(), spool.owner());
        let owner = spool.owner().to_owned();
        drop(spool);
        let again = Spool::open(dir.path(), "../n", 10).unwrap();
        assert_eq!((again.used(), again.list().unwrap()[0].0.as_str()), (6, "a"));
        assert_eq!(again.owner(), owner);
        again.remove("a").unwrap();
        again.remove("a").unwrap();
        assert_eq!((again.used(), again.list().unwrap().len()), (0, 0));
    }

    #[test]
    fn what_was_coming_in_when_the_node_ended_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), "n", 10).unwrap();
        let part = spool.reserve(3).unwrap();
        fs::write(part.path(), "123").unwrap();
        let path = part.path().to_owned();
        std::mem::forget(part);
        drop(spool);
        let again = Spool::open(dir.path(), "n", 10).unwrap();
        assert!(!path.exists());
        assert_eq!(again.used(), 0);
    }
}
