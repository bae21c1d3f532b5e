use super::*;
use crate::{
    messages::{PartHeader, WriteHeader, WriteRequest, dead_letter_schema},
    protocol::{
        apply::Decision,
        source::{OpenReply, OpenRequest, SourceAttributes, SourceName, Token},
    },
    spool::{Chunk, ChunkSpool},
    store::{
        audit::audit,
        database::{Database, DatabaseOptions},
        newest,
        writer::{Committed, Writer},
    },
};
use arrow::array::{
    FixedSizeBinaryArray, Float64Array, Int32Array, Int64Array, StringArray,
    TimestampMicrosecondArray,
};
use std::sync::Arc;

/// A store whose spool is in `dir`, and the spool as a node uses it.
fn open(dir: &Path) -> (Writer, ChunkSpool) {
    let options = DatabaseOptions {
        file: dir.join("t.duckdb"),
        memory_limit_mib: 512,
        max_spill_mib: 1024,
        threads: 2,
        chunks: Some(crate::spool::chunk_folder(&dir.join("spool"))),
    };
    let writer = Writer::new(Database::open(options).unwrap()).unwrap();
    (writer, ChunkSpool::new(&dir.join("spool"), "n").unwrap())
}

fn source(name: &str) -> SourceName {
    SourceName::upload("s", name)
}

fn opened(writer: &mut Writer, name: &str) -> Token {
    let open = OpenRequest {
        source: source(name),
        owner: "test".into(),
        attributes: SourceAttributes::default(),
        start: 0,
        low: 0,
        high: 1_000_000,
        ephemeral: false,
        partitions: None,
        ends: Vec::new(),
    };
    match writer.open_source(&open).unwrap() {
        OpenReply::Opened { token, .. } => token,
        other => panic!("{other:?}"),
    }
}

/// A row each for the positions `[from, to)`, with everything that a row can hold.
fn rows(from: i64, to: i64) -> RecordBatch {
    const NAMES: [&str; 6] =
        ["e", "Stra\u{df}e \u{1f600}", "", "it's \"q\"", "a\0b", "\u{2028}\n\t"];
    const VALUES: [Option<f64>; 7] = [
        Some(1.5),
        None,
        Some(-0.0),
        Some(f64::MAX),
        Some(f64::MIN_POSITIVE),
        Some(0.1),
        Some(f64::NEG_INFINITY),
    ];
    const TIMES: [i64; 5] =
        [0, -1, 1_700_000_000_123_456, 253_402_300_799_999_999, -62_135_596_800_000_000];
    let pos: Vec<i64> = (from..to).collect();
    let of = |n: usize| pos.iter().map(move |p| p.unsigned_abs() as usize % n);
    let times = |shift: usize| {
        let times = pos.iter().map(|p| TIMES[(p.unsigned_abs() as usize + shift) % TIMES.len()]);
        Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC"))
    };
    let ids =
        pos.iter().map(|p| (p % 3 != 0).then(|| (*p as u128 * 0x1234_5678_9abc).to_be_bytes()));
    RecordBatch::try_new(
        feature_row_schema(),
        vec![
            Arc::new(StringArray::from_iter_values(of(NAMES.len()).map(|i| NAMES[i]))),
            Arc::new(StringArray::from_iter_values(pos.iter().map(|p| format!("f{}", p % 5)))),
            Arc::new(Float64Array::from_iter(of(VALUES.len()).map(|i| VALUES[i]))),
            times(0),
            times(1),
            Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(ids, 16).unwrap()),
            Arc::new(Int64Array::from(pos.clone())),
            Arc::new(Int32Array::from(vec![0; pos.len()])),
        ],
    )
    .unwrap()
}

/// The write of positions `[from, to)` with rows that travel along.
fn sent(name: &str, token: Token, from: i64, to: i64) -> WriteRequest {
    let n = to - from;
    let part = PartHeader {
        source: source(name),
        token,
        from,
        to,
        n_in: n,
        n_kept: n,
        n_dead: 0,
        n_filtered: 0,
        n_rows: n,
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
        rows: vec![rows(from, to)],
        dead: vec![RecordBatch::new_empty(dead_letter_schema())],
    }
}

