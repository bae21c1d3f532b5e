//! The configuration of a node: one TOML file, the environment, the flags.
//!
//! Precedence: flag, environment (`MILLSTREAM__SECTION__KEY`), file, default. Unknown keys are
//! errors that name line, column and the key that was probably meant. All defaults live here.

mod load;
mod stream;
mod telemetry;

pub use load::{ConfigError, load};
pub use stream::{AsKnown, FieldType, SchemaField, StreamConfig};
pub use telemetry::TelemetryConfig;

use crate::generate::Mix;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

/// Everything a node can be told.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Who the node is and where it keeps its files.
    pub node: NodeConfig,
    /// The broker that events come from.
    pub kafka: KafkaConfig,
    /// Queue, online store and leases.
    pub redis: RedisConfig,
    /// When a batch of events closes.
    pub batch: BatchConfig,
    /// Scripts and their worker processes.
    pub python: PythonConfig,
    /// The DuckDB writer.
    pub store: StoreConfig,
    /// Files over gRPC.
    pub uploads: UploadsConfig,
    /// Where traces go.
    pub telemetry: TelemetryConfig,
    /// Made-up events.
    pub generator: GeneratorConfig,
    /// Faults on request.
    pub chaos: ChaosConfig,
    /// What flows: each stream binds a source to a script.
    pub streams: Vec<StreamConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node: NodeConfig::default(),
            kafka: KafkaConfig::default(),
            redis: RedisConfig::default(),
            batch: BatchConfig::default(),
            python: PythonConfig::default(),
            store: StoreConfig::default(),
            uploads: UploadsConfig::default(),
            telemetry: TelemetryConfig::default(),
            generator: GeneratorConfig::default(),
            chaos: ChaosConfig::default(),
            streams: StreamConfig::shipped(),
        }
    }
}

/// `[node]`: who the node is and where it keeps its files.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// Name in logs and in the ledger; empty: the host's name.
    pub name: String,
    /// Prefix of every key in Redis. Nodes that share work share it.
    pub namespace: String,
    /// Folder of the DuckDB file, the embedded Redis and the spool.
    pub data_dir: PathBuf,
    /// Address of the page, the metrics and the JSON interface.
    pub http: SocketAddr,
    /// Address of the gRPC services.
    pub grpc: SocketAddr,
    /// How long an ordered stop may take before the node stops anyway, in seconds.
    pub drain_deadline_s: u64,
    /// Whether metrics are kept.
    pub metrics: bool,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            namespace: "millstream".into(),
            data_dir: PathBuf::from("millstream-data"),
            http: SocketAddr::from(([127, 0, 0, 1], 7070)),
            grpc: SocketAddr::from(([127, 0, 0, 1], 7071)),
            drain_deadline_s: 30,
            metrics: true,
        }
    }
}

/// Where a source without a row in DuckDB starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StartAt {
    /// At the oldest record that the broker still has.
    Earliest,
    /// At the record that comes next.
    Latest,
}

/// `[kafka]`: the broker that events come from.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KafkaConfig {
    /// `host:port,…`; empty: the node embeds a broker for trying things out.
    pub brokers: String,
    /// The consumer group that all `process` nodes share.
    pub group: String,
    /// Where a source that DuckDB does not know starts.
    pub start: StartAt,
    /// Partitions of a topic that the node creates when it is missing.
    pub partitions: i32,
    /// Create missing topics of the configured streams at start.
    pub create_topics: bool,
    /// Payload bytes between Kafka and DuckDB's acknowledgement, over all streams; above it the
    /// partitions pause.
    pub max_inflight_bytes: usize,
    /// Further librdkafka settings (TLS, SASL, …), passed on as they are.
    pub options: BTreeMap<String, String>,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            brokers: String::new(),
            group: "millstream".into(),
            start: StartAt::Earliest,
            partitions: 4,
            create_topics: true,
            max_inflight_bytes: 96 << 20,
            options: BTreeMap::new(),
        }
    }
}

