//! Plain write requests: any client puts rows on a Redis stream; each is stored exactly once.

use crate::support::{Bench, NodeProcess, millstream, wait_for};
use millstream::{embedded::EmbeddedRedis, protocol::plain_writes::EntryId};
use redis::{Connection, RedisResult};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// A connection to the Redis that a node has embedded.
fn redis_of(node: &NodeProcess) -> Connection {
    let log = node.log();
    let url = log.lines().find_map(|l| l.trim().strip_prefix("Redis")).unwrap().trim().to_owned();
    redis::Client::open(url).unwrap().get_connection().unwrap()
}

fn stream(bench: &Bench) -> String {
    format!("{}:writes", bench.config.node.namespace)
}

/// A request for one row.
fn request(entity: &str, feature: &str, value: &Value, second: usize) -> String {
    let at = chrono::DateTime::from_timestamp(1_714_557_600 + second as i64, 250_000_000).unwrap();
    json!({ "table": "features_table", "data": {
        "entity_id": entity, "feature_name": feature, "value": value,
        "event_timestamp": at.to_rfc3339(), "created_at": "2024-05-01T12:00:00.5Z",
    }})
    .to_string()
}

fn add(redis: &mut Connection, bench: &Bench, id: &str, json: &[u8], reply: &str) -> String {
    let mut add = redis::cmd("XADD");
    add.arg(stream(bench)).arg(id).arg("json").arg(json).arg("reply").arg(reply);
    add.query(redis).unwrap()
}

fn answer(redis: &mut Connection, list: &str) -> Value {
    let popped: Option<(String, String)> =
        redis::cmd("BLPOP").arg(list).arg(100).query(redis).unwrap();
    serde_json::from_str(&popped.unwrap_or_else(|| panic!("no answer on {list}")).1).unwrap()
}

fn position(id: &str) -> i64 {
    EntryId::parse(id).unwrap().position().unwrap()
}

fn length(redis: &mut Connection, key: &str) -> usize {
    redis::cmd("XLEN").arg(key).query(redis).unwrap()
}

