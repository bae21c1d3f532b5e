//! What a node brings along when nothing is configured: a redis-server as its child, and
//! librdkafka's in-process broker.

mod kafka;
mod redis;

pub use kafka::EmbeddedKafka;
pub use redis::EmbeddedRedis;
