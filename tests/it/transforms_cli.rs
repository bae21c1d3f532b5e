//! `millstream transforms`: scripts listed, tried and tested from the command line.

use crate::support::{
    Bench, Sent, ended, event, file, produce, run_json, says, script_of, scripted, transforms,
    wait_for,
};
use millstream::python::Script;
use serde_json::{Value, json};
use std::{net::TcpListener, path::Path, process::Command};

/// Fails the whole batch in which it finds the value 7.
const NO_SEVEN: &str = "
def transform(batch: list[dict]) -> list[dict]:
    print('looking at', len(batch))
    rows = []
    for event in batch:
        if event['value'] == 7:
            raise ValueError('seven is not taken')
        if event['value'] is not None:
            rows.append(dict(_row=event['_row'], entity_id=event['entity_id'], feature_name='f',
                             value=event['value'], event_timestamp=event['validated_at']))
    return rows
";

fn attempt(bench: &Bench, script: &str, input: &Path) -> Command {
    let mut attempt = transforms(bench, "try");
    attempt.arg(script).arg("--input").arg(input);
    attempt
}

/// A report without what a file's format and the clock decide.
fn compared(mut report: Value) -> Value {
    report.as_object_mut().unwrap().remove("timing");
    for letter in report["dead_letters"].as_array_mut().unwrap() {
        letter.as_object_mut().unwrap().remove("raw");
    }
    report
}

#[test]
fn the_same_rows_as_json_ndjson_and_parquet_give_the_same() {
    let bench = Bench::new("");
    let at = |i: usize| format!("2024-05-01T10:{:02}:{:02}Z", i / 60 % 60, i % 60);
    let actions = ["view", "click", "scroll", "purchase", "add_to_cart"];
    let lines: Vec<String> = (0..300)
        .map(|i| {
            let user = if i == 120 { Value::Null } else { json!(i % 40) };
            let action = if i == 6 { Value::Null } else { json!(actions[i % actions.len()]) };
            json!({"user_id": user, "action": action, "timestamp": at(i), "page": "p",
                   "duration_ms": i * 10, "amount": i as f64 + 0.25})
            .to_string()
        })
        .collect();
    let ndjson = file(&bench, "rows.ndjson", lines.join("\n"));
    let parquet = bench.dir.path().join("rows.parquet");
    let convert = format!(
        "COPY (SELECT * REPLACE (\"timestamp\"::TIMESTAMPTZ AS \"timestamp\")
               FROM read_json('{}', columns = {{user_id: 'BIGINT', action: 'VARCHAR', \"timestamp\": 'VARCHAR',
                                                page: 'VARCHAR', duration_ms: 'BIGINT', amount: 'DOUBLE'}}))
         TO '{}' (FORMAT parquet);",
        ndjson.display(),
        parquet.display()
    );
    duckdb::Connection::open_in_memory().unwrap().execute_batch(&convert).unwrap();
    let inputs = [
        ndjson,
        parquet,
        file(&bench, "lines.json", format!("[\n{}\n]\n", lines.join(",\n"))),
        file(&bench, "line.json", format!("[ {} ]", lines.join(", "))),
    ];
    let reports: Vec<Value> = inputs
        .iter()
        .map(|input| run_json(attempt(&bench, "click_features", input).arg("--json")))
        .map(compared)
        .collect();
    for (report, input) in reports.iter().zip(&inputs) {
        assert_eq!(report, &reports[0], "{}", input.display());
    }
    let report = &reports[0];
    assert_eq!(
        (&report["stream"], &report["style"], &report["ok"]),
        (&json!("clicks"), &json!("polars"), &json!(true))
    );
    // 60 scrolls yield nothing, of the other events two are dead; each of the 60 purchases yields two rows.
    let counts = json!({"events": 300, "kept": 238, "filtered": 60, "dead": 2, "rows": 298});
    assert_eq!(report["counts"], counts);
    assert_eq!(report["rows"].as_array().unwrap().len(), 298);
    let first = json!({"row": 0, "entity_id": "0", "feature_name": "clicks_dwell_seconds", "value": 0.0,
                       "event_timestamp": "2024-05-01T10:00:00Z", "created_at": null});
    assert_eq!(report["rows"][0], first);
    let dead: Vec<_> = report["dead_letters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|letter| (letter["row"].as_i64(), letter["stage"].as_str(), letter["reason"].as_str()))
        .collect();
    let decode = Some("decode");
    assert_eq!(
        dead,
        [(Some(6), decode, Some("missing_field")), (Some(120), decode, Some("missing_entity"))]
    );
}

