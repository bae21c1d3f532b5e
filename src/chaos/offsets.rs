//! C7, at every sample: the broker's committed offsets never exceed DuckDB's positions.

use super::http::Http;
use crate::config::Config;
use arrow::{array::AsArray, datatypes::Int64Type, ipc::reader::StreamReader};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};
use std::{collections::HashMap, net::SocketAddr, time::Duration};

/// How long the broker may take to tell them.
const ASK_BROKER: Duration = Duration::from_secs(20);

/// Positions by source name.
pub type Positions = HashMap<String, i64>;

/// The group's committed offsets by source name, asked from the broker.
pub struct CommittedOffsets {
    consumer: BaseConsumer,
    list: TopicPartitionList,
    config: Config,
}

impl CommittedOffsets {
    /// Of all partitions of the configured streams.
    ///
    /// # Errors
    /// When no client can be made.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &config.kafka.brokers)
            .set("group.id", &config.kafka.group)
            .create()?;
        let mut list = TopicPartitionList::new();
        for stream in &config.streams {
            for partition in 0..config.kafka.partitions {
                list.add_partition(&stream.topic, partition);
            }
        }
        Ok(Self { consumer, list, config: config.clone() })
    }

    /// As they are now; `None` when the broker does not answer.
    #[must_use]
    pub fn get(&self) -> Option<Positions> {
        let offsets = self.consumer.committed_offsets(self.list.clone(), ASK_BROKER).ok()?;
        let mut by_source = HashMap::new();
        for element in offsets.elements() {
            let topic = element.topic();
            let stream = self.config.streams.iter().find(|s| s.topic == topic)?;
            if let Offset::Offset(offset) = element.offset() {
                let source = format!("kafka:{}/{topic}/{}", stream.name, element.partition());
                by_source.insert(source, offset);
            }
        }
        Some(by_source)
    }
}

/// What is wrong when an offset, asked first, is ahead of its position, asked afterwards.
#[must_use]
pub fn ahead(offsets: &Positions, positions: &Positions) -> Vec<String> {
    offsets
        .iter()
        .filter(|(source, offset)| positions.get(*source).is_none_or(|next| *offset > next))
        .map(|(source, offset)| {
            format!("{source}: {offset} is committed, DuckDB has {:?}", positions.get(source))
        })
        .collect()
}

/// DuckDB's positions of Kafka's partitions, asked from a node that may not be there.
#[must_use]
pub fn positions_at(http: &Http, node: SocketAddr) -> Option<Positions> {
    let sql = "SELECT source, next_pos FROM sources WHERE source LIKE 'kafka:%'";
    let bytes = http.query(node, sql).ok()?;
    let mut positions = HashMap::new();
    for batch in StreamReader::try_new(bytes.as_slice(), None).ok()? {
        let batch = batch.ok()?;
        let names = batch.column(0).as_string_opt::<i32>()?;
        let next = batch.column(1).as_primitive_opt::<Int64Type>()?;
        positions.extend((0..batch.num_rows()).map(|i| (names.value(i).to_owned(), next.value(i))));
    }
    Some(positions)
}
