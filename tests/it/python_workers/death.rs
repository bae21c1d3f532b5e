//! How workers end, and that nothing outlives them: no orphan, no zombie, no child of a script.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use millstream::python::{Exit, WorkerError, WorkerProcess, WorkerSpec};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::{DEADLINE, EVENT_IDENTITY, alone, events, in_time, script, spec, started_as};

async fn process_is_gone(pid: u32) {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    in_time(async {
        // A zombie that nobody has reaped yet still has its folder: look at its state.
        while std::fs::read_to_string(proc.join("stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_a_script_started_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let note = dir.path().join("pid");
    let source = format!(
        "
import os, subprocess
def transform(event: dict):
    child = subprocess.Popen(['sleep', '1000'])
    with open({note:?}, 'w') as file:
        file.write(str(child.pid))
    if event['_row'] == 1:
        os._exit(1)
"
    );
    let ways = [(1, "kill"), (2, "own exit"), (1, "stop"), (1, "drop")];
    for (spec, (rows, how)) in [spec(), alone()].iter().flat_map(|spec| ways.map(|way| (spec, way)))
    {
        let mut worker = started_as(spec, &source).await;
        let _ = in_time(worker.transform(&events(rows))).await;
        let pid: u32 = std::fs::read_to_string(&note).unwrap().parse().unwrap();
        match how {
            "kill" => drop(in_time(worker.kill()).await),
            "stop" => drop(in_time(worker.stop(DEADLINE)).await),
            _ => drop(worker),
        }
        process_is_gone(pid).await;
    }
}

#[tokio::test]
async fn heartbeats_keep_a_worker_and_their_absence_ends_it() {
    let lease = Duration::from_millis(1500);
    let mut worker = in_time(WorkerProcess::spawn(&WorkerSpec { lease, ..spec() })).await.unwrap();
    let heartbeat = worker.heartbeat();
    let mut watch = worker.exit_watch();
    let beating = tokio::spawn({
        let heartbeat = heartbeat.clone();
        async move {
            while heartbeat.beat(Instant::now()) {
                tokio::time::sleep(lease / 10).await;
            }
        }
    });
    // Longer than the lease, holding the interpreter's lock: the beats are read all the same.
    let source = "
import time
def transform(event: dict):
    end = time.monotonic() + 2.5
    while time.monotonic() < end: pass
";
    in_time(worker.load(&script(source), &events(0).schema())).await.unwrap();
    in_time(worker.transform(&events(1))).await.unwrap();
    assert_eq!(watch.get(), None);

    beating.abort();
    let last = Instant::now();
    // A renewal that happened long ago does not count.
    assert!(heartbeat.beat(Instant::now() - lease));
    let exit = in_time(watch.wait()).await;
    assert!(last.elapsed() < lease, "{:?}", last.elapsed());
    assert_eq!(exit.signal, Some(9));
    let died = worker.transform(&events(1)).await.unwrap_err();
    assert!(
        matches!(&died, WorkerError::Exited { stderr, .. } if stderr.contains("no heartbeat")),
        "{died:?}"
    );
    drop(worker);
    assert!(!heartbeat.beat(Instant::now()));
}

#[tokio::test]
async fn a_worker_that_was_stopped_beyond_its_lease_leaves_at_once() {
    let lease = Duration::from_secs(3);
    let worker = in_time(WorkerProcess::spawn(&WorkerSpec { lease, ..spec() })).await.unwrap();
    let (heartbeat, mut watch) = (worker.heartbeat(), worker.exit_watch());
    heartbeat.beat(Instant::now());
    let pid = i32::try_from(worker.pid()).unwrap();
    // SAFETY: sends a signal to a child that this test holds, so the pid is still its own.
    let signal = |signal| assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    signal(libc::SIGSTOP);
    // Waits in the socket while the worker is stopped, and is too old when it goes on.
    heartbeat.beat(Instant::now());
    tokio::time::sleep(lease).await;
    signal(libc::SIGCONT);
    let resumed = Instant::now();
    in_time(watch.wait()).await;
    // Counted from its arrival, that heartbeat would have bought 0.7 of the lease.
    assert!(resumed.elapsed() < lease / 2, "{:?}", resumed.elapsed());
}

#[tokio::test]
async fn a_dropped_worker_is_killed_and_reaped() {
    for spec in [spec(), alone()] {
        let worker = started_as(&spec, EVENT_IDENTITY).await;
        let (pid, mut watch) = (worker.pid(), worker.exit_watch());
        drop(worker);
        assert_eq!(in_time(watch.wait()).await, Exit { code: None, signal: Some(9) });
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "not reaped");
    }
}

#[tokio::test]
async fn no_orphan_when_the_node_is_killed() {
    for how in ["forked", "alone"] {
        no_orphan_of_a_killed_node(how).await;
    }
}

async fn no_orphan_of_a_killed_node(how: &str) {
    // A process of its own plays the node: it starts a worker that hangs with the lock held, tells
    // the pids and waits to be killed.
    let (_, module) = module_path!().split_once("::").unwrap();
    let mut node = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::node_to_be_killed"), "--nocapture"])
        .env("MILLSTREAM_TEST_NODE", how)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(node.stdout.take().unwrap()).lines();
    let pids: Vec<u32> = in_time(async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if let Some((_, pids)) = line.split_once("pids:") {
                return pids.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
            }
        }
        panic!("the node ended without telling pids");
    })
    .await;
    assert_eq!(pids.len(), 2);
    node.kill().await.unwrap();
    for pid in pids {
        process_is_gone(pid).await;
    }
}

/// Plays the node for the test above; nothing by itself.
#[tokio::test(flavor = "multi_thread")]
async fn node_to_be_killed() {
    let spec = match std::env::var("MILLSTREAM_TEST_NODE").as_deref() {
        Ok("forked") => spec(),
        Ok("alone") => alone(),
        _ => return,
    };
    let dir = tempfile::tempdir().unwrap();
    let note = dir.path().join("pid");
    let source = format!(
        "
import os, subprocess
def transform(event: dict):
    child = subprocess.Popen(['sleep', '1000'])
    with open({:?}, 'w') as file:
        file.write(str(child.pid))
    os.rename({:?}, {note:?})
    while True: pass
",
        dir.path().join("new"),
        dir.path().join("new"),
    );
    let mut worker = started_as(&spec, &source).await;
    let pid = worker.pid();
    let tell = async {
        while !note.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        println!("pids: {pid} {}", std::fs::read_to_string(&note).unwrap());
    };
    let events = events(1);
    let (_, _) = tokio::join!(tell, worker.transform(&events));
}
