//! `millstream transforms`: versions deployed, rolled back, paused, reconfigured and compared from
//! the command line.

use crate::support::{
    Bench, NodeProcess, Sent, ended, event, file, millstream, produce, run_json, says, scripted,
    transforms, wait_for,
};
use millstream::python::Script;
use serde_json::{Value, json};
use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};

/// A script whose rows have this value.
fn script(value: &str) -> String {
    format!(
        "
def transform(batch: list[dict], ctx) -> list[dict]:
    return [dict(_row=event['_row'], entity_id=event['entity_id'], feature_name='f', value={value},
                 event_timestamp=event['validated_at']) for event in batch]
"
    )
}

/// Loses the events with 1 and, as dead letters, those with 3; adds 1 to 4.
const OTHER: &str = "
def transform(batch: list[dict], ctx) -> list[dict]:
    rows = []
    for event in batch:
        value = event['value']
        if value == 3:
            ctx.reject(event['_row'], 'three')
        elif value != 1:
            rows.append(dict(_row=event['_row'], entity_id=event['entity_id'], feature_name='f',
                             value=value + (value == 4), event_timestamp=event['validated_at']))
    return rows
";

const FAILS: &str = "
def transform(event: dict):
    raise ValueError('no good')
";

/// A node with one stream, and how it is told.
struct Live {
    bench: Bench,
    node: NodeProcess,
    brokers: String,
}

impl Live {
    fn start(script: &str) -> Self {
        let bench = scripted(script);
        let node = bench.node("process,store");
        wait_for("the node to be ready", || (node.get("/readyz").0 == 200).then_some(()));
        let brokers = node.status()["brokers"].as_str().unwrap().to_owned();
        Self { bench, node, brokers }
    }

    /// An event with each of these values.
    fn send(&self, values: &[i32]) {
        let sent = |value: &i32| Sent {
            payload: Some(event(&value.to_string()).into_bytes()),
            partition: Some(0),
            ..Sent::default()
        };
        let sent: Vec<Sent> = values.iter().map(sent).collect();
        produce(&self.brokers, self.bench.topic("features"), &sent);
    }

    /// Waits until so many events are through in all.
    fn landed(&self, events: u64) {
        wait_for("events to land", || (self.node.committed_events() >= events).then_some(()));
    }

    /// Rows with this value.
    fn rows_with(&self, value: i32) -> i64 {
        let sql = format!("SELECT count(*) AS n FROM features_table WHERE value = {value}");
        self.node.query(&sql)[0]["n"].as_i64().unwrap()
    }

    /// `millstream transforms` with these words, at this node.
    fn tell(&self, words: &[&str]) -> Command {
        let mut command = millstream();
        command.arg("transforms").args(words).args(["--http", &self.node.http.to_string()]);
        command
    }

    fn deploy(&self, path: &Path) -> Command {
        let mut command = transforms(&self.bench, "deploy");
        command.arg(path).args(["--stream", "features", "--http", &self.node.http.to_string()]);
        command
    }

    fn list(&self) -> Value {
        let http = self.node.http.to_string();
        run_json(transforms(&self.bench, "list").args(["--json", "--http", &http]))[0].clone()
    }

    /// What happened, the newest first.
    fn history(&self) -> Vec<Value> {
        let history = run_json(&mut self.tell(&["history", "features", "--json"]));
        history.as_array().unwrap().clone()
    }
}

fn version_of(path: &Path) -> String {
    Script::read(path).unwrap().sha256
}

fn actions(history: &[Value]) -> Vec<&str> {
    history.iter().map(|event| event["action"].as_str().unwrap()).collect()
}

fn refused(command: &mut Command, code: i32, expected: &str) {
    let (ended_with, stdout, stderr) = ended(command);
    assert_eq!(ended_with, Some(code), "{stdout}{stderr}");
    assert!(says(&stderr, expected), "{expected}: {stderr}");
}

