//! The page headers of a Parquet column: what the pages say about themselves, against the footer.
//!
//! polars believes the counts and sizes of footer and pages. A footer that counts fewer rows than the
//! pages hold would lose rows without a word, and a page that claims a gigabyte would be given one.
//! Here every page header is read before polars sees the file: Thrift's compact protocol, of which
//! only the fields that count are kept.

use super::{FileError, reasons};
use std::{fs::File, ops::Range, os::unix::fs::FileExt};

/// How much is read to find a header in; a header with large statistics takes more.
const HEADER_BYTES: usize = 1 << 10;
/// A header is no longer than that.
const MAX_HEADER_BYTES: usize = 16 << 20;
/// Largest page, decompressed. Writers make pages of about 1 MiB; some put a column of a row group
/// into one.
const MAX_PAGE_BYTES: i64 = 512 << 20;
/// Deepest struct within a struct of a page header.
const MAX_DEPTH: u32 = 8;

/// What the pages of one column of a row group hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Pages {
    /// Values, nulls included.
    pub values: u64,
    /// Bytes once decompressed.
    pub bytes: u64,
}

#[derive(Debug, Default)]
struct Header {
    kind: i64,
    decompressed: i64,
    compressed: i64,
    values: i64,
}

/// Goes through the pages in `range` of the file.
pub(super) fn walk(file: &File, range: Range<u64>) -> Result<Pages, FileError> {
    let mut pages = Pages::default();
    let mut at = range.start;
    let mut buffer = Vec::new();
    while at < range.end {
        let (header, length) = read_header(file, at, range.end, &mut buffer)?;
        let sizes = 0..=MAX_PAGE_BYTES;
        if !sizes.contains(&header.decompressed) || !sizes.contains(&header.compressed) {
            let (claimed, most) = (header.decompressed.max(header.compressed), MAX_PAGE_BYTES);
            return Err(damaged(
                format!("a page claims {claimed} bytes, at most {most} are read"),
                at,
            ));
        }
        // Data pages of both versions; the others are dictionaries and indices.
        if matches!(header.kind, 0 | 3) {
            pages.values += u64::try_from(header.values)
                .map_err(|_| damaged("a page counts its values below zero".into(), at))?;
        }
        pages.bytes += header.decompressed.unsigned_abs();
        at += length as u64 + header.compressed.unsigned_abs();
    }
    if at != range.end {
        return Err(damaged("a page is longer than its column".into(), at));
    }
    Ok(pages)
}

fn damaged(detail: String, at: u64) -> FileError {
    let hint = "the file is damaged or forged: write it anew";
    FileError::new(reasons::DAMAGED_PARQUET, detail, hint).at_byte(at)
}

fn read_header(
    file: &File,
    at: u64,
    end: u64,
    buffer: &mut Vec<u8>,
) -> Result<(Header, usize), FileError> {
    let mut wanted = HEADER_BYTES;
    loop {
        let room = usize::try_from(end - at).unwrap_or(usize::MAX).min(wanted);
        buffer.resize(room, 0);
        file.read_exact_at(buffer, at).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                damaged("a page lies behind the end of the file".into(), at)
            }
            _ => FileError::from_io(&error),
        })?;
        let mut thrift = Thrift { bytes: buffer, at: 0 };
        match thrift.header() {
            Ok(header) => return Ok((header, thrift.at)),
            Err(Broken::Short) if room == wanted && wanted < MAX_HEADER_BYTES => wanted *= 16,
            Err(_) => return Err(damaged("a page has no header".into(), at)),
        }
    }
}

/// Why a header cannot be read.
#[derive(Debug, PartialEq)]
enum Broken {
    /// More bytes are needed.
    Short,
    /// No bytes would help.
    Wrong,
}

