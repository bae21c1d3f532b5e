//! A bench: folders, topics, a namespace and a configuration of a test's own.

use super::{NodeProcess, RedisServer, Slot};
use millstream::{
    actors::generator::{Expected, GeneratorParts, GeneratorTasks},
    config::Config,
};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};
use uuid::Uuid;

/// See the module.
pub struct Bench {
    /// Everything of the test lies here and goes away with it.
    pub dir: tempfile::TempDir,
    /// What the nodes are started with.
    pub config: Config,
    /// Defects that are planted in its nodes, with commas between.
    pub planted: &'static str,
    topics: OnceLock<Topics>,
    _slot: Slot,
}

impl Bench {
    /// The shipped streams on topics of their own; an embedded broker when `brokers` is empty.
    pub fn new(brokers: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tag = Uuid::new_v4().simple().to_string();
        let mut config = Config::default();
        config.node.namespace = format!("t{tag}");
        config.node.name = "test-node".into();
        config.node.data_dir = dir.path().join("data");
        config.kafka.brokers = brokers.to_owned();
        config.kafka.group = format!("group-{tag}");
        config.python.transforms_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("py_transforms");
        // Only the tests that are about them, or count nothing, have files among their events.
        config.generator.upload_every_s = 0.0;
        // What a node waits for on a Redis that it has not used before.
        config.python.lease_s = 4.0;
        config.python.venv = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv");
        for stream in &mut config.streams {
            stream.topic = format!("{}-{tag}", stream.topic);
        }
        Self { dir, config, planted: "", topics: OnceLock::new(), _slot: Slot::shared() }
    }

    /// A Redis of the test's own that all nodes of the bench use and outlive.
    pub fn redis(&mut self) -> RedisServer {
        let redis = RedisServer::start(&self.dir.path().join("redis"));
        self.config.redis.url = redis.url();
        redis
    }

    /// Members that fall silent lose their partitions after 3 s instead of 10 s, and a request to
    /// join whose answer was lost is made again after about 10 s instead of 300 s.
    pub fn short_sessions(&mut self) {
        let options = &mut self.config.kafka.options;
        options.insert("session.timeout.ms".into(), "3000".into());
        options.insert("heartbeat.interval.ms".into(), "500".into());
        options.insert("max.poll.interval.ms".into(), "10000".into());
    }

    /// The next nodes take up the membership of those before them, so that a node that was killed
    /// and started again need not wait for its former self to be given up.
    pub fn lasting_member(&mut self, name: &str) {
        self.config.kafka.options.insert("group.instance.id".into(), name.into());
    }

    /// Another reader of the same topics: own group, namespace and data folder.
    pub fn other_reader(&self) -> Self {
        let other = Self::new(&self.config.kafka.brokers);
        let mut config = self.config.clone();
        config.node = other.config.node.clone();
        config.kafka.group.clone_from(&other.config.kafka.group);
        config.redis.url.clear();
        let (dir, planted) = (other.dir, self.planted);
        Self { dir, config, planted, topics: OnceLock::new(), _slot: Slot::shared() }
    }

    /// The topic of a stream.
    pub fn topic(&self, stream: &str) -> &str {
        &self.config.streams.iter().find(|s| s.name == stream).unwrap().topic
    }

    /// Writes the configuration; its path.
    pub fn config_file(&self) -> PathBuf {
        let path = self.dir.path().join("millstream.toml");
        std::fs::write(&path, toml::to_string(&self.config).unwrap()).unwrap();
        path
    }

    /// The database file.
    pub fn database(&self) -> PathBuf {
        self.config.database()
    }

    /// A node with these roles, as a process.
    pub fn node(&self, roles: &str) -> NodeProcess {
        NodeProcess::start(self, roles)
    }

    /// Puts the shipped scripts of its streams into a folder of the test's own, which nodes read from now on.
    pub fn own_scripts(&mut self) {
        let scripts = self.dir.path().join("scripts");
        std::fs::create_dir_all(&scripts).unwrap();
        for stream in &self.config.streams {
            let name = format!("{}.py", stream.transform);
            let shipped = self.config.python.transforms_dir.join(&name);
            std::fs::copy(shipped, scripts.join(&name)).unwrap();
        }
        self.config.python.transforms_dir = scripts;
    }

    /// Creates the topics, as a node would.
    pub fn create_topics(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // A broker that has just come back takes its time.
        super::wait_for("the topics", || {
            runtime.block_on(millstream::kafka::create_missing_topics(&self.config)).ok()
        });
        self.topics.get_or_init(|| Topics {
            brokers: self.config.kafka.brokers.clone(),
            names: self.config.streams.iter().map(|s| s.topic.clone()).collect(),
        });
    }

    /// Made-up events of this test's own producers, with every id kept.
    pub fn generate(&self) -> Arc<GeneratorTasks> {
        self.create_topics();
        let config = Arc::new(self.config.clone());
        GeneratorTasks::start(&GeneratorParts {
            config,
            gate: None,
            keep_ids: true,
            count: None,
            hold: false,
            own_grpc: None,
            stop_patience: GeneratorParts::STOP_PATIENCE,
        })
        .unwrap()
    }

    /// The database, which no node owns any more.
    pub fn closed_store(&self) -> duckdb::Connection {
        duckdb::Connection::open(self.database()).unwrap()
    }

    /// DuckDB's positions by source name, read from a copy: the next store must find the files as
    /// the last one left them.
    pub fn positions(&self) -> HashMap<String, i64> {
        let copy = tempfile::tempdir().unwrap();
        let file = self.database();
        if !file.exists() {
            return HashMap::new();
        }
        for suffix in ["", ".wal"] {
            let name = format!("{}{suffix}", file.file_name().unwrap().to_str().unwrap());
            let from = file.with_file_name(&name);
            if from.exists() {
                std::fs::copy(from, copy.path().join(name)).unwrap();
            }
        }
        let store = duckdb::Connection::open(copy.path().join(file.file_name().unwrap())).unwrap();
        let mut statement = store
            .prepare("SELECT source, next_pos FROM sources WHERE source LIKE 'kafka:%'")
            .unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.map(Result::unwrap).collect()
    }
}

/// Deletes topics, so that the broker that all tests share has little to look after.
struct Topics {
    brokers: String,
    names: Vec<String>,
}

impl Drop for Topics {
    fn drop(&mut self) {
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        super::admin(&self.brokers, async |admin, options| {
            let options = options.request_timeout(Some(Duration::from_secs(5)));
            // The broker of a test of faults may be gone, its topics with it.
            let _ = admin.delete_topics(&names, &options).await;
        });
    }
}

/// What tasks that were stopped must have led to.
pub fn expected(tasks: &GeneratorTasks) -> Expected {
    assert!(!tasks.has_failed(), "a generator task failed");
    assert_eq!(tasks.tally().refused(), 0, "the broker refused events");
    tasks.tally().expected(|task| tasks.maker(task))
}
