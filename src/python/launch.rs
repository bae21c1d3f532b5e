//! The life of a worker process: its start, and that it ends and is reaped.
//!
//! Each worker has a thread that starts it and then waits for its death. That thread matters: Linux
//! sends the "parent died" signal when the *thread* that forked ends, so a worker must not be
//! started by one that comes and goes. It is also what makes "reaped" a fact independent of any
//! async runtime.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use super::error::Exit;

/// The thread only waits: it needs next to no stack.
const WAITER_STACK_BYTES: usize = 256 << 10;

/// Wished-for room in the socket each way: a usual batch passes without the two sides waiting for
/// each other. The kernel gives what `net.core.wmem_max` allows.
const SOCKET_BUFFER_BYTES: libc::c_int = 4 << 20;

/// How to start a worker.
#[derive(Debug, Clone)]
pub struct WorkerSpec {
    /// Its name in logs.
    pub worker_id: String,
    /// The binary to run with `python-worker --fd N`: `std::env::current_exe()`.
    pub program: PathBuf,
    /// The `site-packages` folders of the environment whose packages scripts may use. When there
    /// are any, the interpreter's own are not used. They must fit the linked Python version.
    pub site_dirs: Vec<PathBuf>,
    /// How long the permit lasts under which the worker runs; it leaves 0.7 of this after the last
    /// heartbeat.
    pub lease: Duration,
    /// Data memory (writable private mappings) that the process may have, in bytes; `None`: any.
    /// Python sees a `MemoryError`; a library that cannot go on without ends the process.
    pub memory_limit: Option<u64>,
}

/// Tells when a worker process has ended and is reaped. Outlives the
/// [`WorkerProcess`](super::WorkerProcess), so that a permit can be given back after a mere drop.
#[derive(Debug, Clone)]
pub struct ExitWatch(watch::Receiver<Option<Exit>>);

impl ExitWatch {
    /// Waits until the process is reaped. Cancel-safe; needs no particular runtime.
    pub async fn wait(&mut self) -> Exit {
        match self.0.wait_for(Option::is_some).await.map(|exit| *exit) {
            Ok(Some(exit)) => exit,
            // The waiting thread sends before it ends, whatever happens.
            _ => Exit { code: None, signal: None },
        }
    }

    /// How it ended, if it has.
    pub fn get(&self) -> Option<Exit> {
        *self.0.borrow()
    }
}

