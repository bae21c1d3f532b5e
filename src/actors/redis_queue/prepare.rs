//! A batch whose critical features are online, as it goes on the queue.

use super::sender::{METER, SharedFields};
use crate::{
    config::AsKnown,
    messages::{Credit, FeatureBatch, FeaturePart, PartHeader, WriteHeader},
    protocol::{ticket::Ticket, window::PartRange},
    queue::encode_write,
    spool::{Chunk, ChunkSpool},
    telemetry::{catalogue::UPLOAD_CHUNKS, traces::Way},
};
use arrow::array::RecordBatch;
use std::sync::Arc;
use uuid::Uuid;

/// With fewer rows a file is not worth its making.
const CHUNK_MIN_ROWS: usize = 1_000;

/// A batch that is online and waits for its turn on the queue.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) fields: SharedFields,
    pub(super) parts: Vec<SentPart>,
    pub(super) rows: usize,
}

#[derive(Debug)]
pub(super) struct SentPart {
    pub(super) range: PartRange,
    pub(super) ticket: Ticket,
    pub(super) _credit: Credit,
    pub(super) sampled_timestamps_us: Vec<i64>,
    /// The batch's id in logs.
    pub(super) batch_id: Uuid,
    /// The root of its trace.
    pub(super) way: Way,
    /// The file with its rows, until it is answered or given up.
    pub(super) chunk: Option<Chunk>,
}

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

/// Whether a part's rows go as a file where the store can read it.
fn goes_as_chunk(part: &FeaturePart) -> bool {
    part.source.is_upload() && part.rows.num_rows() >= CHUNK_MIN_ROWS
}

/// Whether any part of a batch does.
pub(super) fn wants_chunks(batch: &FeatureBatch) -> bool {
    batch.parts.iter().any(goes_as_chunk)
}

/// A file with a part's rows; without one they travel over the queue.
fn chunk_of(part: &FeaturePart, spool: &ChunkSpool) -> Option<Chunk> {
    if !goes_as_chunk(part) {
        return None;
    }
    match spool.write(&part.rows) {
        Ok(chunk) => {
            metrics::counter!(UPLOAD_CHUNKS).increment(1);
            Some(chunk)
        }
        Err(error) => {
            METER.error("spool");
            let error = format!("{error:#}");
            tracing::warn!(error, source = %part.source, "rows go over the queue, not by the spool");
            None
        }
    }
}

