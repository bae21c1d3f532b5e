//! Defects that are planted into the simulated carriers, one at a time: a judge that cannot see
//! them proves nothing.

/// See the module. The first ten are those of the design, the others are steps of the protocol
/// whose lack the simulation showed to be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// Redis and the store take writes under any token.
    NoTokenCheck,
    /// The store takes a write that begins behind its position.
    GapsAreTaken,
    /// Rows in one transaction, the position in the next.
    WatermarkInSecondTransaction,
    /// An offset is committed to the broker when its batch is sent.
    CommitBeforeAnswer,
    /// The store answers before COMMIT.
    AnswerBeforeCommit,
    /// A source is read from the broker's committed offset.
    StartAtBrokersOffset,
    /// The online store takes whatever comes last.
    OnlineWithoutRule,
    /// Bad records are dropped.
    BadRowsDropped,
    /// The queue keeps only its newest entries, and its senders trust it.
    StreamTrimmed,
    /// A Redis that lost its leases grants new ones at once.
    LeaseWithoutQuarantine,
    /// The last online write of a source says what is promised, even if it promises less.
    PromiseOverwritten,
    /// Nobody waits at the end of what was promised under another script until it is durable.
    PromiseNotAwaited,
    /// Leases are granted by a run of Redis that the store has not looked at yet.
    LeaseOfUnknownRun,
    /// The store's connection mends itself without the store's looking.
    SilentReconnect,
    /// What is rebuilt from the beginning is written over what is there.
    RebuiltWithoutWipe,
    /// Whether a write's online values must be repeated is asked before COMMIT.
    ComparedBeforeCommit,
    /// After a COMMIT of unknown outcome the store goes on without looking at Redis.
    ReopenedWithoutLook,
}

impl Defect {
    /// All of them, with the seeds within which each must be seen.
    pub const ALL: [(Self, u64); 17] = [
        (Self::NoTokenCheck, 2_000),
        (Self::GapsAreTaken, 2_000),
        (Self::WatermarkInSecondTransaction, 2_000),
        (Self::CommitBeforeAnswer, 2_000),
        (Self::AnswerBeforeCommit, 2_000),
        (Self::StartAtBrokersOffset, 2_000),
        (Self::OnlineWithoutRule, 2_000),
        (Self::BadRowsDropped, 2_000),
        (Self::StreamTrimmed, 2_000),
        (Self::LeaseWithoutQuarantine, 2_000),
        (Self::PromiseNotAwaited, 2_000),
        (Self::LeaseOfUnknownRun, 2_000),
        (Self::SilentReconnect, 2_000),
        // These need a rare moment.
        (Self::PromiseOverwritten, 20_000),
        (Self::RebuiltWithoutWipe, 20_000),
        (Self::ComparedBeforeCommit, 20_000),
        (Self::ReopenedWithoutLook, 20_000),
    ];
}
