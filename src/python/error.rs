//! What can go wrong with a worker, each kind apart from the others.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// Why a worker did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The process could not be started at all.
    #[error("the Python worker could not be started: {0}")]
    Spawn(#[source] io::Error),
    /// The process ended, by itself or by a signal. The worker is gone and reaped.
    #[error("the Python worker ended: {exit}{}", tail(stderr))]
    Exited {
        /// How it ended.
        exit: Exit,
        /// The last lines it wrote to standard error, which hold the Python stack after a crash.
        stderr: String,
    },
    /// The worker answered something that it cannot have meant. Only good for being killed.
    #[error("the Python worker broke the protocol: {0}")]
    Protocol(String),
    /// The script could not be loaded: syntax, import, no usable `transform`, or `setup` failed.
    #[error("the script cannot be loaded: {message}")]
    Import {
        /// One line, such as `SyntaxError: invalid syntax (s.py, line 3)`.
        message: String,
        /// The Python traceback.
        traceback: String,
    },
    /// `transform` raised for the batch as a whole. The worker lives.
    #[error("the script raised {kind}: {message}")]
    Script {
        /// The exception's class, such as `ValueError`, `MemoryError` or `SystemExit`.
        kind: String,
        /// Its text.
        message: String,
        /// The Python traceback.
        traceback: String,
    },
    /// What `transform` returned is not what a script may return. The worker lives.
    #[error("the script's output is refused: {0}")]
    Contract(String),
    /// An earlier call was given up in the middle: an answer to it may still be on its way, so
    /// the worker takes no further request.
    #[error("the Python worker was left in the middle of a call and must be replaced")]
    Poisoned,
    /// The caller's batch is not fit to be sent; nothing was sent.
    #[error("the batch cannot be sent to a Python worker: {0}")]
    Input(String),
}

fn tail(stderr: &str) -> String {
    stderr.lines().last().map_or_else(String::new, |line| format!(" (last words: {line})"))
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code, when it ended by itself.
    pub code: Option<i32>,
    /// The signal that ended it, when one did.
    pub signal: Option<i32>,
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        Self { code: status.code(), signal: status.signal() }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.signal, self.code) {
            (Some(signal), _) => match signal_name(signal) {
                Some(name) => write!(f, "signal {signal} ({name})"),
                None => write!(f, "signal {signal}"),
            },
            (None, Some(code)) => write!(f, "exit code {code}"),
            (None, None) => f.write_str("unknown status"),
        }
    }
}

fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGABRT => "SIGABRT",
        libc::SIGKILL => "SIGKILL",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGILL => "SIGILL",
        libc::SIGTERM => "SIGTERM",
        libc::SIGXCPU => "SIGXCPU",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_reads_well() {
        assert_eq!(Exit { code: None, signal: Some(11) }.to_string(), "signal 11 (SIGSEGV)");
        assert_eq!(Exit { code: Some(3), signal: None }.to_string(), "exit code 3");
        let error = WorkerError::Exited {
            exit: Exit { code: None, signal: Some(9) },
            stderr: "a\nb".into(),
        };
        assert_eq!(
            error.to_string(),
            "the Python worker ended: signal 9 (SIGKILL) (last words: b)"
        );
    }
}
