//! Rows as JSON.

use arrow::{
    array::RecordBatch,
    json::{WriterBuilder, writer::JsonArray},
};
use std::io::Write;

/// Rows that are turned into JSON before it is looked how many bytes there are.
const ROWS_A_LOOK: usize = 1_000;

/// There would be more bytes than allowed.
#[derive(Debug, thiserror::Error)]
#[error("the rows are larger than {0} bytes as JSON")]
pub struct TooLarge(usize);

/// Bytes, up to a number of them.
struct Capped {
    bytes: Vec<u8>,
    most: usize,
}

impl Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.most {
            return Err(std::io::Error::other(TooLarge(self.most)));
        }
        self.bytes.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A list of objects, one a row; what is NULL is there, too. Bytes are hexadecimal.
///
/// # Errors
/// [`TooLarge`] beyond `most` bytes; Arrow's word for a type that JSON does not have.
pub fn json_rows<'a>(
    batches: impl IntoIterator<Item = &'a RecordBatch>,
    most: usize,
) -> anyhow::Result<Vec<u8>> {
    let out = Capped { bytes: Vec::new(), most };
    let mut writer: arrow::json::Writer<_, JsonArray> =
        WriterBuilder::new().with_explicit_nulls(true).build(out);
    let told = |error: arrow::error::ArrowError| match error {
        arrow::error::ArrowError::IoError(_, _) => anyhow::Error::from(TooLarge(most)),
        other => other.into(),
    };
    for batch in batches {
        // A batch is written as a whole: long names of columns may make much of it.
        for from in (0..batch.num_rows()).step_by(ROWS_A_LOOK) {
            let rows = batch.slice(from, ROWS_A_LOOK.min(batch.num_rows() - from));
            writer.write(&rows).map_err(told)?;
        }
    }
    writer.finish().map_err(told)?;
    let json = writer.into_inner().bytes;
    Ok(if json.is_empty() { b"[]".to_vec() } else { json })
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, Float64Array};
    use std::sync::Arc;

    #[test]
    fn rows_are_objects_and_not_more_than_allowed() {
        let values: ArrayRef = Arc::new(Float64Array::from(vec![Some(0.5), None]));
        let batch = RecordBatch::try_from_iter([("x", values)]).unwrap();
        let json = json_rows([&batch], 1_000).unwrap();
        assert_eq!(String::from_utf8(json).unwrap(), r#"[{"x":0.5},{"x":null}]"#);
        assert_eq!(json_rows([], 1_000).unwrap(), b"[]");
        let long: ArrayRef = Arc::new(Float64Array::from(vec![1.0; 5_000]));
        let name = "n".repeat(1_000);
        let batch = RecordBatch::try_from_iter([(name.as_str(), long)]).unwrap();
        let why = json_rows([&batch], 100_000).unwrap_err();
        assert!(why.is::<TooLarge>(), "{why}");
    }
}