#[test]
fn a_version_that_passes_takes_over_and_one_that_does_not_is_refused_with_its_traceback() {
    let live = Live::start(&script("event['value']"));
    live.send(&[1, 2, 3]);
    live.landed(3);
    let doubled = file(&live.bench, "doubled.py", script("event['value'] * 2"));
    let (code, stdout, stderr) = ended(&mut live.deploy(&doubled));
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    let version = version_of(&doubled);
    for expected in [
        format!("features runs {} now, after ", &version[..12]).as_str(),
        "0 rows added, 0 gone, ",
        "changed",
        "3 at 2024-05-01T10:00:00Z",
        "6 at 2024-05-01T10:00:00Z",
    ] {
        assert!(stdout.contains(expected), "{expected}: {stdout}");
    }
    live.send(&[10]);
    live.landed(4);
    assert_eq!((live.rows_with(20), live.rows_with(10)), (1, 0));
    refused(&mut live.deploy(&doubled), 2, "runs that version already");

    let fails = file(&live.bench, "fails.py", FAILS);
    let (code, stdout, stderr) = ended(live.deploy(&fails).arg("--json"));
    assert_eq!(code, Some(5), "{stdout}{stderr}");
    let decided: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&decided["action"], &decided["stream"]), (&json!("refused"), &json!("features")));
    assert_eq!(
        (&decided["version"], &decided["from"]),
        (&json!(version_of(&fails)), &json!(version))
    );
    assert!(decided["reason"].as_str().unwrap().contains("ValueError: no good"), "{decided:#}");
    assert!(stderr.contains("Traceback (most recent call last)"), "{stderr}");
    assert!(says(&stderr, "ValueError: no good"), "{stderr}");
    assert!(says(&stderr, "`features` goes on as before"), "{stderr}");

    let broken = file(&live.bench, "broken.py", "def transform(event: dict)\n    return None\n");
    let (code, stdout, stderr) = ended(&mut live.deploy(&broken));
    assert_eq!((code, stdout.as_str()), (Some(5), ""), "{stderr}");
    assert!(says(&stderr, "the script cannot be loaded: SyntaxError"), "{stderr}");
    assert!(stderr.contains("under_test.py\", line 1"), "{stderr}");

    let listed = live.list();
    assert_eq!((&listed["active"], &listed["differs"]), (&json!(version), &json!(true)));
    assert_eq!(listed["last"]["action"], "refused");
    assert_eq!((&listed["paused"], &listed["trying"]), (&Value::Null, &Value::Null));
    let http = live.node.http.to_string();
    let (_, stdout, _) = ended(transforms(&live.bench, "list").args(["--http", &http]));
    let shown =
        format!("refused {}: the script cannot be loaded: SyntaxError", &version_of(&broken)[..12]);
    assert!(stdout.contains(&shown) && stdout.contains("the file is "), "{stdout}");
    live.node.stop_well();
}

#[test]
fn an_earlier_version_runs_again_and_history_tells_it() {
    let live = Live::start(&script("event['value']"));
    live.send(&[1]);
    live.landed(1);
    refused(&mut live.tell(&["rollback", "features"]), 2, "no earlier version");
    let doubled = file(&live.bench, "doubled.py", script("event['value'] * 2"));
    let decided = run_json(live.deploy(&doubled).arg("--json"));
    let (first, second) = (decided["from"].as_str().unwrap(), decided["version"].as_str().unwrap());
    assert_eq!((&decided["action"], second), (&json!("deployed"), version_of(&doubled).as_str()));
    assert!(decided["trial"]["difference"]["changed"].as_u64().unwrap() > 0, "{decided:#}");

    let (code, stdout, stderr) = ended(&mut live.tell(&["rollback", "features"]));
    assert_eq!(code, Some(0), "{stderr}");
    let shown = format!("features runs {} again, after {}", &first[..12], &second[..12]);
    assert!(stdout.contains(&shown), "{stdout}");
    live.send(&[10]);
    live.landed(2);
    assert_eq!((live.rows_with(10), live.rows_with(20)), (1, 0));
    let again = run_json(&mut live.tell(&["rollback", "features", "--to", &second[..8], "--json"]));
    assert_eq!((&again["action"], &again["version"]), (&json!("rolled_back"), &json!(second)));
    refused(&mut live.tell(&["rollback", "features", "--to", "ffffffffff"]), 2, "ffffffffff");
    refused(&mut live.tell(&["rollback", "nothing"]), 2, "there is no stream `nothing`");

    let history = live.history();
    assert_eq!(actions(&history), ["rolled_back", "rolled_back", "deployed", "deployed"]);
    assert_eq!((&history[1]["version"], &history[1]["from"]), (&json!(first), &json!(second)));
    let newest = run_json(&mut live.tell(&["history", "--limit", "1", "--json"]));
    assert_eq!(newest, json!([history[0]]));
    let (_, stdout, _) = ended(&mut live.tell(&["history"]));
    for expected in ["rolled back", "the first version", &first[..12], "test-node"] {
        assert!(stdout.contains(expected), "{expected}: {stdout}");
    }
    live.node.stop_well();
}

