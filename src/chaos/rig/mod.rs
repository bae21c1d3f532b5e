//! The system under test: a Redis and a broker behind proxies, a store, two nodes with the role
//! `process`, a third one that comes and goes, scripts of their own, and a generator in this process.
//!
//! ```text
//!  generator (this process) ──▶ broker ◀──proxy── process-1, process-2 (process-3)
//!            └──files, gRPC──────────────────────▶ process-1        │
//!                               Redis  ◀──proxy─────────┴──── store ─┘   DuckDB on a small disk
//! ```
//!
//! Each part has a [`Lane`]: what is done to it is done one after the other.

mod broker;
mod node;
mod redis;

pub use broker::{Broker, BrokerChoice};
pub use node::{Living, NodeParts, NodeSlot};
pub use redis::Redis;

use super::{
    clock::Clock, disk::SmallDisk, fault::Needs, http::Http, lane::Lane, processes::WorkerCount,
};
use crate::config::Config;
use anyhow::Context as _;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

/// Room under DuckDB, in MiB.
const DISK_MIB: usize = 2_048;

/// What a rig is made from.
#[derive(Debug, Clone)]
pub struct RigParts {
    /// Streams, rates and limits; where everything is, the rig says.
    pub config: Config,
    /// Everything lies here.
    pub dir: PathBuf,
    /// This program.
    pub program: PathBuf,
    /// Which broker.
    pub broker: BrokerChoice,
    /// Defects that the nodes are started with (tests only).
    pub planted: Vec<String>,
}

/// See the module.
pub struct Rig {
    /// The configuration of the nodes; its addresses are those of the proxies.
    pub config: Config,
    /// The configuration of whoever goes past the proxies.
    pub direct: Config,
    /// To ask nodes.
    pub http: Http,
    /// The nodes with the role `process`.
    pub process: [Lane<NodeSlot>; 2],
    /// The one that comes and goes.
    pub guest: Lane<NodeSlot>,
    /// The store.
    pub store: Lane<NodeSlot>,
    /// Redis and the way to it.
    pub redis: Lane<Redis>,
    /// The broker and the way to it.
    pub broker: Lane<Broker>,
    /// Scripts.
    pub scripts: Lane<()>,
    /// Files.
    pub uploads: Lane<()>,
    /// The disk under DuckDB, where one could be mounted.
    pub disk: Option<Arc<SmallDisk>>,
    /// Addresses of the two process nodes and the store.
    pub addresses: Addresses,
    /// The nodes' processes.
    pub living: Living,
    /// Counts their Python workers from the start on.
    pub workers: Arc<WorkerCount>,
    /// The DuckDB file.
    pub database: PathBuf,
    /// Where everything lies.
    pub dir: PathBuf,
    missing: Missing,
}

/// Where nodes answer, in all their lives.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// HTTP and gRPC of the nodes with the role `process`.
    pub process: [(SocketAddr, SocketAddr); 2],
    /// HTTP of the store.
    pub store: SocketAddr,
}

/// What kinds of faults miss, in words.
#[derive(Debug, Clone, Default)]
struct Missing {
    real_broker: Option<String>,
    in_process_broker: Option<String>,
    mount: Option<String>,
    trace: Option<String>,
    fake_time: Option<String>,
}

