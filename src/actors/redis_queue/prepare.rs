//! A batch whose critical features are online, as it goes on the queue.

use super::sender::{Outgoing, SentPart};
use crate::{
    messages::{FeatureBatch, PartHeader, WriteHeader},
    protocol::window::PartRange,
    queue::encode_write,
};
use std::sync::Arc;

/// Why a batch did not get onto the queue. Its sources are read again.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotQueued {
    /// Redis is not the Redis it was.
    #[error("{0}")]
    Generation(String),
    /// A defect, or the node stops.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

impl From<redis::RedisError> for NotQueued {
    fn from(error: redis::RedisError) -> Self {
        Self::Other(error.into())
    }
}

/// A batch as it goes on the queue.
pub(super) fn prepare(
    batch: FeatureBatch,
    node: String,
    generation: String,
) -> anyhow::Result<(Vec<PartRange>, Outgoing)> {
    let header = WriteHeader {
        node,
        transform: batch.transform,
        script_sha256: batch.script_sha256,
        generation,
        parts: batch
            .parts
            .iter()
            .map(|p| PartHeader {
                source: p.source.clone(),
                token: p.token,
                from: p.from,
                to: p.to,
                n_in: p.n_in,
                n_kept: p.n_kept,
                n_dead: p.dead.len() as i64,
                n_filtered: p.n_filtered,
                n_rows: p.rows.num_rows() as i64,
            })
            .collect(),
    };
    let rows: Vec<_> = batch.parts.iter().map(|p| p.rows.clone()).collect();
    let dead: Vec<_> = batch.parts.iter().map(|p| p.dead.as_slice()).collect();
    let fields = Arc::new(encode_write(&header, &rows, &dead)?);
    let n = header.parts.iter().map(|p| p.n_in).sum::<i64>().cast_unsigned() as usize;
    let parts: Vec<SentPart> = batch
        .parts
        .into_iter()
        .map(|p| SentPart {
            range: PartRange { source: p.source, token: p.token, from: p.from, to: p.to },
            ticket: p.ticket,
            _credit: p.credit,
            sampled_timestamps_us: p.sampled_timestamps_us,
        })
        .collect();
    let ranges = parts.iter().map(|p| p.range.clone()).collect();
    Ok((ranges, Outgoing { fields, parts, rows: n }))
}
