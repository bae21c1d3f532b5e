//! Every query of the dashboards, their annotations and the rules has an answer from a real Prometheus
//! that scrapes a live node, after load, files, a kill, a swap and a refused version.

use crate::support::{Bench, Slot, broker, left_out, the_only_node};
use millstream::{
    node::{Node, NodeOptions, Role},
    python::WorkerSignal,
    queue::Keys,
};
use redis::AsyncCommands as _;
use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A Prometheus with the rules, which scrapes a node. Dropping it ends it.
struct Prometheus {
    child: Child,
    url: String,
}

impl Prometheus {
    /// `None` where it is not installed, which is said, and which CI does not allow.
    fn start(dir: &Path, node: &str) -> Option<Self> {
        let installed = Command::new("prometheus").arg("--version").output().is_ok();
        if !installed {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must have Prometheus");
            left_out("telemetry: live queries", "needs prometheus (scripts/setup.sh --ci)");
            return None;
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = dir.join("prometheus.yml");
        // One target is not there: alarms need something to be about.
        let text = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\n\
             rule_files: ['{ROOT}/dashboards/rules/*.yml']\n\
             scrape_configs:\n\
             - job_name: millstream\n  static_configs:\n  - targets: ['{node}', '127.0.0.1:1']\n"
        );
        std::fs::write(&config, text).unwrap();
        let log = std::fs::File::create(dir.join("prometheus.log")).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("prometheus").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Some(Self { child, url: format!("http://127.0.0.1:{port}") })
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A bench whose scripts lie in a folder of its own.
fn bench(brokers: &str) -> (Bench, PathBuf) {
    let mut bench = Bench::new(brokers);
    bench.own_scripts();
    let first = bench.config.script_file(0);
    bench.config.generator.rate = 4_000.0;
    bench.config.generator.upload_every_s = 2.0;
    bench.config.store.skew_every_s = 2;
    bench.config.streams[0].max_age_s = Some(3_600);
    bench.config.node.http = ([127, 0, 0, 1], 0).into();
    bench.config.node.grpc = ([127, 0, 0, 1], 0).into();
    bench.create_topics();
    (bench, first)
}

#[test]
fn every_query_has_an_answer_after_load_a_kill_and_a_swap() {
    let Some(brokers) = broker("telemetry: live queries") else { return };
    let (_alone, _only) = (Slot::alone(), the_only_node());
    let (bench, script) = bench(&brokers);
    let dir = bench.dir.path().to_owned();
    let config = bench.config.clone();
    let keys = Keys::new(&config.node.namespace);
    let mut options = NodeOptions::new([Role::Generate, Role::Process, Role::Store]);
    options.worker_program = Some(env!("CARGO_BIN_EXE_millstream").into());
    actix::System::new().block_on(async move {
        let mut node = Node::start(config, options).await.unwrap();
        node.wait_ready(Duration::from_secs(60)).await.unwrap();
        let Some(prometheus) = Prometheus::start(&dir, &node.http.to_string()) else { return };
        let mut asking = Command::new(Path::new(ROOT).join(".venv/bin/python"))
            .arg(Path::new(ROOT).join("dashboards/tests/live.py"))
            .args([&prometheus.url, "--patience", "100"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let text = std::fs::read_to_string(&script).unwrap();
        // Again and again: what is rare is shown for a while only.
        let mut turn = 0;
        let status = loop {
            if let Some(status) = asking.try_wait().unwrap() {
                break status;
            }
            turn += 1;
            for actor in ["redis_queue", "duckdb_writer", "python_worker_supervisor"] {
                assert!(node.view.registry.kill(actor));
            }
            if turn % 2 == 0 {
                assert!(node.view.registry.panic("batch_accumulator"));
            }
            for (worker, _) in node.view.python.processes() {
                // One that has ended just now will do as well.
                let _ = worker.signal(WorkerSignal::Kill);
            }
            // Somebody deletes online values: the check of both stores finds them missing.
            let redis = node.view.redis.clone().unwrap();
            let mut redis = redis.manager().await.unwrap();
            let online: Vec<String> = redis.keys(format!("{}*", keys.entity(""))).await.unwrap();
            if !online.is_empty() {
                let () = redis.del(online).await.unwrap();
            }
            let version = match turn % 3 {
                0 => "def transform(batch:\n".to_owned(),
                _ => format!("{text}\n# version {turn}\n"),
            };
            std::fs::write(&script, version).unwrap();
            tokio::select! {
                fatal = node.fatal() => panic!("{fatal}"),
                () = tokio::time::sleep(Duration::from_secs(5)) => {}
            }
        };
        let said = std::io::read_to_string(asking.stdout.take().unwrap()).unwrap();
        assert!(status.success(), "{said}");
        // What the node exports is in order.
        let text = reqwest_text(&format!("http://{}/metrics", node.http)).await;
        check_metrics(&text);
        node.stop().await.unwrap();
    });
}

async fn reqwest_text(url: &str) -> String {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    client.get(url).send().await.unwrap().text().await.unwrap()
}

/// `promtool check metrics` has nothing to say against it.
fn check_metrics(text: &str) {
    let mut check = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut check.stdin.take().unwrap(), text.as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}
