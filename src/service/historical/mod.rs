//! Training sets: features of entities as they were known at instants, or by event time.
//!
//! A spine comes as rows and goes to the store in chunks, all answered as of the same commit; each
//! chunk comes back with its own columns and, for each feature, `<feature>`, `<feature>__status` and
//! `<feature>__event_timestamp`, in the order of the questions.

mod feast;
mod grpc;
mod http;
mod spine;

pub(super) use grpc::over_grpc;
pub(super) use http::routes;

use super::online::{Named, Problem};
use crate::{
    actors::redis_queue::Question,
    messages::{AsOfRequest, ReadReply, ReadRequest, Watermark},
    node::NodeView,
    protocol::{as_of::Mode, status::Status},
    store::as_of::{MOST_ANSWERS, MOST_QUESTIONS},
};
use arrow::{
    array::{
        Array, ArrayRef, AsArray, Float64Builder, Int64Array, RecordBatch, StringBuilder,
        TimestampMicrosecondArray,
    },
    compute::concat_batches,
    datatypes::{DataType, Field, Float64Type, Int64Type, Schema, SchemaRef, TimeUnit},
    ipc::{reader::StreamReader, writer::StreamWriter},
};
use axum::body::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use std::{collections::HashSet, sync::Arc, time::Duration};

/// How long the store may take with a feature of a chunk.
const PATIENCE: Duration = Duration::from_secs(330);
/// Bytes of a chunk's rows, about: Redis takes half a gigabyte at most.
const MOST_CHUNK_BYTES: usize = 128 << 20;
/// How long `wait` waits at most.
const CATCH_UP: Duration = Duration::from_secs(120);

/// How a spine is to be answered.
#[derive(Debug, Clone)]
struct Ask {
    /// Names of features, see [`Named`].
    features: Vec<String>,
    columns: spine::Columns,
    mode: Mode,
    strict: bool,
    /// How old a value may be, in microseconds; none: as its stream says.
    max_age_us: Option<i64>,
    /// Whether everything that was accepted before the question must be in the store.
    wait: bool,
}

/// The questions, as they come.
enum Spine {
    /// An Arrow IPC stream.
    Arrow(Bytes),
    /// Rows.
    Rows(RecordBatch),
}

/// Rows of a spine, and the questions that they are.
struct Chunk {
    rows: RecordBatch,
    questions: RecordBatch,
}

/// An Arrow IPC stream in pieces.
type ArrowPieces = BoxStream<'static, Result<Vec<u8>, Problem>>;

/// A spine that is being answered.
struct Answering {
    view: NodeView,
    ask: Ask,
    /// Names in the store, and limits of age.
    wanted: Vec<(String, Option<i64>)>,
    schema: SchemaRef,
    /// The chunks that are not answered yet, the last first.
    chunks: Vec<Chunk>,
    watermark: Option<Watermark>,
}

impl Answering {
    /// Begins to answer a spine; nothing is asked of the store yet.
    ///
    /// # Errors
    /// [`Problem::Invalid`], [`Problem::NoStream`]; with `wait` [`Problem::Unavailable`].
    async fn begin(view: NodeView, spine: Spine, ask: Ask) -> Result<Self, Problem> {
        if ask.features.is_empty() {
            return Err(Problem::Invalid("no features are asked for".into()));
        }
        if ask.max_age_us.is_some_and(|most| most <= 0) {
            return Err(Problem::Invalid("a limit of age is more than nothing".into()));
        }
        let named = ask.features.iter().map(|name| Named::of(name, &view.config));
        let named = named.collect::<Result<Vec<_>, _>>()?;
        let wanted = named.iter().map(|named| named.wanted(&view.config, ask.max_age_us));
        let wanted: Vec<_> = wanted.map(|wanted| (wanted.feature, wanted.max_age_us)).collect();
        let (columns, asked) = (ask.columns.clone(), wanted.clone());
        let reading = tokio::task::spawn_blocking(move || read(spine, &columns, &asked));
        let (schema, chunks) = reading.await.map_err(internal)??;
        if ask.wait {
            let caught_up = view.wait_caught_up(CATCH_UP).await;
            caught_up.map_err(|error| Problem::Unavailable(format!("{error:#}")))?;
        }
        Ok(Self { view, ask, wanted, schema, chunks, watermark: None })
    }

