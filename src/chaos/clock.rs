//! A wall clock that is wrong, for child processes: libfaketime stands before the C library and
//! adds an offset, which can be changed while they run. The monotonic clock is left alone, as by an
//! operator who sets the time.
//!
//! | a process that runs with it | sees |
//! |---|---|
//! | the wall clock | the offset within [`SEEN_WITHIN`] of [`Clock::set`] |
//! | `Instant`, timeouts, sleeping | nothing of it |
//! | waiting until a moment of the wall clock, as librdkafka does | the same wait as with a right clock |
//! | times of files | the kernel's, so the right ones |
//! | its children, such as Python workers and an embedded redis-server | the same |
//!
//! What it costs: a look at the wall clock takes 5 to 6 times as long (a million calls of Python's
//! `time.time_ns` took 0.19 s without and 1.0 s with it), and some 50 times if the offset were read
//! each time, so it is kept for a second. The monotonic clock costs the same as ever.
//!
//! Debian 12's version has gaps. They are closed by settings (`FAKETIME_FORCE_MONOTONIC_FIX=0`:
//! otherwise POSIX waits on the monotonic clock return at once and spin) and by `clock_gaps.c`, which
//! is compiled with `cc` and loaded before it: C11's waits, which librdkafka uses, would last as
//! much longer as the offset is, and Python's `time.sleep` would fail. It also leaves a semaphore and
//! a page of each process in `/dev/shm`, by its pid; a process that got this pid again would not
//! start. Those of processes that are gone are deleted when a clock begins and ends.

use std::{
    io,
    path::{Path, PathBuf},
    process::Command,
};

/// How long a running process may go on with the offset before, for it looks once a second.
pub const SEEN_WITHIN: std::time::Duration = std::time::Duration::from_secs(2);

const GAPS: &str = include_str!("clock_gaps.c");
const SHARED_MEMORY: &str = "/dev/shm";

/// The wrong clock of some child processes. It must outlive them.
#[derive(Debug)]
pub struct Clock {
    dir: PathBuf,
    /// What is loaded before the C library, in this order.
    preload: String,
}

impl Clock {
    /// Makes one that is right, with its files in `dir`, which is made when it is missing.
    ///
    /// # Errors
    /// The reason why it cannot be had here: no libfaketime, no C compiler; or its files could not
    /// be written.
    pub fn new(dir: &Path) -> Result<Self, String> {
        let library = library().ok_or(
            "needs libfaketime (Debian: libfaketime; scripts/setup.sh --chaos installs it)",
        )?;
        let told = |e: io::Error| format!("{}: {e}", dir.display());
        std::fs::create_dir_all(dir).map_err(told)?;
        let dir = dir.canonicalize().map_err(told)?;
        let gaps = compile_gaps(&dir)?;
        delete_leftovers();
        let preload = format!("{}:{}", gaps.display(), library.display());
        let clock = Self { dir, preload };
        clock.right().map_err(|e| format!("{}: {e}", clock.file().display()))?;
        Ok(clock)
    }

    fn file(&self) -> PathBuf {
        self.dir.join("clock")
    }

    /// What a process must have in its environment from its start.
    #[must_use]
    pub fn envs(&self) -> Vec<(String, String)> {
        let file = self.file().display().to_string();
        let pairs = [
            ("LD_PRELOAD", self.preload.as_str()),
            ("FAKETIME_TIMESTAMP_FILE", &file),
            ("FAKETIME_CACHE_DURATION", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("FAKETIME_FORCE_MONOTONIC_FIX", "0"),
            // Its lock over all processes would be left locked by one that is killed.
            ("NO_FAKE_STAT", "1"),
        ];
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    /// Puts the clock so many seconds ahead, or behind.
    ///
    /// # Errors
    /// When its file cannot be written.
    pub fn set(&self, offset_s: f64) -> io::Result<()> {
        // In one step: a process may look at any time.
        let new = self.dir.join("clock.new");
        std::fs::write(&new, format!("{offset_s:+.6}\n"))?;
        std::fs::rename(new, self.file())
    }

    /// Makes it right again.
    ///
    /// # Errors
    /// When its file cannot be written.
    pub fn right(&self) -> io::Result<()> {
        self.set(0.0)
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        delete_leftovers();
    }
}

/// The variant for programs with threads, where Debian and others put it.
fn library() -> Option<PathBuf> {
    let of_architectures = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let folders = ["/usr/lib", "/usr/lib64", "/usr/local/lib"].map(PathBuf::from);
    let mut folders = folders.into_iter().chain(of_architectures.map(|entry| entry.path()));
    folders.find_map(|folder| {
        let path = folder.join("faketime/libfaketimeMT.so.1");
        path.exists().then_some(path)
    })
}

fn compile_gaps(dir: &Path) -> Result<PathBuf, String> {
    let (source, library) = (dir.join("clock_gaps.c"), dir.join("clock_gaps.so"));
    std::fs::write(&source, GAPS).map_err(|e| format!("{}: {e}", source.display()))?;
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O2", "-o"]).args([&library, &source]);
    let done = compiler.output().map_err(|e| format!("needs a C compiler, cc: {e}"))?;
    if !done.status.success() {
        let why = String::from_utf8_lossy(&done.stderr);
        return Err(format!("cc could not compile {}: {}", source.display(), why.trim()));
    }
    Ok(library)
}

/// Deletes what libfaketime has left of processes that are gone.
fn delete_leftovers() {
    for entry in std::fs::read_dir(SHARED_MEMORY).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let of = name.strip_prefix("faketime_shm_").or(name.strip_prefix("sem.faketime_sem_"));
        let gone = of
            .and_then(|pid| pid.parse::<u32>().ok())
            .is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        if gone {
            // Another clock may have been faster.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
