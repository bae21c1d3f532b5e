//! Why an upload was not taken.

use std::{collections::BTreeMap, fmt, path::PathBuf};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Why an upload was not taken, or could not be asked about.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The file cannot be read, or has changed while it was sent.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// No address of a node.
    #[error("`{address}` is no address of a node: write host:port")]
    Address {
        /// What was given.
        address: String,
    },
    /// Nobody answers, or the connection was lost. What was sent may have been taken.
    #[error("no node answers at {address} ({detail})")]
    Unreachable {
        /// Where.
        address: String,
        /// What happened.
        detail: String,
    },
    /// The node's answer.
    #[error("{0}")]
    Refused(Box<Refusal>),
}

/// What a node says when it does not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// gRPC's kind of error.
    pub code: Code,
    /// What is wrong, for people.
    pub message: String,
    /// What is wrong, for programs; a word.
    pub reason: Option<String>,
    /// Where in the file, in bytes from the start of what it is decompressed to.
    pub byte: Option<u64>,
    /// Where in the file, in rows from 0.
    pub row: Option<u64>,
    /// What to do.
    pub hint: Option<String>,
    /// All that the node says for programs, the above included.
    pub metadata: BTreeMap<String, String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let told = [
            self.reason.clone(),
            self.row.map(|row| format!("row {row}")),
            self.byte.map(|byte| format!("byte {byte}")),
        ];
        let told: Vec<String> = told.into_iter().flatten().collect();
        if told.is_empty() { Ok(()) } else { write!(f, " ({})", told.join(", ")) }
    }
}

impl Refusal {
    fn of(status: &Status) -> Self {
        let details = status.get_error_details();
        let (reason, metadata) = match details.error_info() {
            Some(info) => (info.reason.clone(), info.metadata.clone()),
            None => <_>::default(),
        };
        let metadata: BTreeMap<String, String> = metadata.into_iter().collect();
        let number = |name: &str| metadata.get(name).and_then(|text| text.parse().ok());
        let link = details.help().and_then(|help| help.links.first());
        let hint = metadata.get("hint").or(link.map(|link| &link.description)).cloned();
        Self {
            code: status.code(),
            message: status.message().to_owned(),
            reason: Some(reason).filter(|reason| !reason.is_empty()),
            byte: number("byte"),
            row: number("row"),
            hint: hint.filter(|hint| !hint.is_empty()),
            metadata,
        }
    }
}

impl UploadError {
    /// A status that came from the node is its answer; one that was made on this side says what
    /// became of the connection.
    pub(crate) fn of(address: &str, status: &Status) -> Self {
        match std::error::Error::source(status) {
            Some(source) => Self::unreachable(address, source),
            None => Self::Refused(Box::new(Refusal::of(status))),
        }
    }

    pub(super) fn unreachable(address: &str, error: &dyn std::error::Error) -> Self {
        let mut detail = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Many only repeat what they stand for.
            if !detail.contains(&text) {
                detail = format!("{detail}: {text}");
            }
            cause = error.source();
        }
        Self::Unreachable { address: address.to_owned(), detail }
    }

    /// The node's answer, when there is one.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            Self::Read { .. } | Self::Address { .. } | Self::Unreachable { .. } => None,
        }
    }

    /// Whether the same may go well a little later: the node was not reached or is starting, the
    /// connection was lost, or the node has no room just now.
    #[must_use]
    pub fn is_worth_retry(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Read { .. } | Self::Address { .. } => false,
            Self::Refused(refusal) => matches!(
                refusal.code,
                Code::Unavailable
                    | Code::ResourceExhausted
                    | Code::Cancelled
                    | Code::Aborted
                    | Code::DeadlineExceeded
                    | Code::Unknown
            ),
        }
    }

    /// Whether the same will never go well, whatever the node's state: it is the request that is
    /// wrong. What is neither this nor worth a retry is the node's own failure.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Unreachable { .. } => false,
            Self::Read { .. } | Self::Address { .. } => true,
            Self::Refused(refusal) => matches!(
                refusal.code,
                Code::InvalidArgument
                    | Code::NotFound
                    | Code::AlreadyExists
                    | Code::FailedPrecondition
                    | Code::OutOfRange
                    | Code::PermissionDenied
                    | Code::Unauthenticated
                    | Code::Unimplemented
            ),
        }
    }
}
