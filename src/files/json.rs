//! A JSON array of rows, one element at a time.
//!
//! Where an element ends is found by its brackets and quotes alone, so that only one element is in
//! memory, however large the array is. [`check`] has serde_json judge what lies between.

use super::{
    Checked, FileError, FileLimits, MAX_ROW_BYTES, reasons,
    sniff::looks_like,
    window::{Source, Window},
};
use serde::de::IgnoredAny;

/// How deep the values of one row may be.
const MAX_DEPTH: usize = 128;

#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// Behind the `[`.
    First,
    /// Behind an element.
    Behind,
    /// Behind the `]`.
    End,
}

/// The elements of an array.
pub(super) struct Elements {
    window: Window,
    place: Place,
    /// The row that comes next.
    row: u64,
    /// Bytes of the element that was given last.
    given: usize,
}

impl Elements {
    pub fn new(source: Source) -> Result<Self, FileError> {
        let mut window = Window::new(source);
        window.pass_mark()?;
        match window.pass_space()? {
            None => return Err(empty()),
            Some(b'[') => window.pass(1),
            Some(_) => return Err(not_an_array(window.peek(1 << 10)?).at_byte(window.position())),
        }
        Ok(Self { window, place: Place::First, row: 0, given: 0 })
    }

    /// Bytes that were read so far.
    pub fn position(&self) -> u64 {
        self.window.position()
    }

    /// The next element's bytes; `None` behind the last.
    pub fn next(&mut self) -> Result<Option<&[u8]>, FileError> {
        self.window.pass(std::mem::take(&mut self.given));
        if self.place == Place::End {
            return Ok(None);
        }
        match (self.window.pass_space()?, self.place) {
            (None, _) => return Err(self.cut_off()),
            (Some(b']'), _) => return self.end(),
            (Some(b','), Place::Behind) => {
                self.window.pass(1);
                if self.window.pass_space()?.is_none() {
                    return Err(self.cut_off());
                }
            }
            (Some(_), Place::Behind) => {
                return Err(self.invalid("`,` or `]` is missing behind a row", 0));
            }
            (Some(_), _) => {}
        }
        let end = self.find_end()?;
        if end > MAX_ROW_BYTES {
            return Err(FileError::row_too_large(self.row).at_byte(self.window.position()));
        }
        self.place = Place::Behind;
        self.row += 1;
        self.given = end;
        Ok(Some(&self.window.bytes()[..end]))
    }

    fn end(&mut self) -> Result<Option<&[u8]>, FileError> {
        self.window.pass(1);
        self.place = Place::End;
        if self.window.pass_space()?.is_some() {
            let detail = "something stands behind the `]` that ends the array";
            let hint = "send one array, or one object a line as `ndjson`";
            let error = FileError::new(reasons::TRAILING_DATA, detail, hint);
            return Err(error.at_byte(self.window.position()));
        }
        Ok(None)
    }

    /// How many bytes the element has that begins the window.
    fn find_end(&mut self) -> Result<usize, FileError> {
        match self.window.bytes().first() {
            Some(b'{' | b'[' | b'"') => self.find_nested_end(),
            Some(b',' | b']' | b'}' | b':') => Err(self.invalid("a row is missing", 0)),
            _ => self.find_word_end(),
        }
    }

    fn find_nested_end(&mut self) -> Result<usize, FileError> {
        let (mut at, mut depth, mut in_string) = (0, 0usize, false);
        loop {
            let bytes = self.window.bytes();
            while at < bytes.len() {
                if in_string {
                    match memchr::memchr2(b'"', b'\\', &bytes[at..]) {
                        None => at = bytes.len(),
                        // What is escaped may come with the next read.
                        Some(n) if bytes[at + n] == b'\\' => at += n + 2,
                        Some(n) => {
                            (at, in_string) = (at + n + 1, false);
                            if depth == 0 {
                                return Ok(at);
                            }
                        }
                    }
                    continue;
                }
                match bytes[at] {
                    b'"' => in_string = true,
                    b'{' | b'[' if depth == MAX_DEPTH => {
                        let detail = format!("values are nested deeper than {MAX_DEPTH}");
                        let error = FileError::new(reasons::TOO_DEEP, detail, "flatten the row");
                        return Err(error.at(self.row, self.window.position() + at as u64));
                    }
                    b'{' | b'[' => depth += 1,
                    // The first byte is an opening one or a quote.
                    b'}' | b']' => depth = depth.saturating_sub(1),
                    _ => {}
                }
                at += 1;
                if depth == 0 && !in_string {
                    return Ok(at);
                }
            }
            self.read_on(at)?;
        }
    }

