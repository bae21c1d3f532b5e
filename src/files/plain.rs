//! From a file to its decompressed bytes, within limits.

use super::{
    Compression, FileError, FileFormat, FileKind, FileLimits, reasons,
    sniff::{is_binary, looks_like},
    window::Source,
};
use std::{
    fs::File,
    io::{BufRead, BufReader, ErrorKind, Read},
    path::Path,
};

/// Bytes of the file that are read at once.
const READ_BYTES: usize = 128 << 10;
/// What a file may become whatever its ratio.
pub(super) const FREE_BYTES: u64 = 16 << 20;
/// Largest window that zstd may want, as a power of two: 128 MiB, as its command line allows.
const ZSTD_WINDOW_LOG: u32 = 27;

/// Opens a file for reading what is in it; bytes that contradict what is said of them are refused.
pub(super) fn open(path: &Path, kind: FileKind, limits: &FileLimits) -> Result<Source, FileError> {
    let file = File::open(path).map_err(|e| FileError::from_io(&e))?;
    let sent = file.metadata().map_err(|e| FileError::from_io(&e))?.len();
    let mut file = BufReader::with_capacity(READ_BYTES, file);
    let head = file.fill_buf().map_err(|e| FileError::from_io(&e))?;
    if head.is_empty() {
        if kind.compression == Compression::None && kind.format == FileFormat::Ndjson {
            return Ok(Box::new(file));
        }
        return Err(FileError::new(reasons::EMPTY_FILE, "the file is empty", "send one with rows"));
    }
    check_compression(head, kind.compression)?;
    let failed = |e: std::io::Error| FileError::from_io(&e);
    let plain: Source = match kind.compression {
        Compression::None => Box::new(file),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(file).map_err(failed)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(failed)?;
            Box::new(decoder)
        }
    };
    let most = sent.saturating_mul(limits.max_ratio).max(FREE_BYTES);
    let most_by_ratio = (kind.compression != Compression::None).then_some(most);
    let guarded = Guard {
        plain,
        compression: kind.compression,
        out: 0,
        most: limits.max_decompressed_bytes,
        most_by_ratio,
        ratio: limits.max_ratio,
    };
    let mut source = BufReader::with_capacity(READ_BYTES, guarded);
    let head = source.fill_buf().map_err(failed)?;
    check_format(head, kind.format)?;
    Ok(Box::new(source))
}

/// Opens a file for reading here and there in it: itself, or a decompressed copy beside it that has no
/// name any more, so that it goes with whoever reads it, however that ends.
pub(super) fn open_seekable(
    path: &Path,
    kind: FileKind,
    limits: &FileLimits,
) -> Result<File, FileError> {
    // Looks at the beginning, too.
    let mut source = open(path, kind, limits)?;
    let failed = |e: std::io::Error| FileError::from_io(&e);
    if kind.compression == Compression::None {
        return File::open(path).map_err(failed);
    }
    let copy = path.with_extension(format!("{}.plain", uuid::Uuid::now_v7().simple()));
    let file = File::options().read(true).write(true).create_new(true).open(&copy);
    let mut file = file.map_err(failed)?;
    std::fs::remove_file(&copy).map_err(failed)?;
    std::io::copy(&mut source, &mut file).map_err(failed)?;
    Ok(file)
}

fn check_compression(head: &[u8], said: Compression) -> Result<(), FileError> {
    // A zstd stream may begin with a frame that is to be skipped.
    let zstd = head.starts_with(b"\x28\xB5\x2F\xFD")
        || matches!(head, [0x50..=0x5F, 0x2A, 0x4D, 0x18, ..]);
    let is = match head {
        [0x1F, 0x8B, ..] => Compression::Gzip,
        _ if zstd => Compression::Zstd,
        _ => Compression::None,
    };
    if is == said {
        return Ok(());
    }
    let (detail, hint) = match (is, looks_like(head)) {
        (Compression::None, Some((what, hint))) => (
            format!("the file is said to be {}, but looks like {what}", said.as_str()),
            format!("say that its compression is `none`; {hint}"),
        ),
        (Compression::None, None) => (
            format!("the file is said to be {}, but does not begin like it", said.as_str()),
            "say that its compression is `none`, or compress it".into(),
        ),
        (_, _) => (
            format!(
                "the file's compression is said to be `{}`, but it looks like {}",
                said.as_str(),
                is.as_str()
            ),
            format!("say that its compression is `{}`", is.as_str()),
        ),
    };
    Err(FileError::new(reasons::WRONG_COMPRESSION, detail, hint))
}

/// Binary formats are told by their beginning; what text is, its own reader knows better.
fn check_format(head: &[u8], said: FileFormat) -> Result<(), FileError> {
    let wrong = match said {
        FileFormat::Parquet if head.is_empty() => {
            return Err(FileError::new(
                reasons::EMPTY_FILE,
                "the file is empty",
                "send one with rows",
            ));
        }
        FileFormat::Parquet => !head.starts_with(b"PAR1"),
        _ => is_binary(head),
    };
    if !wrong {
        return Ok(());
    }
    let (what, hint) =
        looks_like(head).unwrap_or(("something else", "look at what is in the file"));
    let detail = format!("the file is said to be {}, but looks like {what}", said.as_str());
    Err(FileError::new(reasons::WRONG_FORMAT, detail, hint))
}

/// Counts what comes out of a decoder and says what its errors mean.
struct Guard {
    plain: Source,
    compression: Compression,
    out: u64,
    most: u64,
    most_by_ratio: Option<u64>,
    ratio: u64,
}

impl Read for Guard {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.plain.read(buffer).map_err(|error| self.meaning(error))?;
        self.out += n as u64;
        if self.out > self.most {
            let detail = format!("the file has more than {} bytes once decompressed", self.most);
            let hint = "split it, or raise `uploads.max_decompressed_bytes`";
            return Err(FileError::new(reasons::TOO_LARGE, detail, hint).into());
        }
        if self.most_by_ratio.is_some_and(|most| self.out > most) {
            let detail =
                format!("the file becomes more than {} times larger by decompression", self.ratio);
            let hint = "send it with less compression, or raise `uploads.max_ratio`";
            return Err(FileError::new(reasons::RATIO_TOO_HIGH, detail, hint).into());
        }
        Ok(n)
    }
}

impl Guard {
    fn meaning(&self, error: std::io::Error) -> std::io::Error {
        let text = error.to_string();
        if self.compression == Compression::None
            || error.kind() == ErrorKind::Interrupted
            || error.raw_os_error().is_some()
        {
            return error;
        }
        let format = self.compression.as_str();
        let refusal = if error.kind() == ErrorKind::UnexpectedEof {
            FileError::cut_off(format!("the {format} data has no end: the file was cut off"))
        } else if text.contains("requires too much memory") {
            let detail = "the file wants more than 128 MiB of memory to be decompressed";
            let hint = "compress it without `--long`, or with `--long=27` at most";
            FileError::new(reasons::WINDOW_TOO_LARGE, detail, hint)
        } else if text.contains("not enough memory") {
            FileError::new(reasons::OUT_OF_MEMORY, text, "raise `uploads.check_memory_mib`")
        } else {
            let detail = format!("the {format} data is damaged: {text}");
            let hint =
                "nothing may stand behind the data; compress the file anew and send it again";
            FileError::new(reasons::DAMAGED_COMPRESSION, detail, hint)
        };
        refusal.at_byte(self.out).into()
    }
}
