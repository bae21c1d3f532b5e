//! A hundred swaps in a minute under load, every second one broken.

use super::{
    bench, deploy, history, save, script_of, stamped, version_of, wait_decided, wait_running,
};
use crate::support::{Slot, broker, expected, wait_for};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

const SWAPS: u32 = 100;
const STORM: Duration = Duration::from_secs(60);
const RATE: f64 = 5_000.0;
/// How long the rate is measured before.
const CALM: Duration = Duration::from_secs(15);

/// The ways in which a version is broken, with a word of the reason for which it is refused.
const BROKEN: [(&str, &str); 5] = [
    ("syntax", "SyntaxError"),
    ("schema", "feature_name"),
    ("import", "no_such_module_anywhere"),
    ("raises", "not every second one"),
    ("loops", "not loaded within"),
];

fn broken(kind: &str, number: u32) -> String {
    let good = stamped(number, "pass");
    match kind {
        "syntax" => format!("{good}\ndef (:\n"),
        "schema" => good.replace("feature_name=event['feature_name'].strip(),", ""),
        "import" => format!("import no_such_module_anywhere\n{good}"),
        "raises" => stamped(
            number,
            "if hash(event['entity_id']) % 2: raise ValueError('not every second one')",
        ),
        "loops" => format!("{good}\nwhile True:\n    pass\n"),
        other => unreachable!("{other}"),
    }
}

#[test]
fn a_hundred_swaps_in_a_minute_every_second_one_broken() {
    let Some(brokers) = broker("live_swap: a hundred swaps") else { return };
    let _alone = Slot::alone();
    let mut bench = bench(&brokers);
    let redis = bench.redis();
    bench.config.generator.rate = RATE;
    bench.config.python.max_workers = 3;
    bench.config.python.load_deadline_s = 1.0;
    let node = bench.node("process,store");
    let tasks = bench.generate();
    wait_for("the flow to keep up", || {
        let behind = tasks.tally().acknowledged().saturating_sub(node.committed_events());
        (node.committed_events() > 20_000 && behind < 1_000).then_some(())
    });
    let calm_from = chrono::Utc::now();
    std::thread::sleep(CALM);
    let storm_from = chrono::Utc::now();
    let started = Instant::now();

    let mut stamps: BTreeMap<String, Option<u32>> = BTreeMap::new();
    let mut running = script_of(&node, "features")["version"].as_str().unwrap().to_owned();
    // The version that shipped stamps nothing.
    stamps.insert(running.clone(), None);
    let mut slowest: f64 = 0.0;
    let mut took_by_kind: BTreeMap<&str, (u32, Duration)> = BTreeMap::new();
    for number in 1..=SWAPS {
        let good = number % 2 == 1;
        let (kind, word) = BROKEN[(number as usize / 2) % BROKEN.len()];
        let text = if good { stamped(number, "pass") } else { broken(kind, number) };
        let version = version_of(&bench, "features", &text);
        let asked = Instant::now();
        // Saved and deployed in turn.
        let decided = if number % 4 < 2 {
            save(&bench, "features", &text);
            wait_decided(&node, "features", &version)
        } else {
            deploy(&node, "features", &text)
        };
        if good {
            assert_eq!(decided["action"], "deployed", "{decided}");
            wait_running(&node, "features", &version);
            stamps.insert(version.clone(), Some(number));
            running = version;
        } else {
            assert_eq!(decided["action"], "refused", "{kind}: {decided}");
            let reason = decided["reason"].as_str().unwrap();
            assert!(reason.contains(word), "{kind}: {reason}");
            assert_eq!(script_of(&node, "features")["version"], running, "{kind}");
        }
        if let Some(seconds) = script_of(&node, "features")["swap_s"].as_f64() {
            slowest = slowest.max(seconds);
        }
        let kind = if good { "good" } else { kind };
        let (n, sum) = took_by_kind.entry(kind).or_insert((0, Duration::ZERO));
        (*n, *sum) = (*n + 1, *sum + asked.elapsed());
        // Evenly over the minute.
        let due = started + STORM * number / SWAPS;
        let late = Instant::now().saturating_duration_since(due);
        if late > Duration::ZERO {
            println!("{number} ({kind}) took {:?}, {late:?} late", asked.elapsed());
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    let (took, storm_to) = (started.elapsed(), chrono::Utc::now());
    for (kind, (n, sum)) in &took_by_kind {
        println!("{kind}: decided after {:?} on average", *sum / *n);
    }
    println!("{SWAPS} swaps took {took:?}");
    assert!(took < STORM + Duration::from_secs(1), "the swaps took {took:?}");

    tasks.stop();
    node.verify();
    let events = history(&node, "features");
    let count = |action: &str| events.iter().filter(|e| e["action"] == action).count();
    // The first version is an event, too.
    assert_eq!((count("deployed"), count("refused"), count("rolled_back")), (51, 50, 0));
    assert_eq!(events.len(), 101);
    for (result, n) in [("deployed", 51.0), ("refused", 50.0), ("rolled_back", 0.0)] {
        let labels = ["validate_features", result];
        assert!(
            (node.metric("millstream_script_swaps_total", &labels) - n).abs() < 0.5,
            "{result}"
        );
    }
    let exported = node.metric("millstream_script_swap_seconds_count", &["validate_features"]);
    assert!(exported > 10.0, "swaps that came from files are measured: {exported}");
    println!("from saving to the first batch: at most {slowest:.3} s in the storm");
    assert!(slowest < 2.0, "{slowest}");

    let ledger = "SELECT l.script_sha256 AS version, min(epoch(f.created_at) - epoch(TIMESTAMPTZ '2000-01-01 00:00:00+00')) AS low,
                         max(epoch(f.created_at) - epoch(TIMESTAMPTZ '2000-01-01 00:00:00+00')) AS high
                  FROM ingest_ledger l JOIN features_table f USING (batch_seq, source_no)
                  WHERE l.transform = 'validate_features' GROUP BY 1";
    let lines = node.query(ledger);
    let mut with_rows = 0;
    for line in lines.as_array().unwrap() {
        let stamp = stamps[line["version"].as_str().unwrap()];
        let Some(stamp) = stamp else { continue };
        with_rows += 1;
        let stamp = Value::from(f64::from(stamp));
        assert_eq!((&line["low"], &line["high"]), (&stamp, &stamp), "{line}");
    }
    assert!(with_rows >= 40, "most versions had batches: {with_rows}");

    let rate = |from: chrono::DateTime<chrono::Utc>, to: chrono::DateTime<chrono::Utc>| -> f64 {
        let sql = format!(
            "SELECT sum(n_in)::BIGINT AS n FROM ingest_ledger WHERE transform = 'validate_features'
             AND committed_at BETWEEN '{}' AND '{}'",
            from.to_rfc3339(),
            to.to_rfc3339()
        );
        let n = node.query(&sql)[0]["n"].as_f64().unwrap();
        n / (to - from).as_seconds_f64()
    };
    let (before, during) = (rate(calm_from, storm_from), rate(storm_from, storm_to));
    println!("events/s of the stream: {before:.0} before, {during:.0} while swapping");
    assert!(during >= 0.8 * before, "{during} after {before}");
    node.stop_well();
    bench.judge_well(&expected(&tasks));
    drop(redis);
}
