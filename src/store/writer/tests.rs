use super::*;
use crate::{
    messages::{
        DeadLetter, PartHeader, Payload, Record, Stage, WriteHeader, dead_letters_to_arrow,
        feature_row_schema,
    },
    protocol::source::{SourceAttributes, Token},
    store::{audit::audit, database::DatabaseOptions, newest},
};
use arrow::array::{
    FixedSizeBinaryArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use std::{path::Path, sync::Arc};

fn open(dir: &Path) -> Writer {
    let options = DatabaseOptions {
        file: dir.join("t.duckdb"),
        memory_limit_mib: 256,
        max_spill_mib: 1024,
        threads: 1,
        chunks: None,
    };
    Writer::new(Database::open(options).unwrap()).unwrap()
}

fn source(partition: i32) -> SourceName {
    SourceName::kafka("s", "t", partition)
}

fn open_request(partition: i32) -> OpenRequest {
    OpenRequest {
        source: source(partition),
        owner: "test".into(),
        attributes: SourceAttributes { cluster_id: Some("c".into()), topic_id: None },
        start: 0,
        low: 0,
        high: 1_000,
        ephemeral: false,
        partitions: Some(2),
        ends: Vec::new(),
    }
}

fn opened(writer: &mut Writer, partition: i32) -> (Token, i64) {
    match writer.open_source(&open_request(partition)).unwrap() {
        OpenReply::Opened { token, next_pos, .. } => (token, next_pos),
        other => panic!("{other:?}"),
    }
}

/// Positions `[from, to)`: the last one is a dead letter, every other one is a row.
fn write(partition: i32, token: Token, from: i64, to: i64) -> WriteRequest {
    let n = usize::try_from(to - from - 1).unwrap();
    let pos: Vec<i64> = (from..to - 1).collect();
    let times = || TimestampMicrosecondArray::from(vec![1_000_000; n]).with_timezone("UTC");
    let ids: Vec<[u8; 16]> = pos.iter().map(|p| (*p as u128 + 1).to_be_bytes()).collect();
    let rows = RecordBatch::try_new(
        feature_row_schema(),
        vec![
            Arc::new(StringArray::from_iter_values(pos.iter().map(|p| format!("e{p}")))),
            Arc::new(StringArray::from(vec!["f"; n])),
            Arc::new(Float64Array::from_iter(
                pos.iter().map(|p| (p % 2 == 0).then_some(*p as f64)),
            )),
            Arc::new(times()),
            Arc::new(times()),
            Arc::new(
                FixedSizeBinaryArray::try_from_sparse_iter_with_size(ids.iter().map(Some), 16)
                    .unwrap(),
            ),
            Arc::new(Int64Array::from(pos)),
            Arc::new(Int32Array::from(vec![0; n])),
        ],
    )
    .unwrap();
    let record = Record {
        position: to - 1,
        timestamp_us: 5,
        event_id: None,
        payload: Payload::Json(b"{broken"),
    };
    let letter =
        DeadLetter::with_reason(&record, None, Stage::Decode, "invalid_json".into(), "at 1".into());
    let part = PartHeader {
        source: source(partition),
        token,
        from,
        to,
        n_in: to - from,
        n_kept: n as i64,
        n_dead: 1,
        n_filtered: 0,
        n_rows: n as i64,
        chunk: None,
    };
    WriteRequest {
        header: WriteHeader {
            node: "n".into(),
            batch_id: uuid::Uuid::nil(),
            transform: "x".into(),
            script_sha256: "abc".into(),
            generation: "g".into(),
            as_known: crate::config::AsKnown::Arrival,
            parts: vec![part],
        },
        again: false,
        rows: vec![rows],
        dead: vec![dead_letters_to_arrow(&[letter]).unwrap()],
    }
}

fn decisions(committed: &Committed) -> Vec<Decision> {
    committed.verdicts.iter().flatten().map(|v| v.decision).collect()
}

fn count(writer: &Writer, sql: &str) -> i64 {
    writer.database().connection().query_row(sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn a_group_lands_once_with_its_ledger_and_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = open(dir.path());
    let (token, next) = opened(&mut writer, 0);
    assert_eq!(next, 0);
    let (a, b) = (write(0, token, 0, 10), write(0, token, 10, 15));
    let committed = writer.apply(&[&a, &b, &a]).unwrap();
    assert_eq!(decisions(&committed), [Decision::Apply, Decision::Apply, Decision::Duplicate]);
    drop(writer);

    let mut writer = open(dir.path());
    assert_eq!(decisions(&writer.apply(&[&b]).unwrap()), [Decision::Duplicate]);
    let (_, next) = opened(&mut writer, 0);
    assert_eq!(next, 15);
    assert_eq!(decisions(&writer.apply(&[&write(0, token, 15, 20)]).unwrap()), [Decision::Fenced]);
    assert_eq!(count(&writer, "SELECT count(*) FROM features_table"), 13);
    assert_eq!(
        count(
            &writer,
            "SELECT count(*) FROM dead_letters WHERE raw = 'broken'::BLOB OR raw_len = 7"
        ),
        2
    );
    assert_eq!(
        count(&writer, "SELECT count(*) FROM features_table WHERE event_id IS NOT NULL"),
        13
    );
    assert_eq!(
        count(&writer, "SELECT count(*) FROM features_table WHERE available_at > event_timestamp"),
        13
    );
    let audit = audit(writer.database().connection(), 0).unwrap();
    assert!(audit.ok(), "{audit:#?}");
    assert_eq!(
        (audit.totals.events, audit.totals.dead_letters, audit.totals.landed_rows),
        (15, 2, 13)
    );
}

#[test]
fn a_write_whose_dead_letter_cannot_be_written_changes_nothing_and_applies_later() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = open(dir.path());
    let (token, _) = opened(&mut writer, 0);
    writer.apply(&[&write(0, token, 0, 5)]).unwrap();
    let rename = |writer: &Writer, from: &str, to: &str| {
        let sql = format!("ALTER TABLE {from} RENAME TO {to}");
        writer.database().connection().execute_batch(&sql).unwrap();
    };
    // Its rows can be written, and are before its letter.
    rename(&writer, "dead_letters", "elsewhere");
    let next = write(0, token, 5, 10);
    let error = writer.apply(&[&next]).unwrap_err();
    assert!(matches!(error, StoreError::Statement(_)), "{error:?}");
    let found = [
        "SELECT count(*) FROM features_table",
        "SELECT count(*) FROM elsewhere",
        "SELECT count(*) FROM ingest_ledger",
        "SELECT next_pos FROM sources",
    ];
    assert_eq!(found.map(|sql| count(&writer, sql)), [4, 1, 1, 5]);
    assert_eq!(writer.last_batch_seq(), 1);

    rename(&writer, "elsewhere", "dead_letters");
    // As the store does after such an error, before it decides again.
    writer.reopen().unwrap();
    assert_eq!(decisions(&writer.apply(&[&next]).unwrap()), [Decision::Apply]);
    let audit = audit(writer.database().connection(), 0).unwrap();
    assert!(audit.ok(), "{audit:#?}");
    assert_eq!((audit.totals.landed_rows, audit.totals.dead_letters), (8, 2));
}

#[test]
fn counts_that_do_not_add_up_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = open(dir.path());
    let (token, _) = opened(&mut writer, 0);
    let good = write(0, token, 0, 10);
    let mut bad = write(0, token, 10, 20);
    bad.header.parts[0].n_kept += 1;
    assert!(matches!(writer.apply(&[&good, &bad]), Err(StoreError::Unbalanced(_))));
    assert_eq!(count(&writer, "SELECT count(*) FROM ingest_ledger"), 0);
    assert_eq!(
        decisions(&writer.apply(&[&good]).unwrap()),
        [Decision::Apply],
        "nothing was kept of it"
    );
}

