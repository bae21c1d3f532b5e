//! Single records, read again by their offsets.

use super::{BROKER_TIMEOUT, client_config, watermarks};
use crate::config::KafkaConfig;
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};
use std::time::{Duration, Instant};

/// A record as the log holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reread {
    /// Its bytes; `None` for a null payload.
    pub payload: Option<Vec<u8>>,
    /// Its timestamp, UTC microseconds.
    pub timestamp_us: Option<i64>,
}

/// Reads records again, without taking part in any group.
pub struct Rereader {
    consumer: BaseConsumer,
}

impl Rereader {
    /// Does not connect yet.
    ///
    /// # Errors
    /// When the settings are refused.
    pub fn new(kafka: &KafkaConfig) -> anyhow::Result<Self> {
        let mut config = client_config(kafka);
        config
            // librdkafka wants a name even where no group is joined.
            .set("group.id", format!("{}-reread", kafka.group))
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("isolation.level", "read_committed")
            .set("allow.auto.create.topics", "false")
            .set("queued.max.messages.kbytes", "8192")
            .set("fetch.wait.max.ms", "20");
        Ok(Self { consumer: config.create()? })
    }

    /// The record at an offset. Blocks.
    ///
    /// # Errors
    /// A sentence: the record is gone, or the broker does not answer.
    pub fn read(&self, topic: &str, partition: i32, offset: i64) -> Result<Reread, String> {
        let (low, high) = watermarks(&self.consumer, topic, partition)
            .map_err(|e| format!("the broker does not answer: {e}"))?;
        if offset < low {
            return Err(format!("the broker's retention has passed it: its log starts at {low}"));
        }
        if offset >= high {
            return Err(format!("the broker's log ends at {high}: it is another log"));
        }
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offset))
            .and_then(|()| self.consumer.assign(&list))
            .map_err(|e| format!("it cannot be read: {e}"))?;
        let until = Instant::now() + BROKER_TIMEOUT;
        while Instant::now() < until {
            match self.consumer.poll(Duration::from_millis(100)) {
                None => {}
                Some(Err(error)) => return Err(format!("it cannot be read: {error}")),
                // Left over from the assignment before.
                Some(Ok(m)) if m.offset() < offset || m.partition() != partition => {}
                Some(Ok(m)) if m.topic() != topic => {}
                Some(Ok(m)) if m.offset() > offset => {
                    return Err("it is no longer in the log".into());
                }
                Some(Ok(m)) => {
                    return Ok(Reread {
                        payload: m.payload().map(<[u8]>::to_vec),
                        timestamp_us: m.timestamp().to_millis().map(|ms| ms.saturating_mul(1_000)),
                    });
                }
            }
        }
        Err("the broker did not send it in time".into())
    }
}
