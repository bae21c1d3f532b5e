//! One real Kafka broker for all tests, started when the first one needs it; brokers of a test's
//! own, which faults can be done to; what the broker's admin interface does.

use super::Frozen;
use millstream::kafka::EVENT_ID_HEADER;
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
    message::{Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer},
};
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};
use uuid::Uuid;

/// Seconds that a broker of a test's own, killed and started again, waits for its former self.
const SESSION: &str = "4";

static BROKER: OnceLock<Option<String>> = OnceLock::new();

fn script() -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/kafka.sh"));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

/// The broker's address; `None` where Java or Kafka's jars are missing, which is said.
///
/// # Panics
/// When it does not start, or is missing in CI.
pub fn broker(test: &str) -> Option<String> {
    let broker = BROKER.get_or_init(|| {
        let dir = std::env::temp_dir().join(format!("millstream-kafka-{}", std::process::id()));
        // Nobody kills this one, and it must not lose its partitions on a busy machine.
        kafka_is_installed().then(|| start(&dir, "120"))
    });
    if broker.is_none() {
        left_out_for_want_of_kafka(test);
    }
    broker.clone()
}

fn left_out_for_want_of_kafka(test: &str) {
    left_out(test, "needs Java and Kafka's jars (scripts/setup.sh --ci installs them)");
}

fn kafka_is_installed() -> bool {
    let classpath = script().arg("classpath").output().unwrap();
    let why = String::from_utf8_lossy(&classpath.stderr).trim().to_owned();
    let installed = classpath.status.success();
    assert!(installed || std::env::var("CI").as_deref() != Ok("true"), "CI must have Kafka: {why}");
    installed
}

/// Starts the broker of a folder, new or not; its address. It ends with this process.
fn start(dir: &Path, session: &str) -> String {
    let owner = std::process::id().to_string();
    let mut start = script();
    start.args(["start", "--owner", &owner, "--session", session, "--dir"]).arg(dir);
    let started = start.output().unwrap();
    assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
    String::from_utf8(started.stdout).unwrap().trim().to_owned()
}

/// A broker of a test's own.
pub struct Broker {
    dir: tempfile::TempDir,
    /// What clients are told; the same after a restart.
    pub address: String,
}

impl Broker {
    /// Starts one; `None` where Java or Kafka's jars are missing, which is said.
    pub fn start(test: &str) -> Option<Self> {
        if !kafka_is_installed() {
            left_out_for_want_of_kafka(test);
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let address = start(dir.path(), SESSION);
        Some(Self { dir, address })
    }

    /// SIGKILL. It is gone when this returns.
    pub fn kill(&self) {
        let done = script().args(["stop", "--kill", "--dir"]).arg(self.dir.path()).status();
        assert!(done.unwrap().success());
    }

    /// Starts it again on the same port and data.
    pub fn start_again(&self) {
        assert_eq!(start(self.dir.path(), SESSION), self.address);
    }

    /// SIGSTOP, until the guard is dropped.
    pub fn freeze(&self) -> Frozen {
        let pid = std::fs::read_to_string(self.dir.path().join("broker.pid")).unwrap();
        Frozen::new(pid.trim().parse().unwrap()).unwrap()
    }

    /// Where a partition's log lies.
    pub fn log_of(&self, topic: &str, partition: i32) -> PathBuf {
        self.dir.path().join("data").join(format!("{topic}-{partition}"))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a call of the broker's admin interface to its end.
pub fn admin<F, T>(
    brokers: &str,
    call: impl FnOnce(AdminClient<DefaultClientContext>, AdminOptions) -> F,
) -> T
where
    F: Future<Output = T>,
{
    let client = ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(call(client, options))
}

/// Says that a test was left out; `make test` repeats it in its last lines.
pub fn left_out(test: &str, why: &str) {
    eprintln!("{test}: left out, {why}");
    if let Some(path) = std::env::var_os("MILLSTREAM_LEFT_OUT") {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        writeln!(file, "{test}: {why}").unwrap();
    }
}

/// One record to send.
#[derive(Debug, Clone, Default)]
pub struct Sent {
    /// The record's key.
    pub key: Option<Vec<u8>>,
    /// Its bytes; `None` is a null payload.
    pub payload: Option<Vec<u8>>,
    /// The producer's UUID.
    pub id: Option<Uuid>,
    /// Where to; `None`: by key.
    pub partition: Option<i32>,
}

/// Sends records and waits until the broker has them all.
pub fn produce(brokers: &str, topic: &str, records: &[Sent]) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("message.max.bytes", "16000000")
        .create()
        .unwrap();
    produce_with(&producer, topic, records);
    producer.flush(super::DEADLINE).unwrap();
}

/// Hands records to a producer, which may be in a transaction.
pub fn produce_with(producer: &BaseProducer, topic: &str, records: &[Sent]) {
    for sent in records {
        let mut record = BaseRecord::<[u8], [u8]>::to(topic);
        record.key = sent.key.as_deref();
        record.payload = sent.payload.as_deref();
        record.partition = sent.partition;
        if let Some(id) = sent.id {
            let id = id.to_string();
            record = record.headers(
                OwnedHeaders::new().insert(Header { key: EVENT_ID_HEADER, value: Some(&id) }),
            );
        }
        while let Err((error, back)) = producer.send(record) {
            assert!(error.to_string().contains("full"), "{error}");
            producer.poll(Duration::from_millis(10));
            record = back;
        }
    }
}
