//! The fork server's own process.

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyModule;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitOptions, getpid, getppid, set_parent_process_death_signal,
    setpgid, setrlimit, waitpid,
};

use super::super::{session, worker};
use super::pid_of;
use super::wire::{FDS, Reply, Request, receive, send};

/// Exit code of a fork that cannot become a worker.
const EXIT_BROKEN: i32 = 70;
/// What a worker's command line says in place of the fork server's.
const TITLE: &[u8] = b"python-worker\0--forked\0";

/// Runs a fork server on the socket with the number `fd`, inherited from the node; returns when
/// the node is gone or there is nothing to do. The body of the hidden subcommand
/// `python-forkserver --fd N`.
///
/// Must be called from the main thread, before any other thread is started.
pub fn forkserver_main(fd: RawFd) -> ExitCode {
    // SAFETY: asks whether there is a descriptor of that number, and takes it if so: the node left
    // it to this process, and nothing else in here has it. Whoever started the node may have had
    // SIGCHLD ignored, with which nobody could tell how a worker ended.
    let control = unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        (fd > 2 && libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) == 0)
            .then(|| OwnedFd::from_raw_fd(fd))
    };
    let asked =
        control.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound)).and_then(|control| {
            match receive(&control)? {
                (Request::Start { site_dirs, linger_ms }, _) => Ok((control, site_dirs, linger_ms)),
                _ => Err(io::ErrorKind::InvalidData.into()),
            }
        });
    let (control, site_dirs, linger_ms) = match asked {
        Ok(asked) => asked,
        Err(error) => {
            eprintln!(
                "python-forkserver is started by the node itself, not by hand: descriptor {fd}: {error}"
            );
            return ExitCode::from(2);
        }
    };
    match serve(control, site_dirs, Duration::from_millis(linger_ms)) {
        Ok(Some(fork)) => worker::serve(fork.socket.into_raw_fd(), Some(fork.bootstrap)),
        Ok(None) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the fork server cannot go on: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A process that is a worker from now on.
struct Fork {
    socket: OwnedFd,
    bootstrap: Py<PyModule>,
}

/// Serves the node; `Some` in each fork.
fn serve(control: OwnedFd, site_dirs: Vec<Vec<u8>>, linger: Duration) -> io::Result<Option<Fork>> {
    let dirs = site_dirs.iter().map(|dir| super::worker_wire::path_from_bytes(dir).to_owned());
    let bootstrap = match bring_up(dirs.collect()) {
        Ok(bootstrap) => bootstrap,
        Err(why) => {
            send(&control, &Reply::Failed { why }, &[])?;
            return Ok(None);
        }
    };
    send(&control, &Reply::Ready, &[])?;

    let mut living = 0_usize;
    loop {
        if living == 0 && !is_asked(&control, linger)? {
            return Ok(None);
        }
        let (request, fds) = match receive(&control) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            received => received?,
        };
        let reply = match request {
            Request::Fork { memory_limit } => {
                let Ok([socket, stdout, stderr]) = <[OwnedFd; FDS]>::try_from(fds) else {
                    return Err(io::ErrorKind::InvalidData.into());
                };
                let server = getpid();
                match fork(&bootstrap) {
                    Ok(None) => {
                        drop(control);
                        if let Err(error) = settle(server, memory_limit, [stdout, stderr]) {
                            eprintln!("a fork cannot become a worker: {error}");
                            // SAFETY: ends this fork alone, without the fork server's own clean-up.
                            unsafe { libc::_exit(EXIT_BROKEN) }
                        }
                        return Ok(Some(Fork { socket, bootstrap }));
                    }
                    Ok(Some(pid)) => {
                        // As the fork does: whoever comes first. It may have ended already.
                        let _ = setpgid(Some(pid), Some(pid));
                        living += 1;
                        Reply::Forked { pid: pid.as_raw_nonzero().get().unsigned_abs() }
                    }
                    Err(error) => Reply::Failed { why: error.to_string() },
                }
            }
            Request::Reap { pid } => match waitpid(Some(pid_of(pid)?), WaitOptions::NOHANG) {
                Ok(Some((_, status))) => {
                    living = living.saturating_sub(1);
                    let (code, signal) = (status.exit_status(), status.terminating_signal());
                    Reply::Reaped { code, signal }
                }
                // Somebody traces it: it is reaped when this process ends.
                Ok(None) => Reply::Failed { why: "it has not ended".into() },
                Err(error) => {
                    living = living.saturating_sub(1);
                    Reply::Failed { why: error.to_string() }
                }
            },
            Request::Start { .. } => Reply::Failed { why: "it is up already".into() },
        };
        send(&control, &reply, &[])?;
    }
}

