//! The life of a worker process: its start, and that it ends and is reaped.
//!
//! Each worker has a thread that starts it and then waits for its death. That thread matters: Linux
//! sends the "parent died" signal when the *thread* that forked ends, so a worker must not be
//! started by one that comes and goes. It is also what makes "reaped" a fact independent of any
//! async runtime.
//!
//! A worker is a fork of the [`ForkServer`] where there is one, and a process of its own from the
//! beginning otherwise. To whoever uses it the two are the same, but for one thing: a fork whose fork
//! server died has ended nobody knows how.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use super::error::Exit;
use super::forkserver::{ForkServer, Forked};

/// The thread starts a process and waits: it needs next to no stack.
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
    /// are any, the interpreter's own are not used. They must fit the linked Python version, and be
    /// those of the fork server, if there is one.
    pub site_dirs: Vec<PathBuf>,
    /// How long the permit lasts under which the worker runs; it leaves 0.7 of this after the last
    /// heartbeat.
    pub lease: Duration,
    /// Data memory (writable private mappings) that the process may have, in bytes; `None`: any.
    /// Python sees a `MemoryError`; a library that cannot go on without ends the process.
    pub memory_limit: Option<u64>,
    /// Who forks it; `None`: it is started by itself, which takes longer.
    pub fork_server: Option<Arc<ForkServer>>,
}

/// What every interpreter finds in its environment: packages come from [`WorkerSpec::site_dirs`]
/// alone, and what a script starts speaks UTF-8 as the script does.
const ENVIRONMENT: [(&str, &str); 2] = [("PYTHONUTF8", "1"), ("PYTHONNOUSERSITE", "1")];

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
    let (tell, told) = oneshot::channel();
    let of = spec.clone();
    thread::Builder::new()
        .name(format!("py-{}", spec.worker_id))
        .stack_size(WAITER_STACK_BYTES)
        .spawn(move || match start(&of, theirs) {
            Ok((leader, stdout, stderr)) => {
                let (exited, exit) = watch::channel(None);
                let group = Arc::new(Group::of(&leader));
                let life = Life { group: Arc::clone(&group), exit: ExitWatch(exit) };
                // When nobody waits any more, this comes back and its drop kills the process.
                drop(tell.send(Ok(Launched { life, socket: ours, stdout, stderr })));
                leader.wait();
                exited.send_replace(Some(group.reap(leader)));
            }
            // The one who asked is gone: nobody is left to be told.
            Err(error) => drop(tell.send(Err(error))),
        })?;
    told.await.unwrap_or_else(|_| Err(io::Error::other("the thread that starts workers died")))
}

/// The process that leads a worker's group, to be waited for.
enum Leader {
    /// A child of this process.
    Child(Child),
    /// A child of the fork server.
    Forked(Forked),
}

impl Leader {
    fn pid(&self) -> u32 {
        match self {
            Self::Child(child) => child.id(),
            Self::Forked(forked) => forked.pid(),
        }
    }

    /// Blocks until it has ended. Its number, and its group's, stay its own until it is reaped.
    fn wait(&self) {
        match self {
            // SAFETY: an all-zero `siginfo_t` is valid and outlives the call.
            Self::Child(child) => unsafe {
                let mut info: libc::siginfo_t = std::mem::zeroed();
                let how = libc::WEXITED | libc::WNOWAIT;
                while libc::waitid(libc::P_PID, child.id(), &mut info, how) < 0
                    && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
                {
                }
            },
            Self::Forked(forked) => forked.wait(),
        }
    }

    /// Reaps it. It has ended, so a child is reaped at once; of a fork the fork server must be asked.
    fn reap(self) -> Exit {
        match self {
            // It fails only if someone else reaped it.
            Self::Child(mut child) => {
                child.wait().map_or(Exit { code: None, signal: None }, Exit::from)
            }
            Self::Forked(forked) => forked.reap(),
        }
    }
}

