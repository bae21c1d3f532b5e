//! Signals to processes that a test owns.

/// A signal to a process that the test started and did not reap yet.
pub fn signal(pid: u32, signal: i32) {
    // SAFETY: kill has no preconditions; the callers own the process and have not reaped it.
    let sent = unsafe { libc::kill(pid.cast_signed(), signal) };
    assert_eq!(sent, 0, "signal {signal} to {pid}: {}", std::io::Error::last_os_error());
}

/// A process that is stopped (SIGSTOP) until this is dropped or told to go on.
#[must_use]
pub struct Frozen {
    pid: u32,
}

impl Frozen {
    /// Stops it.
    pub fn new(pid: u32) -> Self {
        signal(pid, libc::SIGSTOP);
        Self { pid }
    }

    /// Lets it go on.
    pub fn thaw(self) {
        drop(self);
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // SAFETY: as in `signal`; when a test fails the process may be gone, which is as good.
        unsafe { libc::kill(self.pid.cast_signed(), libc::SIGCONT) };
    }
}

/// Resident memory of a process, in bytes.
pub fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}
