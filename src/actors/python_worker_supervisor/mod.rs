//! PythonWorkerSupervisor: events into feature rows, by the users' scripts.
//!
//! Takes [`EventBatch`]es from the BatchAccumulator, gives [`FeatureBatch`](crate::messages::FeatureBatch)es to the
//! RedisQueue. Decodes, runs the stream's script in worker processes under permits of the
//! WorkerSemaphore, puts the effects together. Promises:
//!
//! * every event of a batch is in its result: kept, dead with a reason, or filtered;
//! * a script can crash, hang or lie: the rows at fault become dead letters, the others land;
//! * workers are started on demand and none lives when idle;
//! * batches of one stream may overlap in Python; the RedisQueue puts their effects in order.

mod assemble;
mod runner;
mod status;

pub use status::{PythonStatus, WorkerStatus};

use crate::{
    actors::{RedisQueue, WorkerSemaphore, worker_semaphore::SemaphoreSlot},
    config::Config,
    decode::Decoder,
    messages::{AcquirePermit, EventBatch, Permit},
    python::{Heartbeat, Script, WorkerError, WorkerSpec},
    supervision::{Link, Undelivered},
    telemetry::{self, StageMeter, catalogue as m},
};
use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, SpawnHandle, WrapFuture};
use runner::{Recipe, Worker};
use status::{label_of, lock};
use std::{
    collections::{HashMap, VecDeque},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

const METER: StageMeter = StageMeter::new("python_worker_supervisor");

/// A script that cannot be loaded is tried again after so long; its file may have been mended.
const LOAD_RETRY: Duration = Duration::from_secs(1);

/// Batches that may wait for a busy worker before a further one is asked for.
const PILE: usize = 2;

/// How soon a permit is asked for again when the WorkerSemaphore died with the question.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// While another stream waits for a permit, how long a worker keeps its own.
const TURN: Duration = Duration::from_secs(1);

/// A worker without a batch.
struct Idle {
    number: u64,
    worker: Worker,
    since: Instant,
    hired_at: Instant,
}

/// One stream's scripts, batches and workers.
struct Lane {
    decoder: Decoder,
    queue: VecDeque<EventBatch>,
    idle: Vec<Idle>,
    /// Questions for a worker that are not answered yet, oldest first.
    wants: Vec<SpawnHandle>,
    busy: usize,
    retry_at: Option<Instant>,
}

impl Lane {
    /// Workers that live.
    fn live(&self) -> usize {
        self.idle.len() + self.busy
    }

    /// Whether it has, or may soon have, something to run.
    fn is_active(&self) -> bool {
        self.live() > 0 || !self.queue.is_empty()
    }

    /// Whether it waits for its first worker.
    fn is_starving(&self) -> bool {
        self.live() == 0 && !self.queue.is_empty() && !self.wants.is_empty()
    }
}

/// See the module.
pub struct PythonWorkerSupervisor {
    config: Arc<Config>,
    spec: WorkerSpec,
    semaphore: Link<WorkerSemaphore>,
    slot: SemaphoreSlot,
    next: Link<RedisQueue>,
    status: Arc<PythonStatus>,
    lanes: Vec<Lane>,
    heartbeats: HashMap<u64, (Arc<str>, Heartbeat)>,
    last_number: u64,
}

/// What a worker needs besides the configuration.
#[derive(Debug, Clone)]
pub struct PythonParts {
    /// Grants permits.
    pub semaphore: Link<WorkerSemaphore>,
    /// Tells when leases were renewed.
    pub slot: SemaphoreSlot,
    /// Where results go.
    pub next: Link<RedisQueue>,
    /// For the status page.
    pub status: Arc<PythonStatus>,
    /// The binary that is started as a worker.
    pub program: PathBuf,
    /// `site-packages` of the scripts' environment.
    pub site_dirs: Vec<PathBuf>,
}

impl PythonWorkerSupervisor {
    /// An instance without workers.
    #[must_use]
    pub fn new(config: Arc<Config>, parts: PythonParts) -> Self {
        let PythonParts { semaphore, slot, next, status, program, site_dirs } = parts;
        let lanes = config
            .streams
            .iter()
            .map(|stream| Lane {
                decoder: Decoder::new(Arc::new(stream.clone())),
                queue: VecDeque::new(),
                idle: Vec::new(),
                wants: Vec::new(),
                busy: 0,
                retry_at: None,
            })
            .collect();
        let spec = WorkerSpec {
            worker_id: String::new(),
            program,
            site_dirs,
            script_dirs: vec![config.python.transforms_dir.clone()],
            lease: Duration::from_secs_f64(config.python.lease_s),
        };
        lock(&status.workers).clear();
        Self {
            config,
            spec,
            semaphore,
            slot,
            next,
            status,
            lanes,
            heartbeats: HashMap::new(),
            last_number: 0,
        }
    }

    /// Gives waiting batches to idle workers and asks for workers where there are too few.
    fn dispatch(&mut self, stream: usize, ctx: &mut Context<Self>) {
        loop {
            let lane = &mut self.lanes[stream];
            let Some(batch) = lane.queue.pop_front() else { break };
            // The one that worked last: the others grow old and stop.
            let Some(idle) = lane.idle.pop() else {
                lane.queue.push_front(batch);
                break;
            };
            lane.busy += 1;
            self.run(stream, idle, batch, ctx);
        }
        let lane = &mut self.lanes[stream];
        if lane.queue.is_empty() {
            // The others were faster: the questions are taken back.
            for want in lane.wants.drain(..) {
                ctx.cancel_future(want);
            }
        }
        let waits = lane.retry_at.is_some_and(|at| at > Instant::now());
        let most = self.config.python.max_workers as usize;
        // The first worker at once; a further one, which costs a start, when batches pile up.
        let enough = if lane.live() == 0 { 0 } else { PILE };
        let wanted = lane.wants.len();
        if lane.queue.len() > enough + wanted && wanted + lane.live() < most && !waits {
            self.want(stream, ctx);
        }
        METER.queue_depth(self.lanes.iter().map(|l| l.queue.len()).sum());
    }

    /// Asks for one more worker of a stream.
    fn want(&mut self, stream: usize, ctx: &mut Context<Self>) {
        self.free_an_idle_worker_of_others(stream, ctx);
        let (reply, permit) = tokio::sync::oneshot::channel();
        if let Err(Undelivered(_)) = self.semaphore.deliver(AcquirePermit { reply }) {
            tracing::debug!("the semaphore is between two lives; asking again");
        }
        let want = ctx.spawn(permit.into_actor(self).map(move |permit, actor, ctx| {
            // Questions are answered in their order: this was the oldest.
            if !actor.lanes[stream].wants.is_empty() {
                actor.lanes[stream].wants.remove(0);
            }
            match permit {
                Ok(permit) => actor.hire(stream, permit, ctx),
                // The semaphore died with the question in its hands.
                Err(_) => {
                    ctx.run_later(ASK_AGAIN, move |actor, ctx| actor.dispatch(stream, ctx));
                }
            }
        }));
        self.lanes[stream].wants.push(want);
    }

    /// At the cap, an idle worker of another stream makes room: for a stream that has none at
    /// once, for a further one only when it has been idle for a turn.
    fn free_an_idle_worker_of_others(&mut self, stream: usize, ctx: &mut Context<Self>) {
        let live: usize = self.lanes.iter().map(Lane::live).sum();
        if live < self.config.python.max_workers as usize {
            return;
        }
        let after = if self.lanes[stream].live() == 0 { Duration::ZERO } else { TURN };
        let other = (0..self.lanes.len())
            .filter(|i| *i != stream && self.lanes[*i].queue.is_empty())
            .find(|i| self.lanes[*i].idle.iter().any(|idle| idle.since.elapsed() >= after));
        if let Some(lane) = other {
            // The first is the one that has been idle longest.
            let idle = self.lanes[lane].idle.remove(0);
            self.dismiss(idle, ctx);
        }
    }

    /// A permit came: reads the script as it is now and makes a worker, which starts with its
    /// first batch.
    fn hire(&mut self, stream: usize, permit: Permit, ctx: &mut Context<Self>) {
        let config = &self.config.streams[stream];
        if self.lanes[stream].queue.is_empty() {
            // The others were faster; the permit goes back.
            return;
        }
        let path = self.config.python.transforms_dir.join(format!("{}.py", config.transform));
        let script = match Script::read(&path) {
            Ok(script) => Arc::new(script),
            Err(error) => {
                let why = format!("{}: {error}", path.display());
                return self.script_broken(stream, &why, ctx);
            }
        };
        metrics::gauge!(m::SCRIPT_INFO, "script" => script.name.clone(), "version" => script.sha256[..12].to_owned())
            .set(1.0);
        self.last_number += 1;
        let number = self.last_number;
        let spec =
            WorkerSpec { worker_id: format!("{}-{number}", config.name), ..self.spec.clone() };
        let recipe = Recipe {
            spec,
            script: script.clone(),
            input: self.lanes[stream].decoder.schema().clone(),
            deadline: Duration::from_secs_f64(self.config.python.batch_deadline_s),
            announce: announcer(number, permit.lease().clone(), ctx.address()),
        };
        let status = WorkerStatus {
            stream: config.name.clone(),
            script_sha256: script.sha256.clone(),
            pid: None,
            busy: false,
        };
        lock(&self.status.workers).insert(number, status);
        let worker = Worker::new(recipe, permit);
        let now = Instant::now();
        self.lanes[stream].idle.push(Idle { number, worker, since: now, hired_at: now });
        self.dispatch(stream, ctx);
    }

    /// The stream waits, visibly, until its script loads: no event is dead for the code's fault.
    fn script_broken(&mut self, stream: usize, why: &str, ctx: &mut Context<Self>) {
        let name = &self.config.streams[stream].name;
        METER.error("import");
        let known = lock(&self.status.broken).insert(name.clone(), why.to_owned());
        if known.as_deref() != Some(why) {
            tracing::error!(stream = name, why, "the script does not load; its events wait");
        }
        self.lanes[stream].retry_at = Some(Instant::now() + LOAD_RETRY);
        ctx.run_later(LOAD_RETRY, move |actor, ctx| actor.dispatch(stream, ctx));
    }

    /// Runs one batch through one worker, beside everything else.
    fn run(&mut self, stream: usize, idle: Idle, batch: EventBatch, ctx: &mut Context<Self>) {
        let Idle { number, mut worker, hired_at, .. } = idle;
        if let Some(status) = lock(&self.status.workers).get_mut(&number) {
            status.busy = true;
        }
        let decoder = self.lanes[stream].decoder.clone();
        let config = self.config.clone();
        let next = self.next.clone();
        let running = async move {
            let started = Instant::now();
            let rows = batch.rows();
            // Parsing and putting together are work for a thread; this one passes messages.
            let decoding = tokio::task::spawn_blocking(move || {
                let parts: Vec<_> = batch.parts.iter().map(|p| p.records.as_slice()).collect();
                let decoded = decoder.decode(&parts, chrono::Utc::now().timestamp_micros());
                (batch, decoded)
            });
            let (batch, decoded) = match decoding.await {
                Ok((batch, Ok(decoded))) => (batch, decoded),
                Ok((_, Err(error))) => {
                    tracing::error!(%error, "a batch could not be decoded; it is read again");
                    return (worker, None);
                }
                Err(error) => {
                    tracing::error!(%error, "decoding panicked; the batch is read again");
                    return (worker, None);
                }
            };
            crate::crash_point!("c_decoded");
            let outcome = match worker.run(&decoded.batch).await {
                Ok(outcome) => outcome,
                Err(error) => return (worker, Some((batch, error))),
            };
            crate::crash_point!("d_transformed");
            let script = worker.script();
            let assembling = tokio::task::spawn_blocking(move || {
                let stream = &config.streams[batch.stream];
                let now_us = chrono::Utc::now().timestamp_micros();
                assemble::assemble(stream, &script, batch, decoded, outcome, now_us)
            });
            match assembling.await {
                Ok(Ok(features)) => {
                    for part in &features.parts {
                        for letter in &part.dead {
                            telemetry::dead_letters(
                                letter.stage.name(),
                                label_of(&letter.reason),
                                1,
                            );
                        }
                    }
                    METER.worked(started);
                    match next.deliver(features) {
                        Ok(()) => METER.sent(rows),
                        // Its tickets report, and its sources are read again.
                        Err(Undelivered(_)) => METER.error("abandoned"),
                    }
                }
                Ok(Err(error)) => {
                    tracing::error!(%error, "a batch could not be put together; it is read again")
                }
                Err(error) => {
                    tracing::error!(%error, "putting a batch together panicked; it is read again")
                }
            }
            (worker, None)
        };
        ctx.spawn(running.into_actor(self).map(move |(worker, failed), actor, ctx| {
            actor.lanes[stream].busy -= 1;
            if let Some(status) = lock(&actor.status.workers).get_mut(&number) {
                status.busy = false;
                status.pid = worker.pid();
            }
            match failed {
                None => {
                    let name = &actor.config.streams[stream].name;
                    lock(&actor.status.broken).remove(name);
                    let worker = Idle { number, worker, since: Instant::now(), hired_at };
                    if actor.must_yield(stream, hired_at) {
                        actor.dismiss(worker, ctx);
                    } else {
                        actor.lanes[stream].idle.push(worker);
                    }
                    actor.dispatch(stream, ctx);
                }
                Some((batch, error)) => {
                    let worker = Idle { number, worker, since: Instant::now(), hired_at };
                    actor.lanes[stream].queue.push_front(batch);
                    actor.dismiss(worker, ctx);
                    let why = match &error {
                        WorkerError::Import { traceback, .. } if !traceback.is_empty() => {
                            format!("{error}\n{traceback}")
                        }
                        _ => error.to_string(),
                    };
                    actor.script_broken(stream, &why, ctx);
                }
            }
        }));
    }

    /// Whether a worker that just finished must leave its permit to a stream that has none: when
    /// its own stream has more than a fair share, or when there are fewer permits than streams
    /// and it had its turn.
    fn must_yield(&self, stream: usize, hired_at: Instant) -> bool {
        if !self.lanes.iter().any(Lane::is_starving) {
            return false;
        }
        let active = self.lanes.iter().filter(|l| l.is_active()).count();
        let fair = self.config.python.max_workers as usize / active.max(1);
        // The finished worker is counted nowhere at this moment.
        let live = self.lanes[stream].live() + 1;
        live > fair.max(1) || (fair == 0 && hired_at.elapsed() >= TURN)
    }

    /// Lets a worker go; its permit comes back when it was reaped.
    fn dismiss(&mut self, idle: Idle, ctx: &mut Context<Self>) {
        self.heartbeats.remove(&idle.number);
        lock(&self.status.workers).remove(&idle.number);
        ctx.spawn(idle.worker.stop().into_actor(self));
    }

    /// Workers without work for long enough stop; sooner when another stream wants a permit.
    fn stop_idle(&mut self, ctx: &mut Context<Self>) {
        let mut after = Duration::from_secs_f64(self.config.python.idle_stop_s);
        if self.lanes.iter().any(|l| !l.wants.is_empty() && !l.queue.is_empty()) {
            after = after.min(TURN);
        }
        for stream in 0..self.lanes.len() {
            let idle = std::mem::take(&mut self.lanes[stream].idle);
            let (old, young): (Vec<_>, Vec<_>) =
                idle.into_iter().partition(|i| i.since.elapsed() >= after);
            self.lanes[stream].idle = young;
            for idle in old {
                self.dismiss(idle, ctx);
            }
        }
    }

    /// Passes renewals of leases on to the workers; one that hears none for long leaves.
    fn beat(&mut self) {
        self.heartbeats.retain(|_, (lease, heartbeat)| {
            self.slot.held.renewed_at(lease).is_none_or(|at| heartbeat.beat(at))
        });
    }
}

/// A worker's process runs: its lease's renewals are to be passed on.
#[derive(actix::Message)]
#[rtype(result = "()")]
struct WorkerStarted {
    number: u64,
    pid: u32,
    lease: Arc<str>,
    heartbeat: Heartbeat,
}

fn announcer(
    number: u64,
    lease: Arc<str>,
    supervisor: actix::Addr<PythonWorkerSupervisor>,
) -> runner::Announce {
    Arc::new(move |pid, heartbeat| {
        let started = WorkerStarted { number, pid, lease: lease.clone(), heartbeat };
        if supervisor.try_send(started).is_err() {
            tracing::debug!(pid, "the supervisor is gone; so will be its worker");
        }
    })
}

impl Actor for PythonWorkerSupervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let idle_check =
            Duration::from_secs_f64((self.config.python.idle_stop_s / 10.0).clamp(0.05, 1.0));
        ctx.run_interval(idle_check, Self::stop_idle);
        ctx.run_interval(self.spec.lease / 10, |actor, _| actor.beat());
    }
}

impl Handler<WorkerStarted> for PythonWorkerSupervisor {
    type Result = ();

    fn handle(&mut self, started: WorkerStarted, _: &mut Self::Context) {
        if let Some(status) = lock(&self.status.workers).get_mut(&started.number) {
            status.pid = Some(started.pid);
            self.heartbeats.insert(started.number, (started.lease, started.heartbeat));
        }
    }
}

impl Handler<EventBatch> for PythonWorkerSupervisor {
    type Result = ();

    fn handle(&mut self, batch: EventBatch, ctx: &mut Self::Context) {
        METER.received(batch.rows());
        let stream = batch.stream;
        let Some(lane) = self.lanes.get_mut(stream) else { return };
        lane.queue.push_back(batch);
        self.dispatch(stream, ctx);
    }
}
