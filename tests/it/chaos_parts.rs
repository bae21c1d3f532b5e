//! What faults are done with, where that needs more than the program: a wrong clock, disks in
//! trouble, a broker behind a proxy.

use crate::support::{broker, left_out, wait_for};
use millstream::chaos::{
    clock::Clock,
    disk::{FailingDisk, FlushFault, SmallDisk},
    proxy::Proxy,
};
use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

/// A Python that answers each line, which it evaluates, with one.
struct Python {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Python {
    fn start(envs: Vec<(String, String)>) -> Self {
        let script = "import sys, os, time\nfor line in sys.stdin: print(eval(line), flush=True)";
        let mut command = Command::new("python3");
        command.args(["-c", script]).envs(envs).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (ask, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, ask, answers: BufReader::new(answers) }
    }

    fn says(&mut self, expression: &str) -> String {
        writeln!(self.ask, "{expression}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn number(&mut self, expression: &str) -> f64 {
        self.says(expression).parse().unwrap()
    }

    fn end(mut self) {
        drop(self.ask);
        assert!(self.child.wait().unwrap().success());
    }
}

fn wall_s() -> f64 {
    chrono::Utc::now().timestamp_millis() as f64 / 1e3
}

fn monotonic_s() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[test]
fn a_child_sees_the_wrong_wall_clock_while_it_runs_and_a_right_monotonic_one() {
    let dir = tempfile::tempdir().unwrap();
    let clock = match Clock::new(dir.path()) {
        Ok(clock) => clock,
        Err(why) => return left_out("chaos_parts: wrong clock", &why),
    };
    let mut child = Python::start(clock.envs());
    // On a machine that is busy a question and its answer may be some time apart.
    let near = |offset: f64, wanted: f64| (offset - wanted).abs() < 20.0;
    assert!(near(child.number("time.time()") - wall_s(), 0.0));
    for wrong in [3600.5, -86_400.0, 0.0] {
        clock.set(wrong).unwrap();
        wait_for("the child to see it", || {
            near(child.number("time.time()") - wall_s(), wrong).then_some(())
        });
        assert!(near(child.number("time.monotonic()"), monotonic_s()));
        let slept = child.number("-time.monotonic() + (time.sleep(0.05) or time.monotonic())");
        assert!((0.05..20.0).contains(&slept), "{slept}");
    }
    // A process that is started while it is wrong.
    clock.set(7_200.0).unwrap();
    let mut other = Python::start(clock.envs());
    assert!(near(other.number("time.time()") - wall_s(), 7_200.0));
    clock.right().unwrap();
    wait_for("it to be right", || near(other.number("time.time()") - wall_s(), 0.0).then_some(()));
    let pids = [child.child.id(), other.child.id()];
    child.end();
    other.end();
    drop(clock);
    for pid in pids {
        assert!(!Path::new(&format!("/dev/shm/faketime_shm_{pid}")).exists(), "left behind");
    }
}

/// librdkafka waits until moments of the wall clock, with C11's condition variables.
#[test]
fn a_wrong_clock_makes_a_wait_of_kafkas_client_neither_longer_nor_shorter() {
    let test = "chaos_parts: waits under a wrong clock";
    let dir = tempfile::tempdir().unwrap();
    let clock = match Clock::new(dir.path()) {
        Ok(clock) => clock,
        Err(why) => return left_out(test, &why),
    };
    let envs = clock.envs();
    let script = "import ctypes, time\n\
        lib = ctypes.CDLL(None)\n\
        class T(ctypes.Structure): _fields_ = [('s', ctypes.c_long), ('n', ctypes.c_long)]\n\
        c, m, t = (ctypes.create_string_buffer(64) for _ in range(3))\n\
        lib.cnd_init(c); lib.mtx_init(m, 0); lib.mtx_lock(m)\n\
        t = T(); lib.timespec_get(ctypes.byref(t), 1); t.s += 1\n\
        begun = time.monotonic(); lib.cnd_timedwait(c, m, ctypes.byref(t))\n\
        print(time.monotonic() - begun)";
    for wrong in [0.0, 3600.0, -3600.0] {
        clock.set(wrong).unwrap();
        let mut command = Command::new("timeout");
        command.args(["60", "python3", "-c", script]).envs(envs.clone());
        let output = command.output().unwrap();
        let waited = String::from_utf8(output.stdout).unwrap();
        let waited: f64 = waited.trim().parse().unwrap_or(f64::INFINITY);
        assert!((0.9..30.0).contains(&waited), "{waited} s with an offset of {wrong} s");
    }
}

#[test]
fn a_small_disk_is_full_until_it_is_freed() {
    let dir = tempfile::tempdir().unwrap();
    let disk = match SmallDisk::mount(&dir.path().join("disk"), 1) {
        Ok(disk) => disk,
        Err(why) => return left_out("chaos_parts: small disk", &why),
    };
    let file = disk.path().join("file");
    disk.fill().unwrap();
    std::fs::write(&file, [1; 8192]).unwrap_err();
    disk.free().unwrap();
    disk.free().unwrap();
    std::fs::write(&file, [1; 8192]).unwrap();
    let path = disk.path().to_owned();
    drop(disk);
    assert!(path.read_dir().unwrap().next().is_none(), "unmounted");
}

#[test]
fn flushes_fail_until_the_disk_is_well_again() {
    let mut child = Python::start(Vec::new());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    child.says(&format!("setattr(os, 'fd', os.open({file:?}, os.O_CREAT | os.O_WRONLY))"));
    assert_eq!(child.says("os.fsync(os.fd)"), "None");
    // A function that tells the error, as an expression cannot catch one.
    child.says("exec('def flush():\\n try: os.fsync(os.fd)\\n except OSError as e: return e.errno', globals())");
    let failing = match FailingDisk::attach(child.child.id(), FlushFault::Error("EIO")) {
        Ok(failing) => failing,
        Err(why) => return left_out("chaos_parts: failing disk", &why),
    };
    assert_eq!(child.says("flush()"), libc::EIO.to_string());
    drop(failing);
    assert_eq!(child.says("flush()"), "None");
    let delay = FlushFault::Delay(Duration::from_millis(300));
    let slow = FailingDisk::attach(child.child.id(), delay).unwrap();
    let took = child.number("-time.monotonic() + (os.fsync(os.fd) or time.monotonic())");
    assert!(took >= 0.3, "{took}");
    drop(slow);
    child.end();
    assert!(FailingDisk::attach(u32::MAX, delay).is_err());
}

/// What kcat is told about the brokers by whoever answers at an address.
fn brokers_told_at(address: SocketAddr) -> String {
    let mut kcat = Command::new("kcat");
    let output = kcat.args(["-L", "-m", "30", "-b", &address.to_string()]).output().unwrap();
    let (stdout, stderr) = (output.stdout, String::from_utf8_lossy(&output.stderr).into_owned());
    assert!(output.status.success(), "{stderr}");
    let lines = String::from_utf8(stdout).unwrap();
    lines.lines().filter(|line| line.contains(" broker 1 at ")).collect()
}

#[test]
fn clients_that_come_by_the_proxy_stay_behind_it_also_after_a_restart() {
    let test = "chaos_parts: proxied broker";
    // The one of all tests only tells whether there can be one.
    if broker(test).is_none() {
        return;
    }
    if Command::new("kcat").arg("-V").output().is_err() {
        return left_out(test, "needs kcat (scripts/setup.sh --ci installs it)");
    }
    let proxy = Proxy::start(None, SocketAddr::from(([127, 0, 0, 1], 1))).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let script = |words: &[&str]| {
        let mut script = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/kafka.sh"));
        let output = script.args(words).arg("--dir").arg(dir.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let port = || std::fs::read_to_string(dir.path().join("proxied.port")).unwrap();
    let (owner, proxied) = (std::process::id().to_string(), proxy.address().to_string());
    let first = script(&["start", "--owner", &owner, "--proxied", &proxied]);
    let behind = port();
    proxy.set_upstream(SocketAddr::from(([127, 0, 0, 1], behind.trim().parse().unwrap())));
    let look = || {
        let direct = brokers_told_at(first.trim().parse().unwrap());
        assert!(direct.contains(first.trim()), "{direct}");
        let told = brokers_told_at(proxy.address());
        assert!(told.contains(&proxied), "{told}");
    };
    look();
    script(&["stop", "--kill"]);
    assert_eq!(script(&["start", "--owner", &owner]), first);
    assert_eq!(port(), behind);
    look();
    script(&["stop", "--kill"]);
}
