//! A redis-server of a test's own, which faults can be done to.

use super::{Frozen, signal, wait_for};
use millstream::queue::Keys;
use std::{
    net::TcpListener,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
};

/// A running redis-server with an append-only file. Dropping it kills it.
pub struct RedisServer {
    dir: PathBuf,
    port: u16,
    child: Mutex<Child>,
}

impl RedisServer {
    /// Starts one with its files in `dir`.
    pub fn start(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let child = Mutex::new(spawn(dir, port));
        let server = Self { dir: dir.to_owned(), port, child };
        server.wait_until_it_answers();
        server
    }

    /// What nodes are told.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// A connection for the test's own questions.
    pub fn connection(&self) -> ::redis::Connection {
        ::redis::Client::open(self.url()).unwrap().get_connection().unwrap()
    }

    /// Takes back the permits of Python workers that ended with their node; otherwise they stay
    /// taken until their leases have run out.
    pub fn forget_leases(&self, namespace: &str) {
        let key = Keys::new(namespace).permits();
        let () = ::redis::cmd("DEL").arg(key).query(&mut self.connection()).unwrap();
    }

    /// SIGKILL. It is gone when this returns.
    pub fn kill(&self) {
        let mut child = self.child.lock().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Starts it again on the same port and files, and waits until it has read them.
    pub fn start_again(&self) {
        *self.child.lock().unwrap() = spawn(&self.dir, self.port);
        self.wait_until_it_answers();
    }

    /// Deletes the files of one that was killed.
    pub fn delete_files(&self) {
        std::fs::remove_dir_all(self.dir.join("appendonlydir")).unwrap();
    }

    /// SIGSTOP, until the guard is dropped.
    pub fn freeze(&self) -> Frozen {
        Frozen::new(self.child.lock().unwrap().id()).unwrap()
    }

    fn wait_until_it_answers(&self) {
        let client = ::redis::Client::open(self.url()).unwrap();
        wait_for("redis-server to answer", || {
            let mut connection = client.get_connection().ok()?;
            let pong: ::redis::RedisResult<String> = ::redis::cmd("PING").query(&mut connection);
            pong.ok()
        });
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap();
        if matches!(child.try_wait(), Ok(None)) {
            signal(child.id(), libc::SIGKILL).unwrap();
            child.wait().unwrap();
        }
    }
}

fn spawn(dir: &Path, port: u16) -> Child {
    let mut command = Command::new("redis-server");
    command
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"])
        .args(["--appendfsync", "everysec", "--maxmemory-policy", "noeviction"])
        .arg("--port")
        .arg(port.to_string())
        .arg("--dir")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: prctl is async-signal-safe and touches nothing but the new process.
    unsafe {
        command.pre_exec(|| {
            // A test program that is killed leaves no server behind.
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    command.spawn().expect("redis-server is installed")
}
