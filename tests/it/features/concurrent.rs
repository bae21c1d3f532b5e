//! Many writers of the same entities at once, from two nodes, within milliseconds of each other: an older
//! value never takes the place of a newer one.

use super::{bench_on, line, load, runtime};
use crate::support::{broker, wait_for};
use millstream::proto::{OnlineFeaturesRequest, feature_service_client::FeatureServiceClient};
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::SliceRandom};
use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::{AtomicBool, Ordering},
};

const ENTITIES: usize = 20;
const FEATURES: [&str; 2] = ["score", "clicks"];
const WRITERS: usize = 6;
const ROWS_A_WRITER: usize = 4_000;
/// 2026-01-01T00:00:00Z.
const BEGIN_US: i64 = 1_767_225_600_000_000;

/// A value: whose, which, when it became true, what.
type Row = (String, &'static str, i64, f64);

/// Bursts of values of one key within 5 ms, many of them tied, in any order.
fn rows(writer: usize) -> Vec<Row> {
    let mut random = SmallRng::seed_from_u64(writer as u64);
    let mut rows: Vec<Row> = (0..ROWS_A_WRITER)
        .map(|i| {
            let burst = BEGIN_US + (i / 50) as i64 * 1_000_000;
            let at = burst + random.random_range(0..50) * 100;
            let entity = format!("e{}", random.random_range(0..ENTITIES));
            (entity, FEATURES[random.random_range(0..2)], at, random.random_range(0.0..1.0))
        })
        .collect();
    // Late ones as well: a burst may come long after those that follow it.
    rows.shuffle(&mut random);
    rows
}

#[test]
fn an_older_value_never_wins_whoever_writes_it() {
    let Some(brokers) = broker("features: concurrent writers") else { return };
    let mut bench = bench_on(&brokers);
    let _redis = bench.redis();
    // Small batches: as many writes beside each other as can be.
    bench.config.batch.max_rows = 100;
    let store = bench.node("store");
    let nodes = [bench.node("process"), bench.node("process")];
    let written: Vec<Vec<Row>> = (0..WRITERS).map(rows).collect();
    let mut newest: BTreeMap<(String, &str), i64> = BTreeMap::new();
    for (entity, feature, at, _) in written.iter().flatten() {
        let known = newest.entry((entity.clone(), feature)).or_insert(i64::MIN);
        *known = (*known).max(*at);
    }

    let done = AtomicBool::new(false);
    let looks = std::thread::scope(|scope| {
        let looking = scope.spawn(|| look(nodes[0].grpc, &done));
        let writing: Vec<_> = written
            .iter()
            .enumerate()
            .map(|(writer, rows)| {
                let (bench, node) = (&bench, &nodes[writer % 2]);
                scope.spawn(move || {
                    for (part, rows) in rows.chunks(ROWS_A_WRITER / 4).enumerate() {
                        let at = |us: i64| {
                            let at = chrono::DateTime::from_timestamp_micros(us).unwrap();
                            at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
                        };
                        let text = rows.iter().map(|(e, f, us, v)| line(e, f, Some(*v), &at(*us)));
                        let name = format!("writer-{writer}-{part}.ndjson");
                        load(bench, node, &name, &text.collect::<String>());
                    }
                })
            })
            .collect();
        writing.into_iter().for_each(|writer| writer.join().unwrap());
        done.store(true, Ordering::Relaxed);
        looking.join().unwrap()
    });
    assert!(looks > 20, "{looks} looks while it was written");

    // Everything that is critical equals the newest in DuckDB, of every key.
    nodes[0].verify();
    let runtime = runtime();
    let told = runtime.block_on(async {
        let at = format!("http://{}", nodes[1].grpc);
        let mut reads = FeatureServiceClient::connect(at).await.unwrap();
        online(&mut reads).await
    });
    let expected: HashMap<_, _> =
        newest.iter().map(|((e, f), at)| ((e.clone(), (*f).to_owned()), *at)).collect();
    assert_eq!(told, expected);
    let skew = wait_for("the skew check", || {
        let (status, body) = nodes[0].get("/api/features/skew?keys=10000");
        (status == 200).then(|| serde_json::from_str::<serde_json::Value>(&body).unwrap())
    });
    assert_eq!((&skew["keys"], &skew["equal"]), (&(ENTITIES * 2).into(), &(ENTITIES * 2).into()));
    nodes.into_iter().for_each(crate::support::NodeProcess::stop_well);
    store.stop_well();
}

/// Event timestamps of all keys that are online.
async fn online(
    reads: &mut FeatureServiceClient<tonic::transport::Channel>,
) -> HashMap<(String, String), i64> {
    let entity_ids: Vec<String> = (0..ENTITIES).map(|i| format!("e{i}")).collect();
    let request = OnlineFeaturesRequest { entity_ids: entity_ids.clone(), ..Default::default() };
    let reply = reads.get_online_features(request).await.unwrap().into_inner();
    let mut found = HashMap::new();
    for feature in reply.features {
        for (entity, value) in entity_ids.iter().zip(feature.values) {
            if let Some(at) = value.event_timestamp_us {
                found.insert((entity.clone(), feature.name.clone()), at);
            }
        }
    }
    found
}

/// Looks at all keys again and again: none ever goes back. How often it looked.
fn look(grpc: std::net::SocketAddr, done: &AtomicBool) -> usize {
    runtime().block_on(async {
        let mut reads = FeatureServiceClient::connect(format!("http://{grpc}")).await.unwrap();
        let mut known = HashMap::new();
        let mut looks = 0;
        while !done.load(Ordering::Relaxed) {
            let now = online(&mut reads).await;
            for (key, at) in &known {
                assert!(now.get(key) >= Some(at), "{key:?} went back from {at}");
            }
            (known, looks) = (now, looks + 1);
        }
        looks
    })
}
