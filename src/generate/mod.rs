//! Events to feed a node with: made up, or replayed from a real file. Pure logic; the actor and
//! the Kafka producer are elsewhere.
//!
//! **Made up.** [`EventId`] numbers the events, and an event *is* its id: [`EventMaker`] turns
//! the id into key, payload and [`Fate`] without any state, so that the judge, which sees only
//! ids in a store, knows what each of them must have become. The [`Mix`] says how many events
//! are late, sent twice, malformed or from the future, and how unevenly they fall on entities.
//! Each kind of malformed event has its reason from [`reasons`], which the decoder must give.
//! [`EventMaker::file`] writes events as a file instead of records.
//!
//! **Replayed.** [`Replay`] reads the rows of an NDJSON, CSV or Parquet file as JSON payloads,
//! a batch at a time.
//!
//! What holds:
//!
//! - the same stream, seed, mix and id give the same event, byte for byte, on one build;
//! - [`EventMaker::fate`] and [`EventMaker::duplicate`] agree with [`EventMaker::make`];
//! - a replay never holds more than a block of the file (see [`replay`] for its size), loses no
//!   row without an error, and numbers rows from 0 without gaps.

mod clicks;
mod event;
mod features;
mod file;
mod hash;
mod id;
mod mix;
mod object;
pub use crate::decode::reasons;
pub mod replay;
mod zipf;

pub use event::{Builtin, Event, EventMaker, Fate};
pub use file::{EventFile, FileFormat};
pub use id::{EventId, IdParts};
pub use mix::{Mix, MixError};
pub use replay::{Format, Replay, ReplayError, ReplayOptions, ReplayRecord};
