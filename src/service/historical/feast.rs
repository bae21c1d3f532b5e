//! Questions and answers as JSON, in the shape of Feast's online ones: `entities` has the columns of the
//! spine, the answer has a list of values, statuses and event timestamps a column.

use super::{Problem, internal};
use crate::service::online::push_timestamp;
use arrow::{
    array::{
        Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray,
    },
    datatypes::{Float64Type, SchemaRef, TimestampMicrosecondType},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Body of a question. What else can be said is in the query string, as for other bodies.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Question {
    /// The columns of the spine by their names, all of one length.
    entities: Map<String, Value>,
    /// Names of features, `feature` or `stream:feature`.
    #[serde(default)]
    pub(super) features: Vec<String>,
}

impl Question {
    /// The spine.
    ///
    /// # Errors
    /// [`Problem::Invalid`], naming the column.
    pub(super) fn spine(&self) -> Result<RecordBatch, Problem> {
        let column = |(name, values): (&String, &Value)| -> Result<_, Problem> {
            let values = values.as_array().and_then(|values| array(values));
            let values = values.ok_or_else(|| {
                Problem::Invalid(format!(
                    "`{name}` of `entities` is not a list of texts, of numbers, or of truth values"
                ))
            })?;
            Ok((name.clone(), values))
        };
        let columns = self.entities.iter().map(column).collect::<Result<Vec<_>, _>>()?;
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, v)| (n, v, true)))
            .map_err(|error| Problem::Invalid(format!("`entities` is no table: {error}")))
    }
}

/// A column of one type; nulls are of any.
fn array(values: &[Value]) -> Option<ArrayRef> {
    let all = |fits: fn(&Value) -> bool| values.iter().all(|v| v.is_null() || fits(v));
    Some(if all(Value::is_string) {
        Arc::new(values.iter().map(Value::as_str).collect::<StringArray>())
    } else if all(Value::is_i64) {
        Arc::new(values.iter().map(Value::as_i64).collect::<Int64Array>())
    } else if all(Value::is_number) {
        Arc::new(values.iter().map(Value::as_f64).collect::<Float64Array>())
    } else if all(Value::is_boolean) {
        Arc::new(values.iter().map(Value::as_bool).collect::<BooleanArray>())
    } else {
        return None;
    })
}

/// The answer; the first `n_own` columns are the spine's, three of a feature follow.
pub(super) fn answer(
    schema: &SchemaRef,
    n_own: usize,
    batches: &[RecordBatch],
) -> Result<Value, Problem> {
    let own = (0..n_own).map(|column| {
        let values = list(batches, column, own_value);
        let (present, none) =
            (vec![json!("PRESENT"); values.len()], vec![Value::Null; values.len()]);
        json!({ "values": values, "statuses": present, "event_timestamps": none })
    });
    let features = (n_own..schema.fields().len()).step_by(3).map(|column| {
        json!({
            "values": list(batches, column, own_value),
            "statuses": list(batches, column + 1, own_value),
            "event_timestamps": list(batches, column + 2, timestamp),
        })
    });
    let names: Vec<&String> = (0..n_own)
        .chain((n_own..schema.fields().len()).step_by(3))
        .map(|column| schema.field(column).name())
        .collect();
    let results: Vec<Value> = own.chain(features).collect();
    let n: usize = batches.iter().map(RecordBatch::num_rows).sum();
    if results.iter().any(|of| of["values"].as_array().is_none_or(|values| values.len() != n)) {
        return Err(internal("a column of another length"));
    }
    Ok(json!({ "metadata": { "feature_names": names }, "results": results }))
}

fn list(batches: &[RecordBatch], column: usize, of: fn(&ArrayRef, usize) -> Value) -> Vec<Value> {
    let rows = batches.iter().flat_map(|batch| (0..batch.num_rows()).map(move |row| (batch, row)));
    rows.map(|(batch, row)| of(batch.column(column), row)).collect()
}

/// Of the types that [`array`] makes, and that features have.
fn own_value(column: &ArrayRef, row: usize) -> Value {
    if column.is_null(row) {
        Value::Null
    } else if let Some(texts) = column.as_string_opt::<i32>() {
        texts.value(row).into()
    } else if let Some(numbers) = column.as_primitive_opt::<Float64Type>() {
        numbers.value(row).into()
    } else if let Some(numbers) = column.as_primitive_opt::<arrow::datatypes::Int64Type>() {
        numbers.value(row).into()
    } else {
        column.as_boolean_opt().map(|truths| truths.value(row)).into()
    }
}

fn timestamp(column: &ArrayRef, row: usize) -> Value {
    let instants = column.as_primitive_opt::<TimestampMicrosecondType>();
    instants.filter(|instants| instants.is_valid(row)).map_or(Value::Null, |instants| {
        let mut text = Vec::new();
        push_timestamp(&mut text, instants.value(row));
        String::from_utf8_lossy(&text).into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_of_one_type_and_of_one_length() {
        let spine = |entities: Value| {
            let question: Question =
                serde_json::from_value(json!({ "entities": entities })).unwrap();
            question.spine()
        };
        let sound = json!({ "e": ["a", null], "n": [1, 2], "x": [1, 0.5], "b": [true, false] });
        let batch = spine(sound).unwrap();
        assert_eq!((batch.num_rows(), batch.num_columns()), (2, 4));
        for wrong in [json!({ "e": ["a", 1] }), json!({ "e": "a" }), json!({ "e": ["a"], "t": [] })]
        {
            assert!(matches!(spine(wrong.clone()), Err(Problem::Invalid(_))), "{wrong}");
        }
    }
}