#[test]
fn the_event_id_of_the_producer_is_stored_as_it_was_sent() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = open(dir.path());
    let (token, _) = opened(&mut writer, 0);
    writer.apply(&[&write(0, token, 0, 3)]).unwrap();
    let id: String = writer
        .database()
        .connection()
        .query_row("SELECT event_id::VARCHAR FROM features_table WHERE pos = 1", [], |row| {
            row.get(0)
        })
        .unwrap();
    assert_eq!(id, "00000000-0000-0000-0000-000000000002");
}

#[test]
fn a_source_of_another_cluster_halts_unless_the_broker_is_ephemeral() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = open(dir.path());
    let (token, _) = opened(&mut writer, 0);
    writer.apply(&[&write(0, token, 0, 5)]).unwrap();
    let mut other = open_request(0);
    other.attributes.cluster_id = Some("another".into());
    assert!(matches!(writer.open_source(&other).unwrap(), OpenReply::Halted { .. }));
    other.ephemeral = true;
    let OpenReply::Opened { token, next_pos, source_no, .. } = writer.open_source(&other).unwrap()
    else {
        panic!("an ephemeral broker is adopted");
    };
    assert_eq!((next_pos, source_no), (0, 2));
    writer.apply(&[&write(0, token, 0, 5)]).unwrap();
    let audit = audit(writer.database().connection(), 0).unwrap();
    assert!(audit.ok(), "{audit:#?}");
}

