//! Places where tests stop, crash or delay the program, and defects that they plant in it.
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
//!
//! **Planted defects.** A judge that cannot see a defect proves nothing. With the same feature the
//! environment variable `MILLSTREAM_PLANTED`, names of [`DEFECTS`] with commas between, makes the
//! program break promises: each defect is an `if planted!(…)` in the place where it would be made.
//! All nodes of a run must be told the same.

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

/// Whether a defect is planted; always `false` without the feature. A name that [`DEFECTS`] does not
/// have does not compile.
#[macro_export]
macro_rules! planted {
    ($name:literal) => {
        cfg!(feature = "failpoints")
            && $crate::failpoint::is_planted(const { $crate::failpoint::defect($name) })
    };
}

/// The defects that can be planted, each with what is done wrong. What they break, by the judge's
/// numbers, and when it shows under load:
///
/// | defect | breaks | shows when |
/// |---|---|---|
/// | `no_token_check` | C1, C2, C3, C5, C6, often C7 | a `process` node is stopped for longer than its session, and goes on |
/// | `loose_contiguity` | C1, C5, C6 | Redis is emptied while the store is stopped; an actor dies with one of several batches of a source |
/// | `watermark_apart` | C2, C3, C5 | the store is killed |
/// | `commit_before_answer` | C7 | nothing happens; the store is stopped |
/// | `answer_before_commit` | C7, C1 of plain writes and of a file's last rows | the store is killed; now and then when nothing happens |
/// | `start_at_committed` | C2, C3, C5 | a `process` node is killed; an actor dies with batches |
/// | `online_unruled` | C6 | nothing happens, as soon as events are late |
/// | `bad_rows_dropped` | C1, C10 | nothing happens, as soon as records are malformed |
/// | `queue_trimmed` | C1, C5, C6, C7 | the store is stopped for some seconds |
/// | `lease_without_quarantine` | C8 | Redis is emptied and two `process` nodes want workers, or one of them is stopped |
/// | `order_lost` | C3 | nothing happens |
///
/// A store that opens its file audits its books, and would refuse to go on with what some of these leave
/// there. With a defect planted it says so and goes on: the judge at the end must find it.
pub const DEFECTS: [(&str, &str); 11] = [
    ("no_token_check", "whoever writes is believed: what a former owner sends is applied"),
    ("loose_contiguity", "a batch behind the watermark's next position is applied, not a gap"),
    ("watermark_apart", "rows are committed in one transaction, their watermark in the next"),
    ("commit_before_answer", "offsets are committed to Kafka as soon as records were read"),
    ("answer_before_commit", "the store answers before COMMIT"),
    ("start_at_committed", "a partition is read from the offset that the broker knows"),
    ("online_unruled", "the online store takes whatever comes last"),
    ("bad_rows_dropped", "bad records are dropped and counted as filtered"),
    ("queue_trimmed", "the queue keeps its newest entries; what left it is taken for done"),
    ("lease_without_quarantine", "a Redis that lost its leases grants new ones at once"),
    ("order_lost", "records that come later in a part are put before the earlier ones"),
];

/// The environment variable that names the planted defects.
#[cfg(feature = "failpoints")]
pub const PLANTED: &str = "MILLSTREAM_PLANTED";

/// How long a planted defect leaves open what should be one step, so that deaths fall into it.
pub const WINDOW: std::time::Duration = std::time::Duration::from_millis(50);

/// The name of a defect. In a constant, an unknown one does not compile.
#[must_use]
pub const fn defect(name: &'static str) -> &'static str {
    let mut i = 0;
    while i < DEFECTS.len() {
        if same(DEFECTS[i].0.as_bytes(), name.as_bytes()) {
            return name;
        }
        i += 1;
    }
    panic!("no such defect")
}

/// `==` in a constant.
const fn same(a: &[u8], b: &[u8]) -> bool {
    let mut i = 0;
    while i < a.len() && i < b.len() && a[i] == b[i] {
        i += 1;
    }
    i == a.len() && i == b.len()
}

/// The planted defects; read once.
///
/// # Errors
/// For people: a name is unknown.
#[cfg(feature = "failpoints")]
pub fn all_planted() -> Result<&'static [&'static str], &'static str> {
    static NAMES: std::sync::LazyLock<Result<Vec<&'static str>, String>> =
        std::sync::LazyLock::new(|| parse(&std::env::var(PLANTED).unwrap_or_default()));
    NAMES.as_deref().map_err(String::as_str)
}

#[cfg(feature = "failpoints")]
fn parse(text: &str) -> Result<Vec<&'static str>, String> {
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    let known = |name: &str| DEFECTS.iter().find(|(known, _)| *known == name).map(|(n, _)| *n);
    let unknown = |name: &str| {
        let all: Vec<&str> = DEFECTS.iter().map(|(name, _)| *name).collect();
        format!("{PLANTED}: no defect is called `{name}`; there are {}", all.join(", "))
    };
    names.map(|name| known(name).ok_or_else(|| unknown(name))).collect()
}

/// For [`planted!`](crate::planted).
#[cfg(feature = "failpoints")]
#[must_use]
pub fn is_planted(name: &str) -> bool {
    all_planted().is_ok_and(|names| names.contains(&name))
}

/// For [`planted!`](crate::planted): nothing is.
#[cfg(not(feature = "failpoints"))]
#[must_use]
pub const fn is_planted(_: &str) -> bool {
    false
}

/// Whether any defect is planted.
#[cfg(feature = "failpoints")]
#[must_use]
pub fn any_planted() -> bool {
    all_planted().is_ok_and(|names| !names.is_empty())
}

/// Whether any defect is planted: none is.
#[cfg(not(feature = "failpoints"))]
#[must_use]
pub const fn any_planted() -> bool {
    false
}

/// A script with other pieces in the place of some, for a planted defect.
///
/// # Panics
/// When a piece is not there: the defect would be none.
#[must_use]
pub fn altered(script: &str, pieces: &[(&str, &str)]) -> String {
    pieces.iter().fold(script.to_owned(), |script, (sound, broken)| {
        assert!(script.contains(sound), "the script has no `{sound}`");
        script.replace(sound, broken)
    })
}

/// Ends the process at once: no destructor runs, nothing is flushed.
pub fn die() -> ! {
    // SAFETY: a signal to ourselves; it cannot be caught, so nothing runs afterwards.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    std::process::abort()
}

#[cfg(all(test, feature = "failpoints"))]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_list_and_unknown_ones_are_told() {
        assert_eq!(parse(""), Ok(vec![]));
        assert_eq!(parse(" order_lost,online_unruled,"), Ok(vec!["order_lost", "online_unruled"]));
        let error = parse("order_lost,sloth").unwrap_err();
        assert!(error.contains("`sloth`"), "{error}");
        assert!(DEFECTS.iter().all(|(name, _)| error.contains(name)), "{error}");
    }

    #[test]
    fn nothing_is_planted_by_itself() {
        assert_eq!(all_planted(), Ok(&[][..]));
        assert!(!any_planted() && !crate::planted!("order_lost"));
    }
}