impl Rig {
    /// Starts everything but the load, and waits until all nodes answer.
    ///
    /// # Errors
    /// What does not start.
    pub fn start(parts: RigParts) -> anyhow::Result<Self> {
        let RigParts { mut config, dir, program, broker: choice, planted } = parts;
        std::fs::create_dir_all(&dir)?;
        let dir = dir.canonicalize()?;
        let http = Http::new()?;
        let (disk, no_mount) = match SmallDisk::mount(&dir.join("disk"), DISK_MIB) {
            Ok(disk) => (Some(Arc::new(disk)), None),
            Err(why) => (None, Some(why)),
        };
        own_scripts(&mut config, &dir.join("scripts"))?;
        let topics: Vec<String> = config.streams.iter().map(|s| s.topic.clone()).collect();
        let mut missing = Missing { mount: no_mount, ..Missing::what_is_not_here(&choice) };
        let clocks = ["store", "process-1", "process-2"].map(|name| {
            let clock = Clock::new(&dir.join(format!("clock-of-{name}")));
            clock.map_err(|why| missing.fake_time = Some(why)).ok()
        });

        let redis_dir = dir.join("redis");
        let redis = Lane::start("chaos-redis", move || Redis::start(&redis_dir))?;
        let (broker_dir, partitions) = (dir.clone(), config.kafka.partitions);
        let broker = Lane::start("chaos-broker", move || {
            Broker::start(choice, &broker_dir, topics, partitions)
        })?;
        let mut direct = config.clone();
        (config.redis.url, direct.redis.url) =
            redis.ask(|redis| (redis.url_for_nodes(), redis.url().to_owned()))?;
        (config.kafka.brokers, direct.kafka.brokers) =
            broker.ask(|broker| (broker.for_nodes(), broker.address()))?;
        config.kafka.create_topics = missing.in_process_broker.is_some();
        direct.kafka.create_topics = config.kafka.create_topics;

        let mut envs = vec![("MILLSTREAM__CHAOS__ALLOW".to_owned(), "true".to_owned())];
        if !planted.is_empty() {
            envs.push(("MILLSTREAM_PLANTED".to_owned(), planted.join(",")));
        }
        let workers = Arc::new(WorkerCount::start(config.python.max_workers as usize)?);
        let living = Living::new(workers.clone());
        let slot = |name, roles, data: &Path, clock: Option<Clock>| {
            let mut config = config.clone();
            config.node.data_dir = data.to_owned();
            // One spool for all: rows of files go to the store as Parquet.
            config.uploads.spool_dir = dir.join("spool");
            let parts = NodeParts {
                name,
                roles,
                program: program.clone(),
                dir: dir.clone(),
                config,
                envs: envs.clone(),
                http: http.clone(),
                clock,
                living: living.clone(),
            };
            Lane::start(&format!("chaos-{name}"), move || NodeSlot::new(parts))
        };
        let on_disk = disk.as_ref().map_or_else(|| dir.join("disk"), |d| d.path().to_owned());
        let [of_store, of_one, of_two] = clocks;
        let database = on_disk.join("store").join(&config.store.file);
        let store = slot("store", "store", &on_disk.join("store"), of_store)?;
        let process = [
            slot("process-1", "process", &dir.join("process-1"), of_one)?,
            slot("process-2", "process", &dir.join("process-2"), of_two)?,
        ];
        let guest = slot("process-3", "process", &dir.join("process-3"), None)?;
        let address = |lane: &Lane<NodeSlot>| lane.ask(|node| (node.http, node.grpc));
        let addresses = Addresses {
            process: [address(&process[0])?, address(&process[1])?],
            store: address(&store)?.0,
        };
        direct.generator.upload_to = addresses.process[0].1.to_string();
        let nothing = |name| Lane::start(name, || Ok(()));
        let (scripts, uploads) = (nothing("chaos-scripts")?, nothing("chaos-uploads")?);
        let rig = Self {
            config,
            direct,
            http,
            process,
            guest,
            store,
            redis,
            broker,
            scripts,
            uploads,
            disk,
            addresses,
            living,
            workers,
            database,
            dir,
            missing,
        };
        rig.store.ask(NodeSlot::start)??;
        for lane in &rig.process {
            lane.ask(NodeSlot::start)??;
        }
        Ok(rig)
    }

    /// What a kind of fault misses here.
    #[must_use]
    pub fn missing(&self, needs: Needs) -> Option<String> {
        match needs {
            Needs::Nothing => None,
            Needs::RealBroker => self.missing.real_broker.clone(),
            Needs::InProcessBroker => self.missing.in_process_broker.clone(),
            Needs::Mount => self.missing.mount.clone(),
            Needs::Trace => self.missing.trace.clone(),
            Needs::FakeTime => self.missing.fake_time.clone(),
        }
    }

    /// The nodes that stay, by name.
    #[must_use]
    pub fn nodes(&self) -> [&Lane<NodeSlot>; 3] {
        [&self.store, &self.process[0], &self.process[1]]
    }

    /// Waits until everything that was begun is over.
    ///
    /// # Errors
    /// When a lane's thread is gone.
    pub fn settle(&self) -> anyhow::Result<()> {
        for lane in [&self.store, &self.process[0], &self.process[1], &self.guest] {
            lane.ask(|_| ())?;
        }
        self.redis.ask(|_| ())?;
        self.broker.ask(|_| ())?;
        self.scripts.ask(|()| ())?;
        self.uploads.ask(|()| ())
    }
}

impl Missing {
    fn what_is_not_here(broker: &BrokerChoice) -> Self {
        let own = "needs a broker that chaos starts itself (--broker-script scripts/kafka.sh)";
        let in_process = "only the in-process broker can do that";
        let traces = Command::new("strace").arg("-V").output().is_ok_and(|o| o.status.success());
        Self {
            real_broker: (!matches!(broker, BrokerChoice::Script(_))).then(|| own.into()),
            in_process_broker: (!matches!(broker, BrokerChoice::InProcess))
                .then(|| in_process.into()),
            trace: (!traces).then(|| "needs strace".into()),
            ..Self::default()
        }
    }
}

/// Copies of the streams' scripts, and of what lies beside them, which faults may change.
fn own_scripts(config: &mut Config, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for stream in 0..config.streams.len() {
        let from = config.script_file(stream);
        let name = from.file_name().context("a script has a name")?.to_owned();
        std::fs::copy(&from, to.join(name)).with_context(|| format!("{}", from.display()))?;
    }
    config.python.transforms_dir = to.to_owned();
    Ok(())
}
