//! The rows of a file as records, in batches as a node would cut them by rows and bytes.

use super::Failure;
use crate::{
    config::BatchConfig,
    generate::{Format, Replay, ReplayError, ReplayOptions, ReplayRecord},
    messages::{Payload, Record, Records},
};
use serde::de::IgnoredAny;
use std::{io::Read, path::Path};

/// The time of a record that has none. A row whose `created_at` this is would get the time of its
/// record from a node.
pub const NO_TIME: i64 = i64::MIN;

/// Rows that are read from the file at once.
const ROWS_A_READ: usize = 4_096;
/// How far into a file its first character is looked for.
const HEAD_BYTES: u64 = 4_096;
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

type Payloads = Box<dyn Iterator<Item = Result<Vec<u8>, Failure>>>;

/// A file that is being read.
pub struct Input {
    payloads: Payloads,
    next_row: i64,
    max_rows: usize,
    max_bytes: usize,
}

impl Input {
    /// Opens a file: NDJSON, one JSON document, CSV or Parquet, told by its name.
    ///
    /// # Errors
    /// [`Failure::Usage`] when it is none of these, or cannot be read.
    pub fn open(path: &Path, batch: &BatchConfig) -> Result<Self, Failure> {
        let payloads = match Replay::open(path, &ReplayOptions::default()) {
            Ok(replay) if replay.format() != Format::Ndjson || !is_array(path) => rows_of(replay),
            // An array on one line looks like a line.
            Ok(_) | Err(ReplayError::NotLines { .. }) => elements_of(path)?,
            Err(error) => return Err(refused(&error)),
        };
        let (max_rows, max_bytes) = (batch.max_rows, batch.max_bytes);
        Ok(Self { payloads, next_row: 0, max_rows, max_bytes })
    }

    /// The next batch, at least one record; `None` after the last. Positions are row numbers from 0.
    ///
    /// # Errors
    /// [`Failure::Usage`] when the rest of the file cannot be read.
    pub fn next_batch(&mut self) -> Result<Option<Records>, Failure> {
        let mut records = Records::default();
        while records.len() < self.max_rows && records.bytes() < self.max_bytes {
            let Some(payload) = self.payloads.next().transpose()? else { break };
            records.push(Record {
                position: self.next_row,
                timestamp_us: NO_TIME,
                event_id: None,
                payload: Payload::Json(&payload),
            });
            self.next_row += 1;
        }
        Ok((!records.is_empty()).then_some(records))
    }
}

fn rows_of(mut replay: Replay) -> Payloads {
    let reads = std::iter::from_fn(move || replay.next_batch(ROWS_A_READ));
    Box::new(reads.flat_map(|read| match read {
        Ok(rows) => rows.into_iter().map(|ReplayRecord { payload, .. }| Ok(payload)).collect(),
        Err(error) => vec![Err(refused(&error))],
    }))
}

fn elements_of(path: &Path) -> Result<Payloads, Failure> {
    let unusable =
        |error: &dyn std::fmt::Display| Failure::Usage(format!("{}: {error}", path.display()));
    let text = std::fs::read(path).map_err(|error| unusable(&error))?;
    let elements = elements(&text).map_err(|error| unusable(&error))?;
    Ok(Box::new(elements.into_iter().map(Ok)))
}

/// Whether a `.json` file begins as an array.
fn is_array(path: &Path) -> bool {
    let is_json = path.extension().is_some_and(|name| name.eq_ignore_ascii_case("json"));
    let mut head = Vec::new();
    // What cannot be read is refused where it is opened.
    let read = std::fs::File::open(path).and_then(|f| f.take(HEAD_BYTES).read_to_end(&mut head));
    is_json && read.is_ok() && without_mark(&head).trim_ascii_start().starts_with(b"[")
}

fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text)
}

