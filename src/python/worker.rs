//! A worker process: everything that runs on the child's side of the socket.
//!
//! Three threads. The *reader* takes frames off the socket without ever touching Python, so that
//! the end of the parent is seen even while a script hangs with the interpreter's lock held. The
//! *watchdog* ends the process when heartbeats stay away. The *main* thread runs Python.
//!
//! Whatever ends a worker from within also ends its process group: what a script started must not
//! outlive it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::PyModule;

use super::session::{self, Session, failure};
use super::wire::{self, Beat, Failure, Fault, Frame, Init, Kind, RowsReply, WireError, boot_ms};
use crate::protocol::lease::HEARTBEAT_SHARE;

/// The socket is moved to a number above this, out of the way of scripts that close "all" of them.
const HIGH_FD: RawFd = 512;
/// Exit code of a worker that cannot start or go on.
const EXIT_BROKEN: i32 = 70;

/// Whether this process leads a process group of its own, which it may then end as a whole.
static OWN_GROUP: AtomicBool = AtomicBool::new(false);
/// Set in every process forked from a worker: it is none.
static FORKED: AtomicBool = AtomicBool::new(false);
/// The socket, for the fork handler.
static SOCKET: AtomicI32 = AtomicI32::new(-1);
/// When the watchdog ends the process, in [`boot_ms`]; 0 while the lease is not known.
static DEADLINE_BOOT_MS: AtomicU64 = AtomicU64::new(0);

/// The way back to the parent.
pub(super) struct Channel {
    /// Shared with the reader, not cloned: a second number would stay open in forked processes.
    socket: Arc<UnixStream>,
    /// Frames are written whole, one after the other: `ctx.log` may come from any thread.
    sending: Mutex<()>,
}

impl Channel {
    /// Sends a frame; fails in a process forked from the worker.
    pub fn send(&self, frame: &Frame) -> io::Result<()> {
        // Before the lock, which another thread may have held at the moment of the fork.
        if FORKED.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let _sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        frame.write_to(&*self.socket)
    }
}

/// Runs a Python worker on the socket with the number `fd`, inherited from the parent; returns
/// only when that is no socket. The body of the hidden subcommand `python-worker --fd N`.
///
/// Must be called from the main thread, before any other thread is started.
pub fn worker_main(fd: RawFd) -> ExitCode {
    serve(fd, None)
}

/// The same in a process in which Python is up already, with the module that
/// [`session::bootstrap`] gave.
pub(super) fn serve(fd: RawFd, mut bootstrap: Option<Py<PyModule>>) -> ExitCode {
    let socket = match adopt_socket(fd) {
        Ok(socket) => socket,
        Err(error) => {
            eprintln!(
                "python-worker is started by the node itself, not by hand: descriptor {fd}: {error}"
            );
            return ExitCode::from(2);
        }
    };
    SOCKET.store(socket.as_raw_fd(), Ordering::Relaxed);
    tie_to_parent();

    let socket = Arc::new(socket);
    let reading = Arc::clone(&socket);
    let (frames_in, frames) = mpsc::channel();
    let reader = thread::Builder::new()
        .name("reader".into())
        .spawn(move || read_frames(&reading, &frames_in));
    let watchdog = thread::Builder::new().name("watchdog".into()).spawn(watch_deadline);
    if let Err(error) = reader.and(watchdog) {
        die(&format!("no thread can be started: {error}"));
    }

    let channel = Arc::new(Channel { socket, sending: Mutex::new(()) });
    let mut session = None;
    // The reader ends the process instead of hanging up, so this loop is left by `Stop` alone.
    for frame in frames {
        let stop = frame.kind == Kind::Stop;
        if let Some(reply) = answer(frame, &mut session, &mut bootstrap, &channel) {
            reply_with(&channel, reply);
        }
        if stop {
            break;
        }
    }
    // Not a return: at a regular exit the destructors of Python's packages may hang.
    // SAFETY: ends the process; everything that had to be written has been written.
    unsafe { libc::_exit(0) }
}