    /// The columns of the answer.
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// Rows that are not answered yet.
    fn rows(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.rows.num_rows()).sum()
    }

    /// Up to where the store looked; known after the first chunk.
    fn watermark(&self) -> Option<Watermark> {
        self.watermark
    }

    /// The next rows of the answer; `None`: there are no more.
    ///
    /// # Errors
    /// [`Problem`].
    async fn next(&mut self) -> Result<Option<RecordBatch>, Problem> {
        let Some(Chunk { rows: chunk, questions }) = self.chunks.pop() else { return Ok(None) };
        let instants = questions.column(1).as_primitive::<Int64Type>().clone();
        let redis = self.view.redis.as_ref();
        let redis = redis.ok_or_else(|| Problem::Unavailable("this node has no Redis".into()))?;
        let request = ReadRequest::AsOf(AsOfRequest {
            features: self.wanted.iter().map(|(feature, _)| feature.clone()).collect(),
            mode: self.ask.mode,
            strict: self.ask.strict,
            watermark: self.watermark,
        });
        let rows = to_stream(&questions).map_err(internal)?;
        let question = Question::put(redis, &self.view.keys, &request, Some(rows), PATIENCE);
        let mut question = question.await.map_err(unavailable)?;
        let mut columns = chunk.columns().to_vec();
        let mut features = self.wanted.iter();
        loop {
            match question.answer().await.map_err(unavailable)? {
                (ReadReply::Piece, bytes) => {
                    let (_, max_age_us) =
                        features.next().ok_or_else(|| internal("too many answers"))?;
                    let (instants, max_age_us) = (instants.clone(), *max_age_us);
                    let telling =
                        tokio::task::spawn_blocking(move || told(&bytes, &instants, max_age_us));
                    columns.extend(telling.await.map_err(internal)?.map_err(internal)?);
                }
                (ReadReply::Json, bytes) => {
                    self.watermark = Some(serde_json::from_slice(&bytes).map_err(internal)?);
                    break;
                }
                (ReadReply::Failed { refused: true, reason }, _) => {
                    return Err(Problem::NoFeature(reason));
                }
                (ReadReply::Failed { reason, .. }, _) => return Err(Problem::Unavailable(reason)),
                (ReadReply::Arrow, _) => return Err(internal("an answer of another kind")),
            }
        }
        RecordBatch::try_new(self.schema.clone(), columns).map(Some).map_err(internal)
    }
}

impl Answering {
    /// The watermark, and the answer as an Arrow IPC stream. Its first rows are waited for: most errors
    /// show then, and can still be said.
    ///
    /// # Errors
    /// [`Problem`]; where one comes later, the stream breaks off with it.
    async fn into_arrow(mut self) -> Result<(Option<Watermark>, ArrowPieces), Problem> {
        let first = self.next().await?;
        let watermark = self.watermark();
        let writer = StreamWriter::try_new(Vec::new(), &self.schema()).map_err(internal)?;
        let pieces = stream::unfold(Some((writer, first, self)), |state| async move {
            let (mut writer, batch, mut answering) = state?;
            let Some(batch) = batch else {
                return Some((writer.into_inner().map_err(internal), None));
            };
            if let Err(error) = writer.write(&batch) {
                return Some((Err(internal(error)), None));
            }
            let piece = std::mem::take(writer.get_mut());
            match answering.next().await {
                Ok(next) => Some((Ok(piece), Some((writer, next, answering)))),
                Err(problem) => {
                    tracing::warn!(?problem, "a training set breaks off");
                    Some((Err(problem), None))
                }
            }
        });
        Ok((watermark, pieces.boxed()))
    }
}

fn unavailable(error: anyhow::Error) -> Problem {
    Problem::Unavailable(format!("{error:#}"))
}

fn internal(error: impl std::fmt::Display) -> Problem {
    Problem::Unavailable(format!("the answer cannot be put together: {error}"))
}

/// An Arrow IPC stream of one batch.
fn to_stream(batch: &RecordBatch) -> Result<Vec<u8>, arrow::error::ArrowError> {
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema())?;
    writer.write(batch)?;
    writer.into_inner()
}

/// Reads a spine, and refuses what cannot be asked before anything is answered; the answer's columns, and
/// the chunks, the last first.
fn read(
    spine: Spine,
    columns: &spine::Columns,
    wanted: &[(String, Option<i64>)],
) -> Result<(SchemaRef, Vec<Chunk>), Problem> {
    let unreadable = |error: arrow::error::ArrowError| {
        Problem::Invalid(format!("the spine is no Arrow IPC stream: {error}"))
    };
    let (spine_schema, batches) = match spine {
        Spine::Rows(rows) => (rows.schema(), vec![rows]),
        Spine::Arrow(bytes) => {
            let reader = StreamReader::try_new(bytes.as_ref(), None).map_err(unreadable)?;
            let schema = reader.schema();
            (schema, reader.collect::<Result<Vec<_>, _>>().map_err(unreadable)?)
        }
    };
    let schema = answer_schema(&spine_schema, wanted)?;
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let bytes: usize = batches.iter().map(RecordBatch::get_array_memory_size).sum();
    let by_bytes = MOST_CHUNK_BYTES / (bytes / rows.max(1)).max(1);
    let most = MOST_QUESTIONS.min(MOST_ANSWERS / wanted.len()).min(by_bytes).max(1);
    let (mut chunks, mut row) = (Vec::new(), 0);
    for rows in chunked(&spine_schema, batches, most)? {
        let questions = spine::questions(&rows, columns, row).map_err(Problem::Invalid)?;
        row += rows.num_rows();
        chunks.push(Chunk { rows, questions });
    }
    chunks.reverse();
    Ok((schema, chunks))
}