/// The same with its rows in a chunk.
fn spooled(
    spool: &ChunkSpool,
    name: &str,
    token: Token,
    from: i64,
    to: i64,
) -> (WriteRequest, Chunk) {
    let mut write = sent(name, token, from, to);
    let chunk = spool.write(&write.rows[0]).unwrap();
    write.rows[0] = RecordBatch::new_empty(feature_row_schema());
    write.header.parts[0].chunk = Some(chunk.file().clone());
    (write, chunk)
}

fn decisions(committed: &Committed) -> Vec<Decision> {
    committed.verdicts.iter().flatten().map(|v| v.decision).collect()
}

fn count(writer: &Writer, sql: &str) -> i64 {
    writer.database().connection().query_row(sql, [], |row| row.get(0)).unwrap()
}

fn sound(writer: &Writer) {
    let audit = audit(writer.database().connection(), 0).unwrap();
    let broken: Vec<_> = audit.checks.iter().filter(|c| !c.ok && c.id != "uploads_whole").collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Rows of a source in the order of the table, all columns but those that differ by source.
fn stored(writer: &Writer, source_no: i32) -> Vec<String> {
    let sql = "SELECT to_json(t)::VARCHAR FROM (
                 SELECT entity_id, feature_name, value::VARCHAR AS value, epoch_us(event_timestamp) AS t,
                        epoch_us(created_at) AS c, event_id, epoch_us(available_at) AS a, pos, sub
                 FROM features_table WHERE source_no = ? ORDER BY rowid) t";
    let mut statement = writer.database().connection().prepare(sql).unwrap();
    statement.query_map([source_no], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

#[test]
fn a_chunk_gives_the_same_table_as_rows_that_were_sent() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, spool) = open(dir.path());
    let (a, b) = (opened(&mut writer, "a"), opened(&mut writer, "b"));
    let first = sent("a", a, 0, 3_000);
    let (second, chunk) = spooled(&spool, "b", b, 0, 3_000);
    let (third, _kept) = spooled(&spool, "b", b, 3_000, 3_010);
    let fourth = sent("a", a, 3_000, 3_010);
    // In one transaction, so that even `available_at` is the same.
    let committed = writer.apply(&[&first, &second, &third, &fourth]).unwrap();
    assert_eq!(decisions(&committed), [Decision::Apply; 4]);
    assert_eq!(committed.rows, 6_020);
    let (by_queue, by_chunk) = (stored(&writer, 1), stored(&writer, 2));
    assert_eq!(by_queue.len(), 3_010);
    assert_eq!(by_queue, by_chunk);
    // In the order of the writes.
    let order =
        "SELECT count(*) FROM (SELECT batch_seq < lag(batch_seq) OVER (ORDER BY rowid) AS back
                 FROM features_table) WHERE back";
    assert_eq!(count(&writer, order), 0);
    sound(&writer);
    // Answered as done, whether the file is there or not.
    drop(chunk);
    assert_eq!(decisions(&writer.apply(&[&second]).unwrap()), [Decision::Duplicate]);
}

#[test]
fn a_chunk_is_read_back_as_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, spool) = open(dir.path());
    for rows in
        [rows(0, 2_500), rows(7, 9).slice(1, 1), RecordBatch::new_empty(feature_row_schema())]
    {
        let chunk = spool.write(&rows).unwrap();
        let read = load(writer.database().connection(), chunk.path()).unwrap();
        assert_eq!(read, rows);
    }
}