    /// Numbers, `true`, `false`, `null`, or what is none of these.
    fn find_word_end(&mut self) -> Result<usize, FileError> {
        let mut at = 0;
        loop {
            let ends = |b: &u8| matches!(b, b',' | b']' | b'}' | b' ' | b'\t' | b'\n' | b'\r');
            match self.window.bytes()[at..].iter().position(ends) {
                Some(n) => return Ok(at + n),
                None => at = self.window.bytes().len(),
            }
            self.read_on(at)?;
        }
    }

    fn read_on(&mut self, have: usize) -> Result<(), FileError> {
        if have > MAX_ROW_BYTES {
            return Err(FileError::row_too_large(self.row).at_byte(self.window.position()));
        }
        if self.window.fill()? { Ok(()) } else { Err(self.cut_off()) }
    }

    fn cut_off(&self) -> FileError {
        let end = self.window.position() + self.window.bytes().len() as u64;
        FileError::cut_off("the array has no end: the file was cut off").at(self.row, end)
    }

    fn invalid(&self, detail: &str, at: usize) -> FileError {
        let hint = "the whole file must be JSON: write it with a JSON library";
        FileError::new(reasons::INVALID_JSON, detail, hint)
            .at(self.row, self.window.position() + at as u64)
    }
}

/// Reads the whole array: every element must be JSON, whatever it says.
pub(super) fn check(source: Source, limits: &FileLimits) -> Result<Checked, FileError> {
    let mut elements = Elements::new(source)?;
    let mut rows = 0;
    while let Some(element) = elements.next()? {
        if let Err(error) = serde_json::from_slice::<IgnoredAny>(element) {
            let at = offset(element, &error);
            let row = rows;
            let detail = format!("a row is not JSON: {}", sentence(&error));
            let begin = elements.position();
            let error = elements.invalid(&detail, at);
            return Err(FileError { row: Some(row), byte: Some(begin + at as u64), ..error });
        }
        rows += 1;
        if rows > limits.max_rows {
            return Err(FileError::too_many_rows(limits.max_rows));
        }
    }
    Ok(Checked { rows, bytes: elements.position() })
}

/// What serde_json says, without the place, which would be within the row.
fn sentence(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(what, _)| what.to_owned())
}

/// Where in `text` the error is.
fn offset(text: &[u8], error: &serde_json::Error) -> usize {
    let lines = error.line().saturating_sub(1);
    let start = match lines {
        0 => 0,
        n => memchr::memchr_iter(b'\n', text).nth(n - 1).map_or(0, |at| at + 1),
    };
    (start + error.column().saturating_sub(1)).min(text.len())
}

fn empty() -> FileError {
    FileError::new(reasons::EMPTY_FILE, "the file is empty", "an array without rows is `[]`")
}

fn not_an_array(head: &[u8]) -> FileError {
    if head.starts_with(b"{") {
        let detail = "the file is JSON, but not an array";
        let hint = "send one object a line as `ndjson`, or put `[` and `]` around the objects";
        return FileError::new(reasons::NOT_AN_ARRAY, detail, hint);
    }
    match looks_like(head) {
        Some((what, hint)) => {
            FileError::new(reasons::WRONG_FORMAT, format!("this is not JSON but {what}"), hint)
        }
        None => FileError::new(
            reasons::NOT_AN_ARRAY,
            "the file does not begin with `[`",
            "JSON files are an array of objects",
        ),
    }
}
