//! The store stops, dies, meets another, has no room, is damaged: nothing is answered that is not
//! durable, and nothing is silently wrong.

use crate::support::{
    Bench, NodeProcess, Sent, Watch, broker, expected, left_out, millstream, produce,
    resident_bytes, says, wait_for,
};
use millstream::{
    actors::redis_queue::ask,
    chaos::{disk::SmallDisk, judge::dead_letters_complete},
    messages::{QueryBounds, ReadRequest},
    queue::{Keys, RedisLink},
    store::schema,
};
use serde_json::json;
use std::{
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Output},
    time::{Duration, Instant},
};

/// Starts a further store that must be refused; its exit code and what it says.
fn refused(bench: &Bench, roles: &str) -> (Option<i32>, String) {
    let mut command = millstream();
    command.args(["run", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--roles", roles]);
    let Output { status, stderr, .. } =
        command.arg("--config").arg(bench.config_file()).output().unwrap();
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

/// Waits until a store that was started is let in, or refused; how it ended then. One that is let in
/// runs on and on.
fn let_in_or_refused(store: &mut NodeProcess) -> Option<ExitStatus> {
    wait_for("the store to be let in or refused", || {
        let ended = store.ended();
        (ended.is_some() || store.log().contains("ready")).then_some(ended)
    })
}

#[test]
fn a_second_store_on_one_file_is_refused_and_told_who_has_it() {
    let bench = Bench::new("");
    let node = bench.node("process,store");
    wait_for("the first store", || bench.database().exists().then_some(()));
    let mut other = bench.other_reader();
    other.config.node.data_dir.clone_from(&bench.config.node.data_dir);
    // A Redis of its own, so that the database is what they meet at.
    let _redis = other.redis();
    let (code, stderr) = refused(&other, "process,store");
    assert_eq!(code, Some(4), "{stderr}");
    assert!(says(&stderr, &format!("pid {}", node.pid())), "{stderr}");
    node.stop_well();
}

#[test]
fn a_second_store_with_another_file_on_one_namespace_is_refused() {
    let mut bench = Bench::new("");
    let _redis = bench.redis();
    let node = bench.node("process,store");
    wait_for("the first store", || (node.get("/readyz").0 == 200).then_some(()));
    let mut other = bench.other_reader();
    other.config.redis.url.clone_from(&bench.config.redis.url);
    other.config.node.namespace.clone_from(&bench.config.node.namespace);
    let mut second = NodeProcess::spawned(&other, "store", "");
    let ended = let_in_or_refused(&mut second);
    let log = second.log();
    let status = ended.unwrap_or_else(|| panic!("it was let in:\n{log}"));
    assert!(!status.success(), "{log}");
    assert!(log.contains(&bench.config.node.namespace), "it says what is taken: {log}");
    node.stop_well();
}

#[test]
fn a_store_whose_tables_are_not_what_its_ledger_says_is_refused_in_words() {
    let mut bench = Bench::new("");
    bench.config.generator.rate = 500.0;
    let node = bench.node("generate,process,store");
    wait_for("events", || (node.committed_events() > 500).then_some(()));
    node.stop_well();
    let store = bench.closed_store();
    let newest = "SELECT max(batch_seq) FROM features_table";
    let batch: i64 = store.query_row(newest, [], |row| row.get(0)).unwrap();
    let lose = "DELETE FROM features_table
                WHERE rowid = (SELECT max(rowid) FROM features_table WHERE batch_seq = ?)";
    assert_eq!(store.execute(lose, [batch]).unwrap(), 1);
    drop(store);
    let mut node = NodeProcess::spawned(&bench, "process,store", "");
    let ended = let_in_or_refused(&mut node);
    let log = node.log();
    assert_eq!(ended.and_then(|status| status.code()), Some(1), "{log}");
    let why = format!("the store's books do not balance: rows_match_ledger: batch {batch}: ");
    assert!(says(&log, &why), "{log}");
}

/// A store and a process node under load, with little in flight.
pub fn two_nodes(brokers: &str) -> Bench {
    let mut bench = Bench::new(brokers);
    bench.config.generator.rate = 5_000.0;
    bench.config.batch.max_rows = 500;
    bench.short_sessions();
    bench
}

#[test]
fn a_store_stopped_for_15_s_pauses_partitions_without_a_rebalance_and_memory_stays_flat() {
    let Some(brokers) = broker("store_faults: stopped store") else { return };
    let mut bench = two_nodes(&brokers);
    bench.config.batch.max_bytes = 256 << 10;
    bench.config.kafka.max_inflight_bytes = 2 << 20;
    // Three times over within the stop: only polling that goes on keeps the partitions.
    bench.config.kafka.options.insert("max.poll.interval.ms".into(), "5000".into());
    let redis = bench.redis();
    let tasks = bench.generate();
    let (store, process) = (bench.node("store"), bench.node("process"));
    wait_for("load", || (store.committed_events() > 10_000).then_some(()));
    let read = || {
        let status = process.status();
        let partitions = status["partitions"].as_object().unwrap();
        assert_eq!(partitions.len(), 8, "{status:#}");
        partitions.values().map(|p| p["position"].as_i64().unwrap_or(0)).sum::<i64>()
    };
    let rebalances = || process.metric("millstream_kafka_rebalances_total", &[]);
    let before = rebalances();

    let stopped_at = Instant::now();
    let frozen = store.freeze();
    // The node tells its positions five times a second.
    let mut last = (read(), Instant::now());
    wait_for("the partitions to pause", || {
        let now = read();
        if now != last.0 {
            last = (now, Instant::now());
        }
        (last.1.elapsed() > Duration::from_secs(1)).then_some(())
    });
    let paused_at = tasks.tally().acknowledged();
    let (full, held) = (read(), resident_bytes(process.pid()).unwrap());
    // Whoever asks it something hears in time that it does not answer.
    let link = RedisLink::new(&redis.url()).unwrap();
    let keys = Keys::new(&bench.config.node.namespace);
    let bounds = QueryBounds::default();
    let question = ReadRequest::Query { sql: "SELECT 1".into(), bounds, own: false };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(ask(&link, &keys, &question, Duration::from_secs(1)));
    let error = answer.unwrap_err().to_string();
    assert!(error.starts_with("no store answered within 1s: "), "{error}");
    let mut most = held;
    while stopped_at.elapsed() < Duration::from_secs(15) {
        most = most.max(resident_bytes(process.pid()).unwrap());
        assert_eq!(read(), full, "nothing is read while nothing can be stored");
        std::thread::park_timeout(Duration::from_millis(200));
    }
    let missed = tasks.tally().acknowledged() - paused_at;
    frozen.thaw();
    assert!(missed > 40_000, "there was load to be held back: {missed}");
    assert!(most < held + (16 << 20), "memory grew from {held} to {most} bytes");
    assert_eq!(rebalances().to_bits(), before.to_bits(), "no partition moved");
    tasks.stop();
    process.verify();
    process.stop_well();
    store.stop_well();
    bench.judge_well(&expected(&tasks));
}

#[test]
fn a_store_killed_idle_in_a_transaction_and_after_its_commit_loses_nothing() {
    let Some(brokers) = broker("store_faults: killed store") else { return };
    let mut bench = two_nodes(&brokers);
    let _redis = bench.redis();
    let tasks = bench.generate();
    let watch = Watch::start(&bench);
    let armed =
        |point: &str| NodeProcess::spawned(&bench, "store", &format!("{point}=6*off->return"));
    let store = armed("g_in_transaction");
    let process = bench.node("process");
    watch.ask(&process);
    store.ends_killed();
    watch.look_at_closed(&bench);
    armed("g_committed").ends_killed();
    watch.look_at_closed(&bench);
    let store = bench.node("store");
    tasks.stop();
    process.verify();
    // Now it is idle.
    store.kill();
    watch.look_at_closed(&bench);
    let store = bench.node("store");
    process.verify();
    let duplicates = store.metric("millstream_ledger_rejects_total", &["duplicate"]);
    assert!(duplicates < 1.0, "an idle store left nothing to be sent again");
    watch.end();
    process.stop_well();
    store.stop_well();
    bench.judge_well(&expected(&tasks));
}

#[test]
fn a_full_disk_under_duckdb_acknowledges_nothing_that_failed_and_is_gone_on_from() {
    let test = "store_faults: full disk";
    let Some(brokers) = broker(test) else { return };
    let dir = tempfile::tempdir().unwrap();
    let disk = match SmallDisk::mount(dir.path(), 48) {
        Ok(disk) => disk,
        Err(why) => return left_out(test, &why),
    };
    let mut bench = two_nodes(&brokers);
    bench.config.node.data_dir = disk.path().join("data");
    let _redis = bench.redis();
    let tasks = bench.generate();
    let watch = Watch::start(&bench);
    let (mut store, process) = (bench.node("store"), bench.node("process"));
    watch.ask(&process);
    wait_for("load", || (store.committed_events() > 10_000).then_some(()));
    disk.fill().unwrap();
    let errors = "millstream_stage_errors_total";
    wait_for("a write to fail", || {
        disk.fill().unwrap();
        let failed = store.metric_if_up(errors, &["duckdb_writer"]).is_some_and(|n| n >= 1.0);
        (failed || store.ended().is_some()).then_some(())
    });
    // A store that cannot open its file again ends, and whoever runs it starts it again.
    let lives = store.ended().is_none();
    let full = if lives { process.positions() } else { bench.positions() };
    let missed = tasks.tally().acknowledged();
    wait_for("more to come in", || (tasks.tally().acknowledged() > missed + 10_000).then_some(()));
    if lives {
        assert_eq!(process.positions(), full, "nothing can have been stored");
    }
    disk.free().unwrap();
    eprintln!("the store {}", if lives { "goes on" } else { "ended and is started again" });
    if !lives {
        store = bench.node("store");
    }
    wait_for("the store to go on", || {
        let now = process.positions();
        full.iter().all(|(source, next)| now[source] > *next).then_some(())
    });
    tasks.stop();
    process.verify();
    watch.end();
    process.stop_well();
    store.stop_well();
    bench.judge_well(&expected(&tasks));
}

#[test]
fn rows_that_duckdb_refuses_become_dead_letters_and_the_rest_of_their_batch_lands() {
    let Some(brokers) = broker("store_faults: refused rows") else { return };
    let mut bench = Bench::new(&brokers);
    let redis = bench.redis();
    bench.create_topics();
    std::fs::create_dir_all(&bench.config.node.data_dir).unwrap();
    let with_check = schema::DDL
        .replace("    value           DOUBLE,", "    value           DOUBLE CHECK (value <> 666),");
    assert_ne!(with_check, schema::DDL);
    bench.closed_store().execute_batch(&with_check).unwrap();
    let event = |i: usize, value: usize| {
        Sent {
        payload: Some(
            format!(
                r#"{{"entity_id":"e{i}","feature_name":"f","value":{value},"validated_at":"2024-05-01T10:00:00Z"}}"#
            )
            .into(),
        ),
        id: Some(uuid::Uuid::from_u128(i as u128 + 1)),
        partition: Some((i % 2).cast_signed() as i32),
        key: None,
    }
    };
    // One bad row alone, three in a row, and the last of all.
    let bad = [0, 500, 501, 502, 1_999];
    let events: Vec<Sent> =
        (0..2_000).map(|i| event(i, if bad.contains(&i) { 666 } else { i + 1_000 })).collect();
    produce(&brokers, bench.topic("features"), &events);
    let node = bench.node("process,store");
    node.verify();
    let letters = node.query(
        "SELECT entity_id, stage, reason, detail, event_id::VARCHAR AS id FROM dead_letters ORDER BY event_id",
    );
    let letters = letters.as_array().unwrap();
    assert_eq!(letters.len(), bad.len(), "{letters:#?}");
    for (letter, i) in letters.iter().zip(bad) {
        assert_eq!(letter["stage"], "store", "{letter}");
        assert_eq!(letter["id"], uuid::Uuid::from_u128(i as u128 + 1).to_string(), "{letter}");
        assert!(letter["detail"].as_str().unwrap().contains("CHECK"), "{letter}");
    }
    let rows =
        node.query("SELECT count(*) AS n, count(DISTINCT entity_id) AS e FROM features_table");
    assert_eq!((&rows[0]["n"], &rows[0]["e"]), (&json!(1_995), &json!(1_995)));
    assert!(node.partitions("halted").is_empty());
    // Critical features go online first: those of refused rows were taken back.
    let fields = |entity: &str| -> i64 {
        let key = format!("{}:entity:{entity}", bench.config.node.namespace);
        redis::cmd("HLEN").arg(key).query(&mut redis.connection()).unwrap()
    };
    assert_eq!((fields("e0"), fields("e501"), fields("e1")), (0, 0, 1));
    // Behind the refused ones it goes on.
    produce(&brokers, bench.topic("features"), &[event(9_000, 1)]);
    node.verify();
    let store = |sql: &str| node.query(sql)[0]["n"].as_i64().unwrap();
    assert_eq!(store("SELECT count(*) AS n FROM features_table WHERE entity_id = 'e9000'"), 1);
    node.stop_well();
    let whole = dead_letters_complete(&bench.closed_store()).unwrap();
    assert!(whole.ok, "{whole:?}");
}

/// Something done to the log of a store that was killed.
type Damage = fn(&mut Vec<u8>);

#[test]
fn a_damaged_log_opens_consistent_or_is_refused_but_never_silently_wrong() {
    let Some(brokers) = broker("store_faults: damaged log") else { return };
    let mut bench = two_nodes(&brokers);
    bench.config.generator.rate = 0.0;
    let redis = bench.redis();
    let tasks = bench.generate();
    wait_for("events", || (tasks.tally().acknowledged() > 20_000).then_some(()));
    tasks.stop();
    let expected = expected(&tasks);
    let node = bench.node("process,store");
    node.verify();
    node.kill();
    redis.forget_leases(&bench.config.node.namespace);
    let (database, log) = (bench.database(), bench.database().with_extension("duckdb.wal"));
    let (sound, sound_log) = (std::fs::read(&database).unwrap(), std::fs::read(&log).unwrap());
    assert!(sound_log.len() > 100_000, "the log holds all that was stored: {}", sound_log.len());
    /// Bits of the byte at so many hundredths of the way.
    fn flip(log: &mut [u8], hundredths: usize) {
        let at = (log.len() - 1) * hundredths / 100;
        log[at] ^= 0x55;
    }
    let damages: [(&str, Damage); 7] = [
        ("its first bytes", |log| log[2] ^= 0x55),
        ("a quarter in", |log| flip(log, 25)),
        ("the middle", |log| flip(log, 50)),
        ("near its end", |log| flip(log, 99)),
        ("cut in the middle", |log| log.truncate(log.len() / 2)),
        ("its last byte is missing", |log| log.truncate(log.len() - 1)),
        ("a page of zeros", |log| {
            let middle = log.len() / 2;
            log[middle..middle + 4096].fill(0);
        }),
    ];
    for (damage, do_it) in damages {
        let mut hurt = sound_log.clone();
        do_it(&mut hurt);
        std::fs::write(&database, &sound).unwrap();
        std::fs::write(&log, hurt).unwrap();
        let mut node = NodeProcess::spawned(&bench, "process,store", "");
        let refused = let_in_or_refused(&mut node);
        eprintln!("{damage}: {}", if refused.is_some() { "refused" } else { "opened" });
        if let Some(status) = refused {
            let says = node.log();
            assert_eq!(status.signal(), None, "{damage}: {says}");
            assert!(!status.success(), "{damage}: {says}");
            assert!(says.contains("cannot open the database"), "{damage}: {says}");
        } else {
            // What the log lost is read again from Kafka, though the group had committed it.
            node.learn_addresses();
            node.verify();
            node.stop_well();
            bench.judge_well(&expected);
        }
    }
}
