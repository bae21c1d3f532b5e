//! Which saved files are new versions.
//!
//! | the file's version | answer |
//! |---|---|
//! | was looked at before | nothing |
//! | is the one that runs | nothing |
//! | no version runs yet | it is the first: it takes over |
//! | at the start of a node: the stream has known it before, under this name | told, and left alone: it was refused, rolled back, or is older than what runs |
//! | else | it is tried |

use crate::python::Script;
use std::time::SystemTime;

/// What a file is to a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileIs {
    /// Nothing is to be done.
    Known,
    /// The first version of the stream.
    First,
    /// Left alone, and told.
    Earlier,
    /// To be tried.
    New,
}

/// What is known when a file is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Look<'a> {
    /// The file's version.
    pub sha256: &'a str,
    /// The version that was looked at last.
    pub seen: Option<&'a str>,
    /// The version that runs.
    pub active: Option<&'a str>,
    /// Whether the node has just started, and the stream's history has the version.
    pub was_before: bool,
}

/// Decides by the table of the module.
#[must_use]
pub fn decide(look: Look<'_>) -> FileIs {
    let Look { sha256, seen, active, was_before } = look;
    match active {
        None => FileIs::First,
        _ if seen == Some(sha256) || active == Some(sha256) => FileIs::Known,
        Some(_) if was_before => FileIs::Earlier,
        Some(_) => FileIs::New,
    }
}

/// When the newest of a script's files was saved.
#[must_use]
pub fn saved_at(script: &Script) -> Option<SystemTime> {
    let paths = script.modules.iter().map(|module| &module.path).chain([&script.path]);
    paths.filter_map(|path| std::fs::metadata(path).ok()?.modified().ok()).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_of_the_table() {
        let is = |seen, active, was_before| decide(Look { sha256: "a", seen, active, was_before });
        assert_eq!(is(Some("a"), Some("b"), false), FileIs::Known);
        assert_eq!(is(None, Some("a"), true), FileIs::Known);
        assert_eq!(is(None, None, false), FileIs::First);
        assert_eq!(is(None, Some("b"), true), FileIs::Earlier);
        assert_eq!(is(Some("c"), Some("b"), false), FileIs::New);
        assert_eq!(is(None, Some("b"), false), FileIs::New);
    }
}
