//! Rows of an answer into a file, of the kind that its extension says. The file appears when it is
//! complete.

use super::Failure;
use anyhow::Context as _;
use arrow::{
    array::RecordBatch,
    buffer::Buffer,
    csv,
    datatypes::SchemaRef,
    ipc::{self, reader::StreamDecoder},
    json,
};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};
use std::{
    fs::{File, Permissions},
    io::{BufWriter, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};
use tempfile::NamedTempFile;

/// What files can be written.
const KINDS: &str = ".parquet, .csv, .ndjson, or .arrow (an Arrow IPC stream)";

/// A kind of file, by its extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Parquet,
    Csv,
    Ndjson,
    Arrow,
}

/// Where rows go.
pub(super) struct FileSink {
    path: PathBuf,
    file: NamedTempFile,
    writer: Writer,
    rows: usize,
}

enum Writer {
    Parquet(Box<ArrowWriter<File>>),
    Csv(Box<csv::Writer<BufWriter<File>>>),
    Ndjson(Box<json::LineDelimitedWriter<BufWriter<File>>>),
    Arrow(Box<ipc::writer::StreamWriter<BufWriter<File>>>),
}

/// The kind of file that a path names.
fn kind(path: &Path) -> Result<Kind, Failure> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("parquet") => Ok(Kind::Parquet),
        Some("csv") => Ok(Kind::Csv),
        Some("ndjson" | "jsonl") => Ok(Kind::Ndjson),
        Some("arrow" | "arrows") => Ok(Kind::Arrow),
        _ => Err(Failure::Usage(format!(
            "{}: its extension does not tell what it is to be: {KINDS}",
            path.display()
        ))),
    }
}

/// Whether a file of that name can be written; before anything is asked.
pub(super) fn check(path: &Path) -> Result<(), Failure> {
    kind(path).map(|_| ())
}

/// Writes the rows of an answer that is an Arrow IPC stream; how many there are.
pub(super) async fn save(mut response: reqwest::Response, path: &Path) -> Result<usize, Failure> {
    let mut decoder = StreamDecoder::new();
    let mut sink = None;
    loop {
        let piece = response.chunk().await;
        let Some(piece) = piece.context("the answer breaks off: see the node's log")? else {
            break;
        };
        let mut buffer = Buffer::from(piece.to_vec());
        loop {
            let batch = decoder.decode(&mut buffer).map_err(anyhow::Error::from)?;
            if sink.is_none()
                && let Some(schema) = decoder.schema()
            {
                sink = Some(FileSink::new(path, &schema)?);
            }
            match (batch, &mut sink) {
                (Some(batch), Some(sink)) => sink.write(&batch)?,
                _ => break,
            }
        }
    }
    decoder.finish().map_err(anyhow::Error::from)?;
    Ok(sink.context("the answer has no columns: see the node's log")?.finish()?)
}

impl FileSink {
    /// A file for rows of a schema.
    pub(super) fn new(path: &Path, schema: &SchemaRef) -> Result<Self, Failure> {
        let kind = kind(path)?;
        let folder = path.parent().filter(|folder| *folder != Path::new(""));
        // With the rights of any new file: a temporary one is usually its owner's alone.
        let file = tempfile::Builder::new()
            .prefix(".millstream-")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder.unwrap_or(Path::new(".")))
            .with_context(|| format!("cannot write beside {}", path.display()))?;
        let handle = file.reopen().map_err(anyhow::Error::from)?;
        let writer = Writer::new(kind, handle, schema)
            .with_context(|| format!("{} cannot hold these columns", path.display()))?;
        Ok(Self { path: path.to_owned(), file, writer, rows: 0 })
    }

    /// Adds rows.
    pub(super) fn write(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        self.rows += batch.num_rows();
        match &mut self.writer {
            Writer::Parquet(writer) => writer.write(batch)?,
            Writer::Csv(writer) => writer.write(batch)?,
            Writer::Ndjson(writer) => writer.write(batch)?,
            Writer::Arrow(writer) => writer.write(batch)?,
        }
        Ok(())
    }

    /// Makes the file appear; how many rows it has.
    pub(super) fn finish(self) -> anyhow::Result<usize> {
        match self.writer {
            Writer::Parquet(writer) => writer.close().map(|_| ())?,
            Writer::Csv(writer) => writer.into_inner().flush()?,
            Writer::Ndjson(mut writer) => {
                writer.finish()?;
                writer.into_inner().flush()?;
            }
            Writer::Arrow(writer) => writer.into_inner()?.flush()?,
        }
        let shown = self.path.display().to_string();
        self.file.persist(&self.path).with_context(|| format!("cannot write {shown}"))?;
        Ok(self.rows)
    }
}

