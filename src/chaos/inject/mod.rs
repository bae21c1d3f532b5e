//! Faults, done. Each is a job on the lane of the part that it hurts, and is over when that part is
//! whole again; only then does the next one for this part begin.

mod actors;
mod queue;
mod scripts;
mod uploads;

pub use actors::{Recovery, end_actor};

use super::{
    disk::{FailingDisk, FlushFault},
    fault::find,
    lane::Lane,
    plan::Planned,
    processes::{Frozen, fork_servers_of, signal, workers_of},
    proxy::Proxy,
    rig::{Broker, NodeSlot, Redis, Rig},
};
use crate::supervision::Registry;
use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use std::{
    sync::{Arc, mpsc::Sender},
    time::{Duration, Instant},
};

/// What became of a fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "outcome", content = "detail")]
pub enum Outcome {
    /// It was done, and is over.
    Done,
    /// There was nothing to hurt just then.
    Nothing(String),
    /// It could not be done, or not be undone.
    Failed(String),
    /// It was done, and showed at once that a promise does not hold.
    Broken(String),
}

/// One fault that is over.
#[derive(Debug, Clone)]
pub struct Record {
    /// What was planned.
    pub planned: Planned,
    /// When it began, in milliseconds since the first could come.
    pub began_ms: u64,
    /// What became of it.
    pub outcome: Outcome,
    /// The actor that it ended, and how soon its next instance lived.
    pub recovery: Option<Recovery>,
}

/// Does faults.
pub struct Injector {
    rig: Arc<Rig>,
    /// Supervises the generator, which lives in this process.
    registry: Registry,
    records: Sender<Record>,
    since: Instant,
    /// Actors of the store by name.
    of_store: Vec<String>,
}

/// Why a fault was not done.
enum Trouble {
    Nothing(String),
    Failed(anyhow::Error),
    Broken(String),
}

impl<E: Into<anyhow::Error>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

type Done = Result<Option<Recovery>, Trouble>;

fn nothing(why: impl Into<String>) -> Done {
    Err(Trouble::Nothing(why.into()))
}

/// One that can be told on another thread.
#[derive(Clone)]
struct Telling {
    planned: Planned,
    records: Sender<Record>,
    since: Instant,
}

impl Telling {
    /// Does it and tells.
    fn run(self, work: impl FnOnce(&Planned) -> Done) {
        let began_ms = self.since.elapsed().as_millis() as u64;
        tracing::info!(
            kind = self.planned.kind,
            actor = self.planned.actor,
            for_ms = self.planned.for_ms,
            "fault"
        );
        let (outcome, recovery) = match work(&self.planned) {
            Ok(recovery) => (Outcome::Done, recovery),
            Err(Trouble::Nothing(why)) => (Outcome::Nothing(why), None),
            Err(Trouble::Failed(error)) => (Outcome::Failed(format!("{error:#}")), None),
            Err(Trouble::Broken(what)) => (Outcome::Broken(what), None),
        };
        // The receiver lives as long as faults are done.
        let _ = self.records.send(Record { planned: self.planned, began_ms, outcome, recovery });
    }
}

impl Injector {
    /// One for a rig that runs.
    #[must_use]
    pub fn new(
        rig: Arc<Rig>,
        registry: Registry,
        records: Sender<Record>,
        of_store: Vec<String>,
    ) -> Self {
        Self { rig, registry, records, since: Instant::now(), of_store }
    }

