//! What a worker writes to its standard output and error, line by line into the node's log.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::wire::LogLine;

/// Longest line that is logged; longer ones are cut into pieces of this length.
const MAX_LINE_BYTES: usize = 8 << 10;
/// Lines a second and stream that are logged. The rest is counted: a script that prints every event
/// must not drown the log.
const MAX_LINES_PER_SECOND: u32 = 200;
/// Lines of standard error that are kept for the report of a worker's death.
const KEPT_LINES: usize = 40;

/// Which of the two streams a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

/// Names for the lines of one worker, and its last words.
#[derive(Debug, Clone)]
pub(super) struct Logs {
    worker_id: Arc<str>,
    script: Arc<RwLock<Arc<str>>>,
    last_stderr: Arc<Mutex<VecDeque<String>>>,
}

impl Logs {
    pub fn new(worker_id: &str) -> Self {
        Self {
            worker_id: Arc::from(worker_id),
            script: Arc::new(RwLock::new(Arc::from(""))),
            last_stderr: Arc::default(),
        }
    }

    /// Names the script in the lines from now on.
    pub fn name_script(&self, name: &str) {
        // A whole Arc is replaced: no panic can leave it half written.
        *self.script.write().unwrap_or_else(PoisonError::into_inner) = Arc::from(name);
    }

    /// The last lines of standard error, oldest first.
    pub fn last_stderr(&self) -> String {
        let lines = self.last_stderr.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    /// Logs a line that the script sent with `ctx.log`.
    pub fn told(&self, line: &LogLine) {
        let (worker, script) = (&*self.worker_id, &*self.script());
        match line.level.as_str() {
            "error" | "critical" => tracing::error!(worker, script, "{}", line.message),
            "warn" | "warning" => tracing::warn!(worker, script, "{}", line.message),
            "debug" => tracing::debug!(worker, script, "{}", line.message),
            _ => tracing::info!(worker, script, "{}", line.message),
        }
    }

    /// Logs what comes out of `pipe` until it is closed on the other side.
    ///
    /// # Errors
    /// When `pipe` is no pipe. Must be called within a tokio runtime.
    pub fn follow(
        &self,
        stream: Stream,
        pipe: OwnedFd,
    ) -> std::io::Result<tokio::task::JoinHandle<()>> {
        let mut pipe = pipe::Receiver::from_owned_fd(pipe)?;
        let logs = self.clone();
        Ok(tokio::spawn(async move {
            let mut lines = Lines::default();
            let mut limit = Limit::new(Instant::now());
            let mut chunk = vec![0; MAX_LINE_BYTES];
            // A read error is the end as much as an end is: there is no one left to ask.
            while let Ok(length @ 1..) = pipe.read(&mut chunk).await {
                lines.feed(&chunk[..length], |line| logs.printed(stream, line, &mut limit));
            }
            lines.end(|line| logs.printed(stream, line, &mut limit));
        }))
    }

    fn script(&self) -> Arc<str> {
        Arc::clone(&self.script.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn printed(&self, stream: Stream, line: &str, limit: &mut Limit) {
        if stream == Stream::Stderr {
            let mut kept = self.last_stderr.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() == KEPT_LINES {
                kept.pop_front();
            }
            kept.push_back(line.to_owned());
        }
        let (worker, script) = (&*self.worker_id, &*self.script());
        let Some(left_out) = limit.admit(Instant::now()) else {
            return;
        };
        if left_out > 0 {
            tracing::warn!(
                worker,
                script,
                left_out,
                "the script prints too much; lines were left out"
            );
        }
        match stream {
            Stream::Stdout => tracing::info!(worker, script, stream = "stdout", "{line}"),
            Stream::Stderr => tracing::warn!(worker, script, stream = "stderr", "{line}"),
        }
    }
}

/// Cuts a stream of bytes into lines.
#[derive(Default)]
struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    fn feed(&mut self, mut bytes: &[u8], mut emit: impl FnMut(&str)) {
        while !bytes.is_empty() {
            let room = MAX_LINE_BYTES - self.partial.len();
            let newline = bytes.iter().position(|byte| *byte == b'\n');
            let length = newline.unwrap_or(bytes.len()).min(room);
            self.partial.extend_from_slice(&bytes[..length]);
            bytes = &bytes[length..];
            let ended = newline == Some(length);
            if ended {
                bytes = &bytes[1..];
            }
            if ended || self.partial.len() == MAX_LINE_BYTES {
                self.end(&mut emit);
            }
        }
    }

    /// Emits what is left, if anything is.
    fn end(&mut self, mut emit: impl FnMut(&str)) {
        let line = String::from_utf8_lossy(&self.partial);
        let line = line.trim_end();
        if !line.is_empty() {
            emit(line);
        }
        self.partial.clear();
    }
}

/// So many lines a second, and a count of those left out.
struct Limit {
    second_began: Instant,
    admitted: u32,
    left_out: u64,
}

impl Limit {
    fn new(now: Instant) -> Self {
        Self { second_began: now, admitted: 0, left_out: 0 }
    }

    /// `None`: leave this line out. Otherwise how many were left out before it.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if now.duration_since(self.second_began) >= Duration::from_secs(1) {
            self.second_began = now;
            self.admitted = 0;
        }
        if self.admitted == MAX_LINES_PER_SECOND {
            self.left_out += 1;
            return None;
        }
        self.admitted += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(pieces: &[&[u8]]) -> Vec<String> {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for piece in pieces {
            lines.feed(piece, |line| found.push(line.to_owned()));
        }
        lines.end(|line| found.push(line.to_owned()));
        found
    }

    #[test]
    fn lines_are_cut_wherever_the_reads_fall() {
        assert_eq!(cut(&[b"one\ntw", b"o\r\n\n", b"\xff three"]), ["one", "two", "\u{fffd} three"]);
        assert_eq!(cut(&[b"a\n", b"b\n"]), ["a", "b"]);
    }

    #[test]
    fn endless_lines_are_cut_into_pieces() {
        let long = vec![b'x'; 2 * MAX_LINE_BYTES + 5];
        assert_eq!(
            cut(&[&long, b"\ny"]).iter().map(String::len).collect::<Vec<_>>(),
            [MAX_LINE_BYTES, MAX_LINE_BYTES, 5, 1]
        );
    }

    #[test]
    fn a_flood_is_counted_not_logged() {
        let start = Instant::now();
        let mut limit = Limit::new(start);
        assert!((0..MAX_LINES_PER_SECOND).all(|_| limit.admit(start) == Some(0)));
        assert_eq!((limit.admit(start), limit.admit(start)), (None, None));
        assert_eq!(limit.admit(start + Duration::from_secs(1)), Some(2));
    }

    #[test]
    fn the_last_words_are_the_newest_lines() {
        let logs = Logs::new("w");
        let mut limit = Limit::new(Instant::now());
        for number in 0..100 {
            logs.printed(Stream::Stderr, &number.to_string(), &mut limit);
        }
        let last = logs.last_stderr();
        assert_eq!(
            (last.lines().next(), last.lines().last(), last.lines().count()),
            (Some("60"), Some("99"), KEPT_LINES)
        );
    }
}