impl Writer {
    fn new(kind: Kind, file: File, schema: &SchemaRef) -> anyhow::Result<Self> {
        Ok(match kind {
            Kind::Parquet => {
                let level = Compression::ZSTD(ZstdLevel::default());
                let properties = WriterProperties::builder().set_compression(level).build();
                let writer = ArrowWriter::try_new(file, schema.clone(), Some(properties))?;
                Self::Parquet(Box::new(writer))
            }
            Kind::Csv => {
                let mut writer = csv::Writer::new(BufWriter::new(file));
                // The names of the columns, also without rows.
                writer.write(&RecordBatch::new_empty(schema.clone()))?;
                Self::Csv(Box::new(writer))
            }
            Kind::Ndjson => {
                let writer = json::WriterBuilder::new().with_explicit_nulls(true);
                Self::Ndjson(Box::new(writer.build(BufWriter::new(file))))
            }
            Kind::Arrow => {
                let writer = ipc::writer::StreamWriter::try_new(BufWriter::new(file), schema)?;
                Self::Arrow(Box::new(writer))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, Float64Array, StringArray, TimestampMicrosecondArray};
    use std::sync::Arc;

    fn batch() -> RecordBatch {
        let columns: [(&str, ArrayRef); 3] = [
            ("e", Arc::new(StringArray::from(vec!["a", "b,\"c\""]))),
            ("f", Arc::new(Float64Array::from(vec![Some(0.1), None]))),
            (
                "t",
                Arc::new(TimestampMicrosecondArray::from(vec![0, 1_500_000]).with_timezone("UTC")),
            ),
        ];
        RecordBatch::try_from_iter(columns).unwrap()
    }

    fn written(name: &str, batches: &[RecordBatch]) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        let mut sink = FileSink::new(&path, &batch().schema()).unwrap();
        batches.iter().for_each(|batch| sink.write(batch).unwrap());
        assert!(!path.exists(), "before it is complete");
        let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
        assert_eq!(sink.finish().unwrap(), rows);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        std::fs::read(path).unwrap()
    }

    #[test]
    fn each_kind_of_file_holds_the_rows() {
        let text = |name| String::from_utf8(written(name, &[batch()])).unwrap();
        assert_eq!(
            text("x.csv"),
            "e,f,t\na,0.1,1970-01-01T00:00:00Z\n\"b,\"\"c\"\"\",,1970-01-01T00:00:01.500Z\n"
        );
        assert_eq!(
            text("x.ndjson"),
            "{\"e\":\"a\",\"f\":0.1,\"t\":\"1970-01-01T00:00:00Z\"}\n\
             {\"e\":\"b,\\\"c\\\"\",\"f\":null,\"t\":\"1970-01-01T00:00:01.500Z\"}\n"
        );
        let arrow = written("x.arrow", &[batch()]);
        let mut read = ipc::reader::StreamReader::try_new(arrow.as_slice(), None).unwrap();
        assert_eq!(read.next().unwrap().unwrap(), batch());
        let parquet = axum::body::Bytes::from(written("x.parquet", &[batch(), batch()]));
        let read = parquet::arrow::arrow_reader::ParquetRecordBatchReader::try_new(parquet, 10);
        let rows: Vec<_> = read.unwrap().map(Result::unwrap).collect();
        assert_eq!((rows.len(), rows[0].num_rows()), (1, 4));
        assert_eq!(rows[0].slice(2, 2), batch());
        assert_eq!(written("x.csv", &[]), b"e,f,t\n");
        assert!(matches!(check(Path::new("x.xlsx")), Err(Failure::Usage(_))));
    }
}
