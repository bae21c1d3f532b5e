//! A batch's id in a log finds its trace, with every step on the way from Kafka to DuckDB.

use crate::support::{Bench, NodeProcess, broker, wait_for};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value as Said},
    trace::v1::{Span, status::StatusCode},
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tonic::transport::server::TcpIncoming;

/// A span with what its sender said of itself.
#[derive(Debug, Clone)]
struct Received {
    resource: HashMap<String, String>,
    span: Span,
}

impl Received {
    fn attribute(&self, key: &str) -> Option<String> {
        attributes(&self.span.attributes).remove(key)
    }
}

fn attributes(all: &[KeyValue]) -> HashMap<String, String> {
    let text = |said: &Said| match said {
        Said::StringValue(text) => text.clone(),
        Said::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    };
    let pair = |kv: &KeyValue| {
        let value = kv.value.as_ref().and_then(|v| v.value.as_ref()).map(text);
        (kv.key.clone(), value.unwrap_or_default())
    };
    all.iter().map(pair).collect()
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A receiver of traces, like a collector, until it is dropped.
struct Receiver {
    address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    _runtime: tokio::runtime::Runtime,
}

#[derive(Clone)]
struct Keeping(Arc<Mutex<Vec<Received>>>);

#[tonic::async_trait]
impl TraceService for Keeping {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        for of_resource in request.into_inner().resource_spans {
            let resource = attributes(&of_resource.resource.unwrap().attributes);
            let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            let received = spans.map(|span| Received { resource: resource.clone(), span });
            self.0.lock().unwrap().extend(received);
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Receiver {
    fn start() -> Self {
        let received = Arc::new(Mutex::new(Vec::new()));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let _context = runtime.enter();
        let incoming = TcpIncoming::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = incoming.local_addr().unwrap();
        let service = TraceServiceServer::new(Keeping(received.clone()));
        let server = tonic::transport::Server::builder().add_service(service);
        drop(runtime.spawn(server.serve_with_incoming(incoming)));
        Self { address, received, _runtime: runtime }
    }

    /// What it was sent, by trace.
    fn traces(&self) -> BTreeMap<String, Vec<Received>> {
        let mut traces = BTreeMap::<String, Vec<Received>>::new();
        for received in self.received.lock().unwrap().iter() {
            traces.entry(hex(&received.span.trace_id)).or_default().push(received.clone());
        }
        traces
    }
}

/// Ids of the batches that a log says are closed, as traces write them.
fn closed(log: &str) -> BTreeSet<String> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines
        .filter(|line| line["message"] == "closed")
        .map(|line| line["batch"].as_str().unwrap().replace('-', ""))
        .collect()
}

/// Names of the threads that only export has.
fn exporting_threads(node: &NodeProcess) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", node.pid())).unwrap();
    // One may end between the two looks.
    let names = tasks.filter_map(|t| std::fs::read_to_string(t.unwrap().path().join("comm")).ok());
    names
        .map(|name| name.trim().to_owned())
        .filter(|name| name == "otlp" || name.starts_with("OpenTelemetry"))
        .collect()
}

/// The steps of a batch that meets no trouble, with the step that each belongs to.
const WAY: [(&str, &str); 7] = [
    ("batch", ""),
    ("accumulate", "batch"),
    ("decode", "batch"),
    ("transform", "batch"),
    ("online write", "batch"),
    ("queue", "batch"),
    ("commit", "queue"),
];

/// Spans of one process fit into each other exactly. Two processes on one machine have one clock, which
/// they do not read at one moment.
const SLACK: u64 = 1_000_000;

fn judge_whole(spans: &[Received]) {
    let by_name: HashMap<&str, &Received> =
        spans.iter().map(|r| (r.span.name.as_str(), r)).collect();
    let (mut ended, root) = (0, &by_name["batch"].span);
    for (name, parent) in WAY {
        let received = by_name[name];
        let span = &received.span;
        let owner = by_name.get(parent).map(|r| r.span.span_id.clone()).unwrap_or_default();
        assert_eq!(span.parent_span_id, owner, "{name}");
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{name}");
        let slack = if name == "commit" { SLACK } else { 0 };
        assert!(root.start_time_unix_nano <= span.start_time_unix_nano, "{name}");
        assert!(span.end_time_unix_nano <= root.end_time_unix_nano + slack, "{name}");
        if parent == "batch" {
            assert!(span.start_time_unix_nano >= ended, "{name} begins too early");
            ended = span.end_time_unix_nano;
        }
        let failed = span.status.as_ref().is_some_and(|s| s.code() == StatusCode::Error);
        assert!(!failed, "{name}: {:?}", span.status);
        let node = if name == "commit" { "the-store" } else { "a-process" };
        assert_eq!(received.resource["service.instance.id"], node, "{name}");
        assert_eq!(received.resource["service.name"], "millstream");
        assert_eq!(received.resource["service.version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(received.attribute("node").unwrap(), node);
        for key in ["stream", "events", "sources"] {
            assert_eq!(received.attribute(key), by_name["batch"].attribute(key), "{name}: {key}");
        }
    }
    let (queue, commit) = (&by_name["queue"].span, &by_name["commit"].span);
    assert!(queue.start_time_unix_nano <= commit.start_time_unix_nano + SLACK);
    assert!(commit.end_time_unix_nano <= queue.end_time_unix_nano + SLACK);
    let version = by_name["transform"].attribute("script_version").unwrap();
    assert_eq!(version.len(), 64, "a SHA-256");
    assert_eq!(by_name["commit"].attribute("script_version").unwrap(), version);
    assert_eq!(by_name["commit"].attribute("processed_by").unwrap(), "a-process");
}

#[test]
fn a_batchs_id_in_a_log_finds_its_trace_across_processes() {
    let Some(brokers) = broker("telemetry: traces") else { return };
    let receiver = Receiver::start();
    let mut bench = Bench::new(&brokers);
    bench.config.generator.rate = 2_000.0;
    bench.config.telemetry.otlp = format!("http://{}", receiver.address);
    let _redis = bench.redis();
    bench.config.node.name = "the-store".into();
    let store = bench.node("store");
    bench.config.node.name = "a-process".into();
    let mut process =
        NodeProcess::spawned_with(&bench, "process", "", &["--log-format", "json", "-v"]);
    process.learn_addresses();
    assert!(!exporting_threads(&process).is_empty());
    let tasks = bench.generate();
    wait_for("events", || (store.committed_events() > 2_000).then_some(()));
    tasks.stop();
    process.verify();
    let log = process.log();
    // What is not exported yet goes with the last words.
    process.stop_well();
    store.stop_well();

    let (traces, batches) = (receiver.traces(), closed(&log));
    assert!(batches.len() > 10, "{log}");
    let of_log: BTreeSet<&String> = batches.iter().collect();
    assert!(of_log.iter().all(|id| traces.contains_key(*id)), "each has a trace");
    let names = |spans: &[Received]| {
        let mut names: Vec<_> = spans.iter().map(|r| r.span.name.clone()).collect();
        names.sort();
        names
    };
    let mut way: Vec<_> = WAY.iter().map(|(name, _)| (*name).to_owned()).collect();
    way.sort();
    // A batch that was tried twice has more; most are not.
    let whole = traces.values().filter(|spans| names(spans) == way).collect::<Vec<_>>();
    assert!(2 * whole.len() > batches.len(), "{:#?}", traces.values().map(|s| names(s)));
    whole.iter().for_each(|spans| judge_whole(spans));
}

#[test]
fn a_receiver_that_is_not_there_is_named_once_and_holds_nothing_up() {
    // Whoever else gets the address takes no traces.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    flows_without(nobody);
}

#[test]
fn a_receiver_that_hangs_is_named_once_and_holds_nothing_up() {
    let hanging = TcpListener::bind("127.0.0.1:0").unwrap();
    flows_without(hanging.local_addr().unwrap());
}

fn flows_without(receiver: SocketAddr) {
    let mut bench = Bench::new("");
    bench.config.generator.rate = 2_000.0;
    bench.config.telemetry.otlp = format!("http://{receiver}");
    let mut node = bench.node("generate,process,store");
    let said = |node: &NodeProcess| node.log().matches("traces cannot be exported").count();
    wait_for("the warning", || (said(&node) > 0).then_some(()));
    let at = node.committed_events();
    wait_for("the flow to go on", || (node.committed_events() > at + 10_000).then_some(()));
    assert_eq!(said(&node), 1);
    let asked = Instant::now();
    node.ask_to_stop();
    assert!(node.end().success(), "{}", node.log());
    let log = node.log();
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    assert!(log.contains("spans were not exported"), "{log}");
}

#[test]
fn without_a_receiver_there_is_nothing_that_exports() {
    let mut bench = Bench::new("");
    bench.config.generator.rate = 500.0;
    let node = bench.node("generate,process,store");
    wait_for("rows", || (node.committed_events() > 500).then_some(()));
    assert_eq!(exporting_threads(&node), Vec::<String>::new());
    let log = node.log();
    node.stop_well();
    assert!(!log.contains("traces"), "{log}");
}
