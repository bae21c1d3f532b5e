//! Texts that a reader must refuse or stop, beside events that go on.

use crate::support::{Bench, wait_for};
use serde_json::json;
use std::time::{Duration, Instant};

/// What a text must meet.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Expect {
    /// The check or the parser says no.
    Refused,
    /// It is allowed, and ended by its deadline, its bounds, or its hunger for memory.
    Stopped,
}

/// The texts of `hostile.sql`, with the paths of this test.
fn texts(database: &str, folder: &str) -> Vec<(Expect, String)> {
    let blocks = include_str!("hostile.sql").split("\n---\n");
    blocks
        .filter_map(|block| {
            let (head, text) = block.trim_end().split_once('\n')?;
            let expect = match head.strip_prefix("-- expect: ")? {
                "refused" => Expect::Refused,
                "stopped" => Expect::Stopped,
                other => panic!("{other}"),
            };
            let text = match text.strip_prefix("-- generate: ") {
                Some(what) => generated(what),
                None => {
                    text.replace("{db}", database).replace("{dir}", folder).replace("\\0", "\0")
                }
            };
            Some((expect, text))
        })
        .collect()
}

/// Texts that are too long to be written down.
fn generated(what: &str) -> String {
    let (kind, n) = what.trim().split_once(' ').unwrap();
    let n: usize = n.parse().unwrap();
    let joined = |from: usize, text: &dyn Fn(usize) -> String, between: &str| {
        (from..n).map(text).collect::<Vec<_>>().join(between)
    };
    match kind {
        "nest" => format!("SELECT {}1{}", "(".repeat(n), ")".repeat(n)),
        "not" => format!("SELECT {}true", "NOT ".repeat(n)),
        "calls" => format!("SELECT {}1{}", "abs(".repeat(n), ")".repeat(n)),
        "selects" => format!("{}1{}", "SELECT (".repeat(n), ")".repeat(n)),
        "long" => format!("SELECT '{}'", "a".repeat(n)),
        "comment" => format!("SELECT 1 -- {}", "a".repeat(n)),
        "union" => joined(0, &|_| "SELECT 1".into(), " UNION ALL "),
        "ctes" => {
            let more = joined(1, &|i| format!("a{i} AS (SELECT * FROM a{})", i - 1), ", ");
            format!("WITH a0 AS (SELECT 1), {more} SELECT * FROM a{}", n - 1)
        }
        "withs" => {
            format!("{}SELECT 1{}", "WITH a AS (".repeat(n), ") SELECT * FROM a".repeat(n))
        }
        "joins" => {
            let more = joined(1, &|i| format!("JOIN sources a{i} USING (source_no)"), " ");
            format!("SELECT count(*) FROM sources a0 {more}")
        }
        "lambdas" => {
            format!("SELECT {}1{}", "list_transform([1], lambda x: ".repeat(n), ")".repeat(n))
        }
        "types" => format!("SELECT NULL::{}INT{}", "STRUCT(a ".repeat(n), ")".repeat(n)),
        other => panic!("{other}"),
    }
}

#[test]
fn hostile_texts_are_refused_or_stopped_and_ingest_goes_on() {
    let mut bench = Bench::new("");
    bench.config.generator.rate = 500.0;
    bench.config.store.memory_limit_mib = 512;
    let node = bench.node("generate,process,store");
    let dir = bench.dir.path().join("secrets");
    std::fs::create_dir(&dir).unwrap();
    let maker = duckdb::Connection::open_in_memory().unwrap();
    for kind in ["csv", "parquet", "json"] {
        let to = dir.join(format!("secret.{kind}"));
        maker.execute_batch(&format!("COPY (SELECT 1 AS a) TO '{}'", to.display())).unwrap();
    }
    wait_for("events", || (node.committed_events() > 3_000).then_some(()));
    let texts = texts(bench.database().to_str().unwrap(), dir.to_str().unwrap());
    let of = |expect| texts.iter().filter(|(e, _)| *e == expect).count();
    assert!(of(Expect::Refused) >= 200 && of(Expect::Stopped) >= 20, "{}", texts.len());

    let (runtime, client) = (super::runtime(), reqwest::Client::new());
    let url = format!("http://{}/api/query", node.http);
    let ask = |expect: Expect, sql: &str| {
        // Some are long to parse.
        let deadline_ms = if expect == Expect::Refused { 10_000 } else { 600 };
        let body = json!({ "sql": sql, "deadline_ms": deadline_ms, "max_rows": 100_000 });
        let request = client.post(&url).header("content-type", "application/json");
        runtime.block_on(async {
            let answer = request.body(body.to_string()).send().await.unwrap();
            let status = answer.status().as_u16();
            (status, String::from_utf8_lossy(&answer.bytes().await.unwrap()).into_owned())
        })
    };
    let shown = |sql: &str| sql.chars().take(200).collect::<String>();
    for (expect, sql) in &texts {
        let (before, began) = (node.committed_events(), Instant::now());
        let (status, told) = ask(*expect, sql);
        let is_stopped = ["ran longer than", "is larger than", "more memory than"]
            .iter()
            .any(|word| told.contains(word));
        match expect {
            Expect::Refused => {
                assert!(status == 400 && !is_stopped, "{status} {told}: {}", shown(sql))
            }
            Expect::Stopped => {
                assert!(is_stopped, "{status} {told}: {}", shown(sql));
                let took = began.elapsed();
                assert!(took < Duration::from_secs(40), "{took:?}: {}", shown(sql));
                wait_for("ingest beside it", || (node.committed_events() > before).then_some(()));
            }
        }
    }
    // What was asked has left nothing behind.
    let errors = node.metric("millstream_stage_errors_total", &["stage=\"duckdb_writer\""]);
    assert_eq!(errors, 0.0, "{}", node.log());
    assert!(node.query("SELECT count(*) AS n FROM features_table")[0]["n"].as_i64() > Some(3_000));
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 3);
    node.stop_well();
    let store = bench.closed_store();
    let tables = "SELECT count(*) FROM duckdb_tables() WHERE NOT internal";
    let tables: i64 = store.query_row(tables, [], |row| row.get(0)).unwrap();
    drop(store);
    let fresh = duckdb::Connection::open_in_memory().unwrap();
    fresh.execute_batch(millstream::store::schema::DDL).unwrap();
    let usual = "SELECT count(*) FROM duckdb_tables() WHERE NOT internal";
    let usual: i64 = fresh.query_row(usual, [], |row| row.get(0)).unwrap();
    assert_eq!(tables, usual);
    bench.judge_books();
}

#[test]
fn a_query_that_nobody_waits_for_makes_room_for_others() {
    let bench = Bench::new("");
    let node = bench.node("process,store");
    let url = format!("http://{}/api/query", node.http);
    let sql =
        "SELECT count(*) FROM range(100000000) a, range(100000) b WHERE a.range * b.range = 7";
    // As many as there are threads for clients, and one more. Their connections end with the runtime.
    super::runtime().block_on(async {
        let body = json!({ "sql": sql, "deadline_ms": 100_000 }).to_string();
        let gone = (0..3).map(|_| {
            let request =
                reqwest::Client::new().post(&url).header("content-type", "application/json");
            tokio::time::timeout(Duration::from_millis(700), request.body(body.clone()).send())
        });
        for answer in futures::future::join_all(gone).await {
            assert!(answer.is_err(), "it was answered");
        }
    });
    let began = Instant::now();
    assert_eq!(node.query("SELECT 1 AS one")[0]["one"], 1);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    node.stop_well();
}
