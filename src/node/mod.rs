//! A node: the roles of this process, their actors, and the order of starting and stopping.

mod gauges;
pub mod python_env;
mod ready;
mod start;

pub use start::NodeOptions;

use crate::{
    actors::{
        BatchAccumulator, PythonWorkerSupervisor,
        duckdb_writer::WriterThread,
        file_upload,
        generator::GeneratorTasks,
        kafka_ingest::{Command, PollThread},
        python_worker_supervisor::{PythonStatus, ScriptShelf},
        redis_queue,
        replayer::ReplayDesk,
        transform_deployer::DeployDesk,
    },
    config::Config,
    embedded::{EmbeddedKafka, EmbeddedRedis},
    kafka::{self, AcknowledgedPositions},
    messages::{Drain, ReadReply, ReadRequest},
    online::read::OnlineReader,
    protocol::source::{AdoptAt, SourceName},
    queue::{Keys, RedisLink},
    store::audit::{Audit, Check},
    supervision::{Fatal, Link, Registry},
};
use anyhow::{Context, bail};
use rdkafka::{Offset, TopicPartitionList, consumer::Consumer};
use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{Semaphore, mpsc};

/// How long an operator waits for the store.
const OPERATOR_DEADLINE: Duration = Duration::from_secs(60);

/// A part of the system that a process can play.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Makes events up.
    Generate,
    /// Turns events into features.
    Process,
    /// Owns the DuckDB file.
    Store,
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "generate" => Ok(Self::Generate),
            "process" => Ok(Self::Process),
            "store" => Ok(Self::Store),
            other => Err(format!("`{other}` is no role; there are generate, process and store")),
        }
    }
}

/// What the HTTP and gRPC services see of a node. Cheap to clone.
#[derive(Clone)]
pub struct NodeView {
    /// The configuration, with embedded addresses filled in.
    pub config: Arc<Config>,
    /// This process's roles.
    pub roles: BTreeSet<Role>,
    /// Where Redis is; a generator of its own needs none.
    pub redis: Option<RedisLink>,
    /// The names in Redis.
    pub keys: Keys,
    /// The actors.
    pub registry: Registry,
    /// The poll thread of a `process` node.
    pub ingest: Option<Arc<PollThread>>,
    /// Where replays of dead letters are asked for, on a `process` node.
    pub replays: Option<Arc<ReplayDesk>>,
    /// Reads newest values.
    pub online: Option<Arc<OnlineReader>>,
    /// Where versions of scripts are deployed, on a `process` node.
    pub scripts: Option<Arc<DeployDesk>>,
    /// The workers of a `process` node.
    pub python: Arc<PythonStatus>,
    /// The generator of a `generate` node.
    pub generator: Option<Arc<GeneratorTasks>>,
    /// What DuckDB acknowledged.
    pub acknowledged: Arc<AcknowledgedPositions>,
    /// Whether the broker lives in this process.
    pub embedded_broker: bool,
    /// When the node was started.
    pub started_at: Instant,
}

/// A running node.
pub struct Node {
    /// What the services see.
    pub view: NodeView,
    /// The page's address.
    pub http: SocketAddr,
    /// The gRPC address.
    pub grpc: SocketAddr,
    fatal: mpsc::UnboundedReceiver<Fatal>,
    accumulator: Link<BatchAccumulator>,
    supervisor: Link<PythonWorkerSupervisor>,
    credit: Arc<Semaphore>,
    total_credit: usize,
    writer: Option<Arc<WriterThread>>,
    servers: Vec<tokio::task::JoinHandle<()>>,
    // Dropped last, in this order: whoever uses them is gone by then.
    _kafka: Option<EmbeddedKafka>,
    _redis: Option<EmbeddedRedis>,
}

impl NodeView {
    /// Asks the store, and waits that long for its answer.
    ///
    /// # Errors
    /// A [`ReadReply::Failed`] comes back as such; an error means that nobody answered.
    pub async fn read(
        &self,
        request: &ReadRequest,
        patience: Duration,
    ) -> anyhow::Result<(ReadReply, Vec<u8>)> {
        redis_queue::ask(self.redis()?, &self.keys, request, patience).await
    }

