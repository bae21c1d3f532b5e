//! PythonWorkerSupervisor: events into feature rows, by the users' scripts.
//!
//! Takes [`EventBatch`]es from the BatchAccumulator, gives [`FeatureBatch`](crate::messages::FeatureBatch)es to the
//! RedisQueue. Decodes, runs the stream's script in worker processes under permits of the
//! WorkerSemaphore, puts the effects together. Promises:
//!
//! * every event of a batch is in its result: kept, dead with a reason, or filtered;
//! * a script can crash, hang or lie: the rows at fault become dead letters, the others land;
//! * a script version that fails where the one before it does not, or on more than a fifth of the
//!   rows, is at fault itself: it is rolled back, or its stream waits, visibly, and nothing is dead
//!   for it;
//! * a batch that is pinned to a script version runs under exactly that one; the others run under the
//!   version that is current when a worker takes them;
//! * workers are started on demand and none lives when idle;
//! * workers outlive this actor: the next instance adopts them from the [`WorkerSlot`];
//! * batches of one stream may overlap in Python; the RedisQueue puts their effects in order;
//! * a batch without records needs no worker.
//!
//! | file | holds |
//! |---|---|
//! | `lanes` | which batch waits where, and when workers come and go |
//! | `aging` | when a worker's process is replaced |
//! | `slot` | the workers, which outlive the actor |
//! | `job` | one batch through one worker |
//! | `runner` | one worker under one permit |
//! | `isolation` | how a batch gets through a worker whatever its script does |
//! | `verdict` | whose fault a failure is: the data's or the code's |
//! | `board` | which version every stream runs |
//! | `hiring` | how a lane gets a worker |
//! | `versions` | what becomes of batches when a version changes, or is at fault |
//! | `canary` | trying a version before it takes over |
//! | `diff` | what one version makes of a batch, held against another |
//! | `rehearsal` | a script over records without a node |
//! | `assemble` | the script's rows and the decoder's dead letters as the effect of each part |
//! | `scripts` | the texts of versions that batches are pinned to |
//! | `trust` | which versions are suspected as a whole |
//! | `strikes` | when a source is halted because of a defect of ours |

mod aging;
mod assemble;
mod board;
mod canary;
mod diff;
mod hiring;
mod isolation;
mod job;
mod lanes;
mod queue;
mod rehearsal;
mod runner;
mod scripts;
mod slot;
mod status;
mod strikes;
mod trust;
mod verdict;
mod versions;

pub use aging::resident_bytes;
pub use board::{Current, ScriptBoard};
pub use canary::{Passed, Refusal, TrialReport, Trials};
pub use diff::{Change, Difference, Example};
pub use rehearsal::{Rehearsal, RehearsalError, RehearsalParts};
pub use scripts::ScriptShelf;
pub use slot::{Canary, News, RollBack, WorkerSlot};
pub use status::{PythonStatus, ScriptEventStatus, ScriptStatus, WorkerStatus};

use crate::{
    actors::{KafkaIngest, RedisQueue, WorkerSemaphore, kafka_ingest::StreamHolds},
    config::Config,
    decode::Decoder,
    messages::{Drain, EventBatch},
    python::{ForkServer, WorkerSpec},
    supervision::{Link, Undelivered},
    telemetry::{StageMeter, catalogue as m},
};
use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, WrapFuture};
use lanes::Lane;
use slot::LaneKey;
use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

const METER: StageMeter = StageMeter::new("python_worker_supervisor");

/// See the module.
pub struct PythonWorkerSupervisor {
    config: Arc<Config>,
    spec: WorkerSpec,
    parts: PythonParts,
    decoders: Vec<Decoder>,
    /// Batches by the version that they must run under.
    lanes: BTreeMap<LaneKey, Lane>,
    /// Versions that the store does not know: what is pinned to them runs under the current one.
    lost_versions: HashSet<Arc<str>>,
    last_want: u64,
}

