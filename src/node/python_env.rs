//! Which Python packages the scripts may import.

use crate::config::PythonConfig;
use anyhow::bail;
use std::path::{Path, PathBuf};

/// The configured environment, `.venv` beside the scripts' folder, or `.venv` in the working
/// directory; `None`, when there is no environment.
///
/// # Errors
/// When an environment is configured and is none.
pub fn venv(python: &PythonConfig) -> anyhow::Result<Option<PathBuf>> {
    let is_venv = |dir: &PathBuf| !site_packages(dir).is_empty();
    if !python.venv.as_os_str().is_empty() {
        if !is_venv(&python.venv) {
            bail!("`python.venv`: {} is no virtual environment", python.venv.display());
        }
        return Ok(Some(python.venv.clone()));
    }
    let beside = python.transforms_dir.parent().map(|p| p.join(".venv"));
    Ok(beside.into_iter().chain([PathBuf::from(".venv")]).find(is_venv))
}

/// The `site-packages` folders of that environment; none, when there is none.
///
/// # Errors
/// As for [`venv`].
pub fn site_dirs(python: &PythonConfig) -> anyhow::Result<Vec<PathBuf>> {
    Ok(venv(python)?.map(|venv| site_packages(&venv)).unwrap_or_default())
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
