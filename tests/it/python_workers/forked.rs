//! Workers that are forks: they are what others are, and what becomes of the fork server.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::Float64Type;
use millstream::python::{
    Exit, ForkServer, HelperModule, Script, WorkerError, WorkerProcess, WorkerSignal, WorkerSpec,
};

use super::{
    DEADLINE, EVENT_IDENTITY, LEASE, alone, events, in_time, program, site_dir, started_as,
};

/// With a fork server of its own, whose packages are those of the folder.
fn forked_from(site_dir: PathBuf, linger: Duration) -> (WorkerSpec, Arc<ForkServer>) {
    let fork_server =
        Arc::new(ForkServer::new(&program(), std::slice::from_ref(&site_dir), linger));
    let site_dirs = vec![site_dir];
    (WorkerSpec { site_dirs, fork_server: Some(fork_server.clone()), ..alone() }, fork_server)
}

fn forked() -> (WorkerSpec, Arc<ForkServer>) {
    forked_from(site_dir(), LEASE)
}

/// A field of /proc/PID/status.
fn status(pid: u32, field: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let mut values = text.lines().filter_map(|line| line.strip_prefix(field)?.strip_prefix(":"));
    values.next().map(|value| value.trim().to_owned())
}

fn kill(pid: u32) {
    // SAFETY: a process that the test has just seen alive, and that nobody else ends.
    assert_eq!(unsafe { libc::kill(i32::try_from(pid).unwrap(), libc::SIGKILL) }, 0);
}

