//! One process a database: a lock file of our own beside it.
//!
//! DuckDB's own lock is lost as soon as anything in the owning process opens and closes the file,
//! so a second store would be let in. `flock` belongs to our open file until the process ends.

use super::StoreError;
use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// Held as long as the store lives.
#[derive(Debug)]
pub struct StoreLock {
    _file: File,
}

/// The lock file of a database.
#[must_use]
pub fn lock_path(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
}

impl StoreLock {
    /// Takes the lock of `database` and notes who holds it.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process holds it.
    pub fn take(database: &Path) -> Result<Self, StoreError> {
        let open_error = |e: std::io::Error| StoreError::Open {
            file: database.display().to_string(),
            reason: format!("lock file: {e}"),
        };
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(lock_path(database))
            .map_err(open_error)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Only for the message; an unreadable note is an empty one.
                let _ = file.read_to_string(&mut holder);
                return Err(StoreError::Locked {
                    file: database.display().to_string(),
                    holder: holder.trim().to_owned(),
                });
            }
            Err(TryLockError::Error(e)) => return Err(open_error(e)),
        }
        file.set_len(0).map_err(open_error)?;
        file.seek(SeekFrom::Start(0)).map_err(open_error)?;
        let host = crate::config::hostname();
        writeln!(file, "pid {} on {host}", std::process::id()).map_err(open_error)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_holder_is_refused_and_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("x.duckdb");
        let first = StoreLock::take(&database).unwrap();
        let refused = StoreLock::take(&database).unwrap_err().to_string();
        assert!(refused.contains(&format!("pid {}", std::process::id())), "{refused}");
        drop(first);
        StoreLock::take(&database).unwrap();
    }
}
