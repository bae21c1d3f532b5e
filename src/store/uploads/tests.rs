use super::*;
use crate::store::schema::{self, DDL};

fn database() -> Connection {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(DDL).unwrap();
    connection
}

fn upload(id: &str, key: &str) -> RegisterUpload {
    RegisterUpload {
        upload_id: id.into(),
        idempotency_key: key.into(),
        stream: "clicks".into(),
        owner: "node-1".into(),
        sha256: "ab".into(),
        filename: "d\u{e4}ta.csv".into(),
        format: "csv".into(),
        compression: "none".into(),
        size: 99,
        rows: 10,
        adopt: false,
    }
}

/// Registers a new upload; its source.
fn registered(connection: &Connection, upload: &RegisterUpload) -> SourceName {
    register(connection, upload, 7).unwrap();
    SourceName::upload(&upload.stream, &upload.upload_id)
}

/// What stands in the table, a row a line.
fn rows(connection: &Connection) -> Vec<String> {
    let sql =
        "SELECT concat_ws(' ', upload_id, idempotency_key, sha256, stream, source, owner, filename,
                                format, compression, size, rows, epoch_us(registered_at))
               FROM uploads ORDER BY ALL";
    let mut statement = connection.prepare(sql).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

fn at(connection: &Connection, source: &SourceName, source_no: i32, next_pos: i64) {
    connection
        .execute(
            "INSERT INTO sources (source_no, source, token, token_no, owner, next_pos, start_pos, updated_at)
             VALUES (?, ?, uuid(), 1, 'o', ?, 0, now())",
            params![source_no, source.0.as_ref(), next_pos],
        )
        .unwrap();
}

#[test]
fn a_new_upload_is_written_down_and_the_same_request_is_the_same() {
    let connection = database();
    let first = register(&connection, &upload("u1", "k"), 7).unwrap();
    let expected = UploadRegistered { upload_id: "u1".into(), conflict: None, landed: false };
    assert_eq!(first, expected);
    let line = "u1 k ab clicks upload:clicks/u1 node-1 d\u{e4}ta.csv csv none 99 10 7";
    assert_eq!(rows(&connection), [line]);
    assert_eq!(register(&connection, &upload("u1", "k"), 8).unwrap(), expected, "again");
    assert_eq!(rows(&connection), [line]);
}

#[test]
fn the_same_bytes_under_a_known_key_are_the_same_upload() {
    let connection = database();
    register(&connection, &upload("u1", "k"), 7).unwrap();
    let before = rows(&connection);
    let mut other = upload("u2", "k");
    (other.owner, other.filename) = ("node-2".into(), "other.csv".into());
    let known = register(&connection, &other, 9).unwrap();
    assert_eq!((known.upload_id.as_str(), known.conflict, known.landed), ("u1", None, false));
    assert_eq!(rows(&connection), before);
    // Another key is another upload, whatever its bytes.
    assert_eq!(register(&connection, &upload("u3", "k2"), 9).unwrap().upload_id, "u3");
    assert_eq!(rows(&connection).len(), 2);
}

#[test]
fn an_upload_has_landed_when_its_source_has_passed_its_rows() {
    let connection = database();
    let source = registered(&connection, &upload("u1", "k"));
    let landed = || register(&connection, &upload("u2", "k"), 9).unwrap().landed;
    assert!(!landed(), "nobody has opened its source");
    at(&connection, &source, 1, 9);
    assert!(!landed());
    at(&connection, &source, 2, 10);
    assert!(landed(), "the newest row of a source counts");
    let empty = RegisterUpload { rows: 0, ..upload("u4", "empty") };
    assert!(register(&connection, &empty, 9).unwrap().landed, "there is nothing to do");
}

#[test]
fn another_node_adopts_what_has_not_landed() {
    let connection = database();
    let source = registered(&connection, &upload("u1", "k"));
    let adopting = |id: &str, owner: &str| RegisterUpload {
        owner: owner.into(),
        adopt: true,
        ..upload(id, "k")
    };
    for _ in 0..2 {
        let adopted = register(&connection, &adopting("u2", "node-2"), 9).unwrap();
        assert_eq!(adopted.upload_id, "u1");
        let line = &rows(&connection)[0];
        assert!(line.contains(" node-2 ") && line.ends_with(" 7"), "{line}");
    }
    at(&connection, &source, 1, 10);
    let late = register(&connection, &adopting("u3", "node-3"), 9).unwrap();
    assert!(late.landed);
    assert!(rows(&connection)[0].contains(" node-2 "), "it has landed: it moves no more");
}

#[test]
fn a_key_that_stands_for_something_else_is_refused_with_what_differs() {
    let connection = database();
    register(&connection, &upload("u1", "k"), 7).unwrap();
    let before = rows(&connection);
    let base = || RegisterUpload { adopt: true, owner: "node-2".into(), ..upload("u2", "k") };
    for (asked, words) in [
        (RegisterUpload { sha256: "cd".into(), ..base() }, vec!["other bytes"]),
        (RegisterUpload { stream: "x".into(), ..base() }, vec!["stream `clicks` instead of `x`"]),
        (
            RegisterUpload { format: "json".into(), ..base() },
            vec!["format `csv` instead of `json`"],
        ),
        (
            RegisterUpload { compression: "gzip".into(), sha256: "cd".into(), ..base() },
            vec!["`k`", "other bytes and the compression `none` instead of `gzip`"],
        ),
        // Also of a request that has the id of the known upload.
        (RegisterUpload { upload_id: "u1".into(), sha256: "cd".into(), ..base() }, vec!["bytes"]),
    ] {
        let refused = register(&connection, &asked, 9).unwrap();
        let conflict = refused.conflict.unwrap();
        assert!(words.iter().all(|word| conflict.contains(word)), "{conflict}");
        assert_eq!(refused.upload_id, "u1");
        assert_eq!(rows(&connection), before, "nothing changes");
    }
}

#[test]
fn an_older_database_gets_the_table_on_opening() {
    let connection = Connection::open_in_memory().unwrap();
    connection
        .execute_batch(
            "CREATE TABLE uploads (upload_id UUID NOT NULL, idempotency_key VARCHAR NOT NULL,
                 sha256 VARCHAR NOT NULL, filename VARCHAR NOT NULL, format VARCHAR NOT NULL,
                 size BIGINT NOT NULL, state VARCHAR NOT NULL, n_total BIGINT, reason VARCHAR,
                 updated_at TIMESTAMPTZ NOT NULL);",
        )
        .unwrap();
    schema::create(&connection).unwrap();
    register(&connection, &upload("u1", "k"), 7).unwrap();
    schema::create(&connection).unwrap();
    assert_eq!(rows(&connection).len(), 1, "what is there stays");
}
