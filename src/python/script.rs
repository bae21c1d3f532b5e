//! A script as the parent hands it out, and the style in which it wants its events.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::helpers::{HelperModule, helpers_of};

/// One version of a script: its text and its helpers', where it came from and what it is given.
///
/// Workers run the text held here, never the file, so a version stays what it is while the file
/// is being edited.
#[derive(Debug, Clone)]
pub struct Script {
    /// The name of the Python module it becomes, and the name in logs and metrics.
    pub name: String,
    /// Shown in tracebacks, and `__file__` of the module; never read by a worker.
    pub path: PathBuf,
    /// The whole text.
    pub source: Arc<str>,
    /// The modules that it imports from its folder, sorted by name.
    pub modules: Vec<HelperModule>,
    /// The version: SHA-256 in lower-case hex of `source` or, with helpers, of all the texts.
    pub sha256: String,
    /// What the script finds in `ctx.params`.
    pub params: serde_json::Map<String, serde_json::Value>,
}

impl Script {
    /// Reads a script from a file, with its helpers from the same folder; its name is the file's
    /// name without `.py`, its parameters are empty.
    ///
    /// # Errors
    /// When a file cannot be read, is not UTF-8 or has no name, or the helpers are too large.
    pub fn read(path: &Path) -> io::Result<Self> {
        Self::read_with(path, &[])
    }

    /// The same with helpers from further folders.
    ///
    /// # Errors
    /// As for [`Self::read`].
    pub fn read_with(path: &Path, further: &[&Path]) -> io::Result<Self> {
        let name = path.file_stem().and_then(|stem| stem.to_str()).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "the script's file has no readable name")
        })?;
        let source = std::fs::read_to_string(path)?;
        let own = path.parent().unwrap_or(Path::new("."));
        let folders: Vec<&Path> = std::iter::once(own).chain(further.iter().copied()).collect();
        let modules = helpers_of(&folders, name, &source)?;
        Ok(Self::with_modules(name, path, &source, modules))
    }

    /// A script without helpers, from text that is already at hand.
    pub fn new(name: &str, path: &Path, source: &str) -> Self {
        Self::with_modules(name, path, source, Vec::new())
    }

    /// A script from texts that are already at hand (a stored version, one that was sent).
    pub fn with_modules(
        name: &str,
        path: &Path,
        source: &str,
        mut modules: Vec<HelperModule>,
    ) -> Self {
        modules.sort();
        let sha256 = version_of(source, &modules);
        Self {
            name: name.to_owned(),
            path: path.to_owned(),
            source: Arc::from(source),
            modules,
            sha256,
            params: serde_json::Map::new(),
        }
    }
}

/// Where a helper lies does not matter, only how it is called and what it says.
fn version_of(source: &str, modules: &[HelperModule]) -> String {
    let text = Sha256::digest(source.as_bytes());
    if modules.is_empty() {
        return hex(&text);
    }
    let mut all = Sha256::new_with_prefix(text);
    for HelperModule { name, source, is_package, .. } in modules {
        all.update(Sha256::digest(name.as_bytes()));
        all.update([u8::from(*is_package)]);
        all.update(Sha256::digest(source.as_bytes()));
    }
    hex(&all.finalize())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What a script's `transform` is called with, found from the annotation of its first parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Style {
    /// `polars.DataFrame`, one call a batch. Also the default without an annotation, where polars
    /// is installed.
    Polars,
    /// `pyarrow.RecordBatch`, one call a batch.
    RecordBatch,
    /// `pyarrow.Table`, one call a batch.
    Table,
    /// `pandas.DataFrame`, one call a batch.
    Pandas,
    /// `list[dict]`, one call a batch. The default without an annotation where polars is missing.
    Rows,
    /// `dict`, one call an event.
    Event,
}

impl Style {
    /// The name used in messages and metrics, and by the Python half of a worker.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Polars => "polars",
            Self::RecordBatch => "record_batch",
            Self::Table => "table",
            Self::Pandas => "pandas",
            Self::Rows => "rows",
            Self::Event => "event",
        }
    }
}

impl std::fmt::Display for Style {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_hash_of_the_text() {
        let script = Script::new("s", Path::new("s.py"), "abc");
        assert_eq!(
            script.sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn helpers_are_part_of_the_version_and_their_place_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        for folder in [&one, &two] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join("s.py"), "import h").unwrap();
            std::fs::write(folder.join("h.py"), "x = 1").unwrap();
        }
        let version = |folder: &Path| Script::read(&folder.join("s.py")).unwrap().sha256;
        let first = version(&one);
        assert_eq!(first, version(&two));
        assert_ne!(first, Script::new("s", Path::new("s.py"), "import h").sha256);
        std::fs::write(two.join("h.py"), "x = 2").unwrap();
        assert_ne!(first, version(&two));
    }

    #[test]
    fn a_file_gives_its_stem_as_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("click_features.py");
        std::fs::write(&path, "x = 1\n").unwrap();
        let script = Script::read(&path).unwrap();
        assert_eq!(script.name, "click_features");
        assert_eq!(&*script.source, "x = 1\n");
        assert!(Script::read(&dir.path().join("absent.py")).is_err());
    }

    #[test]
    fn styles_are_known_under_their_names() {
        for style in [
            Style::Polars,
            Style::RecordBatch,
            Style::Table,
            Style::Pandas,
            Style::Rows,
            Style::Event,
        ] {
            assert_eq!(serde_json::to_value(style).unwrap(), style.as_str());
        }
    }
}
