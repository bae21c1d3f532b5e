//! How a command ends when it does not end well.

use crate::{config::ConfigError, online::marks::LookError, store::StoreError};
use std::process::ExitCode;

/// Why a command failed; the kind is the exit code.
#[derive(Debug)]
pub enum Failure {
    /// 1: something went wrong while running.
    Runtime(anyhow::Error),
    /// 1: a file was not taken.
    Refused {
        /// Which, and why.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// 2: the command's words do not fit together.
    Usage(String),
    /// 3: the configuration cannot be used.
    Config(String),
    /// 4: a dependency cannot be reached.
    Unreachable(String),
    /// 5: a check failed; its report was printed.
    Check(String),
    /// 130: interrupted before it was done.
    Interrupted,
}

impl Failure {
    /// Prints the message for people.
    pub fn print(&self) {
        let (message, help): (String, Option<String>) = match self {
            Self::Runtime(error) => (format!("{error:#}"), None),
            Self::Refused { message, hint } => (message.clone(), hint.clone()),
            Self::Usage(message) => (message.clone(), Some("see `millstream help`".into())),
            Self::Config(message) => {
                (message.clone(), Some("`millstream config show` prints what is in force".into()))
            }
            Self::Unreachable(message) | Self::Check(message) => (message.clone(), None),
            Self::Interrupted => ("interrupted".into(), None),
        };
        let mut report = miette::MietteDiagnostic::new(message);
        report.help = help;
        eprintln!("{:?}", miette::Report::new(report));
    }

    /// The exit code of its kind.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Runtime(_) | Self::Refused { .. } => 1,
            Self::Usage(_) => 2,
            Self::Config(_) => 3,
            Self::Unreachable(_) => 4,
            Self::Check(_) => 5,
            Self::Interrupted => 130,
        })
    }
}

impl From<anyhow::Error> for Failure {
    /// Errors of Redis and Kafka connections are told apart from the rest.
    fn from(error: anyhow::Error) -> Self {
        let unreachable = error.chain().any(|cause| {
            cause.downcast_ref::<redis::RedisError>().is_some_and(redis::RedisError::is_io_error)
                || matches!(cause.downcast_ref::<StoreError>(), Some(StoreError::Locked { .. }))
                || matches!(cause.downcast_ref::<LookError>(), Some(LookError::OtherStore { .. }))
        });
        let text = format!("{error:#}");
        if unreachable || text.contains("cannot be reached") || text.contains("is not installed") {
            return Self::Unreachable(text);
        }
        Self::Runtime(error)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Config(error.to_string())
    }
}
