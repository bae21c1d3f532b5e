//! A real redis-server as the node's child: on a free port, with an append-only file in the data
//! folder. It dies with the node; one that was left over is found by its pid file; one that is
//! killed is started again on the same port.

use anyhow::{Context, bail};
use std::{
    fs,
    io::ErrorKind,
    net::{TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

/// How long it may take to answer after its start; a large append-only file takes its time.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to end when asked.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the watching thread looks at its child.
const WATCH_EVERY: Duration = Duration::from_millis(100);

/// The running child.
#[derive(Debug)]
pub struct EmbeddedRedis {
    url: String,
    stopping: Arc<AtomicBool>,
    watcher: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug, Clone)]
struct Server {
    dir: PathBuf,
    port: u16,
}

impl EmbeddedRedis {
    /// Starts it with its files in `dir` and waits until it answers.
    ///
    /// # Errors
    /// When redis-server is not installed or does not come up; the message says what to do.
    pub fn start(dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(dir)
            .with_context(|| format!("cannot make the folder {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        end_leftover(&dir)?;
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let server = Server { dir, port };
        let stopping = Arc::new(AtomicBool::new(false));
        let (started, ready) = mpsc::channel();
        // Linux ends a child with the thread that started it, so this thread stays.
        let watcher = {
            let (server, stopping) = (server.clone(), stopping.clone());
            std::thread::Builder::new()
                .name("embedded-redis".into())
                .spawn(move || server.watch(&stopping, &started))?
        };
        ready.recv().context("the thread that watches redis-server ended")??;
        let url = format!("redis://127.0.0.1:{port}/0");
        Ok(Self { url, stopping, watcher: Some(watcher) })
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for EmbeddedRedis {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        if let Some(watcher) = self.watcher.take() {
            // A panic in it has been printed; there is nothing left to stop then.
            let _ = watcher.join();
        }
    }
}

impl Server {
    fn spawn(&self) -> anyhow::Result<Child> {
        let log = fs::File::create(self.dir.join("redis.log"))?;
        let mut command = Command::new("redis-server");
        command
            .args(["--bind", "127.0.0.1", "--protected-mode", "yes", "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", "everysec"])
            .args(["--maxmemory-policy", "noeviction", "--daemonize", "no"])
            .arg("--port")
            .arg(self.port.to_string())
            .arg("--dir")
            .arg(&self.dir)
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C in the terminal is for the node, which stops its child last.
            .process_group(0);
        // SAFETY: prctl is async-signal-safe and touches nothing but the new process.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                Ok(())
            });
        }
        let child = command.spawn().map_err(|e| match e.kind() {
            ErrorKind::NotFound => anyhow::anyhow!(
                "redis-server is not installed: run scripts/setup.sh (Debian: apt-get install redis-server), \
                 or set `redis.url` to a running one"
            ),
            _ => anyhow::anyhow!("redis-server cannot be started: {e}"),
        })?;
        fs::write(self.dir.join("redis.pid"), child.id().to_string())?;
        Ok(child)
    }

    fn wait_ready(&self, child: &mut Child) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        while Instant::now() < deadline {
            if let Some(status) = child.try_wait()? {
                let log = fs::read_to_string(self.dir.join("redis.log")).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(5).collect();
                bail!("redis-server ended at once ({status}): {}", tail.join(" / "));
            }
            if ping(self.port) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!(
            "redis-server did not answer within {READY_TIMEOUT:?}; see {}",
            self.dir.join("redis.log").display()
        )
    }

    /// Starts the child, says how that went, and starts it again whenever it ends.
    fn watch(&self, stopping: &AtomicBool, started: &mpsc::Sender<anyhow::Result<()>>) {
        let first = self.spawn().and_then(|mut child| {
            let ready = self.wait_ready(&mut child);
            ready.map(|()| child)
        });
        let mut child = match first {
            Ok(child) => {
                // The starter waits for exactly this.
                let _ = started.send(Ok(()));
                child
            }
            Err(error) => {
                let _ = started.send(Err(error));
                return;
            }
        };
        while !stopping.load(Ordering::Relaxed) {
            std::thread::sleep(WATCH_EVERY);
            match child.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) => {
                    tracing::warn!(%status, "redis-server ended; starting it again");
                    match self.spawn() {
                        Ok(again) => child = again,
                        Err(error) => {
                            tracing::error!(%error, "redis-server cannot be started again")
                        }
                    }
                }
                Err(error) => tracing::warn!(%error, "redis-server cannot be watched"),
            }
        }
        end(&mut child);
        // The file only helps to find a leftover; there is none.
        let _ = fs::remove_file(self.dir.join("redis.pid"));
    }
}

fn ping(port: u16) -> bool {
    use std::io::{Read, Write};
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let timeout = Some(Duration::from_millis(200));
    let asked = stream.set_read_timeout(timeout).and_then(|()| stream.write_all(b"PING\r\n"));
    let mut answer = [0; 5];
    asked.is_ok() && stream.read_exact(&mut answer).is_ok() && &answer == b"+PONG"
}

fn end(child: &mut Child) {
    let pid = libc::pid_t::try_from(child.id()).unwrap_or(0);
    // SAFETY: signalling our own child, which is not reaped yet.
    unsafe { libc::kill(pid, libc::SIGTERM) };
    let deadline = Instant::now() + STOP_TIMEOUT;
    while Instant::now() < deadline {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    tracing::warn!("redis-server does not end; killing it");
    // It may have ended in between, which is just as good.
    let _ = child.kill();
    let _ = child.wait();
}

/// Ends a server that an earlier node left behind in this folder: two on one append-only file
/// would ruin it.
fn end_leftover(dir: &Path) -> anyhow::Result<()> {
    let Ok(text) = fs::read_to_string(dir.join("redis.pid")) else { return Ok(()) };
    let Ok(pid) = text.trim().parse::<libc::pid_t>() else { return Ok(()) };
    let is_ours = || {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let at = fs::read_link(format!("/proc/{pid}/cwd")).ok();
        name.trim() == "redis-server" && at.as_deref() == Some(dir)
    };
    if !is_ours() {
        return Ok(());
    }
    tracing::warn!(pid, "ending a redis-server that an earlier node left behind");
    // SAFETY: the process was just seen to be a redis-server in our own folder.
    unsafe { libc::kill(pid, libc::SIGTERM) };
    let deadline = Instant::now() + STOP_TIMEOUT;
    while is_ours() {
        if Instant::now() > deadline {
            bail!(
                "the redis-server with pid {pid} in {} does not end: stop it first",
                dir.display()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