#[test]
fn stamps_strictly_increase() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = open(dir.path());
    let (token, _) = opened(&mut writer, 0);
    for i in 0..20 {
        writer.apply(&[&write(0, token, i * 5, i * 5 + 5)]).unwrap();
    }
    assert_eq!(count(&writer, "SELECT count(DISTINCT committed_at) FROM ingest_ledger"), 20);
}

/// A table that refuses some values, as a table with a constraint of its user's would.
fn open_picky(dir: &Path) -> Writer {
    let connection = Connection::open(dir.join("t.duckdb")).unwrap();
    let table = crate::store::schema::DDL
        .split_inclusive(");")
        .find(|statement| statement.contains("CREATE TABLE IF NOT EXISTS features_table"))
        .unwrap()
        .replace(
            "value           DOUBLE,",
            "value DOUBLE CHECK (value IS NULL OR value NOT IN (4, 6)),",
        );
    connection.execute_batch(&table).unwrap();
    drop(connection);
    open(dir)
}

#[test]
fn rows_that_duckdb_refuses_become_dead_letters_and_the_others_land() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = open_picky(dir.path());
    let (token, _) = opened(&mut writer, 0);
    let refused = write(0, token, 0, 10);
    let error = writer.apply(&[&refused]).unwrap_err();
    assert!(matches!(error, StoreError::Refused(_)), "{error:?}");
    let isolated = writer.isolate(&refused).unwrap().unwrap();
    let positions: Vec<i64> = isolated.refused[0].iter().map(|row| row.pos).collect();
    assert_eq!(positions, [4, 6]);
    assert_eq!(decisions(&writer.apply(&[&isolated.write]).unwrap()), [Decision::Apply]);
    let audit = audit(writer.database().connection(), 0).unwrap();
    assert!(audit.ok(), "{audit:#?}");
    let totals = (audit.totals.kept, audit.totals.dead_letters, audit.totals.landed_rows);
    assert_eq!(totals, (7, 3, 7));
    assert_eq!(
        count(
            &writer,
            "SELECT count(*) FROM dead_letters WHERE stage = 'store' AND reason = 'refused_by_store'
             AND event_id IS NOT NULL AND json_extract_string(detail, '$.error') LIKE '%CHECK%'"
        ),
        2
    );
    // What a store that died before it took them back finds again, in the letters.
    let mut repairs = Vec::new();
    newest::replay(writer.database().connection(), 0, |piece| {
        if let newest::Piece::Repairs(found) = piece {
            repairs.extend(found);
        }
        true
    })
    .unwrap();
    let names: Vec<_> = repairs.iter().map(|r| (r.entity_id.as_str(), r.refused.pos)).collect();
    assert_eq!(names, [("e4", 4), ("e6", 6)]);
    assert_eq!(repairs[0].newest, None, "e4 has no other value");
    assert!(repairs[0].newest_of_feature.is_some(), "the feature has values of others");
}

