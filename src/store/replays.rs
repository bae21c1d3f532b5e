//! Replays of dead letters: what each contains is fixed here before its first event is sent.
//!
//! A letter is in at most one replay. It counts as resolved once its place lies below the position
//! of the replay's source; if it dies again, that is a new letter, of the replay.

use super::StoreError;
use crate::messages::{RegisterReplay, replayed_letters_schema};
use arrow::{
    array::{
        ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray,
        TimestampMicrosecondArray,
    },
    compute::filter_record_batch,
    datatypes::{DataType, Field, Int32Type, Int64Type, Schema, TimeUnit},
    error::ArrowError,
};
use duckdb::{Connection, OptionalExt, params};
use std::{collections::HashSet, sync::Arc};

/// Writes a replay down, inside of a transaction: the letters that no other replay contains, in
/// their order, at places 0, 1, 2, … Gives how many they are. A replay that is known is left as it
/// is: the same request may come twice.
///
/// # Errors
/// [`StoreError::Statement`], [`StoreError::Columns`].
pub fn register(
    connection: &Connection,
    replay: &RegisterReplay,
    stamp_us: i64,
) -> Result<i64, StoreError> {
    let known: Option<i64> = connection
        .query_row(
            "SELECT n_letters FROM replays WHERE replay_id = ?",
            params![replay.replay_id],
            |row| row.get(0),
        )
        .optional()
        .map_err(StoreError::Statement)?;
    if let Some(n) = known {
        return Ok(n);
    }
    let taken = taken(connection)?;
    let letters = not_in(&replay.letters, taken)?;
    let n = letters.num_rows() as i64;
    if n > 0 {
        let mut appender =
            connection.appender("dead_letter_replays").map_err(StoreError::Statement)?;
        let rows = placed(&letters, &replay.replay_id, stamp_us)?;
        appender.append_record_batch(rows).map_err(StoreError::Statement)?;
        appender.flush().map_err(StoreError::Statement)?;
    }
    connection
        .execute(
            "INSERT INTO replays VALUES (?, ?, ?, ?, ?, make_timestamptz(?))",
            params![
                replay.replay_id,
                replay.source.0.as_ref(),
                replay.stream,
                replay.owner,
                n,
                stamp_us
            ],
        )
        .map_err(StoreError::Statement)?;
    Ok(n)
}

/// The letters that are in a replay.
fn taken(connection: &Connection) -> Result<HashSet<(i32, i64)>, StoreError> {
    let mut statement = connection
        .prepare("SELECT source_no, pos FROM dead_letter_replays")
        .map_err(StoreError::Statement)?;
    let rows = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .map_err(StoreError::Statement)?;
    rows.collect::<duckdb::Result<_>>().map_err(StoreError::Statement)
}

/// Leaves out what is taken, and what stands in the request twice.
fn not_in(
    letters: &RecordBatch,
    mut taken: HashSet<(i32, i64)>,
) -> Result<RecordBatch, ArrowError> {
    if letters.schema() != replayed_letters_schema() {
        return Err(ArrowError::SchemaError("these are no letters to replay".into()));
    }
    let sources = letters.column(0).as_primitive::<Int32Type>();
    let positions = letters.column(1).as_primitive::<Int64Type>();
    let free: BooleanArray = (0..letters.num_rows())
        .map(|i| Some(taken.insert((sources.value(i), positions.value(i)))))
        .collect();
    filter_record_batch(letters, &free)
}

