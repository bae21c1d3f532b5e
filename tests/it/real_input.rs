//! Real files and other producers as input.

use crate::support::{Bench, broker, left_out, millstream, run_json};
use std::{
    io::Write,
    process::{Command, Stdio},
};

const ROWS: usize = 500;

/// Values that survive CSV, NDJSON and Parquet alike.
fn line(i: usize) -> String {
    let value = if i.is_multiple_of(7) { "null".to_owned() } else { format!("{}.5", i) };
    format!(
        r#"{{"entity_id":"e{}","feature_name":"f","value":{value},"validated_at":"2024-05-01T10:{:02}:{:02}Z"}}"#,
        i % 50,
        i / 60 % 60,
        i % 60
    )
}

#[test]
fn a_replayed_file_of_each_format_lands_row_by_row() {
    let Some(brokers) = broker("real_input: replay") else { return };
    let bench = Bench::new(&brokers);
    let ndjson = bench.dir.path().join("rows.ndjson");
    std::fs::write(&ndjson, (0..ROWS).map(|i| line(i) + "\n").collect::<String>()).unwrap();
    let (csv, parquet) = (bench.dir.path().join("rows.csv"), bench.dir.path().join("rows.parquet"));
    let convert = format!(
        "CREATE TABLE t AS SELECT entity_id, feature_name, value, validated_at::TIMESTAMPTZ AS validated_at
             FROM read_json('{}', columns = {{entity_id: 'VARCHAR', feature_name: 'VARCHAR', value: 'DOUBLE',
                                              validated_at: 'VARCHAR'}});
         COPY (SELECT * REPLACE (strftime(validated_at AT TIME ZONE 'UTC', '%Y-%m-%dT%H:%M:%SZ') AS validated_at)
               FROM t) TO '{}';
         COPY t TO '{}' (FORMAT parquet);",
        ndjson.display(),
        csv.display(),
        parquet.display()
    );
    duckdb::Connection::open_in_memory().unwrap().execute_batch(&convert).unwrap();
    for file in [&ndjson, &csv, &parquet] {
        let sent = run_json(
            millstream()
                .args([
                    "generate",
                    "--json",
                    "--flat-out",
                    "--topic",
                    bench.topic("features"),
                    "--config",
                ])
                .arg(bench.config_file())
                .arg("--replay")
                .arg(file),
        );
        assert_eq!((sent["sent"].as_u64(), sent["refused"].as_u64()), (Some(ROWS as u64), Some(0)));
    }
    let node = bench.node("process,store");
    let report = node.verify();
    assert_eq!(report["landed_rows"], 3 * ROWS);
    // Each file gave the same rows, and each event a tracking number of its own.
    let groups = node.query(
        "SELECT count(*) AS n FROM (SELECT entity_id, value, event_timestamp FROM features_table
         GROUP BY ALL HAVING count(*) = 3)",
    );
    assert_eq!(groups[0]["n"], ROWS);
    let ids = node.query("SELECT count(DISTINCT event_id) AS n, min(uuid_extract_version(event_id)) AS v FROM features_table");
    assert_eq!((&ids[0]["n"], &ids[0]["v"]), (&serde_json::json!(3 * ROWS), &serde_json::json!(7)));
    // The topic is keyed by entity: each entity is in one partition.
    let spread = node.query("SELECT max(n) AS n FROM (SELECT count(DISTINCT source_no) AS n FROM features_table GROUP BY entity_id)");
    assert_eq!(spread[0]["n"], 1);
    node.stop_well();
}

#[test]
fn kcat_works_as_a_producer() {
    let Some(brokers) = broker("real_input: kcat") else { return };
    if Command::new("kcat").arg("-V").stdout(Stdio::null()).status().is_err() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must have kcat");
        return left_out("real_input: kcat", "needs kcat");
    }
    let bench = Bench::new(&brokers);
    bench.create_topics();
    let id = "018f3a3e-0000-7000-8000-000000000001";
    let mut kcat = Command::new("kcat")
        .args([
            "-P",
            "-b",
            &brokers,
            "-t",
            bench.topic("features"),
            "-K",
            "|",
            "-H",
            &format!("event_id={id}"),
        ])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(kcat.stdin.take().unwrap(), "e1|{}", line(1)).unwrap();
    assert!(kcat.wait().unwrap().success());
    let node = bench.node("process,store");
    assert_eq!(node.verify()["landed_rows"], 1);
    let rows = node.query("SELECT entity_id, event_id::VARCHAR AS event_id FROM features_table");
    assert_eq!(
        (&rows[0]["entity_id"], &rows[0]["event_id"]),
        (&serde_json::json!("e1"), &serde_json::json!(id))
    );
    node.stop_well();
}
