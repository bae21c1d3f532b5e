//! Columns that grow row by row and can take the last row back.

use crate::config::FieldType;
use arrow::{
    array::{
        ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray,
    },
    buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer},
    datatypes::{DataType, TimeUnit},
    error::ArrowError,
};
use std::sync::Arc;

/// The Arrow type of a declared field.
pub fn data_type(kind: FieldType) -> DataType {
    match kind {
        FieldType::String => DataType::Utf8,
        FieldType::Int64 => DataType::Int64,
        FieldType::Float64 => DataType::Float64,
        FieldType::Bool => DataType::Boolean,
        FieldType::Timestamp
        | FieldType::TimestampS
        | FieldType::TimestampMs
        | FieldType::TimestampUs => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
    }
}

enum Values {
    Text { bytes: Vec<u8>, offsets: Vec<i32> },
    Float(Vec<f64>),
    Int(Vec<i64>),
    Micros(Vec<i64>),
    Bool(Vec<bool>),
}

/// One column. A row is put at most once; [`Column::complete`] makes it null if it was not.
pub struct Column {
    values: Values,
    valid: Vec<bool>,
    nulls: usize,
}

impl Column {
    pub fn new(kind: FieldType, capacity: usize) -> Self {
        let values = match kind {
            FieldType::String => {
                let mut offsets = Vec::with_capacity(capacity + 1);
                offsets.push(0);
                Values::Text { bytes: Vec::with_capacity(capacity * 12), offsets }
            }
            FieldType::Float64 => Values::Float(Vec::with_capacity(capacity)),
            FieldType::Int64 => Values::Int(Vec::with_capacity(capacity)),
            FieldType::Bool => Values::Bool(Vec::with_capacity(capacity)),
            _ => Values::Micros(Vec::with_capacity(capacity)),
        };
        Self { values, valid: Vec::with_capacity(capacity), nulls: 0 }
    }

    /// Whether row `n` was put (with a value or a null).
    pub fn is_put(&self, n: usize) -> bool {
        self.valid.len() > n
    }

    /// Whether row `n` has a value.
    pub fn is_set(&self, n: usize) -> bool {
        self.valid.get(n).copied().unwrap_or(false)
    }

    pub fn put_null(&mut self) {
        match &mut self.values {
            Values::Text { bytes, offsets } => offsets.push(bytes.len() as i32),
            Values::Float(v) => v.push(0.0),
            Values::Int(v) | Values::Micros(v) => v.push(0),
            Values::Bool(v) => v.push(false),
        }
        self.valid.push(false);
        self.nulls += 1;
    }

    /// Puts text; `false` when the column holds something else or is full (2 GiB).
    pub fn put_text(&mut self, text: &str) -> bool {
        let Values::Text { bytes, offsets } = &mut self.values else { return false };
        let Ok(end) = i32::try_from(bytes.len() + text.len()) else { return false };
        bytes.extend_from_slice(text.as_bytes());
        offsets.push(end);
        self.valid.push(true);
        true
    }

    /// Puts a double; `false` when the column holds something else.
    pub fn put_f64(&mut self, value: f64) -> bool {
        let Values::Float(v) = &mut self.values else { return false };
        v.push(value);
        self.valid.push(true);
        true
    }

    /// Puts an integer or microseconds; `false` when the column holds something else.
    pub fn put_i64(&mut self, value: i64) -> bool {
        let (Values::Int(v) | Values::Micros(v)) = &mut self.values else { return false };
        v.push(value);
        self.valid.push(true);
        true
    }

    /// Puts a truth value; `false` when the column holds something else.
    pub fn put_bool(&mut self, value: bool) -> bool {
        let Values::Bool(v) = &mut self.values else { return false };
        v.push(value);
        self.valid.push(true);
        true
    }

    /// The row that makes `n` rows is done: null if it was not put.
    pub fn complete(&mut self, n: usize) {
        if self.valid.len() < n {
            self.put_null();
        }
    }

    /// Back to `n` rows.
    pub fn roll_back(&mut self, n: usize) {
        while self.valid.len() > n {
            if self.valid.pop() == Some(false) {
                self.nulls -= 1;
            }
        }
        match &mut self.values {
            Values::Text { bytes, offsets } => {
                offsets.truncate(n + 1);
                // `offsets` starts with 0, so it is never empty.
                bytes.truncate(offsets.last().map_or(0, |o| *o as usize));
            }
            Values::Float(v) => v.truncate(n),
            Values::Int(v) | Values::Micros(v) => v.truncate(n),
            Values::Bool(v) => v.truncate(n),
        }
    }

    /// The integer or instant of row `n`.
    pub fn i64_at(&self, n: usize) -> Option<i64> {
        match &self.values {
            Values::Int(v) | Values::Micros(v) if self.is_set(n) => v.get(n).copied(),
            _ => None,
        }
    }

    /// The last row's integer or instant.
    pub fn last_i64(&self) -> Option<i64> {
        self.i64_at(self.valid.len().checked_sub(1)?)
    }

    /// Whether row `n` is the empty string.
    pub fn text_is_empty(&self, n: usize) -> bool {
        match &self.values {
            Values::Text { offsets, .. } => self.is_set(n) && offsets[n] == offsets[n + 1],
            _ => false,
        }
    }

    /// The value of row `n` as text, when it is text or an integer.
    pub fn text_at(&self, n: usize) -> Option<String> {
        match &self.values {
            Values::Text { bytes, offsets } if self.is_set(n) => {
                let text = &bytes[offsets[n] as usize..offsets[n + 1] as usize];
                Some(String::from_utf8_lossy(text).into_owned())
            }
            Values::Int(v) if self.is_set(n) => v.get(n).map(i64::to_string),
            _ => None,
        }
    }

    /// The Arrow array, without copying the values.
    pub fn into_array(self) -> Result<ArrayRef, ArrowError> {
        let nulls =
            (self.nulls > 0).then(|| NullBuffer::new(BooleanBuffer::from(self.valid.as_slice())));
        Ok(match self.values {
            Values::Text { bytes, offsets } => {
                let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
                // SAFETY: every value was appended from a `&str`, and offsets only ever name the
                // ends of such values.
                Arc::new(unsafe {
                    StringArray::new_unchecked(offsets, Buffer::from_vec(bytes), nulls)
                })
            }
            Values::Float(v) => Arc::new(Float64Array::try_new(v.into(), nulls)?),
            Values::Int(v) => Arc::new(Int64Array::try_new(v.into(), nulls)?),
            Values::Micros(v) => {
                Arc::new(TimestampMicrosecondArray::try_new(v.into(), nulls)?.with_timezone("UTC"))
            }
            Values::Bool(v) => {
                Arc::new(BooleanArray::new(BooleanBuffer::from(v.as_slice()), nulls))
            }
        })
    }
}
