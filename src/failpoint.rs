//! Places where tests stop, crash or delay the program.
//!
//! Compiled in only with the feature `failpoints`; the environment variable `FAILPOINTS` arms them,
//! for instance `FAILPOINTS="g_in_transaction=5*off->return"`: the sixth time that a transaction is
//! about to be committed, the process dies as by SIGKILL. The letter is the step of the protocol
//! after which, or in which, the place lies:
//!
//! | point | where |
//! |---|---|
//! | `a_opened` | the store committed an open and has not answered |
//! | `b_closed` | a batch was closed and not handed on |
//! | `c_decoded` | decoded, not yet given to Python |
//! | `d_transformed` | Python gave the rows back |
//! | `e_online` | critical features are online, nothing is on the queue |
//! | `f_enqueued` | the write is on the queue |
//! | `g_begun` | the store has decided on a group and begun its transaction |
//! | `g_in_transaction` | everything is appended, nothing is committed |
//! | `g_committed` | committed, not answered |
//! | `i_answered` | answered, the entry has left the queue |
//! | `e_plain_online` | critical values of plain writes are online, nothing is with the store |
//! | `i_plain_decided` | the store has plain writes, nobody was answered |
//! | `i_plain_answered` | plain writes were answered and have left their stream |
//! | `s_tried` | a script version was tried, nothing is written down |
//! | `s_noted` | what became of it is written down, nobody goes by it |
//! | `u_registered` | the store has written an upload down and has not answered |
//! | `u_chunk_written` | a part's rows are a file in the spool, nothing is on the queue |
//! | `u_chunk_read` | the rows of such a file are in the transaction, nothing is committed |
//! | `j_before_commit` | about to commit offsets to Kafka |
//! | `j_committed` | offsets were sent to Kafka |
//!
//! One more place is no crash point: `c_defect=return(<source>)` makes every decoding of that source
//! panic.

/// Dies as by `kill -9` when the point is armed.
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {
        fail::fail_point!($name, |_| $crate::failpoint::die());
    };
}

/// Every crash point on the way of events from Kafka, in the order of the flow.
pub const CRASH_POINTS: [&str; 12] = [
    "a_opened",
    "b_closed",
    "c_decoded",
    "d_transformed",
    "e_online",
    "f_enqueued",
    "g_begun",
    "g_in_transaction",
    "g_committed",
    "i_answered",
    "j_before_commit",
    "j_committed",
];

/// The crash points of plain writes, which only they pass.
pub const PLAIN_WRITE_CRASH_POINTS: [&str; 3] =
    ["e_plain_online", "i_plain_decided", "i_plain_answered"];

/// The crash points of an upload's life, in its order; between `u_accepted` and `u_landed` its
/// chunks pass those of [`CRASH_POINTS`] as well.
pub const UPLOAD_CRASH_POINTS: [&str; 8] = [
    "u_received",
    "u_checked",
    "u_kept",
    "u_registered",
    "u_accepted",
    "u_chunk_written",
    "u_chunk_read",
    "u_landed",
];

/// Ends the process at once: no destructor runs, nothing is flushed.
pub fn die() -> ! {
    // SAFETY: a signal to ourselves; it cannot be caught, so nothing runs afterwards.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    std::process::abort()
}
