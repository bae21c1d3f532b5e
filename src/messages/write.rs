//! Between the two sides of the RedisQueue, and between its serving side and the DuckDbWriter.

use super::features::OnlineValue;
use super::{
    replay::RegisterReplay,
    script::{NoteScript, ScriptNoted},
    upload::{RegisterUpload, UploadRegistered},
};
use crate::config::AsKnown;
use crate::protocol::{
    apply::Decision,
    source::{AdoptAt, OpenReply, OpenRequest, Position, SourceName, Token},
    version::Version,
};
use actix::Message;
use arrow::array::RecordBatch;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, mpsc::UnboundedSender, oneshot};
use uuid::Uuid;

/// The range and the counts of one part of a write, as its ledger line will say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartHeader {
    /// Whose positions.
    pub source: SourceName,
    /// The token under which they were read.
    pub token: Token,
    /// First position.
    pub from: Position,
    /// The position after the last.
    pub to: Position,
    /// Events in the range: `n_kept + n_dead + n_filtered`.
    pub n_in: i64,
    /// Events with at least one row.
    pub n_kept: i64,
    /// Events that are dead letters.
    pub n_dead: i64,
    /// Events that the script filtered.
    pub n_filtered: i64,
    /// Feature rows.
    pub n_rows: i64,
    /// Where the rows are, when they do not travel with the write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk: Option<ChunkFile>,
}

/// The rows of a part as a Parquet file in the spool, see [`crate::spool`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkFile {
    /// Its name in the folder of chunks.
    pub name: String,
    /// Lower-case hex of its SHA-256.
    pub sha256: String,
}

/// What a write says besides its rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteHeader {
    /// Which node wrote it, for the ledger.
    pub node: String,
    /// The batch's id in logs; nil in writes of other clients, or of a node that did not know it.
    #[serde(default)]
    pub batch_id: Uuid,
    /// Name of the script.
    pub transform: String,
    /// Version of the script.
    pub script_sha256: String,
    /// Redis' generation when the online values were written.
    pub generation: String,
    /// From when on its rows count as known.
    #[serde(default)]
    pub as_known: AsKnown,
    /// One a source.
    pub parts: Vec<PartHeader>,
}

/// A write, decoded: part `i` of the header has `rows[i]` and `dead[i]`.
#[derive(Debug, Clone)]
pub struct WriteRequest {
    /// Ranges and counts.
    pub header: WriteHeader,
    /// It was sent before and lost on the way: Redis may have lost its online values as well.
    pub again: bool,
    /// Feature rows a part, see [`super::feature_row_schema`]; none for a part with a chunk.
    pub rows: Vec<RecordBatch>,
    /// Dead letters a part, see [`super::dead_letter_schema`].
    pub dead: Vec<RecordBatch>,
}

/// What can stand on the queue.
#[derive(Debug)]
pub enum QueueRequest {
    /// Open a source.
    Open(OpenRequest),
    /// Write the effect of a batch.
    Write(WriteRequest),
    /// An operator has decided how a source goes on.
    Adopt {
        /// Which.
        source: SourceName,
        /// Where.
        at: AdoptAt,
    },
    /// Fix what a replay of dead letters contains.
    Register(RegisterReplay),
    /// Append to the history of a stream's script.
    Note(NoteScript),
    /// Know an upload.
    Upload(RegisterUpload),
    /// An entry that nobody can read; it is answered so that nobody waits for it.
    Unreadable(String),
}

/// One entry of the queue on its way to the writer.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct QueueEntry {
    /// The entry's id in the Redis stream.
    pub id: String,
    /// The list that the answer goes to.
    pub reply_to: String,
    /// Echoed in the answer.
    pub round: u64,
    /// What is asked.
    pub request: QueueRequest,
    /// Reports the entry when it is dropped unanswered.
    pub duty: EntryDuty,
}

/// The duty to answer an entry. Dropped unanswered — the writer actor was killed with the entry in
/// its mailbox — it makes the serving side read its pending entries again.
#[derive(Debug)]
pub struct EntryDuty {
    dropped: Option<UnboundedSender<()>>,
    direct: Option<oneshot::Sender<QueueReply>>,
    _room: Option<OwnedSemaphorePermit>,
    taken: Instant,
}

impl EntryDuty {
    /// A duty that reports to `dropped`, and frees its `room` among the entries in hand; the store has
    /// the entry since `taken`.
    #[must_use]
    pub fn new(dropped: UnboundedSender<()>, room: OwnedSemaphorePermit, taken: Instant) -> Self {
        Self { dropped: Some(dropped), direct: None, _room: Some(room), taken }
    }

