//! Sound files of made-up rows, in every format.

use super::super::{Compression, FileFormat, FileKind};
use polars::prelude::{
    ChunkedArray, Column, DataFrame, Int64Type, IntoColumn, NamedFrom, ParquetCompression,
    ParquetWriter, Series, TimeUnit, TimeZone,
};
use serde_json::json;
use std::io::Write;

/// 2023-11-14T22:13:20Z.
pub const BASE_US: i64 = 1_700_000_000_000_000;

/// Writing to memory cannot fail.
const IN_MEMORY: &str = "writing to memory";

/// One row of the stream `features`.
#[derive(Debug, Clone)]
pub struct SampleRow {
    /// `entity_id`.
    pub entity: String,
    /// `feature_name`.
    pub feature: String,
    /// `value`.
    pub value: Option<f64>,
    /// `validated_at`, UTC microseconds.
    pub at_us: i64,
    /// `created_at`.
    pub created_us: Option<i64>,
    /// `event_id`.
    pub event_id: Option<String>,
}

/// Rows that are all good, and as different as rows can be.
#[must_use]
pub fn rows(n: usize) -> Vec<SampleRow> {
    let odd =
        ["plain", "com,ma", "quo\"te", "new\nline", "Grüße", "日本語", "back\\slash", "😀", " x "];
    let values = [0.0, -0.5, 1.0, 1e300, -1e-300, 0.1, 123_456_789.0, -7.0, 2.5e-8];
    let row = |i: usize| SampleRow {
        entity: format!("{}-{}", odd[i % odd.len()], i % 97),
        feature: format!("feature_{}", i % 5),
        value: (!i.is_multiple_of(7)).then(|| values[i % values.len()] + (i % 3) as f64),
        at_us: BASE_US - (i as i64) * 1_234_567,
        created_us: (!i.is_multiple_of(3)).then(|| BASE_US - (i as i64) * 1_000_003),
        event_id: (i % 4 == 1).then(|| {
            uuid::Uuid::from_u128(0x018b_cfe5_6800_7000_8000 << 48 | i as u128).to_string()
        }),
    };
    (0..n).map(row).collect()
}

/// An instant as text; in one of several ways to write it.
fn text_of(us: i64, way: usize) -> String {
    use chrono::{DateTime, FixedOffset, SecondsFormat};
    let instant = DateTime::from_timestamp_micros(us).unwrap_or_default();
    match FixedOffset::east_opt(7_200).filter(|_| way % 2 == 1) {
        Some(zone) => instant.with_timezone(&zone).to_rfc3339_opts(SecondsFormat::Micros, true),
        None => instant.to_rfc3339_opts(SecondsFormat::AutoSi, true),
    }
}

/// The rows as a file.
#[must_use]
pub fn file(kind: FileKind, rows: &[SampleRow]) -> Vec<u8> {
    let plain = match kind.format {
        FileFormat::Json => {
            let objects: Vec<_> = rows.iter().enumerate().map(object).collect();
            format!("[{}]", objects.join(",\n ")).into_bytes()
        }
        FileFormat::Ndjson => {
            let lines: Vec<_> = rows.iter().enumerate().map(|row| object(row) + "\n").collect();
            lines.concat().into_bytes()
        }
        FileFormat::Csv => csv(rows),
        FileFormat::Parquet => parquet(&mut frame(rows), 300),
    };
    compressed(kind.compression, &plain)
}

/// Bytes, compressed.
#[must_use]
pub fn compressed(compression: Compression, plain: &[u8]) -> Vec<u8> {
    match compression {
        Compression::None => plain.to_vec(),
        Compression::Gzip => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
            encoder.write_all(plain).expect(IN_MEMORY);
            encoder.finish().expect(IN_MEMORY)
        }
        Compression::Zstd => zstd::encode_all(plain, 3).expect(IN_MEMORY),
    }
}

fn object((i, row): (usize, &SampleRow)) -> String {
    let mut object = json!({
        "entity_id": row.entity,
        "feature_name": row.feature,
        "value": row.value,
        "validated_at": text_of(row.at_us, i),
        "unknown": {"nested": [i, null]},
    });
    if let Some(us) = row.created_us {
        object["created_at"] = json!(text_of(us, i + 1));
    }
    if let Some(id) = &row.event_id {
        object["event_id"] = json!(id);
    }
    object.to_string()
}

fn csv(rows: &[SampleRow]) -> Vec<u8> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let header =
        ["note", "created_at", "value", "entity_id", "feature_name", "event_id", "validated_at"];
    writer.write_record(header).expect(IN_MEMORY);
    for (i, row) in rows.iter().enumerate() {
        let record = [
            format!("note {i}"),
            row.created_us.map_or_else(String::new, |us| text_of(us, i)),
            row.value.map_or_else(String::new, |value| format!("{value:?}")),
            row.entity.clone(),
            row.feature.clone(),
            row.event_id.clone().unwrap_or_default(),
            text_of(row.at_us, i),
        ];
        writer.write_record(&record).expect(IN_MEMORY);
    }
    writer.into_inner().expect(IN_MEMORY)
}

/// A column of instants in UTC.
#[must_use]
pub fn instants(name: &str, us: impl Iterator<Item = Option<i64>>) -> Column {
    let counts: ChunkedArray<Int64Type> = us.collect();
    let mut column =
        counts.into_datetime(TimeUnit::Microseconds, Some(TimeZone::UTC)).into_column();
    column.rename(name.into());
    column
}

/// The rows as columns.
#[must_use]
pub fn frame(rows: &[SampleRow]) -> DataFrame {
    let texts = |name: &str, of: fn(&SampleRow) -> Option<&str>| {
        Series::new(name.into(), rows.iter().map(of).collect::<Vec<_>>()).into_column()
    };
    let values = rows.iter().map(|row| row.value).collect::<Vec<_>>();
    DataFrame::new_infer_height(vec![
        texts("entity_id", |row| Some(&row.entity)),
        instants("validated_at", rows.iter().map(|row| Some(row.at_us))),
        texts("feature_name", |row| Some(&row.feature)),
        Series::new("value".into(), values).into_column(),
        instants("created_at", rows.iter().map(|row| row.created_us)),
        texts("event_id", |row| row.event_id.as_deref()),
        Series::new("note".into(), vec![1i32; rows.len()]).into_column(),
    ])
    .expect("columns of one length")
}

/// The columns as Parquet.
#[must_use]
pub fn parquet(frame: &mut DataFrame, group_rows: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes)
        .with_compression(ParquetCompression::Snappy)
        .with_row_group_size(Some(group_rows))
        .finish(frame)
        .expect(IN_MEMORY);
    bytes
}
