//! AS OF reads: what was known of features of entities at instants. The rule is
//! [`crate::protocol::as_of`]; here its rows are fetched.
//!
//! DuckDB keeps of a feature's history what belongs to the entities that are asked for, by one hash join
//! on their numbers; who is seen by which question is decided outside of it. An ASOF join in DuckDB picks
//! an arbitrary row among ties, and needs two sorts of the whole history by windows before it; this
//! needs none, and gives the same bytes each time.

use super::reader::{ReadError, with_deadline};
use crate::{
    messages::{AsOfRequest, Watermark, as_of_answer_schema, question_schema},
    protocol::{
        as_of::{History, Question, Timeline},
        version::Version,
    },
};
use arrow::{
    array::{ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray, UInt32Array},
    datatypes::{DataType, Field, Float64Type, Int32Type, Int64Type, Schema, UInt32Type},
};
use duckdb::Connection;
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// Questions that are answered at once, at most.
pub const MOST_QUESTIONS: usize = 1_000_000;

/// Answers, over all questions and features, that are given at once, at most: they are held until they
/// are fetched.
pub const MOST_ANSWERS: usize = 10_000_000;
/// Rows of one feature's history that are looked at at once, at most: 60 bytes each.
const MOST_HISTORY: usize = 20_000_000;

/// Answers questions about one feature after the other; `told` takes the answers, and ends it with
/// `false`. It must not block: the database cannot be closed meanwhile. Gives up to where it looked.
///
/// # Errors
/// [`ReadError`]: refused are questions that are not [`question_schema`]'s rows, too many, and a feature
/// that no row of the history has.
pub fn as_of(
    connection: &Connection,
    questions: &RecordBatch,
    request: &AsOfRequest,
    deadline: Duration,
    mut told: impl FnMut(RecordBatch) -> bool,
) -> Result<Watermark, ReadError> {
    let n = questions.num_rows();
    if questions.schema() != question_schema()
        || n > MOST_QUESTIONS
        || n.saturating_mul(request.features.len()) > MOST_ANSWERS
    {
        let why = format!(
            "at most {MOST_QUESTIONS} questions with an entity and an instant each, and {MOST_ANSWERS} answers"
        );
        return Err(ReadError::Refused(why));
    }
    let until = Instant::now() + deadline;
    with_deadline(connection, deadline, || {
        let watermark = match request.watermark {
            Some(watermark) => watermark,
            None => last_commit(connection)?,
        };
        let (asked, n_entities) = number(connection, questions)?;
        for feature in &request.features {
            // An interrupt stops only what DuckDB is at.
            if Instant::now() > until {
                return Err(ReadError::Deadline(deadline));
            }
            let (history, values) = fetch(connection, feature, watermark)?;
            let timeline = Timeline::new(&history, request.mode, n_entities);
            let rows = asked
                .iter()
                .map(|question| timeline.answer(*question, request.strict, watermark.stamp_us));
            if !told(answers(&history, &values, rows)?) {
                break;
            }
        }
        Ok(watermark)
    })
}

fn failed(error: impl std::fmt::Display) -> ReadError {
    ReadError::Failed(error.to_string())
}

fn last_commit(connection: &Connection) -> Result<Watermark, ReadError> {
    // Before the first commit nothing is seen.
    let sql = "SELECT coalesce(epoch_us(max(committed_at)), -9223372036854775808), coalesce(max(batch_seq), 0)
               FROM ingest_ledger";
    connection
        .query_row(sql, [], |row| Ok(Watermark { stamp_us: row.get(0)?, batch_seq: row.get(1)? }))
        .map_err(failed)
}

