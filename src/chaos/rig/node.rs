//! A node of the system under test: a process of this program.

use crate::{
    chaos::{
        clock::Clock,
        http::Http,
        processes::{WorkerCount, signal},
    },
    config::Config,
};
use anyhow::{Context as _, bail};
use std::{
    collections::BTreeMap,
    fs::File,
    net::{SocketAddr, TcpListener},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long a node may take until it answers.
const START_DEADLINE: Duration = Duration::from_secs(90);
/// How long it may take to end when asked.
const STOP_DEADLINE: Duration = Duration::from_secs(60);
/// The pace of looking.
const PACE: Duration = Duration::from_millis(20);

/// What a node is started with; the same in all its lives.
#[derive(Debug)]
pub struct NodeParts {
    /// Its name.
    pub name: &'static str,
    /// Its roles, as on the command line.
    pub roles: &'static str,
    /// This program.
    pub program: PathBuf,
    /// Folder of its configuration and its log.
    pub dir: PathBuf,
    /// Its configuration but for its name.
    pub config: Config,
    /// More environment.
    pub envs: Vec<(String, String)>,
    /// To ask it.
    pub http: Http,
    /// Has it live by a clock of its own.
    pub clock: Option<Clock>,
    /// Where it is noted as long as it lives.
    pub living: Living,
}

/// The processes of the nodes that live, by name; their workers are counted.
#[derive(Debug, Clone)]
pub struct Living {
    pids: Arc<Mutex<BTreeMap<&'static str, u32>>>,
    workers: Arc<WorkerCount>,
}

impl Living {
    /// None yet.
    #[must_use]
    pub fn new(workers: Arc<WorkerCount>) -> Self {
        Self { pids: Arc::default(), workers }
    }

    fn add(&self, name: &'static str, pid: u32) {
        self.lock().insert(name, pid);
        self.workers.watch(pid);
    }

    /// It was reaped.
    fn remove(&self, name: &'static str) {
        if let Some(pid) = self.lock().remove(name) {
            self.workers.forget(pid);
        }
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<(&'static str, u32)> {
        self.lock().iter().map(|(name, pid)| (*name, *pid)).collect()
    }

    /// A poisoned lock only says that a holder panicked; the map is never left half-changed.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, u32>> {
        self.pids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A node, alive or between two lives.
#[derive(Debug)]
pub struct NodeSlot {
    /// What it is started with.
    pub parts: NodeParts,
    /// Where it answers, in all its lives.
    pub http: SocketAddr,
    /// Where its gRPC services are.
    pub grpc: SocketAddr,
    child: Option<Child>,
    config_file: PathBuf,
    /// Lives so far.
    pub lives: u32,
    /// How it ended when nobody had ended it.
    pub ends: Vec<String>,
    last_code: Option<i32>,
}

/// An address that is free just now.
fn free_address() -> std::io::Result<SocketAddr> {
    TcpListener::bind(("127.0.0.1", 0))?.local_addr()
}

impl NodeSlot {
    /// Writes its configuration; it is not started yet.
    ///
    /// # Errors
    /// The system's word.
    pub fn new(parts: NodeParts) -> anyhow::Result<Self> {
        let mut config = parts.config.clone();
        config.node.name = parts.name.into();
        let config_file = parts.dir.join(format!("{}.toml", parts.name));
        std::fs::write(&config_file, toml::to_string(&config)?)?;
        let (http, grpc) = (free_address()?, free_address()?);
        Ok(Self {
            parts,
            http,
            grpc,
            child: None,
            config_file,
            lives: 0,
            ends: Vec::new(),
            last_code: None,
        })
    }

    /// The file of what it says.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.parts.dir.join(format!("{}.log", self.parts.name))
    }

    /// Its process; `None` between two lives.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Starts it, and waits until it answers. One that ends at once for want of something that others
    /// have taken away (Redis, the disk) is started again.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let until = Instant::now() + START_DEADLINE;
        loop {
            if self.child.is_none() {
                self.spawn()?;
            }
            if self.parts.http.is_well(self.http, "/healthz") {
                return Ok(());
            }
            if !self.look() && self.last_end_is_final() {
                bail!("{} cannot start; see {}", self.parts.name, self.log().display());
            }
            if Instant::now() > until {
                bail!("{} does not answer; see {}", self.parts.name, self.log().display());
            }
            std::thread::sleep(PACE);
        }
    }

    fn spawn(&mut self) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut command = Command::new(&self.parts.program);
        command
            .args(["run", "--roles", self.parts.roles, "--config"])
            .arg(&self.config_file)
            .args(["--http", &self.http.to_string(), "--grpc", &self.grpc.to_string()])
            .envs(self.parts.envs.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for the driver, which stops its nodes itself.
            .process_group(0);
        if let Some(clock) = &self.parts.clock {
            command.envs(clock.envs());
        }
        // SAFETY: prctl is async-signal-safe and touches nothing but the new process.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let child = command.spawn().context("a node cannot be started")?;
        self.parts.living.add(self.parts.name, child.id());
        self.child = Some(child);
        self.lives += 1;
        Ok(())
    }

    /// It was reaped.
    fn is_gone(&mut self) {
        self.parts.living.remove(self.parts.name);
        self.child = None;
    }

    /// Notes it when it has ended by itself; true when it lives.
    pub fn look(&mut self) -> bool {
        let Some(child) = &mut self.child else { return false };
        match child.try_wait() {
            Ok(Some(status)) => {
                self.is_gone();
                self.ends.push(status.to_string());
                self.last_code = status.code();
                false
            }
            // One that cannot be asked is asked again.
            Ok(None) | Err(_) => true,
        }
    }

    /// Its words or its configuration cannot be used (exit codes 2 and 3): no further try would.
    fn last_end_is_final(&self) -> bool {
        matches!(self.last_code, Some(2 | 3))
    }

    /// Starts it again when it has ended by itself, as whoever runs nodes would.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn keep(&mut self) -> anyhow::Result<()> {
        if self.look() { Ok(()) } else { self.start() }
    }

    /// SIGKILL. It is gone when this returns.
    ///
    /// # Errors
    /// The system's word.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(child) = &mut self.child {
            child.kill()?;
            child.wait()?;
            self.is_gone();
        }
        Ok(())
    }

    /// Asks it to stop in order, and waits for its end.
    ///
    /// # Errors
    /// When it does not end in time (it is killed then), or ends badly.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let Some(child) = &mut self.child else { return Ok(()) };
        signal(child.id(), libc::SIGTERM)?;
        let until = Instant::now() + STOP_DEADLINE;
        let status = loop {
            match child.try_wait()? {
                Some(status) => break status,
                None if Instant::now() > until => {
                    self.kill()?;
                    bail!("{} did not stop within {STOP_DEADLINE:?}", self.parts.name);
                }
                None => std::thread::sleep(PACE),
            }
        };
        self.is_gone();
        if !status.success() {
            bail!("{} ended with {status}", self.parts.name);
        }
        Ok(())
    }
}

impl Drop for NodeSlot {
    fn drop(&mut self) {
        // When this fails the process is gone already, which is as good.
        let _ = self.kill();
    }
}
