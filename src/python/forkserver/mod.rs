//! Starts workers quickly: by forking a process in which Python is already up.
//!
//! A worker needs the program linked, an interpreter, and the modules of the standard library that
//! every package for data imports. That is the same for all, takes longer than the script's own
//! part, and happens at every start, every trial of a version and every death. The *fork server*
//! does it once; a worker is then a fork of it.
//!
//! | | |
//! |---|---|
//! | what is imported before | modules of the standard library (`PRELOADED` in `bootstrap.py`) and what the environment's `.pth` files import; never polars, pyarrow or a script: a fork loses threads, and packages with threads of their own must be imported after it. A script or a helper of such a name is loaded as if nothing had been |
//! | threads | the fork server has one. With more (started by a `.pth` file, say) it refuses, and workers are started one by one, as they are without a fork server |
//! | who waits for a worker | its own thread in the node, on a pidfd; the fork server reaps it when told to |
//! | the fork server dies, or does not answer for [`PATIENCE`] | its workers die with it, as with the node, and nobody is blamed for that; the next start makes another |
//! | packages are installed while the node runs | their folder has changed: the next start makes another fork server |
//! | nothing to do | without a worker and without a request for a while it leaves |
//! | what forks share | the seed of `hash()`; `random` is seeded anew in each |

mod server;
mod wire;

pub use server::forkserver_main;

use std::io::{self, BufRead, BufReader, PipeReader};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::error::Exit;
use super::launch;
use super::wire as worker_wire;
use wire::{FDS, Reply, Request, receive, send};

/// How long bringing Python up may take.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long the end of a fork server that was killed may take.
const END_PATIENCE: Duration = Duration::from_secs(1);
/// How long no other one is tried after one that did not come up.
const AFTER_FAILURE: Duration = Duration::from_secs(60);

/// A node's fork server: started when a worker is, gone when there is nothing to do.
#[derive(Debug)]
pub struct ForkServer {
    program: PathBuf,
    site_dirs: Vec<PathBuf>,
    linger: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: Option<Arc<Server>>,
    failed_at: Option<Instant>,
}

impl ForkServer {
    /// One that is not started yet. `program` and `site_dirs` are those of the workers
    /// ([`WorkerSpec`](super::WorkerSpec)); without a worker it stays for `linger`.
    #[must_use]
    pub fn new(program: &Path, site_dirs: &[PathBuf], linger: Duration) -> Self {
        let (program, site_dirs) = (program.to_owned(), site_dirs.to_owned());
        Self { program, site_dirs, linger, state: Mutex::default() }
    }

