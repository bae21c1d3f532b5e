//! The note beside the database that says which entries are being applied.
//!
//! It outlives the process, not the machine: only a death of the store counts, so it is never
//! forced to the disk. The rule is [`crate::protocol::quarantine`].

use crate::protocol::quarantine::{Attempts, Handling};
use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// The note of one database.
#[derive(Debug)]
pub struct AttemptNote {
    file: File,
    attempts: Attempts,
}

/// The note's file.
#[must_use]
pub fn note_path(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(".applying");
    PathBuf::from(name)
}

impl AttemptNote {
    /// Reads what an earlier life left. A note that cannot be read is an empty one: it may have been
    /// cut off by the very death that it should tell of.
    ///
    /// # Errors
    /// The system's word.
    pub fn open(database: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(note_path(database))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let attempts: Attempts = serde_json::from_str(&text).unwrap_or_default();
        let mut note = Self { file, attempts: attempts.after_a_death() };
        note.write()?;
        Ok(note)
    }

    /// How an entry is to be applied.
    #[must_use]
    pub fn handling(&self, id: &str) -> Handling {
        self.attempts.handling(id)
    }

    /// Notes that these are applied from now on.
    ///
    /// # Errors
    /// The system's word.
    pub fn begin<'a>(&mut self, ids: impl IntoIterator<Item = &'a str>) -> io::Result<()> {
        self.attempts.begin(ids);
        self.write()
    }

    /// Notes that they are decided.
    ///
    /// # Errors
    /// The system's word.
    pub fn end(&mut self) -> io::Result<()> {
        self.attempts.end();
        self.write()
    }

    /// Notes that an entry was put aside.
    ///
    /// # Errors
    /// The system's word.
    pub fn forget(&mut self, id: &str) -> io::Result<()> {
        self.attempts.forget(id);
        self.write()
    }

    fn write(&mut self) -> io::Result<()> {
        if self.attempts.is_empty() {
            return self.file.set_len(0);
        }
        let text = serde_json::to_vec(&self.attempts)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&text)?;
        self.file.set_len(text.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_death_is_seen_by_the_next_life() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("x.duckdb");
        let mut first = AttemptNote::open(&database).unwrap();
        first.begin(["7-1"]).unwrap();
        drop(first);
        let mut second = AttemptNote::open(&database).unwrap();
        assert_eq!(second.handling("7-1"), Handling::Alone);
        second.begin(["7-1"]).unwrap();
        second.end().unwrap();
        drop(second);
        assert_eq!(AttemptNote::open(&database).unwrap().handling("7-1"), Handling::Grouped);
        std::fs::write(note_path(&database), "{\"crash").unwrap();
        assert_eq!(AttemptNote::open(&database).unwrap().handling("7-1"), Handling::Grouped);
    }
}