async fn gone(pid: u32) {
    in_time(async {
        while status(pid, "State").is_some_and(|state| !state.starts_with('Z')) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_fork_is_what_a_process_of_its_own_is() {
    let (spec, fork_server) = forked();
    assert_eq!(fork_server.pid(), None, "nothing runs before a worker is wanted");
    // What a worker can see of itself, in numbers.
    let source = "
import os, random, resource, sys, threading
def transform(event: dict):
    told = [
        os.getpgrp() == os.getpid(), os.getsid(0) == os.getsid(os.getppid()),
        threading.active_count() == 1, threading.current_thread() is threading.main_thread(),
        resource.getrlimit(resource.RLIMIT_DATA) == (1 << 30, 1 << 30),
        os.readlink('/proc/self/fd/0') == '/dev/null', sys.flags.utf8_mode == 1,
        not {'polars', 'pyarrow', 'numpy'} & set(sys.modules), sys.argv == ['millstream-worker'],
    ]
    del event['count']
    event['value'] = float(sum(told << i for i, told in enumerate(told)))
    event['feature_name'] = str(random.random())
    return event
";
    let mut seen = BTreeSet::new();
    for spec in [spec, alone()] {
        let spec = WorkerSpec { memory_limit: Some(1 << 30), ..spec };
        let workers = [started_as(&spec, source).await, started_as(&spec, source).await];
        for mut worker in workers {
            let output = in_time(worker.transform(&events(1))).await.unwrap();
            assert!(output.rejected.is_empty(), "{:?}", output.rejected);
            let rows = output.rows;
            let value =
                rows.column_by_name("value").unwrap().as_primitive::<Float64Type>().value(0);
            assert_eq!(value, f64::from((1 << 9) - 1), "by its bits");
            let random = rows.column_by_name("feature_name").unwrap().as_string::<i32>().value(0);
            assert!(seen.insert(random.to_owned()), "two workers drew the same");

            let parent: u32 = status(worker.pid(), "PPid").unwrap().parse().unwrap();
            let expected =
                spec.fork_server.as_ref().map_or(std::process::id(), |of| of.pid().unwrap());
            assert_eq!(parent, expected);
            let command = std::fs::read(format!("/proc/{}/cmdline", worker.pid())).unwrap();
            let command = String::from_utf8(command).unwrap();
            assert_eq!(command.split('\0').nth(1), Some("python-worker"), "{command:?}");
            assert_eq!(in_time(worker.stop(DEADLINE)).await, Exit { code: Some(0), signal: None });
        }
    }
}

#[tokio::test]
async fn how_a_fork_ends_is_told_and_its_output_is_its_own() {
    let (spec, _) = forked();
    let source = "
import os, sys
def transform(event: dict):
    print('last words of', os.getpid(), file=sys.stderr)
    os._exit(7)
";
    let (mut one, mut other) = (started_as(&spec, source).await, started_as(&spec, source).await);
    let (pid, mut watch) = (other.pid(), other.exit_watch());
    assert!(other.handle().signal(WorkerSignal::Kill));
    assert_eq!(in_time(watch.wait()).await, Exit { code: None, signal: Some(9) });
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "not reaped");
    assert!(!other.handle().signal(WorkerSignal::Kill), "it is gone");
    let died = in_time(other.transform(&events(1))).await.unwrap_err();
    assert!(matches!(&died, WorkerError::Exited { stderr, .. } if stderr.is_empty()), "{died:?}");

    let pid = one.pid();
    let died = in_time(one.transform(&events(1))).await.unwrap_err();
    let WorkerError::Exited { exit, stderr } = died else { panic!("{died:?}") };
    assert_eq!(exit, Exit { code: Some(7), signal: None });
    assert_eq!(stderr.trim(), format!("last words of {pid}"));
}

#[tokio::test]
async fn a_fork_server_that_is_killed_takes_its_workers_along_and_the_next_start_makes_another() {
    let (spec, fork_server) = forked();
    let mut worker =
        started_as(&spec, "import time\ndef transform(event: dict): time.sleep(1000)").await;
    let (pid, mut watch, before) = (worker.pid(), worker.exit_watch(), fork_server.pid().unwrap());
    let batch = events(1);
    let killing = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        kill(before);
    };
    let (died, ()) = tokio::join!(in_time(worker.transform(&batch)), killing);
    assert!(matches!(&died, Err(WorkerError::Exited { .. })), "{died:?}");
    in_time(watch.wait()).await;
    gone(pid).await;

    let mut next = started_as(&spec, EVENT_IDENTITY).await;
    assert_ne!(fork_server.pid().unwrap(), before);
    in_time(next.transform(&events(1))).await.unwrap();
    let parent = status(next.pid(), "PPid").unwrap();
    assert_eq!(parent, fork_server.pid().unwrap().to_string(), "a fork again");
}

#[tokio::test]
async fn a_fork_server_that_does_not_answer_holds_nobody_up_and_is_replaced() {
    let (spec, fork_server) = forked();
    let spec = WorkerSpec { lease: Duration::from_secs(10), ..spec };
    let idle = started_as(&spec, EVENT_IDENTITY).await;
    let handle = idle.handle();
    let frozen = fork_server.pid().unwrap();
    // SAFETY: a process that the test has just seen alive, and that nobody else ends.
    assert_eq!(unsafe { libc::kill(i32::try_from(frozen).unwrap(), libc::SIGSTOP) }, 0);
    let leaving = tokio::spawn(in_time(idle.stop(Duration::from_millis(100))));
    let asking = async {
        // From some moment on its own thread asks the fork server, and waits for an answer.
        let mut longest = Duration::ZERO;
        loop {
            let asked = Instant::now();
            let alive = handle.is_alive();
            assert!(alive || !handle.signal(WorkerSignal::Kill));
            longest = longest.max(asked.elapsed());
            if !alive {
                return longest;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = in_time(asking).await;
    assert!(waited < Duration::from_secs(1), "{waited:?}");

    let mut next = in_time(WorkerProcess::spawn(&spec)).await.unwrap();
    in_time(next.load(&super::script(EVENT_IDENTITY), &events(0).schema())).await.unwrap();
    in_time(next.transform(&events(1))).await.unwrap();
    assert_ne!(fork_server.pid().unwrap(), frozen);
    gone(frozen).await;
    // Who could have told is gone.
    assert_eq!(leaving.await.unwrap(), Exit { code: None, signal: None });
}

#[tokio::test]
async fn a_script_and_its_helpers_may_have_names_that_the_fork_server_has_imported() {
    let helper = |name: &str, source: &str| HelperModule {
        name: name.into(),
        path: PathBuf::from(format!("/scripts/{name}.py")),
        source: source.into(),
        is_package: false,
    };
    let source = "
import sys, statistics, email
from concurrent.futures import thread
assert statistics.OWN == 1 and 'calendar' in sys.modules[__name__].__file__
def transform(event: dict):
    del event['count']
    return event
";
    for spec in [forked().0, alone()] {
        let mut worker = in_time(WorkerProcess::spawn(&spec)).await.unwrap();
        let mut script = Script::new("calendar", Path::new("/scripts/calendar.py"), source);
        script.modules = vec![helper("statistics", "OWN = 1")];
        in_time(worker.load(&script, &events(0).schema())).await.unwrap();
        in_time(worker.transform(&events(1))).await.unwrap();
        // What every worker has is nobody's name.
        let taken = Script::new("json", Path::new("/scripts/json.py"), source);
        let refused = in_time(worker.load(&taken, &events(0).schema())).await.unwrap_err();
        assert!(
            matches!(&refused, WorkerError::Import { message, .. } if message.contains("a script cannot be called 'json'")),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn without_a_worker_it_leaves_and_dropped_it_ends() {
    let (spec, fork_server) = forked_from(site_dir(), Duration::from_millis(300));
    let worker = started_as(&spec, EVENT_IDENTITY).await;
    let first = fork_server.pid().unwrap();
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert!(status(first, "State").is_some(), "it has a worker");
    in_time(worker.stop(DEADLINE)).await;
    gone(first).await;

    let worker = started_as(&spec, EVENT_IDENTITY).await;
    let second = fork_server.pid().unwrap();
    assert_ne!(first, second);
    in_time(worker.stop(DEADLINE)).await;

    let (spec, fork_server) = forked();
    let worker = started_as(&spec, EVENT_IDENTITY).await;
    let pid = fork_server.pid().unwrap();
    drop((spec, fork_server));
    in_time(worker.stop(DEADLINE)).await;
    gone(pid).await;
}

#[tokio::test]
async fn packages_that_are_installed_meanwhile_are_those_of_the_next_worker() {
    let dir = tempfile::tempdir().unwrap();
    let (spec, fork_server) = forked_from(dir.path().to_owned(), LEASE);
    let source = "import just_installed\ndef transform(event: dict): return event";
    let mut worker = started_as(&spec, EVENT_IDENTITY).await;
    let before = fork_server.pid().unwrap();
    // Longer than the clock of the file system may stand still.
    tokio::time::sleep(Duration::from_millis(50)).await;
    std::fs::write(dir.path().join("just_installed.py"), "").unwrap();
    std::fs::write(dir.path().join("own.pth"), "import sys; sys.of_a_pth = True\n").unwrap();
    let source = format!("{source}\nimport sys\nassert sys.of_a_pth");
    let next = started_as(&spec, &source).await;
    assert_ne!(fork_server.pid().unwrap(), before);
    in_time(worker.transform(&events(1))).await.unwrap();
    in_time(worker.stop(DEADLINE)).await;
    // Its last worker has left, and nobody would ask it for another.
    gone(before).await;
    in_time(next.stop(DEADLINE)).await;
}

#[tokio::test]
async fn where_there_can_be_no_fork_server_workers_start_by_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let thread = "import threading, time; threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n";
    std::fs::write(dir.path().join("busy.pth"), thread).unwrap();
    let (threaded, with_threads) = forked_from(dir.path().to_owned(), LEASE);
    let absent = Arc::new(ForkServer::new(Path::new("/no/such/program"), &[], LEASE));
    let other = Arc::new(ForkServer::new(Path::new("/bin/false"), &[], LEASE));
    let deaf = Arc::new(ForkServer::new(Path::new("/bin/true"), &[], LEASE));
    for (spec, fork_server) in [
        (threaded, with_threads),
        (WorkerSpec { fork_server: Some(absent.clone()), ..alone() }, absent),
        (WorkerSpec { fork_server: Some(other.clone()), ..alone() }, other),
        (WorkerSpec { fork_server: Some(deaf.clone()), ..alone() }, deaf),
    ] {
        let mut worker = in_time(WorkerProcess::spawn(&spec)).await.unwrap();
        let source = super::script(EVENT_IDENTITY);
        in_time(worker.load(&source, &events(0).schema())).await.unwrap();
        in_time(worker.transform(&events(1))).await.unwrap();
        assert_eq!(fork_server.pid(), None);
        let parent = status(worker.pid(), "PPid").unwrap();
        assert_eq!(parent, std::process::id().to_string(), "a child of the node");
        in_time(worker.stop(DEADLINE)).await;
    }
}
