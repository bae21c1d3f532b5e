//! Node processes and commands.

use super::{Bench, wait_for};
use serde_json::Value;
use std::{
    fs::File,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
};

/// The program.
pub fn millstream() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null()).env_remove("RUST_LOG");
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
        let log = bench.dir.path().join(format!("{}.log", uuid::Uuid::now_v7()));
        let file = File::create(&log).unwrap();
        let mut child = millstream()
            .args([
                "run",
                "--roles",
                roles,
                "--http",
                "127.0.0.1:0",
                "--grpc",
                "127.0.0.1:0",
                "--config",
            ])
            .arg(bench.config_file())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        let told = |prefix: &str, log: &str| -> Option<SocketAddr> {
            let line = log.lines().find_map(|l| l.trim().strip_prefix(prefix))?;
            line.trim().trim_start_matches("http://").trim_end_matches('/').parse().ok()
        };
        let (http, grpc) = wait_for("the node's addresses", || {
            let text = std::fs::read_to_string(&log).unwrap();
            if let Some(status) = child.try_wait().unwrap() {
                panic!("the node ended ({status}):\n{text}");
            }
            told("page", &text).zip(told("gRPC", &text))
        });
        Self { child, http, grpc, log }
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
        let url = format!("http://{}{path}", self.http);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let answer = reqwest::get(url).await.unwrap();
            (answer.status().as_u16(), answer.text().await.unwrap())
        })
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
        report
    }

    /// Rows of a SELECT, as a JSON list.
    pub fn query(&self, sql: &str) -> Value {
        run_json(millstream().args(["query", "--json", sql, "--http", &self.http.to_string()]))
    }

    /// SIGKILL. Its workers see the end of their sockets; its Redis is told to end and does so in
    /// order.
    pub fn kill(mut self) {
        self.signal(libc::SIGKILL);
        self.child.wait().unwrap();
    }

    /// SIGTERM, then its exit status.
    pub fn stop(mut self) -> ExitStatus {
        self.signal(libc::SIGTERM);
        let child = &mut self.child;
        wait_for("the node's ordered stop", || child.try_wait().unwrap())
    }

    /// SIGTERM; it must end well.
    pub fn stop_well(self) {
        let log = self.log.clone();
        let status = self.stop();
        assert!(status.success(), "{status}\n{}", std::fs::read_to_string(log).unwrap());
    }

    fn signal(&self, signal: i32) {
        // SAFETY: our own child, which is not reaped yet.
        unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(libc::SIGKILL);
            let _ = self.child.wait();
        }
    }
}