    /// The duty for what did not come over the queue: its answer goes to whoever waits in this
    /// process, who sees the channel closed when the duty is dropped unanswered.
    #[must_use]
    pub fn direct(answer: oneshot::Sender<QueueReply>) -> Self {
        Self { dropped: None, direct: Some(answer), _room: None, taken: Instant::now() }
    }

    /// For how long the store has it in hand.
    #[must_use]
    pub fn held(&self) -> Duration {
        self.taken.elapsed()
    }

    /// Answers at once when somebody in this process waits for it; else gives both back, for the
    /// way over Redis.
    pub fn answer_directly(mut self, reply: QueueReply) -> Option<(Self, QueueReply)> {
        let Some(direct) = self.direct.take() else { return Some((self, reply)) };
        // Whoever waited is gone: it was killed, and its next instance asks again.
        let _ = direct.send(reply);
        None
    }

    /// The entry was decided; its answer is on its way.
    pub fn done(mut self) {
        self.dropped = None;
    }
}

impl Drop for EntryDuty {
    fn drop(&mut self) {
        if let Some(dropped) = self.dropped.take() {
            // Without a receiver the serving side is gone; its successor reads pending first.
            let _ = dropped.send(());
        }
    }
}

/// The verdict on one part of a write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartVerdict {
    /// Whose positions.
    pub source: SourceName,
    /// The token that the part came under.
    pub token: Token,
    /// What was decided.
    pub decision: Decision,
    /// The watermark after the decision.
    pub next_pos: Position,
}

/// An answer from the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum QueueReply {
    /// To an open.
    Opened {
        /// Which source.
        source: SourceName,
        /// Where to read, or why not.
        reply: OpenReply,
    },
    /// To a write: one verdict a part.
    Written {
        /// In the order of the write's parts.
        verdicts: Vec<PartVerdict>,
    },
    /// To an adoption.
    Adopted {
        /// Whether the store knows the source.
        known: bool,
    },
    /// To the registration of a replay.
    Registered {
        /// Letters that it contains.
        letters: i64,
    },
    /// To an event of a stream's script.
    Noted(ScriptNoted),
    /// To the registration of an upload.
    Uploaded(UploadRegistered),
    /// The store cannot take this entry, now or ever; its sources halt.
    Refused {
        /// One sentence for the operator.
        reason: String,
    },
}

/// Entries that were decided and, where they had an effect, committed.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Applied {
    /// In the order of the queue.
    pub entries: Vec<AppliedEntry>,
    /// The last batch that is durable.
    pub durable_to: i64,
}

/// One entry that was decided.
#[derive(Debug)]
pub struct AppliedEntry {
    /// The entry's id in the Redis stream.
    pub id: String,
    /// The list that the answer goes to.
    pub reply_to: String,
    /// Echoed in the answer.
    pub round: u64,
    /// The answer.
    pub reply: QueueReply,
    /// What the online store must hold before the answer is given.
    pub online: Option<OnlineDuty>,
    /// The entry is kept aside instead of deleted: the store died over it.
    pub quarantine: bool,
    /// For how long the store had it in hand.
    pub held: Duration,
}

/// What of a write has to be seen to in the online store once it is durable.
#[derive(Debug)]
pub struct OnlineDuty {
    /// Redis' generation when the sender wrote the online values: another one now means that they
    /// are written again.
    pub generation: String,
    /// They are written again in any case.
    pub again: bool,
    /// The rows that became durable.
    pub parts: Vec<DurablePart>,
    /// Values that may be online though their rows were refused.
    pub repairs: Vec<Repair>,
}

/// The rows of one part that became durable.
#[derive(Debug)]
pub struct DurablePart {
    /// Its source.
    pub source: SourceName,
    /// The small integer of the source.
    pub source_no: i32,
    /// The token under which it was written.
    pub token: Token,
    /// The rows.
    pub rows: DurableRows,
}

/// Where the rows of a durable part are.
#[derive(Debug)]
pub enum DurableRows {
    /// Here, see [`super::feature_row_schema`].
    Sent(RecordBatch),
    /// They came as a chunk: DuckDB has them, at these positions of the source.
    Stored {
        /// First position.
        from: Position,
        /// The position after the last.
        to: Position,
    },
}

/// A value that must not be online, and what takes its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Repair {
    /// Whose value.
    pub entity_id: String,
    /// Of which feature.
    pub feature_name: String,
    /// The value's place in the version order.
    pub refused: Version,
    /// The newest value of the feature of this entity, with the number of the token that wrote it.
    pub newest: Option<(OnlineValue, u32)>,
    /// The newest value of the feature over all entities, likewise.
    pub newest_of_feature: Option<(OnlineValue, u32)>,
}