#[test]
fn a_write_without_a_row_at_fault_is_not_isolated() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = open(dir.path());
    let (token, _) = opened(&mut writer, 0);
    assert!(writer.isolate(&write(0, token, 0, 10)).unwrap().is_none());
    assert_eq!(count(&writer, "SELECT count(*) FROM features_table"), 0, "trials leave nothing");
}

#[test]
fn opened_again_the_writer_believes_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = open(dir.path());
    let (token, _) = opened(&mut writer, 0);
    let (a, b) = (write(0, token, 0, 10), write(0, token, 10, 20));
    writer.apply(&[&a]).unwrap();
    let readers = writer.database().readers();
    writer.reopen().unwrap();
    assert_eq!(
        decisions(&writer.apply(&[&a, &b]).unwrap()),
        [Decision::Duplicate, Decision::Apply]
    );
    assert_eq!(writer.last_batch_seq(), 2);
    let seen = readers.with(|connection| {
        connection.query_row("SELECT count(*) FROM ingest_ledger", [], |row| row.get::<_, i64>(0))
    });
    assert_eq!(seen.unwrap().unwrap(), 2, "readers see the file that is open now");
}

#[test]
fn a_halted_source_goes_on_as_the_operator_decides() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = open(dir.path());
    let (token, _) = opened(&mut writer, 0);
    writer.apply(&[&write(0, token, 0, 5)]).unwrap();
    let mut recreated = open_request(0);
    recreated.attributes.cluster_id = Some("another".into());
    (recreated.low, recreated.high) = (3, 40);
    for (at, next_pos, source_no) in
        [(AdoptAt::Here, 5, 1), (AdoptAt::Earliest, 3, 2), (AdoptAt::Latest, 40, 3)]
    {
        assert!(writer.halt(&source(0), "because").unwrap());
        let answer = writer.open_source(&recreated).unwrap();
        assert!(matches!(answer, OpenReply::Halted { .. }), "{answer:?}");
        assert!(writer.adopt(&source(0), at).unwrap());
        // The decision is durable, and holds once.
        writer.reopen().unwrap();
        let OpenReply::Opened { next_pos: next, source_no: no, .. } =
            writer.open_source(&recreated).unwrap()
        else {
            panic!("adopted at {at:?}");
        };
        assert_eq!((next, no), (next_pos, source_no), "{at:?}");
    }
    assert!(!writer.adopt(&source(7), AdoptAt::Here).unwrap(), "nobody knows it");
    let audit = audit(writer.database().connection(), 0).unwrap();
    assert!(audit.ok(), "{audit:#?}");
}

#[test]
fn a_partition_that_came_later_waits_for_the_older_ones() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = open(dir.path());
    let (token, _) = opened(&mut writer, 0);
    opened(&mut writer, 1);
    let mut late = open_request(2);
    late.partitions = Some(3);
    let answer = writer.open_source(&late).unwrap();
    let OpenReply::Waiting { older } = answer else { panic!("{answer:?}") };
    assert_eq!(older.len(), 2);
    late.ends = vec![(source(0), 10), (source(1), 0)];
    assert!(matches!(writer.open_source(&late).unwrap(), OpenReply::Waiting { .. }));
    writer.apply(&[&write(0, token, 0, 10)]).unwrap();
    assert!(matches!(writer.open_source(&late).unwrap(), OpenReply::Opened { .. }));
    // Once it is known, it waits no more.
    late.ends.clear();
    assert!(matches!(writer.open_source(&late).unwrap(), OpenReply::Opened { .. }));
}
