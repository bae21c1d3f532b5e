//! Features as clients read them: the newest, as of the past, and what is known of them.

mod asof;
mod concurrent;
mod hostile;
mod online;
mod stored;

use crate::support::{Bench, NodeProcess, millstream, run_json};
use serde_json::json;

const TEN_YEARS_S: u64 = 10 * 365 * 86_400;

/// The rows that the recorded question is about.
const ROWS: [(&str, &str, Option<f64>, &str); 8] = [
    ("whole", "score", Some(1.0), "2026-01-01T12:00:00Z"),
    ("whole", "clicks", Some(3.0), "2026-01-01T12:00:00.010Z"),
    ("empty", "score", None, "2026-01-01T12:00:00.5Z"),
    ("empty", "clicks", Some(1e22), "2026-01-01T12:00:00.000001Z"),
    ("old", "score", Some(7.0), "1999-12-31T23:59:59Z"),
    ("old", "clicks", None, "1999-12-31T23:59:59Z"),
    ("half", "score", Some(0.1), "2026-01-01T12:00:00.123456Z"),
    // An older value comes later, and changes nothing.
    ("half", "score", Some(9.0), "2026-01-01T11:00:00Z"),
];

fn bench() -> Bench {
    bench_on("")
}

fn bench_on(brokers: &str) -> Bench {
    let mut bench = Bench::new(brokers);
    let stream = &mut bench.config.streams[0];
    stream.name = "stats".into();
    stream.max_age_s = Some(TEN_YEARS_S);
    // A value may be NULL here.
    stream.required.retain(|field| field != "value");
    bench
}

/// Takes rows in as a file, and waits until they have landed.
fn load(bench: &Bench, node: &NodeProcess, name: &str, rows: &str) {
    let file = bench.dir.path().join(name);
    std::fs::write(&file, rows).unwrap();
    let grpc = node.grpc.to_string();
    let mut command = millstream();
    command.arg("upload").arg(&file).args(["--stream", "stats", "--json", "--grpc", &grpc]);
    let receipt = run_json(&mut command);
    assert_eq!((&receipt["state"], &receipt["dead_letters"]), (&json!("landed"), &json!(0)));
}

fn line(entity: &str, feature: &str, value: Option<f64>, at: &str) -> String {
    let row = json!({
        "entity_id": entity, "feature_name": feature, "value": value, "validated_at": at,
        "created_at": at,
    });
    format!("{row}\n")
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
