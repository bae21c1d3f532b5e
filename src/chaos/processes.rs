//! Processes that we own: signals to them, those that stand still, what they take; and the Python
//! workers of nodes, looked for and counted.

use chrono::{DateTime, Utc};
use std::{
    collections::BTreeSet,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

pub use crate::actors::python_worker_supervisor::resident_bytes;

/// How often workers are counted.
const SAMPLE: Duration = Duration::from_millis(10);
/// So many violations are kept; their number is told in any case.
const VIOLATIONS_KEPT: usize = 16;

/// Sends a signal to a process that the caller started and did not reap yet.
///
/// # Errors
/// When it is gone, or not ours.
pub fn signal(pid: u32, signal: i32) -> io::Result<()> {
    let one = i32::try_from(pid).ok().filter(|pid| *pid > 0);
    // Zero and what is negative would reach whole groups of processes.
    let one = one.ok_or_else(|| io::Error::other(format!("{pid} is not a process")))?;
    // SAFETY: kill has no preconditions; the callers own the process and have not reaped it.
    if unsafe { libc::kill(one, signal) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(io::Error::new(error.kind(), format!("signal {signal} to {pid}: {error}")))
}

/// A process that is stopped (SIGSTOP) until this is dropped or told to go on.
#[must_use]
#[derive(Debug)]
pub struct Frozen {
    pid: u32,
}

impl Frozen {
    /// Stops it. Its children go on.
    ///
    /// # Errors
    /// When it is gone, or not ours.
    pub fn new(pid: u32) -> io::Result<Self> {
        signal(pid, libc::SIGSTOP)?;
        Ok(Self { pid })
    }

    /// Which process it is.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Lets it go on.
    pub fn thaw(self) {
        drop(self);
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // It may have been killed meanwhile, which is as good.
        let _ = signal(self.pid, libc::SIGCONT);
    }
}

/// The worker processes that a node has started and that live, those of its fork server too.
#[must_use]
pub fn workers_of(node: u32) -> Vec<u32> {
    let mut workers = children_of(node, WORKER);
    for fork_server in fork_servers_of(node) {
        workers.extend(children_of(fork_server, WORKER));
    }
    workers
}

/// The processes of which a node's workers are forks: one, or for a moment more.
#[must_use]
pub fn fork_servers_of(node: u32) -> Vec<u32> {
    children_of(node, FORK_SERVER)
}

const WORKER: &str = "python-worker";
const FORK_SERVER: &str = "python-forkserver";

/// The children of a process that run this subcommand.
fn children_of(pid: u32, role: &str) -> Vec<u32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let children = threads
        .flatten()
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let children = children.collect::<Vec<_>>().join(" ");
    let pids = children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok());
    pids.filter(|pid| role_of(*pid).as_deref() == Some(role)).collect()
}

/// The subcommand that a process of this program runs.
fn role_of(pid: u32) -> Option<String> {
    // A process that is dead but not reaped has no command line any more.
    let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    command.split('\0').nth(1).map(str::to_owned)
}

fn is_worker(pid: u32) -> bool {
    role_of(pid).as_deref() == Some(WORKER)
}

/// A time during which more workers lived than may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// When it was seen first.
    pub at: DateTime<Utc>,
    /// Who lived then.
    pub workers: Vec<u32>,
    /// In how many samples, one after the other, there were too many.
    pub samples: u64,
}

/// What was counted.
#[derive(Debug, Clone, Default)]
pub struct Counted {
    /// The most workers that lived at once.
    pub most: usize,
    /// How often it was looked.
    pub samples: u64,
    /// How often there came to be too many.
    pub violations: usize,
    /// The first sixteen of these.
    pub first_violations: Vec<Violation>,
}

/// Who is watched, and what was seen.
#[derive(Debug, Default)]
struct Watched {
    nodes: BTreeSet<u32>,
    aside: BTreeSet<u32>,
    /// Workers that were seen, those of a killed node too, until they are gone.
    alive: BTreeSet<u32>,
    over: bool,
    counted: Counted,
}

impl Watched {
    fn sample(&mut self, cap: usize) {
        for node in &self.nodes {
            self.alive.extend(workers_of(*node));
        }
        self.alive.retain(|pid| is_worker(*pid));
        let counting: Vec<u32> = self.alive.difference(&self.aside).copied().collect();
        self.note(counting, cap);
    }

    fn note(&mut self, workers: Vec<u32>, cap: usize) {
        let counted = &mut self.counted;
        counted.samples += 1;
        counted.most = counted.most.max(workers.len());
        let over = workers.len() > cap;
        if over && !self.over {
            counted.violations += 1;
            if counted.violations <= VIOLATIONS_KEPT {
                let violation = Violation { at: Utc::now(), workers, samples: 0 };
                counted.first_violations.push(violation);
            }
        }
        if over
            && counted.violations <= VIOLATIONS_KEPT
            && let Some(violation) = counted.first_violations.last_mut()
        {
            violation.samples += 1;
        }
        self.over = over;
    }
}

