//! `millstream transforms test`.

use super::{Failure, FileArgs};
use crate::{cli::run::signals, config::PythonConfig, node::python_env};
use anyhow::{Context, anyhow};
use clap::Args;
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};
use tokio::process::Command;

/// Ends well where pytest can be imported.
const HAS_PYTEST: &str =
    "import importlib.util, sys; sys.exit(importlib.util.find_spec('pytest') is None)";

/// Arguments of `millstream transforms test`.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// Files and folders with tests [default: `tests` in the scripts' folder].
    paths: Vec<OsString>,
    #[command(flatten)]
    file: FileArgs,
    /// Arguments for pytest.
    #[arg(last = true, value_name = "ARGS")]
    pytest: Vec<OsString>,
}

/// Runs pytest with this command's own input and output.
pub async fn test(args: TestArgs) -> Result<(), Failure> {
    let python = args.file.load()?.python;
    let interpreter = interpreter(&python).await?;
    let mut paths = args.paths;
    if paths.is_empty() {
        let folder = python.transforms_dir.join("tests");
        if !folder.is_dir() {
            return Err(Failure::Usage(format!(
                "there is no folder {}: put tests there, or name theirs",
                folder.display()
            )));
        }
        paths.push(folder.into());
    }
    // Before pytest runs: an interrupt of the terminal reaches both, and pytest has the last word.
    let (mut interrupt, mut terminate) = signals()?;
    let mut pytest = Command::new(&interpreter)
        .args(["-m", "pytest"])
        .args(args.pytest)
        .args(paths)
        .env("PYTHONPATH", python_path(&python)?)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("{} cannot be started", interpreter.display()))?;
    let mut interrupted = false;
    loop {
        tokio::select! {
            ended = pytest.wait() => {
                let ended = ended.context("pytest is gone")?;
                return if interrupted { Err(Failure::Interrupted) } else { outcome(ended) };
            }
            _ = interrupt.recv() => interrupted = true,
            _ = terminate.recv() => return Err(Failure::Interrupted),
        }
    }
}

/// The interpreter of the scripts' environment, in which there is pytest.
async fn interpreter(python: &PythonConfig) -> Result<PathBuf, Failure> {
    let venv = python_env::venv(python).map_err(|error| Failure::Config(format!("{error:#}")))?;
    let Some(venv) = venv else {
        return Err(Failure::Unreachable(
            "there is no virtual environment: make one with `python3 -m venv .venv`, install pytest and what the \
             scripts import with `.venv/bin/pip install`, or name one with `python.venv`"
                .into(),
        ));
    };
    let interpreter = venv.join("bin/python");
    let mut asking = Command::new(&interpreter);
    asking.args(["-c", HAS_PYTEST]).stdin(Stdio::null());
    let asked = asking.status().await.map_err(|error| {
        Failure::Unreachable(format!(
            "{} cannot be run ({error}): make the environment again with `python3 -m venv {}`",
            interpreter.display(),
            venv.display()
        ))
    })?;
    if !asked.success() {
        return Err(Failure::Unreachable(format!(
            "pytest is not installed in {}: install it with `{} -m pip install pytest`",
            venv.display(),
            interpreter.display()
        )));
    }
    Ok(interpreter)
}

/// Tests import scripts by their names, as workers do.
fn python_path(python: &PythonConfig) -> anyhow::Result<OsString> {
    let folder = &python.transforms_dir;
    let scripts =
        std::path::absolute(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })?;
    let before = std::env::var_os("PYTHONPATH").filter(|path| !path.is_empty());
    let rest = before.iter().flat_map(std::env::split_paths);
    std::env::join_paths([scripts].into_iter().chain(rest))
        .with_context(|| format!("{} cannot stand in PYTHONPATH", folder.display()))
}

/// By the list in pytest's documentation, "Exit codes".
fn outcome(status: ExitStatus) -> Result<(), Failure> {
    match status.code() {
        Some(0) => Ok(()),
        Some(1) => Err(Failure::Check("there are tests that failed".into())),
        // Interrupted by itself: a file with tests cannot be imported, or a test asked for the end.
        Some(2) => Err(Failure::Check("not all tests were run".into())),
        Some(4) => Err(Failure::Usage("pytest did not understand its arguments".into())),
        Some(5) => Err(Failure::Usage("there are no tests to run".into())),
        _ => Err(Failure::Runtime(anyhow!("pytest ended with {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn each_exit_code_of_pytest() {
        let ended = |code: i32| outcome(ExitStatus::from_raw(code << 8));
        assert!(ended(0).is_ok());
        assert!(matches!(ended(1), Err(Failure::Check(_))));
        assert!(matches!(ended(2), Err(Failure::Check(_))));
        assert!(matches!(ended(3), Err(Failure::Runtime(_))));
        assert!(matches!(ended(4), Err(Failure::Usage(_))));
        assert!(matches!(ended(5), Err(Failure::Usage(_))));
        assert!(matches!(outcome(ExitStatus::from_raw(libc::SIGKILL)), Err(Failure::Runtime(_))));
    }
}
