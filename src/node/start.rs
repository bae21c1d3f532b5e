//! Starting a node: what it embeds, then the stages against the flow, so that each finds the next.

use super::{Node, NodeView, Role, gauges, python_env};
use crate::{
    actors::{
        BatchAccumulator, DuckDbWriter, FileUpload, Generator, KafkaIngest, PlainWrites,
        PythonWorkerSupervisor, RedisQueue, RedisQueueServer, Replayer, TransformDeployer,
        WorkerSemaphore,
        duckdb_writer::{WriterThread, WriterThreadParts},
        feeder::FeederParts,
        file_upload::{FileUploadParts, UploadDesk, UploadEndpoint},
        generator::{EmbeddedGate, GeneratorParts, GeneratorTasks},
        kafka_ingest::{PollThread, PollThreadParts, StreamHolds},
        python_worker_supervisor::{PythonParts, PythonStatus, ScriptShelf, WorkerSlot},
        redis_queue::{self, QueueParts},
        replayer::{ReplayDesk, ReplayerParts},
        transform_deployer::{DeployDesk, DeployParts},
        worker_semaphore::SemaphoreSlot,
    },
    config::{self, Config},
    embedded::{EmbeddedKafka, EmbeddedRedis},
    kafka::{self, AcknowledgedPositions},
    online::marks,
    online::read::OnlineReader,
    python::ForkServer,
    queue::{self, Keys, ReadingSlot, RedisLink},
    service,
    spool::{self, SharedSpool},
    store::database::DatabaseOptions,
    supervision::{FatalSender, Link, Registry, RestartPolicy},
    telemetry,
};
use anyhow::{Context, bail};
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::{Semaphore, mpsc};
use uuid::Uuid;

/// How a node is started.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// The roles of this process.
    pub roles: BTreeSet<Role>,
    /// The generator keeps every id, for a verdict at the end.
    pub keep_ids: bool,
    /// The generator makes nothing until [`Node::release_generator`].
    pub hold_generator: bool,
    /// The binary that is started as a Python worker; `None`: this one.
    pub worker_program: Option<PathBuf>,
}

impl NodeOptions {
    /// These roles.
    #[must_use]
    pub fn new(roles: impl IntoIterator<Item = Role>) -> Self {
        Self {
            roles: roles.into_iter().collect(),
            keep_ids: false,
            hold_generator: false,
            worker_program: None,
        }
    }
}

/// What the actors of all roles share.
struct Shared {
    config: Arc<Config>,
    redis: Option<RedisLink>,
    registry: Registry,
    fatal: FatalSender,
    acknowledged: Arc<AcknowledgedPositions>,
    credit: Arc<Semaphore>,
    total_credit: usize,
    desk: Option<Arc<ReplayDesk>>,
    upload: Link<FileUpload>,
    uploads: Option<Arc<UploadDesk>>,
    scripts: Option<Arc<DeployDesk>>,
    generation: Arc<Mutex<String>>,
}

impl Shared {
    fn redis(&self) -> anyhow::Result<&RedisLink> {
        self.redis.as_ref().context("`redis.url` is not set")
    }
}

