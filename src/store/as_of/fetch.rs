//! Fetching what the store has of features and entities, for questions about the past.

use super::failed;
use crate::{
    messages::Watermark,
    protocol::{as_of::History, version::Version},
    store::reader::ReadError,
};
use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, UInt32Array},
    datatypes::{DataType, Field, Float64Type, Int32Type, Int64Type, Schema, UInt32Type},
};
use duckdb::Connection;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

/// Rows of all features' histories that are looked at at once, at most: 60 bytes each.
const MOST_HISTORY: usize = 20_000_000;
/// Rows that DuckDB hands over at once, about: it holds them until the last is taken.
const PIECE_ROWS: usize = 1_228_800;
/// Up to so many entities it is first tried to fetch everything at once.
const FEW_ENTITIES: usize = 10_000;

/// What is asked of the store: entities by their numbers, which it knows as a temporary table.
pub(super) struct Asked<'a> {
    connection: &'a Connection,
    watermark: Watermark,
    n_entities: usize,
}

/// Histories of features, in their order.
pub(super) type Histories = Vec<History<Option<f64>>>;

/// There are more rows than are looked at at once.
struct TooMany;

/// Tells DuckDB the numbers of things with names.
fn tell_numbers<'a>(
    connection: &Connection,
    table: &str,
    column: &str,
    numbers: impl ExactSizeIterator<Item = (&'a str, u32)>,
) -> Result<(), ReadError> {
    let (names, numbers): (Vec<&str>, Vec<u32>) = numbers.unzip();
    let columns: [ArrayRef; 2] =
        [Arc::new(StringArray::from(names)), Arc::new(UInt32Array::from(numbers))];
    let schema = Schema::new(vec![
        Field::new(column, DataType::Utf8, false),
        Field::new("number", DataType::UInt32, false),
    ]);
    let batch = RecordBatch::try_new(Arc::new(schema), columns.into()).map_err(failed)?;
    // The connection is for this question alone, and its tables end with it.
    connection
        .execute_batch(&format!(
            "CREATE OR REPLACE TEMP TABLE {table} ({column} VARCHAR NOT NULL, number UINTEGER NOT NULL)"
        ))
        .map_err(failed)?;
    let mut appender = connection.appender(table).map_err(failed)?;
    appender.append_record_batch(batch).map_err(failed)?;
    appender.flush().map_err(failed)
}

impl<'a> Asked<'a> {
    pub(super) fn new(
        connection: &'a Connection,
        entities: &HashMap<&str, u32>,
        watermark: Watermark,
    ) -> Result<Self, ReadError> {
        let numbers = entities.iter().map(|(name, number)| (*name, *number));
        tell_numbers(connection, "asked_entities", "entity_id", numbers)?;
        Ok(Self { connection, watermark, n_entities: entities.len() })
    }

    /// Hands over the histories of features, in their order, until `take` gives `false`: of as many at once
    /// as have room.
    pub(super) fn each(
        &self,
        features: &[String],
        take: &mut impl FnMut(Histories) -> Result<bool, ReadError>,
    ) -> Result<bool, ReadError> {
        match self.fetch(features)? {
            Ok(histories) => {
                for (feature, history) in features.iter().zip(&histories) {
                    if history.values.is_empty() && !self.is_known(feature)? {
                        let why =
                            format!("there is no feature `{feature}`: no entity has ever had it");
                        return Err(ReadError::Refused(why));
                    }
                }
                take(histories)
            }
            Err(TooMany) if features.len() > 1 => {
                let (first, second) = features.split_at(features.len() / 2);
                Ok(self.each(first, take)? && self.each(second, take)?)
            }
            Err(TooMany) => Err(ReadError::Refused(format!(
                "the entities that are asked for have more than {MOST_HISTORY} rows of `{}`: ask about fewer of them \
                 at once",
                features.first().map_or("", String::as_str)
            ))),
        }
    }

