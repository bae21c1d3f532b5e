//! Positions without records: transaction markers and aborted records never reach a consumer, so a
//! log that ends with them would never seem to be read to its end.
//!
//! When nothing comes for a while though the log goes on, the partition is *probed*: a second
//! consumer reads from the lane's position. It has no part in the group and no state of the first
//! one's, so what it does not see is not there.
//!
//! | end of the log, as the statistics say | the lane's position | answer |
//! |---|---|---|
//! | not beyond the position | | nothing |
//! | beyond it | has moved since the last look | remembered |
//! | beyond it | has not moved for less than [`QUIET`] | nothing |
//! | beyond it | has not moved for longer | probe |
//!
//! A partition is probed as well when the first record after a seek lies behind the position again
//! and again: a hole is never believed on the word of a consumer that was just moved about.
//!
//! | the probe finds, from the position on | answer |
//! |---|---|
//! | a record at the very position | the consumer stands still: it is set there again |
//! | a record farther on | everything before it is passed |
//! | the end of the partition | everything before the end that the broker told first is passed |
//! | nothing in time | not known |

use crate::{
    config::KafkaConfig,
    kafka::{BROKER_TIMEOUT, consumer_config, watermarks},
    protocol::source::Position,
};
use rdkafka::{
    Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// How long nothing comes before a partition is probed.
pub const QUIET: Duration = Duration::from_secs(1);
/// How long a probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// What statistics say of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Its topic.
    pub topic: String,
    /// Its number.
    pub partition: i32,
    /// The end of what can be read: open transactions and what follows them cannot.
    pub end: Position,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Passing(HashMap<(String, i32), (Position, Instant)>);

impl Passing {
    /// Takes what statistics say of a partition whose lane is at `position`; whether to probe it.
    pub fn observe(&mut self, progress: &Progress, position: Position, now: Instant) -> bool {
        let key = (progress.topic.clone(), progress.partition);
        if progress.end <= position {
            self.0.remove(&key);
            return false;
        }
        match self.0.get_mut(&key) {
            Some((at, since)) if *at == position => {
                let quiet = now.duration_since(*since) >= QUIET;
                if quiet {
                    *since = now;
                }
                quiet
            }
            _ => {
                self.0.insert(key, (position, now));
                false
            }
        }
    }
}

/// Probes a partition from `from` on: up to where there is certainly no record, which may be `from`
/// itself; `None` when that is not known. Blocks on the broker.
///
/// # Errors
/// librdkafka's word.
pub fn probe(
    kafka: &KafkaConfig,
    topic: &str,
    partition: i32,
    from: Position,
) -> Result<Option<Position>, KafkaError> {
    let consumer: BaseConsumer = consumer_config(kafka)
        .set("group.id", format!("{}-probe", kafka.group))
        .set("enable.partition.eof", "true")
        .remove("statistics.interval.ms")
        .create()?;
    // The end first: whatever is written while the probe reads lies behind it.
    let (_, end) = watermarks(&consumer, topic, partition)?;
    if end <= from {
        return Ok(Some(from));
    }
    let mut list = TopicPartitionList::with_capacity(1);
    list.add_partition_offset(topic, partition, Offset::Offset(from))?;
    consumer.assign(&list)?;
    let until = Instant::now() + PROBE_TIMEOUT;
    while Instant::now() < until {
        match consumer.poll(BROKER_TIMEOUT.min(PROBE_TIMEOUT)) {
            Some(Ok(message)) => return Ok(Some(message.offset())),
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(Some(end)),
            Some(Err(error)) => return Err(error),
            None => {}
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_of_the_first_table() {
        let mut passing = Passing::default();
        let end = |end| Progress { topic: "t".into(), partition: 0, end };
        let start = Instant::now();
        assert!(!passing.observe(&end(10), 10, start));
        assert!(!passing.observe(&end(12), 10, start), "seen for the first time");
        assert!(!passing.observe(&end(12), 11, start + QUIET), "it has moved");
        assert!(!passing.observe(&end(12), 11, start + QUIET * 3 / 2));
        assert!(passing.observe(&end(12), 11, start + QUIET * 2));
        assert!(!passing.observe(&end(12), 11, start + QUIET * 2), "not twice at once");
    }
}
