//! Node processes and commands.

use super::{Bench, Frozen, signal, wait_for};
use millstream::{
    chaos::{
        http::Http,
        offsets::{self, Positions},
    },
    failpoint,
};
use serde_json::Value;
use std::{
    fs::File,
    net::SocketAddr,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::LazyLock,
};

/// The program.
pub fn millstream() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null()).env_remove("RUST_LOG");
    // A developer's own collector is none of a test's.
    command.env_remove("OTEL_EXPORTER_OTLP_ENDPOINT");
    command.env_remove("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
    command
}

/// Runs a command that must end well and print one JSON value last.
pub fn run_json(command: &mut Command) -> Value {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{status}\n{stdout}\n{stderr}");
    serde_json::from_str(stdout.lines().last().unwrap_or_default())
        .unwrap_or_else(|e| panic!("{e}: {stdout}"))
}

/// A running `millstream run`. Dropping it kills it.
pub struct NodeProcess {
    child: Child,
    /// Where it answers.
    pub http: SocketAddr,
    /// Where its gRPC services are.
    pub grpc: SocketAddr,
    log: PathBuf,
}

impl NodeProcess {
    /// Starts it and waits until it has told its addresses.
    pub fn start(bench: &Bench, roles: &str) -> Self {
        let mut node = Self::spawned(bench, roles, "");
        node.learn_addresses();
        node
    }

    /// Waits until it has told where it answers.
    pub fn learn_addresses(&mut self) {
        let told = |prefix: &str, log: &str| -> Option<SocketAddr> {
            let line = log.lines().find_map(|l| l.trim().strip_prefix(prefix))?;
            line.trim().trim_start_matches("http://").trim_end_matches('/').parse().ok()
        };
        (self.http, self.grpc) = wait_for("the node's addresses", || {
            let text = self.log();
            if let Some(status) = self.ended() {
                panic!("the node ended ({status}):\n{text}");
            }
            told("page", &text).zip(told("gRPC", &text))
        });
    }

    /// Starts one that may die before it tells its addresses.
    pub fn spawned(bench: &Bench, roles: &str, failpoints: &str) -> Self {
        Self::spawned_with(bench, roles, failpoints, &[])
    }

    /// The same with more words on its command line.
    pub fn spawned_with(bench: &Bench, roles: &str, failpoints: &str, words: &[&str]) -> Self {
        let (child, log) = spawn(bench, roles, failpoints, words);
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Self { child, http: nowhere, grpc: nowhere, log }
    }

    /// Waits for its end, which must be SIGKILL.
    pub fn ends_killed(mut self) {
        let log = self.log.clone();
        let status = self.end();
        let log = std::fs::read_to_string(log).unwrap();
        assert_eq!(status.signal(), Some(libc::SIGKILL), "{status}\n{log}");
    }

    /// Waits for its end.
    pub fn end(&mut self) -> ExitStatus {
        let child = &mut self.child;
        wait_for("the node's end", || child.try_wait().unwrap())
    }

    /// Its status, unless it has not ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// SIGSTOP, until the guard is dropped. Its children go on.
    pub fn freeze(&self) -> Frozen {
        Frozen::new(self.pid()).unwrap()
    }