/// `dead_letter_replays`, in its order.
fn placed(
    letters: &RecordBatch,
    replay_id: &str,
    stamp_us: i64,
) -> Result<RecordBatch, ArrowError> {
    let n = letters.num_rows();
    let instant = || DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let received = letters.schema();
    let schema = Schema::new(vec![
        Field::new("source_no", DataType::Int32, false),
        Field::new("pos", DataType::Int64, false),
        Field::new("replay_id", DataType::Utf8, false),
        Field::new("replayed_at", instant(), false),
        Field::new("place", DataType::Int64, false),
        received.field(2).clone(),
        received.field(3).clone(),
    ]);
    let id: StringArray = std::iter::repeat_n(Some(replay_id), n).collect();
    let at = TimestampMicrosecondArray::from_value(stamp_us, n).with_timezone("UTC");
    let columns: Vec<ArrayRef> = vec![
        letters.column(0).clone(),
        letters.column(1).clone(),
        Arc::new(id),
        Arc::new(at),
        Arc::new(Int64Array::from_iter_values(0..n as i64)),
        letters.column(2).clone(),
        letters.column(3).clone(),
    ];
    RecordBatch::try_new(Arc::new(schema), columns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{messages::LetterToReplay, protocol::source::SourceName, store::schema::DDL};

    fn replay(id: &str, positions: &[i64]) -> RegisterReplay {
        let letters: Vec<LetterToReplay> = positions
            .iter()
            .map(|pos| LetterToReplay {
                source_no: 3,
                pos: *pos,
                payload: (*pos == 2).then(|| vec![0xff, 0]),
                recorded_at_us: Some(7),
            })
            .collect();
        RegisterReplay {
            replay_id: id.into(),
            source: SourceName::replay("s", id),
            stream: "s".into(),
            owner: "n".into(),
            letters: LetterToReplay::to_arrow(&letters).unwrap(),
        }
    }

    fn places(connection: &Connection) -> Vec<(String, i64, i64, Option<Vec<u8>>)> {
        let sql = "SELECT replay_id, place, pos, payload FROM dead_letter_replays
                   ORDER BY replay_id, place";
        let mut statement = connection.prepare(sql).unwrap();
        statement
            .query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?)))
            .unwrap()
            .map(Result::unwrap)
            .collect()
    }

    #[test]
    fn a_letter_is_in_one_replay_only_and_a_request_counts_once() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(DDL).unwrap();
        assert_eq!(register(&connection, &replay("a", &[1, 2, 2, 5]), 10).unwrap(), 3);
        assert_eq!(register(&connection, &replay("a", &[1, 2, 2, 5]), 11).unwrap(), 3, "again");
        assert_eq!(register(&connection, &replay("b", &[2, 9, 5]), 12).unwrap(), 1);
        assert_eq!(register(&connection, &replay("c", &[1]), 13).unwrap(), 0);
        let at = |id: &str, place, pos| (id.to_owned(), place, pos, None);
        assert_eq!(
            places(&connection),
            [
                at("a", 0, 1),
                ("a".to_owned(), 1, 2, Some(vec![0xff, 0])),
                at("a", 2, 5),
                at("b", 0, 9)
            ]
        );
        let sql = "SELECT source, stream, owner, epoch_us(registered_at) FROM replays
                   WHERE replay_id = 'b'";
        let row: (String, String, String, i64) = connection
            .query_row(sql, [], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?)))
            .unwrap();
        assert_eq!(row, ("replay:s/b".into(), "s".into(), "n".into(), 12));
    }

    #[test]
    fn the_tables_of_an_older_database_get_what_is_new() {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch(
                "CREATE TABLE dead_letter_replays (source_no INTEGER NOT NULL, pos BIGINT NOT NULL,
                     replay_id VARCHAR NOT NULL, replayed_at TIMESTAMPTZ NOT NULL);
                 CREATE TABLE dead_letters (batch_seq BIGINT NOT NULL, source_no INTEGER NOT NULL,
                     pos BIGINT NOT NULL, event_id UUID, entity_id VARCHAR, stage VARCHAR NOT NULL,
                     reason VARCHAR NOT NULL, detail VARCHAR NOT NULL, raw BLOB, raw_len BIGINT,
                     raw_sha256 VARCHAR, script_sha256 VARCHAR NOT NULL, stored_at TIMESTAMPTZ NOT NULL);",
            )
            .unwrap();
        connection.execute_batch(DDL).unwrap();
        connection.execute_batch(DDL).unwrap();
        assert_eq!(register(&connection, &replay("a", &[1]), 10).unwrap(), 1);
        let fresh = Connection::open_in_memory().unwrap();
        fresh.execute_batch(DDL).unwrap();
        let columns = |connection: &Connection, table: &str| -> String {
            let sql =
                "SELECT string_agg(column_name || ' ' || data_type, ', ' ORDER BY ordinal_position)
                       FROM information_schema.columns WHERE table_name = ?";
            connection.query_row(sql, [table], |r| r.get(0)).unwrap()
        };
        for table in ["dead_letters", "dead_letter_replays"] {
            assert_eq!(columns(&connection, table), columns(&fresh, table));
        }
    }
}