pub(super) async fn start(mut config: Config, options: NodeOptions) -> anyhow::Result<Node> {
    if config.node.metrics {
        telemetry::install()?;
    }
    telemetry::traces::start(&config.telemetry, &config.node_name())?;
    let started_at = Instant::now();
    let roles = options.roles.clone();
    if roles.is_empty() {
        bail!("a node needs at least one role");
    }
    // First of all: a taken address is the likeliest reason not to start.
    let http = service::bind("HTTP", config.node.http, "--http").await?;
    let grpc = service::bind("gRPC", config.node.grpc, "--grpc").await?;
    std::fs::create_dir_all(&config.node.data_dir).with_context(|| {
        format!("cannot make the data folder {}", config.node.data_dir.display())
    })?;
    let embedded_redis = embed_redis(&mut config, &roles)?;
    let embedded_kafka = embed_kafka(&mut config, &roles)?;
    let config = Arc::new(config);
    let keys = Keys::new(&config.node.namespace);
    // A generator of its own needs none.
    let redis = match config.redis.url.as_str() {
        "" => None,
        url => Some(RedisLink::new(url).context("`redis.url`")?),
    };
    if let Some(redis) = &redis {
        queue::wait_loaded(redis)
            .await
            .with_context(|| format!("Redis at {} cannot be reached", config.redis.url))?;
    }
    if embedded_kafka.is_none()
        && config.kafka.create_topics
        && !(roles.len() == 1 && roles.contains(&Role::Store))
    {
        let created = kafka::create_missing_topics(&config).await?;
        if !created.is_empty() {
            tracing::info!(topics = created.join(", "), "topics created");
        }
    }

    let (fatal, fatal_reports) = FatalSender::channel();
    let total_credit = (config.kafka.max_inflight_bytes >> 10).max(1);
    let upload = Link::default();
    let shared = Shared {
        registry: Registry::new(fatal.clone()),
        fatal,
        acknowledged: Arc::default(),
        credit: Arc::new(Semaphore::new(total_credit)),
        generation: Arc::default(),
        total_credit,
        desk: match &redis {
            Some(redis) if roles.contains(&Role::Process) => {
                Some(Arc::new(ReplayDesk::new(config.clone(), redis.clone())))
            }
            _ => None,
        },
        uploads: match &redis {
            Some(redis) if roles.contains(&Role::Process) => Some(Arc::new(UploadDesk::new(
                config.clone(),
                redis.clone(),
                upload.clone(),
                program(&options)?,
            )?)),
            _ => None,
        },
        upload,
        scripts: roles.contains(&Role::Process).then(|| Arc::new(DeployDesk::new(config.clone()))),
        config: config.clone(),
        redis: redis.clone(),
    };
    let writer =
        if roles.contains(&Role::Store) { Some(start_store(&shared, &keys).await?) } else { None };
    if let Some(redis) = &redis {
        // After the store has looked at Redis: it may have set a new one, and it has put off permits
        // when Redis was started since.
        if embedded_redis.is_some() {
            queue::permits_at_once(redis, &keys).await?;
        }
        // A store that comes up later is waited for by whoever needs it.
        let known = queue::generation(redis, &keys).await?.unwrap_or_default();
        *shared.generation.lock().unwrap_or_else(PoisonError::into_inner) = known;
    }
    let (accumulator, supervisor) = (Link::default(), Link::default());
    let python = Arc::new(PythonStatus::default());
    let ephemeral = embedded_kafka.as_ref().map(|k| k.cluster_id().to_owned());
    let ingest = if roles.contains(&Role::Process) {
        let links = (accumulator.clone(), supervisor.clone());
        Some(start_process(&shared, &options, links, python.clone(), ephemeral)?)
    } else {
        None
    };
    let generator = if roles.contains(&Role::Generate) {
        let takes_files = roles.contains(&Role::Process);
        let own_grpc = takes_files.then(|| grpc.local_addr()).transpose()?;
        Some(start_generator(&shared, &options, embedded_kafka.is_some(), own_grpc)?)
    } else {
        None
    };

    let online = redis.clone().map(|redis| Arc::new(OnlineReader::new(redis, keys.clone())));
    let view = NodeView {
        keys,
        online,
        config: config.clone(),
        roles,
        redis,
        registry: shared.registry.clone(),
        ingest,
        replays: shared.desk.clone(),
        scripts: shared.scripts.clone(),
        python,
        generator,
        acknowledged: shared.acknowledged.clone(),
        embedded_broker: embedded_kafka.is_some(),
        started_at,
    };
    let (http_address, grpc_address) = (http.local_addr()?, grpc.local_addr()?);
    let http_server = service::http(view.clone(), http);
    let grpc_server =
        service::grpc(view.clone(), UploadEndpoint(shared.uploads.clone()), grpc).await?;
    let upkeep = tokio::task::spawn_local(gauges::keep(view.clone()));
    Ok(Node {
        view,
        http: http_address,
        grpc: grpc_address,
        fatal: fatal_reports,
        accumulator,
        supervisor,
        credit: shared.credit,
        total_credit,
        writer,
        servers: vec![http_server, grpc_server, upkeep],
        _kafka: embedded_kafka,
        _redis: embedded_redis,
    })
}

fn embed_redis(
    config: &mut Config,
    roles: &BTreeSet<Role>,
) -> anyhow::Result<Option<EmbeddedRedis>> {
    if !config.redis.url.is_empty() {
        return Ok(None);
    }
    if roles.iter().all(|r| *r == Role::Generate) {
        return Ok(None);
    }
    if !(roles.contains(&Role::Process) && roles.contains(&Role::Store)) {
        bail!(
            "`redis.url` is not set: roles in several processes meet in one Redis, so all of them must name it \
             (MILLSTREAM__REDIS__URL=redis://host:6379)"
        );
    }
    let redis = EmbeddedRedis::start(&config.node.data_dir.join("redis"))?;
    config.redis.url = redis.url().to_owned();
    Ok(Some(redis))
}