/// What comes of one frame; `None` where no answer is due.
fn answer(
    frame: Frame,
    session: &mut Option<Session>,
    bootstrap: &mut Option<Py<PyModule>>,
    channel: &Arc<Channel>,
) -> Option<Result<Frame, Failure>> {
    let kind = frame.kind;
    // A panic in here (a foreign Arrow array that is not what it says, say) fails the request. The
    // parent replaces the worker after failures of this kind, so half-changed state is not reused.
    let outcome = catch_unwind(AssertUnwindSafe(|| match kind {
        Kind::Init => Some(start(&frame, session, bootstrap, channel)),
        Kind::Load => Some(load(frame, session.as_mut())),
        Kind::Transform => Some(transform(frame, session.as_ref())),
        Kind::Stop => {
            if let Some(session) = session {
                session.leave();
            }
            None
        }
        other => Some(Err(failure(
            Fault::Request,
            "Request",
            format!("a {other:?} frame is no request"),
        ))),
    }));
    outcome.unwrap_or_else(|_| {
        Some(Err(failure(Fault::Request, "Panic", format!("panic while answering {kind:?}"))))
    })
}

fn start(
    frame: &Frame,
    session: &mut Option<Session>,
    bootstrap: &mut Option<Py<PyModule>>,
    channel: &Arc<Channel>,
) -> Result<Frame, Failure> {
    let init: Init = frame.header().map_err(malformed)?;
    let paths = init.site_dirs.iter().map(|dir| wire::path_from_bytes(dir).to_owned());
    let bootstrap = match bootstrap.take() {
        Some(bootstrap) => bootstrap,
        None => session::bootstrap(paths.collect())?,
    };
    *session = Some(Session::new(bootstrap, Arc::clone(channel)));
    Frame::new(Kind::Ready, &()).map_err(malformed)
}

fn load(frame: Frame, session: Option<&mut Session>) -> Result<Frame, Failure> {
    let session = session.ok_or_else(no_session)?;
    let load = frame.header().map_err(malformed)?;
    let (schema, _) = wire::decode(frame.into_body()).map_err(malformed)?;
    Frame::new(Kind::Loaded, &session.load(&load, &schema)?).map_err(malformed)
}

fn transform(frame: Frame, session: Option<&Session>) -> Result<Frame, Failure> {
    let session = session.ok_or_else(no_session)?;
    let (_, batch) = wire::decode(frame.into_body()).map_err(malformed)?;
    let batch = batch.ok_or_else(|| malformed("a Transform frame without a batch"))?;
    let began = Instant::now();
    let (rows, rejected) = session.transform(batch)?;
    let python_seconds = began.elapsed().as_secs_f64();
    let rejected = rejected.into_iter().map(Into::into).collect();
    let reply = RowsReply { rejected, python_seconds };
    let body = wire::encode_batch(&rows).map_err(malformed)?;
    Frame::with_body(Kind::Rows, &reply, body).map_err(malformed)
}

fn malformed(why: impl ToString) -> Failure {
    failure(Fault::Request, "Request", why.to_string())
}

fn no_session() -> Failure {
    malformed("the interpreter has not been started")
}

fn reply_with(channel: &Channel, reply: Result<Frame, Failure>) {
    let frame = match reply {
        Ok(frame) => frame,
        Err(failure) => match Frame::new(Kind::Failed, &failure) {
            Ok(frame) => frame,
            Err(error) => die(&format!("a failure cannot be told: {error}")),
        },
    };
    if let Err(error) = channel.send(&frame) {
        if FORKED.load(Ordering::Relaxed) {
            // A script forked and let its copy return from `transform`.
            // SAFETY: ends this copy, without running the worker's cleanup a second time.
            unsafe { libc::_exit(0) }
        }
        die(&format!("the answer cannot be sent: {error}"));
    }
}

/// The reader thread.
fn read_frames(socket: &UnixStream, frames: &mpsc::Sender<Frame>) {
    let mut lease_share_ms = 0;
    let alive_at = |beat: Beat, share_ms: u64| {
        DEADLINE_BOOT_MS.fetch_max(beat.at_boot_ms.saturating_add(share_ms), Ordering::Relaxed);
    };
    let mut socket = io::BufReader::with_capacity(64 << 10, socket);
    loop {
        let understood = Frame::read_from(&mut socket).and_then(|frame| {
            match frame.kind {
                Kind::Heartbeat => {
                    alive_at(frame.header()?, lease_share_ms);
                    return Ok(());
                }
                Kind::Init => {
                    let init: Init = frame.header()?;
                    lease_share_ms = (init.lease_ms as f64 * HEARTBEAT_SHARE) as u64;
                    let beat = init.beat.ok_or_else(|| {
                        WireError::Malformed("an Init frame without a beat".into())
                    })?;
                    alive_at(beat, lease_share_ms);
                }
                _ => {}
            }
            frames.send(frame).map_err(|_| WireError::Closed)
        });
        match understood {
            Ok(()) => {}
            Err(WireError::Closed) => die("the node is gone"),
            Err(error) => die(&format!("the socket to the node broke: {error}")),
        }
    }
}

