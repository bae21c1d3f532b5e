//! Kafka clients: their settings, topics that are missing, and what identifies a log.

mod brokers;
mod reread;
mod topic_id;

pub use brokers::{any_broker_up, remember_brokers};
pub use reread::{Reread, Rereader};
pub use topic_id::topic_id;

use crate::config::{Config, KafkaConfig};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, RDKafkaErrorCode},
};
use std::{collections::HashMap, sync::Mutex, time::Duration};

/// How long a question to the broker may take.
pub const BROKER_TIMEOUT: Duration = Duration::from_secs(10);

/// Header that carries the producer's UUID, as text or as its 16 bytes.
pub const EVENT_ID_HEADER: &str = "event_id";

/// Settings that every client shares.
#[must_use]
pub fn client_config(kafka: &KafkaConfig) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &kafka.brokers).set("client.id", "millstream");
    for (key, value) in &kafka.options {
        config.set(key, value);
    }
    config
}

/// Settings of the consumer. DuckDB decides where it reads; the group's offsets are advice for
/// monitoring, so librdkafka must never move or reset them by itself: these settings win over
/// `kafka.options`, but for `session.timeout.ms`, how long a silent member keeps its partitions.
#[must_use]
pub fn consumer_config(kafka: &KafkaConfig) -> ClientConfig {
    let mut config = client_config(kafka);
    config
        .set("group.id", &kafka.group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("allow.auto.create.topics", "false")
        .set("queued.max.messages.kbytes", "8192")
        // A fetch waits until there is something worth its cost, at most 10 ms: without it, a topic
        // that trickles is fetched a thousand times a second.
        .set("fetch.min.bytes", "32768")
        .set("fetch.wait.max.ms", "10")
        .set("fetch.error.backoff.ms", "50")
        // What is queued is read in less than the second that librdkafka would wait.
        .set("fetch.queue.backoff.ms", "20")
        .set("statistics.interval.ms", "1000")
        .set("topic.metadata.refresh.interval.ms", "10000");
    if !kafka.options.contains_key("session.timeout.ms") {
        config.set("session.timeout.ms", "10000");
    }
    config
}

/// Creates the topics of the configured streams that do not exist yet.
///
/// # Errors
/// When the broker cannot be reached, or refuses.
pub async fn create_missing_topics(config: &Config) -> anyhow::Result<Vec<String>> {
    let admin: AdminClient<DefaultClientContext> = client_config(&config.kafka).create()?;
    let topics: Vec<NewTopic<'_>> = config
        .streams
        .iter()
        .map(|s| NewTopic::new(&s.topic, config.kafka.partitions, TopicReplication::Fixed(-1)))
        .collect();
    let options = AdminOptions::new().operation_timeout(Some(BROKER_TIMEOUT));
    let results = admin
        .create_topics(&topics, &options)
        .await
        .map_err(|e| anyhow::anyhow!("Kafka at {} cannot be reached: {e}", config.kafka.brokers))?;
    let mut created = Vec::new();
    for result in results {
        match result {
            Ok(topic) => created.push(topic),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => anyhow::bail!("the topic `{topic}` cannot be created: {code}"),
        }
    }
    Ok(created)
}

/// The first and the next offset of a partition.
///
/// # Errors
/// librdkafka's word.
pub fn watermarks<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partition: i32,
) -> Result<(i64, i64), KafkaError> {
    consumer.fetch_watermarks(topic, partition, BROKER_TIMEOUT)
}

/// A topic's partition.
pub type TopicPartition = (String, i32);

/// Positions that DuckDB has acknowledged, by partition: the consumer commits them, a generator
/// beside an embedded broker keeps within them.
#[derive(Debug, Default)]
pub struct AcknowledgedPositions(Mutex<HashMap<TopicPartition, i64>>);

impl AcknowledgedPositions {
    /// Everything before `next_pos` is acknowledged. An answer that comes after its partition went to
    /// another node is not noted.
    pub fn advance(&self, topic: &str, partition: i32, next_pos: i64) {
        if let Some(known) = self.lock().get_mut(&(topic.to_owned(), partition)) {
            *known = (*known).max(next_pos);
        }
    }

    /// The store said where it is, higher or lower than what was known.
    pub fn set(&self, topic: &str, partition: i32, next_pos: i64) {
        self.lock().insert((topic.to_owned(), partition), next_pos);
    }

    /// The first position that is not acknowledged, when any is known.
    #[must_use]
    pub fn get(&self, topic: &str, partition: i32) -> Option<i64> {
        self.lock().get(&(topic.to_owned(), partition)).copied()
    }

    /// Forgets a partition that went to another node.
    pub fn forget(&self, topic: &str, partition: i32) {
        self.lock().remove(&(topic.to_owned(), partition));
    }

    /// A panicking holder cannot leave the map half-changed.
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<TopicPartition, i64>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