#[test]
fn rows_and_dead_letters_arrive_and_every_list_is_answered() {
    let bench = Bench::new("");
    let node = bench.node("process,store");
    let mut redis = redis_of(&node);
    let good =
        add(&mut redis, &bench, "*", request("e1", "f", &json!(1.25), 1).as_bytes(), "r:good");
    let null =
        add(&mut redis, &bench, "*", request("e2", "f", &Value::Null, 2).as_bytes(), "r:null");
    // Without `created_at`: the entry's own time.
    let bare = r#"{"data":{"entity_id":"e3","feature_name":"f","value":-3,"event_timestamp":"2024-05-01T12:00:00+02:00"},"table":"features_table"}"#;
    let bare_id = add(&mut redis, &bench, "*", bare.as_bytes(), "r:bare");
    let row = request("bad", "f", &json!(1), 3);
    let with = |from: &str, to: &str| {
        assert!(row.contains(from));
        row.replace(from, to).into_bytes()
    };
    let huge = with("\"bad\"", &format!("\"{}\"", "x".repeat(2 << 20)));
    let bad: Vec<(&str, Vec<u8>)> = vec![
        ("invalid_json", b"{".to_vec()),
        ("invalid_utf8", b"{\"table\":\"\xff\"}".to_vec()),
        ("empty_payload", Vec::new()),
        ("not_an_object", b"[]".to_vec()),
        ("unknown_table", with("features_table", "sources")),
        ("missing_field", with("\"table\"", "\"tabel\"")),
        ("missing_field", with("feature_name", "feature")),
        ("missing_field", with("\"value\"", "\"valeu\"")),
        ("missing_entity", with("entity_id", "entity")),
        ("empty_entity", with("\"bad\"", "\"\"")),
        ("wrong_type", with("\"bad\"", "7")),
        ("missing_event_timestamp", with("event_timestamp", "at")),
        ("future_timestamp", with("2024-05-01T10", "2224-05-01T10")),
        ("timestamp_out_of_range", with("2024-05-01T10", "1066-05-01T10")),
        ("invalid_timestamp", with("2024-05-01T10", "2024-05-41T10")),
        ("number_out_of_range", with("\"value\":1", "\"value\":1e999")),
        ("record_too_large", huge),
    ];
    let mut ids = Vec::new();
    for (i, (_, payload)) in bad.iter().enumerate() {
        ids.push(add(&mut redis, &bench, "*", payload, &format!("r:bad{i}")));
    }
    // No `json` at all, and nobody who waits for the answer.
    let add_silent = |redis: &mut Connection, field: &[u8], value: &str| -> String {
        redis::cmd("XADD").arg(stream(&bench)).arg("*").arg(field).arg(value).query(redis).unwrap()
    };
    let lost = add_silent(&mut redis, b"\xff\x00", "x");
    let silent = add_silent(&mut redis, b"json", &request("e4", "f", &json!(4), 4));
    // An answer that cannot be pushed must hold up nobody, nor touch what it names.
    let () = redis::cmd("SET").arg("r:string").arg("mine").query(&mut redis).unwrap();
    add(&mut redis, &bench, "*", request("e5", "f", &json!(5), 5).as_bytes(), "r:string");
    let last = add(&mut redis, &bench, "*", request("e6", "f", &json!(6), 6).as_bytes(), "r:last");

    assert_eq!(answer(&mut redis, "r:last"), json!({"id": last, "ok": true, "duplicate": false}));
    assert_eq!(answer(&mut redis, "r:good"), json!({"id": good, "ok": true, "duplicate": false}));
    assert_eq!(answer(&mut redis, "r:null")["ok"], true);
    assert_eq!(answer(&mut redis, "r:bare")["id"], bare_id);
    let kept: String = redis::cmd("GET").arg("r:string").query(&mut redis).unwrap();
    let ttl: i64 = redis::cmd("TTL").arg("r:string").query(&mut redis).unwrap();
    assert_eq!((kept.as_str(), ttl), ("mine", -1));
    for (i, (reason, _)) in bad.iter().enumerate() {
        let list = format!("r:bad{i}");
        let ttl: i64 = redis::cmd("TTL").arg(&list).query(&mut redis).unwrap();
        assert!(ttl > 0, "{list} never expires");
        let told = answer(&mut redis, &list);
        assert_eq!(
            (&told["ok"], told["reason"].as_str()),
            (&json!(false), Some(*reason)),
            "{told}"
        );
        assert_eq!(told["id"], ids[i]);
        assert!(!told["detail"].as_str().unwrap().is_empty(), "{told}");
    }
    wait_for("an empty stream", || (length(&mut redis, &stream(&bench)) == 0).then_some(()));

    let rows = node.query(
        "SELECT entity_id, feature_name, value, epoch_us(event_timestamp) AS at, epoch_us(created_at) AS made,
                pos, sub, event_id, source
         FROM features_table JOIN sources USING (source_no) ORDER BY entity_id",
    );
    let source = format!("writes:{}", bench.config.node.namespace);
    let second = |s: i64| 1_714_557_600_250_000 + s * 1_000_000;
    let made = 1_714_564_800_500_000i64;
    let row = |e: &str, value: Value, at: i64, made: i64, id: &str| {
        json!({"entity_id": e, "feature_name": "f", "value": value, "at": at, "made": made,
               "pos": position(id), "sub": 0, "event_id": null, "source": source})
    };
    let own_time = EntryId::parse(&bare_id).unwrap().timestamp_us();
    assert_eq!(rows[0], row("e1", json!(1.25), second(1), made, &good));
    assert_eq!(rows[1], row("e2", Value::Null, second(2), made, &null));
    assert_eq!(rows[2], row("e3", json!(-3.0), 1_714_557_600_000_000, own_time, &bare_id));
    assert_eq!(rows[3], row("e4", json!(4.0), second(4), made, &silent));
    assert_eq!((&rows[4]["entity_id"], &rows[5]["entity_id"]), (&json!("e5"), &json!("e6")));
    assert_eq!(rows.as_array().unwrap().len(), 6);

    let letters = node.query(
        "SELECT pos, stage, reason, raw_len, octet_length(raw) AS kept, raw_sha256 FROM dead_letters ORDER BY pos",
    );
    assert_eq!(letters.as_array().unwrap().len(), bad.len() + 1);
    for (i, (reason, payload)) in bad.iter().enumerate() {
        use sha2::{Digest, Sha256};
        let expected = json!({"pos": position(&ids[i]), "stage": "decode", "reason": reason,
            "raw_len": payload.len(), "kept": payload.len().min(64 << 10),
            "raw_sha256": format!("{:x}", Sha256::digest(payload))});
        assert_eq!(letters[i], expected);
    }
    let last = &letters[bad.len()];
    assert_eq!(
        (&last["pos"], last["reason"].as_str()),
        (&json!(position(&lost)), Some("null_payload"))
    );

    let ledger = node.query(
        "SELECT DISTINCT transform, script_sha256, node FROM ingest_ledger
         JOIN sources USING (source_no) WHERE source LIKE 'writes:%'",
    );
    assert_eq!(
        ledger,
        json!([{"transform": "plain_write", "script_sha256": "", "node": "test-node"}])
    );
    node.verify();
    node.stop_well();
}

