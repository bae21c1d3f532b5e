//! A bench: folders, topics, a namespace and a configuration of a test's own.

use super::NodeProcess;
use millstream::{
    actors::generator::{Expected, GeneratorParts, GeneratorTasks},
    config::Config,
    report::Report,
    store::audit::Audit,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use uuid::Uuid;

/// See the module.
pub struct Bench {
    /// Everything of the test lies here and goes away with it.
    pub dir: tempfile::TempDir,
    /// What the nodes are started with.
    pub config: Config,
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
        config.python.venv = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv");
        for stream in &mut config.streams {
            stream.topic = format!("{}-{tag}", stream.topic);
        }
        Self { dir, config }
    }

    /// Another reader of the same topics: own group, namespace and data folder.
    pub fn other_reader(&self) -> Self {
        let other = Self::new(&self.config.kafka.brokers);
        let mut config = self.config.clone();
        config.node = other.config.node.clone();
        config.kafka.group.clone_from(&other.config.kafka.group);
        config.redis.url.clear();
        Self { dir: other.dir, config }
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

    /// Creates the topics, as a node would.
    pub fn create_topics(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(millstream::kafka::create_missing_topics(&self.config)).unwrap();
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
        })
        .unwrap()
    }

    /// Holds the closed database against what was sent.
    pub fn judge(&self, expected: &Expected) -> Report {
        let store = duckdb::Connection::open(self.database()).unwrap();
        let books: Audit = millstream::store::audit::audit(&store, 0).unwrap();
        let registry = millstream::supervision::Registry::new(
            millstream::supervision::FatalSender::channel().0,
        );
        let mut report = Report::of_audit(&books, std::time::Duration::from_secs(1), &registry);
        report.judge(expected, &store).unwrap();
        report
    }
}

/// What tasks that were stopped must have led to.
pub fn expected(tasks: &GeneratorTasks) -> Expected {
    assert!(!tasks.has_failed(), "a generator task failed");
    assert_eq!(tasks.tally().refused(), 0, "the broker refused events");
    tasks.tally().expected(|task| tasks.maker(task))
}
