//! The check in a process of its own: what a hostile file does to it, it does to that one.
//!
//! The child is this binary. It reads what to check as JSON from stdin and writes the verdict as JSON
//! to stdout. It has a limit of memory, dumps no core, dies with its parent and has a deadline. Any
//! other end than a verdict is a refusal, too.

use super::{Checked, FileError, FileKind, FileLimits, check, reasons};
use crate::config::StreamConfig;
use serde::{Deserialize, Serialize};
use std::{
    io::{self, Write},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitCode, ExitStatus, Stdio},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
};

/// The hidden subcommand.
const SUBCOMMAND: &str = "check-file";
/// How long a check may take, whatever the size.
const LEAST_DEADLINE: Duration = Duration::from_secs(120);
/// Bytes of a file that are checked in a second at the very least: a slow disk, a busy machine.
const LEAST_BYTES_A_SECOND: u64 = 1 << 20;
/// Address space besides memory: the program and its libraries, stacks, room that allocators reserve.
const ADDRESS_SPACE: u64 = 4 << 30;
/// Its priority, as `nice` counts.
const NICE: i32 = 10;
/// What a child may say.
const MAX_ANSWER_BYTES: u64 = 256 << 10;

/// What the child is told.
#[derive(Serialize, Deserialize)]
struct Order {
    path: PathBuf,
    kind: FileKind,
    stream: StreamConfig,
    limits: FileLimits,
}

/// Does what [`check`] does, in a child process: `program`, which is this binary.
///
/// # Errors
/// Why the file is refused as a whole; also when its check crashed, took too much memory or too long.
pub async fn check_in_child(
    program: &Path,
    path: &Path,
    kind: FileKind,
    stream: &StreamConfig,
    limits: &FileLimits,
) -> Result<Checked, FileError> {
    let length = std::fs::metadata(path).map_err(|e| FileError::from_io(&e))?.len();
    let deadline = LEAST_DEADLINE + Duration::from_secs(length / LEAST_BYTES_A_SECOND);
    let order = Order { path: path.into(), kind, stream: stream.clone(), limits: *limits };
    check_within(deadline, program, length, &order).await
}

async fn check_within(
    deadline: Duration,
    program: &Path,
    length: u64,
    order: &Order,
) -> Result<Checked, FileError> {
    let limits = &order.limits;
    let order = serde_json::to_vec(order).map_err(|e| unreadable(&io::Error::other(e)))?;
    let mut child = spawn(program, length, limits).map_err(|e| unreadable(&e))?;
    match tokio::time::timeout(deadline, talk(&mut child, &order)).await {
        Ok(Ok((status, answer, errors))) => verdict(status, &answer, &errors, limits),
        Ok(Err(error)) => Err(unreadable(&error)),
        // Dropping the child kills it.
        Err(_) => {
            let detail = format!("checking the file took longer than {} s", deadline.as_secs());
            Err(FileError::new(
                reasons::TIMEOUT,
                detail,
                "split it, or send it when less is going on",
            ))
        }
    }
}

fn unreadable(error: &io::Error) -> FileError {
    let hint = "this is not the file's fault: look at the node's log, then send it again";
    FileError::new(reasons::UNREADABLE, format!("the file cannot be checked: {error}"), hint)
}

fn spawn(program: &Path, length: u64, limits: &FileLimits) -> io::Result<Child> {
    let memory = limits.check_memory_bytes;
    // Parquet files are mapped as a whole.
    let space = memory.saturating_add(length).saturating_add(ADDRESS_SPACE);
    let space = space
        .saturating_add(limits.max_decompressed_bytes.min(length.saturating_mul(limits.max_ratio)));
    let mut command = Command::new(program);
    command
        .arg(SUBCOMMAND)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env("POLARS_MAX_THREADS", "1")
        .env("MALLOC_ARENA_MAX", "1")
        .process_group(0)
        .kill_on_drop(true);
    let parent = std::process::id();
    // SAFETY: async-signal-safe calls only. The thread that starts the child is the one whose end kills
    // it; whoever waits for the verdict lives on that thread or on one of a runtime that outlives it.
    unsafe {
        command.pre_exec(move || {
            let limit = |what, bytes: u64| {
                let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
                libc::setrlimit(what, &raw const limit) == 0
            };
            if limit(libc::RLIMIT_DATA, memory)
                && limit(libc::RLIMIT_AS, space)
                && limit(libc::RLIMIT_CORE, 0)
                && libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0
                // What is live goes first. (0: this process.)
                && libc::setpriority(libc::PRIO_PROCESS, 0, NICE) == 0
            {
                // The parent may have died before the child asked to die with it.
                let orphaned = u32::try_from(libc::getppid()) != Ok(parent);
                return if orphaned { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) };
            }
            Err(io::Error::last_os_error())
        });
    }
    command.spawn()
}

async fn talk(child: &mut Child, order: &[u8]) -> io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
    let no_pipe = || io::Error::other("no pipe to the process");
    let mut stdin = child.stdin.take().ok_or_else(no_pipe)?;
    let stdout = child.stdout.take().ok_or_else(no_pipe)?;
    let stderr = child.stderr.take().ok_or_else(no_pipe)?;
    let say = async move {
        // A child that died does not listen; how it died says more.
        drop(stdin.write_all(order).await);
    };
    let ((), answer, errors) = tokio::join!(say, hear(stdout), hear(stderr));
    let (answer, errors) = (answer?, errors?);
    Ok((child.wait().await?, answer, errors))
}

