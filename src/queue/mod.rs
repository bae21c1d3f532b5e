//! The queue on Redis: names of the keys, connections, and how requests and answers are written.
//!
//! `process` and `store` meet only here. An entry of the stream `{ns}:queue` has the fields
//!
//! | field | content |
//! |---|---|
//! | `kind` | `open`, `write`, or `register`: a replay of dead letters |
//! | `to` | the list that the answer is pushed to |
//! | `round` | echoed in the answer |
//! | `head` | JSON: an open request, or the ranges and counts of a write |
//! | `rows` | a write's feature rows: an Arrow IPC stream with one batch a part; a replay's letters |
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
    Answer, decode_entry, decode_reply, encode_open, encode_register, encode_reply, encode_write,
};
pub use connection::{RETRY, RedisLink, blocking_connection};

/// The consumer group of the `store` role on the queue and on the reads.
pub const STORE_GROUP: &str = "store";

/// Redis' generation: a key that is made at set-up and whose absence says that Redis lost
/// everything. Makes it when it is not there.
///
/// # Errors
/// When Redis does not answer.
pub async fn generation(redis: &RedisLink, keys: &Keys) -> redis::RedisResult<String> {
    let mut connection = redis.manager().await?;
    let fresh = uuid::Uuid::now_v7().to_string();
    let key = keys.generation();
    let () = redis::cmd("SET").arg(&key).arg(fresh).arg("NX").query_async(&mut connection).await?;
    redis::cmd("GET").arg(&key).query_async(&mut connection).await
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

    /// Sorted set of the leases of Python workers by expiry.
    #[must_use]
    pub fn permits(&self) -> String {
        self.key("permits")
    }

    /// Hash of an entity's newest values, one field a feature.
    #[must_use]
    pub fn entity(&self, entity_id: &str) -> String {
        self.key(&format!("entity:{entity_id}"))
    }
}
