//! A window on a stream of bytes: what was read and is not done with lies in one piece.

use super::FileError;
use std::io::{ErrorKind, Read};

/// Bytes that are read at once.
const READ_BYTES: usize = 256 << 10;

/// A reader of a file's decompressed bytes.
pub(super) type Source = Box<dyn Read + Send>;

/// See the module. It holds as much as its user leaves there, and one read.
pub(super) struct Window {
    source: Source,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Where `start` is in the stream.
    position: u64,
}

impl Window {
    pub fn new(source: Source) -> Self {
        Self { source, buffer: vec![0; 2 * READ_BYTES], start: 0, end: 0, position: 0 }
    }

    /// What was read and not passed yet.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Where the first of these bytes stands in the stream.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Passes `n` bytes.
    pub fn pass(&mut self, n: usize) {
        debug_assert!(n <= self.end - self.start);
        self.start += n;
        self.position += n as u64;
    }

    /// Reads more; false at the end of the stream.
    pub fn fill(&mut self) -> Result<bool, FileError> {
        if self.buffer.len() - self.end < READ_BYTES {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            if self.buffer.len() - self.end < READ_BYTES {
                self.buffer.resize(2 * self.buffer.len(), 0);
            }
        }
        loop {
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(n) => {
                    self.end += n;
                    return Ok(n > 0);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(FileError::from_io(&error)),
            }
        }
    }

    /// Passes a byte order mark, which belongs to the file and not to its first row.
    pub fn pass_mark(&mut self) -> Result<(), FileError> {
        while self.bytes().len() < 3 && self.fill()? {}
        if self.bytes().starts_with(b"\xEF\xBB\xBF") {
            self.pass(3);
        }
        Ok(())
    }

    /// Passes white space; the byte behind it, if there is one.
    pub fn pass_space(&mut self) -> Result<Option<u8>, FileError> {
        loop {
            let space = |b: &u8| matches!(b, b' ' | b'\t' | b'\n' | b'\r');
            let n = self.bytes().iter().take_while(|b| space(b)).count();
            self.pass(n);
            if let Some(byte) = self.bytes().first() {
                return Ok(Some(*byte));
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// Up to `n` of the bytes that come next.
    pub fn peek(&mut self, n: usize) -> Result<&[u8], FileError> {
        while self.bytes().len() < n && self.fill()? {}
        Ok(&self.bytes()[..self.bytes().len().min(n)])
    }
}