/// What a worker needs besides the configuration.
#[derive(Clone)]
pub struct PythonParts {
    /// Grants permits.
    pub semaphore: Link<WorkerSemaphore>,
    /// The workers, which outlive the actor.
    pub workers: Arc<WorkerSlot>,
    /// The texts of all versions.
    pub scripts: Arc<ScriptShelf>,
    /// Where results go.
    pub next: Link<RedisQueue>,
    /// Who halts a source that cannot be processed.
    pub ingest: Link<KafkaIngest>,
    /// Streams whose batches pile up here.
    pub holds: Arc<StreamHolds>,
    /// For the status page.
    pub status: Arc<PythonStatus>,
    /// The binary that is started as a worker.
    pub program: PathBuf,
    /// `site-packages` of the scripts' environment.
    pub site_dirs: Vec<PathBuf>,
    /// Of which workers are forks; the node has one.
    pub fork_server: Arc<ForkServer>,
}

impl PythonParts {
    /// How a worker is started.
    #[must_use]
    pub fn worker_spec(&self, config: &Config) -> WorkerSpec {
        WorkerSpec {
            worker_id: String::new(),
            program: self.program.clone(),
            site_dirs: self.site_dirs.clone(),
            lease: Duration::from_secs_f64(config.python.lease_s),
            memory_limit: config.python.memory_limit(),
            fork_server: Some(self.fork_server.clone()),
        }
    }
}

impl PythonWorkerSupervisor {
    /// An instance that adopts the workers in the slot.
    #[must_use]
    pub fn new(config: Arc<Config>, parts: PythonParts) -> Self {
        let spec = parts.worker_spec(&config);
        let decoders = config.streams.iter().map(|s| Decoder::new(Arc::new(s.clone()))).collect();
        Self {
            config,
            spec,
            parts,
            decoders,
            lanes: BTreeMap::new(),
            lost_versions: HashSet::new(),
            last_want: 0,
        }
    }

    /// Looks at what becomes of workers, as long as this instance lives.
    fn listen(&mut self, ctx: &mut Context<Self>) {
        let workers = self.parts.workers.clone();
        let noticed = async move { workers.noticed().await };
        ctx.spawn(noticed.into_actor(self).map(|(), actor, ctx| {
            actor.look(ctx);
            actor.listen(ctx);
        }));
    }
}

impl Actor for PythonWorkerSupervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let idle_check =
            Duration::from_secs_f64((self.config.python.idle_stop_s / 10.0).clamp(0.05, 1.0));
        ctx.run_interval(idle_check, Self::stop_idle);
        self.parts.workers.keep_beating(self.spec.lease / 10);
        // An alarm needs the series before there is a reason for it.
        for stream in &self.config.streams {
            let suspected = self.parts.status.suspected(&stream.name).is_some();
            metrics::gauge!(m::SCRIPT_SUSPECTED, "stream" => stream.name.clone())
                .set(f64::from(u8::from(suspected)));
            for result in
                ["deployed", "refused", "rolled_back", "paused", "resumed", "reconfigured"]
            {
                metrics::counter!(m::SCRIPT_SWAPS, "script" => stream.transform.clone(), "result" => result)
                    .increment(0);
            }
            let paused = metrics::gauge!(m::SCRIPT_PAUSED, "stream" => stream.name.clone());
            paused.increment(0.0);
        }
        // Nothing waits in a new instance.
        self.show_depth();
        // What happened while no instance lived.
        self.look(ctx);
        self.listen(ctx);
    }
}

impl Handler<Drain> for PythonWorkerSupervisor {
    type Result = ();

    /// The node stops: batches that nobody can run now are read again after its next start.
    fn handle(&mut self, _: Drain, _: &mut Self::Context) {
        self.drop_held();
    }
}

impl Handler<EventBatch> for PythonWorkerSupervisor {
    type Result = ();

    fn handle(&mut self, batch: EventBatch, ctx: &mut Self::Context) {
        METER.received(batch.rows());
        let Some(stream) = self.config.streams.get(batch.stream) else { return };
        if batch.rows() == 0 {
            // Its tickets report when it does not arrive, and its sources are read again.
            if let Err(Undelivered(_)) =
                self.parts.next.deliver(assemble::no_features(stream, batch))
            {
                METER.error("abandoned");
            }
            return;
        }
        let key = self.lane_of(&batch);
        self.lanes.entry(key.clone()).or_default().queue.push_back(batch.urgency(), batch);
        self.dispatch(&key, ctx);
    }
}