    /// The sum of a metric's series that hold all these labels.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        sum_of(&self.get("/metrics").1, name, labels)
    }

    /// The same of a node that may have ended.
    pub fn metric_if_up(&self, name: &str, labels: &[&str]) -> Option<f64> {
        self.try_get("/metrics").ok().map(|(_, text)| sum_of(&text, name, labels))
    }

    /// DuckDB's positions by source name.
    pub fn positions(&self) -> Positions {
        wait_for("the store's positions", || positions_at(self.http))
    }

    /// Its partitions that are in this state.
    pub fn partitions(&self, state: &str) -> Vec<String> {
        let status = self.status();
        let all = status["partitions"].as_object().unwrap();
        all.iter().filter(|(_, p)| p["state"] == state).map(|(name, _)| name.clone()).collect()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// GETs a path: status and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        self.try_get(path).unwrap_or_else(|e| panic!("{e}; the node's log:\n{}", self.log()))
    }

    fn try_get(&self, path: &str) -> reqwest::Result<(u16, String)> {
        let url = format!("http://{}{path}", self.http);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let answer = reqwest::get(url).await?;
            Ok((answer.status().as_u16(), answer.text().await?))
        })
    }

    /// POSTs JSON: status and answer.
    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let url = format!("http://{}{path}", self.http);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (status, body) = runtime.block_on(async {
            let request = reqwest::Client::new().post(url);
            let request = request.header("content-type", "application/json").body(body.to_string());
            let answer = request.send().await.unwrap();
            (answer.status().as_u16(), answer.bytes().await.unwrap())
        });
        (status, serde_json::from_slice(&body).unwrap())
    }

    /// Its status.
    pub fn status(&self) -> Value {
        serde_json::from_str(&self.get("/api/status").1).unwrap()
    }

    /// Events that it has committed since it started.
    pub fn committed_events(&self) -> u64 {
        self.status()["totals"]["events"].as_u64().unwrap()
    }

    /// `millstream verify --full --json`, after everything has landed.
    pub fn verify(&self) -> Value {
        let http = self.http.to_string();
        let mut command = millstream();
        command.args(["verify", "--json", "--full", "--wait", "100s", "--http", &http]);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let report: Value = serde_json::from_str(text.lines().last().unwrap_or_default())
            .unwrap_or_else(|_| {
                panic!(
                    "{text}\n{}\nthe node's log:\n{}",
                    String::from_utf8_lossy(&output.stderr),
                    self.log()
                )
            });
        assert_eq!(report["ok"], true, "{report:#}\n{}", self.log());
        // Online values are written first, but in quiet nothing may be ahead.
        let online = report["checks"].as_array().unwrap().iter();
        let online = online.filter(|c| c["id"] == "online_equals_newest").collect::<Vec<_>>();
        let says = online[0]["detail"].as_str().unwrap();
        assert!(says.contains("(0 are ahead"), "{report:#}\n{}", self.log());
        report
    }

    /// Rows of a SELECT, as a JSON list.
    pub fn query(&self, sql: &str) -> Value {
        run_json(millstream().args(["query", "--json", sql, "--http", &self.http.to_string()]))
    }

    /// SIGKILL. Its workers see the end of their sockets; its Redis is told to end and does so in
    /// order.
    pub fn kill(mut self) {
        signal(self.pid(), libc::SIGKILL).unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM.
    pub fn ask_to_stop(&self) {
        signal(self.pid(), libc::SIGTERM).unwrap();
    }

    /// SIGTERM, then its exit status.
    pub fn stop(mut self) -> ExitStatus {
        // One that was asked before may be gone.
        if self.ended().is_none() {
            self.ask_to_stop();
        }
        self.end()
    }

    /// SIGTERM; it must end well.
    pub fn stop_well(self) {
        let log = self.log.clone();
        let status = self.stop();
        assert!(status.success(), "{status}\n{}", std::fs::read_to_string(log).unwrap());
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            signal(self.pid(), libc::SIGKILL).unwrap();
            let _ = self.child.wait();
        }
    }
}

fn sum_of(text: &str, name: &str, labels: &[&str]) -> f64 {
    let of = |line: &&str| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    };
    text.lines().filter(of).map(|l| l.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

fn spawn(bench: &Bench, roles: &str, failpoints: &str, words: &[&str]) -> (Child, PathBuf) {
    let log = bench.dir.path().join(format!("{}.log", uuid::Uuid::now_v7()));
    let file = File::create(&log).unwrap();
    let child = millstream()
        .args(["run", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--roles", roles])
        .arg("--config")
        .arg(bench.config_file())
        .args(words)
        .env("FAILPOINTS", failpoints)
        .env(failpoint::PLANTED, bench.planted)
        .envs(std::env::var_os("NODE_LOG").map(|filter| ("RUST_LOG", filter)))
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .spawn()
        .unwrap();
    (child, log)
}

/// DuckDB's positions by source name, asked from a node that may not be there.
pub fn positions_at(node: SocketAddr) -> Option<Positions> {
    static HTTP: LazyLock<Http> = LazyLock::new(|| Http::new().unwrap());
    offsets::positions_at(&HTTP, node)
}