#[test]
fn the_newest_is_online_and_the_same_row_twice_is_two_rows() {
    let bench = Bench::new("");
    let node = bench.node("process,store");
    let mut redis = redis_of(&node);
    let late = request("e", "clicks_total", &json!(1), 5);
    let newest = request("e", "clicks_total", &json!(2), 9);
    let first = add(&mut redis, &bench, "*", newest.as_bytes(), "r");
    let second = add(&mut redis, &bench, "*", newest.as_bytes(), "r");
    add(&mut redis, &bench, "*", late.as_bytes(), "r");
    for _ in 0..3 {
        assert_eq!(answer(&mut redis, "r")["duplicate"], false);
    }
    let rows = node.query("SELECT pos FROM features_table WHERE value = 2 ORDER BY pos");
    assert_eq!(rows, json!([{"pos": position(&first)}, {"pos": position(&second)}]));
    let key = format!("{}:entity:e", bench.config.node.namespace);
    let field: String = redis::cmd("HGET").arg(&key).arg("clicks_total").query(&mut redis).unwrap();
    let (value, version, _) = millstream::online::parse_field(&field).unwrap();
    assert_eq!((value, version.pos, version.sub), (Some(2.0), position(&second), 0));
    let of = |report: Value| {
        let checks = report["checks"].as_array().unwrap().clone();
        checks.into_iter().find(|c| c["id"] == "online_equals_newest").unwrap()
    };
    let check = of(node.verify());
    assert!(check["detail"].as_str().unwrap().contains("1 critical"), "{check}");
    // The audit looks at plain writes as well: without the online value it must fail.
    let () = redis::cmd("HDEL").arg(&key).arg("clicks_total").query(&mut redis).unwrap();
    let mut verify = millstream();
    verify.args(["verify", "--json", "--full", "--http", &node.http.to_string()]);
    let output = verify.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && text.contains("not online"), "{text}");
    node.stop_well();
}

#[test]
fn ids_that_cannot_be_positions_are_kept_aside_and_keep_nobody_out() {
    let bench = Bench::new("");
    let node = bench.node("process,store");
    let mut redis = redis_of(&node);
    let row = request("e", "f", &json!(1), 1);
    let quarantine = format!("{}:quarantine", bench.config.node.namespace);
    let hour_ahead = (chrono::Utc::now().timestamp_millis() + 3_600_000) as u64;
    let mut aside = Vec::new();
    for id in [
        format!("{hour_ahead}-1048576"),
        format!("{hour_ahead}-18446744073709551615"),
        "18446744073709551614-7".to_owned(),
    ] {
        let id = add(&mut redis, &bench, &id, row.as_bytes(), "r:bad");
        let told = answer(&mut redis, "r:bad");
        assert_eq!(told["id"], id);
        assert_eq!((&told["ok"], &told["reason"]), (&json!(false), &json!("id_is_no_position")));
        aside.push(id);
        // The stream takes ids again that can be stored.
        wait_for("a mended stream", || {
            let last: String = redis::cmd("XINFO")
                .arg("STREAM")
                .arg(stream(&bench))
                .query::<redis::streams::StreamInfoStreamReply>(&mut redis)
                .unwrap()
                .last_generated_id;
            EntryId::parse(&last).unwrap().position().ok()
        });
        let good = add(&mut redis, &bench, "*", row.as_bytes(), "r:good");
        assert_eq!(
            answer(&mut redis, "r:good"),
            json!({"id": good, "ok": true, "duplicate": false})
        );
    }
    type Kept = Vec<(String, BTreeMap<String, String>)>;
    let kept: Kept =
        redis::cmd("XRANGE").arg(&quarantine).arg("-").arg("+").query(&mut redis).unwrap();
    let ids: Vec<&String> = kept.iter().map(|(_, fields)| &fields["id"]).collect();
    assert_eq!(ids, aside.iter().collect::<Vec<_>>());
    for (_, fields) in &kept {
        assert_eq!((fields["json"].as_str(), fields["reply"].as_str()), (row.as_str(), "r:bad"));
        assert_eq!(fields["reason"], "id_is_no_position");
    }
    let metrics = node.get("/metrics/redis_queue").1;
    assert!(metrics.lines().any(|l| l.contains("quarantined") && l.ends_with(" 3")), "{metrics}");
    assert_eq!(node.verify()["landed_rows"], 3);
    node.stop_well();
}