    /// The id of the process that the next worker would be a fork of. It may have left since.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.lock().running.as_ref().map(|server| server.pid)
    }

    /// Starts a worker with these descriptors in a process group of its own; `None` when that is
    /// not possible, and the worker is to be started by itself. Blocks.
    pub(super) fn fork(
        &self,
        memory_limit: Option<u64>,
        fds: [BorrowedFd<'_>; FDS],
    ) -> Option<Forked> {
        // The second time after one that left, or died, without anybody having looked.
        for _ in 0..2 {
            let server = self.server()?;
            match server.fork(memory_limit, fds) {
                Ok(Ok(forked)) => return Some(forked),
                Ok(Err(why)) => {
                    tracing::warn!(
                        why,
                        "a worker cannot be forked; it is started by itself, which takes longer"
                    );
                    return None;
                }
                Err(error) => {
                    tracing::debug!(pid = server.pid, %error, "the fork server is gone");
                    self.forget(&server);
                }
            }
        }
        tracing::warn!("two fork servers died; a worker is started by itself, which takes longer");
        None
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one that runs, or a new one; `None`: none comes up.
    fn server(&self) -> Option<Arc<Server>> {
        let mut state = self.lock();
        let stamps = stamps(&self.site_dirs);
        if let Some(server) = &state.running {
            if server.stamps == stamps {
                return Some(server.clone());
            }
            tracing::info!("packages were installed or removed: workers get the new ones");
            state.running = None;
        }
        if state.failed_at.is_some_and(|at| at.elapsed() < AFTER_FAILURE) {
            return None;
        }
        let started = Instant::now();
        match Server::start(&self.program, &self.site_dirs, self.linger, stamps) {
            Ok(server) => {
                tracing::debug!(pid = server.pid, took = ?started.elapsed(), "the fork server is up");
                state.failed_at = None;
                state.running.insert(Arc::new(server)).clone().into()
            }
            Err(error) => {
                tracing::warn!(
                    %error,
                    "the fork server does not come up; each worker is started by itself, which takes longer"
                );
                state.failed_at = Some(Instant::now());
                None
            }
        }
    }

    fn forget(&self, server: &Arc<Server>) {
        let mut state = self.lock();
        if state.running.as_ref().is_some_and(|running| Arc::ptr_eq(running, server)) {
            state.running = None;
        }
    }
}

/// When each folder of packages was changed last.
fn stamps(site_dirs: &[PathBuf]) -> Vec<Option<SystemTime>> {
    site_dirs.iter().map(|dir| dir.metadata().and_then(|meta| meta.modified()).ok()).collect()
}

/// The process. Dropping it ends it, and workers that are not reaped.
#[derive(Debug)]
struct Server {
    pid: u32,
    pidfd: OwnedFd,
    /// `None` once a reply stayed away: what comes later would be taken for another.
    control: Mutex<Option<OwnedFd>>,
    stamps: Vec<Option<SystemTime>>,
}

impl Server {
    fn start(
        program: &Path,
        site_dirs: &[PathBuf],
        linger: Duration,
        stamps: Vec<Option<SystemTime>>,
    ) -> io::Result<Self> {
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let (ours, theirs) = socketpair(family, kind, SocketFlags::CLOEXEC, None)?;
        let (lines, said) = io::pipe()?;
        let mut command = launch::command(program, "python-forkserver", &theirs, None);
        command.stdout(said.try_clone()?).stderr(said);
        let (tell, told) = mpsc::channel();
        // The process ends with this thread, which ends after it.
        thread::Builder::new().name("py-forkserver".into()).spawn(move || {
            let spawned = command.spawn();
            // The child has its copies of these; ours would keep both from ever ending.
            drop((command, theirs));
            match spawned {
                Ok(child) => {
                    let pid = child.id();
                    let pidfd =
                        pid_of(pid).and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?));
                    // Without a listener the other end of the socket is closed, and it leaves.
                    let _ = tell.send(pidfd.map(|pidfd| (pid, pidfd)));
                    attend(child, lines);
                }
                // As above: who asked is gone.
                Err(error) => drop(tell.send(Err(error))),
            }
        })?;
        let died = |_| io::Error::other("the thread that starts the fork server died");
        let (pid, pidfd) = told.recv().map_err(died)??;
        set_socket_timeout(&ours, Timeout::Recv, Some(START_PATIENCE))?;
        let server = Self { pid, pidfd, control: Mutex::new(Some(ours)), stamps };
        let request = Request::Start {
            site_dirs: site_dirs.iter().map(|dir| worker_wire::path_to_bytes(dir)).collect(),
            linger_ms: u64::try_from(linger.as_millis()).unwrap_or(u64::MAX),
        };
        match server.ask(&request, &[])? {
            Reply::Ready => {}
            other => return Err(unexpected(other)),
        }
        if let Some(control) = &*server.control() {
            set_socket_timeout(control, Timeout::Recv, Some(PATIENCE))?;
        }
        Ok(server)
    }

    fn control(&self) -> std::sync::MutexGuard<'_, Option<OwnedFd>> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request and its reply. After an error the process is killed, and its workers die with it.
    fn ask(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<Reply> {
        let mut control = self.control();
        let socket = control.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        let answered = send(socket, request, fds).and_then(|()| receive(socket));
        match answered {
            Ok((reply, _)) => Ok(reply),
            Err(error) => {
                *control = None;
                self.kill();
                Err(error)
            }
        }
    }

    /// A worker, or why this fork server, which is well, cannot make one.
    fn fork(
        self: &Arc<Self>,
        memory_limit: Option<u64>,
        fds: [BorrowedFd<'_>; FDS],
    ) -> io::Result<Result<Forked, String>> {
        let pid = match self.ask(&Request::Fork { memory_limit }, &fds)? {
            Reply::Forked { pid } => pid,
            Reply::Failed { why } => return Ok(Err(why)),
            other => return Err(unexpected(other)),
        };
        // Nobody reaps it before `Forked::reap` unless the fork server dies, so the number is its own.
        let opened = pid_of(pid).and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?));
        match opened {
            Ok(pidfd) => Ok(Ok(Forked { pid, pidfd: Arc::new(pidfd), server: self.clone() })),
            Err(error) => {
                // There is a worker that nobody waits for and that has the descriptors.
                self.kill();
                Err(error)
            }
        }
    }

    fn kill(&self) {
        // It may have ended by itself, which is as good.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn unexpected(reply: Reply) -> io::Error {
    io::Error::other(match reply {
        Reply::Failed { why } => why,
        other => format!("the fork server answered {other:?}"),
    })
}

fn pid_of(pid: u32) -> io::Result<Pid> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Passes on what the process says, and reaps it once it has ended.
fn attend(mut child: Child, lines: PipeReader) {
    for line in BufReader::new(lines).split(b'\n').map_while(Result::ok) {
        tracing::info!(line = %String::from_utf8_lossy(&line), "the fork server says");
    }
    match child.wait() {
        Ok(status) => tracing::debug!(%status, "the fork server has left"),
        Err(error) => tracing::warn!(%error, "the fork server cannot be waited for"),
    }
}

/// A worker that is a fork. Whoever has it reaps it.
#[derive(Debug)]
pub(super) struct Forked {
    pid: u32,
    pidfd: Arc<OwnedFd>,
    server: Arc<Server>,
}

impl Forked {
    /// Its number, and that of its group.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its process, whatever becomes of its number.
    pub fn pidfd(&self) -> Arc<OwnedFd> {
        self.pidfd.clone()
    }

    /// Blocks until it has ended.
    pub fn wait(&self) {
        use rustix::event::{PollFd, PollFlags, poll};
        let mut watched = [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)];
        // Nothing else can go wrong with a valid descriptor.
        while poll(&mut watched, None) == Err(rustix::io::Errno::INTR) {}
    }

    /// Reaps it. It must have ended.
    pub fn reap(&self) -> Exit {
        match self.server.ask(&Request::Reap { pid: self.pid }, &[]) {
            Ok(Reply::Reaped { code, signal }) => Exit { code, signal },
            reply => {
                tracing::debug!(pid = self.pid, ?reply, "nobody says how a worker ended");
                self.reap_orphan();
                Exit { code: None, signal: None }
            }
        }
    }

    /// The fork server is gone. Where the node is the first process of a container, its orphans
    /// are the node's own once it has ended.
    fn reap_orphan(&self) {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        use rustix::process::{WaitId, WaitIdOptions, waitid};
        let mut watched = [PollFd::from_borrowed_fd(self.server.pidfd.as_fd(), PollFlags::IN)];
        let within = Timespec { tv_sec: END_PATIENCE.as_secs() as i64, tv_nsec: 0 };
        // Whatever comes of it: there is nothing else to wait for.
        let _ = poll(&mut watched, Some(&within));
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        // Elsewhere it is somebody else's child, and this is refused.
        let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), options);
    }
}
