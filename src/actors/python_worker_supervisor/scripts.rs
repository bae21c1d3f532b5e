//! The texts of all script versions that ever showed a value online, in Redis.
//!
//! What a version showed online must become durable by the same version, whoever owns the source
//! by then and whatever the file says. So a version's text is in the hash `{ns}:scripts` before its
//! first batch goes on.

use crate::{
    python::Script,
    queue::{Keys, RETRY, RedisLink},
};
use redis::{AsyncCommands, aio::ConnectionManager};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashSet,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

/// A version as it is kept.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    name: String,
    text: String,
}

/// See the module. Outlives the instances of the PythonWorkerSupervisor.
#[derive(Debug)]
pub struct ScriptShelf {
    redis: RedisLink,
    key: String,
    accepted: String,
    /// Redis' generation as this node knows it: another one has lost what an earlier one had.
    generation: Arc<Mutex<String>>,
    /// What is known to be kept, by generation and version.
    published: Mutex<HashSet<(String, String)>>,
    connection: tokio::sync::OnceCell<ConnectionManager>,
}

impl ScriptShelf {
    /// The shelf of a namespace.
    #[must_use]
    pub fn new(redis: RedisLink, keys: &Keys, generation: Arc<Mutex<String>>) -> Self {
        Self {
            redis,
            key: keys.scripts(),
            accepted: keys.accepted_scripts(),
            generation,
            published: Mutex::default(),
            connection: tokio::sync::OnceCell::new(),
        }
    }

    /// Waits until the version's text is kept, however long Redis is away.
    pub async fn publish(&self, script: &Script) {
        let generation = self.generation.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let version = (generation, script.sha256.clone());
        if self.published.lock().unwrap_or_else(PoisonError::into_inner).contains(&version) {
            return;
        }
        let kept = Kept { name: script.name.clone(), text: script.source.to_string() };
        // Two strings: there is nothing that could not be written.
        let json = serde_json::to_string(&kept).unwrap_or_default();
        loop {
            let mut connection = self.connection().await;
            let done: redis::RedisResult<bool> =
                connection.hset_nx(&self.key, &script.sha256, &json).await;
            match done {
                Ok(_) => break,
                Err(error) => {
                    tracing::warn!(%error, script = script.name, "a script version could not be kept; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
        self.published.lock().unwrap_or_else(PoisonError::into_inner).insert(version);
    }

    /// The version `sha256` of the script whose file is `path`, however long Redis is away. `None`:
    /// Redis has lost it.
    pub async fn fetch(&self, path: &Path, sha256: &str) -> Option<Script> {
        let json: Option<String> = loop {
            let mut connection = self.connection().await;
            match connection.hget(&self.key, sha256).await {
                Ok(json) => break json,
                Err(error) => {
                    tracing::warn!(%error, sha256, "a script version could not be fetched; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        let kept: Kept = match serde_json::from_str(&json?) {
            Ok(kept) => kept,
            Err(error) => {
                tracing::error!(%error, sha256, "a kept script version cannot be read");
                return None;
            }
        };
        let script = Script::new(&kept.name, path, &kept.text);
        if script.sha256 != sha256 {
            tracing::error!(sha256, is = script.sha256, "a kept script version is another one");
            return None;
        }
        Some(script)
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
        let accepted: redis::RedisResult<bool> = connection.sismember(&self.accepted, sha256).await;
        accepted.unwrap_or_else(|error| {
            tracing::warn!(%error, "it could not be asked whether a script is accepted");
            false
        })
    }

    async fn connection(&self) -> ConnectionManager {
        self.connection.get_or_init(|| self.redis.manager_at_last()).await.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::EmbeddedRedis;

    #[actix::test]
    async fn a_version_is_found_again_until_redis_loses_it_and_is_kept_again_then() {
        let dir = tempfile::tempdir().unwrap();
        let server = EmbeddedRedis::start(&dir.path().join("redis")).unwrap();
        let redis = RedisLink::new(server.url()).unwrap();
        let generation = Arc::new(Mutex::new("first".to_owned()));
        let keys = Keys::new("ns");
        let shelf = ScriptShelf::new(redis.clone(), &keys, generation.clone());
        let path = Path::new("/scripts/s.py");
        let script = Script::new("s", path, "def transform(event: dict):\n    return \"ä\"\n");
        assert!(shelf.fetch(path, &script.sha256).await.is_none());
        shelf.publish(&script).await;

        // Another node, another instance.
        let other = ScriptShelf::new(redis.clone(), &keys, Arc::default());
        let found = other.fetch(path, &script.sha256).await.unwrap();
        assert_eq!((found.name, found.source), (script.name.clone(), script.source.clone()));

        let mut connection = redis.manager().await.unwrap();
        let () = redis::cmd("FLUSHALL").query_async(&mut connection).await.unwrap();
        assert!(other.fetch(path, &script.sha256).await.is_none());
        *generation.lock().unwrap() = "second".to_owned();
        shelf.publish(&script).await;
        assert!(other.fetch(path, &script.sha256).await.is_some());

        // What is not what its name says is not run.
        let () =
            connection.hset(keys.scripts(), "abc", r#"{"name":"s","text":"x"}"#).await.unwrap();
        assert!(other.fetch(path, "abc").await.is_none());
    }
}