/// A process just started.
pub(super) struct Launched {
    pub life: Life,
    pub socket: UnixStream,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Starts a worker process and the thread that waits for it.
pub(super) async fn launch(spec: &WorkerSpec) -> io::Result<Launched> {
    let (ours, theirs) = UnixStream::pair()?;
    widen(&ours);
    widen(&theirs);
    let mut command = command(spec, &theirs);
    let (tell, told) = oneshot::channel();
    thread::Builder::new()
        .name(format!("py-{}", spec.worker_id))
        .stack_size(WAITER_STACK_BYTES)
        .spawn(move || {
            let started = start(&mut command).map(|(child, stdout, stderr)| {
                let (exited, exit) = watch::channel(None);
                let group = Arc::new(Group { pid: child.id(), reaped: Mutex::new(false) });
                let life = Life { group: Arc::clone(&group), exit: ExitWatch(exit) };
                (child, group, exited, Launched { life, socket: ours, stdout, stderr })
            });
            // The child has its copy; while this one is open its death would not close the socket.
            drop(theirs);
            match started {
                Ok((child, group, exited, launched)) => {
                    // When nobody waits any more, `launched` comes back and its drop kills the child.
                    drop(tell.send(Ok(launched)));
                    let exit = wait(child, &group);
                    exited.send_replace(Some(exit));
                }
                // The one who asked is gone: nobody is left to be told.
                Err(error) => drop(tell.send(Err(error))),
            }
        })?;
    told.await.unwrap_or_else(|_| Err(io::Error::other("the thread that starts workers died")))
}

fn widen(socket: &UnixStream) {
    let bytes = SOCKET_BUFFER_BYTES;
    // SAFETY: the option's value is a c_int that outlives the call. A refusal only costs speed.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUF,
            (&raw const bytes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
}

fn command(spec: &WorkerSpec, socket: &UnixStream) -> Command {
    let fd = socket.as_raw_fd();
    let mut command = Command::new(&spec.program);
    command
        .args(["python-worker", "--fd"])
        .arg(fd.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        // Text is UTF-8 whatever the locale of the node; packages come from the spec alone.
        .env("PYTHONUTF8", "1")
        .env("PYTHONNOUSERSITE", "1");
    let memory = spec.memory_limit.map(|bytes| libc::rlimit { rlim_cur: bytes, rlim_max: bytes });
    // SAFETY: async-signal-safe calls only. Only the forked child lets the socket live through exec,
    // so no other process started at this moment inherits it. The thread that starts the child waits
    // for it, so the child ends when the node does, however that ends, and not sooner.
    unsafe {
        command.pre_exec(move || {
            if libc::fcntl(fd, libc::F_SETFD, 0) < 0
                || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0
                || memory
                    .is_some_and(|limit| libc::setrlimit(libc::RLIMIT_DATA, &raw const limit) < 0)
            {
                Err(io::Error::last_os_error())
            } else {
                Ok(())
            }
        });
    }
    command
}

fn start(command: &mut Command) -> io::Result<(Child, OwnedFd, OwnedFd)> {
    let mut child = command.spawn()?;
    match (child.stdout.take(), child.stderr.take()) {
        (Some(stdout), Some(stderr)) => Ok((child, stdout.into(), stderr.into())),
        // Both were asked for as pipes.
        _ => Err(io::Error::other("no pipes for the worker's output")),
    }
}

/// Waits for the child, ends what it left behind in its group, and reaps it.
fn wait(mut child: Child, group: &Group) -> Exit {
    // SAFETY: an all-zero `siginfo_t` is valid and outlives the call. WNOWAIT leaves the child
    // unreaped, so its number and its group's stay its own until `reap` is through.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        while libc::waitid(libc::P_PID, child.id(), &mut info, libc::WEXITED | libc::WNOWAIT) < 0
            && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
        {}
    }
    group.reap(&mut child)
}

/// What is sent to a worker from outside, as a fault or to end one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerSignal {
    /// SIGKILL.
    Kill,
    /// SIGSTOP: it freezes.
    Stop,
    /// SIGCONT: it goes on.
    Continue,
}

/// Reaches a worker's process while it lives, and never another that gets its number afterwards.
/// Holding it keeps nothing alive.
#[derive(Debug, Clone)]
pub struct ProcessHandle(Arc<Group>);

impl ProcessHandle {
    /// The process's id, which may be another's once this one has ended.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.pid
    }

    /// Whether it is not reaped yet.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !*self.0.reaped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a signal to the process; `false` when it has ended.
    #[must_use]
    pub fn signal(&self, signal: WorkerSignal) -> bool {
        let signal = match signal {
            WorkerSignal::Kill => libc::SIGKILL,
            WorkerSignal::Stop => libc::SIGSTOP,
            WorkerSignal::Continue => libc::SIGCONT,
        };
        let reaped = self.0.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the process is not reaped while this lock is held, so the number is its own. A pid
        // fits pid_t.
        !*reaped && unsafe { libc::kill(self.0.pid as libc::pid_t, signal) } == 0
    }
}

/// As the process's id.
impl serde::Serialize for ProcessHandle {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.pid())
    }
}

/// A worker's process group. Its number is used only while the leader is not reaped.
#[derive(Debug)]
struct Group {
    pid: u32,
    reaped: Mutex<bool>,
}

impl Group {
    fn kill(&self) {
        let reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        if !*reaped {
            self.signal_kill();
        }
    }

    fn reap(&self, child: &mut Child) -> Exit {
        let mut reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        self.signal_kill();
        *reaped = true;
        // It has ended, so this does not block. It fails only if someone else reaped it.
        child.wait().map_or(Exit { code: None, signal: None }, Exit::from)
    }

    fn signal_kill(&self) {
        // SAFETY: the leader is not reaped, so the number is that of the worker's own group. A pid
        // fits pid_t.
        unsafe { libc::kill(-(self.pid as libc::pid_t), libc::SIGKILL) };
    }
}

/// Owns a worker process: dropping it kills the process group.
#[derive(Debug)]
pub(super) struct Life {
    group: Arc<Group>,
    exit: ExitWatch,
}

impl Life {
    pub fn pid(&self) -> u32 {
        self.group.pid
    }

    /// Kills the process group; does not wait.
    pub fn kill(&self) {
        self.group.kill();
    }

    pub fn handle(&self) -> ProcessHandle {
        ProcessHandle(Arc::clone(&self.group))
    }

    pub fn watch(&self) -> ExitWatch {
        self.exit.clone()
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.kill();
    }
}
