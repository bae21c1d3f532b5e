//! A script that crashes, hangs, prints, forks or closes what is not its own.

use std::path::Path;
use std::time::Duration;

use millstream::python::{Exit, WorkerError};

use super::{EVENT_IDENTITY, assert_identity, events, in_time, run, script, started};

#[tokio::test]
async fn a_segfault_is_told_with_its_signal_and_stack() {
    let source = "
import ctypes
def transform(event: dict):
    ctypes.string_at(0)
";
    let mut worker = started(source).await;
    let mut watch = worker.exit_watch();
    let died = in_time(worker.transform(&events(1))).await.unwrap_err();
    let WorkerError::Exited { exit, stderr } = died else { panic!("{died:?}") };
    assert_eq!(exit, Exit { code: None, signal: Some(11) });
    assert!(stderr.contains("under_test.py\", line 4 in transform"), "{stderr}");
    assert_eq!(watch.get(), Some(exit));
    assert_eq!(watch.wait().await, exit);
    assert!(matches!(worker.transform(&events(1)).await, Err(WorkerError::Poisoned)));
}

#[tokio::test]
async fn aborts_and_exits_are_told() {
    for (statement, expected) in [
        ("os.abort()", Exit { code: None, signal: Some(6) }),
        ("os._exit(7)", Exit { code: Some(7), signal: None }),
        ("os.kill(os.getpid(), 9)", Exit { code: None, signal: Some(9) }),
    ] {
        let died = run(&format!("import os\ndef transform(e: dict):\n    {statement}\n"), 1)
            .await
            .unwrap_err();
        assert!(matches!(died, WorkerError::Exited { exit, .. } if exit == expected), "{died:?}");
    }
}

#[tokio::test]
async fn prints_do_not_touch_the_data() {
    let source = format!(
        "
import os, sys
{EVENT_IDENTITY}
inner = transform
def transform(event: dict):
    print('x' * 50_000)
    print('to stderr', file=sys.stderr)
    os.write(1, b'\\x43\\0\\0\\0\\0 raw bytes \\xff')
    os.system('echo from a shell')
    return inner(event)
"
    );
    assert_identity(&run(&source, 3).await.unwrap());
}

#[tokio::test]
async fn closing_descriptors_is_harmless() {
    for closing in [
        "for fd in range(3): os.close(fd)",
        "os.closerange(0, 256)",
        "sys.stdout.close(); sys.stderr.close()",
    ] {
        let source = format!(
            "
import os, sys
def transform(event: dict):
    {closing}
    del event['count']
    return event
"
        );
        let source = source.replace(
            "for fd in range(3): os.close(fd)",
            "[os.close(fd) for fd in range(3) if event['_row'] == 0]",
        );
        assert_identity(&run(&source, 3).await.unwrap());
    }
}

#[tokio::test]
async fn closing_the_socket_itself_ends_the_worker_only() {
    let died =
        run("import os\ndef transform(e: dict): os.closerange(3, 4096)\n", 1).await.unwrap_err();
    assert!(matches!(died, WorkerError::Exited { .. } | WorkerError::Protocol(_)), "{died:?}");
}

#[tokio::test]
async fn a_fork_cannot_speak_for_the_worker() {
    let source = "
import os
def transform(event: dict, ctx):
    del event['count']
    if event['_row'] == 0 and os.fork() == 0:
        ctx.log('the copy')
        event['value'] = -1.0
    return event
";
    assert_identity(&run(source, 3).await.unwrap());
}

#[tokio::test]
async fn a_hang_ends_when_the_caller_gives_up() {
    let source = "
def transform(event: dict):
    while True: pass
";
    let mut worker = started(source).await;
    let given_up =
        tokio::time::timeout(Duration::from_millis(200), worker.transform(&events(1))).await;
    assert!(given_up.is_err());
    assert!(!worker.is_usable());
    assert!(matches!(worker.transform(&events(1)).await, Err(WorkerError::Poisoned)));
    assert!(matches!(
        worker.load(&script(EVENT_IDENTITY), &events(0).schema()).await,
        Err(WorkerError::Poisoned)
    ));
    let pid = worker.pid();
    assert_eq!(
        in_time(worker.stop(Duration::from_millis(50))).await,
        Exit { code: None, signal: Some(9) }
    );
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "not reaped");
}
