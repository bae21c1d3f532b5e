//! An audit that sees nothing proves nothing: each defect is planted and must be found.

use super::*;
use crate::store::newest::newest_values;
use crate::store::schema::DDL;

/// Two batches of one source: positions 0 to 10 and 10 to 20, a row each, one dead letter.
fn books() -> Connection {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(DDL).unwrap();
    connection
        .execute_batch(
            "INSERT INTO sources (source_no, source, token, token_no, owner, next_pos, start_pos, cluster_id,
                                  topic_id, updated_at) VALUES
                 (1, 'kafka:s/t/0', gen_random_uuid(), 1, 'o', 20, 0, NULL, NULL, now());
             INSERT INTO ingest_ledger VALUES
                 (1, 1, 1, 0, 10, 10, 9, 1, 0, 9, 'x', 'h', 'n', now()),
                 (2, 1, 1, 10, 20, 10, 8, 0, 2, 8, 'x', 'h', 'n', now());
             INSERT INTO features_table
                 SELECT 'e', 'f', 1, now(), now(), NULL, now(), 1, 1, i, 0 FROM range(9) t(i);
             INSERT INTO features_table
                 SELECT 'e', 'f', 1, now(), now(), NULL, now(), 2, 1, i, 0 FROM range(10, 18) t(i);
             INSERT INTO dead_letters VALUES
                 (1, 1, 9, NULL, NULL, 'decode', 'invalid_json', '', 'x'::BLOB, 1, repeat('a', 64), 'h', now(), now());
             INSERT INTO replays VALUES ('r', 'replay:s/r', 's', 'n', 2, now());
             INSERT INTO dead_letter_replays VALUES
                 (1, 9, 'r', now(), 0, NULL, now()), (1, 12, 'r', now(), 1, NULL, now());
             INSERT INTO sources (source_no, source, token, token_no, owner, next_pos, start_pos, updated_at) VALUES
                 (2, 'upload:s/u', gen_random_uuid(), 1, 'o', 0, 0, now());
             INSERT INTO uploads VALUES
                 ('u', 'k', 'h', 's', 'upload:s/u', 'n', 'f', 'csv', 'none', 9, 3, now()),
                 ('v', 'l', 'h', 's', 'upload:s/v', 'n', 'f', 'csv', 'none', 9, 0, now());",
        )
        .unwrap();
    connection
}

#[test]
fn sound_books_pass() {
    let audit = audit(&books(), 0).unwrap();
    assert!(audit.ok(), "{audit:#?}");
    assert_eq!(audit.totals.events, 20);
}

#[test]
fn every_planted_defect_is_found_by_its_check() {
    for (defect, check) in [
        ("UPDATE sources SET next_pos = 19 WHERE source_no = 1", "ledger_contiguous"),
        ("UPDATE ingest_ledger SET from_pos = 11 WHERE batch_seq = 2", "ledger_contiguous"),
        ("UPDATE sources SET start_pos = 1 WHERE source_no = 1", "ledger_contiguous"),
        ("DELETE FROM ingest_ledger WHERE batch_seq = 1", "ledger_contiguous"),
        ("UPDATE ingest_ledger SET source_no = 7 WHERE batch_seq = 2", "ledger_contiguous"),
        ("UPDATE ingest_ledger SET n_filtered = 3 WHERE batch_seq = 2", "ledger_counts"),
        ("DELETE FROM features_table WHERE pos = 3", "rows_match_ledger"),
        ("UPDATE features_table SET pos = 4 WHERE pos = 3", "rows_match_ledger"),
        ("UPDATE features_table SET pos = 4 WHERE pos = 3", "no_duplicates"),
        ("INSERT INTO features_table SELECT * FROM features_table WHERE pos = 3", "no_duplicates"),
        ("UPDATE features_table SET pos = 999 WHERE pos = 3", "positions_in_range"),
        ("UPDATE features_table SET source_no = 7 WHERE pos = 3", "positions_in_range"),
        ("UPDATE dead_letters SET pos = 19", "positions_in_range"),
        ("UPDATE features_table SET pos = 9 WHERE pos = 3", "kept_or_dead"),
        ("DELETE FROM dead_letters", "dead_letters_match_ledger"),
        ("UPDATE dead_letters SET reason = ''", "dead_letters_complete"),
        ("UPDATE dead_letters SET raw_sha256 = NULL", "dead_letters_complete"),
        ("DELETE FROM dead_letter_replays WHERE place = 1", "replays_whole"),
        ("DELETE FROM replays", "replays_whole"),
        ("UPDATE dead_letter_replays SET place = 2 WHERE place = 1", "replays_whole"),
        ("UPDATE dead_letter_replays SET place = 0", "replays_whole"),
        ("UPDATE dead_letter_replays SET pos = 9", "replays_whole"),
        ("UPDATE uploads SET idempotency_key = 'k'", "uploads_whole"),
        ("UPDATE uploads SET upload_id = 'u'", "uploads_whole"),
        ("UPDATE uploads SET source = 'upload:s/u'", "uploads_whole"),
        ("UPDATE sources SET next_pos = 4 WHERE source_no = 2", "uploads_whole"),
        ("DELETE FROM uploads WHERE upload_id = 'u'", "uploads_whole"),
    ] {
        let connection = books();
        connection.execute_batch(defect).unwrap();
        let audit = audit(&connection, 0).unwrap();
        let found = audit.checks.iter().find(|c| c.id == check).unwrap();
        assert!(!found.ok, "{defect} was not found by {check}");
    }
}

#[test]
fn the_newest_value_follows_the_version_order() {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(DDL).unwrap();
    connection
        .execute_batch(
            "INSERT INTO sources (source_no, source, token, token_no, owner, next_pos, start_pos, cluster_id,
                                  topic_id, updated_at) VALUES
                 (1, 'kafka:s/t/0', gen_random_uuid(), 1, 'o', 20, 0, NULL, NULL, now());
             INSERT INTO features_table VALUES
                 ('e', 'f', 1, '2024-01-02 00:00:00+00', '2024-01-01 00:00:00+00', NULL, now(), 1, 1, 5, 0),
                 ('e', 'f', 2, '2024-01-02 00:00:00+00', '2024-01-03 00:00:00+00', NULL, now(), 1, 1, 4, 0),
                 ('e', 'f', 3, '2024-01-01 00:00:00+00', '2024-01-09 00:00:00+00', NULL, now(), 1, 1, 6, 0),
                 ('e', 'f', NULL, '2024-01-02 00:00:00+00', '2024-01-03 00:00:00+00', NULL, now(), 1, 1, 4, 1);",
        )
        .unwrap();
    let newest = newest_values(&connection).unwrap();
    assert_eq!(newest.len(), 1);
    let newest = &newest[0].value;
    assert_eq!((newest.value, newest.version.pos, newest.version.sub), (None, 4, 1));
}