/// Starts the process. Its end of the socket is closed in here: while it were open, the process's
/// death would not close it.
fn start(spec: &WorkerSpec, socket: UnixStream) -> io::Result<(Leader, OwnedFd, OwnedFd)> {
    if let Some(fork_server) = &spec.fork_server {
        let (stdout, out) = io::pipe()?;
        let (stderr, err) = io::pipe()?;
        let fds = [socket.as_fd(), out.as_fd(), err.as_fd()];
        if let Some(forked) = fork_server.fork(spec.memory_limit, fds) {
            return Ok((Leader::Forked(forked), stdout.into(), stderr.into()));
        }
    }
    let mut command = command(&spec.program, "python-worker", &socket, spec.memory_limit);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    match (child.stdout.take(), child.stderr.take()) {
        (Some(stdout), Some(stderr)) => Ok((Leader::Child(child), stdout.into(), stderr.into())),
        // Both were asked for as pipes.
        _ => Err(io::Error::other("no pipes for the worker's output")),
    }
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

/// `program subcommand --fd N`: a process with Python that inherits the socket, leads a process group
/// and ends when the thread does that starts it, which must wait for it.
pub(super) fn command(
    program: &Path,
    subcommand: &str,
    socket: &impl AsRawFd,
    memory_limit: Option<u64>,
) -> Command {
    let fd = socket.as_raw_fd();
    let mut command = Command::new(program);
    command
        .args([subcommand, "--fd"])
        .arg(fd.to_string())
        .stdin(Stdio::null())
        .process_group(0)
        .envs(ENVIRONMENT);
    let memory = memory_limit.map(|bytes| libc::rlimit { rlim_cur: bytes, rlim_max: bytes });
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
        self.0.signal(signal)
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
    /// Of a fork: its fork server may die, and somebody else reap it.
    pidfd: Option<Arc<OwnedFd>>,
    reaped: Mutex<bool>,
}

impl Group {
    fn of(leader: &Leader) -> Self {
        let pidfd = match leader {
            Leader::Child(_) => None,
            Leader::Forked(forked) => Some(forked.pidfd()),
        };
        Self { pid: leader.pid(), pidfd, reaped: Mutex::new(false) }
    }

    /// Sends the leader a signal; `false` when it is reaped.
    fn signal(&self, signal: libc::c_int) -> bool {
        let reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        !*reaped
            && match &self.pidfd {
                Some(pidfd) => send_to(pidfd, signal),
                // SAFETY: the leader is a child that is not reaped while this lock is held, so the
                // number is its own. A pid fits pid_t.
                None => unsafe { libc::kill(self.pid as libc::pid_t, signal) == 0 },
            }
    }

    fn kill(&self) {
        let reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        if !*reaped {
            self.kill_group();
        }
    }

    /// Ends what the leader left behind in its group, and reaps it.
    fn reap(&self, leader: Leader) -> Exit {
        let mut reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        self.kill_group();
        *reaped = true;
        // Nobody uses the number from here on, and a fork server may take its time.
        drop(reaped);
        leader.reap()
    }

    /// The lock is held, and the leader not reaped.
    fn kill_group(&self) {
        // A fork whose fork server died may have been reaped by somebody else: signal 0 is none, and
        // asks whether it was. For a moment after that it still may be; the kernel gives no number
        // away again so soon.
        if self.pidfd.as_ref().is_none_or(|pidfd| send_to(pidfd, 0)) {
            // SAFETY: the leader is not reaped, so the number is that of the worker's own group. A
            // pid fits pid_t.
            unsafe { libc::kill(-(self.pid as libc::pid_t), libc::SIGKILL) };
        }
    }
}

fn send_to(pidfd: &OwnedFd, signal: libc::c_int) -> bool {
    // SAFETY: a descriptor that is open, and no information that is passed along.
    unsafe {
        let nothing = std::ptr::null::<libc::siginfo_t>();
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, nothing, 0) == 0
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
