//! Disks in trouble: one that is small and can be filled, and one that cannot flush.
//!
//! Both say in their error why they cannot be had here, so that whoever wanted one can leave it
//! out by name.

use super::processes::signal;
use std::{
    fmt,
    fs::File,
    io::{self, ErrorKind, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How long strace may take to attach itself to a process, on a busy machine.
const ATTACH_DEADLINE: Duration = Duration::from_secs(60);

/// A file system of its own, in memory and small. Unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one of so many MiB on a folder, which is made when it is missing.
    ///
    /// # Errors
    /// The reason, where mounting is not permitted: it needs root.
    pub fn mount(dir: &Path, mebibytes: usize) -> Result<Self, String> {
        let refused = |why: &str| format!("mounting a small tmpfs is not permitted here: {why}");
        std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let size = format!("size={mebibytes}m");
        let mut mount = Command::new("mount");
        let done = mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir).output();
        let done = done.map_err(|e| refused(&e.to_string()))?;
        if !done.status.success() {
            return Err(refused(String::from_utf8_lossy(&done.stderr).trim()));
        }
        Ok(Self(dir.to_owned()))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    /// Takes all the room that is left with a file.
    ///
    /// # Errors
    /// When something else than want of room ends it.
    pub fn fill(&self) -> io::Result<()> {
        let mut file = File::options().create(true).append(true).open(self.ballast())?;
        loop {
            match file.write_all(&[0; 4096]) {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(e) => return Err(e),
            }
        }
    }

    /// Gives that room back.
    ///
    /// # Errors
    /// When the file cannot be deleted; that there is none is fine.
    pub fn free(&self) -> io::Result<()> {
        match std::fs::remove_file(self.ballast()) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What is still open goes away with its process.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// What becomes of every fsync and fdatasync of a process.
#[derive(Debug, Clone, Copy)]
pub enum FlushFault {
    /// It fails with this error, by its name: `EIO`.
    Error(&'static str),
    /// It waits so long, and then is done.
    Delay(Duration),
}

/// As strace has it.
impl fmt::Display for FlushFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(name) => write!(f, "error={name}"),
            Self::Delay(time) => write!(f, "delay_enter={}", time.as_micros()),
        }
    }
}

/// A process whose flushes to its disk are at fault, until this is dropped.
#[derive(Debug)]
pub struct FailingDisk(Child);

impl FailingDisk {
    /// Attaches strace to a process and its threads.
    ///
    /// # Errors
    /// The reason: there is no strace, processes may not be traced here, this one is gone.
    pub fn attach(pid: u32, fault: FlushFault) -> Result<Self, String> {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-q", "-e", "trace=fsync,fdatasync,sync_file_range"]);
        strace.args(["-e", &format!("inject=fsync,fdatasync:{fault}"), "-p", &pid.to_string()]);
        strace.args(["-o", "/dev/null"]).stdin(Stdio::null()).stderr(Stdio::piped());
        let child = strace
            .spawn()
            .map_err(|e| format!("needs strace (scripts/setup.sh --ci installs it): {e}"))?;
        let mut disk = Self(child);
        let until = Instant::now() + ATTACH_DEADLINE;
        while !is_traced(pid)? {
            if disk.0.try_wait().is_ok_and(|ended| ended.is_some()) {
                let mut why = String::new();
                if let Some(mut stderr) = disk.0.stderr.take() {
                    // The reason is a courtesy; that it failed is known.
                    let _ = stderr.read_to_string(&mut why);
                }
                return Err(format!("tracing a process is not permitted here: {}", why.trim()));
            }
            if Instant::now() > until {
                return Err(format!("strace has not attached to {pid} in {ATTACH_DEADLINE:?}"));
            }
            // The pace of looking.
            std::thread::park_timeout(Duration::from_millis(10));
        }
        Ok(disk)
    }
}

fn is_traced(pid: u32) -> Result<bool, String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .map_err(|e| format!("process {pid} is gone: {e}"))?;
    Ok(!status.contains("TracerPid:\t0\n"))
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            // Asked to end, it lets go of the process, which goes on.
            let _ = signal(self.0.id(), libc::SIGTERM);
            let _ = self.0.wait();
        }
    }
}
