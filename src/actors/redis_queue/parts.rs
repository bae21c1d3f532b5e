//! What the sending side shares with its node.

use super::durable::DurablePositions;
use crate::{
    actors::{FileUpload, KafkaIngest, Replayer},
    kafka::AcknowledgedPositions,
    queue::{self, Keys, RedisLink},
    spool::SharedSpool,
    supervision::Link,
};
use std::sync::{Arc, Mutex, PoisonError};

/// What outlives an instance.
#[derive(Debug, Clone)]
pub struct QueueParts {
    /// Redis.
    pub redis: RedisLink,
    /// This run of this node; answers go to its list.
    pub node_id: Arc<str>,
    /// The node's name in the ledger.
    pub node_name: String,
    /// Where positions and acknowledgements go.
    pub ingest: Link<KafkaIngest>,
    /// Where those of replays go.
    pub replayer: Link<Replayer>,
    /// Where those of uploads go.
    pub uploads: Link<FileUpload>,
    /// Positions that DuckDB acknowledged; told here, so that no killed actor can lose them.
    pub acknowledged: Arc<AcknowledgedPositions>,
    /// The same for every source that is open, whatever it is read from.
    pub durable: Arc<DurablePositions>,
    /// Redis' generation, as this node knows it.
    pub generation: Arc<Mutex<String>>,
    /// The spool of this node.
    pub spool: Arc<SharedSpool>,
}

impl QueueParts {
    /// Redis lost data: waits until the store has set a new generation. Batches that were on their
    /// way are read again, which opens their sources and so puts their tokens back.
    pub(super) async fn renew_generation(&self, keys: &Keys) -> redis::RedisResult<()> {
        let generation = queue::generation_at_last(&self.redis, keys).await?;
        *self.generation.lock().unwrap_or_else(PoisonError::into_inner) = generation;
        Ok(())
    }
}
