//! Rows of a file that come as columns: cells as the file has them, before the declared types are
//! checked, and the JSON object that each row stands for.
//!
//! A row goes from its cells into the columns of the batch under the rules of the JSON decoder, so
//! that the same row has the same fate in every format. JSON text is only made of a row that
//! becomes a dead letter: [`Cells::json`], which a replay decodes to the same verdict.

use super::{
    Bad, MAX_RECORD_BYTES,
    columns::Column,
    json::{EVENT_ID, Found, Plan},
    too_large,
};
use crate::config::{FieldType, SchemaField};
use std::{collections::BTreeMap, sync::Arc};
use uuid::Uuid;

/// What one byte of text may take in JSON: a control character becomes `\u0000`.
const JSON_BYTES_OF_A_BYTE: usize = 6;
/// What a value that is not text takes in JSON, at most, with some room.
const JSON_BYTES_OF_A_VALUE: usize = 48;

/// Texts one behind the other.
#[derive(Debug, Default)]
pub struct Texts {
    text: String,
    ends: Vec<usize>,
}

impl Texts {
    /// Adds one.
    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.ends.push(self.text.len());
    }

    fn get(&self, i: usize) -> &str {
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.text[start..self.ends[i]]
    }
}

/// The values of one column; what stands in the place of a null does not count.
#[derive(Debug)]
pub enum CellValues {
    /// Nothing but nulls.
    Null,
    /// Text that is read under the declared type, as CSV has it. The empty text is null.
    Untyped(Texts),
    /// Text.
    Text(Texts),
    /// Integers.
    Int(Vec<i64>),
    /// Integers that may lie beyond 2^63.
    Unsigned(Vec<u64>),
    /// Doubles, finite or not.
    Float(Vec<f64>),
    /// Truth values.
    Bool(Vec<bool>),
    /// Instants in units of `10^-decimals` seconds since 1970-01-01 UTC.
    Instant {
        /// How many units.
        counts: Vec<i64>,
        /// 0, 3, 6 or 9.
        decimals: u8,
    },
}

/// One column of a file.
#[derive(Debug)]
pub struct CellColumn {
    /// Its values.
    pub values: CellValues,
    /// Which rows have one; `None`: all.
    pub valid: Option<Vec<bool>>,
}

/// One value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Cell<'a> {
    Null,
    Untyped(&'a str),
    Text(&'a str),
    Int(i64),
    Unsigned(u64),
    Float(f64),
    Bool(bool),
    Instant(i64, u8),
}

impl CellColumn {
    fn get(&self, i: usize) -> Cell<'_> {
        if self.valid.as_ref().is_some_and(|valid| !valid[i]) {
            return Cell::Null;
        }
        match &self.values {
            CellValues::Null => Cell::Null,
            CellValues::Untyped(texts) => match texts.get(i) {
                "" => Cell::Null,
                text => Cell::Untyped(text),
            },
            CellValues::Text(texts) => Cell::Text(texts.get(i)),
            CellValues::Int(v) => Cell::Int(v[i]),
            CellValues::Unsigned(v) => Cell::Unsigned(v[i]),
            CellValues::Float(v) => Cell::Float(v[i]),
            CellValues::Bool(v) => Cell::Bool(v[i]),
            CellValues::Instant { counts, decimals } => Cell::Instant(counts[i], *decimals),
        }
    }

    fn text_bytes(&self, i: usize) -> usize {
        match &self.values {
            CellValues::Untyped(texts) | CellValues::Text(texts) => texts.get(i).len(),
            _ => 0,
        }
    }

    fn bytes(&self) -> usize {
        match &self.values {
            CellValues::Null => 0,
            CellValues::Untyped(texts) | CellValues::Text(texts) => texts.text.len(),
            CellValues::Int(v) => v.len() * 8,
            CellValues::Unsigned(v) => v.len() * 8,
            CellValues::Float(v) => v.len() * 8,
            CellValues::Bool(v) => v.len(),
            CellValues::Instant { counts, .. } => counts.len() * 8,
        }
    }
}

/// Rows of a file: a column for each declared field that the file has.
#[derive(Debug, Default)]
pub struct Cells {
    /// The stream's declared fields.
    fields: Arc<[SchemaField]>,
    rows: usize,
    /// As many as `fields`; `None`: the file has no such column.
    columns: Vec<Option<CellColumn>>,
    /// Nil where there is none; empty when the file has no such column.
    event_ids: Vec<Uuid>,
    /// Rows that no column can hold, with the bytes that stand for them.
    refused: BTreeMap<usize, (Bad, Vec<u8>)>,
}

