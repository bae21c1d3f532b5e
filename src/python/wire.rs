//! Frames between a node and its Python workers.
//!
//! A frame is `kind: u8`, `header length: u32 LE`, `body length: u64 LE`, then the header (a
//! message of `proto/worker.proto`, empty where the kind has none) and the body (an Arrow IPC
//! stream, empty where there is no batch). It travels on a Unix stream socket of its own, never on
//! standard input or output, which belong to the script. The parent reads and writes it
//! asynchronously, the worker with plain blocking calls.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use arrow::buffer::Buffer;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::helpers::HelperModule;
use super::script::Style;
use crate::proto::worker as headers;
pub(super) use crate::proto::worker::{
    Beat, Failure, Fault, Init, Load, LoadReply, LogLine, RowsReply,
};

/// Largest header: room for a traceback for every row of the largest batch.
const MAX_HEADER_BYTES: usize = 256 << 20;
/// Largest body. A batch is bounded far below it; more can only be garbage.
const MAX_BODY_BYTES: usize = 1 << 30;
/// Bytes before the header: kind, header length, body length.
const PREFIX_BYTES: usize = 1 + 4 + 8;

/// What a frame is about. The two directions share no number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// To the worker: [`Init`].
    Init = 1,
    /// To the worker: [`Load`], with the input schema as a stream without batches.
    Load = 2,
    /// To the worker: no header, one batch.
    Transform = 3,
    /// To the worker: [`Beat`].
    Heartbeat = 4,
    /// To the worker: tear down and leave.
    Stop = 5,
    /// From the worker: the interpreter is up.
    Ready = 65,
    /// From the worker: [`LoadReply`].
    Loaded = 66,
    /// From the worker: [`RowsReply`] with one batch.
    Rows = 67,
    /// From the worker: [`Failure`].
    Failed = 68,
    /// From the worker, at any time: [`LogLine`].
    Log = 69,
}