#[test]
fn after_flushall_new_ids_go_on_after_the_stores_position() {
    let bench = Bench::new("");
    let node = bench.node("process,store");
    let mut redis = redis_of(&node);
    let row = request("e", "f", &json!(1), 1);
    // As if the clock went back by a day afterwards.
    let tomorrow = format!("{}-5", chrono::Utc::now().timestamp_millis() + 86_400_000);
    add(&mut redis, &bench, &tomorrow, row.as_bytes(), "r");
    assert_eq!(answer(&mut redis, "r")["ok"], true);
    let () = redis::cmd("FLUSHALL").query(&mut redis).unwrap();
    let reached = |redis: &mut Connection| -> Option<()> {
        let info: RedisResult<redis::streams::StreamInfoStreamReply> =
            redis::cmd("XINFO").arg("STREAM").arg(stream(&bench)).query(redis);
        (EntryId::parse(&info.ok()?.last_generated_id)? >= EntryId::parse(&tomorrow)?).then_some(())
    };
    wait_for("the stream to reach the store's position", || reached(&mut redis));
    let id = add(&mut redis, &bench, "*", row.as_bytes(), "r");
    assert!(position(&id) > position(&tomorrow), "{id}");
    assert_eq!(answer(&mut redis, "r"), json!({"id": id, "ok": true, "duplicate": false}));
    let rows = node.query("SELECT pos FROM features_table ORDER BY pos");
    assert_eq!(rows, json!([{"pos": position(&tomorrow)}, {"pos": position(&id)}]));
    node.stop_well();
}

#[test]
fn what_was_stored_but_not_answered_is_a_duplicate_and_what_was_not_is_no_duplicate() {
    let mut bench = Bench::new("");
    let server = EmbeddedRedis::start(&bench.dir.path().join("redis")).unwrap();
    bench.config.redis.url = server.url().to_owned();
    let mut redis = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    let row = request("e", "f", &json!(1), 1);
    let node = bench.node("process,store");
    for (id, json) in [("1000-1", row.as_str()), ("1000-2", "{"), ("2000-0", row.as_str())] {
        add(&mut redis, &bench, id, json.as_bytes(), "r");
        answer(&mut redis, "r");
    }
    node.stop_well();
    // As a store leaves it that committed and died, beside an id that was never stored.
    let () = redis::cmd("DEL").arg(stream(&bench)).query(&mut redis).unwrap();
    for (id, json) in [("1000-1", row.as_str()), ("1000-2", "{"), ("1000-3", row.as_str())] {
        add(&mut redis, &bench, id, json.as_bytes(), &format!("r:{id}"));
    }
    let node = bench.node("process,store");
    let told = answer(&mut redis, "r:1000-1");
    assert_eq!(told, json!({"id": "1000-1", "ok": true, "duplicate": true}));
    let told = answer(&mut redis, "r:1000-2");
    assert_eq!(
        (&told["ok"], &told["reason"], &told["duplicate"]),
        (&json!(false), &json!("invalid_json"), &json!(true))
    );
    let told = answer(&mut redis, "r:1000-3");
    assert_eq!((&told["ok"], &told["reason"]), (&json!(false), &json!("id_in_the_past")));
    let id = add(&mut redis, &bench, "*", row.as_bytes(), "r");
    assert_eq!(answer(&mut redis, "r"), json!({"id": id, "ok": true, "duplicate": false}));
    let report = node.verify();
    assert_eq!((&report["landed_rows"], &report["dead_letters"]), (&json!(3), &json!(1)));
    node.stop_well();
}

