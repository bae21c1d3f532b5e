//! The metrics that a live node exports are those of the catalogue.

use crate::support::{Bench, wait_for};
use millstream::telemetry::catalogue::{CATALOGUE, Kind, STAGES};

#[test]
fn every_stage_has_an_endpoint_and_every_series_stands_in_the_catalogue() {
    let mut bench = Bench::new("");
    bench.config.generator.rate = 1_000.0;
    bench.config.streams[0].max_age_s = Some(3_600);
    let node = bench.node("generate,process,store");
    wait_for("rows", || (node.committed_events() > 2_000).then_some(()));
    wait_for("readiness", || (node.get("/readyz").0 == 200).then_some(()));
    let text = wait_for("lag from the statistics, and what is newest", || {
        let (status, text) = node.get("/metrics");
        assert_eq!(status, 200);
        let asked_for_now_and_then =
            ["millstream_kafka_lag_records{", "millstream_feature_freshness_seconds{"];
        asked_for_now_and_then.iter().all(|series| text.contains(series)).then_some(text)
    });
    let series = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).count();
    assert!(series < 2_000, "{series} series");
    let known = |name: &str| {
        CATALOGUE.iter().any(|metric| match metric.kind {
            Kind::Histogram(_) => ["", "_bucket", "_sum", "_count"]
                .iter()
                .any(|suffix| name.strip_suffix(suffix) == Some(metric.name)),
            _ => name == metric.name,
        })
    };
    for line in text.lines().filter(|l| l.starts_with("millstream_")) {
        let name = line.split(['{', ' ']).next().unwrap();
        assert!(known(name), "{name} does not stand in the catalogue");
    }
    // What has not happened is there all the same, but for swaps: only they know their scripts.
    for metric in CATALOGUE.iter().filter(|m| m.name != "millstream_script_swap_seconds") {
        assert!(text.contains(&format!("\n{}", metric.name)), "{} is not exported", metric.name);
        assert!(text.contains(&format!("# HELP {} ", metric.name)), "{} has no help", metric.name);
    }
    for stage in STAGES {
        let (status, text) = node.get(&format!("/metrics/{stage}"));
        assert_eq!(status, 200, "{stage}");
        assert!(text.contains(&format!("stage=\"{stage}\"")), "{stage}:\n{text}");
        for other in STAGES.iter().filter(|s| **s != stage) {
            assert!(!text.contains(&format!("stage=\"{other}\"")), "{stage} shows {other}");
        }
    }
    assert_eq!(node.get("/metrics/nonsense").0, 404);
    node.stop_well();
}
