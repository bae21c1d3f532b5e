//! A judge that sees nothing proves nothing: each defect is planted and must be found.

use crate::support::RedisServer;
use duckdb::Connection;
use millstream::{
    chaos::judge::{
        dead_letters_complete, no_position_is_skipped, online_equals_newest, order_of_batches,
        order_of_entities,
    },
    config::Config,
    generate::EventId,
    online::format_field,
    protocol::version::Version,
    queue::Keys,
    store::{audit::Check, schema::DDL},
};

/// Two batches of one source with the events 0 to 19 of one producer, entities in turn `a` and `b`,
/// a dead letter at position 20.
fn books() -> Connection {
    let store = Connection::open_in_memory().unwrap();
    store.execute_batch(DDL).unwrap();
    let run = EventId::run_tag(1, 0);
    let rows: Vec<String> = (0..20u64)
        .map(|seq| {
            let id = EventId::new(1_700_000_000_000 + seq, run, 0, seq);
            let entity = if seq % 2 == 0 { 'a' } else { 'b' };
            format!(
                "('{entity}', 'f', {seq}, '2024-01-01 00:00:{seq:02}+00', '2024-01-01 00:00:00+00', '{id}', now(),
                  {}, 1, {seq}, 0)",
                1 + seq / 10
            )
        })
        .collect();
    store
        .execute_batch(&format!(
            "INSERT INTO sources (source_no, source, token, token_no, owner, next_pos, start_pos,
                                  cluster_id, topic_id, updated_at) VALUES
                 (1, 'kafka:features/t/0', gen_random_uuid(), 1, 'o', 21, 0, NULL, NULL, now());
             INSERT INTO ingest_ledger VALUES
                 (1, 1, 1, 0, 10, 10, 10, 0, 0, 10, 'x', 'h', 'n', now()),
                 (2, 1, 1, 10, 21, 11, 10, 1, 0, 10, 'x', 'h', 'n', now());
             INSERT INTO features_table VALUES {};
             INSERT INTO dead_letters VALUES (2, 1, 20, NULL, NULL, 'decode', 'invalid_json', '',
                 'x'::BLOB, 1, sha256('x'::BLOB), 'h', now(), now());",
            rows.join(", ")
        ))
        .unwrap();
    store
}

#[test]
fn planted_defects_of_order_and_of_dead_letters_are_found() {
    type Question = fn(&Connection) -> duckdb::Result<Check>;
    let swap =
        "UPDATE features_table SET event_id = (SELECT event_id FROM features_table WHERE pos = 18)
                WHERE pos = 4";
    let again = "DELETE FROM features_table WHERE pos = 2; INSERT INTO features_table
                 SELECT 'a', 'f', 2, now(), now(), NULL, now(), 1, 1, 2, 0";
    let defects: [(&str, Question); 12] = [
        ("UPDATE ingest_ledger SET from_pos = 9 WHERE batch_seq = 2", no_position_is_skipped),
        ("UPDATE features_table SET batch_seq = 2 WHERE pos = 3", order_of_batches),
        ("UPDATE features_table SET batch_seq = 1 WHERE pos = 15", order_of_batches),
        (again, order_of_batches),
        (swap, order_of_entities),
        ("UPDATE features_table SET batch_seq = 3 WHERE pos = 3", order_of_entities),
        ("UPDATE dead_letters SET reason = 'because'", dead_letters_complete),
        ("UPDATE dead_letters SET stage = ''", dead_letters_complete),
        ("UPDATE dead_letters SET raw = 'y'::BLOB", dead_letters_complete),
        ("UPDATE dead_letters SET raw_len = 2", dead_letters_complete),
        ("UPDATE dead_letters SET raw = NULL", dead_letters_complete),
        ("UPDATE dead_letters SET batch_seq = 7", dead_letters_complete),
    ];
    for (defect, question) in defects {
        let store = books();
        let sound = question(&store).unwrap();
        assert!(sound.ok, "{sound:?}");
        store.execute_batch(defect).unwrap();
        let found = question(&store).unwrap();
        assert!(!found.ok, "{defect} was not found by {}", found.id);
    }
}

#[test]
fn planted_defects_of_the_online_store_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let redis = RedisServer::start(dir.path());
    let (mut connection, keys) = (redis.connection(), Keys::new("planted"));
    let (store, streams) = (books(), Config::default().streams);
    let version = |pos: i64| Version {
        event_timestamp: 1_704_067_200_000_000 + pos * 1_000_000,
        created_at: 1_704_067_200_000_000,
        source_no: 1,
        pos,
        sub: 0,
    };
    let field = |value: i64, pos: i64| format_field(Some(value as f64), &version(pos), 1);
    let defects: [&[(&str, &str, String)]; 6] = [
        &[("entity:a", "f", field(16, 16))],
        &[("entity:a", "f", field(17, 18))],
        &[("entity:a", "f", field(20, 20))],
        &[("entity:c", "f", field(18, 18))],
        &[("entity:a", "g", field(18, 18))],
        &[("feature:f", "version", version(18).pack(1))],
    ];
    for defect in [&[][..]].into_iter().chain(defects) {
        let () = redis::cmd("FLUSHALL").query(&mut connection).unwrap();
        let sound = [
            ("entity:a", "f", field(18, 18)),
            ("entity:b", "f", field(19, 19)),
            ("feature:f", "version", version(19).pack(1)),
        ];
        for (key, name, value) in sound.iter().chain(defect) {
            let key = format!("planted:{key}");
            let () =
                redis::cmd("HSET").arg(key).arg(name).arg(value).query(&mut connection).unwrap();
        }
        let found = online_equals_newest(&store, &mut connection, &keys, &streams).unwrap();
        assert_eq!(found.ok, defect.is_empty(), "{defect:?}: {found:?}");
    }
    let () = redis::cmd("DEL").arg("planted:entity:b").query(&mut connection).unwrap();
    let found = online_equals_newest(&store, &mut connection, &keys, &streams).unwrap();
    assert!(!found.ok, "one is missing");
}
