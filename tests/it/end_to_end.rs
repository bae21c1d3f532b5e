//! The whole way: events in, rows in DuckDB, newest values in Redis.

use crate::support::{Bench, Sent, broker, expected, millstream, produce, run_json, wait_for};
use millstream::{
    chaos::processes::{fork_servers_of, workers_of},
    embedded::EmbeddedRedis,
};
use serde_json::{Value, json};
use uuid::Uuid;

#[test]
fn the_demo_ends_with_a_verdict_on_the_in_process_broker() {
    let dir = tempfile::tempdir().unwrap();
    let mut demo = millstream();
    demo.args(["demo", "--duration", "5s", "--rate", "3000", "--json"])
        .args(["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--data-dir"])
        .arg(dir.path().join("demo"));
    let report = run_json(&mut demo);
    assert_eq!(report["ok"], true, "{report:#}");
    assert_eq!((&report["lost"], &report["duplicated"]), (&json!(0), &json!(0)));
    assert!(report["produced"].as_u64().unwrap() >= 14_000, "{report:#}");
    for stream in ["features", "clicks"] {
        assert!(report["rows_by_stream"][stream].as_u64().unwrap() > 5_000, "{report:#}");
    }
    assert!(report["dead_letter_reasons"]["future_timestamp"].as_u64().unwrap() > 0, "{report:#}");
}

#[test]
fn real_kafka_one_process_and_three_give_the_same() {
    let Some(brokers) = broker("end_to_end: three processes") else { return };
    let mut three = Bench::new(&brokers);
    // The streams are generated under the shipped names, so that a generator process knows them.
    three.config.generator.rate = 4_000.0;
    let redis = EmbeddedRedis::start(&three.dir.path().join("redis")).unwrap();
    three.config.redis.url = redis.url().to_owned();
    three.create_topics();
    let store = three.node("store");
    let process = three.node("process");
    let generate = three.node("generate");
    wait_for("the store to take events", || (store.committed_events() > 12_000).then_some(()));
    generate.stop_well();
    let report = process.verify();
    assert!(report["produced"].as_u64().unwrap() > 12_000);
    assert!(report["checks"].as_array().unwrap().iter().any(|c| c["id"] == "committed_not_ahead"));
    process.stop_well();
    store.stop_well();

    let one = three.other_reader();
    let node = one.node("process,store");
    node.verify();
    node.stop_well();

    // Every column that does not tell when or by whom it was stored, in one order.
    let rows = |bench: &Bench| -> (i64, String) {
        let store = duckdb::Connection::open(bench.database()).unwrap();
        let sql = "SELECT count(*), md5(string_agg(r::VARCHAR, '\n' ORDER BY r)) FROM (
                     SELECT (source, pos, sub, entity_id, feature_name, value, event_timestamp, created_at,
                             event_id)::VARCHAR AS r
                     FROM features_table JOIN sources USING (source_no)
                     UNION ALL
                     SELECT (source, pos, event_id, entity_id, stage, reason, raw_sha256, raw_len)::VARCHAR
                     FROM dead_letters JOIN sources USING (source_no))";
        store.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
    };
    assert_eq!(rows(&three), rows(&one));
    assert!(rows(&one).0 > 10_000);
}

#[test]
fn real_kafka_every_acknowledged_event_has_its_fate() {
    let Some(brokers) = broker("end_to_end: real Kafka") else { return };
    let mut bench = Bench::new(&brokers);
    bench.config.generator.rate = 0.0;
    let tasks = bench.generate();
    wait_for("40,000 events", || (tasks.tally().acknowledged() > 40_000).then_some(()));
    tasks.stop();
    let node = bench.node("process,store");
    node.verify();
    node.stop_well();
    let report = bench.judge(&expected(&tasks));
    assert!(report.ok, "{report:#?}");
    assert_eq!((report.lost, report.duplicated), (0, 0));
}