/// Counts the live workers of some nodes every 10 ms, on a thread, until it is told to end or is
/// dropped. Those of a node that was killed count until they are gone themselves.
#[derive(Debug)]
pub struct WorkerCount {
    watched: Arc<Mutex<Watched>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl WorkerCount {
    /// Begins, with no nodes; more workers than `cap` are a violation.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(cap: usize) -> io::Result<Self> {
        let (watched, stop) = (Arc::<Mutex<Watched>>::default(), Arc::<AtomicBool>::default());
        let (watching, stopped) = (watched.clone(), stop.clone());
        let thread = std::thread::Builder::new().name("worker-count".into()).spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                let next = Instant::now() + SAMPLE;
                lock(&watching).sample(cap);
                std::thread::park_timeout(next.saturating_duration_since(Instant::now()));
            }
        })?;
        Ok(Self { watched, stop, thread: Some(thread) })
    }

    /// Counts the workers of this node from now on.
    pub fn watch(&self, node: u32) {
        lock(&self.watched).nodes.insert(node);
    }

    /// Looks for no new workers of this node, as it was reaped and its pid may be another's soon.
    /// Those that were seen count until they are gone.
    pub fn forget(&self, node: u32) {
        lock(&self.watched).nodes.remove(&node);
    }

    /// Leaves these workers aside, instead of any others before: they stand still together with
    /// their node, and their permits may be taken by others meanwhile.
    pub fn leave_aside(&self, workers: impl IntoIterator<Item = u32>) {
        lock(&self.watched).aside = workers.into_iter().collect();
    }

    /// What was counted so far.
    #[must_use]
    pub fn so_far(&self) -> Counted {
        lock(&self.watched).counted.clone()
    }

    /// Ends it; what was counted.
    #[must_use]
    pub fn end(self) -> Counted {
        let watched = self.watched.clone();
        // The last sample is taken when the thread has ended.
        drop(self);
        std::mem::take(&mut lock(&watched).counted)
    }
}

impl Drop for WorkerCount {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // Nothing in it panics.
            let _ = thread.join();
        }
    }
}

fn lock(watched: &Mutex<Watched>) -> MutexGuard<'_, Watched> {
    // Counts of one sample may be missing after a panic, which there is none of.
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    /// A process that looks like a worker, until its input ends.
    fn worker() -> (Child, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("python-worker"), "echo up; read line").unwrap();
        let mut command = Command::new("sh");
        command.arg("python-worker").current_dir(dir.path());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut up = [0; 3];
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
        (child, dir)
    }

    fn end(mut child: Child) {
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    fn wait_until(mut condition: impl FnMut() -> bool) {
        let until = Instant::now() + Duration::from_secs(60);
        while !condition() {
            assert!(Instant::now() < until);
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    fn state_of(pid: u32) -> char {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(") ").next().unwrap().chars().next().unwrap()
    }

    #[test]
    fn live_workers_are_found_and_counted_and_too_many_are_told() {
        let me = std::process::id();
        let count = WorkerCount::start(1).unwrap();
        count.watch(me);
        let ((one, _one), (two, _two)) = (worker(), worker());
        let pids = BTreeSet::from([one.id(), two.id()]);
        assert!(pids.is_subset(&workers_of(me).into_iter().collect()));
        wait_until(|| count.so_far().most >= 2);
        let so_far = count.so_far();
        // Those of other tests in this program may have been too many before.
        assert!(so_far.violations >= 1);
        assert!(so_far.first_violations[0].workers.len() > 1);

        // Others of this test program may be there: those of other tests.
        let both = count.so_far().samples;
        count.leave_aside(workers_of(me));
        wait_until(|| count.so_far().samples > both + 1);
        count.leave_aside([]);
        wait_until(|| count.so_far().violations > so_far.violations);

        end(one);
        end(two);
        assert!(pids.is_disjoint(&workers_of(me).into_iter().collect()));
        let counted = count.end();
        assert!(counted.samples > 2 && counted.first_violations[0].samples > 0, "{counted:?}");
    }

    #[test]
    fn a_violation_lasts_until_there_are_few_enough() {
        let mut watched = Watched::default();
        for workers in [vec![1], vec![1, 2], vec![2, 3, 4], vec![3], vec![3, 4]] {
            watched.note(workers, 1);
        }
        let counted = watched.counted;
        assert_eq!((counted.most, counted.samples, counted.violations), (3, 5, 2));
        let first = counted.first_violations.iter().map(|v| (v.workers.clone(), v.samples));
        assert_eq!(first.collect::<Vec<_>>(), [(vec![1, 2], 2), (vec![3, 4], 1)]);
    }

    #[test]
    fn only_so_many_violations_are_kept() {
        let mut watched = Watched::default();
        for _ in 0..=VIOLATIONS_KEPT {
            watched.note(vec![1], 0);
            watched.note(vec![], 0);
        }
        assert_eq!(watched.counted.violations, VIOLATIONS_KEPT + 1);
        assert_eq!(watched.counted.first_violations.len(), VIOLATIONS_KEPT);
        assert!(watched.counted.first_violations.iter().all(|v| v.samples == 1));
    }

    #[test]
    fn a_frozen_process_stands_still_until_it_is_thawed() {
        let (child, _dir) = worker();
        let frozen = Frozen::new(child.id()).unwrap();
        wait_until(|| state_of(child.id()) == 'T');
        assert!(resident_bytes(child.id()).unwrap() > 0);
        frozen.thaw();
        wait_until(|| state_of(child.id()) != 'T');
        end(child);
    }

    #[test]
    fn whole_groups_and_strangers_get_no_signal() {
        assert!(signal(0, 0).is_err());
        assert!(signal(u32::MAX, 0).is_err());
        let (mut child, _dir) = worker();
        let pid = child.id();
        signal(pid, libc::SIGKILL).unwrap();
        child.wait().unwrap();
        assert!(signal(pid, 0).unwrap_err().to_string().contains(&pid.to_string()));
    }
}
