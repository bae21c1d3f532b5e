//! Which Python packages the scripts may import.

use crate::config::PythonConfig;
use anyhow::bail;
use std::path::{Path, PathBuf};

/// The `site-packages` folders of the configured environment, of `.venv` beside the scripts'
/// folder, or of `.venv` in the working directory; none, when there is no environment.
///
/// # Errors
/// When an environment is configured and is none.
pub fn site_dirs(python: &PythonConfig) -> anyhow::Result<Vec<PathBuf>> {
    if !python.venv.as_os_str().is_empty() {
        let dirs = site_packages(&python.venv);
        if dirs.is_empty() {
            bail!("`python.venv`: {} is no virtual environment", python.venv.display());
        }
        return Ok(dirs);
    }
    let beside = python.transforms_dir.parent().map(|p| p.join(".venv"));
    let candidates = beside.into_iter().chain([PathBuf::from(".venv")]);
    Ok(candidates
        .map(|venv| site_packages(&venv))
        .find(|dirs| !dirs.is_empty())
        .unwrap_or_default())
}

fn site_packages(venv: &Path) -> Vec<PathBuf> {
    let Ok(versions) = std::fs::read_dir(venv.join("lib")) else { return Vec::new() };
    versions
        .filter_map(Result::ok)
        .map(|entry| entry.path().join("site-packages"))
        .filter(|dir| dir.is_dir())
        .filter_map(|dir| dir.canonicalize().ok())
        .collect()
}