#[test]
fn bad_records_of_every_kind_land_beside_good_ones() {
    let Some(brokers) = broker("end_to_end: bad records") else { return };
    let bench = Bench::new(&brokers);
    bench.create_topics();
    let good = |i: usize| {
        format!(
            r#"{{"entity_id":"good{i}","feature_name":"f","value":{i},"validated_at":"2024-05-01T10:00:00Z"}}"#
        )
    };
    let text = |s: &str| Some(s.as_bytes().to_vec());
    let deep = format!(r#"{{"entity_id":"e","x":{}{}}}"#, "[".repeat(500), "]".repeat(500));
    let big = good(0).replace("good0", &"x".repeat(10 << 20));
    let cases: Vec<(&str, Option<Vec<u8>>)> = vec![
        ("invalid_json", text(r#"{"entity_id":"#)),
        ("invalid_json", Some(deep.into_bytes())),
        ("invalid_utf8", Some(b"{\"entity_id\":\"\xff\xfe\"}".to_vec())),
        ("empty_entity", text(&good(0).replace("good0", ""))),
        ("missing_entity", text(&good(0).replace("entity_id", "entity"))),
        ("null_payload", None),
        ("empty_payload", text("")),
        ("invalid_json", text(&good(0).replace(":0,", ":NaN,"))),
        ("invalid_json", text(&good(0).replace(":0,", ":-Infinity,"))),
        ("number_out_of_range", text(&good(0).replace(":0,", ":1e400,"))),
        ("wrong_type", text(&good(0).replace(":0,", ":\"7\","))),
        ("missing_event_timestamp", text(&good(0).replace("validated_at", "at"))),
        ("future_timestamp", text(&good(0).replace("2024", "2224"))),
        ("invalid_timestamp", text(&good(0).replace("10:00:00Z", "10:00:00"))),
        ("not_an_object", text("[]")),
        ("record_too_large", Some(big.into_bytes())),
    ];
    let mut records = Vec::new();
    for (i, (_, payload)) in cases.iter().enumerate() {
        let id = Some(Uuid::from_u128(i as u128 + 1));
        records.push(Sent { payload: payload.clone(), id, partition: Some(0), key: None });
        records.push(Sent { payload: text(&good(i)), partition: Some(0), ..Sent::default() });
    }
    produce(&brokers, bench.topic("features"), &records);
    let node = bench.node("process,store");
    let report = node.verify();
    assert_eq!(report["landed_rows"], cases.len());
    assert_eq!(report["dead_letters"], cases.len());
    let letters = node.query(
        "SELECT pos, reason, stage, event_id::VARCHAR AS event_id, source, raw_len, raw_sha256, octet_length(raw) AS kept
         FROM dead_letters JOIN sources USING (source_no) ORDER BY pos",
    );
    for (i, (reason, payload)) in cases.iter().enumerate() {
        let letter = &letters[i];
        let at = format!("case {i}: {letter}");
        assert_eq!(letter["reason"], *reason, "{at}");
        assert_eq!(letter["stage"], "decode", "{at}");
        assert_eq!(letter["pos"], i * 2, "{at}");
        assert_eq!(letter["event_id"], Uuid::from_u128(i as u128 + 1).to_string(), "{at}");
        assert!(letter["source"].as_str().unwrap().starts_with("kafka:features/"), "{at}");
        match payload {
            None => assert_eq!(
                (&letter["raw_len"], &letter["kept"]),
                (&Value::Null, &Value::Null),
                "{at}"
            ),
            Some(raw) => {
                assert_eq!(letter["raw_len"], raw.len(), "{at}");
                assert_eq!(letter["kept"], raw.len().min(65_536), "{at}");
                assert_eq!(letter["raw_sha256"].as_str().unwrap().len(), 64, "{at}");
            }
        }
    }
    let good_rows = node.query("SELECT count(DISTINCT entity_id) AS n FROM features_table");
    assert_eq!(good_rows[0]["n"], cases.len());
    node.stop_well();
}

#[test]
fn the_batch_style_and_the_one_event_style_land_the_same() {
    let Some(brokers) = broker("end_to_end: styles") else { return };
    let mut batch = Bench::new(&brokers);
    batch.config.streams.remove(0);
    batch.config.generator.rate = 0.0;
    let tasks = batch.generate();
    wait_for("10,000 clicks", || (tasks.tally().acknowledged() > 10_000).then_some(()));
    tasks.stop();
    let mut by_event = batch.other_reader();
    by_event.config.streams[0].transform = "click_features_by_event".into();
    let landed = |bench: &Bench| {
        let node = bench.node("process,store");
        node.verify();
        node.stop_well();
        let report = bench.judge(&expected(&tasks));
        assert!(report.ok, "{report:#?}");
        let store = duckdb::Connection::open(bench.database()).unwrap();
        let sql = "SELECT md5(string_agg(r, '\n' ORDER BY r)) FROM (SELECT (source, pos, sub, entity_id, feature_name,
                   value, event_timestamp)::VARCHAR AS r FROM features_table JOIN sources USING (source_no))";
        store.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap()
    };
    assert_eq!(landed(&batch), landed(&by_event));
}

#[test]
fn workers_come_on_demand_and_none_lives_when_idle() {
    let Some(brokers) = broker("end_to_end: idle") else { return };
    let mut bench = Bench::new(&brokers);
    bench.config.python.idle_stop_s = 0.5;
    bench.create_topics();
    let node = bench.node("process,store");
    wait_for("the node to be ready", || (node.get("/readyz").0 == 200).then_some(()));
    let workers = |node: &crate::support::NodeProcess| {
        node.status()["python"]["workers"].as_object().unwrap().len()
    };
    assert_eq!(workers(&node), 0, "no event, no worker");
    let event =
        r#"{"entity_id":"e","feature_name":"f","value":1,"validated_at":"2024-05-01T10:00:00Z"}"#;
    let record = Sent { key: Some(b"e".to_vec()), payload: Some(event.into()), ..Sent::default() };
    produce(&brokers, bench.topic("features"), &[record]);
    assert_eq!(node.verify()["landed_rows"], 1);
    wait_for("the idle worker to stop", || (workers(&node) == 0).then_some(()));
    let held = redis_zcard(&bench, &node);
    assert_eq!(held, 0, "its permit is back");
    wait_for("no process with Python to be left", || {
        (fork_servers_of(node.pid()).is_empty() && workers_of(node.pid()).is_empty()).then_some(())
    });
    node.stop_well();
}

/// Leases in the node's own Redis.
fn redis_zcard(bench: &Bench, node: &crate::support::NodeProcess) -> i64 {
    let log = node.log();
    let url = log.lines().find_map(|l| l.trim().strip_prefix("Redis")).unwrap().trim().to_owned();
    let mut connection = redis::Client::open(url).unwrap().get_connection().unwrap();
    let key = format!("{}:permits", bench.config.node.namespace);
    wait_for("the permit to come back", || {
        let n: i64 = redis::cmd("ZCARD").arg(&key).query(&mut connection).unwrap();
        (n == 0).then_some(n)
    })
}
