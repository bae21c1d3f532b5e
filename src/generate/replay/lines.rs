//! NDJSON: lines passed through byte for byte.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::{MAX_RECORD_BYTES, ReplayError, ReplayOptions, Row};

/// Lines are read through a buffer of this size.
const BUFFER_BYTES: usize = 1 << 18;

/// The lines of a file.
pub(super) struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    key_field: Option<String>,
    rows: u64,
}

impl Lines {
    pub(super) fn open(
        path: &Path,
        file: File,
        options: &ReplayOptions,
    ) -> Result<Self, ReplayError> {
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, file);
        let start = reader.fill_buf().map_err(|source| ReplayError::io(path, source))?;
        // A byte order mark belongs to the file, not to its first line.
        let mark = if start.starts_with(b"\xEF\xBB\xBF") { 3 } else { 0 };
        if is_one_document(&start[mark..]) {
            return Err(ReplayError::NotLines { path: path.to_owned() });
        }
        reader.consume(mark);
        Ok(Self { path: path.to_owned(), reader, key_field: options.key_field.clone(), rows: 0 })
    }

    /// Gives up to `max_rows` lines to `take`; none at the end of the file.
    pub(super) fn read(
        &mut self,
        max_rows: usize,
        take: &mut impl FnMut(Row),
    ) -> Result<(), ReplayError> {
        let mut taken = 0;
        let mut line = Vec::new();
        while taken < max_rows {
            line.clear();
            // One byte more than allowed tells a line that is too long from one that just fits.
            let mut limited = (&mut self.reader).take(MAX_RECORD_BYTES as u64 + 1);
            let read = limited
                .read_until(b'\n', &mut line)
                .map_err(|source| ReplayError::io(&self.path, source))?;
            if read == 0 {
                break;
            }
            if read > MAX_RECORD_BYTES {
                return Err(ReplayError::RecordTooLong { path: self.path.clone(), row: self.rows });
            }
            let content = without_line_break(&line);
            if content.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let key = self.key_field.as_deref().and_then(|field| key_of_line(content, field));
            take((key, content.to_vec()));
            taken += 1;
            self.rows += 1;
        }
        Ok(())
    }
}

/// Whether the file starts like a pretty-printed object or an array over several lines, which
/// would make a malformed event of every line.
fn is_one_document(start: &[u8]) -> bool {
    let first_line =
        start.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).find(|line| !line.is_empty());
    match first_line {
        Some(line) => line == b"{" || line == b"[" || line.starts_with(b"[{"),
        None => false,
    }
}

fn without_line_break(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// The key in the field `field` of the object `line`; `None` when the line is not an object, or
/// not JSON at all. Where a name comes twice the last one counts, as in serde_json.
fn key_of_line(line: &[u8], field: &str) -> Option<Vec<u8>> {
    let mut json = serde_json::Deserializer::from_slice(line);
    let key = KeyOfObject { field }.deserialize(&mut json).ok()?;
    json.end().ok()?;
    key
}

struct KeyOfObject<'a> {
    field: &'a str,
}

impl<'de> DeserializeSeed<'de> for KeyOfObject<'_> {
    type Value = Option<Vec<u8>>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for KeyOfObject<'_> {
    type Value = Option<Vec<u8>>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut key = None;
        while let Some(found) = map.next_key_seed(IsName(self.field))? {
            if found {
                let value: serde_json::Value = map.next_value()?;
                key = super::key_of_json(value.to_string().as_bytes());
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(key)
    }
}

/// Whether the next name of an object is this one; allocates only for names with escapes.
struct IsName<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for IsName<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<bool, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for IsName<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_the_text_of_the_field() {
        let key = |line: &str| {
            key_of_line(line.as_bytes(), "k").map(|key| String::from_utf8(key).unwrap())
        };
        assert_eq!(key(r#"{"a":[{"k":1}],"k":"x\ny","b":2}"#).unwrap(), "x\ny");
        assert_eq!(key(r#"{"\u006b":"escaped name"}"#).unwrap(), "escaped name");
        assert_eq!(key(r#"{"k":18446744073709551615}"#).unwrap(), "18446744073709551615");
        assert_eq!(key(r#"{"k":-1.5}"#).unwrap(), "-1.5");
        assert_eq!(key(r#"{"k":true}"#).unwrap(), "true");
        assert_eq!(key(r#"{"k":1,"k":2}"#).unwrap(), "2");
        assert_eq!(key(r#"{"k":""}"#).unwrap(), "");
        for keyless in [
            r#"{"k":null}"#,
            r#"{"k":[1]}"#,
            r#"{"k":{}}"#,
            r#"{"j":1}"#,
            "[1]",
            "7",
            "",
            r#"{"k":1"#,
            r#"{"k":1} x"#,
        ] {
            assert_eq!(key(keyless), None, "{keyless}");
        }
    }
}