/// Numbers the entities of the questions, and has DuckDB know the numbers; the questions by them, and how
/// many entities there are.
fn number(
    connection: &Connection,
    questions: &RecordBatch,
) -> Result<(Vec<Question>, usize), ReadError> {
    let entities = questions.column(0).as_string::<i32>();
    let instants = questions.column(1).as_primitive::<Int64Type>().values();
    let mut numbers: HashMap<&str, u32> = HashMap::new();
    let mut asked = Vec::with_capacity(questions.num_rows());
    for (entity, at) in (0..questions.num_rows()).map(|i| entities.value(i)).zip(instants) {
        // There are no more of them than questions.
        let next = numbers.len() as u32;
        asked.push((*numbers.entry(entity).or_insert(next), *at));
    }
    let columns: [ArrayRef; 2] = [
        Arc::new(StringArray::from_iter_values(numbers.keys())),
        Arc::new(UInt32Array::from_iter_values(numbers.values().copied())),
    ];
    let schema = Schema::new(vec![
        Field::new("entity_id", DataType::Utf8, false),
        Field::new("number", DataType::UInt32, false),
    ]);
    let batch = RecordBatch::try_new(Arc::new(schema), columns.into()).map_err(failed)?;
    // The connection is for this question alone, and its tables end with it.
    connection
        .execute_batch("CREATE TEMP TABLE asked_entities (entity_id VARCHAR NOT NULL, number UINTEGER NOT NULL)")
        .map_err(failed)?;
    let mut appender = connection.appender("asked_entities").map_err(failed)?;
    appender.append_record_batch(batch).map_err(failed)?;
    appender.flush().map_err(failed)?;
    Ok((asked, numbers.len()))
}

/// The rows of a feature that may be seen, and their values.
fn fetch(
    connection: &Connection,
    feature: &str,
    watermark: Watermark,
) -> Result<(History, Vec<Option<f64>>), ReadError> {
    let mut statement = connection
        .prepare_cached(
            "SELECT a.number, epoch_us(f.available_at), epoch_us(f.event_timestamp),
                    epoch_us(f.created_at), f.source_no, f.pos, f.sub, f.value
             FROM features_table f JOIN asked_entities a ON f.entity_id = a.entity_id
             WHERE f.feature_name = ? AND f.batch_seq <= ?",
        )
        .map_err(failed)?;
    let (mut history, mut values) = (History::default(), Vec::new());
    // Not as a stream: that one panics where the query is interrupted.
    let batches =
        statement.query_arrow(duckdb::params![feature, watermark.batch_seq]).map_err(failed)?;
    for batch in batches {
        history.entities.extend_from_slice(batch.column(0).as_primitive::<UInt32Type>().values());
        let long = |i: usize| batch.column(i).as_primitive::<Int64Type>().values();
        let short = |i: usize| batch.column(i).as_primitive::<Int32Type>().values();
        history.available_at.extend_from_slice(long(1));
        let (event_timestamps, created_at, positions) = (long(2), long(3), long(5));
        let (sources, subs) = (short(4), short(6));
        history.versions.extend((0..batch.num_rows()).map(|i| Version {
            event_timestamp: event_timestamps[i],
            created_at: created_at[i],
            source_no: sources[i],
            pos: positions[i],
            sub: subs[i],
        }));
        values.extend(batch.column(7).as_primitive::<Float64Type>().iter());
        if values.len() > MOST_HISTORY {
            return Err(ReadError::Refused(format!(
                "the entities that are asked for have more than {MOST_HISTORY} rows of `{feature}`: ask about fewer \
                 of them at once"
            )));
        }
    }
    if values.is_empty() && !is_known(connection, feature, watermark)? {
        let why = format!("there is no feature `{feature}`: no entity has ever had it");
        return Err(ReadError::Refused(why));
    }
    Ok((history, values))
}

/// Whether any row of any entity is of a feature.
fn is_known(
    connection: &Connection,
    feature: &str,
    watermark: Watermark,
) -> Result<bool, ReadError> {
    let sql = "SELECT EXISTS (FROM features_table WHERE feature_name = ? AND batch_seq <= ?)";
    let parameters = duckdb::params![feature, watermark.batch_seq];
    connection.query_row(sql, parameters, |row| row.get(0)).map_err(failed)
}

fn answers(
    history: &History,
    values: &[Option<f64>],
    rows: impl Iterator<Item = Option<usize>> + Clone,
) -> Result<RecordBatch, ReadError> {
    let columns: [ArrayRef; 2] = [
        Arc::new(rows.clone().map(|row| values[row?]).collect::<Float64Array>()),
        Arc::new(
            rows.map(|row| Some(history.versions[row?].event_timestamp)).collect::<Int64Array>(),
        ),
    ];
    RecordBatch::try_new(as_of_answer_schema(), columns.into()).map_err(failed)
}