impl Kind {
    fn from_u8(byte: u8) -> Option<Self> {
        const ALL: [Kind; 10] = [
            Kind::Init,
            Kind::Load,
            Kind::Transform,
            Kind::Heartbeat,
            Kind::Stop,
            Kind::Ready,
            Kind::Loaded,
            Kind::Rows,
            Kind::Failed,
            Kind::Log,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// One event that the script could not or would not turn into features.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Its `_row` in the batch that was sent.
    pub row: u32,
    /// `exception` (the script raised), `contract` (what it returned for this event is refused)
    /// or the reason that the script itself gave to `ctx.reject`.
    pub reason: String,
    /// The traceback, the refusal, or the detail given to `ctx.reject`; shortened in the middle
    /// when long.
    pub detail: String,
}

impl From<Rejected> for headers::Rejected {
    fn from(Rejected { row, reason, detail }: Rejected) -> Self {
        Self { row, reason, detail }
    }
}

impl From<headers::Rejected> for Rejected {
    fn from(headers::Rejected { row, reason, detail }: headers::Rejected) -> Self {
        Self { row, reason, detail }
    }
}

impl From<Style> for headers::Style {
    fn from(style: Style) -> Self {
        match style {
            Style::Polars => Self::Polars,
            Style::RecordBatch => Self::RecordBatch,
            Style::Table => Self::Table,
            Style::Pandas => Self::Pandas,
            Style::Rows => Self::Rows,
            Style::Event => Self::Event,
        }
    }
}

/// The style that a reply names.
pub(super) fn style_of(reply: &LoadReply) -> Result<Style, WireError> {
    Ok(match reply.style() {
        headers::Style::Polars => Style::Polars,
        headers::Style::RecordBatch => Style::RecordBatch,
        headers::Style::Table => Style::Table,
        headers::Style::Pandas => Style::Pandas,
        headers::Style::Rows => Style::Rows,
        headers::Style::Event => Style::Event,
        headers::Style::Unspecified => {
            return Err(WireError::Malformed(format!("no style has the number {}", reply.style)));
        }
    })
}

/// A helper module as it travels.
pub(super) fn module_of(module: &HelperModule) -> headers::Module {
    headers::Module {
        name: module.name.clone(),
        path: path_to_bytes(&module.path),
        source: module.source.clone(),
        is_package: module.is_package,
    }
}

/// A path as it travels: the bytes that the operating system knows it by.
pub(super) fn path_to_bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

/// A path that travelled.
pub(super) fn path_from_bytes(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// Why no frame came or went.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// The other side closed the socket between two frames.
    #[error("the socket is closed")]
    Closed,
    /// The socket failed, or closed in the middle of a frame.
    #[error("the socket failed: {0}")]
    Io(#[from] io::Error),
    /// The bytes are not a frame.
    #[error("{0}")]
    Malformed(String),
}

/// One message.
#[derive(Debug)]
pub(super) struct Frame {
    pub kind: Kind,
    header: Vec<u8>,
    body: Vec<u8>,
}

impl Frame {
    /// A frame without a batch; `()` is the header of the kinds that have none.
    pub fn new<H: prost::Message>(kind: Kind, header: &H) -> Result<Self, WireError> {
        Self::with_body(kind, header, Vec::new())
    }

    /// A frame with Arrow IPC bytes.
    pub fn with_body<H: prost::Message>(
        kind: Kind,
        header: &H,
        body: Vec<u8>,
    ) -> Result<Self, WireError> {
        let header = header.encode_to_vec();
        check_lengths(header.len() as u64, body.len() as u64)?;
        Ok(Self { kind, header, body })
    }

    /// The header, read as what this kind carries.
    pub fn header<H: prost::Message + Default>(&self) -> Result<H, WireError> {
        H::decode(self.header.as_slice()).map_err(|error| {
            WireError::Malformed(format!("the header of a {:?} frame: {error}", self.kind))
        })
    }

    /// The body.
    pub fn into_body(self) -> Vec<u8> {
        self.body
    }

    fn prefix(&self) -> [u8; PREFIX_BYTES] {
        let mut prefix = [0; PREFIX_BYTES];
        prefix[0] = self.kind as u8;
        // The lengths were checked when the frame was made, so the header's fits.
        prefix[1..5].copy_from_slice(&(self.header.len() as u32).to_le_bytes());
        prefix[5..].copy_from_slice(&(self.body.len() as u64).to_le_bytes());
        prefix
    }

    fn head(&self) -> Vec<u8> {
        let mut head = Vec::with_capacity(PREFIX_BYTES + self.header.len());
        head.extend_from_slice(&self.prefix());
        head.extend_from_slice(&self.header);
        head
    }

    /// Writes the frame, blocking.
    pub fn write_to(&self, mut to: impl Write) -> io::Result<()> {
        to.write_all(&self.head())?;
        to.write_all(&self.body)
    }

    /// Reads one frame, blocking.
    pub fn read_from(mut from: impl Read) -> Result<Self, WireError> {
        let mut prefix = [0; PREFIX_BYTES];
        if from.read(&mut prefix[..1])? == 0 {
            return Err(WireError::Closed);
        }
        from.read_exact(&mut prefix[1..])?;
        let (kind, header_len, body_len) = parse_prefix(prefix)?;
        let mut read = |length: usize| -> io::Result<Vec<u8>> {
            // Zeroed memory of this size comes untouched from the kernel: a length that is garbage
            // costs no memory.
            let mut bytes = vec![0; length];
            from.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        let header = read(header_len)?;
        let body = read(body_len)?;
        Ok(Self { kind, header, body })
    }

    /// Writes the frame. Not cancel-safe: a frame begun must be finished.
    pub async fn send_to(&self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        to.write_all(&self.head()).await?;
        to.write_all(&self.body).await
    }

    /// Reads one frame. Not cancel-safe: a frame begun must be finished.
    pub async fn receive_from(from: &mut (impl AsyncRead + Unpin)) -> Result<Self, WireError> {
        let mut prefix = [0; PREFIX_BYTES];
        if from.read(&mut prefix[..1]).await? == 0 {
            return Err(WireError::Closed);
        }
        from.read_exact(&mut prefix[1..]).await?;
        let (kind, header_len, body_len) = parse_prefix(prefix)?;
        let header = receive_bytes(from, header_len).await?;
        let body = receive_bytes(from, body_len).await?;
        Ok(Self { kind, header, body })
    }
}

async fn receive_bytes(from: &mut (impl AsyncRead + Unpin), length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).await?;
    Ok(bytes)
}

fn parse_prefix(prefix: [u8; PREFIX_BYTES]) -> Result<(Kind, usize, usize), WireError> {
    let [kind, h0, h1, h2, h3, body @ ..] = prefix;
    let kind = Kind::from_u8(kind)
        .ok_or_else(|| WireError::Malformed(format!("no frame has the kind {kind}")))?;
    let header_len = u64::from(u32::from_le_bytes([h0, h1, h2, h3]));
    let body_len = u64::from_le_bytes(body);
    check_lengths(header_len, body_len)?;
    Ok((kind, header_len as usize, body_len as usize))
}

fn check_lengths(header: u64, body: u64) -> Result<(), WireError> {
    if header > MAX_HEADER_BYTES as u64 || body > MAX_BODY_BYTES as u64 {
        return Err(WireError::Malformed(format!(
            "a frame of {header} + {body} bytes is larger than {MAX_HEADER_BYTES} + {MAX_BODY_BYTES}"
        )));
    }
    Ok(())
}

/// A schema as an IPC stream without batches.
pub(super) fn encode_schema(schema: &Schema) -> Result<Vec<u8>, ArrowError> {
    StreamWriter::try_new(Vec::new(), schema)?.into_inner()
}

/// A batch as an IPC stream.
pub(super) fn encode_batch(batch: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    // A guess that saves growing; a slice of a large array would guess far too much.
    let guess = batch.get_array_memory_size().min(16 << 20) + 4096;
    let mut writer = StreamWriter::try_new(Vec::with_capacity(guess), batch.schema_ref())?;
    writer.write(batch)?;
    writer.into_inner()
}

/// Reads what [`encode_schema`] or [`encode_batch`] wrote; the columns of the batch share the
/// memory of `bytes`.
pub(super) fn decode(bytes: Vec<u8>) -> Result<(SchemaRef, Option<RecordBatch>), ArrowError> {
    let mut buffer = Buffer::from_vec(bytes);
    let mut decoder = StreamDecoder::new();
    let mut found = None;
    while !buffer.is_empty() {
        if let Some(batch) = decoder.decode(&mut buffer)?
            && found.replace(batch).is_some()
        {
            return Err(ArrowError::IpcError("more than one batch in a frame".into()));
        }
    }
    decoder.finish()?;
    let schema =
        decoder.schema().ok_or_else(|| ArrowError::IpcError("a frame without a schema".into()))?;
    Ok((schema, found))
}

/// Milliseconds of the machine's boot clock, which all its processes share and which goes on
/// while the machine sleeps.
pub(super) fn boot_ms() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec to write to; the clock exists on every Linux since 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut now) };
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int32Array, StringArray};
    use arrow::datatypes::{DataType, Field};
    use prost::Message;

    use super::*;

    fn batch() -> RecordBatch {
        let schema = Schema::new(vec![
            Field::new("a", DataType::Int32, false),
            Field::new("b", DataType::Utf8, true),
        ]);
        RecordBatch::try_new(
            Arc::new(schema),
            vec![
                Arc::new(Int32Array::from(vec![1, 2, 3])),
                Arc::new(StringArray::from(vec![Some("x"), None, Some("z")])),
            ],
        )
        .unwrap()
    }

    #[test]
    fn a_frame_survives_both_ways() {
        let frame = Frame::with_body(
            Kind::Transform,
            &Beat { at_boot_ms: 7 },
            encode_batch(&batch()).unwrap(),
        )
        .unwrap();
        let mut bytes = Vec::new();
        frame.write_to(&mut bytes).unwrap();
        let read = Frame::read_from(&bytes[..]).unwrap();
        assert_eq!(read.kind, Kind::Transform);
        assert_eq!(read.header::<Beat>().unwrap().at_boot_ms, 7);
        assert_eq!(decode(read.into_body()).unwrap().1.unwrap(), batch());

        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let read = runtime.block_on(Frame::receive_from(&mut &bytes[..])).unwrap();
        assert_eq!(decode(read.into_body()).unwrap().1.unwrap(), batch());
    }

    #[test]
    fn the_end_between_frames_is_not_the_end_within_one() {
        assert!(matches!(Frame::read_from(&[][..]), Err(WireError::Closed)));
        let mut bytes = Vec::new();
        Frame::with_body(Kind::Rows, &(), vec![1; 100]).unwrap().write_to(&mut bytes).unwrap();
        for length in 1..bytes.len() {
            assert!(
                matches!(Frame::read_from(&bytes[..length]), Err(WireError::Io(_))),
                "at {length}"
            );
        }
    }

    #[test]
    fn garbage_is_told_apart_and_never_allocated() {
        assert!(matches!(
            Frame::read_from(&b"Traceback (most recent"[..]),
            Err(WireError::Malformed(_))
        ));
        let mut huge = vec![Kind::Rows as u8];
        huge.extend_from_slice(&2u32.to_le_bytes());
        huge.extend_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(Frame::read_from(&huge[..]), Err(WireError::Malformed(_))));
        assert!(decode(b"not arrow at all, not at all".to_vec()).is_err());
    }

    #[test]
    fn a_header_that_is_no_message_is_malformed() {
        let frame =
            |header: &[u8]| Frame { kind: Kind::Failed, header: header.to_vec(), body: Vec::new() };
        let whole = Failure { message: "why".into(), ..Failure::default() }.encode_to_vec();
        assert!(frame(&whole).header::<Failure>().is_ok());
        for header in [&whole[..whole.len() - 1], b"Traceback (most recent", b"\x1a\x01\xff"] {
            assert!(
                matches!(frame(header).header::<Failure>(), Err(WireError::Malformed(_))),
                "{header:?}"
            );
        }
    }

    #[test]
    fn a_style_arrives_as_it_was_sent_and_none_is_no_style() {
        let reply = |style: i32| LoadReply { style, seconds: 0.5, timeout_seconds: 0.0 };
        for style in [
            Style::Polars,
            Style::RecordBatch,
            Style::Table,
            Style::Pandas,
            Style::Rows,
            Style::Event,
        ] {
            let sent = reply(headers::Style::from(style).into());
            assert_eq!(style_of(&sent).unwrap(), style);
            assert_eq!(
                headers::Style::from(style).as_str_name(),
                format!("STYLE_{}", style.as_str().to_uppercase())
            );
        }
        assert!(matches!(style_of(&reply(0)), Err(WireError::Malformed(_))));
        assert!(matches!(style_of(&reply(99)), Err(WireError::Malformed(_))));
    }

    #[test]
    fn a_path_that_is_no_text_survives() {
        let path = Path::new(OsStr::from_bytes(b"/srv/\xff/site-packages"));
        assert_eq!(path_from_bytes(&path_to_bytes(path)), path);
    }

    #[test]
    fn a_schema_travels_without_batches() {
        let (schema, none) = decode(encode_schema(&batch().schema()).unwrap()).unwrap();
        assert_eq!(schema, batch().schema());
        assert!(none.is_none());
    }

    #[test]
    fn a_slice_travels_as_its_rows_only() {
        let sliced = batch().slice(1, 2);
        assert_eq!(decode(encode_batch(&sliced).unwrap()).unwrap().1.unwrap(), sliced);
    }
}
