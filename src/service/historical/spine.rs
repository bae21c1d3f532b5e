//! The questions of a training set, the spine: which columns name the entity and the instant, and what
//! of them cannot be asked.

use crate::{decode::timestamp, messages::question_schema};
use arrow::{
    array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch},
    compute::cast,
    datatypes::{
        DataType, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
        TimestampNanosecondType, TimestampSecondType,
    },
};
use std::sync::Arc;

/// How the columns of a spine are called, and how its times are to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Columns {
    /// The entity's: texts, or integers, which become texts.
    pub(super) entity: String,
    /// The instant's: timestamps, or texts in RFC 3339.
    pub(super) time: String,
    /// Whether a time without a zone is taken for UTC; else it is refused.
    pub(super) naive_is_utc: bool,
}

impl Default for Columns {
    fn default() -> Self {
        Self { entity: "entity_id".into(), time: "event_timestamp".into(), naive_is_utc: false }
    }
}

/// The questions of some rows of a spine, see [`question_schema`]. `first_row` is the number of the first.
///
/// # Errors
/// A sentence that names the column, and the row where it is one's fault.
pub(super) fn questions(
    spine: &RecordBatch,
    columns: &Columns,
    first_row: usize,
) -> Result<RecordBatch, String> {
    let column = |name: &str| {
        let names: Vec<_> = spine.schema().fields().iter().map(|f| f.name().clone()).collect();
        let found = spine.column_by_name(name).cloned();
        found.ok_or_else(|| {
            let names = names.join(", ");
            format!("the spine has no column `{name}`; it has {names}")
        })
    };
    let (entities, instants) = (column(&columns.entity)?, column(&columns.time)?);
    let columns: [ArrayRef; 2] = [
        texts(&entities, &columns.entity, first_row)?,
        Arc::new(times(&instants, columns, first_row)?),
    ];
    RecordBatch::try_new(question_schema(), columns.into()).map_err(|error| error.to_string())
}

fn refuse_null(values: &ArrayRef, name: &str, first_row: usize) -> Result<(), String> {
    match (0..values.len()).find(|i| values.is_null(*i)) {
        Some(i) => Err(format!("row {} of the spine has no `{name}`", first_row + i)),
        None => Ok(()),
    }
}

fn texts(values: &ArrayRef, name: &str, first_row: usize) -> Result<ArrayRef, String> {
    let kind = values.data_type();
    let is_text =
        |kind: &DataType| matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    let fits = match kind {
        DataType::Dictionary(_, values) => is_text(values),
        kind => is_text(kind) || kind.is_integer(),
    };
    if !fits {
        return Err(format!("`{name}` of the spine is {kind}: entities are texts or integers"));
    }
    refuse_null(values, name, first_row)?;
    let texts = cast(values, &DataType::Utf8).map_err(|error| error.to_string())?;
    refuse_null(&texts, name, first_row)?;
    Ok(texts)
}

/// Microseconds, floored.
fn times(values: &ArrayRef, columns: &Columns, first_row: usize) -> Result<Int64Array, String> {
    let Columns { time: name, naive_is_utc, .. } = columns;
    let kind = values.data_type();
    if let DataType::Timestamp(_, None) = kind
        && !naive_is_utc
    {
        return Err(format!(
            "`{name}` of the spine has no time zone: say which, or that it is UTC"
        ));
    }
    refuse_null(values, name, first_row)?;
    let times = match kind {
        DataType::Timestamp(TimeUnit::Second, _) => {
            values.as_primitive::<TimestampSecondType>().unary(|s| s.saturating_mul(1_000_000))
        }
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            values.as_primitive::<TimestampMillisecondType>().unary(|ms| ms.saturating_mul(1_000))
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            values.as_primitive::<TimestampMicrosecondType>().unary(|us| us)
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            values.as_primitive::<TimestampNanosecondType>().unary(|ns| ns.div_euclid(1_000))
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            let texts = cast(values, &DataType::Utf8).map_err(|error| error.to_string())?;
            let texts = texts.as_string::<i32>();
            let parse = |i: usize| {
                let text = texts.value(i);
                timestamp::parse(text, *naive_is_utc).map_err(|why| {
                    format!("row {} of the spine has `{name}` = {text:?}: {why}", first_row + i)
                })
            };
            (0..texts.len()).map(parse).collect::<Result<Vec<i64>, _>>()?.into()
        }
        kind => {
            return Err(format!(
                "`{name}` of the spine is {kind}: instants are timestamps, or texts in RFC 3339"
            ));
        }
    };
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{
        Float64Array, Int32Array, StringArray, TimestampMicrosecondArray, TimestampNanosecondArray,
    };

    fn columns(naive_is_utc: bool) -> Columns {
        Columns { entity: "e".into(), time: "t".into(), naive_is_utc }
    }

    fn asked(e: ArrayRef, t: ArrayRef, naive: bool) -> Result<Vec<(String, i64)>, String> {
        let spine = RecordBatch::try_from_iter([("e", e), ("t", t)]).unwrap();
        let questions = questions(&spine, &columns(naive), 10)?;
        let (e, t) = (questions.column(0).as_string::<i32>(), questions.column(1));
        let t = t.as_primitive::<arrow::datatypes::Int64Type>();
        Ok((0..e.len()).map(|i| (e.value(i).to_owned(), t.value(i))).collect())
    }

    #[test]
    fn entities_are_texts_and_instants_are_floored_to_microseconds() {
        let one = |text: &str, at| Ok(vec![(text.to_owned(), at)]);
        let texts = |text: &str| -> ArrayRef { Arc::new(StringArray::from(vec![text])) };
        let ns = TimestampNanosecondArray::from(vec![-1]).with_timezone("+02:00");
        assert_eq!(asked(texts(""), Arc::new(ns), false), one("", -1));
        let us: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![7]));
        assert_eq!(asked(Arc::new(Int32Array::from(vec![-4])), us.clone(), true), one("-4", 7));
        assert!(asked(texts("a"), us.clone(), false).unwrap_err().contains("time zone"));
        assert_eq!(asked(texts("a"), texts("1970-01-01T01:00:00+01:00"), false), one("a", 0));
        let naive = "1970-01-01T00:00:01";
        assert_eq!(asked(texts("a"), texts(naive), true), one("a", 1_000_000));
        assert!(asked(texts("a"), texts(naive), false).unwrap_err().contains("row 10"));
        let floats: ArrayRef = Arc::new(Float64Array::from(vec![1.0]));
        assert!(asked(floats.clone(), us, true).unwrap_err().contains("texts or integers"));
        assert!(asked(texts("a"), floats, true).unwrap_err().contains("RFC 3339"));
    }

    #[test]
    fn a_question_without_entity_or_instant_is_refused_by_its_row() {
        let texts: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None]));
        let times = TimestampMicrosecondArray::from(vec![Some(1), None]).with_timezone("UTC");
        let (times, whole): (ArrayRef, ArrayRef) =
            (Arc::new(times), Arc::new(StringArray::from(vec!["a", "b"])));
        let sound = Arc::new(TimestampMicrosecondArray::from(vec![1, 2]).with_timezone("UTC"));
        assert!(asked(texts, sound, false).unwrap_err().contains("row 11 of the spine has no `e`"));
        assert!(
            asked(whole.clone(), times, false)
                .unwrap_err()
                .contains("row 11 of the spine has no `t`")
        );
        let other = RecordBatch::try_from_iter([("x", whole)]).unwrap();
        let why = questions(&other, &columns(true), 0).unwrap_err();
        assert!(why.contains("no column `e`; it has x"), "{why}");
    }
}