/// The watchdog thread.
fn watch_deadline() {
    loop {
        let now = boot_ms();
        let wait_ms = match DEADLINE_BOOT_MS.load(Ordering::Relaxed) {
            0 => 20,
            deadline if deadline <= now => {
                die("no heartbeat from the node within 0.7 of the lease")
            }
            // Deadlines only move away, so none is missed by sleeping up to this one.
            deadline => deadline - now,
        };
        thread::sleep(Duration::from_millis(wait_ms.min(1000)));
    }
}

/// Takes the inherited socket and makes it this process's alone.
fn adopt_socket(fd: RawFd) -> io::Result<UnixStream> {
    // SAFETY: an all-zero `stat` is valid, and `fd` is only looked at.
    let is_socket = unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        libc::fstat(fd, &mut stat) == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFSOCK
    };
    if !is_socket {
        return Err(io::Error::other("is no socket"));
    }
    // SAFETY: `fd` is an open socket handed over for this purpose; after the copy nothing in this
    // process refers to the old number.
    unsafe {
        let mut high = libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, HIGH_FD);
        if high < 0 {
            // A process allowed fewer descriptors than that.
            high = libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3);
        }
        if high < 0 {
            return Err(io::Error::last_os_error());
        }
        drop(OwnedFd::from_raw_fd(fd));
        Ok(UnixStream::from(OwnedFd::from_raw_fd(high)))
    }
}

/// Makes this process end with its parent, and its forks speak to no one.
fn tie_to_parent() {
    // SAFETY: plain system calls; the handlers only do what is allowed in a signal handler and
    // between fork and exec.
    unsafe {
        OWN_GROUP.store(libc::getpgrp() == libc::getpid(), Ordering::Relaxed);
        // Not SIGKILL, which would end this process alone and leave its group behind.
        let signal = libc::SIGRTMIN() + 7;
        libc::signal(signal, on_parent_death as *const () as libc::sighandler_t);
        libc::prctl(libc::PR_SET_PDEATHSIG, signal);
        libc::pthread_atfork(None, None, Some(after_fork));
    }
}

extern "C" fn on_parent_death(_: libc::c_int) {
    end_group();
}

extern "C" fn after_fork() {
    FORKED.store(true, Ordering::Relaxed);
    // SAFETY: the copy's own descriptor; the worker's stays open.
    unsafe { libc::close(SOCKET.load(Ordering::Relaxed)) };
}

fn end_group() -> ! {
    // SAFETY: signals and ends processes that are this worker's own.
    unsafe {
        if OWN_GROUP.load(Ordering::Relaxed) && !FORKED.load(Ordering::Relaxed) {
            libc::kill(0, libc::SIGKILL);
        }
        libc::_exit(EXIT_BROKEN)
    }
}

/// Ends the worker and its group at once, with a word to the log if that can be said without
/// waiting.
fn die(why: &str) -> ! {
    let line = format!("python worker: {why}; leaving\n");
    let mut writable = libc::pollfd { fd: 2, events: libc::POLLOUT, revents: 0 };
    // SAFETY: `writable` and `line` are valid for the calls. A pipe that polls writable takes a
    // line of this length without blocking.
    unsafe {
        if libc::poll(&mut writable, 1, 0) == 1 && writable.revents & libc::POLLOUT != 0 {
            libc::write(2, line.as_ptr().cast(), line.len());
        }
    }
    end_group()
}

/// Opens `/dev/null` in the place of each standard stream that a script has closed, so that no file
/// opened later is taken for one.
pub(super) fn mend_standard_streams() {
    for fd in 0..=2 {
        // SAFETY: looks at, opens and moves descriptors by number; a closed number is nobody's.
        unsafe {
            if libc::fcntl(fd, libc::F_GETFD) >= 0 {
                continue;
            }
            let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
            if null >= 0 && null != fd {
                libc::dup2(null, fd);
                libc::close(null);
            }
        }
    }
}