    fn redis(&self) -> anyhow::Result<&RedisLink> {
        self.redis.as_ref().context("this node has no Redis to ask through")
    }

    /// Has the store note an operator's decision on a source; `false` when it knows no such source.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn adopt(&self, source: &SourceName, at: AdoptAt) -> anyhow::Result<bool> {
        let known =
            redis_queue::adopt(self.redis()?, &self.keys, source, at, OPERATOR_DEADLINE).await?;
        if let Some(ingest) = &self.ingest {
            ingest.tell(Command::AskAgain);
        }
        Ok(known)
    }

    /// Has every node take what a script version fails on for the data's fault.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn accept_script(&self, sha256: &str) -> anyhow::Result<()> {
        let redis = self.redis.as_ref().context("this node has no Redis to tell it to")?;
        Ok(ScriptShelf::accept(redis, &self.keys, sha256).await?)
    }

    /// The audit of ledger, tables and online store, with what this node knows of the broker.
    ///
    /// # Errors
    /// When nobody answers, or a part of it cannot be asked.
    pub async fn verify(&self, full: bool) -> anyhow::Result<Audit> {
        // The broker's offsets first: they may only be behind what DuckDB says afterwards.
        let committed = match &self.ingest {
            Some(ingest) => Some(self.committed_offsets(ingest).await?),
            None => None,
        };
        let mut audit: Audit =
            match self.read(&ReadRequest::Verify { full }, OPERATOR_DEADLINE).await? {
                (ReadReply::Failed { reason, .. }, _) => bail!("{reason}"),
                (_, json) => serde_json::from_slice(&json)?,
            };
        if let Some(committed) = committed {
            let positions = self.next_positions().await?;
            audit.checks.push(not_ahead(&committed, &positions));
        }
        Ok(audit)
    }

    /// The group's committed offset by source name.
    async fn committed_offsets(
        &self,
        ingest: &Arc<PollThread>,
    ) -> anyhow::Result<HashMap<String, i64>> {
        let (consumer, config) = (ingest.consumer(), self.config.clone());
        tokio::task::spawn_blocking(move || {
            let mut list = TopicPartitionList::new();
            let mut sources = HashMap::new();
            for stream in &config.streams {
                for partition in partitions_of(&consumer, &stream.topic)? {
                    list.add_partition(&stream.topic, partition);
                    let source = SourceName::kafka(&stream.name, &stream.topic, partition);
                    sources.insert((stream.topic.clone(), partition), source.to_string());
                }
            }
            let committed = consumer.committed_offsets(list, kafka::BROKER_TIMEOUT)?;
            let mut out = HashMap::new();
            for element in committed.elements() {
                let key = (element.topic().to_owned(), element.partition());
                if let (Offset::Offset(offset), Some(source)) =
                    (element.offset(), sources.remove(&key))
                {
                    out.insert(source, offset);
                }
            }
            Ok(out)
        })
        .await?
    }

    /// DuckDB's position of each Kafka source and each upload, by its name.
    async fn next_positions(&self) -> anyhow::Result<HashMap<String, i64>> {
        let sql = "SELECT source, next_pos FROM sources \
                   WHERE source LIKE 'kafka:%' OR source LIKE 'upload:%' \
                   QUALIFY source_no = max(source_no) OVER (PARTITION BY source)";
        let batches = redis_queue::select(self.redis()?, &self.keys, sql.into()).await?;
        let found = redis_queue::rows(&batches);
        let positions = found.map(|row| (row.owned(0), row.int(1).unwrap_or_default())).collect();
        Ok(positions)
    }

    /// Waits until DuckDB holds what the topics hold now and every row of the uploads that are
    /// registered now, whichever nodes read them. What comes meanwhile is not waited for.
    ///
    /// # Errors
    /// When that is not so within `deadline`; the message names what is behind.
    pub async fn wait_caught_up(&self, deadline: Duration) -> anyhow::Result<()> {
        let ingest = self.ingest.clone().context("this node has no role `process`")?;
        let until = Instant::now() + deadline;
        let mut accepted = None;
        loop {
            let looking = async {
                let accepted = match &accepted {
                    Some(accepted) => accepted,
                    None => &*accepted.insert(self.accepted(&ingest).await?),
                };
                self.behind(accepted).await
            };
            let behind = match looking.await {
                Ok(None) => return Ok(()),
                Ok(Some(behind)) => behind,
                // A broker or a store that is being started again is behind, too.
                Err(error) => format!("{error:#}"),
            };
            if Instant::now() > until {
                bail!("not caught up within {deadline:?}: {behind}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Sources, and the positions that their records have now.
    async fn accepted(&self, ingest: &Arc<PollThread>) -> anyhow::Result<Vec<(String, i64)>> {
        let mut accepted = file_upload::status::not_landed(self.redis()?, &self.keys).await?;
        let (consumer, config) = (ingest.consumer(), self.config.clone());
        let topics = tokio::task::spawn_blocking(move || {
            let mut topics = Vec::new();
            for stream in &config.streams {
                for partition in partitions_of(&consumer, &stream.topic)? {
                    let (low, high) = kafka::watermarks(&consumer, &stream.topic, partition)?;
                    let source = SourceName::kafka(&stream.name, &stream.topic, partition);
                    if low < high {
                        topics.push((source.0.as_ref().to_owned(), high));
                    }
                }
            }
            anyhow::Ok(topics)
        });
        accepted.extend(topics.await??);
        Ok(accepted)
    }

    /// The first source of which DuckDB does not hold as much.
    async fn behind(&self, accepted: &[(String, i64)]) -> anyhow::Result<Option<String>> {
        let positions = self.next_positions().await?;
        let behind = accepted.iter().find_map(|(source, to)| {
            let at = positions.get(source).copied().unwrap_or(0);
            (at < *to).then(|| format!("{source} is at {at} of {to}"))
        });
        Ok(behind)
    }

    /// The node at a glance, as the page and `status` show it.
    #[must_use]
    pub fn status(&self) -> serde_json::Value {
        let workers =
            self.python.workers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let broken =
            self.python.broken.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let scripts =
            self.python.scripts.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let totals = crate::telemetry::totals();
        serde_json::json!({
            "node": self.config.node_name(),
            "version": env!("CARGO_PKG_VERSION"),
            "roles": self.roles,
            "uptime_s": self.started_at.elapsed().as_secs_f64(),
            "embedded_broker": self.embedded_broker,
            "brokers": self.config.kafka.brokers,
            "produced": self.generator.as_ref().map(|g| g.tally().acknowledged()),
            "totals": totals,
            "actors": self.registry.status(),
            "chaos_allowed": self.config.chaos.allow,
            "partitions": self.ingest.as_ref().map(|i| i.status()),
            "python": { "cap": self.config.python.max_workers, "workers": workers, "broken": broken, "scripts": scripts },
        })
    }
}

/// The partitions of a topic.
fn partitions_of<C: rdkafka::consumer::ConsumerContext>(
    consumer: &rdkafka::consumer::BaseConsumer<C>,
    topic: &str,
) -> anyhow::Result<Vec<i32>> {
    let metadata = consumer.fetch_metadata(Some(topic), kafka::BROKER_TIMEOUT)?;
    let topics = metadata.topics();
    Ok(topics
        .iter()
        .flat_map(|t| t.partitions())
        .map(rdkafka::metadata::MetadataPartition::id)
        .collect())
}

/// C7: the broker's committed offset never exceeds DuckDB's position.
fn not_ahead(committed: &HashMap<String, i64>, positions: &HashMap<String, i64>) -> Check {
    let broken: Vec<String> = committed
        .iter()
        .filter(|(source, offset)| positions.get(*source).is_none_or(|next| *offset > next))
        .map(|(source, offset)| {
            format!("{source}: {offset} is committed, DuckDB has {:?}", positions.get(source))
        })
        .collect();
    let holds = format!("none of {} committed offsets is ahead of DuckDB", committed.len());
    Check::of("committed_not_ahead", &broken, holds)
}

impl Node {
    /// Starts the roles; the node is running, though perhaps not ready, when this returns.
    ///
    /// # Errors
    /// When a dependency cannot be reached or started, an address is taken, or the store's file
    /// is owned by another.
    pub async fn start(config: Config, options: NodeOptions) -> anyhow::Result<Self> {
        start::start(config, options).await
    }

    /// Waits until everything is ready.
    ///
    /// # Errors
    /// When it is not within `deadline`, or the node cannot go on.
    pub async fn wait_ready(&mut self, deadline: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + deadline;
        loop {
            let missing = self.view.not_ready().await;
            let Some((component, why)) = missing.first() else { return Ok(()) };
            if let Ok(fatal) = self.fatal.try_recv() {
                return Err(fatal.into());
            }
            if Instant::now() > until {
                bail!("{component} is not ready after {deadline:?}: {why}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits for something that the node cannot go on after.
    pub async fn fatal(&mut self) -> Fatal {
        match self.fatal.recv().await {
            Some(fatal) => fatal,
            // Every sender is gone only when the node is.
            None => std::future::pending().await,
        }
    }

    /// Lets a held generator begin.
    pub fn release_generator(&self) {
        if let Some(generator) = &self.view.generator {
            generator.release();
        }
    }

    /// Makes no more events. The rest of the node goes on.
    ///
    /// # Errors
    /// When waiting for it failed.
    pub async fn stop_generator(&self) -> anyhow::Result<()> {
        if let Some(generator) = self.view.generator.clone() {
            tokio::task::spawn_blocking(move || generator.stop()).await?;
        }
        Ok(())
    }

    /// The ordered stop: sources first, then what is on its way, then the stores.
    ///
    /// # Errors
    /// When something was still on its way at the deadline; it is read again at the next start.
    pub async fn stop(self) -> anyhow::Result<()> {
        let deadline = Duration::from_secs(self.view.config.node.drain_deadline_s);
        self.stop_generator().await?;
        // What it sends counts as on its way, and it would go on; the next start does.
        self.view.registry.stop("replayer").await;
        self.view.registry.stop("file_upload").await;
        let drained = match &self.view.ingest {
            Some(ingest) => self.drain(ingest.clone(), deadline).await,
            None => Ok(()),
        };
        if let Some(ingest) = self.view.ingest.clone() {
            tokio::task::spawn_blocking(move || ingest.stop()).await?;
        }
        for server in &self.servers {
            server.abort();
        }
        // In the order of the flow, so that nobody sends to one that is gone.
        for actor in [
            "generator",
            "kafka_ingest",
            "transform_deployer",
            "batch_accumulator",
            "python_worker_supervisor",
            "worker_semaphore",
            "redis_queue",
            "plain_writes",
            "redis_queue_server",
            "duckdb_writer",
        ] {
            self.view.registry.stop(actor).await;
        }
        if let Some(writer) = self.writer.clone() {
            tokio::task::spawn_blocking(move || writer.stop()).await?;
        }
        drained
    }

    /// No more polling; every batch that is on its way to be acknowledged. The pool of credit
    /// tells: whatever is on its way holds a share of it.
    async fn drain(&self, ingest: Arc<PollThread>, deadline: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + deadline;
        let (done, quiet) = crossbeam_channel::bounded(1);
        ingest.tell(Command::Quiesce(done));
        tokio::task::spawn_blocking(move || quiet.recv_timeout(deadline)).await??;
        loop {
            // Without an answer it is between two lives, and holds nothing back.
            let _ = self.accumulator.ask(Drain).await;
            let _ = self.supervisor.ask(Drain).await;
            let out = self.total_credit - self.credit.available_permits();
            if out == 0 {
                return Ok(());
            }
            if Instant::now() > until {
                bail!(
                    "{out} KiB of events were still on their way after {deadline:?}; they are read again at the next start"
                );
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