impl Cells {
    /// `rows` rows. Every column has that many values, and so have `event_ids` if there are any. A
    /// row in `refused` is dead for that reason, whatever the columns say.
    #[must_use]
    pub fn new(
        fields: Arc<[SchemaField]>,
        rows: usize,
        columns: Vec<Option<CellColumn>>,
        event_ids: Vec<Uuid>,
        refused: BTreeMap<usize, (Bad, Vec<u8>)>,
    ) -> Self {
        debug_assert_eq!(fields.len(), columns.len());
        Self { fields, rows, columns, event_ids, refused }
    }

    /// Makes a row dead for bytes of a field that no column can hold.
    pub fn refuse(&mut self, row: usize, field: usize, bytes: &[u8], bad: Bad) {
        let raw = self.object(row, Some((field, bytes)));
        self.refused.entry(row).or_insert((bad, raw));
    }

    /// Rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of the values, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let columns: usize = self.columns.iter().flatten().map(CellColumn::bytes).sum();
        columns + self.refused.values().map(|(_, raw)| raw.len()).sum::<usize>()
    }

    /// The producer's UUID of a row.
    #[must_use]
    pub fn event_id(&self, row: usize) -> Option<Uuid> {
        self.event_ids.get(row).copied().filter(|id| !id.is_nil())
    }

    /// The row as a JSON object of the declared fields that the file has. Decoding it gives the
    /// same row, or the same reason; only what JSON has no word for (NaN) is a string then.
    #[must_use]
    pub fn json(&self, row: usize) -> Vec<u8> {
        match self.refused.get(&row) {
            Some((_, raw)) => raw.clone(),
            None => self.object(row, None),
        }
    }

    /// The row as JSON, with other bytes in the place of one field.
    fn object(&self, row: usize, instead: Option<(usize, &[u8])>) -> Vec<u8> {
        let mut object = ObjectText::default();
        for (i, (field, column)) in self.fields.iter().zip(&self.columns).enumerate() {
            match (instead, column) {
                (Some((at, bytes)), _) if at == i => {
                    object.text_field(field.name.as_bytes(), bytes)
                }
                (_, Some(column)) => {
                    object.name(field.name.as_bytes());
                    push_cell(&mut object.text, column.get(row), field.kind);
                }
                (_, None) => {}
            }
        }
        if let Some(id) = self.event_id(row) {
            object.name(EVENT_ID.as_bytes());
            push_string(&mut object.text, id.to_string().as_bytes());
        }
        object.finish()
    }

    /// Puts a row into row `to` of the columns. On an error some of the columns may have been put.
    ///
    /// # Errors
    /// Why the row is dead.
    pub(super) fn put(
        &self,
        row: usize,
        plan: &Plan,
        columns: &mut [Column],
        to: usize,
    ) -> Result<(), Bad> {
        self.check_size(row)?;
        if let Some((bad, _)) = self.refused.get(&row) {
            return Err(bad.clone());
        }
        let found = Found::default();
        for (i, (cells, column)) in self.columns.iter().zip(columns).enumerate() {
            debug_assert!(!column.is_put(to));
            if let Some(cells) = cells {
                plan.value(i, column, &found).put(cells.get(row))?;
            }
        }
        Ok(())
    }

    /// A row may be as long as a record, as JSON. Nearly every row is far from that.
    fn check_size(&self, row: usize) -> Result<(), Bad> {
        let texts: usize = self.columns.iter().flatten().map(|c| c.text_bytes(row)).sum();
        let others: usize = self.fields.len() * JSON_BYTES_OF_A_VALUE;
        if self.refused.is_empty() && texts * JSON_BYTES_OF_A_BYTE + others < MAX_RECORD_BYTES / 2 {
            return Ok(());
        }
        match self.json(row).len() {
            bytes if bytes > MAX_RECORD_BYTES => Err(too_large(bytes)),
            _ => Ok(()),
        }
    }
}

/// A JSON object in the making.
#[derive(Debug, Default)]
pub struct ObjectText {
    text: Vec<u8>,
}

impl ObjectText {
    /// A further name; its value comes next.
    fn name(&mut self, name: &[u8]) {
        self.text.push(if self.text.is_empty() { b'{' } else { b',' });
        push_string(&mut self.text, name);
        self.text.push(b':');
    }

    /// A field whose value is a string; bytes that are not UTF-8 are kept as they are.
    pub fn text_field(&mut self, name: &[u8], value: &[u8]) {
        self.name(name);
        push_string(&mut self.text, value);
    }

    /// The object.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        if self.text.is_empty() {
            self.text.push(b'{');
        }
        self.text.push(b'}');
        self.text
    }
}

