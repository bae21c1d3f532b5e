//! NDJSON: a row a line. A line that is no JSON is a bad row; a file that is no NDJSON is refused.

use super::{
    Checked, FileError, FileLimits, MAX_ROW_BYTES, reasons,
    sniff::looks_like,
    window::{Source, Window},
};
use serde::de::IgnoredAny;

/// Among so many lines one must begin like an object.
const LINES_TO_JUDGE: u64 = 100;

/// A line that is not blank.
pub(super) struct Line<'a> {
    /// Without its break.
    pub text: &'a [u8],
    /// Whether it has one.
    pub ended: bool,
    /// Where it begins.
    pub position: u64,
}

/// The lines that are not blank.
pub(super) struct Lines {
    window: Window,
    /// The row that comes next.
    row: u64,
    /// Bytes of the line that was given last, with its line break.
    given: usize,
    /// Whether that line has a line break.
    ended: bool,
}

impl Lines {
    pub fn new(source: Source) -> Result<Self, FileError> {
        let mut window = Window::new(source);
        window.pass_mark()?;
        Ok(Self { window, row: 0, given: 0, ended: true })
    }

    /// Bytes that were read so far.
    pub fn position(&self) -> u64 {
        self.window.position()
    }

    /// The next line; `None` at the end of the file.
    pub fn next(&mut self) -> Result<Option<Line<'_>>, FileError> {
        let len = loop {
            self.window.pass(std::mem::take(&mut self.given));
            self.find_end()?;
            if self.given == 0 {
                return Ok(None);
            }
            let line = without_break(&self.window.bytes()[..self.given]);
            if !line.iter().all(u8::is_ascii_whitespace) {
                break line.len();
            }
        };
        self.row += 1;
        Ok(Some(Line {
            text: &self.window.bytes()[..len],
            ended: self.ended,
            position: self.window.position(),
        }))
    }

    fn find_end(&mut self) -> Result<(), FileError> {
        let mut seen = 0;
        loop {
            let bytes = self.window.bytes();
            if let Some(n) = memchr::memchr(b'\n', &bytes[seen..]) {
                (self.given, self.ended) = (seen + n + 1, true);
            } else {
                seen = bytes.len();
                if seen <= MAX_ROW_BYTES && self.window.fill()? {
                    continue;
                }
                (self.given, self.ended) = (seen, false);
            }
            if self.given > MAX_ROW_BYTES {
                return Err(FileError::row_too_large(self.row).at_byte(self.window.position()));
            }
            return Ok(());
        }
    }
}

fn without_break(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// Reads all lines. Only the last one can tell that the file was cut off.
pub(super) fn check(source: Source, limits: &FileLimits) -> Result<Checked, FileError> {
    let mut lines = Lines::new(source)?;
    let head = lines.window.peek(1 << 10)?.to_vec();
    let (mut rows, mut has_object, mut is_cut_off) = (0, false, false);
    let mut begin = 0;
    while let Some(Line { text, ended, position }) = lines.next()? {
        let text = text.trim_ascii();
        // A bracket alone begins a document of many lines.
        let alone = matches!(text, b"{" | b"[");
        let is_json = |text| serde_json::from_slice::<IgnoredAny>(text).is_ok();
        let array = || text.starts_with(b"[") && !is_json(text);
        if rows == 0 && ((alone && ended) || array()) {
            return Err(not_lines(&head, true));
        }
        has_object |= text.starts_with(b"{") && !(alone && ended);
        if !ended {
            is_cut_off = !is_json(text);
        }
        (rows, begin) = (rows + 1, position);
        if rows == LINES_TO_JUDGE && !has_object {
            break;
        }
        if rows > limits.max_rows {
            return Err(FileError::too_many_rows(limits.max_rows));
        }
    }
    if rows > 0 && !has_object {
        return Err(not_lines(&head, false));
    }
    if is_cut_off {
        let detail = "the last line is not complete: the file was cut off";
        return Err(FileError::cut_off(detail).at(rows - 1, begin));
    }
    Ok(Checked { rows, bytes: lines.position() })
}

fn not_lines(head: &[u8], is_document: bool) -> FileError {
    let looks = looks_like(head);
    let (detail, hint) = match looks {
        Some(("JSON objects", _)) if is_document => (
            "this is one JSON document over many lines, not an object a line".to_owned(),
            "write each object on one line; an array of objects can be sent as `json`",
        ),
        Some((what, hint)) => (format!("this is not NDJSON but looks like {what}"), hint),
        None => (
            format!("none of the first {LINES_TO_JUDGE} lines begins with an object"),
            "NDJSON is one JSON object a line",
        ),
    };
    FileError::new(reasons::NOT_NDJSON, detail, hint)
}
