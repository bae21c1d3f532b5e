//! C7, at every sample: the broker's committed offsets never exceed DuckDB's positions.

use super::{Bench, NodeProcess};
use millstream::config::Config;
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// The group's committed offsets by source name, asked from the broker.
pub struct CommittedOffsets {
    consumer: BaseConsumer,
    list: TopicPartitionList,
    config: Config,
}

impl CommittedOffsets {
    /// Of all partitions of the bench's streams.
    pub fn new(config: &Config) -> Self {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &config.kafka.brokers)
            .set("group.id", &config.kafka.group)
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        for stream in &config.streams {
            for partition in 0..config.kafka.partitions {
                list.add_partition(&stream.topic, partition);
            }
        }
        Self { consumer, list, config: config.clone() }
    }

    /// As they are now; `None` when the broker does not answer.
    pub fn get(&self) -> Option<HashMap<String, i64>> {
        let timeout = Duration::from_secs(20);
        let offsets = self.consumer.committed_offsets(self.list.clone(), timeout).ok()?;
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
pub fn ahead(offsets: &HashMap<String, i64>, positions: &HashMap<String, i64>) -> Vec<String> {
    offsets
        .iter()
        .filter(|(source, offset)| positions.get(*source).is_none_or(|next| *offset > next))
        .map(|(source, offset)| {
            format!("{source}: {offset} is committed, DuckDB has {:?}", positions.get(source))
        })
        .collect()
}

/// Looks on from a thread of its own while nodes come and go.
pub struct Watch {
    offsets: CommittedOffsets,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    node: Mutex<Option<SocketAddr>>,
    ended: AtomicBool,
    samples: Mutex<Samples>,
}

#[derive(Default, Debug)]
struct Samples {
    /// Samples that had offsets to compare.
    taken: usize,
    broken: Vec<String>,
}

impl Watch {
    /// Begins to look as soon as there is a node to ask.
    pub fn start(bench: &Bench) -> Self {
        let shared = Arc::new(Shared::default());
        let (seen, of) = (shared.clone(), CommittedOffsets::new(&bench.config));
        let thread = std::thread::spawn(move || {
            while !seen.ended.load(Ordering::Relaxed) {
                seen.look(&of);
                // The pace of looking.
                std::thread::park_timeout(Duration::from_millis(50));
            }
        });
        let offsets = CommittedOffsets::new(&bench.config);
        Self { offsets, shared, thread: Some(thread) }
    }

    /// The node that is asked from now on.
    pub fn ask(&self, node: &NodeProcess) {
        *self.shared.node.lock().unwrap() = Some(node.http);
    }

    /// A sample while no node owns the database.
    pub fn look_at_closed(&self, bench: &Bench) {
        let Some(offsets) = self.offsets.get() else { return };
        self.shared.note(&offsets, &bench.positions());
    }

    /// How many samples there were; all of them must hold.
    pub fn end(mut self) -> usize {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        let samples = self.shared.samples.lock().unwrap();
        assert!(samples.broken.is_empty(), "C7 is broken: {:#?}", samples.broken);
        samples.taken
    }
}

impl Shared {
    fn look(&self, of: &CommittedOffsets) {
        let Some(node) = *self.node.lock().unwrap() else { return };
        let Some(offsets) = of.get() else { return };
        // A node between two lives does not answer; there are other samples.
        if let Some(positions) = super::node::positions_at(node) {
            self.note(&offsets, &positions);
        }
    }

    fn note(&self, offsets: &HashMap<String, i64>, positions: &HashMap<String, i64>) {
        let mut samples = self.samples.lock().unwrap();
        samples.taken += usize::from(!offsets.is_empty());
        samples.broken.extend(ahead(offsets, positions));
    }
}
