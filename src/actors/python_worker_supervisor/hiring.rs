//! How a lane gets a worker: a permit, the text of its version, a process to come.

use super::{
    PythonWorkerSupervisor,
    aging::AgeLimits,
    lanes::TURN,
    runner::{Recipe, Worker},
    slot::{LaneKey, WorkerSlot},
    status::WorkerStatus,
};
use crate::{
    config::Config,
    messages::{AcquirePermit, Permit},
    python::{Script, WorkerSpec},
    supervision::Undelivered,
};
use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use arrow::datatypes::SchemaRef;
use std::{sync::Arc, time::Duration};

/// How soon a permit is asked for again when the WorkerSemaphore died with the question.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// What a permit is to be used for.
enum Found {
    Script(Arc<Script>),
    /// The pinned version's text is nowhere any more.
    Lost,
    /// The version is suspected: why.
    Suspected(String),
    /// It is not known which version is current.
    Unknown,
}

/// A worker to be made.
pub(super) struct Hire<'a> {
    /// Its stream.
    pub stream: usize,
    /// The stream's name.
    pub name: &'a str,
    /// Its number.
    pub number: u64,
    /// Its permit's lease.
    pub lease: Arc<str>,
    /// The version that it runs.
    pub script: Arc<Script>,
    /// The columns that the script gets.
    pub input: SchemaRef,
    /// Whether the version may be suspected.
    pub judged: bool,
}

/// How it is made.
pub(super) fn recipe(
    config: &Config,
    slot: &Arc<WorkerSlot>,
    spec: &WorkerSpec,
    hire: Hire<'_>,
) -> Recipe {
    let Hire { stream, name, number, lease, script, input, judged } = hire;
    // The slot holds the worker, which must not hold the slot.
    let announced = Arc::downgrade(slot);
    Recipe {
        spec: WorkerSpec { worker_id: format!("{name}-{number}"), ..spec.clone() },
        script,
        input,
        deadline: Duration::from_secs_f64(config.python.batch_deadline_s),
        load_deadline: Duration::from_secs_f64(config.python.load_deadline_s),
        announce: Arc::new(move |process, heartbeat| {
            if let Some(slot) = announced.upgrade() {
                slot.announce(number, process, lease.clone(), heartbeat);
            }
        }),
        leases: slot.leases().clone(),
        limits: AgeLimits::of(&config.python),
        trust: judged.then(|| slot.trust(stream)),
        starts: slot.starts().clone(),
    }
}

impl PythonWorkerSupervisor {
    /// Asks for one more worker of a lane.
    pub(super) fn want(&mut self, key: &LaneKey, ctx: &mut Context<Self>) {
        self.free_an_idle_worker_of_others(key);
        let (reply, permit) = tokio::sync::oneshot::channel();
        if let Err(Undelivered(_)) = self.parts.semaphore.deliver(AcquirePermit { reply }) {
            tracing::debug!("the semaphore is between two lives; asking again");
        }
        self.last_want += 1;
        let (number, key) = (self.last_want, key.clone());
        let path = self.path_of(key.stream);
        let (parts, asked) = (self.parts.clone(), key.clone());
        let hiring = async move {
            let permit = permit.await.ok()?;
            let (workers, scripts) = (&parts.workers, &parts.scripts);
            let current = workers.board.current(asked.stream);
            let found = match (&asked.pinned, current) {
                (None, None) => Found::Unknown,
                (None, Some(current)) => {
                    let (script, trust) = (current.script.clone(), workers.trust(asked.stream));
                    match trust.why(&script.sha256) {
                        None => Found::Script(script),
                        Some(_) if scripts.is_accepted(&script.sha256).await => {
                            trust.accept(&script.sha256);
                            Found::Script(script)
                        }
                        Some(why) => Found::Suspected(why),
                    }
                }
                (Some(pin), Some(current)) if current.script.sha256 == **pin => {
                    Found::Script(current.script.clone())
                }
                (Some(pin), current) => match scripts.fetch(&path, pin).await {
                    Some(mut script) => {
                        if let Some(current) = current {
                            script.params.clone_from(&current.script.params);
                        }
                        Found::Script(Arc::new(script))
                    }
                    None => Found::Lost,
                },
            };
            Some((permit, found))
        };
        let asked = key.clone();
        let want = ctx.spawn(hiring.into_actor(self).map(move |hired, actor, ctx| {
            if let Some(lane) = actor.lanes.get_mut(&key) {
                lane.wants.retain(|(n, _)| *n != number);
            }
            match hired {
                Some((permit, Found::Script(script))) => actor.hire(&key, permit, script, ctx),
                Some((_, Found::Lost)) => actor.version_lost(&key, ctx),
                Some((_, Found::Suspected(why))) => actor.script_broken(&key, &why, ctx),
                Some((_, Found::Unknown)) => {}
                // The semaphore died with the question in its hands.
                None => {
                    ctx.run_later(ASK_AGAIN, move |actor, ctx| actor.dispatch(&key, ctx));
                }
            }
        }));
        self.lanes.entry(asked).or_default().wants.push((number, want));
    }

    /// At the cap, an idle worker of another lane makes room: for a lane that has none at once, for
    /// a further one only when it has been idle for a turn.
    fn free_an_idle_worker_of_others(&mut self, key: &LaneKey) {
        let workers = &self.parts.workers;
        let live: usize = workers.crews().iter().map(|(_, size)| size).sum();
        if live < workers.leases().within_reach(self.config.python.max_workers as usize) {
            return;
        }
        let after = if workers.live(key) == 0 { Duration::ZERO } else { TURN };
        let lanes = &self.lanes;
        workers.dismiss_longest_idle(|other, idle| {
            other != key
                && lanes.get(other).is_none_or(|lane| lane.queue.is_empty())
                && idle.since.elapsed() >= after
        });
    }

    /// A permit came: makes a worker, which starts with its first batch.
    fn hire(
        &mut self,
        key: &LaneKey,
        permit: Permit,
        script: Arc<Script>,
        ctx: &mut Context<Self>,
    ) {
        if !self.lanes.contains_key(key) {
            // The others were faster; the permit goes back.
            return;
        }
        let current = self.parts.workers.board.current(key.stream);
        if key.pinned.is_none()
            && current.is_none_or(|c| {
                c.script.sha256 != script.sha256 || c.script.params != script.params
            })
        {
            // Another version took over while the permit was on its way.
            return self.dispatch(key, ctx);
        }
        let config = &self.config.streams[key.stream];
        let slot = &self.parts.workers;
        let number = slot.next_number();
        let status = WorkerStatus {
            stream: config.name.clone(),
            script_sha256: script.sha256.clone(),
            process: None,
            busy: false,
            ..WorkerStatus::default()
        };
        let hire = Hire {
            stream: key.stream,
            name: &config.name,
            number,
            lease: permit.lease().clone(),
            script,
            input: self.decoders[key.stream].schema().clone(),
            judged: key.pinned.is_none(),
        };
        let recipe = recipe(&self.config, slot, &self.spec, hire);
        slot.add(key.clone(), number, Worker::new(recipe, permit), status);
        self.dispatch(key, ctx);
    }
}