#[test]
fn one_bad_row_is_one_dead_letter_with_its_traceback() {
    let bench = scripted(NO_SEVEN);
    let values = ["0", "1", "2", "3", "null", "5", "6", "7"];
    let lines = values.map(event).join("\n");
    let input = file(&bench, "rows.ndjson", &lines);
    let report = run_json(attempt(&bench, "under_test", &input).arg("--json"));
    let counts = json!({"events": 8, "kept": 6, "filtered": 1, "dead": 1, "rows": 6});
    assert_eq!((&report["counts"], &report["style"]), (&counts, &json!("rows")));
    let rows: Vec<_> = report["rows"].as_array().unwrap().iter().map(|r| &r["row"]).collect();
    assert_eq!(rows, [0, 1, 2, 3, 5, 6]);
    let letters = report["dead_letters"].as_array().unwrap();
    assert_eq!(letters.len(), 1, "{report:#}");
    let letter = &letters[0];
    assert_eq!(
        (&letter["row"], &letter["stage"], &letter["reason"], &letter["entity_id"]),
        (&json!(7), &json!("transform"), &json!("exception"), &json!("e"))
    );
    let traceback = letter["detail"].as_str().unwrap();
    assert!(traceback.starts_with("Traceback"), "{traceback}");
    assert!(traceback.contains("under_test.py\", line 7, in transform"), "{traceback}");
    assert!(traceback.trim_end().ends_with("ValueError: seven is not taken"), "{traceback}");
    assert_eq!(letter["raw"], event("7"));
    assert!(report["timing"]["workers_started"].as_u64().unwrap() > 1, "{report:#}");
    assert!(report["timing"]["cold_start_s"].as_f64().unwrap() > 0.0);

    let mut in_a_table = attempt(&bench, script_of(&bench).to_str().unwrap(), &input);
    let (code, stdout, stderr) = ended(in_a_table.args(["--rows", "2"]));
    assert_eq!(code, Some(0), "{stderr}");
    for expected in [
        "events of the stream features",
        "8: 6 kept, 1 filtered, 1 dead; 6 rows out",
        "and 4 more rows",
        "exception",
        "ValueError: seven is not taken",
        "to find the rows at fault",
    ] {
        assert!(stdout.contains(expected), "{expected}: {stdout}");
    }
    assert!(!stdout.contains("Traceback"), "only its last line: {stdout}");
    assert!(stderr.contains("looking at 8"), "what a script prints is shown: {stderr}");
    assert!(!stderr.contains("trying again"), "{stderr}");
}

