//! RedisQueue: the way between `process` and `store`, and the online store.
//!
//! Two sides, which meet only in Redis:
//!
//! * the sending side ([`RedisQueue`]) takes [`FeatureBatch`](crate::messages::FeatureBatch)es,
//!   writes their critical features online, then puts them on the queue in the order of their
//!   positions, and passes the store's answers on;
//! * the serving side ([`RedisQueueServer`]) takes entries off the queue for the DuckDbWriter and
//!   answers them once they are durable;
//! * beside it, [`PlainWrites`] takes the write requests of other clients off a stream of their own.
//!
//! Promises: critical features are online before their rows are on the queue; an entry leaves the
//! queue only when it was answered; what is answered is in DuckDB.

mod answering;
mod durable;
mod gauges;
mod online_check;
mod operator;
mod parts;
mod plain_writes;
mod prepare;
mod reads;
mod rows;
mod sender;
mod server;
mod transport;

pub use durable::DurablePositions;
pub use online_check::verify_online;
pub use operator::{adopt, note_script, register_upload, request};
pub use parts::QueueParts;
pub use plain_writes::{Owed, PlainWrites};
pub use reads::{Question, ask, select, select_for_client};
pub use rows::{Row, rows};
pub use sender::RedisQueue;
pub use server::RedisQueueServer;
