//! AS OF reads: what was known of features of entities at instants. The rule is
//! [`crate::protocol::as_of`]; here its rows are fetched.
//!
//! DuckDB keeps of the history what belongs to the entities and the features that are asked for, in one
//! scan, by hash joins that give their numbers; who is seen by which question is decided outside of it. An
//! ASOF join in DuckDB picks an arbitrary row among ties, and needs two sorts of the whole history by
//! windows before it; this needs none, and gives the same bytes each time.

mod fetch;

use self::fetch::{Asked, twice};
use super::reader::{ReadError, with_deadline};
use crate::{
    messages::{AsOfRequest, Watermark, as_of_answer_schema, question_schema},
    protocol::as_of::{History, Question, Timeline},
};
use arrow::{
    array::{ArrayRef, AsArray, BooleanBufferBuilder, Float64Array, Int64Array, RecordBatch},
    datatypes::Int64Type,
};
use duckdb::Connection;
use std::{collections::HashMap, sync::Arc, time::Duration};

/// Questions that are answered at once, at most.
pub const MOST_QUESTIONS: usize = 1_000_000;

/// Answers, over all questions and features, that are given at once, at most: they are held until they
/// are fetched.
pub const MOST_ANSWERS: usize = 10_000_000;

/// Answers questions about one feature after the other; `told` takes the answers, and ends it with
/// `false`; so does `is_gone`. It must not block: the database cannot be closed meanwhile. Gives up to where
/// it looked.
///
/// # Errors
/// [`ReadError`]: refused are questions that are not [`question_schema`]'s rows, too many, a feature that
/// no row of the history has, and one that is asked for twice.
pub fn as_of(
    connection: &Connection,
    questions: &RecordBatch,
    request: &AsOfRequest,
    deadline: Duration,
    is_gone: impl Fn() -> bool + Send,
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
    if let Some(name) = twice(&request.features) {
        return Err(ReadError::Refused(format!("the feature `{name}` is asked for twice")));
    }
    with_deadline(connection, deadline, is_gone, || {
        let watermark = match request.watermark {
            Some(watermark) => watermark,
            None => last_commit(connection)?,
        };
        let (questions, entities) = number(questions);
        let asked = Asked::new(connection, &entities, watermark)?;
        let (questions, n_entities) = (questions.as_slice(), entities.len());
        let of = |history| answers(history, questions, n_entities, request, watermark);
        asked.each(&request.features, &mut |histories| {
            let mut histories = histories.into_iter();
            // Two at a time: DuckDB rests meanwhile.
            while let Some(first) = histories.next() {
                let both = std::thread::scope(|scope| {
                    let second = histories.next().map(|second| scope.spawn(move || of(second)));
                    let first = of(first);
                    [Some(first), second.map(|second| second.join().unwrap_or_else(|_| panicked()))]
                });
                for batch in both.into_iter().flatten() {
                    if !told(batch?) {
                        return Ok(false);
                    }
                }
            }
            Ok(true)
        })?;
        Ok(watermark)
    })
}

fn panicked<T>() -> Result<T, ReadError> {
    Err(ReadError::Failed("a thread that answers questions panicked".into()))
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

/// Numbers the entities of the questions; the questions by them, with their places among the answers. They
/// stand by entity, so that a timeline is read from its beginning to its end.
fn number(questions: &RecordBatch) -> (Vec<(Question, u32)>, HashMap<&str, u32>) {
    let entities = questions.column(0).as_string::<i32>();
    let instants = questions.column(1).as_primitive::<Int64Type>().values();
    let mut numbers: HashMap<&str, u32> = HashMap::new();
    let mut asked = Vec::with_capacity(questions.num_rows());
    // There are at most `MOST_QUESTIONS` of them.
    for (place, at) in (0_u32..).zip(instants) {
        let next = numbers.len() as u32;
        let entity = entities.value(place as usize);
        asked.push(((*numbers.entry(entity).or_insert(next), *at), place));
    }
    asked.sort_unstable();
    (asked, numbers)
}

/// Answers about one feature.
fn answers(
    history: History<Option<f64>>,
    questions: &[(Question, u32)],
    n_entities: usize,
    request: &AsOfRequest,
    watermark: Watermark,
) -> Result<RecordBatch, ReadError> {
    let timeline = Timeline::new(history, request.mode, n_entities);
    let n = questions.len();
    let (mut values, mut has_value) = (vec![0.0; n], BooleanBufferBuilder::new(n));
    let (mut times, mut has_time) = (vec![0; n], BooleanBufferBuilder::new(n));
    has_value.append_n(n, false);
    has_time.append_n(n, false);
    for (question, place) in questions {
        let told = timeline.answer(*question, request.strict, watermark.stamp_us);
        if let Some((at, value)) = told {
            let place = *place as usize;
            times[place] = at;
            has_time.set_bit(place, true);
            if let Some(value) = value {
                values[place] = value;
                has_value.set_bit(place, true);
            }
        }
    }
    let [has_value, has_time] = [has_value, has_time].map(|mut bits| Some(bits.finish().into()));
    let columns: [ArrayRef; 2] = [
        Arc::new(Float64Array::new(values.into(), has_value)),
        Arc::new(Int64Array::new(times.into(), has_time)),
    ];
    RecordBatch::try_new(as_of_answer_schema(), columns.into()).map_err(failed)
}
