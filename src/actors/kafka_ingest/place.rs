//! Where librdkafka reads: its partitions are assigned, paused and set to a position only here.
//!
//! Two things in librdkafka (2.12) decide how:
//!
//! - A *logical* offset (`END`, the committed one) is looked up by a request. A seek that comes
//!   before the answer makes the answer outdated, and an outdated answer is asked for again half a
//!   second later, by then as if it belonged to the seek: the partition jumps to the end in the
//!   middle of its flow, and what lies between is never delivered. So there are only absolute
//!   offsets.
//! - Resuming a partition does not wake the thread of its broker, which sleeps up to a second when
//!   everything it fetches was paused; a seek does. So a partition is resumed first, and sought
//!   after.

use crate::protocol::source::Position;
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::KafkaResult,
};
use std::time::Duration;

/// How long librdkafka may take to accept a seek; one that it has not by then is tried again. Polling
/// stands still meanwhile, so it is short. One that is carried out late does no harm: what lies
/// before a lane's position is not read again.
const SEEK_TIMEOUT: Duration = Duration::from_millis(100);

/// Where a partition is assigned whose position is not known yet. It is paused at once; should a
/// fetch slip out before that, its records are dropped, because the lane does not read yet.
pub(super) const UNKNOWN: Position = 0;

/// A list of one partition.
fn one(topic: &str, partition: i32) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(1);
    list.add_partition(topic, partition);
    list
}

/// Assigns partitions, paused.
pub(super) fn assign_paused<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &[(String, i32)],
    position: Position,
) -> KafkaResult<()> {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for (topic, partition) in partitions {
        list.add_partition_offset(topic, *partition, Offset::Offset(position))?;
    }
    consumer.incremental_assign(&list)?;
    consumer.pause(&list)
}

/// Forgets all that librdkafka remembers of a partition's log — its ids and epochs, that it gave
/// up fetching — and assigns it again, paused.
pub(super) fn assign_anew<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partition: i32,
    position: Position,
) -> KafkaResult<()> {
    consumer.incremental_unassign(&one(topic, partition))?;
    assign_paused(consumer, &[(topic.to_owned(), partition)], position)
}

/// Stops a partition's flow; what librdkafka has fetched of it is dropped.
pub(super) fn pause<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partition: i32,
) -> KafkaResult<()> {
    consumer.pause(&one(topic, partition))
}

/// Lets a partition flow.
pub(super) fn resume<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partition: i32,
    position: Position,
) -> KafkaResult<()> {
    consumer.resume(&one(topic, partition))?;
    seek(consumer, topic, partition, position)
}

/// Sets a partition to a position, whether it flows or not.
pub(super) fn seek<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partition: i32,
    position: Position,
) -> KafkaResult<()> {
    consumer.seek(topic, partition, Offset::Offset(position), SEEK_TIMEOUT)
}