#[test]
fn a_chunk_that_cannot_be_used_is_a_gap_and_so_is_what_comes_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, spool) = open(dir.path());
    let (a, b) = (opened(&mut writer, "a"), opened(&mut writer, "b"));
    let (good, kept) = spooled(&spool, "a", a, 0, 10);
    let behind = sent("a", a, 10, 20);
    let mut position = 0;
    let names =
        ["../t.duckdb", "..", "", "/etc/passwd", "no-such.parquet", "folder", "link.parquet"];
    std::fs::create_dir(dir.path().join("spool/chunks/folder")).unwrap();
    // The very bytes, but through a link that leads out of the folder.
    let outside = dir.path().join("outside.parquet");
    std::fs::copy(kept.path(), &outside).unwrap();
    std::os::unix::fs::symlink(&outside, dir.path().join("spool/chunks/link.parquet")).unwrap();
    let mut bad: Vec<WriteRequest> = names
        .iter()
        .map(|name| {
            let mut write = good.clone();
            write.header.parts[0].chunk.as_mut().unwrap().name = (*name).into();
            write
        })
        .collect();
    let mut other_hash = good.clone();
    other_hash.header.parts[0].chunk.as_mut().unwrap().sha256 = "0".repeat(64);
    bad.push(other_hash);
    // A file that is what it should be, but no Parquet.
    std::fs::write(dir.path().join("spool/chunks/broken.parquet"), b"PAR1 not at all").unwrap();
    let mut broken = good.clone();
    let sha256 = format!("{:x}", Sha256::digest(b"PAR1 not at all"));
    broken.header.parts[0].chunk = Some(ChunkFile { name: "broken.parquet".into(), sha256 });
    bad.push(broken);
    for write in bad {
        let beside = sent("b", b, position, position + 5);
        position += 5;
        let committed = writer.apply(&[&write, &beside, &behind]).unwrap();
        assert_eq!(
            decisions(&committed),
            [Decision::Gap, Decision::Apply, Decision::Gap],
            "{:?}",
            write.header.parts[0].chunk
        );
        assert_eq!(committed.verdicts[0][0].next_pos, 0, "it is read again from there");
        assert_eq!(count(&writer, "SELECT count(*) FROM features_table WHERE source_no = 1"), 0);
    }
    assert_eq!(decisions(&writer.apply(&[&good, &behind]).unwrap()), [Decision::Apply; 2]);
    sound(&writer);
}

#[test]
fn a_store_without_a_spool_takes_no_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, spool) = open(dir.path());
    let token = opened(&mut writer, "a");
    let (write, _kept) = spooled(&spool, "a", token, 0, 10);
    drop(writer);
    let file = dir.path().join("t.duckdb");
    let options = DatabaseOptions {
        file,
        memory_limit_mib: 256,
        max_spill_mib: 1024,
        threads: 1,
        chunks: None,
    };
    let mut writer = Writer::new(Database::open(options).unwrap()).unwrap();
    assert_eq!(decisions(&writer.apply(&[&write]).unwrap()), [Decision::Gap]);
}

#[test]
fn a_chunk_with_another_number_of_rows_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, spool) = open(dir.path());
    let token = opened(&mut writer, "a");
    let (mut write, _kept) = spooled(&spool, "a", token, 0, 10);
    write.header.parts[0].n_rows = 9;
    let error = writer.apply(&[&write]).unwrap_err();
    assert!(matches!(error, StoreError::Unbalanced(_)), "{error:?}");
    let both = &mut write.header.parts[0];
    both.n_rows = 10;
    // Rows in the entry as well are nobody's.
    write.rows[0] = rows(0, 10);
    assert!(matches!(writer.apply(&[&write]), Err(StoreError::Unbalanced(_))));
    assert_eq!(count(&writer, "SELECT count(*) FROM features_table"), 0);
    assert_eq!(count(&writer, "SELECT count(*) FROM ingest_ledger"), 0);
}

#[test]
fn rows_of_a_chunk_that_duckdb_refuses_become_dead_letters() {
    let dir = tempfile::tempdir().unwrap();
    let connection = Connection::open(dir.path().join("t.duckdb")).unwrap();
    let table = crate::store::schema::DDL
        .split_inclusive(");")
        .find(|statement| statement.contains("CREATE TABLE IF NOT EXISTS features_table"))
        .unwrap()
        .replace(
            "pos             BIGINT NOT NULL",
            "pos BIGINT NOT NULL CHECK (pos NOT IN (4, 6))",
        );
    connection.execute_batch(&table).unwrap();
    drop(connection);
    let (mut writer, spool) = open(dir.path());
    let (a, b) = (opened(&mut writer, "a"), opened(&mut writer, "b"));
    let (mut refused, chunk) = spooled(&spool, "a", a, 0, 10);
    let beside = sent("b", b, 10, 12);
    let error = writer.apply(&[&refused, &beside]).unwrap_err();
    assert!(matches!(error, StoreError::Refused(_)), "{error:?}");
    writer.keep_chunks(&refused);
    let kept = dir.path().join(format!("spool/chunks/quarantined-{}", chunk.file().name));
    assert!(kept.is_file());
    writer.take_in(&mut refused).unwrap();
    assert_eq!(refused.rows[0], rows(0, 10));
    assert_eq!(refused.header.parts[0].chunk, None);
    let isolated = writer.isolate(&refused).unwrap().unwrap();
    let positions: Vec<i64> = isolated.refused[0].iter().map(|row| row.pos).collect();
    assert_eq!(positions, [4, 6]);
    assert_eq!(decisions(&writer.apply(&[&isolated.write]).unwrap()), [Decision::Apply]);
    assert_eq!(count(&writer, "SELECT count(*) FROM features_table"), 8);
    assert_eq!(count(&writer, "SELECT count(*) FROM dead_letters WHERE stage = 'store'"), 2);
    sound(&writer);
}

