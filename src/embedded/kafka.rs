//! librdkafka's in-process mock cluster, for trying things out: about 5 MiB a partition, in memory,
//! gone with the process.

use anyhow::Context;
use rdkafka::{mocking::MockCluster, producer::DefaultProducerContext};
use uuid::Uuid;

/// The running mock cluster.
pub struct EmbeddedKafka {
    cluster: MockCluster<'static, DefaultProducerContext>,
    cluster_id: String,
}

impl std::fmt::Debug for EmbeddedKafka {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedKafka")
            .field("cluster_id", &self.cluster_id)
            .finish_non_exhaustive()
    }
}

impl EmbeddedKafka {
    /// Starts one broker with these topics.
    ///
    /// # Errors
    /// librdkafka's word.
    pub fn start<'a>(
        topics: impl Iterator<Item = &'a str>,
        partitions: i32,
    ) -> anyhow::Result<Self> {
        let cluster = MockCluster::new(1).context("the in-process broker does not start")?;
        for topic in topics {
            cluster.create_topic(topic, partitions, 1)?;
        }
        // The cluster's own id is always the same; a fresh one stands for this run's log.
        Ok(Self { cluster, cluster_id: format!("embedded-{}", Uuid::new_v4()) })
    }

    /// `host:port,…`.
    #[must_use]
    pub fn brokers(&self) -> String {
        self.cluster.bootstrap_servers()
    }

    /// A fresh id for this run.
    #[must_use]
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }
}
