//! What a client is told whose file is not taken: a gRPC status with a `google.rpc.ErrorInfo`.

use crate::files::FileError;
use std::collections::HashMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The domain of [`Refusal::reason`]s.
const DOMAIN: &str = "millstream";

/// Why a file is not taken.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    code: Code,
    /// A word from a closed list, fit for a label.
    pub reason: String,
    detail: String,
    hint: String,
    byte: Option<u64>,
    row: Option<u64>,
}

impl Refusal {
    fn new(code: Code, reason: &str, detail: impl Into<String>, hint: &str) -> Self {
        Self {
            code,
            reason: reason.to_owned(),
            detail: detail.into(),
            hint: hint.to_owned(),
            byte: None,
            row: None,
        }
    }

    /// The request itself is wrong.
    pub fn invalid(reason: &str, detail: impl Into<String>, hint: &str) -> Self {
        Self::new(Code::InvalidArgument, reason, detail, hint)
    }

    /// There is no such thing.
    pub fn not_found(reason: &str, detail: impl Into<String>, hint: &str) -> Self {
        Self::new(Code::NotFound, reason, detail, hint)
    }

    /// The key stands for something else.
    pub fn conflict(detail: impl Into<String>) -> Self {
        let hint = "send another file under another key";
        Self::new(Code::AlreadyExists, "key_conflict", detail, hint)
    }

    /// Not now: there is no room.
    pub fn no_room(reason: &str, detail: impl Into<String>, hint: &str) -> Self {
        Self::new(Code::ResourceExhausted, reason, detail, hint)
    }

    /// The client stopped sending.
    pub fn too_slow(detail: impl Into<String>) -> Self {
        let hint = "send it again with the same key";
        Self::new(Code::DeadlineExceeded, "stalled", detail, hint)
    }

    /// The node cannot, though the file may be sound.
    pub fn unavailable(reason: &str, detail: impl Into<String>) -> Self {
        let hint = "send it again with the same key; nothing is taken twice";
        Self::new(Code::Unavailable, reason, detail, hint)
    }
}

impl From<FileError> for Refusal {
    fn from(error: FileError) -> Self {
        let FileError { reason, detail, byte, row, hint } = error;
        Self { code: Code::InvalidArgument, reason, detail, hint, byte, row }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let Refusal { code, reason, detail, hint, byte, row } = refusal;
        let mut metadata = HashMap::new();
        if let Some(byte) = byte {
            metadata.insert("byte".to_owned(), byte.to_string());
        }
        if let Some(row) = row {
            metadata.insert("row".to_owned(), row.to_string());
        }
        if !hint.is_empty() {
            metadata.insert("hint".to_owned(), hint);
        }
        let details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
        Self::with_error_details(code, detail, details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_what_where_and_what_to_do() {
        let error = FileError {
            reason: "invalid_json".into(),
            detail: "expected `,`".into(),
            byte: Some(7),
            row: Some(1),
            hint: "mend the file".into(),
        };
        let status = Status::from(Refusal::from(error));
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "expected `,`");
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("invalid_json", "millstream"));
        assert_eq!(info.metadata["hint"], "mend the file");
        assert_eq!((info.metadata["byte"].as_str(), info.metadata["row"].as_str()), ("7", "1"));
    }
}
