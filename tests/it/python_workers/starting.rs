//! How workers start, and what is told when they do not.

use std::path::PathBuf;

use millstream::python::{Exit, WorkerError, WorkerProcess, WorkerSpec};

use super::{alone, in_time};

#[tokio::test]
async fn a_program_that_is_not_there_cannot_be_spawned() {
    let absent = WorkerSpec { program: PathBuf::from("/no/such/program"), ..alone() };
    let refused = in_time(WorkerProcess::spawn(&absent)).await.unwrap_err();
    assert!(
        matches!(&refused, WorkerError::Spawn(error) if error.kind() == std::io::ErrorKind::NotFound),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_program_that_is_no_worker_exits() {
    let other = WorkerSpec { program: PathBuf::from("/bin/false"), ..alone() };
    let died = in_time(WorkerProcess::spawn(&other)).await.unwrap_err();
    assert!(
        matches!(&died, WorkerError::Exited { exit: Exit { code: Some(1), .. }, .. }),
        "{died:?}"
    );
}

#[tokio::test]
async fn garbage_on_the_socket_is_garbage() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("babble");
    std::fs::write(
        &program,
        "#!/bin/bash\necho 'hello, this is not a frame' >&\"$3\"\nexec sleep 1000\n",
    )
    .unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let babbling = WorkerSpec { program, ..alone() };
    let refused = in_time(WorkerProcess::spawn(&babbling)).await.unwrap_err();
    assert!(matches!(&refused, WorkerError::Protocol(_)), "{refused:?}");
}

#[tokio::test]
async fn the_subcommands_by_hand_explain_themselves() {
    for subcommand in ["python-worker", "python-forkserver"] {
        for fd in ["1", "9"] {
            let output = std::process::Command::new(env!("CARGO_BIN_EXE_millstream"))
                .args([subcommand, "--fd", fd])
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(2), "{subcommand}");
            assert!(String::from_utf8_lossy(&output.stderr).contains("not by hand"));
        }
    }
}
