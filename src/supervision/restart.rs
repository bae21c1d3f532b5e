//! How often an actor may be restarted, and how soon.

use std::{
    collections::VecDeque,
    fmt,
    time::{Duration, Instant},
};

/// How an instance ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// Somebody asked for it.
    Killed,
    /// It panicked, with this message.
    Panicked(String),
    /// It met an error that it cannot mend, this one.
    Failed(String),
    /// It stopped by itself, which no actor here does.
    Finished,
}

impl Cause {
    /// Every label, so that each can start at zero.
    pub const LABELS: [&str; 4] = ["killed", "panicked", "failed", "finished"];

    pub(super) fn of(ended: Result<Result<(), String>, tokio::task::JoinError>) -> Self {
        match ended {
            Ok(Ok(())) => Self::Finished,
            Ok(Err(error)) => Self::Failed(error),
            Err(e) if e.is_cancelled() => Self::Killed,
            Err(e) => {
                let payload = e.into_panic();
                let text = payload
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| payload.downcast_ref::<&str>().map(|s| (*s).to_owned()));
                Self::Panicked(text.unwrap_or_else(|| "a panic without a message".into()))
            }
        }
    }

    /// The label in metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Panicked(_) => "panicked",
            Self::Failed(_) => "failed",
            Self::Finished => "finished",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked(message) | Self::Failed(message) => {
                write!(f, "{}: {message}", self.label())
            }
            other => f.write_str(other.label()),
        }
    }
}

/// How an instance is ended on request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It is dropped, wherever it is just then. Does not count as a failure.
    Kill,
    /// It panics, as one of its handlers might.
    Panic,
    /// It ends as if a handler had returned an error that it cannot mend.
    Fail,
}

impl End {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Kill, Self::Panic, Self::Fail];

    /// Its name, which is also the label in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Panic => "panic",
            Self::Fail => "error",
        }
    }
}

/// How often an actor may fail by itself before the node gives up.
#[derive(Debug, Clone, Copy)]
pub struct RestartPolicy {
    /// Failures within the window that are still mended.
    pub max_restarts: usize,
    /// The window.
    pub window: Duration,
    /// The second restart waits so long, the next ones twice as long each.
    pub backoff: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            max_restarts: 10,
            window: Duration::from_secs(60),
            backoff: Duration::from_millis(20),
        }
    }
}

/// The failures of one actor within the window.
#[derive(Debug)]
pub(super) struct Restarts {
    policy: RestartPolicy,
    failures: VecDeque<Instant>,
}

impl Restarts {
    pub(super) fn new(policy: RestartPolicy) -> Self {
        Self { policy, failures: VecDeque::new() }
    }

    /// How long to wait before the next instance; `None`: give up.
    ///
    /// | cause | answer |
    /// |---|---|
    /// | killed on request | at once, not counted |
    /// | panicked, failed or finished, requested or not | counted as a failure: |
    /// | first failure in the window | at once |
    /// | k-th failure | `backoff · 2^(k-2)` |
    /// | more than `max_restarts` | give up |
    pub(super) fn next(&mut self, cause: &Cause, now: Instant) -> Option<Duration> {
        if *cause == Cause::Killed {
            return Some(Duration::ZERO);
        }
        while self.failures.front().is_some_and(|t| now.duration_since(*t) > self.policy.window) {
            self.failures.pop_front();
        }
        self.failures.push_back(now);
        let count = self.failures.len();
        if count > self.policy.max_restarts {
            return None;
        }
        let doublings = u32::try_from(count).ok()?.checked_sub(2);
        Some(
            doublings
                .map_or(Duration::ZERO, |n| self.policy.backoff * 2u32.saturating_pow(n.min(10))),
        )
    }
}
