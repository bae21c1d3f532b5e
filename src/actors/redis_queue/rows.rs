//! The rows of the store's answers.

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{DataType, Int32Type, Int64Type},
};

/// All rows of an answer, in its order.
pub fn rows(batches: &[RecordBatch]) -> impl Iterator<Item = Row<'_>> {
    batches.iter().flat_map(|batch| (0..batch.num_rows()).map(move |i| Row { batch, i }))
}

/// One row of an answer. Its columns are known by their places in the SELECT, and so are their types:
/// asking for another type is an error of the program and panics.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    batch: &'a RecordBatch,
    i: usize,
}

impl<'a> Row<'a> {
    fn valid(&self, column: usize) -> Option<&'a dyn Array> {
        let values = self.batch.column(column);
        values.is_valid(self.i).then_some(values.as_ref())
    }

    /// A VARCHAR; `None`: NULL.
    #[must_use]
    pub fn text(&self, column: usize) -> Option<&'a str> {
        self.valid(column).map(|values| values.as_string::<i32>().value(self.i))
    }

    /// A VARCHAR as a text of one's own; NULL is the empty text.
    #[must_use]
    pub fn owned(&self, column: usize) -> String {
        self.text(column).unwrap_or_default().to_owned()
    }

    /// An INTEGER or BIGINT; `None`: NULL.
    #[must_use]
    pub fn int(&self, column: usize) -> Option<i64> {
        let values = self.valid(column)?;
        Some(match values.data_type() {
            DataType::Int32 => values.as_primitive::<Int32Type>().value(self.i).into(),
            _ => values.as_primitive::<Int64Type>().value(self.i),
        })
    }

    /// A number that is never NULL and never negative.
    #[must_use]
    pub fn count(&self, column: usize) -> u64 {
        self.int(column).unwrap_or_default().max(0).cast_unsigned()
    }

    /// A BLOB; `None`: NULL.
    #[must_use]
    pub fn bytes(&self, column: usize) -> Option<&'a [u8]> {
        self.valid(column).map(|values| values.as_binary::<i32>().value(self.i))
    }

    /// A BOOLEAN; NULL is false.
    #[must_use]
    pub fn flag(&self, column: usize) -> bool {
        self.valid(column).is_some_and(|values| values.as_boolean().value(self.i))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::{
        array::{ArrayRef, BinaryArray, BooleanArray, Int32Array, Int64Array, StringArray},
        record_batch::RecordBatch,
    };
    use std::sync::Arc;

    #[test]
    fn every_row_of_every_batch_is_read_and_null_is_not_a_value() {
        let columns: [(&str, ArrayRef); 5] = [
            ("text", Arc::new(StringArray::from(vec![Some("a"), None]))),
            ("long", Arc::new(Int64Array::from(vec![Some(1 << 40), None]))),
            ("short", Arc::new(Int32Array::from(vec![Some(-7), None]))),
            ("bytes", Arc::new(BinaryArray::from_opt_vec(vec![Some(b"\xff"), None]))),
            ("flag", Arc::new(BooleanArray::from(vec![Some(true), None]))),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let batches = [batch.slice(0, 0), batch.clone(), batch.slice(0, 1)];
        let found: Vec<Row<'_>> = rows(&batches).collect();
        assert_eq!(found.len(), 3);
        for row in [found[0], found[2]] {
            assert_eq!((row.text(0), row.int(1), row.int(2)), (Some("a"), Some(1 << 40), Some(-7)));
            assert_eq!((row.bytes(3), row.flag(4)), (Some(&b"\xff"[..]), true));
            assert_eq!((row.count(1), row.count(2)), (1 << 40, 0));
        }
        let null = found[1];
        assert_eq!(
            (null.text(0), null.int(1), null.int(2), null.bytes(3)),
            (None, None, None, None)
        );
        assert_eq!((null.owned(0), null.flag(4)), (String::new(), false));
    }
}
