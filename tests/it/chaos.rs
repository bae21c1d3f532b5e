//! `millstream chaos`, as people run it: what it does to a system of its own and to a node that runs,
//! and that its verdict is worth something.

use crate::support::{Bench, NodeProcess, Slot, left_out, millstream, wait_for};
use millstream::chaos::fault::KINDS;
use serde_json::Value;
use std::{path::Path, process::Output};

/// A run's exit code, its report, and all that it said.
fn chaos(dir: &Path, words: &[&str]) -> (Option<i32>, Value, String) {
    let mut command = millstream();
    command.args(["chaos", "--json", "--dir"]).arg(dir.join("run")).args(words);
    let Output { status, stdout, stderr } = command.output().unwrap();
    let said = String::from_utf8_lossy(&stderr).into_owned();
    let report = serde_json::from_slice(&stdout).unwrap_or(Value::Null);
    (status.code(), report, said)
}

/// The broker that chaos starts itself; `None` where Kafka is missing, which is said.
fn broker_script(test: &str) -> Option<&'static str> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/kafka.sh");
    let there = std::process::Command::new(script).arg("classpath").output().unwrap();
    if !there.status.success() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must have Kafka");
        left_out(test, "needs Java and Kafka's jars (scripts/setup.sh --ci installs them)");
        return None;
    }
    Some(script)
}

fn broken(report: &Value) -> Vec<&Value> {
    report["checks"].as_array().into_iter().flatten().filter(|c| c["ok"] != true).collect()
}

/// Every promise holds, and so many faults were done.
fn held(code: Option<i32>, report: &Value, said: &str, faults: u64) {
    assert_eq!(
        (code, &report["ok"]),
        (Some(0), &Value::Bool(true)),
        "{:#?}\n{said}",
        broken(report)
    );
    assert!(report["faults"].as_u64().unwrap() >= faults, "{report:#}");
    assert_eq!((&report["lost"], &report["duplicated"]), (&0.into(), &0.into()), "{report:#}");
    assert!(report["samples"]["offsets"].as_u64().unwrap() > 20, "{report:#}");
    assert!(report["samples"]["workers"].as_u64().unwrap() > 500, "{report:#}");
}

/// The table of design/faults.md, one case of each kind, and each actor in each way.
#[test]
fn one_fault_of_each_kind_breaks_no_promise() {
    let Some(script) = broker_script("chaos: each kind") else { return };
    let _alone = Slot::alone();
    let dir = tempfile::tempdir().unwrap();
    let words = ["--each", "--every", "1200ms", "--seed", "3", "--broker-script", script];
    let (code, report, said) = chaos(dir.path(), &words);
    held(code, &report, &said, 60);
    // What only the in-process broker does is in the test below.
    let left_out = report["left_out"].as_object().unwrap();
    assert_eq!(left_out.keys().collect::<Vec<_>>(), ["broker-refuses", "leader-moves"], "{said}");
    for kind in KINDS.iter().filter(|kind| !left_out.contains_key(kind.name)) {
        assert!(report["kinds"][kind.name].is_object(), "{} never came: {said}", kind.name);
    }
}

#[test]
fn a_minute_of_chaos_over_actors_workers_and_processes_breaks_no_promise() {
    let Some(script) = broker_script("chaos: a minute") else { return };
    let _alone = Slot::alone();
    let dir = tempfile::tempdir().unwrap();
    let (code, report, said) = chaos(
        dir.path(),
        &[
            "--duration",
            "60s",
            "--every",
            "1s",
            "--rate",
            "5000",
            "--seed",
            "9",
            "--catch-up",
            "60s",
            "--targets",
            "actors,workers,processes",
            "--broker-script",
            script,
        ],
    );
    held(code, &report, &said, 30);
    assert!(report["produced"].as_u64().unwrap() > 200_000, "{report:#}");
}

#[test]
fn a_plan_can_be_replayed_and_the_in_process_broker_can_be_hurt() {
    let _alone = Slot::alone();
    let dir = tempfile::tempdir().unwrap();
    // At least a deck of four: each of the two kinds comes. So seldom that offsets are committed between.
    let words = ["--duration", "16s", "--every", "2500ms", "--rate", "500", "--targets", "broker"];
    let (code, first, said) = chaos(dir.path(), &words);
    held(code, &first, &said, 4);
    let file = dir.path().join("first.json");
    std::fs::write(&file, first.to_string()).unwrap();
    let replay = ["--replay", file.to_str().unwrap(), "--rate", "500"];
    let (code, again, said) = chaos(dir.path(), &replay);
    held(code, &again, &said, 4);
    assert_eq!(first["plan"], again["plan"]);
    for kind in ["leader-moves", "broker-refuses"] {
        for report in [&first, &again] {
            assert!(report["kinds"][kind]["done"].as_u64() > Some(0), "{kind}: {report:#}");
        }
    }
}

/// The judge of the command, put to the test: a defect in what runs is no matter of luck.
#[test]
fn a_program_that_drops_bad_rows_is_found_out() {
    let _alone = Slot::alone();
    let dir = tempfile::tempdir().unwrap();
    let words = [
        "--duration",
        "5s",
        "--every",
        "1s",
        "--rate",
        "500",
        "--targets",
        "redis-reset",
        "--plant",
        "bad_rows_dropped",
    ];
    let (code, report, said) = chaos(dir.path(), &words);
    assert_eq!((code, &report["ok"]), (Some(5), &Value::Bool(false)), "{said}");
    assert!(!broken(&report).is_empty());
}

/// Actors and workers of a node that somebody runs, through its interface, where it allows that.
#[test]
fn a_node_that_runs_is_hurt_only_where_it_allows_it() {
    let mut bench = Bench::new("");
    bench.config.generator.rate = 500.0;
    let dir = tempfile::tempdir().unwrap();
    let run = |node: &NodeProcess| {
        let http = node.http.to_string();
        let words = ["--http", &http, "--duration", "6s", "--every", "500ms", "--seed", "5"];
        chaos(dir.path(), &words)
    };
    let node = bench.node("generate,process,store");
    wait_for("load", || (node.committed_events() > 200).then_some(()));
    let (code, _, said) = run(&node);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("chaos.allow"), "{said}");
    let actors = node.status()["actors"].as_object().unwrap().clone();
    assert!(actors.values().all(|actor| actor["generation"] == 1), "{actors:?}");
    node.stop_well();

    bench.config.chaos.allow = true;
    let node = bench.node("generate,process,store");
    wait_for("load", || (node.committed_events() > 200).then_some(()));
    let (code, report, said) = run(&node);
    assert_eq!(
        (code, &report["ok"]),
        (Some(0), &Value::Bool(true)),
        "{:#?}\n{said}",
        broken(&report)
    );
    assert!(report["faults"].as_u64().unwrap() >= 6, "{report:#}");
    assert!(!report["recovery"].as_object().unwrap().is_empty(), "{report:#}");
    node.stop_well();
}

#[test]
fn what_is_asked_wrongly_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let (code, _, said) = chaos(dir.path(), &["--targets", "actor-kil"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("did you mean `actor-kill`?"), "{said}");
    let (code, list, _) = chaos(dir.path(), &["--list"]);
    assert_eq!((code, list.as_array().unwrap().len()), (Some(0), KINDS.len()));
    std::fs::create_dir(dir.path().join("run")).unwrap();
    let (code, _, said) = chaos(dir.path(), &["--duration", "1s"]);
    assert_eq!(code, Some(2), "somebody's folder is not emptied: {said}");
}