#[test]
fn batches_are_cut_as_a_node_cuts_them_and_rows_are_numbered_over_all() {
    let mut bench = scripted(NO_SEVEN);
    bench.config.batch.max_rows = 3;
    let lines = ["1", "2", "3", "4", "\"x\"", "6"].map(event).join("\n");
    let input = file(&bench, "rows.ndjson", &lines);
    let mut command = attempt(&bench, "under_test", &input);
    let (code, stdout, stderr) = ended(command.arg("--json"));
    assert_eq!(code, Some(0), "{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    let rows: Vec<_> = report["rows"].as_array().unwrap().iter().map(|r| &r["row"]).collect();
    assert_eq!(rows, [0, 1, 2, 3, 5]);
    let letter = &report["dead_letters"][0];
    assert_eq!(
        (&letter["row"], &letter["stage"], &letter["reason"]),
        (&json!(4), &json!("decode"), &json!("wrong_type"))
    );
    assert_eq!(report["timing"]["workers_started"], 1);
    assert!(stderr.contains("looking at 3") && stderr.contains("looking at 2"), "{stderr}");
}

#[test]
fn a_script_that_does_not_load_is_told_with_its_traceback() {
    let bench = scripted("def transform(event: dict)\n    return None\n");
    let input = file(&bench, "rows.ndjson", event("1"));
    let (code, stdout, stderr) = ended(&mut attempt(&bench, "under_test", &input));
    assert_eq!((code, stdout.as_str()), (Some(5), ""), "{stderr}");
    assert!(stderr.contains("under_test.py\", line 1"), "{stderr}");
    assert!(stderr.contains("SyntaxError"), "{stderr}");
    let (code, stdout, _) = ended(attempt(&bench, "under_test", &input).arg("--json"));
    let told: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &told["ok"], &told["stream"]), (Some(5), &json!(false), &json!("features")));
    assert!(told["error"].as_str().unwrap().contains("SyntaxError"), "{told:#}");
    assert!(told["traceback"].as_str().unwrap().contains("line 1"), "{told:#}");
}

#[test]
fn what_cannot_be_tried_is_said_with_what_to_do() {
    let bench = scripted(NO_SEVEN);
    let input = file(&bench, "rows.ndjson", event("1"));
    let refused = |command: &mut Command, code: i32, expected: &str| {
        let (ended_with, _, stderr) = ended(command);
        assert_eq!(ended_with, Some(code), "{stderr}");
        assert!(says(&stderr, expected), "{expected}: {stderr}");
    };
    refused(&mut attempt(&bench, "no_such_script", &input), 2, "no_such_script");
    let other = file(&bench, "other.py", NO_SEVEN);
    refused(&mut attempt(&bench, other.to_str().unwrap(), &input), 2, "--stream");
    let mut named = attempt(&bench, other.to_str().unwrap(), &input);
    let report = run_json(named.args(["--stream", "features", "--json"]));
    assert_eq!((&report["script"], &report["counts"]["rows"]), (&json!("other"), &json!(1)));
    refused(attempt(&bench, "under_test", &input).args(["--stream", "no"]), 2, "`no`");
    let text = file(&bench, "rows.txt", "");
    refused(&mut attempt(&bench, "under_test", &text), 2, ".ndjson");
    refused(&mut attempt(&bench, "under_test", Path::new("/no/file.json")), 2, "/no/file.json");
}

#[test]
fn scripts_are_listed_without_a_node() {
    let mut bench = Bench::new("");
    // Nobody listens there any more.
    bench.config.node.http =
        TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).unwrap();
    bench.config.streams[1].transform = "not_written_yet".into();
    let list = run_json(transforms(&bench, "list").arg("--json"));
    let file = bench.config.python.transforms_dir.join("validate_features.py");
    let version = Script::read(&file).unwrap().sha256;
    let states = [&list[0]["state"], &list[1]["state"]];
    assert_eq!((&list[0]["stream"], states), (&json!("features"), [&json!("no_node"); 2]));
    assert_eq!((&list[0]["sha256"], &list[0]["problem"]), (&json!(version), &Value::Null));
    assert_eq!((&list[1]["stream"], &list[1]["sha256"]), (&json!("clicks"), &Value::Null));
    assert!(list[1]["problem"].is_string(), "{list:#}");
    let (code, stdout, stderr) = ended(&mut transforms(&bench, "list"));
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(stdout.contains("no node") && stdout.contains(&version[..12]), "{stdout}");
    assert!(!stdout.contains(&version[..13]), "{stdout}");
}