    /// The rows that may be seen, by feature.
    fn fetch(&self, features: &[String]) -> Result<Result<Histories, TooMany>, ReadError> {
        let numbers = (0_u32..).zip(features).map(|(number, name)| (name.as_str(), number));
        let numbers: Vec<_> = numbers.collect();
        tell_numbers(self.connection, "asked_features", "feature_name", numbers.into_iter())?;
        let mut rows: Histories = features.iter().map(|_| History::default()).collect();
        // All at once is the fastest where it is little, which is not known before.
        if self.n_entities <= FEW_ENTITIES {
            let n = self.piece(0, self.watermark.batch_seq, Some(PIECE_ROWS + 1), &mut rows)?;
            if n <= PIECE_ROWS {
                return Ok(Ok(rows));
            }
            rows.iter_mut().for_each(|rows| *rows = History::default());
        }
        let (mut n, mut after) = (0, 0);
        for to in self.cuts()? {
            n += self.piece(after, to, None, &mut rows)?;
            if n > MOST_HISTORY {
                return Ok(Err(TooMany));
            }
            after = to;
        }
        Ok(Ok(rows))
    }

    /// Batches that divide the store into pieces; the last one is the watermark's. They are found by
    /// numbers of batches, which never change, and not by DuckDB's numbers of rows, which may.
    fn cuts(&self) -> Result<Vec<i64>, ReadError> {
        let mut statement = self
            .connection
            .prepare_cached(
                "WITH counted AS (
                     SELECT batch_seq, sum(n_rows) OVER (ORDER BY batch_seq) // ? AS piece
                     FROM ingest_ledger WHERE batch_seq <= ?)
                 SELECT max(batch_seq) FROM counted GROUP BY piece ORDER BY piece",
            )
            .map_err(failed)?;
        let parameters = duckdb::params![PIECE_ROWS as i64, self.watermark.batch_seq];
        let cuts = statement.query_map(parameters, |row| row.get(0)).map_err(failed)?;
        let mut cuts = cuts.collect::<Result<Vec<i64>, _>>().map_err(failed)?;
        cuts.pop();
        cuts.push(self.watermark.batch_seq);
        Ok(cuts)
    }

    /// Adds the rows of batches after one, up to another; how many there are.
    fn piece(
        &self,
        after: i64,
        to: i64,
        limit: Option<usize>,
        rows: &mut [History<Option<f64>>],
    ) -> Result<usize, ReadError> {
        let limit = limit.map_or_else(String::new, |limit| format!("LIMIT {limit}"));
        let sql = format!(
            "SELECT e.number, n.number, epoch_us(f.available_at), epoch_us(f.event_timestamp),
                    epoch_us(f.created_at), f.source_no, f.pos, f.sub, f.value
             FROM features_table f JOIN asked_entities e ON f.entity_id = e.entity_id
             JOIN asked_features n ON f.feature_name = n.feature_name
             WHERE f.batch_seq > ? AND f.batch_seq <= ? {limit}"
        );
        let mut statement = self.connection.prepare(&sql).map_err(failed)?;
        let mut n = 0;
        // Not as a stream: that one panics where the query is interrupted.
        for batch in statement.query_arrow(duckdb::params![after, to]).map_err(failed)? {
            add(&batch, rows);
            n += batch.num_rows();
        }
        Ok(n)
    }

    /// Whether any row of any entity is of a feature.
    fn is_known(&self, feature: &str) -> Result<bool, ReadError> {
        let sql = "SELECT EXISTS (FROM features_table WHERE feature_name = ? AND batch_seq <= ?)";
        let parameters = duckdb::params![feature, self.watermark.batch_seq];
        self.connection.query_row(sql, parameters, |row| row.get(0)).map_err(failed)
    }
}

fn add(batch: &RecordBatch, rows: &mut [History<Option<f64>>]) {
    let number = |i: usize| batch.column(i).as_primitive::<UInt32Type>().values();
    let long = |i: usize| batch.column(i).as_primitive::<Int64Type>().values();
    let short = |i: usize| batch.column(i).as_primitive::<Int32Type>().values();
    let (entities, features) = (number(0), number(1));
    let (available_at, event_timestamps, created_at) = (long(2), long(3), long(4));
    let (sources, positions, subs) = (short(5), long(6), short(7));
    let values = batch.column(8).as_primitive::<Float64Type>();
    for i in 0..batch.num_rows() {
        let history = &mut rows[features[i] as usize];
        history.entities.push(entities[i]);
        history.available_at.push(available_at[i]);
        history.versions.push(Version {
            event_timestamp: event_timestamps[i],
            created_at: created_at[i],
            source_no: sources[i],
            pos: positions[i],
            sub: subs[i],
        });
        history.values.push(values.is_valid(i).then(|| values.value(i)));
    }
}

/// The name that is there twice.
pub(super) fn twice(features: &[String]) -> Option<&String> {
    let mut seen = HashSet::new();
    features.iter().find(|name| !seen.insert(name.as_str()))
}