/// `[redis]`: queue, online store and leases.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RedisConfig {
    /// `redis://host:port/db`; empty: the node starts a redis-server of its own.
    pub url: String,
}

/// `[batch]`: when a batch of events closes — whichever comes first.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BatchConfig {
    /// Events a batch.
    pub max_rows: usize,
    /// Payload bytes a batch.
    pub max_bytes: usize,
    /// Age of the oldest event in the batch, in milliseconds.
    pub max_age_ms: u64,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self { max_rows: 32_768, max_bytes: 8 << 20, max_age_ms: 20 }
    }
}

/// `[python]`: scripts and their worker processes.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PythonConfig {
    /// Folder of the scripts; relative to the configuration file.
    pub transforms_dir: PathBuf,
    /// Virtual environment whose packages the scripts may import; empty: `.venv` beside the
    /// configuration file or in the working directory, when there is one.
    pub venv: PathBuf,
    /// Live workers over all nodes that share the namespace.
    pub max_workers: u32,
    /// Seconds without work after which a worker stops, and without workers after which the process
    /// stops of which they are forks.
    pub idle_stop_s: f64,
    /// Seconds that one batch may run.
    pub batch_deadline_s: f64,
    /// Seconds that loading a script may take, its imports and its `setup` included.
    pub load_deadline_s: f64,
    /// Whether saving a script's file deploys it, once it has passed its trial.
    pub watch: bool,
    /// Seconds a permit lives without its holder's heartbeat.
    pub lease_s: f64,
    /// Data memory of one worker, in MiB; what asks for more fails. 0: no limit.
    pub memory_limit_mib: u64,
    /// Batches after which a worker's process is replaced; 0: never.
    pub recycle_batches: u64,
    /// Growth of a worker's resident memory since its first batch, in MiB, after which its process
    /// is replaced; 0: never.
    pub recycle_growth_mib: u64,
}

impl PythonConfig {
    /// Data memory of one worker, in bytes; `None`: any.
    #[must_use]
    pub fn memory_limit(&self) -> Option<u64> {
        (self.memory_limit_mib > 0).then_some(self.memory_limit_mib << 20)
    }
}

impl Default for PythonConfig {
    fn default() -> Self {
        Self {
            transforms_dir: PathBuf::from("py_transforms"),
            venv: PathBuf::new(),
            max_workers: 2,
            idle_stop_s: 30.0,
            batch_deadline_s: 30.0,
            load_deadline_s: 30.0,
            watch: true,
            lease_s: 10.0,
            memory_limit_mib: 2048,
            recycle_batches: 100_000,
            recycle_growth_mib: 512,
        }
    }
}

/// `[store]`: the DuckDB writer.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// Database file; relative to `node.data_dir`.
    pub file: PathBuf,
    /// Feature rows after which a group of writes is committed.
    pub group_rows: usize,
    /// Milliseconds since the last transaction for which a small one waits for further writes; 0: it
    /// takes what is there. A transaction costs the store about 8 ms, however small it is.
    pub group_wait_ms: u64,
    /// DuckDB's memory limit, in MiB.
    pub memory_limit_mib: usize,
    /// What DuckDB may put aside on the disk while it sorts, joins and groups, in MiB.
    pub max_spill_mib: usize,
    /// DuckDB's threads.
    pub threads: usize,
    /// Seconds between two comparisons of online values with DuckDB's newest on a sample of keys, told
    /// as a metric; 0: never.
    pub skew_every_s: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            file: PathBuf::from("features.duckdb"),
            group_rows: 200_000,
            group_wait_ms: 20,
            memory_limit_mib: 2048,
            max_spill_mib: 16_384,
            threads: 2,
            skew_every_s: 300,
        }
    }
}

