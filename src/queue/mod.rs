//! The queue on Redis: names of the keys, connections, and how requests and answers are written.
//!
//! `process` and `store` meet only here. An entry of the stream `{ns}:queue` has the fields
//!
//! | field | content |
//! |---|---|
//! | `kind` | `open`, `write`, `adopt`, `note`: of a stream's script, `upload`, or `register`: a replay of dead letters |
//! | `to` | the list that the answer is pushed to |
//! | `round` | echoed in the answer |
//! | `again` | there when a write is sent a second time, because its entry was lost |
//! | `head` | JSON: an open request, the ranges and counts of a write, an adoption, a note, an upload, a replay |
//! | `rows` | a write's feature rows: an Arrow IPC stream with one batch a part, which is empty where the part's header names a chunk in the spool; a replay's letters |
//! | `dead` | a write's dead letters, likewise; missing when there are none |
//!
//! Plain write requests come on a stream of their own, `{ns}:writes`; an entry has the fields
//!
//! | field | content |
//! |---|---|
//! | `json` | `{"table": "features_table", "data": {…one row…}}` |
//! | `reply` | optional: the list that the answer is pushed to |

mod codec;
mod connection;

pub use codec::{
    Answer, Fields, decode_entry, decode_reply, encode_adopt, encode_note, encode_open,
    encode_register, encode_reply, encode_upload, encode_write,
};
pub use connection::{RETRY, ReadingSlot, RedisLink, blocking_connection};

/// The consumer group of the `store` role on the queue and on the reads.
pub const STORE_GROUP: &str = "store";

/// Redis' generation: a key that the store sets, and sets anew when Redis lost data; its absence
/// says that Redis lost everything, or that no store has looked at it yet.
///
/// # Errors
/// When Redis does not answer.
pub async fn generation(redis: &RedisLink, keys: &Keys) -> redis::RedisResult<Option<String>> {
    let mut connection = redis.manager().await?;
    redis::cmd("GET").arg(keys.generation()).query_async(&mut connection).await
}

/// Waits until a store has set the generation.
///
/// # Errors
/// When Redis does not answer.
pub async fn generation_at_last(redis: &RedisLink, keys: &Keys) -> redis::RedisResult<String> {
    let mut connection = redis.manager().await?;
    loop {
        let found: Option<String> =
            redis::cmd("GET").arg(keys.generation()).query_async(&mut connection).await?;
        match found {
            Some(generation) => return Ok(generation),
            None => tokio::time::sleep(GENERATION_RETRY).await,
        }
    }
}

/// How often a generation that is not there is looked for.
const GENERATION_RETRY: std::time::Duration = std::time::Duration::from_millis(20);

/// How long a Redis that loads its data at its start is waited for between two looks.
const LOADING_RETRY: std::time::Duration = std::time::Duration::from_millis(200);