/// The spine in pieces of at most so many rows; an empty spine is one of them, so that features are
/// looked at.
fn chunked(
    schema: &SchemaRef,
    spine: Vec<RecordBatch>,
    most: usize,
) -> Result<Vec<RecordBatch>, Problem> {
    let (mut chunks, mut open, mut rows) = (Vec::new(), Vec::new(), 0);
    for batch in spine {
        let mut from = 0;
        while from < batch.num_rows() {
            let n = (batch.num_rows() - from).min(most - rows);
            open.push(batch.slice(from, n));
            (from, rows) = (from + n, rows + n);
            if rows == most {
                chunks.push(concat_batches(schema, &open).map_err(internal)?);
                (open, rows) = (Vec::new(), 0);
            }
        }
    }
    if rows > 0 || chunks.is_empty() {
        chunks.push(concat_batches(schema, &open).map_err(internal)?);
    }
    Ok(chunks)
}

fn answer_schema(spine: &Schema, wanted: &[(String, Option<i64>)]) -> Result<SchemaRef, Problem> {
    let mut fields: Vec<Field> = spine.fields().iter().map(|f| f.as_ref().clone()).collect();
    for (feature, _) in wanted {
        fields.push(Field::new(feature, DataType::Float64, true));
        fields.push(Field::new(format!("{feature}__status"), DataType::Utf8, false));
        let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        fields.push(Field::new(format!("{feature}__event_timestamp"), time, true));
    }
    let mut seen = HashSet::new();
    // Some who read it make no difference between `Score` and `score`.
    if let Some(twice) = fields.iter().find(|field| !seen.insert(field.name().to_lowercase())) {
        let name = twice.name();
        return Err(Problem::Invalid(format!(
            "two columns of the answer would be called `{name}`"
        )));
    }
    Ok(Arc::new(Schema::new(fields)))
}

/// The columns of a feature.
fn told(
    bytes: &[u8],
    instants: &Int64Array,
    max_age_us: Option<i64>,
) -> anyhow::Result<[ArrayRef; 3]> {
    let batch = StreamReader::try_new(bytes, None)?.next();
    let batch = batch.ok_or_else(|| anyhow::anyhow!("an answer has no rows"))??;
    anyhow::ensure!(batch.num_rows() == instants.len(), "an answer has other rows than questions");
    let found = batch.column(0).as_primitive::<Float64Type>();
    let times = batch.column(1).as_primitive::<Int64Type>();
    let of = |i: usize| {
        let row =
            times.is_valid(i).then(|| (found.is_valid(i).then(|| found.value(i)), times.value(i)));
        Status::of(row, instants.value(i), max_age_us)
    };
    let n = instants.len();
    let mut values = Float64Builder::with_capacity(n);
    let mut statuses = StringBuilder::with_capacity(n, n * Status::Present.name().len());
    for i in 0..n {
        let (status, value) = of(i);
        statuses.append_value(status.name());
        values.append_option(value);
    }
    let times: TimestampMicrosecondArray = times.reinterpret_cast();
    let times = Arc::new(times.with_timezone("UTC"));
    Ok([Arc::new(values.finish()), Arc::new(statuses.finish()), times])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spine_is_asked_in_chunks_and_an_empty_one_too() {
        let batch = |n: usize| {
            let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..n as i64));
            RecordBatch::try_from_iter([("n", numbers)]).unwrap()
        };
        let rows = |spine: Vec<RecordBatch>| {
            let chunks = chunked(&batch(0).schema(), spine, 10).unwrap();
            chunks.iter().map(RecordBatch::num_rows).collect::<Vec<_>>()
        };
        assert_eq!(rows(vec![]), [0]);
        assert_eq!(rows(vec![batch(3), batch(0), batch(4)]), [7]);
        assert_eq!(rows(vec![batch(9), batch(3)]), [10, 2]);
        assert_eq!(rows(vec![batch(20)]), [10, 10]);
    }

    #[test]
    fn no_two_columns_have_one_name() {
        let spine = Schema::new(vec![Field::new("f__status", DataType::Utf8, false)]);
        let wanted = |names: &[&str]| {
            let wanted: Vec<_> = names.iter().map(|name| ((*name).to_owned(), None)).collect();
            answer_schema(&spine, &wanted)
        };
        assert_eq!(wanted(&["g"]).unwrap().fields().len(), 4);
        for names in [&["f"][..], &["g", "g"]] {
            assert!(matches!(wanted(names), Err(Problem::Invalid(_))), "{names:?}");
        }
    }
}
