//! Between KafkaIngest and the RedisQueue: opening sources and acknowledged positions.

use crate::protocol::source::{OpenReply, OpenRequest, Position, SourceName, Token};
use actix::Message;

/// Asks the store where a source is to be read and under which token it is written.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct OpenSource(pub OpenRequest);

/// The store's answer to [`OpenSource`].
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct SourceOpened {
    /// Which source.
    pub source: SourceName,
    /// Where to read, or why not.
    pub reply: OpenReply,
}

/// DuckDB holds the effect of everything before `next_pos`.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct Acknowledged {
    /// Which source.
    pub source: SourceName,
    /// Under which token it was written.
    pub token: Token,
    /// The first position that is not acknowledged.
    pub next_pos: Position,
    /// Record timestamps of a few acknowledged events, UTC microseconds.
    pub sampled_timestamps_us: Vec<i64>,
}