/// A batch as it goes on the queue; `spool`: the one that is shared with the store. Blocks.
pub(super) fn prepare(
    batch: FeatureBatch,
    node: String,
    generation: String,
    as_known: AsKnown,
    spool: Option<&ChunkSpool>,
) -> anyhow::Result<(Vec<PartRange>, Outgoing)> {
    let chunks: Vec<Option<Chunk>> =
        batch.parts.iter().map(|p| spool.and_then(|spool| chunk_of(p, spool))).collect();
    let header = WriteHeader {
        node,
        batch_id: batch.id,
        transform: batch.transform,
        script_sha256: batch.script_sha256,
        generation,
        as_known,
        parts: batch
            .parts
            .iter()
            .zip(&chunks)
            .map(|(p, chunk)| PartHeader {
                source: p.source.clone(),
                token: p.token,
                from: p.from,
                to: p.to,
                n_in: p.n_in,
                n_kept: p.n_kept,
                n_dead: p.dead.len() as i64,
                n_filtered: p.n_filtered,
                n_rows: p.rows.num_rows() as i64,
                chunk: chunk.as_ref().map(|chunk| chunk.file().clone()),
            })
            .collect(),
    };
    let sent = |(p, chunk): (&FeaturePart, &Option<Chunk>)| match chunk {
        Some(_) => RecordBatch::new_empty(p.rows.schema()),
        None => p.rows.clone(),
    };
    let rows: Vec<_> = batch.parts.iter().zip(&chunks).map(sent).collect();
    let dead: Vec<_> = batch.parts.iter().map(|p| p.dead.as_slice()).collect();
    let fields = Arc::new(encode_write(&header, &rows, &dead)?);
    let n = header.parts.iter().map(|p| p.n_in).sum::<i64>().cast_unsigned() as usize;
    let parts: Vec<SentPart> = batch
        .parts
        .into_iter()
        .zip(chunks)
        .map(|(p, chunk)| SentPart {
            range: PartRange { source: p.source, token: p.token, from: p.from, to: p.to },
            ticket: p.ticket,
            _credit: p.credit,
            sampled_timestamps_us: p.sampled_timestamps_us,
            batch_id: batch.id,
            way: batch.way.clone(),
            chunk,
        })
        .collect();
    let ranges = parts.iter().map(|p| p.range.clone()).collect();
    Ok((ranges, Outgoing { fields, parts, rows: n }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        messages::feature_row_schema,
        protocol::source::{SourceName, Token},
    };
    use arrow::array::{
        FixedSizeBinaryArray, Float64Array, Int32Array, Int64Array, StringArray,
        TimestampMicrosecondArray,
    };
    use tokio::sync::mpsc;

    fn part(source: SourceName, n: usize) -> FeaturePart {
        let times = || TimestampMicrosecondArray::from(vec![0; n]).with_timezone("UTC");
        let ids = std::iter::repeat_n(None::<[u8; 16]>, n);
        let rows = RecordBatch::try_new(
            feature_row_schema(),
            vec![
                Arc::new(StringArray::from(vec!["e"; n])),
                Arc::new(StringArray::from(vec!["f"; n])),
                Arc::new(Float64Array::from(vec![1.0; n])),
                Arc::new(times()),
                Arc::new(times()),
                Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(ids, 16).unwrap()),
                Arc::new(Int64Array::from_iter_values(0..n as i64)),
                Arc::new(Int32Array::from(vec![0; n])),
            ],
        )
        .unwrap();
        let token = Token::after(0);
        let to = n as i64;
        let (abandoned, _) = mpsc::unbounded_channel();
        FeaturePart {
            ticket: Ticket::new(source.clone(), token, 0, to, abandoned),
            source,
            token,
            from: 0,
            to,
            n_in: to,
            n_kept: to,
            n_filtered: 0,
            rows,
            dead: Vec::new(),
            online: Vec::new(),
            credit: Credit::default(),
            sampled_timestamps_us: Vec::new(),
        }
    }

    fn batch() -> FeatureBatch {
        FeatureBatch {
            id: uuid::Uuid::now_v7(),
            way: Way::default(),
            stream: 0,
            transform: "x".into(),
            script_sha256: "h".into(),
            parts: vec![
                part(SourceName::kafka("s", "t", 0), CHUNK_MIN_ROWS),
                part(SourceName::upload("s", "u"), CHUNK_MIN_ROWS - 1),
                part(SourceName::upload("s", "v"), CHUNK_MIN_ROWS),
            ],
        }
    }

    fn header(outgoing: &Outgoing) -> WriteHeader {
        let (_, head) = outgoing.fields.iter().find(|(name, _)| *name == "head").unwrap();
        serde_json::from_slice(head).unwrap()
    }

    fn files(outgoing: &Outgoing) -> Vec<bool> {
        let parts = header(outgoing).parts;
        assert_eq!(parts.iter().filter(|p| p.n_rows == 0).count(), 0);
        parts.iter().map(|p| p.chunk.is_some()).collect()
    }

    #[test]
    fn large_parts_of_uploads_go_as_files_that_live_until_they_are_answered() {
        let dir = tempfile::tempdir().unwrap();
        let spool = ChunkSpool::new(dir.path(), "n").unwrap();
        assert!(wants_chunks(&batch()));
        let (_, outgoing) =
            prepare(batch(), "n".into(), "g".into(), AsKnown::Arrival, Some(&spool)).unwrap();
        assert_eq!(files(&outgoing), [false, false, true]);
        let path = outgoing.parts[2].chunk.as_ref().unwrap().path().to_owned();
        assert!(path.is_file());
        drop(outgoing);
        assert!(!path.exists(), "given up");
    }

    #[test]
    fn without_a_spool_that_can_be_written_rows_go_over_the_queue() {
        let (_, outgoing) =
            prepare(batch(), "n".into(), "g".into(), AsKnown::Arrival, None).unwrap();
        assert_eq!(files(&outgoing), [false; 3]);
        let dir = tempfile::tempdir().unwrap();
        let spool = ChunkSpool::new(dir.path(), "n").unwrap();
        std::fs::remove_dir(dir.path().join("chunks")).unwrap();
        let (_, outgoing) =
            prepare(batch(), "n".into(), "g".into(), AsKnown::Arrival, Some(&spool)).unwrap();
        assert_eq!(files(&outgoing), [false; 3]);
    }
}
