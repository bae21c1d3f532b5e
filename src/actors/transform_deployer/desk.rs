//! Where wishes about scripts come in.

use crate::{
    actors::python_worker_supervisor::TrialReport, config::Config, messages::ScriptText,
    protocol::script_history::ScriptAction,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::{mpsc, oneshot};

/// What somebody wants of a stream's script.
#[derive(Debug, Clone)]
pub enum Wish {
    /// Try this version and, if it passes, run it.
    Deploy(ScriptText),
    /// Run an earlier version again; `None`: the one before. A beginning of the SHA-256 is enough.
    RollBack(Option<String>),
    /// The stream's events wait.
    Pause(String),
    /// They go on.
    Resume,
    /// Other parameters for the same version.
    Reconfigure(Map<String, Value>),
}

/// What became of a wish.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decided {
    /// Which stream.
    pub stream: String,
    /// What happened; [`ScriptAction::Refused`]: nothing has changed.
    pub action: ScriptAction,
    /// The version that it is about.
    pub version: String,
    /// The version that was active before.
    pub from: Option<String>,
    /// Why.
    pub reason: String,
    /// What the trial found, where there was one.
    pub trial: Option<TrialReport>,
}

/// Why nothing became of a wish.
#[derive(Debug, thiserror::Error)]
pub enum WishError {
    /// It makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Something else happened to the stream's script meanwhile.
    #[error("{0}")]
    Overtaken(String),
    /// It could not be carried out, or nobody knows whether it was.
    #[error("{0}")]
    Failed(String),
}

/// A wish on its way.
pub(super) struct Asked {
    pub stream: usize,
    pub wish: Wish,
    pub answer: oneshot::Sender<Result<Decided, WishError>>,
}

/// See the module. Outlives the instances of the TransformDeployer.
pub struct DeployDesk {
    config: Arc<Config>,
    asked: mpsc::UnboundedSender<Asked>,
    pub(super) taken: tokio::sync::Mutex<mpsc::UnboundedReceiver<Asked>>,
    /// The version of each stream's file that was looked at last.
    seen: Mutex<HashMap<usize, String>>,
}

impl DeployDesk {
    /// An empty desk.
    #[must_use]
    pub fn new(config: Arc<Config>) -> Self {
        let (asked, taken) = mpsc::unbounded_channel();
        let taken = tokio::sync::Mutex::new(taken);
        Self { config, asked, taken, seen: Mutex::default() }
    }

    /// Has a wish carried out.
    ///
    /// # Errors
    /// [`WishError`].
    pub async fn wish(&self, stream: &str, wish: Wish) -> Result<Decided, WishError> {
        let known = self.config.streams.iter().position(|s| s.name == stream);
        let stream = known.ok_or_else(|| {
            let names: Vec<&str> = self.config.streams.iter().map(|s| s.name.as_str()).collect();
            let names = names.join(", ");
            WishError::Usage(format!("there is no stream `{stream}`; there are {names}"))
        })?;
        let (answer, decided) = oneshot::channel();
        // The receiver is in this very desk.
        let _ = self.asked.send(Asked { stream, wish, answer });
        decided.await.unwrap_or_else(|_| {
            let why = "the TransformDeployer was killed meanwhile; `millstream transforms history` tells \
                       whether it was done";
            Err(WishError::Failed(why.into()))
        })
    }

    /// The version of a stream's file that was looked at last.
    pub(super) fn seen(&self, stream: usize) -> Option<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(&stream).cloned()
    }

    /// A version of a stream's file has been dealt with.
    pub(super) fn set_seen(&self, stream: usize, sha256: &str) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(stream, sha256.to_owned());
    }
}