/// What is beyond the bound is not read: the pipe is closed, and the child breaks with it.
async fn hear(pipe: impl AsyncRead + Unpin) -> io::Result<Vec<u8>> {
    let mut heard = Vec::new();
    pipe.take(MAX_ANSWER_BYTES).read_to_end(&mut heard).await?;
    Ok(heard)
}

fn verdict(
    status: ExitStatus,
    answer: &[u8],
    errors: &[u8],
    limits: &FileLimits,
) -> Result<Checked, FileError> {
    if status.success() {
        let verdict = serde_json::from_slice::<Result<Checked, FileError>>(answer);
        return verdict
            .unwrap_or_else(|error| Err(crashed(format!("it answered no verdict: {error}"))));
    }
    let errors = String::from_utf8_lossy(errors);
    tracing::warn!(%status, errors = %errors.trim(), "the check of a file died");
    if ["memory allocation of", "out of memory", "Cannot allocate memory", "not enough memory"]
        .iter()
        .any(|words| errors.contains(words))
    {
        let mib = limits.check_memory_bytes >> 20;
        let detail = format!("checking the file takes more than {mib} MiB of memory");
        let hint = "write it with smaller rows and row groups, or raise `uploads.check_memory_mib`";
        return Err(FileError::new(reasons::OUT_OF_MEMORY, detail, hint));
    }
    Err(crashed(match status.signal() {
        Some(signal) => format!("it was ended by signal {signal}"),
        None => format!("it ended with {status}"),
    }))
}

fn crashed(why: String) -> FileError {
    let hint = "the file is damaged in a way that was not foreseen: write it anew";
    FileError::new(reasons::CHECK_CRASHED, format!("the check of the file died: {why}"), hint)
}

/// The child: reads the order from stdin and prints the verdict.
#[must_use]
pub fn child_main() -> ExitCode {
    let order: Order = match serde_json::from_reader(io::stdin().lock()) {
        Ok(order) => order,
        Err(error) => {
            eprintln!("{SUBCOMMAND} is for the node alone; what to check cannot be read: {error}");
            return ExitCode::from(2);
        }
    };
    let verdict = check(&order.path, order.kind, &order.stream, &order.limits);
    let said = serde_json::to_vec(&verdict).map_err(io::Error::from);
    match said.and_then(|text| io::stdout().write_all(&text)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the verdict cannot be told: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{Compression, FileFormat};
    use std::os::unix::fs::PermissionsExt;

    /// What becomes of the check when the child is this shell script.
    async fn outcome(script: &str, deadline: Duration) -> Result<Checked, FileError> {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("child");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        let order = Order {
            path: folder.path().join("file"),
            kind: FileKind { format: FileFormat::Json, compression: Compression::None },
            stream: StreamConfig::shipped().remove(0),
            limits: FileLimits::of(&crate::config::Config::default()),
        };
        check_within(deadline, &program, 0, &order).await
    }

    #[tokio::test]
    async fn every_end_of_the_child_is_a_verdict() {
        let enough = Duration::from_secs(60);
        let verdict = "cat > /dev/null; printf '{\"Ok\":{\"rows\":3,\"bytes\":9}}'";
        assert_eq!(outcome(verdict, enough).await, Ok(Checked { rows: 3, bytes: 9 }));
        for (script, reason) in [
            ("kill -SEGV $$", reasons::CHECK_CRASHED),
            ("exit 3", reasons::CHECK_CRASHED),
            ("echo hello", reasons::CHECK_CRASHED),
            ("yes", reasons::CHECK_CRASHED),
            ("yes >&2", reasons::CHECK_CRASHED),
            ("echo memory allocation of 9 bytes failed >&2; kill -ABRT $$", reasons::OUT_OF_MEMORY),
        ] {
            let error = outcome(script, enough).await.unwrap_err();
            assert_eq!(error.reason, reason, "{script}: {error}");
        }
        let error = outcome("sleep 600", Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(error.reason, reasons::TIMEOUT);
    }

    #[tokio::test]
    async fn the_child_has_limits_and_dumps_no_core() {
        let script = "cat > /dev/null; \
            printf '{\"Err\":{\"reason\":\"%s %s %s\",\"detail\":\"\",\"hint\":\"\"}}' \
            $(ulimit -d) $(ulimit -c) $(ulimit -v)";
        let error = outcome(script, Duration::from_secs(60)).await.unwrap_err();
        let limits: Vec<&str> = error.reason.split(' ').collect();
        assert_eq!(limits, ["2097152", "0", "6291456"], "in KiB");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_not_the_files_fault() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let kind = FileKind { format: FileFormat::Json, compression: Compression::None };
        let (stream, config) =
            (StreamConfig::shipped().remove(0), crate::config::Config::default());
        let limits = FileLimits::of(&config);
        let program = Path::new("/not/there");
        let error = check_in_child(program, file.path(), kind, &stream, &limits).await.unwrap_err();
        assert_eq!(error.reason, reasons::UNREADABLE);
    }
}
