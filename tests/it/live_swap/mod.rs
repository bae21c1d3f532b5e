//! Scripts swapped while data flows: with real nodes, real files and real Kafka.

mod faults;
mod operator;
mod storm;

use crate::support::{Bench, NodeProcess, wait_for};
use serde_json::{Value, json};
use std::path::PathBuf;

/// A bench whose streams have scripts in a folder of the test's own: the shipped ones.
fn bench(brokers: &str) -> Bench {
    let mut bench = Bench::new(brokers);
    bench.own_scripts();
    bench.create_topics();
    bench
}

/// The file of a stream's script.
fn file(bench: &Bench, stream: &str) -> PathBuf {
    let of = bench.config.streams.iter().find(|s| s.name == stream).unwrap();
    bench.config.python.transforms_dir.join(format!("{}.py", of.transform))
}

/// Saves a script as most editors do: a new file takes the place of the old one.
fn save(bench: &Bench, stream: &str, text: &str) {
    let path = file(bench, stream);
    let fresh = path.with_extension("py.tmp");
    std::fs::write(&fresh, text).unwrap();
    std::fs::rename(fresh, path).unwrap();
}

/// Events of the stream `features` as they are, each row stamped with the version's number by its
/// `created_at`; `more` runs before that for each event.
fn stamped(version: u32, more: &str) -> String {
    format!(
        "
import datetime, os

STAMP = datetime.datetime(2000, 1, 1, tzinfo=datetime.timezone.utc) + datetime.timedelta(seconds={version})

def transform(event: dict) -> dict:
    {more}
    return dict(entity_id=event['entity_id'], feature_name=event['feature_name'].strip(),
                value=event['value'], event_timestamp=event['validated_at'], created_at=STAMP)
"
    )
}

/// What the node says of a stream's script.
fn script_of(node: &NodeProcess, stream: &str) -> Value {
    node.status()["python"]["scripts"][stream].clone()
}

/// The version of a text as the script of a stream.
fn version_of(bench: &Bench, stream: &str, text: &str) -> String {
    let path = file(bench, stream);
    millstream::python::Script::new("any", &path, text).sha256
}

/// Waits until a stream runs this version.
fn wait_running(node: &NodeProcess, stream: &str, version: &str) {
    wait_for(&format!("{stream} to run {version}"), || {
        (script_of(node, stream)["version"] == version).then_some(())
    });
}

/// POSTs to the scripts' interface: status and body.
fn post(node: &NodeProcess, path: &str, body: &Value) -> (u16, Value) {
    let url = format!("http://{}/api/transforms/{path}", node.http);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = client.post(url).header("content-type", "application/json");
        let answer = request.body(body.to_string()).send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap())
    })
}

/// Deploys a text: what was decided.
fn deploy(node: &NodeProcess, stream: &str, text: &str) -> Value {
    let (status, decided) = post(node, "deploy", &json!({ "stream": stream, "source": text }));
    assert_eq!(status, 200, "{decided}");
    decided
}

/// What happened to a stream's script, the oldest first.
fn history(node: &NodeProcess, stream: &str) -> Vec<Value> {
    let (status, text) = node.get(&format!("/api/transforms/history?stream={stream}&limit=1000"));
    assert_eq!(status, 200, "{text}");
    let mut events: Vec<Value> = serde_json::from_str(&text).unwrap();
    events.reverse();
    events
}

/// What was decided on a version, once that is known.
fn wait_decided(node: &NodeProcess, stream: &str, version: &str) -> Value {
    wait_for(&format!("a verdict on {version}"), || {
        let last = script_of(node, stream)["last"].clone();
        (last["version"] == version).then_some(last)
    })
}