/// `[uploads]`: files over gRPC.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UploadsConfig {
    /// Folder of files that are not processed yet; relative to `node.data_dir`. Where nodes with the
    /// role `process` and the store share it, chunks go into DuckDB as Parquet, else as Arrow over
    /// the queue.
    pub spool_dir: PathBuf,
    /// Bytes of one file as sent, at most.
    pub max_file_bytes: u64,
    /// Bytes in the spool of this node, at most.
    pub max_spool_bytes: u64,
    /// Bytes of one file once it is decompressed, at most.
    pub max_decompressed_bytes: u64,
    /// How many times larger a file may become by decompression.
    pub max_ratio: u64,
    /// Rows of one file, at most.
    pub max_rows: u64,
    /// Columns of one file, at most.
    pub max_columns: usize,
    /// Memory that the check of a file may take, in MiB; it runs in a process of its own.
    pub check_memory_mib: u64,
    /// Files of one stream that are processed at the same time.
    pub parallel: usize,
}

impl Default for UploadsConfig {
    fn default() -> Self {
        Self {
            spool_dir: PathBuf::from("spool"),
            max_file_bytes: 8 << 30,
            max_spool_bytes: 16 << 30,
            max_decompressed_bytes: 64 << 30,
            max_ratio: 250,
            max_rows: 1_000_000_000,
            max_columns: 2_000,
            check_memory_mib: 2048,
            parallel: 2,
        }
    }
}

/// `[generator]`: made-up events, each a pure function of its id.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GeneratorConfig {
    /// Producer tasks; they take the shipped streams in turn.
    pub tasks: u8,
    /// Events a second over all tasks; 0: flat out.
    pub rate: f64,
    /// Makes a run repeatable.
    pub seed: u64,
    /// Seconds between two files that are uploaded, JSON and Parquet in turn; 0: none.
    pub upload_every_s: f64,
    /// Events of one such file.
    pub upload_rows: u32,
    /// gRPC address (`host:port`) of the node that takes them; empty: this node's own, when it has
    /// the role `process`, else none are made.
    pub upload_to: String,
    /// Shares of awkward events and the spread of the entities.
    pub mix: Mix,
}

impl Default for GeneratorConfig {
    fn default() -> Self {
        Self {
            tasks: 2,
            rate: 5_000.0,
            seed: 42,
            upload_every_s: 10.0,
            upload_rows: 2_000,
            upload_to: String::new(),
            mix: Mix::default(),
        }
    }
}

/// `[chaos]`: faults on request, to see that the node mends them.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ChaosConfig {
    /// Whether this node ends its own actors and Python workers when it is asked to, by `millstream
    /// kill`, the page, HTTP or gRPC.
    pub allow: bool,
}