/// The records in one JSON document: the elements of an array, byte for byte, or the document.
fn elements(text: &[u8]) -> serde_json::Result<Vec<Vec<u8>>> {
    let text = without_mark(text);
    // As a whole first: what is wrong is told by line and column.
    serde_json::from_slice::<IgnoredAny>(text)?;
    let Some(mut rest) = text.trim_ascii().strip_prefix(b"[") else {
        return Ok(vec![text.trim_ascii().to_vec()]);
    };
    let mut elements = Vec::new();
    loop {
        let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<IgnoredAny>();
        // No value stands before the bracket at the end.
        let Some(Ok(IgnoredAny)) = values.next() else { return Ok(elements) };
        let (element, behind) = rest.split_at(values.byte_offset());
        elements.push(element.trim_ascii().to_vec());
        let behind = behind.trim_ascii_start();
        rest = behind.strip_prefix(b",").unwrap_or(behind);
    }
}

fn refused(error: &ReplayError) -> Failure {
    let help = miette::Diagnostic::help(error).map(|help| format!("; {help}")).unwrap_or_default();
    Failure::Usage(format!("{error}{help}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<String> {
        let elements = elements(text.as_bytes()).unwrap();
        elements.into_iter().map(|e| String::from_utf8(e).unwrap()).collect()
    }

    #[test]
    fn elements_keep_their_bytes() {
        let text = "\u{feff}[\n {\"a\": 1.50, \"a\": \"],\"},\n [1, 2] ,7, null,\"x\" , {}\n]\n";
        assert_eq!(
            split(text),
            ["{\"a\": 1.50, \"a\": \"],\"}", "[1, 2]", "7", "null", "\"x\"", "{}"]
        );
        assert_eq!(split("[ ]"), Vec::<String>::new());
        assert_eq!(split("{\n \"a\": 1\n}"), ["{\n \"a\": 1\n}"]);
        let error = elements(b"[\n {},\n {]\n]").unwrap_err();
        assert_eq!(error.line(), 3);
    }

    fn payloads(name: &str, text: &str, max_rows: usize) -> Vec<Vec<(i64, String)>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let batch = BatchConfig { max_rows, ..BatchConfig::default() };
        let mut input = Input::open(&path, &batch).unwrap();
        std::iter::from_fn(|| input.next_batch().unwrap())
            .map(|records| {
                let text =
                    |r: Record<'_>| String::from_utf8(r.payload.raw().unwrap().to_vec()).unwrap();
                records.iter().map(|r| (r.position, text(r))).collect()
            })
            .collect()
    }

    #[test]
    fn rows_are_numbered_over_all_batches() {
        let row = |n: i64, text: &str| (n, text.to_owned());
        let expected = [vec![row(0, "{\"a\":1}"), row(1, "[2]")], vec![row(2, "x")]];
        assert_eq!(payloads("a.ndjson", "{\"a\":1}\n[2]\n\nx\n", 2), expected);
        let expected = [vec![row(0, "{\"a\":1}"), row(1, "{\"a\":2}")]];
        assert_eq!(payloads("a.json", "[ {\"a\":1}, {\"a\":2} ]", 9), expected);
        assert_eq!(payloads("a.json", "[\n{\"a\":1},\n{\"a\":2}\n]", 9), expected);
        assert_eq!(payloads("a.json", "{\"a\":1}\n{\"a\":2}", 9), expected);
        assert_eq!(payloads("a.csv", "a\n1\n2\n", 9), expected);
        assert_eq!(payloads("a.json", "", 9), Vec::<Vec<(i64, String)>>::new());
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_a_way_out() {
        let message = |name: &str, text: &str| {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            match Input::open(&path, &BatchConfig::default()).err() {
                Some(Failure::Usage(message)) => message,
                other => panic!("{other:?}"),
            }
        };
        assert!(message("a.txt", "x").contains(".ndjson"));
        assert!(message("a.json", "[\n{},\n{]\n]").contains("line 3"));
    }
}