/// Appends a cell so that JSON under the declared type has the same verdict.
fn push_cell(buf: &mut Vec<u8>, cell: Cell<'_>, kind: FieldType) {
    match cell {
        Cell::Null => buf.extend_from_slice(b"null"),
        Cell::Untyped(text) if is_literal(text, kind) => buf.extend_from_slice(text.as_bytes()),
        Cell::Untyped(text) | Cell::Text(text) => push_string(buf, text.as_bytes()),
        Cell::Int(v) => buf.extend_from_slice(v.to_string().as_bytes()),
        Cell::Unsigned(v) => buf.extend_from_slice(v.to_string().as_bytes()),
        Cell::Bool(v) => buf.extend_from_slice(if v { b"true" } else { b"false" }),
        // Debug, unlike Display, uses an exponent for the very large and small.
        Cell::Float(v) if v.is_finite() => buf.extend_from_slice(format!("{v:?}").as_bytes()),
        Cell::Float(v) if v.is_nan() => buf.extend_from_slice(b"\"NaN\""),
        Cell::Float(v) => buf.extend_from_slice(if v > 0.0 { b"1e999" } else { b"-1e999" }),
        Cell::Instant(count, decimals) => match unit_decimals(kind) {
            Some(unit) => {
                let count = in_unit(count, decimals, unit);
                buf.extend_from_slice(count.to_string().as_bytes());
            }
            None => push_string(buf, instant_text(count, decimals).as_bytes()),
        },
    }
}

/// Whether text without a type stands without quotes in JSON: a number, `true` or `false`, where
/// such a one is declared.
pub(super) fn is_literal(text: &str, kind: FieldType) -> bool {
    match kind {
        FieldType::String | FieldType::Timestamp => false,
        FieldType::Bool => matches!(text, "true" | "false"),
        FieldType::Int64
        | FieldType::Float64
        | FieldType::TimestampS
        | FieldType::TimestampMs
        | FieldType::TimestampUs => is_number(text.as_bytes()),
    }
}

/// Whether this is a number by the grammar of JSON: no `+`, no leading zeros, no `.5`.
fn is_number(text: &[u8]) -> bool {
    let digits = |text: &[u8]| text.iter().take_while(|b| b.is_ascii_digit()).count();
    let text = text.strip_prefix(b"-").unwrap_or(text);
    let whole = digits(text);
    if whole == 0 || (whole > 1 && text[0] == b'0') {
        return false;
    }
    let mut rest = &text[whole..];
    if let Some(fraction) = rest.strip_prefix(b".") {
        let n = digits(fraction);
        if n == 0 {
            return false;
        }
        rest = &fraction[n..];
    }
    if let [b'e' | b'E', exponent @ ..] = rest {
        let exponent = match exponent {
            [b'+' | b'-', digits @ ..] => digits,
            unsigned => unsigned,
        };
        let n = digits(exponent);
        if n == 0 {
            return false;
        }
        rest = &exponent[n..];
    }
    rest.is_empty()
}

/// The decimals of the unit in which JSON has instants of this type; `None`: it has them as text.
pub(super) fn unit_decimals(kind: FieldType) -> Option<u8> {
    match kind {
        FieldType::TimestampS => Some(0),
        FieldType::TimestampMs => Some(3),
        FieldType::TimestampUs => Some(6),
        _ => None,
    }
}

/// `count` units of `10^-decimals` seconds in units of `10^-unit` seconds, floored.
pub(super) fn in_unit(count: i64, decimals: u8, unit: u8) -> i128 {
    let count = i128::from(count) * 10i128.pow(u32::from(unit));
    count.div_euclid(10i128.pow(u32::from(decimals)))
}

/// An instant as RFC 3339 with all its decimals; one that no calendar here reaches as its count.
pub(super) fn instant_text(count: i64, decimals: u8) -> String {
    let unit = 10i64.pow(u32::from(decimals));
    let nanos = count.rem_euclid(unit) * 10i64.pow(u32::from(9 - decimals.min(9)));
    // Less than 10^9.
    match chrono::DateTime::from_timestamp(count.div_euclid(unit), nanos as u32) {
        Some(instant) => instant.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true),
        None => format!("{count}e-{decimals} s since 1970"),
    }
}

/// Appends a JSON string; bytes that are not UTF-8 stay as they are, and nobody takes them for JSON.
fn push_string(buf: &mut Vec<u8>, bytes: &[u8]) {
    buf.push(b'"');
    for &byte in bytes {
        match byte {
            b'"' | b'\\' => buf.extend_from_slice(&[b'\\', byte]),
            b'\n' => buf.extend_from_slice(b"\\n"),
            b'\r' => buf.extend_from_slice(b"\\r"),
            b'\t' => buf.extend_from_slice(b"\\t"),
            0..0x20 => buf.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => buf.push(byte),
        }
    }
    buf.push(b'"');
}

#[cfg(test)]
mod tests;