/// Entries that the test has acknowledged by Redis.
const ENTRIES: usize = 5_000;
/// Entries that one round trip adds.
const A_TRIP: usize = 20;
/// Entries that may wait for their answers, so that a kill always falls into work.
const WAITING: usize = 300;

#[test]
fn kill_9_of_the_node_in_mid_run_stores_every_id_once() {
    let bench = Bench::new("");
    let mut node = bench.node("process,store");
    let mut redis = redis_of(&node);
    let (mut accepted, mut unknown) = (BTreeMap::new(), BTreeSet::new());
    let (mut number, mut kills) = (0, 0);
    while accepted.len() < ENTRIES {
        if kills < 3 && accepted.len() > (kills + 1) * ENTRIES / 4 {
            kills += 1;
            // It dies while entries come in.
            let killer = std::thread::spawn(move || node.kill());
            wait_for("Redis to end with its node", || {
                let tripped = trip(&bench, &mut redis, &mut number, &mut accepted, &mut unknown);
                tripped.is_err().then_some(())
            });
            killer.join().unwrap();
            node = bench.node("process,store");
            redis = redis_of(&node);
        }
        trip(&bench, &mut redis, &mut number, &mut accepted, &mut unknown).unwrap();
        wait_for("answers", || {
            let told: usize = redis::cmd("LLEN").arg("r").query(&mut redis).unwrap();
            (told + WAITING >= accepted.len()).then_some(())
        });
    }
    wait_for("an empty stream", || (length(&mut redis, &stream(&bench)) == 0).then_some(()));
    assert_eq!(kills, 3);
    let answers: Vec<String> =
        redis::cmd("LRANGE").arg("r").arg(0).arg(-1).query(&mut redis).unwrap();
    let mut told = BTreeMap::new();
    for text in &answers {
        let answer: Value = serde_json::from_str(text).unwrap();
        assert_eq!(answer["ok"], true, "{answer}");
        let id = answer["id"].as_str().unwrap().to_owned();
        assert!(told.insert(id, ()).is_none(), "answered twice: {answer}");
    }
    for id in accepted.keys() {
        assert!(told.contains_key(id), "{id} was never answered");
    }
    let report = node.verify();
    assert_eq!(report["landed_rows"].as_u64().unwrap() as usize, told.len());
    node.stop_well();
    let store = duckdb::Connection::open(bench.database()).unwrap();
    let mut statement =
        store.prepare("SELECT pos, entity_id, count(*) FROM features_table GROUP BY ALL").unwrap();
    let rows: BTreeMap<i64, (String, i64)> = statement
        .query_map([], |r| Ok((r.get(0)?, (r.get(1)?, r.get(2)?))))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    for (id, entity) in &accepted {
        assert_eq!(rows.get(&position(id)), Some(&(entity.clone(), 1)), "{id}");
    }
    let known: BTreeSet<&String> = accepted.values().chain(&unknown).collect();
    for (entity, _) in rows.values() {
        assert!(known.contains(entity), "{entity} was never added");
    }
}

/// Adds entries; when Redis went away with its node, they may or may not be there.
fn trip(
    bench: &Bench,
    redis: &mut Connection,
    number: &mut usize,
    accepted: &mut BTreeMap<String, String>,
    unknown: &mut BTreeSet<String>,
) -> RedisResult<()> {
    let mut pipeline = redis::pipe();
    let mut entities = Vec::with_capacity(A_TRIP);
    for _ in 0..A_TRIP {
        *number += 1;
        let entity = format!("e{number}");
        let json = request(&entity, "clicks_x", &json!(*number as f64), *number);
        pipeline
            .cmd("XADD")
            .arg(stream(bench))
            .arg("*")
            .arg("json")
            .arg(json)
            .arg("reply")
            .arg("r");
        entities.push(entity);
    }
    let ids: RedisResult<Vec<String>> = pipeline.query(redis);
    match ids {
        Ok(ids) => accepted.extend(ids.into_iter().zip(entities)),
        Err(error) => {
            unknown.extend(entities);
            return Err(error);
        }
    }
    Ok(())
}
