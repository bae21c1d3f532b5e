//! A batch can be followed through the log by its id.

use crate::support::{Bench, NodeProcess, wait_for};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

#[test]
fn a_batchs_id_stands_in_every_line_about_it_from_its_closing_to_duckdb() {
    let mut bench = Bench::new("");
    bench.config.generator.rate = 500.0;
    let mut node = NodeProcess::spawned_with(
        &bench,
        "generate,process,store",
        "",
        &["--log-format", "json", "-v"],
    );
    node.learn_addresses();
    wait_for("rows", || (node.committed_events() > 500).then_some(()));
    let log = node.log();
    node.stop_well();
    let lines: Vec<Value> = log.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    assert!(lines.len() > 20, "{log}");
    // What was said of each batch: in a field of its own, or by a span around it.
    let mut said = BTreeMap::<String, BTreeSet<String>>::new();
    for line in &lines {
        let spans = line["spans"].as_array().into_iter().flatten();
        let of_spans = spans.flat_map(|s| [&s["id"], &s["batches"]]).chain([&line["batch"]]);
        for ids in of_spans.filter_map(Value::as_str) {
            for id in ids.split(' ') {
                let target = line["target"].as_str().unwrap().split("::").nth(2).unwrap();
                let what = line["message"].as_str().unwrap();
                said.entry(id.to_owned()).or_default().insert(format!("{target}: {what}"));
            }
        }
    }
    let way = [
        "batch_accumulator: closed",
        "duckdb_writer: durable",
        "python_worker_supervisor: transformed",
        "redis_queue: its critical features are online",
        "redis_queue: onto the queue",
    ];
    let whole = said.values().filter(|of| way.iter().all(|step| of.contains(*step))).count();
    assert!(whole > 3, "{said:#?}");
}
