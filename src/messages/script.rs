//! What the store is asked to write down of a stream's script.

use crate::{
    protocol::script_history::{ScriptAction, ScriptState},
    python::{HelperModule, Script},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::Path;

/// The texts of a script version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScriptText {
    /// Name of the script.
    pub name: String,
    /// The script.
    pub source: String,
    /// Its helper modules.
    #[serde(default)]
    pub modules: Vec<HelperModule>,
}

impl ScriptText {
    /// Those of a script.
    #[must_use]
    pub fn of(script: &Script) -> Self {
        let Script { name, source, modules, .. } = script;
        Self { name: name.clone(), source: source.to_string(), modules: modules.clone() }
    }

    /// The script, as if it were in the file `path`; its parameters are empty.
    #[must_use]
    pub fn script(&self, path: &Path) -> Script {
        Script::with_modules(&self.name, path, &self.source, self.modules.clone())
    }
}

/// Asks the store to append an event to a stream's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoteScript {
    /// A UUID; the same one twice is the same event.
    pub note_id: String,
    /// Which stream.
    pub stream: String,
    /// What happened.
    pub action: ScriptAction,
    /// The version that it is about, SHA-256.
    pub sha256: String,
    /// Its texts, when the store may not have them yet.
    pub text: Option<ScriptText>,
    /// The version that must be active for the event to be taken.
    pub expected: Option<String>,
    /// Why, for people.
    pub reason: String,
    /// With [`ScriptAction::Reconfigured`], the parameters.
    pub params: Option<Map<String, Value>>,
    /// What the trial found, for people and programs.
    pub trial: Option<Value>,
    /// Which node says so.
    pub node: String,
}

/// The answer to a [`NoteScript`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScriptNoted {
    /// Whether the event was taken; else another version is active than the one that was expected.
    pub taken: bool,
    /// What the stream runs now.
    pub state: ScriptState,
}
