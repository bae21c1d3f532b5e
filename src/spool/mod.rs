//! The spool: the folder `uploads.spool_dir`, which `process` nodes and the store may share.
//!
//! | file | content |
//! |---|---|
//! | `store-<database id>` | made by the store that uses this folder; who finds it there shares it |
//! | `chunks/<node>-<id>.parquet` | the rows of one part of a write, until the store has answered it |
//!
//! Nothing in `chunks` is ever the only copy: a file that is gone is made again when its source is
//! read again.

mod chunks;
mod shared;

pub use chunks::{Chunk, ChunkSpool};
pub use shared::SharedSpool;

use std::{
    io,
    path::{Path, PathBuf},
};

/// What the name of a store's mark begins with.
const MARK: &str = "store-";

/// The folder of chunks in a spool.
#[must_use]
pub fn chunk_folder(spool: &Path) -> PathBuf {
    spool.join("chunks")
}

/// Whether a name that came from elsewhere is that of a file in a folder, and nothing else.
#[must_use]
pub fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && !name.starts_with('.') && name.chars().all(plain)
}

/// Leaves the mark of a store in the spool, by which nodes see that they share it, and takes away
/// those that it left under another database id. `owner` tells them from the marks of other stores.
///
/// # Errors
/// The system's word; rows then travel over the queue.
pub fn mark(spool: &Path, database_id: &str, owner: &str) -> io::Result<()> {
    std::fs::create_dir_all(spool)?;
    let name = format!("{MARK}{database_id}");
    for entry in std::fs::read_dir(spool)? {
        let entry = entry?;
        let other = entry.file_name();
        let is_mark = other.to_str().is_some_and(|other| other.starts_with(MARK) && other != name);
        // A mark that cannot be read is not known to be ours.
        if is_mark && std::fs::read_to_string(entry.path()).is_ok_and(|text| text == owner) {
            std::fs::remove_file(entry.path())?;
        }
    }
    std::fs::write(spool.join(name), owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_name_of_a_file_is_plain() {
        for name in ["a.parquet", "0f-1_2.parquet"] {
            assert!(is_plain(name), "{name}");
        }
        for name in ["", ".", "..", ".hidden", "a/b", "../a", "a\\b", "a\0b", "a'b", "ä", "a*"] {
            assert!(!is_plain(name), "{name}");
        }
    }

    #[test]
    fn a_store_takes_away_only_its_own_older_marks() {
        let dir = tempfile::tempdir().unwrap();
        mark(dir.path(), "a", "one").unwrap();
        mark(dir.path(), "b", "two").unwrap();
        mark(dir.path(), "c", "one").unwrap();
        mark(dir.path(), "c", "one").unwrap();
        let mut names: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["store-b", "store-c"]);
    }
}
