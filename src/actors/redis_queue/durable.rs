//! How far every open source is durable, as its answers say.

use crate::protocol::source::{Position, SourceName};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Positions before which everything is in DuckDB, by source. Outlives the instances of the
/// [`RedisQueue`](super::RedisQueue).
#[derive(Debug, Default)]
pub struct DurablePositions(Mutex<HashMap<SourceName, Position>>);

impl DurablePositions {
    /// The source is read from here on.
    pub fn opened(&self, source: SourceName, next_pos: Position) {
        self.lock().insert(source, next_pos);
    }

    /// The store took a part. A source that is closed stays closed.
    pub fn advance(&self, source: &SourceName, next_pos: Position) {
        if let Some(at) = self.lock().get_mut(source) {
            *at = next_pos.max(*at);
        }
    }

    /// The source is not read here for now.
    pub fn close(&self, source: &SourceName) {
        self.lock().remove(source);
    }

    /// `None`: it is not open.
    #[must_use]
    pub fn get(&self, source: &SourceName) -> Option<Position> {
        self.lock().get(source).copied()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SourceName, Position>> {
        // A panicking holder leaves no entry half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
