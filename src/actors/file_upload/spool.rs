//! Files on the disk: what comes in, and what was accepted and is not processed yet.
//!
//! Below `uploads.spool_dir` each node has a folder of its own, whose name says nothing about
//! clients: `<hash of the node's name>/incoming` and `…/files`. Names of files are the server's.

use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use uuid::Uuid;

/// See the module.
#[derive(Debug)]
pub struct Spool {
    incoming: PathBuf,
    files: PathBuf,
    limit: u64,
    /// Bytes of all files, those announced and not received yet included.
    used: Arc<AtomicU64>,
}

impl Spool {
    /// Opens a node's folder; what was coming in when the node ended is removed.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(dir: &Path, node: &str, limit: u64) -> io::Result<Self> {
        let hash = format!("{:x}", Sha256::digest(node));
        let own = dir.join(&hash[..16]);
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
        Ok(Self { incoming, files, limit, used: Arc::new(AtomicU64::new(used)) })
    }

    /// Bytes of all files.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Room for a file of so many bytes, and its place while it comes in; `None`: the quota is
    /// reached.
    #[must_use]
    pub fn reserve(&self, bytes: u64) -> Option<Incoming> {
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
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
        let to = self.file(upload_id);
        let replaced = fs::metadata(&to).map_or(0, |meta| meta.len());
        fs::rename(&from, &to)?;
        // From here on its bytes are those of an accepted file.
        incoming.path = None;
        self.used.fetch_sub(replaced, Ordering::Relaxed);
        File::open(&self.files)?.sync_all()
    }

    /// Removes an accepted file, if it is there. Blocks.
    ///
    /// # Errors
    /// When it is there and cannot be.
    pub fn remove(&self, upload_id: &str) -> io::Result<()> {
        let path = self.file(upload_id);
        let bytes = match fs::metadata(&path) {
            Ok(meta) => meta.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        fs::remove_file(&path)?;
        self.used.fetch_sub(bytes, Ordering::Relaxed);
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
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, file = %path.display(), "a part of a file stays in the spool");
        }
    }
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
        let again = Spool::open(dir.path(), "../n", 10).unwrap();
        assert_eq!((again.used(), again.list().unwrap()[0].0.as_str()), (6, "a"));
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
        let again = Spool::open(dir.path(), "n", 10).unwrap();
        assert!(!path.exists());
        assert_eq!(again.used(), 0);
    }
}
