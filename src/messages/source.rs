//! Between KafkaIngest and the RedisQueue: opening sources and acknowledged positions.

use crate::protocol::source::{OpenReply, OpenRequest, SourceName};
use actix::Message;

/// Asks the store where a source is to be read and under which token it is written.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct OpenSource(pub OpenRequest);

/// A source is no longer read here: what of it still waits for its turn blocks nobody.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct CloseSource(pub SourceName);

/// The store's answer to [`OpenSource`], or that a source is halted without having been asked for.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct SourceOpened {
    /// Which source.
    pub source: SourceName,
    /// Where to read, or why not.
    pub reply: OpenReply,
    /// It answers an open, and perhaps one that is long past; `false`: something was found wrong while the
    /// source was read.
    pub asked: bool,
}

/// A batch was acknowledged: DuckDB holds its effect.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct Acknowledged {
    /// Whose batch.
    pub source: SourceName,
    /// Record timestamps of a few of its events, UTC microseconds, for the latency to durable.
    pub sampled_timestamps_us: Vec<i64>,
}
