//! What librdkafka calls back on the poll thread: rebalances and statistics.

use super::{passing::Progress, place};
use crate::{
    kafka::{self, AcknowledgedPositions},
    protocol::source::{Position, SourceName},
    telemetry::catalogue as m,
};
use rdkafka::{
    ClientContext, Offset, Statistics, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext},
    types::RDKafkaRespErr,
};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

/// How long a revocation waits for answers that are outstanding. The group waits with it; whoever
/// gets the partitions starts where DuckDB says in any case, so this only saves work.
const REVOKE_WAIT: Duration = Duration::from_secs(2);

/// A change of the partitions that this node owns.
#[derive(Debug)]
pub enum Rebalanced {
    /// New ones, assigned paused.
    Assigned(Vec<(String, i32)>),
    /// These went to another node.
    Revoked(Vec<(String, i32)>),
}

/// The consumer's context.
#[derive(Debug)]
pub struct IngestContext {
    /// Changes that the poll thread has not seen yet.
    pub rebalanced: Mutex<Vec<Rebalanced>>,
    /// What may be committed.
    pub acknowledged: Arc<AcknowledgedPositions>,
    /// How far each partition's records were handed on; the answers to these are outstanding until
    /// they are acknowledged.
    handed_on: Mutex<HashMap<(String, i32), Position>>,
    /// What the last statistics said of the ends of the logs.
    progress: Mutex<Vec<Progress>>,
    /// Statistics in a row, one a second, that showed no connected broker.
    pub without_broker: AtomicU32,
}

impl IngestContext {
    /// Nothing was handed on yet.
    #[must_use]
    pub fn new(acknowledged: Arc<AcknowledgedPositions>) -> Self {
        Self {
            rebalanced: Mutex::default(),
            acknowledged,
            handed_on: Mutex::default(),
            progress: Mutex::default(),
            without_broker: AtomicU32::new(0),
        }
    }

    /// Records of a source before `to` are on their way.
    pub fn handed_on(&self, source: SourceName, to: Position) {
        if let Some((topic, partition)) = source.kafka_partition() {
            lock(&self.handed_on).insert((topic.to_owned(), partition), to);
        }
    }

    /// What statistics have said since the last call.
    pub fn take_progress(&self) -> Vec<Progress> {
        std::mem::take(&mut *lock(&self.progress))
    }

    /// The first of these partitions whose records are on their way without an answer.
    fn outstanding<'a>(&self, names: &'a [(String, i32)]) -> Option<&'a (String, i32)> {
        let handed_on = lock(&self.handed_on);
        names.iter().find(|name| {
            let acknowledged = self.acknowledged.get(&name.0, name.1);
            matches!((handed_on.get(name), acknowledged), (Some(to), Some(at)) if at < *to)
        })
    }
}

/// A panicking holder leaves none of these half-changed.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ClientContext for IngestContext {
    fn stats(&self, statistics: Statistics) {
        if kafka::any_broker_up(&statistics) {
            self.without_broker.store(0, Ordering::Relaxed);
        } else {
            self.without_broker.fetch_add(1, Ordering::Relaxed);
        }
        for (topic, stats) in &statistics.topics {
            for (partition, of) in &stats.partitions {
                let end = if of.ls_offset >= 0 { of.ls_offset } else { of.hi_offset };
                lock(&self.progress).push(Progress {
                    topic: topic.clone(),
                    partition: *partition,
                    end,
                });
                if let Some(next) = self.acknowledged.get(topic, *partition)
                    && of.hi_offset >= 0
                {
                    let lag = (of.hi_offset - next).max(0);
                    metrics::gauge!(m::KAFKA_LAG, "topic" => topic.clone(), "partition" => partition.to_string())
                        .set(lag as f64);
                }
            }
        }
    }

    fn error(&self, error: rdkafka::error::KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "Kafka");
    }
}

fn partitions(list: &TopicPartitionList) -> Vec<(String, i32)> {
    list.elements().iter().map(|e| (e.topic().to_owned(), e.partition())).collect()
}

impl ConsumerContext for IngestContext {
    /// Never waits for the store: partitions are assigned paused and are set to their position
    /// when the store has told it.
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        err: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        metrics::counter!(m::KAFKA_REBALANCES).increment(1);
        let event = if err == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.assign(consumer, list)
        } else {
            self.revoke(consumer, list)
        };
        lock(&self.rebalanced).push(event);
    }
}

impl IngestContext {
    fn assign(&self, consumer: &BaseConsumer<Self>, list: &mut TopicPartitionList) -> Rebalanced {
        let names = partitions(list);
        // The broker's committed offset is not ours to follow.
        if let Err(error) = place::assign_paused(consumer, &names, place::UNKNOWN) {
            tracing::error!(%error, "the assignment was refused");
        }
        Rebalanced::Assigned(names)
    }

    fn revoke(&self, consumer: &BaseConsumer<Self>, list: &mut TopicPartitionList) -> Rebalanced {
        let names = partitions(list);
        if !consumer.assignment_lost() {
            let until = Instant::now() + REVOKE_WAIT;
            while let Some((topic, partition)) = self.outstanding(&names) {
                if Instant::now() >= until {
                    tracing::info!(
                        topic,
                        partition,
                        "answers are outstanding; its next owner reads on"
                    );
                    break;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            let mut offsets = TopicPartitionList::new();
            for (topic, partition) in &names {
                if let Some(next) = self.acknowledged.get(topic, *partition)
                    && let Err(error) =
                        offsets.add_partition_offset(topic, *partition, Offset::Offset(next))
                {
                    tracing::error!(%error, topic, partition, "an offset cannot be committed");
                }
            }
            if offsets.count() > 0
                && let Err(error) = consumer.commit(&offsets, CommitMode::Sync)
            {
                // The next owner starts where DuckDB says, not where the broker says.
                tracing::warn!(%error, "the offsets of revoked partitions were not committed");
            }
        }
        for (topic, partition) in &names {
            self.acknowledged.forget(topic, *partition);
            // Its next owner says how far behind it is.
            metrics::gauge!(m::KAFKA_LAG, "topic" => topic.clone(), "partition" => partition.to_string())
                .set(0.0);
            metrics::gauge!(m::KAFKA_LAG_SECONDS, "topic" => topic.clone(), "partition" => partition.to_string())
                .set(0.0);
            lock(&self.handed_on).remove(&(topic.clone(), *partition));
        }
        if let Err(error) = consumer.incremental_unassign(list) {
            tracing::error!(%error, "the revocation was refused");
        }
        Rebalanced::Revoked(names)
    }
}