    /// Begins a fault, or has it wait until its part is whole.
    ///
    /// # Errors
    /// When a lane's thread is gone.
    pub fn begin(&self, planned: Planned) -> anyhow::Result<()> {
        let kind = find(&planned.kind).with_context(|| format!("no kind `{}`", planned.kind))?;
        let rig = &self.rig;
        let process = &rig.process[planned.pick as usize % rig.process.len()];
        let telling = Telling { planned, records: self.records.clone(), since: self.since };
        match kind.name {
            "actor-kill" | "actor-panic" | "actor-error" => self.actor(telling, process),
            "worker-kill" | "worker-stop" => on(process, telling, worker),
            "process-kill" | "process-stop" | "process-zombie" => on(process, telling, node),
            "forkserver-kill" => on(process, telling, fork_server),
            "store-kill" | "store-stop" => on(&rig.store, telling, node),
            "redis-kill" | "redis-empty" | "redis-flush" | "redis-stop" | "redis-slow" => {
                on(&rig.redis, telling, redis)
            }
            "redis-latency" | "redis-cut" | "redis-reset" | "redis-slice" => {
                on(&rig.redis, telling, |redis, planned| weather(&redis.proxy, planned))
            }
            "kafka-latency" | "kafka-cut" | "kafka-reset" | "kafka-slice" => {
                on(&rig.broker, telling, |broker, planned| weather(broker.proxy()?, planned))
            }
            "broker-kill" | "broker-stop" | "leader-moves" | "broker-refuses" => {
                on(&rig.broker, telling, broker)
            }
            "disk-full" | "disk-error" => {
                let rig = rig.clone();
                on(&self.rig.store, telling, move |store, planned| disk(&rig, store, planned))
            }
            "clock-ahead" | "clock-behind" => {
                let nodes = rig.nodes();
                on(nodes[telling.planned.pick as usize % nodes.len()], telling, clock)
            }
            "rebalance" => on(&rig.guest, telling, guest),
            "queue-duplicate" | "queue-reorder" | "queue-lose" => {
                let rig = rig.clone();
                on(&self.rig.store, telling, move |store, planned| {
                    queue::disturb(&rig, store, planned)
                })
            }
            "script-swap" | "script-broken" | "script-rollback" => {
                let rig = rig.clone();
                on(&self.rig.scripts, telling, move |(), planned| scripts::disturb(&rig, planned))
            }
            _ => {
                let rig = rig.clone();
                on(&self.rig.uploads, telling, move |(), planned| uploads::send(&rig, planned))
            }
        }
    }

    fn actor(&self, telling: Telling, process: &Lane<NodeSlot>) -> anyhow::Result<()> {
        let actor = telling.planned.actor.clone().context("the plan names no actor")?;
        if actor == "generator" {
            let registry = self.registry.clone();
            telling.run(|planned| actors::end_own(&registry, &actor, planned));
            return Ok(());
        }
        let lane = if self.of_store.contains(&actor) { &self.rig.store } else { process };
        on(lane, telling, actors::end)
    }
}

/// Has it done on a lane.
fn on<S: 'static>(
    lane: &Lane<S>,
    telling: Telling,
    work: impl FnOnce(&mut S, &Planned) -> Done + Send + 'static,
) -> anyhow::Result<()> {
    lane.then(move |state| telling.run(|planned| work(state, planned)))
}

/// Lets the time of a fault pass.
fn last(planned: &Planned) {
    std::thread::sleep(Duration::from_millis(planned.for_ms));
}

fn worker(node: &mut NodeSlot, planned: &Planned) -> Done {
    node.keep()?;
    let workers = workers_of(node.pid().context("the node lives")?);
    if workers.is_empty() {
        return nothing(format!("no worker of {} lives", node.parts.name));
    }
    let pid = workers[planned.pick as usize % workers.len()];
    // A worker that ended just now is as good as one that was ended.
    if planned.kind == "worker-kill" {
        if signal(pid, libc::SIGKILL).is_err() {
            return nothing("the worker was gone");
        }
    } else {
        let Ok(_stopped) = Frozen::new(pid) else { return nothing("the worker was gone") };
        last(planned);
    }
    Ok(None)
}

