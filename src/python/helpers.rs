//! The helper modules of a script: the Python files beside it that it imports. They belong to its
//! version: a worker gets their texts with the script's, and reads no file.
//!
//! Which ones those are is found without running anything. A module of the folder belongs to the
//! script when its name stands, as a word, on a line with `import` in it — of the script or of a
//! module that belongs to it. That finds `importlib.import_module("name")` as well, and now and
//! then a module too many, which only makes the version wider. A package belongs as a whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

/// Bytes of all helpers of one script. They are kept with every version and sent to every worker.
const MOST_BYTES: usize = 4 << 20;

/// Folders within folders that a package may have.
const MOST_DEPTH: usize = 8;

/// One module that a script imports from its folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct HelperModule {
    /// Its dotted name.
    pub name: String,
    /// Shown in tracebacks, and `__file__`; never read by a worker.
    pub path: PathBuf,
    /// The whole text.
    pub source: String,
    /// Whether it is the `__init__` of a package, or the folder of one without.
    pub is_package: bool,
}

/// The helpers of the script `name` with the text `source`, sorted by name. Of modules of one name
/// that of the first folder counts.
///
/// # Errors
/// When a module that belongs to it cannot be read or is not UTF-8, or all of them are too large.
pub fn helpers_of(folders: &[&Path], name: &str, source: &str) -> io::Result<Vec<HelperModule>> {
    let mut there = BTreeMap::new();
    for folder in folders.iter().rev() {
        there.extend(top_level(folder)?);
    }
    there.remove(name);
    let mut found: BTreeSet<HelperModule> = BTreeSet::new();
    let mut texts = vec![source.to_owned()];
    let mut bytes = 0;
    while let Some(text) = texts.pop() {
        for word in imported_words(&text) {
            let Some(path) = there.remove(word) else { continue };
            let mut modules = Vec::new();
            collect(word, &path, MOST_DEPTH, &mut modules)?;
            bytes += modules.iter().map(|module| module.source.len()).sum::<usize>();
            if bytes > MOST_BYTES {
                let why = format!("the helpers of {name} are larger than {MOST_BYTES} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            texts.extend(modules.iter().map(|module| module.source.clone()));
            found.extend(modules);
        }
    }
    Ok(found.into_iter().collect())
}

/// What could be imported from a folder: module or package name, and where it is.
fn top_level(folder: &Path) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut modules = BTreeMap::new();
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(modules),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if let Some(stem) = name.strip_suffix(".py") {
            // As in Python: a package goes before a module of its name, a mere folder after it.
            let package = folder.join(stem).join("__init__.py");
            modules
                .insert(stem.to_owned(), if package.is_file() { folder.join(stem) } else { path });
        } else if is_name(name) && path.is_dir() {
            modules.entry(name.to_owned()).or_insert(path);
        }
    }
    Ok(modules)
}

/// The module at `path`, or all of the package.
fn collect(
    name: &str,
    path: &Path,
    depth: usize,
    modules: &mut Vec<HelperModule>,
) -> io::Result<()> {
    let read = |path: &Path| -> io::Result<String> {
        std::fs::read_to_string(path)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
    };
    if !path.is_dir() {
        let (name, source) = (name.to_owned(), read(path)?);
        modules.push(HelperModule { name, path: path.to_owned(), source, is_package: false });
        return Ok(());
    }
    let init = path.join("__init__.py");
    let source = if init.is_file() { read(&init)? } else { String::new() };
    let own = HelperModule { name: name.to_owned(), path: init, source, is_package: true };
    let first = modules.len();
    for (inner, at) in top_level(path)? {
        if inner != "__init__" && depth > 0 {
            collect(&format!("{name}.{inner}"), &at, depth - 1, modules)?;
        }
    }
    // A folder without Python in it is no package.
    if !own.source.is_empty() || own.path.is_file() || modules.len() > first {
        modules.push(own);
    }
    Ok(())
}

fn is_name(text: &str) -> bool {
    text != "__pycache__" && !text.is_empty() && text.chars().all(is_word)
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

fn imported_words(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().filter(|line| line.contains("import"));
    lines.flat_map(|line| line.split(|c| !is_word(c))).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    fn names(dir: &Path, source: &str) -> Vec<String> {
        let found = helpers_of(&[dir], "own", source).unwrap();
        found.into_iter().map(|module| module.name).collect()
    }

    #[test]
    fn what_is_imported_belongs_however_it_is_imported() {
        let dir = folder(&[
            ("own.py", ""),
            ("a.py", "import b\n"),
            ("b.py", "def f():\n    import c, d\n"),
            ("c.py", "import a, own"),
            ("d.py", "x = 'e'"),
            ("e.py", ""),
            ("pkg/__init__.py", "from .inner import g"),
            ("pkg/inner/h.py", ""),
            ("pkg/data.csv", ""),
            ("bare/m.py", ""),
            ("both.py", ""),
            ("both/data.txt", ""),
            ("twice.py", ""),
            ("twice/__init__.py", ""),
            ("empty/readme.txt", ""),
        ]);
        assert_eq!(names(dir.path(), "x = 1\n# a, b\n"), [""; 0]);
        assert_eq!(names(dir.path(), "from a import f"), ["a", "b", "c", "d"]);
        assert_eq!(names(dir.path(), "m = importlib.import_module('e')"), ["e"]);
        assert_eq!(
            names(dir.path(), "x=1; import pkg.inner.h"),
            ["pkg", "pkg.inner", "pkg.inner.h"]
        );
        assert_eq!(names(dir.path(), "from bare import m"), ["bare", "bare.m"]);
        assert_eq!(names(dir.path(), "import empty, own, json"), [""; 0]);
        assert_eq!(names(dir.path(), "import both"), ["both"]);
        let twice = helpers_of(&[dir.path()], "own", "import twice").unwrap();
        assert!(twice.len() == 1 && twice[0].is_package, "{twice:?}");
        assert_eq!(names(&dir.path().join("absent"), "import a"), [""; 0]);
        let packages = helpers_of(&[dir.path()], "own", "import pkg").unwrap();
        let is_package: Vec<bool> = packages.iter().map(|module| module.is_package).collect();
        assert_eq!(is_package, [true, true, false]);
    }

    #[test]
    fn the_first_folder_counts() {
        let (first, second) = (folder(&[("a.py", "1")]), folder(&[("a.py", "2"), ("b.py", "3")]));
        let found = helpers_of(&[first.path(), second.path()], "own", "import a, b").unwrap();
        let texts: Vec<&str> = found.iter().map(|module| module.source.as_str()).collect();
        assert_eq!(texts, ["1", "3"]);
    }

    #[test]
    fn what_cannot_be_kept_is_said() {
        let dir = folder(&[("big.py", &"#".repeat(MOST_BYTES + 1))]);
        let error = helpers_of(&[dir.path()], "own", "import big").unwrap_err();
        assert!(error.to_string().contains("larger than"), "{error}");
        std::fs::write(dir.path().join("big.py"), [0xff]).unwrap();
        let error = helpers_of(&[dir.path()], "own", "import big").unwrap_err();
        assert!(error.to_string().contains("big.py"), "{error}");
    }
}