impl Config {
    /// What cannot be said by types alone; each message says what to change.
    ///
    /// # Errors
    /// The first rule that is broken, as a sentence.
    pub fn validate(&self) -> Result<(), String> {
        let positive = [
            ("batch.max_rows", self.batch.max_rows as f64),
            ("batch.max_bytes", self.batch.max_bytes as f64),
            ("kafka.partitions", f64::from(self.kafka.partitions)),
            ("kafka.max_inflight_bytes", self.kafka.max_inflight_bytes as f64),
            ("python.max_workers", f64::from(self.python.max_workers)),
            ("python.idle_stop_s", self.python.idle_stop_s),
            ("python.batch_deadline_s", self.python.batch_deadline_s),
            ("python.load_deadline_s", self.python.load_deadline_s),
            ("python.lease_s", self.python.lease_s),
            ("store.group_rows", self.store.group_rows as f64),
            ("store.memory_limit_mib", self.store.memory_limit_mib as f64),
            ("store.threads", self.store.threads as f64),
            ("uploads.max_file_bytes", self.uploads.max_file_bytes as f64),
            ("uploads.max_spool_bytes", self.uploads.max_spool_bytes as f64),
            ("uploads.max_decompressed_bytes", self.uploads.max_decompressed_bytes as f64),
            ("uploads.max_ratio", self.uploads.max_ratio as f64),
            ("uploads.max_rows", self.uploads.max_rows as f64),
            ("uploads.max_columns", self.uploads.max_columns as f64),
            ("uploads.check_memory_mib", self.uploads.check_memory_mib as f64),
            ("uploads.parallel", self.uploads.parallel as f64),
            ("generator.upload_rows", f64::from(self.generator.upload_rows)),
        ];
        for (key, value) in positive {
            if !(value > 0.0 && value.is_finite()) {
                return Err(format!("`{key}` must be greater than zero"));
            }
        }
        if self.kafka.max_inflight_bytes < 2 * self.batch.max_bytes {
            return Err("`kafka.max_inflight_bytes` must be at least twice `batch.max_bytes`, \
                        or one batch would fill the whole pipeline"
                .into());
        }
        // The numbers beyond belong to files and replays.
        if !(2..=250).contains(&self.generator.tasks) {
            return Err("`generator.tasks` must be from 2 to 250".into());
        }
        let upload_to = &self.generator.upload_to;
        let is_address = |text: &str| {
            text.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
            })
        };
        if !upload_to.is_empty() && !is_address(upload_to) {
            return Err(format!("`generator.upload_to` is `{upload_to}`: write host:port"));
        }
        if !(self.generator.rate >= 0.0 && self.generator.rate.is_finite()) {
            return Err("`generator.rate` must be zero (flat out) or more".into());
        }
        if !(self.generator.upload_every_s >= 0.0 && self.generator.upload_every_s.is_finite()) {
            return Err("`generator.upload_every_s` must be zero (no files) or more".into());
        }
        self.generator.mix.validate().map_err(|e| format!("`generator.mix`: {e}"))?;
        self.telemetry.validate()?;
        let namespace = &self.node.namespace;
        if namespace.is_empty() || namespace.contains([':', ' ', '*', '{', '}']) {
            return Err("`node.namespace` must be a word without `:`, `*`, braces or spaces".into());
        }
        if self.streams.is_empty() {
            return Err("at least one `[[streams]]` is needed".into());
        }
        for (i, stream) in self.streams.iter().enumerate() {
            stream.validate().map_err(|e| format!("stream `{}`: {e}", stream.name))?;
            for other in &self.streams[..i] {
                if other.name == stream.name {
                    return Err(format!("two streams are named `{}`", stream.name));
                }
                if other.topic == stream.topic {
                    return Err(format!(
                        "streams `{}` and `{}` share the topic `{}`: give each its own",
                        other.name, stream.name, stream.topic
                    ));
                }
            }
        }
        Ok(())
    }

    /// The file of a stream's script; `stream` is its index.
    #[must_use]
    pub fn script_file(&self, stream: usize) -> PathBuf {
        self.python.transforms_dir.join(format!("{}.py", self.streams[stream].transform))
    }

    /// The node's name: the configured one or the host's.
    #[must_use]
    pub fn node_name(&self) -> String {
        if self.node.name.is_empty() { hostname() } else { self.node.name.clone() }
    }

    /// The spool of uploads, with the data folder applied.
    #[must_use]
    pub fn spool(&self) -> PathBuf {
        self.node.data_dir.join(&self.uploads.spool_dir)
    }

    /// The DuckDB file, with the data folder applied.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.node.data_dir.join(&self.store.file)
    }
}

/// The host's name, or `localhost` when it cannot be read.
#[must_use]
pub fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|s| s.trim().to_owned())
        .ok()
        .filter(|s| !s.is_empty())
        .or_else(|| std::env::var("HOSTNAME").ok())
        .unwrap_or_else(|| "localhost".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        Config::default().validate().unwrap();
    }

    #[test]
    fn a_shared_topic_is_refused() {
        let mut config = Config::default();
        config.streams[1].topic = config.streams[0].topic.clone();
        assert!(config.validate().unwrap_err().contains("share the topic"));
    }
}