fn fork_server(node: &mut NodeSlot, _: &Planned) -> Done {
    node.keep()?;
    let pid = node.pid().context("the node lives")?;
    match fork_servers_of(pid).first().map(|pid| signal(*pid, libc::SIGKILL)) {
        Some(Ok(())) => Ok(None),
        Some(Err(_)) => nothing("the fork server was gone"),
        None => nothing(format!("no fork server of {} lives", node.parts.name)),
    }
}

fn node(node: &mut NodeSlot, planned: &Planned) -> Done {
    node.keep()?;
    if planned.kind.ends_with("-kill") {
        node.kill()?;
        node.start()?;
    } else {
        let _stopped = Frozen::new(node.pid().context("the node lives")?)?;
        last(planned);
    }
    Ok(None)
}

fn redis(redis: &mut Redis, planned: &Planned) -> Done {
    match planned.kind.as_str() {
        "redis-kill" => redis.kill(false)?,
        "redis-empty" => redis.kill(true)?,
        "redis-flush" => ::redis::cmd("FLUSHALL").query::<()>(&mut redis.connection()?)?,
        "redis-slow" => redis.slow(Duration::from_millis(planned.for_ms))?,
        _ => {
            let _stopped = redis.freeze()?;
            last(planned);
        }
    }
    Ok(None)
}

fn broker(broker: &mut Broker, planned: &Planned) -> Done {
    match planned.kind.as_str() {
        "broker-kill" => broker.kill_and_start_again()?,
        "leader-moves" => broker.move_leaders()?,
        "broker-refuses" => broker.refuse()?,
        _ => {
            let _stopped = broker.freeze()?;
            last(planned);
        }
    }
    Ok(None)
}

/// What the network does to the connections that go through a proxy.
fn weather(proxy: &Proxy, planned: &Planned) -> Done {
    let (_, what) = planned.kind.split_once('-').context("a kind of weather")?;
    match what {
        "latency" => proxy.latency(Duration::from_millis(10 + u64::from(planned.pick % 51))),
        "cut" => proxy.cut(),
        "slice" => proxy.slice(1 + planned.pick as usize % 64, Duration::ZERO),
        "reset" => {
            proxy.reset_all();
            return Ok(None);
        }
        other => return Err(anyhow::anyhow!("no weather `{other}`").into()),
    }
    last(planned);
    proxy.mend();
    Ok(None)
}

fn disk(rig: &Rig, store: &mut NodeSlot, planned: &Planned) -> Done {
    store.keep()?;
    let pid = store.pid().context("the store lives")?;
    if planned.kind == "disk-full" {
        let disk = rig.disk.as_ref().context("no disk of its own")?;
        disk.fill()?;
        last(planned);
        disk.free()?;
    } else {
        let failing =
            FailingDisk::attach(pid, FlushFault::Error("EIO")).map_err(anyhow::Error::msg)?;
        last(planned);
        drop(failing);
    }
    // A store that cannot open its file again ends; whoever runs it starts it again.
    store.keep()?;
    Ok(None)
}

fn clock(node: &mut NodeSlot, planned: &Planned) -> Done {
    node.keep()?;
    let clock = node.parts.clock.as_ref().context("it has no clock of its own")?;
    let seconds = f64::from(5 + planned.pick % 86);
    clock.set(if planned.kind == "clock-ahead" { seconds } else { -seconds })?;
    last(planned);
    clock.right()?;
    Ok(None)
}

fn guest(node: &mut NodeSlot, planned: &Planned) -> Done {
    node.start()?;
    last(planned);
    if !node.look() {
        return Err(anyhow::anyhow!("the guest ended by itself").into());
    }
    node.stop()?;
    Ok(None)
}

/// The kinds of a node's own actors, as its interface calls them.
pub(super) fn way_of_ending(kind: &str) -> anyhow::Result<&'static str> {
    match kind {
        "actor-kill" => Ok("kill"),
        "actor-panic" => Ok("panic"),
        "actor-error" => Ok("error"),
        other => bail!("`{other}` ends no actor"),
    }
}