/// Thrift's compact protocol.
struct Thrift<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Thrift<'_> {
    fn header(&mut self) -> Result<Header, Broken> {
        let mut header = Header::default();
        let mut id = 0;
        while let Some(kind) = self.field(&mut id)? {
            match (id, kind) {
                (1, 4..=6) => header.kind = self.int()?,
                (2, 4..=6) => header.decompressed = self.int()?,
                (3, 4..=6) => header.compressed = self.int()?,
                // The headers of data pages: their first field is the number of values.
                (5 | 8, 12) => header.values = self.first_int()?,
                _ => self.skip(kind, 0)?,
            }
        }
        Ok(header)
    }

    /// The first field of a struct, which is an integer; passes the struct.
    fn first_int(&mut self) -> Result<i64, Broken> {
        let (mut id, mut first) = (0, None);
        while let Some(kind) = self.field(&mut id)? {
            match (id, kind) {
                (1, 4..=6) => first = Some(self.int()?),
                _ => self.skip(kind, 1)?,
            }
        }
        first.ok_or(Broken::Wrong)
    }

    /// The type of the next field, whose number goes to `id`; `None` at the end of the struct.
    fn field(&mut self, id: &mut i64) -> Result<Option<u8>, Broken> {
        let byte = self.byte()?;
        if byte == 0 {
            return Ok(None);
        }
        match byte >> 4 {
            0 => *id = self.int()?,
            delta => *id += i64::from(delta),
        }
        Ok(Some(byte & 0x0F))
    }

    fn byte(&mut self) -> Result<u8, Broken> {
        let byte = *self.bytes.get(self.at).ok_or(Broken::Short)?;
        self.at += 1;
        Ok(byte)
    }

    fn unsigned(&mut self) -> Result<u64, Broken> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Broken::Wrong)
    }

    fn int(&mut self) -> Result<i64, Broken> {
        let zigzag = self.unsigned()?;
        Ok((zigzag >> 1).cast_signed() ^ -((zigzag & 1).cast_signed()))
    }

    fn pass(&mut self, n: u64) -> Result<(), Broken> {
        let n = usize::try_from(n).map_err(|_| Broken::Wrong)?;
        if n > MAX_HEADER_BYTES {
            return Err(Broken::Wrong);
        }
        self.at += n;
        if self.at > self.bytes.len() { Err(Broken::Short) } else { Ok(()) }
    }

    fn skip(&mut self, kind: u8, depth: u32) -> Result<(), Broken> {
        if depth > MAX_DEPTH {
            return Err(Broken::Wrong);
        }
        match kind {
            // Truth values are in the type itself.
            1 | 2 => Ok(()),
            3 => self.pass(1),
            4..=6 => self.int().map(|_| ()),
            7 => self.pass(8),
            8 => self.unsigned().and_then(|n| self.pass(n)),
            9 | 10 => {
                let byte = self.byte()?;
                let n = if byte >> 4 == 15 { self.unsigned()? } else { u64::from(byte >> 4) };
                for _ in 0..n {
                    self.skip_item(byte & 0x0F, depth + 1)?;
                }
                Ok(())
            }
            12 => {
                let mut id = 0;
                while let Some(kind) = self.field(&mut id)? {
                    self.skip(kind, depth + 1)?;
                }
                Ok(())
            }
            // Page headers have no maps.
            _ => Err(Broken::Wrong),
        }
    }

    /// Within a list truth values take a byte.
    fn skip_item(&mut self, kind: u8, depth: u32) -> Result<(), Broken> {
        match kind {
            1 | 2 => self.pass(1),
            _ => self.skip(kind, depth),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_header_is_read_and_every_beginning_of_it_is_short() {
        // A data page of 3 values, 100 bytes that were 40, with statistics in it.
        let bytes: &[u8] = &[
            0x15, 0x00, 0x15, 0xC8, 0x01, 0x15, 0x50, 0x2C, 0x15, 0x06, 0x15, 0x00, 0x15, 0x06,
            0x15, 0x06, 0x1C, 0x18, 0x02, b'a', b'b', 0x00, 0x00, 0x00,
        ];
        let mut thrift = Thrift { bytes, at: 0 };
        let header = thrift.header().unwrap();
        assert_eq!((header.kind, header.decompressed, header.compressed), (0, 100, 40));
        assert_eq!((header.values, thrift.at), (3, bytes.len()));
        for n in 0..bytes.len() {
            let mut thrift = Thrift { bytes: &bytes[..n], at: 0 };
            assert_eq!(thrift.header().unwrap_err(), Broken::Short, "{n}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut thrift = Thrift { bytes: &bytes, at: 0 };
            let _ = thrift.header();
        }
    }
}