/// Waits while Redis loads its data; and makes sure that it never throws any of it away.
///
/// # Errors
/// When Redis does not answer, or evicts keys when its memory is full.
pub async fn wait_loaded(redis: &RedisLink) -> anyhow::Result<()> {
    let mut connection = redis.manager().await?;
    let mut told = false;
    loop {
        let asked: redis::RedisResult<Vec<String>> = redis::cmd("CONFIG")
            .arg("GET")
            .arg("maxmemory-policy")
            .query_async(&mut connection)
            .await;
        match asked {
            Ok(policy) => {
                let policy = policy.get(1).map_or("noeviction", String::as_str);
                anyhow::ensure!(
                    policy == "noeviction",
                    "Redis evicts keys when its memory is full (maxmemory-policy {policy}), which would lose writes \
                     that wait on the queue: set it to noeviction"
                );
                return Ok(());
            }
            Err(error) if error.code() == Some("LOADING") || error.kind() == LOADING => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!("Redis loads its data; waiting for it");
                }
                tokio::time::sleep(LOADING_RETRY).await;
            }
            // A managed Redis may hide its settings.
            Err(error) if !error.is_io_error() => {
                tracing::warn!(%error, "Redis does not tell its maxmemory-policy; it must be noeviction");
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// The kind of error that Redis gives while it loads.
const LOADING: redis::ErrorKind = redis::ErrorKind::Server(redis::ServerErrorKind::BusyLoading);

/// Permits may be granted at once: whoever holds this Redis as its child knows that no other node
/// uses it, and that no worker of an earlier life outlived its node.
///
/// # Errors
/// When Redis does not answer.
pub async fn permits_at_once(redis: &RedisLink, keys: &Keys) -> redis::RedisResult<()> {
    let mut connection = redis.manager().await?;
    let mut pipeline = redis::pipe();
    pipeline.atomic().set(keys.permits_from(), 0).ignore().del(keys.permits()).ignore();
    pipeline.query_async(&mut connection).await
}

/// Names of the keys of one namespace.
#[derive(Debug, Clone)]
pub struct Keys {
    namespace: String,
}

impl Keys {
    /// The keys of a namespace.
    #[must_use]
    pub fn new(namespace: &str) -> Self {
        Self { namespace: namespace.to_owned() }
    }

    /// The namespace itself, which scripts put before the keys they touch.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    fn key(&self, suffix: &str) -> String {
        format!("{}:{suffix}", self.namespace)
    }

    /// Stream of opens and writes.
    #[must_use]
    pub fn queue(&self) -> String {
        self.key("queue")
    }

    /// Says that a node that takes files lives; it expires.
    #[must_use]
    pub fn upload_node(&self, node: &str) -> String {
        self.key(&format!("upload_node:{node}"))
    }

    /// Stream of reads.
    #[must_use]
    pub fn reads(&self) -> String {
        self.key("reads")
    }

    /// Stream of plain write requests.
    #[must_use]
    pub fn writes(&self) -> String {
        self.key("writes")
    }

    /// Stream of entries that can never be stored, for a person to look at.
    #[must_use]
    pub fn quarantine(&self) -> String {
        self.key("quarantine")
    }

    /// List of the answers to one node.
    #[must_use]
    pub fn replies(&self, node: &str) -> String {
        self.key(&format!("replies:{node}"))
    }

    /// Hash: source → the token that may write online.
    #[must_use]
    pub fn tokens(&self) -> String {
        self.key("tokens")
    }

    /// Made at set-up; its absence says that Redis lost everything.
    #[must_use]
    pub fn generation(&self) -> String {
        self.key("generation")
    }

    /// The run of the Redis server that the store has looked at last.
    #[must_use]
    pub fn run_id(&self) -> String {
        self.key("run_id")
    }

    /// The database that this namespace belongs to.
    #[must_use]
    pub fn store(&self) -> String {
        self.key("store")
    }

    /// The generation whose online store is complete.
    #[must_use]
    pub fn rebuilt(&self) -> String {
        self.key("rebuilt")
    }

    /// Hash: source → what its last owner may have shown online, as JSON.
    #[must_use]
    pub fn promised(&self) -> String {
        self.key("promised")
    }

    /// Sorted set of the leases of Python workers by expiry.
    #[must_use]
    pub fn permits(&self) -> String {
        self.key("permits")
    }

    /// The moment, on Redis' clock in milliseconds, from which permits are granted.
    #[must_use]
    pub fn permits_from(&self) -> String {
        self.key("permits_from")
    }

    /// Sorted set: nodes that want a permit, by the moment until which that holds.
    #[must_use]
    pub fn permits_wanted(&self) -> String {
        self.key("permits_wanted")
    }

    /// Set: script versions whose failures an operator has taken for the data's fault.
    #[must_use]
    pub fn accepted_scripts(&self) -> String {
        self.key("accepted_scripts")
    }

    /// Hash: stream → number of the last event of its script that a node has heard of.
    #[must_use]
    pub fn script_events(&self) -> String {
        self.key("script_events")
    }

    /// Hash of a feature's newest value over all entities.
    #[must_use]
    pub fn feature(&self, feature_name: &str) -> String {
        self.key(&format!("feature:{feature_name}"))
    }

    /// Hash of an entity's newest values, one field a feature.
    #[must_use]
    pub fn entity(&self, entity_id: &str) -> String {
        self.key(&format!("entity:{entity_id}"))
    }
}