#[test]
fn what_a_chunk_has_put_into_duckdb_is_found_for_the_online_store() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, spool) = open(dir.path());
    let (a, b) = (opened(&mut writer, "a"), opened(&mut writer, "b"));
    let (write, chunk) = spooled(&spool, "a", a, 0, 2_000);
    let (next, _kept) = spooled(&spool, "a", a, 2_000, 3_000);
    writer.apply(&[&sent("b", b, 0, 2_000), &write, &next]).unwrap();
    drop(chunk);
    let sent_values = crate::online::newest_of_rows(|_| true, 1, &rows(0, 2_000));
    let connection = writer.database().connection();
    let stored = newest::newest_of_part(connection, 1, 0, 2_000).unwrap();
    assert!(stored.iter().all(|v| v.token_number == a.number && v.source == "upload:s/a"));
    let sorted = |mut values: Vec<crate::messages::OnlineValue>| {
        values
            .sort_by(|a, b| (&a.entity_id, &a.feature_name).cmp(&(&b.entity_id, &b.feature_name)));
        values
    };
    let stored = sorted(stored.into_iter().map(|v| v.value).collect());
    assert_eq!(stored.len(), 30, "every name with every feature");
    assert_eq!(stored, sorted(sent_values));
}

#[test]
fn duckdb_reads_chunks_and_no_other_file() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, spool) = open(dir.path());
    let chunk = spool.write(&rows(0, 3)).unwrap();
    // The upload itself, in the spool beside the chunks, and a file beside the database.
    let upload = dir.path().join("spool/u.parquet");
    let outside = dir.path().join("outside.parquet");
    std::fs::copy(chunk.path(), &upload).unwrap();
    std::fs::copy(chunk.path(), &outside).unwrap();
    let inside = format!("SELECT count(*) FROM read_parquet('{}')", chunk.path().display());
    let refused = [
        "SELECT count(*) FROM read_csv('/etc/passwd')".to_owned(),
        "SELECT count(*) FROM read_text('/etc/passwd')".to_owned(),
        format!("SELECT count(*) FROM read_parquet('{}')", upload.display()),
        format!("SELECT count(*) FROM read_parquet('{}')", outside.display()),
        format!(
            "SELECT count(*) FROM read_parquet('{}/../u.parquet')",
            chunk.path().parent().unwrap().display()
        ),
        format!("COPY features_table TO '{}'", dir.path().join("x.csv").display()),
        format!("ATTACH '{}'", dir.path().join("other.duckdb").display()),
        "SET enable_external_access = true".to_owned(),
        "SET allowed_directories = ['/']".to_owned(),
        "INSTALL httpfs".to_owned(),
    ];
    for again in 0..2 {
        let readers = writer.database().readers();
        let check = |connection: &Connection| {
            assert_eq!(connection.query_row(&inside, [], |r| r.get::<_, i64>(0)).unwrap(), 3);
            for sql in &refused {
                assert!(connection.execute_batch(sql).is_err(), "{sql} (opened {again} times)");
            }
        };
        check(writer.database().connection());
        readers.with(|connection| check(connection)).unwrap();
        writer.reopen().unwrap();
    }
    assert!(!dir.path().join("x.csv").exists());
}
