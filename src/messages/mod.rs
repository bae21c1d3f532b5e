//! The typed messages between the actors, in the order of the flow.
//!
//! Data messages are nouns and named after the output of the stage that makes them; commands are
//! verbs. A data message is columnar and carries thousands of events: an event is never a message
//! of its own. Each carries the tickets of its positions and a share of the bounded credit pool,
//! so that a message that is dropped gives its credit back and has its positions read again.

mod as_of;
mod batch;
mod control;
mod dead_letter;
mod features;
mod permits;
mod read;
mod records;
mod replay;
mod script;
mod source;
mod upload;
mod write;

pub use as_of::{AsOfRequest, Watermark, as_of_answer_schema, question_schema};
pub use batch::{EventBatch, SourceBatch};
pub use control::Drain;
pub use dead_letter::{
    DEAD_LETTER_RAW_BYTES, DeadLetter, SCRIPT_FAILURES, Stage, dead_letter_schema,
    dead_letters_to_arrow, reason_label,
};
pub use features::{FeatureBatch, FeaturePart, OnlineValue, feature_row_schema};
pub use permits::{AcquirePermit, Permit, ReleasePermit};
pub use read::{QueryBounds, ReadReply, ReadRequest, Skew};
pub use records::{Credit, Payload, RECORD_OVERHEAD, Record, Records};
pub use replay::{LetterToReplay, OfSource, RegisterReplay, ReplayHead, replayed_letters_schema};
pub use script::{NoteScript, ScriptNoted, ScriptText};
pub use source::{Acknowledged, CloseSource, OpenSource, SourceOpened};
pub use upload::{RegisterUpload, UploadRegistered};
pub use write::{
    Applied, AppliedEntry, ChunkFile, DurablePart, DurableRows, EntryDuty, OnlineDuty, PartHeader,
    PartVerdict, QueueEntry, QueueReply, QueueRequest, Repair, WriteHeader, WriteRequest,
};
