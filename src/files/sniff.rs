//! What bytes look like by their beginning: for errors that say what to do.

/// What a file is that begins so, and what to do with it; `None`: nothing that is known.
pub(super) fn looks_like(head: &[u8]) -> Option<(&'static str, &'static str)> {
    const MAGIC: [(&[u8], &str, &str); 12] = [
        (
            b"\x1F\x8B",
            "gzip",
            "say that its compression is `gzip`; it must be compressed once only",
        ),
        (
            b"\x28\xB5\x2F\xFD",
            "zstd",
            "say that its compression is `zstd`; it must be compressed once only",
        ),
        (b"PAR1", "Parquet", "say that its format is `parquet`"),
        (
            b"PK\x03\x04",
            "a zip archive or a spreadsheet",
            "unpack it, and send the file that is in it",
        ),
        (b"BZh", "bzip2", "compress it with gzip or zstd"),
        (b"\xFD7zXZ\0", "xz", "compress it with gzip or zstd"),
        (b"\x04\x22\x4D\x18", "lz4", "compress it with gzip or zstd"),
        (b"Obj\x01", "Avro", "write it as Parquet"),
        (b"ARROW1", "Arrow IPC", "write it as Parquet"),
        (b"ORC", "ORC", "write it as Parquet"),
        (b"\xFF\xFE", "text in UTF-16", "write it in UTF-8"),
        (b"\xFE\xFF", "text in UTF-16", "write it in UTF-8"),
    ];
    if let Some((_, what, hint)) = MAGIC.iter().find(|(magic, ..)| head.starts_with(magic)) {
        return Some((what, hint));
    }
    let text = head.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(head).trim_ascii_start();
    match text {
        [b'[', ..] => Some(("a JSON array", "say that its format is `json`")),
        [b'{', ..] => Some(("JSON objects", "say that its format is `ndjson`")),
        [b'<', ..] => Some(("HTML or XML", "look at what is in the file")),
        _ if is_header(text) => Some(("CSV", "say that its format is `csv`")),
        _ => None,
    }
}

/// Whether these are the beginnings of a compressed file or of another binary one.
pub(super) fn is_binary(head: &[u8]) -> bool {
    let text = looks_like(head).is_some_and(|(what, _)| {
        matches!(what, "a JSON array" | "JSON objects" | "HTML or XML" | "CSV")
    });
    !text && looks_like(head).is_some()
}

/// Whether the first line could be the names of columns.
fn is_header(text: &[u8]) -> bool {
    let line = text.split(|b| matches!(b, b'\n' | b'\r')).next().unwrap_or_default();
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"_-,;. \"\t".contains(b);
    line.contains(&b',') && line.iter().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings_are_known() {
        for (head, what) in [
            (&b"\x1f\x8b\x08"[..], Some("gzip")),
            (b"\x28\xb5\x2f\xfd\x04", Some("zstd")),
            (b"PAR1\x15", Some("Parquet")),
            (b"\xef\xbb\xbf [{", Some("a JSON array")),
            (b"\n{\"a\"", Some("JSON objects")),
            (b"a,b\n1,2", Some("CSV")),
            (b"a b\n", None),
            (b"", None),
        ] {
            assert_eq!(looks_like(head).map(|(what, _)| what), what, "{head:?}");
        }
        assert!(is_binary(b"PK\x03\x04..") && !is_binary(b"[1]") && !is_binary(b"a,b"));
    }
}