#[test]
fn events_of_a_paused_stream_wait_and_go_through_what_runs_when_it_is_resumed() {
    let live = Live::start(&script("event['value']"));
    live.send(&[1]);
    live.landed(1);
    let (code, stdout, stderr) =
        ended(&mut live.tell(&["pause", "features", "--reason", "a look at the data"]));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(
        stdout.contains("features is paused") && stdout.contains("a look at the data"),
        "{stdout}"
    );
    assert!(stderr.contains("millstream transforms resume features"), "{stderr}");
    assert_eq!(live.list()["paused"], "a look at the data");
    live.send(&[10]);
    let came = || {
        let name = "millstream_stage_received_events_total";
        live.node.metric(name, &["stage=\"python_worker_supervisor\""])
    };
    wait_for("the event to come as far as the scripts", || (came() >= 2.0).then_some(()));
    // Had it not waited, it would have gone through the version before.
    let doubled = file(&live.bench, "doubled.py", script("event['value'] * 2"));
    run_json(live.deploy(&doubled).arg("--json"));
    assert_eq!(live.node.committed_events(), 1);
    let resumed = run_json(&mut live.tell(&["resume", "features", "--json"]));
    assert_eq!(resumed["action"], "resumed");
    live.landed(2);
    assert_eq!((live.rows_with(20), live.rows_with(10)), (1, 0));
    assert_eq!(live.list()["paused"], Value::Null);
    refused(&mut live.tell(&["resume", "features"]), 2, "it is not paused");
    refused(
        &mut live.tell(&["resume", "features", "--dead-letter"]),
        2,
        "is suspected on this node",
    );
    assert_eq!(actions(&live.history()), ["resumed", "deployed", "paused", "deployed"]);
    live.node.stop_well();
}

#[test]
fn other_parameters_count_once_they_passed_a_trial_and_until_they_are_taken_back() {
    let live = Live::start(&script("event['value'] * ctx.params.get('factor', 1)"));
    live.send(&[2]);
    live.landed(1);
    let reconfigure = |words: &[&str]| live.tell(&[&["reconfigure", "features"], words].concat());
    let decided = run_json(&mut reconfigure(&["--param", "factor=10", "--json"]));
    assert_eq!(decided["action"], "reconfigured");
    assert!(decided["trial"]["difference"]["changed"].as_u64().unwrap() > 0, "{decided:#}");
    live.send(&[3]);
    live.landed(2);
    assert_eq!(live.rows_with(30), 1);

    refused(&mut reconfigure(&["--param", "factor=many"]), 5, "TypeError");
    refused(&mut reconfigure(&["--param", "factor"]), 2, "KEY=VALUE");
    refused(&mut reconfigure(&["--params", "[1]"]), 2, "JSON object");

    let both = ["--params", "{\"factor\": 5, \"unit\": \"m\"}", "--param", "factor=7"];
    let (code, stdout, stderr) = ended(&mut reconfigure(&both));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("with other parameters"), "{stdout}");
    live.send(&[4]);
    live.landed(3);
    assert_eq!(live.rows_with(28), 1, "those given one by one go over the object's");

    run_json(&mut reconfigure(&["--json"]));
    live.send(&[5]);
    live.landed(4);
    assert_eq!(live.rows_with(5), 1, "the configuration's again");
    let history = live.history();
    let expected = ["reconfigured", "reconfigured", "refused", "reconfigured", "deployed"];
    assert_eq!(actions(&history), expected);
    assert_eq!(history[1]["params"], json!({"factor": 7, "unit": "m"}));
    let (_, stdout, _) = ended(&mut live.tell(&["history", "features"]));
    assert!(stdout.contains("{\"factor\":10}: on 1 events"), "{stdout}");
    live.node.stop_well();
}

