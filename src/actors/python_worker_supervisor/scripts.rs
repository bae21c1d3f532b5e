//! The texts of script versions, from the store.
//!
//! What a version showed online must become durable by the same version, whoever owns the source
//! by then and whatever the file says. The store keeps the text of every version before its first
//! batch.

use crate::{
    messages::ScriptText,
    python::Script,
    queue::{Keys, RETRY, RedisLink},
};
use redis::{AsyncCommands, aio::ConnectionManager};
use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

/// Texts that are kept at hand; whoever swaps often needs few of them again.
const MOST_KEPT: usize = 64;

/// See the module. Outlives the instances of the PythonWorkerSupervisor.
#[derive(Debug)]
pub struct ScriptShelf {
    redis: RedisLink,
    keys: Keys,
    known: Mutex<HashMap<String, Arc<ScriptText>>>,
    connection: tokio::sync::OnceCell<ConnectionManager>,
}

impl ScriptShelf {
    /// The shelf of a namespace.
    #[must_use]
    pub fn new(redis: RedisLink, keys: &Keys) -> Self {
        Self {
            redis,
            keys: keys.clone(),
            known: Mutex::default(),
            connection: tokio::sync::OnceCell::new(),
        }
    }

    /// The version `sha256` of the script whose file is `path`, however long the store is away; its
    /// parameters are empty. `None`: the store does not know it.
    pub async fn fetch(&self, path: &Path, sha256: &str) -> Option<Script> {
        loop {
            match self.text(sha256).await {
                Ok(text) => return script_of(path, sha256, &*text?),
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(
                        error,
                        sha256,
                        "a script version cannot be asked for; trying again"
                    );
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// The texts of a version; `None`: the store does not know it.
    ///
    /// # Errors
    /// When no store answers.
    pub async fn text(&self, sha256: &str) -> anyhow::Result<Option<Arc<ScriptText>>> {
        if let Some(text) = self.known().get(sha256) {
            return Ok(Some(text.clone()));
        }
        let found =
            crate::actors::transform_deployer::history::text(&self.redis, &self.keys, sha256);
        let Some(text) = found.await?.map(Arc::new) else { return Ok(None) };
        self.keep(sha256, text.clone());
        Ok(Some(text))
    }

    /// The same, of a version that is at hand.
    pub fn remember(&self, script: &Script) {
        self.keep(&script.sha256, Arc::new(ScriptText::of(script)));
    }

    fn keep(&self, sha256: &str, text: Arc<ScriptText>) {
        let mut known = self.known();
        if known.len() >= MOST_KEPT {
            known.clear();
        }
        known.insert(sha256.to_owned(), text);
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<ScriptText>>> {
        // A panicking holder leaves no entry half-changed.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An operator has said that what a version fails on is dead, on every node.
    ///
    /// # Errors
    /// Redis' word.
    pub async fn accept(redis: &RedisLink, keys: &Keys, sha256: &str) -> redis::RedisResult<()> {
        redis.manager().await?.sadd(keys.accepted_scripts(), sha256).await
    }

    /// Whether an operator has said so. A Redis that does not answer has not.
    pub async fn is_accepted(&self, sha256: &str) -> bool {
        let mut connection = self.connection().await;
        let key = self.keys.accepted_scripts();
        let accepted: redis::RedisResult<bool> = connection.sismember(key, sha256).await;
        accepted.unwrap_or_else(|error| {
            tracing::warn!(%error, "it could not be asked whether a script is accepted");
            false
        })
    }

    async fn connection(&self) -> ConnectionManager {
        self.connection.get_or_init(|| self.redis.manager_at_last()).await.clone()
    }
}

/// What is not what its name says is not run.
fn script_of(path: &Path, sha256: &str, text: &ScriptText) -> Option<Script> {
    let script = text.script(path);
    if script.sha256 == sha256 {
        return Some(script);
    }
    tracing::error!(sha256, is = script.sha256, "a kept script version is another one");
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_not_the_version_is_not_run() {
        let path = Path::new("/scripts/s.py");
        let script = Script::new("s", path, "def transform(event: dict):\n    return \"\u{e4}\"\n");
        let text = ScriptText::of(&script);
        let found = script_of(path, &script.sha256, &text).unwrap();
        assert_eq!((found.name, found.source), (script.name.clone(), script.source.clone()));
        assert!(script_of(path, "abc", &text).is_none());
    }
}