/// Whether there is a request, or the end of the socket, within the time.
fn is_asked(control: &OwnedFd, within: Duration) -> io::Result<bool> {
    let within = Timespec::try_from(within).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
    let mut watched = [PollFd::new(control, PollFlags::IN)];
    // A signal makes it wait a little longer.
    let ready = rustix::io::retry_on_intr(|| poll(&mut watched, Some(&within)))?;
    Ok(ready > 0)
}

/// Python with its path, and what workers import of the standard library.
fn bring_up(site_dirs: Vec<PathBuf>) -> Result<Py<PyModule>, String> {
    let bootstrap = session::bootstrap(site_dirs).map_err(|failure| failure.message)?;
    Python::attach(|py| bootstrap.bind(py).call_method0("preload").map(drop))
        .map_err(|error| error.to_string())?;
    let threads = std::fs::read_dir("/proc/self/task").map_err(|error| error.to_string())?.count();
    if threads != 1 {
        return Err(format!(
            "Python has {threads} threads once it is up, and a fork would lose all but one: a `.pth` file in the \
             environment may import something that starts them"
        ));
    }
    Ok(bootstrap)
}

/// Forks; `None` in the fork.
fn fork(bootstrap: &Py<PyModule>) -> PyResult<Option<Pid>> {
    // By Python, which has to mend its own state in the fork.
    let pid: i32 =
        Python::attach(|py| bootstrap.bind(py).call_method0("fork").and_then(|pid| pid.extract()))?;
    Ok(Pid::from_raw(pid))
}

/// Makes a fork what a process started by the node itself is.
fn settle(server: Pid, memory_limit: Option<u64>, output: [OwnedFd; 2]) -> io::Result<()> {
    let [stdout, stderr] = output;
    rustix::stdio::dup2_stdout(stdout)?;
    rustix::stdio::dup2_stderr(stderr)?;
    // The parent does the same, and may have reported it before.
    setpgid(None, None)?;
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() != Some(server) {
        return Err(io::Error::other("the fork server has died"));
    }
    if let Some(bytes) = memory_limit {
        setrlimit(Resource::Data, Rlimit { current: Some(bytes), maximum: Some(bytes) })?;
    }
    rename();
    Ok(())
}

/// Gives the process the command line of a worker, as `ps` shows it. What it is called matters to
/// people alone, so nothing is said when that is not possible.
fn rename() {
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return };
    // Fields 48 and 49 of proc(5) are where the arguments begin and end; the name in field 2 may
    // hold spaces.
    let Some((_, after_name)) = stat.rsplit_once(") ") else { return };
    let mut fields = after_name.split(' ').skip(45).map(str::parse::<usize>);
    let (Some(Ok(start)), Some(Ok(end))) = (fields.next(), fields.next()) else { return };
    if start == 0 || end <= start {
        return;
    }
    // SAFETY: the kernel says that this process's arguments lie there, in its own writable stack.
    // Nothing in here reads them any more: they were parsed before, and Python keeps copies.
    let arguments = unsafe { std::slice::from_raw_parts_mut(start as *mut u8, end - start) };
    let Some(program) = arguments.iter().position(|byte| *byte == 0) else { return };
    let Some(rest) = arguments.get_mut(program + 1..) else { return };
    if rest.len() >= TITLE.len() {
        rest[..TITLE.len()].copy_from_slice(TITLE);
        rest[TITLE.len()..].fill(0);
    }
}