fn embed_kafka(
    config: &mut Config,
    roles: &BTreeSet<Role>,
) -> anyhow::Result<Option<EmbeddedKafka>> {
    let needed = roles.contains(&Role::Process) || roles.contains(&Role::Generate);
    if !config.kafka.brokers.is_empty() || !needed {
        return Ok(None);
    }
    if !roles.contains(&Role::Process) {
        bail!(
            "`kafka.brokers` is not set: a generator of its own needs the broker that others read from"
        );
    }
    let topics = config.streams.iter().map(|s| s.topic.as_str());
    let kafka = EmbeddedKafka::start(topics, config.kafka.partitions)?;
    config.kafka.brokers = kafka.brokers();
    Ok(Some(kafka))
}

async fn start_store(shared: &Shared, keys: &Keys) -> anyhow::Result<Arc<WriterThread>> {
    let Shared { config, registry, fatal, .. } = shared;
    let redis = shared.redis()?;
    let (server, writer) = (Link::default(), Link::default());
    let thread = Arc::new(WriterThread::start(WriterThreadParts {
        database: DatabaseOptions::of(config),
        group_rows: config.store.group_rows,
        group_wait: Duration::from_millis(config.store.group_wait_ms),
        server: server.clone(),
        fatal: fatal.clone(),
    })?);
    let owner = format!("{} on {}", config.database().display(), config::hostname());
    if let Err(error) = spool::mark(&config.spool(), thread.database_id(), &owner) {
        tracing::warn!(%error, "the spool cannot be shared with nodes: rows go over the queue");
    }
    // Before any work begins here: another database behind this namespace, or data that Redis lost.
    let critical = marks::fingerprint(&config.streams);
    let mut connection = redis.manager().await?;
    let (id, last) = (thread.database_id(), thread.durable_to());
    let lease = Duration::from_secs_f64(config.python.lease_s);
    marks::look(&mut connection, keys, id, last, &critical, lease).await?;
    let adopted = thread.clone();
    registry.supervise("duckdb_writer", writer.clone(), RestartPolicy::default(), move || {
        DuckDbWriter::new(adopted.clone())
    });
    let (of, at, to) = (config.clone(), redis.clone(), writer.clone());
    let (owed, reading) = (redis_queue::Owed::default(), ReadingSlot::default());
    registry.supervise("plain_writes", Link::default(), RestartPolicy::default(), move || {
        PlainWrites::new(of.clone(), at.clone(), to.clone(), owed.clone(), reading.clone())
    });
    let (config, redis, adopted) = (config.clone(), redis.clone(), thread.clone());
    let (fatal, reading) = (fatal.clone(), ReadingSlot::default());
    registry.supervise("redis_queue_server", server, RestartPolicy::default(), move || {
        RedisQueueServer::new(
            config.clone(),
            redis.clone(),
            writer.clone(),
            adopted.clone(),
            fatal.clone(),
            reading.clone(),
        )
    });
    Ok(thread)
}

/// The spool of a `process` node, without what an earlier life of the node has left of its chunks.
fn open_spool(config: &Config) -> anyhow::Result<SharedSpool> {
    let folder = config.spool();
    SharedSpool::new(&folder, &config.node_name()).with_context(|| {
        format!("the spool {} cannot be used (`uploads.spool_dir`)", folder.display())
    })
}

