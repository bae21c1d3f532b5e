//! One real Kafka broker for all tests, started when the first one needs it.

use millstream::kafka::EVENT_ID_HEADER;
use rdkafka::{
    ClientConfig,
    message::{Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer},
};
use std::{io::Write, process::Command, sync::OnceLock, time::Duration};
use uuid::Uuid;

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
        let classpath = script().arg("classpath").output().unwrap();
        if !classpath.status.success() {
            let why = String::from_utf8_lossy(&classpath.stderr).trim().to_owned();
            assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must have Kafka: {why}");
            return None;
        }
        let dir = std::env::temp_dir().join(format!("millstream-kafka-{}", std::process::id()));
        // The broker ends with this process.
        let owner = std::process::id().to_string();
        let started =
            script().args(["start", "--owner", &owner, "--dir"]).arg(&dir).output().unwrap();
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
        Some(String::from_utf8(started.stdout).unwrap().trim().to_owned())
    });
    if broker.is_none() {
        left_out(test, "needs Java and Kafka's jars (scripts/setup.sh --ci installs them)");
    }
    broker.clone()
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
    producer.flush(super::DEADLINE).unwrap();
}
