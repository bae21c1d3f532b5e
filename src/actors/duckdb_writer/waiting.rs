//! Writes that wait for their group's transaction, and entries that were decided.

use crate::{
    messages::{
        AppliedEntry, EntryDuty, OnlineDuty, QueueEntry, QueueReply, QueueRequest, WriteRequest,
    },
    protocol::source::SourceName,
};

/// An entry whose answer is known.
pub(super) struct Decided {
    pub(super) entry: AppliedEntry,
    pub(super) duty: EntryDuty,
}

/// A write that waits for its group's transaction.
pub(super) struct Waiting {
    pub(super) id: String,
    pub(super) reply_to: String,
    pub(super) round: u64,
    pub(super) write: WriteRequest,
    pub(super) duty: EntryDuty,
}

impl Waiting {
    /// A write; anything else comes back.
    pub(super) fn of(entry: QueueEntry) -> Result<Self, Box<QueueEntry>> {
        let QueueEntry { id, reply_to, round, request, duty } = entry;
        match request {
            QueueRequest::Write(write) => Ok(Self { id, reply_to, round, write, duty }),
            request => Err(Box::new(QueueEntry { id, reply_to, round, request, duty })),
        }
    }

    pub(super) fn decided(self, reply: QueueReply, online: Option<OnlineDuty>) -> Decided {
        let Self { id, reply_to, round, duty, .. } = self;
        let held = duty.held();
        let entry = AppliedEntry { id, reply_to, round, reply, online, quarantine: false, held };
        Decided { entry, duty }
    }

    pub(super) fn sources(&self) -> Vec<SourceName> {
        self.write.header.parts.iter().map(|part| part.source.clone()).collect()
    }

    /// Events over all its parts.
    pub(super) fn events(&self) -> usize {
        self.write.header.parts.iter().map(|p| p.n_in).sum::<i64>().cast_unsigned() as usize
    }

    /// Feature rows, here or in chunks.
    pub(super) fn rows(&self) -> usize {
        let parts = self.write.header.parts.iter();
        parts.map(|part| usize::try_from(part.n_rows).unwrap_or(0)).sum()
    }
}