fn start_process(
    shared: &Shared,
    options: &NodeOptions,
    (accumulator, supervisor): (Link<BatchAccumulator>, Link<PythonWorkerSupervisor>),
    python: Arc<PythonStatus>,
    ephemeral: Option<String>,
) -> anyhow::Result<Arc<PollThread>> {
    let Shared { config, registry, .. } = shared;
    let redis = shared.redis()?;
    let (ingest, queue, semaphore) = (Link::default(), Link::default(), Link::default());
    let replayer = Link::<Replayer>::default();
    let node_id: Arc<str> = format!("{}:{}", config.node_name(), Uuid::now_v7().simple()).into();

    let parts = QueueParts {
        redis: redis.clone(),
        node_id: node_id.clone(),
        node_name: config.node_name(),
        ingest: ingest.clone(),
        replayer: replayer.clone(),
        uploads: shared.upload.clone(),
        acknowledged: shared.acknowledged.clone(),
        durable: Arc::default(),
        generation: shared.generation.clone(),
        spool: Arc::new(open_spool(config)?),
    };
    let of = config.clone();
    registry.supervise("redis_queue", queue.clone(), RestartPolicy::default(), move || {
        RedisQueue::new(of.clone(), parts.clone())
    });

    let slot = SemaphoreSlot::default();
    let (of, at, held) = (config.clone(), redis.clone(), slot.clone());
    registry.supervise(
        "worker_semaphore",
        semaphore.clone(),
        RestartPolicy::default(),
        move || WorkerSemaphore::new(&of, at.clone(), held.clone()),
    );

    let keys = Keys::new(&config.node.namespace);
    let pool = config.kafka.max_inflight_bytes;
    let holds = Arc::new(StreamHolds::new(config.streams.len(), pool));
    let (program, site_dirs) = (program(options)?, python_env::site_dirs(&config.python)?);
    let linger = Duration::from_secs_f64(config.python.idle_stop_s);
    let parts = PythonParts {
        semaphore,
        workers: Arc::new(WorkerSlot::new(slot.held, python.clone())),
        scripts: Arc::new(ScriptShelf::new(redis.clone(), &keys)),
        next: queue.clone(),
        ingest: ingest.clone(),
        holds: holds.clone(),
        status: python,
        fork_server: Arc::new(ForkServer::new(&program, &site_dirs, linger)),
        program,
        site_dirs,
    };
    let deploy = DeployParts {
        redis: redis.clone(),
        python: parts.clone(),
        desk: shared.scripts.clone().context("only `process` nodes run scripts")?,
    };
    let of = config.clone();
    registry.supervise(
        "transform_deployer",
        Link::default(),
        RestartPolicy::default(),
        move || TransformDeployer::new(of.clone(), deploy.clone()),
    );
    let of = config.clone();
    registry.supervise(
        "python_worker_supervisor",
        supervisor.clone(),
        RestartPolicy::default(),
        move || PythonWorkerSupervisor::new(of.clone(), parts.clone()),
    );

    let of = config.clone();
    registry.supervise(
        "batch_accumulator",
        accumulator.clone(),
        RestartPolicy::default(),
        move || BatchAccumulator::new(&of, supervisor.clone()),
    );

    let feeder = FeederParts {
        config: config.clone(),
        redis: redis.clone(),
        owner: node_id.to_string(),
        queue: queue.clone(),
        accumulator: accumulator.clone(),
        credit: shared.credit.clone(),
        total_credit: shared.total_credit,
    };
    start_feeding(shared, feeder, replayer)?;

    let (wanted, to_open) = mpsc::unbounded_channel();
    let thread = PollThread::start(PollThreadParts {
        config: config.clone(),
        accumulator,
        wanted,
        acknowledged: shared.acknowledged.clone(),
        credit: shared.credit.clone(),
        holds,
        fatal: shared.fatal.clone(),
    })?;
    let to_open = Arc::new(tokio::sync::Mutex::new(to_open));
    let (of, adopted, owner) = (config.clone(), thread.clone(), node_id.to_string());
    registry.supervise("kafka_ingest", ingest, RestartPolicy::default(), move || {
        KafkaIngest::new(
            of.clone(),
            adopted.clone(),
            to_open.clone(),
            queue.clone(),
            owner.clone(),
            ephemeral.clone(),
        )
    });
    Ok(thread)
}

/// Those whose records lie at hand.
fn start_feeding(
    shared: &Shared,
    feeder: FeederParts,
    replayer: Link<Replayer>,
) -> anyhow::Result<()> {
    let desk = shared.desk.clone().context("only `process` nodes replay")?;
    let parts = ReplayerParts { feeder: feeder.clone(), desk };
    shared.registry.supervise("replayer", replayer, RestartPolicy::default(), move || {
        Replayer::new(parts.clone())
    });
    let desk = shared.uploads.clone().context("only `process` nodes take files")?;
    let parts = FileUploadParts { feeder, desk };
    let link = shared.upload.clone();
    shared.registry.supervise("file_upload", link, RestartPolicy::default(), move || {
        FileUpload::new(parts.clone())
    });
    Ok(())
}

/// The binary that is started as a Python worker, and to check files.
fn program(options: &NodeOptions) -> anyhow::Result<PathBuf> {
    match &options.worker_program {
        Some(program) => Ok(program.clone()),
        None => std::env::current_exe().context("the program's own path is unknown"),
    }
}

fn start_generator(
    shared: &Shared,
    options: &NodeOptions,
    embedded: bool,
    own_grpc: Option<SocketAddr>,
) -> anyhow::Result<Arc<GeneratorTasks>> {
    let parts = GeneratorParts {
        config: shared.config.clone(),
        gate: embedded.then(|| Arc::new(EmbeddedGate::new(shared.acknowledged.clone()))),
        keep_ids: options.keep_ids,
        count: None,
        hold: options.hold_generator,
        own_grpc,
        stop_patience: GeneratorParts::STOP_PATIENCE,
    };
    let tasks = GeneratorTasks::start(&parts)?;
    let adopted = tasks.clone();
    shared.registry.supervise("generator", Link::default(), RestartPolicy::default(), move || {
        Generator::new(adopted.clone())
    });
    Ok(tasks)
}