/// A file with events of the values 0 to 4.
fn five(bench: &Bench) -> PathBuf {
    file(bench, "five.ndjson", ["0", "1", "2", "3", "4"].map(event).join("\n"))
}

/// `other.py` tried on the five events, against `against`.
fn held(bench: &Bench, other: &Path, against: &str) -> Command {
    let mut attempt = transforms(bench, "try");
    attempt.arg(other).args(["--stream", "features", "--diff-against", against, "--input"]);
    attempt.arg(five(bench));
    attempt
}

/// What is the same of each way to name the identity.
fn assert_differs(difference: &Value, against: &str) {
    assert_eq!(difference["against"], against, "{difference:#}");
    let counts = ["added", "gone", "changed", "same", "dead_before", "dead_after"]
        .map(|name| difference[name].as_u64().unwrap());
    assert_eq!(counts, [0, 2, 1, 2, 0, 1], "{difference:#}");
    assert!(difference["time_ratio"].as_f64().unwrap() > 0.0, "{difference:#}");
}

#[test]
fn two_scripts_are_compared_over_all_batches_without_a_node() {
    let mut bench = scripted(&script("event['value']"));
    bench.config.batch.max_rows = 2;
    // Nobody listens there any more.
    bench.config.node.http =
        TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).unwrap();
    let other = file(&bench, "other.py", OTHER);
    let report = run_json(held(&bench, &other, "under_test").arg("--json"));
    assert_eq!((&report["script"], &report["counts"]["rows"]), (&json!("other"), &json!(3)));
    let difference = &report["difference"];
    assert_differs(difference, &version_of(&crate::support::script_of(&bench)));
    let told: Vec<_> = difference["examples"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| (e["change"].as_str().unwrap(), e["row"].as_u64().unwrap(), e["after"].as_str()))
        .collect();
    let after = Some("5 at 2024-05-01T10:00:00Z");
    assert_eq!(told, [("gone", 1, None), ("gone", 3, None), ("changed", 4, after)]);

    let (code, stdout, stderr) = ended(&mut held(&bench, &other, "under_test"));
    assert_eq!(code, Some(0), "{stderr}");
    for expected in [
        "(under_test): 0 rows added, 2 gone, 1 changed, 2 the same; dead events 0 before, 1 now",
        "4 at 2024-05-01T10:00:00Z",
        "5 at 2024-05-01T10:00:00Z",
        " times: ",
    ] {
        assert!(stdout.contains(expected), "{expected}: {stdout}");
    }
    refused(&mut held(&bench, &other, "running"), 4, "no node answers");
    refused(&mut held(&bench, &other, "no_such_thing"), 2, "neither `running`");
    let broken = file(&bench, "broken.py", "import no_such_package_at_all\n");
    refused(&mut held(&bench, &other, broken.to_str().unwrap()), 5, "no_such_package_at_all");
}

#[test]
fn a_script_is_compared_with_the_version_that_runs_and_with_an_earlier_one() {
    let live = Live::start(&script("event['value']"));
    live.send(&[1]);
    live.landed(1);
    let http = live.node.http.to_string();
    let other = file(&live.bench, "other.py", OTHER);
    let difference = |against: &str| {
        let report = run_json(held(&live.bench, &other, against).args(["--json", "--http", &http]));
        report["difference"].clone()
    };
    let first = live.list()["active"].as_str().unwrap().to_owned();
    assert_differs(&difference("running"), &first);
    run_json(live.deploy(&file(&live.bench, "same.py", OTHER.replace('3', "3.0"))).arg("--json"));
    let running = difference("running");
    assert_ne!(running["against"], json!(first));
    let counts = ["added", "gone", "changed", "same"].map(|name| running[name].as_u64().unwrap());
    assert_eq!(counts, [0, 0, 0, 3], "{running:#}");
    for earlier in [&first[..6], &first[..20], &first] {
        assert_differs(&difference(earlier), &first);
    }
    let unknown = if first.starts_with("ffffff") { "000000" } else { "ffffff" };
    let mut unknown = held(&live.bench, &other, unknown);
    refused(unknown.args(["--http", &http]), 2, "has never known a version");
    live.node.stop_well();
}
