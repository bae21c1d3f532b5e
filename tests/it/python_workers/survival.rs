//! Workers outlive the actor that runs them, and a defect of ours stops only the source it strikes.

use crate::support::{Bench, Sent, left_out, produce, the_only_node};
use millstream::{
    node::{Node, NodeOptions, Role},
    supervision::Registry,
    telemetry,
};
use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(90);
const SUPERVISOR: &str = "python_worker_supervisor";

/// A bench with the stream `features` alone and a script of the test's own.
fn one_stream(script: &str) -> Bench {
    let mut bench = Bench::new("");
    bench.config.streams.truncate(1);
    let scripts = bench.dir.path().join("scripts");
    std::fs::create_dir(&scripts).unwrap();
    let name = format!("{}.py", bench.config.streams[0].transform);
    std::fs::write(scripts.join(name), script).unwrap();
    bench.config.python.transforms_dir = scripts;
    bench
}

/// Runs a node in this process, and stops it in order when the test is through.
fn with_node<T>(bench: &Bench, roles: &[Role], test: impl AsyncFnOnce(&mut Node) -> T) -> T {
    let _alone = the_only_node();
    let mut config = bench.config.clone();
    config.node.http = ([127, 0, 0, 1], 0).into();
    config.node.grpc = ([127, 0, 0, 1], 0).into();
    let mut options = NodeOptions::new(roles.iter().copied());
    options.worker_program = Some(env!("CARGO_BIN_EXE_millstream").into());
    actix::System::new().block_on(async move {
        let mut node = Node::start(config, options).await.unwrap();
        node.wait_ready(PATIENCE).await.unwrap();
        let out = test(&mut node).await;
        node.stop().await.unwrap();
        out
    })
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The processes of the node's workers.
fn pids(node: &Node) -> BTreeSet<u32> {
    node.view.python.processes().iter().map(|(process, _)| process.pid()).collect()
}

fn generation(node: &Node) -> u64 {
    node.view.registry.status()[SUPERVISOR].generation
}

async fn leases(node: &Node) -> i64 {
    let mut redis = node.view.redis.as_ref().unwrap().manager().await.unwrap();
    redis::cmd("ZCARD").arg(node.view.keys.permits()).query_async(&mut redis).await.unwrap()
}

fn event(entity: usize) -> Sent {
    let text = format!(
        r#"{{"entity_id":"e{entity}","feature_name":"f","value":1,"validated_at":"2024-05-01T10:00:00Z"}}"#
    );
    Sent { payload: Some(text.into_bytes()), partition: Some(0), ..Sent::default() }
}

#[test]
fn idle_and_busy_workers_survive_their_supervisor_under_load() {
    let mut bench = Bench::new("");
    bench.config.generator.rate = 3_000.0;
    bench.config.batch.max_rows = 500;
    bench.config.python.idle_stop_s = 5.0;
    with_node(&bench, &[Role::Generate, Role::Process, Role::Store], async |node| {
        let cap = bench.config.python.max_workers;
        until("a worker for each stream", async || pids(node).len() == cap as usize).await;
        let at_first = pids(node);
        let ends: [fn(&Registry, &str) -> bool; 2] = [Registry::kill, Registry::panic];
        let mut expected = generation(node);
        for (round, end) in [0, 1, 0, 1, 1, 0].map(|i| ends[i]).into_iter().enumerate() {
            let before = telemetry::totals().events;
            // Later also twice in a row, the second time while it is coming back.
            for _ in 0..=round / 3 {
                assert!(end(&node.view.registry, SUPERVISOR));
                expected += 1;
            }
            until("events to flow on", async || {
                assert!(leases(node).await <= i64::from(cap));
                assert!(pids(node).len() <= cap as usize);
                generation(node) == expected && telemetry::totals().events > before + 1_000
            })
            .await;
            assert_eq!(pids(node), at_first, "round {round}: the same processes as before");
        }
        node.stop_generator().await.unwrap();
        node.view.wait_caught_up(PATIENCE).await.unwrap();
        let audit = node.view.verify(true).await.unwrap();
        assert!(audit.ok(), "{audit:#?}");
        until("idle workers to stop", async || pids(node).is_empty()).await;
        until("their permits to come back", async || leases(node).await == 0).await;
        for pid in at_first {
            assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{pid} lives on");
        }
    });
}

/// A script that notes its process in the file `calls` and then waits for the file `gate`.
fn waiting_script(calls: &Path, gate: &Path) -> String {
    format!(
        "
import os, time
def transform(event: dict):
    with open({calls:?}, 'a') as file:
        file.write(f'{{os.getpid()}}\\n')
    while not os.path.exists({gate:?}):
        time.sleep(0.01)
    return dict(entity_id=event['entity_id'], feature_name='f', value=1.0,
                event_timestamp=event['validated_at'])
"
    )
}

#[test]
fn a_batch_that_runs_when_its_supervisor_dies_ends_well() {
    let go = tempfile::tempdir().unwrap();
    let (calls, gate) = (go.path().join("calls"), go.path().join("gate"));
    let mut bench = one_stream(&waiting_script(&calls, &gate));
    let lease = Duration::from_secs(2);
    bench.config.python.lease_s = lease.as_secs_f64();
    let told = || std::fs::read_to_string(&calls).unwrap_or_default();
    with_node(&bench, &[Role::Process, Role::Store], async |node| {
        let brokers = node.view.config.kafka.brokers.clone();
        produce(&brokers, bench.topic("features"), &[event(0)]);
        until("the batch to run", async || told().lines().count() == 1).await;
        for end in [Registry::kill, Registry::panic] {
            let before = generation(node);
            assert!(end(&node.view.registry, SUPERVISOR));
            until("the next instance", async || generation(node) > before).await;
        }
        // Without the renewals of its lease the worker would leave, and the batch would run again.
        let died = Instant::now();
        until("leases to end", async || died.elapsed() > lease * 2).await;
        std::fs::write(&gate, "").unwrap();
        node.view.wait_caught_up(PATIENCE).await.unwrap();
        assert_eq!(told().lines().count(), 1, "it ran once");
        let idle = async || {
            let workers = node.view.python.workers.lock().unwrap();
            workers.values().all(|worker| !worker.busy) && workers.len() == 1
        };
        until("the worker to be idle", idle).await;
        assert_eq!(pids(node), BTreeSet::from([told().trim().parse().unwrap()]));

        // And it goes on working.
        produce(&brokers, bench.topic("features"), &[event(1)]);
        node.view.wait_caught_up(PATIENCE).await.unwrap();
        let calls: BTreeSet<_> = told().lines().map(str::to_owned).collect();
        assert_eq!((told().lines().count(), calls.len()), (2, 1), "{calls:?}");
    });
    let store = duckdb::Connection::open(bench.database()).unwrap();
    let sql = "SELECT count(*), count(DISTINCT pos) FROM features_table";
    let rows: (i64, i64) = store.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    assert_eq!(rows, (2, 2));
}

#[test]
fn a_batch_whose_lease_is_lost_runs_again_when_its_worker_is_gone_and_nothing_is_dead() {
    let go = tempfile::tempdir().unwrap();
    let (calls, gate) = (go.path().join("calls"), go.path().join("gate"));
    let mut bench = one_stream(&waiting_script(&calls, &gate));
    bench.config.python.lease_s = 2.0;
    bench.config.python.max_workers = 1;
    let told = || std::fs::read_to_string(&calls).unwrap_or_default();
    with_node(&bench, &[Role::Process, Role::Store], async |node| {
        let brokers = node.view.config.kafka.brokers.clone();
        produce(&brokers, bench.topic("features"), &[event(0)]);
        until("the batch to run", async || told().lines().count() == 1).await;
        let first: u32 = told().trim().parse().unwrap();
        // What a Redis that lost its data knows of permits.
        let mut redis = node.view.redis.as_ref().unwrap().manager().await.unwrap();
        let keys = [node.view.keys.permits(), node.view.keys.permits_from()];
        let () = redis::cmd("DEL").arg(&keys).query_async(&mut redis).await.unwrap();
        until("another worker", async || {
            let both = told().lines().count() == 2;
            assert!(!(both && Path::new(&format!("/proc/{first}")).exists()), "two live");
            both
        })
        .await;
        std::fs::write(&gate, "").unwrap();
        node.view.wait_caught_up(PATIENCE).await.unwrap();
        assert_eq!(told().lines().count(), 2);
    });
    let store = duckdb::Connection::open(bench.database()).unwrap();
    let count = |table: &str| -> i64 {
        let sql = format!("SELECT count(*) FROM {table}");
        store.query_row(&sql, [], |row| row.get(0)).unwrap()
    };
    assert_eq!((count("features_table"), count("dead_letters")), (1, 0));
}

#[test]
fn a_defect_halts_the_source_it_strikes_and_no_other() {
    if !fail::has_failpoints() {
        return left_out("python_workers: a defect", "needs --features failpoints");
    }
    let mut bench = Bench::new("");
    bench.config.streams.truncate(1);
    bench.config.kafka.partitions = 2;
    let topic = bench.topic("features").to_owned();
    let source = |partition: i32| format!("kafka:features/{topic}/{partition}");
    let both = |from: usize, n: usize| -> Vec<Sent> {
        (from..from + n).map(|i| Sent { partition: Some((i % 2) as i32), ..event(i) }).collect()
    };
    fail::cfg("c_defect", &format!("return({})", source(0))).unwrap();
    with_node(&bench, &[Role::Process, Role::Store], async |node| {
        let brokers = node.view.config.kafka.brokers.clone();
        produce(&brokers, &topic, &both(0, 200));
        let partition = |p| node.view.ingest.as_ref().unwrap().status()[&source(p)].clone();
        until("the source to halt", async || partition(0).state == "halted").await;
        let reason = partition(0).reason.unwrap();
        assert!(reason.contains("a planted defect") && reason.contains("position 0"), "{reason}");
        until("the other one", async || partition(1).acknowledged == Some(100)).await;
        produce(&brokers, &topic, &both(0, 100));
        until("the other one again", async || partition(1).acknowledged == Some(150)).await;
        assert_eq!((partition(1).state, partition(0).acknowledged), ("reading", Some(0)));

        fail::remove("c_defect");
        node.view.wait_caught_up(PATIENCE).await.unwrap();
        assert!(node.view.verify(true).await.unwrap().ok());
    });
    let store = duckdb::Connection::open(bench.database()).unwrap();
    let rows: i64 =
        store.query_row("SELECT count(*) FROM features_table", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 300);
}