#[test]
fn a_node_says_what_became_of_a_script() {
    let bench = scripted("import no_such_package_at_all\n");
    let node = bench.node("process,store");
    wait_for("the node to be ready", || (node.get("/readyz").0 == 200).then_some(()));
    let http = node.http.to_string();
    let listed = || run_json(transforms(&bench, "list").args(["--json", "--http", &http]));
    assert_eq!(listed()[0]["state"], "idle");
    let brokers = node.status()["brokers"].as_str().unwrap().to_owned();
    let sent =
        Sent { payload: Some(event("1").into_bytes()), partition: Some(0), ..Sent::default() };
    produce(&brokers, bench.topic("features"), &[sent]);
    let broken = wait_for("the script to be found broken", || {
        let list = listed();
        (list[0]["state"] == "broken").then_some(list)
    });
    let reason = broken[0]["reason"].as_str().unwrap();
    assert!(reason.contains("no_such_package_at_all"), "{reason}");
    let (_, stdout, _) = ended(transforms(&bench, "list").args(["--http", &http]));
    assert!(stdout.contains("broken: "), "{stdout}");
    assert!(!stdout.contains("Traceback"), "{stdout}");

    std::fs::write(script_of(&bench), NO_SEVEN).unwrap();
    let running = wait_for("a worker of the mended script", || {
        let list = listed();
        (list[0]["state"] == "running").then_some(list)
    });
    assert_eq!(
        (&running[0]["workers"], &running[0]["versions"][0]),
        (&json!(1), &running[0]["sha256"])
    );
    node.stop_well();
}

#[test]
fn tests_run_in_the_scripts_environment_and_their_verdict_is_the_exit_code() {
    let bench = scripted("def transform(event: dict): return None\n");
    let folder = bench.config.python.transforms_dir.join("tests");
    let (code, _, stderr) = ended(&mut transforms(&bench, "test"));
    assert_eq!(code, Some(2), "{stderr}");
    assert!(says(&stderr, "there is no folder"), "{stderr}");

    std::fs::create_dir(&folder).unwrap();
    let tests = "
from under_test import transform
def test_holds(): assert transform({}) is None
def test_fails(): assert transform({}) == 1
";
    std::fs::write(folder.join("test_under_test.py"), tests).unwrap();
    let ran = |arguments: &[&str]| {
        let mut command = transforms(&bench, "test");
        ended(command.args(arguments).args(["--", "-q", "-p", "no:cacheprovider"]))
    };
    let (code, stdout, stderr) = ran(&[]);
    assert_eq!(code, Some(5), "{stdout}{stderr}");
    assert!(stdout.contains("1 failed, 1 passed"), "{stdout}");
    let one = format!("{}::test_holds", folder.join("test_under_test.py").display());
    let (code, stdout, stderr) = ran(&[&one]);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    assert!(stdout.contains("1 passed"), "{stdout}");
    let mut none = transforms(&bench, "test");
    let (code, stdout, stderr) = ended(none.args(["--", "-k", "no_such_test"]));
    assert_eq!(code, Some(2), "{stdout}{stderr}");
    assert!(says(&stderr, "no tests to run"), "{stderr}");
}

#[test]
fn an_environment_without_pytest_is_said_with_what_to_do() {
    let mut bench = scripted(NO_SEVEN);
    std::fs::create_dir(bench.config.python.transforms_dir.join("tests")).unwrap();
    let venv = bench.dir.path().join("venv");
    bench.config.python.venv.clone_from(&venv);
    let failed = |bench: &Bench, code: i32, expected: &str| {
        let (ended_with, _, stderr) = ended(&mut transforms(bench, "test"));
        assert_eq!(ended_with, Some(code), "{stderr}");
        assert!(says(&stderr, expected), "{expected}: {stderr}");
    };
    failed(&bench, 3, "python.venv");
    std::fs::create_dir_all(venv.join("lib/python3/site-packages")).unwrap();
    failed(&bench, 4, "cannot be run");
    std::fs::create_dir(venv.join("bin")).unwrap();
    // An interpreter that finds no pytest.
    std::os::unix::fs::symlink("/bin/false", venv.join("bin/python")).unwrap();
    failed(&bench, 4, "pip install pytest");
}
