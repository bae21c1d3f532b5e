//! Files and Kafka at once.

use super::{Sending, kind, landed, made, ndjson, send};
use crate::support::{Bench, broker, expected, wait_for};

#[test]
fn files_and_kafka_at_once_land_side_by_side() {
    let Some(brokers) = broker("uploads: beside Kafka") else { return };
    let mut bench = Bench::new(&brokers);
    let _redis = bench.redis();
    bench.config.generator.upload_every_s = 0.0;
    let (store, process) = (bench.node("store"), bench.node("process"));
    let tasks = bench.generate();
    wait_for("events", || (store.committed_events() > 5_000).then_some(()));
    let (mut rows, before) = (0, store.committed_events());
    for i in 0..8 {
        let (key, n) = (format!("file {i}"), 40_000);
        let sending = Sending::new(&key, kind("x.ndjson"), &ndjson(i * n, n), 1 << 20);
        send(process.grpc, &sending).unwrap();
        rows += n as i64;
    }
    for i in 0..8 {
        landed(&process, &format!("file {i}"));
    }
    let live = store.committed_events() - before - rows as u64;
    assert!(live > 1_000, "Kafka flows beside files: {live}");
    let chunks = process.metric("millstream_upload_chunks_total", &[]);
    assert!(chunks >= 8.0, "pieces of files travel as Parquet: {chunks}");
    tasks.stop();
    process.verify();
    assert_eq!(made(&process), (rows, 0));
    process.stop_well();
    store.stop_well();
    bench.judge_books();
    // Rows of these files have no id, which the judge of ids takes for one.
    let report = bench.judge(&expected(&tasks));
    assert_eq!(report.lost, 0, "{report:#?}");
}
