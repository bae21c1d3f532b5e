//! Which batch waits where, and when workers come and go.
//!
//! Every stream has a lane for the current version of its script, and for each older version that
//! its batches are pinned to a lane of its own, as long as there are such batches. A lane's workers
//! run exactly its version. Lanes compete for permits as equals.

use super::{
    METER, PythonWorkerSupervisor,
    aging::AgeLimits,
    job::Job,
    runner::{Recipe, Worker},
    slot::{LaneKey, News},
    status::{WorkerStatus, lock},
};
use crate::{
    messages::{AcquirePermit, EventBatch, Permit},
    protocol::lease::Debt,
    python::{Script, WorkerSpec},
    supervision::Undelivered,
    telemetry::catalogue as m,
};
use actix::{ActorFutureExt, AsyncContext, Context, SpawnHandle, WrapFuture};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

/// A script that cannot be loaded is tried again after so long; its file may have been mended.
const LOAD_RETRY: Duration = Duration::from_secs(1);

/// Batches that may wait for a busy worker before a further one is asked for.
const PILE: usize = 2;

/// How soon a permit is asked for again when the WorkerSemaphore died with the question.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// While another lane waits for a permit, how long a worker keeps its own.
const TURN: Duration = Duration::from_secs(1);

/// The batches of one stream that run under one version. Its workers are in the slot.
#[derive(Default)]
pub(super) struct Lane {
    pub queue: VecDeque<EventBatch>,
    /// Questions for a worker that are not answered yet.
    wants: Vec<(u64, SpawnHandle)>,
    retry_at: Option<Instant>,
}

/// What a permit is to be used for.
enum Found {
    Script(Script),
    /// The pinned version's text is nowhere any more.
    Lost,
    /// The file cannot be read.
    Broken(String),
}

impl LaneKey {
    fn current(stream: usize) -> Self {
        Self { stream, pinned: None }
    }
}

impl PythonWorkerSupervisor {
    /// Where a batch waits: see [`runs_as_current`].
    pub(super) fn lane_of(&self, batch: &EventBatch) -> LaneKey {
        let current = LaneKey::current(batch.stream);
        let workers = &self.parts.workers;
        let running = workers.version(batch.stream).filter(|_| workers.live(&current) > 0);
        let as_current = runs_as_current(
            batch.pinned.as_deref(),
            |pin| self.lost_versions.contains(pin),
            running.as_deref(),
            || Script::read(&self.path_of(batch.stream)).ok().map(|script| script.sha256),
        );
        match &batch.pinned {
            Some(pin) if !as_current => LaneKey { pinned: Some(pin.clone()), ..current },
            _ => current,
        }
    }

    fn path_of(&self, stream: usize) -> PathBuf {
        let transform = &self.config.streams[stream].transform;
        self.config.python.transforms_dir.join(format!("{transform}.py"))
    }

    /// What a lane is called on the status page.
    fn name_of(&self, key: &LaneKey) -> String {
        let stream = &self.config.streams[key.stream].name;
        match &key.pinned {
            None => stream.clone(),
            Some(version) => format!("{stream}@{}", short(version)),
        }
    }

    /// Gives waiting batches to idle workers and asks for workers where there are too few.
    pub(super) fn dispatch(&mut self, key: &LaneKey, ctx: &mut Context<Self>) {
        if self.waits_for_older(key) {
            return;
        }
        while let Some(lane) = self.lanes.get_mut(key)
            && !lane.queue.is_empty()
            && let Some((shift, worker)) = self.parts.workers.take(key)
            && let Some(batch) = lane.queue.pop_front()
        {
            let job = Job {
                config: self.config.clone(),
                decoder: self.decoders[key.stream].clone(),
                scripts: self.parts.scripts.clone(),
                next: self.parts.next.clone(),
                ingest: self.parts.ingest.clone(),
                batch,
            };
            // Not the actor's own: it ends well when the actor does not.
            tokio::task::spawn_local(job.run(shift, worker));
        }
        METER.queue_depth(self.lanes.values().map(|lane| lane.queue.len()).sum());
        let Some(lane) = self.lanes.get_mut(key) else { return };
        if lane.queue.is_empty() {
            // The others were faster: the questions are taken back.
            for (_, want) in lane.wants.drain(..) {
                ctx.cancel_future(want);
            }
            self.lanes.remove(key);
            return;
        }
        let waits = lane.retry_at.is_some_and(|at| at > Instant::now());
        let most = match self.config.streams[key.stream].ordered {
            true => 1,
            false => self.config.python.max_workers as usize,
        };
        // The first worker at once; a further one, which costs a start, when batches pile up.
        let live = self.parts.workers.live(key);
        let enough = if live == 0 { 0 } else { PILE };
        let wanted = lane.wants.len();
        if lane.queue.len() > enough + wanted && wanted + live < most && !waits {
            self.want(key, ctx);
        }
    }

    /// In an ordered stream, batches of the current version wait for those that are pinned: these
    /// come before them.
    fn waits_for_older(&self, key: &LaneKey) -> bool {
        let older = |other: &LaneKey| other.stream == key.stream && other.pinned.is_some();
        self.config.streams[key.stream].ordered
            && key.pinned.is_none()
            && (self.lanes.keys().any(older)
                || self.parts.workers.crews().iter().any(|(other, _)| older(other)))
    }

    /// Asks for one more worker of a lane.
    fn want(&mut self, key: &LaneKey, ctx: &mut Context<Self>) {
        self.free_an_idle_worker_of_others(key);
        let (reply, permit) = tokio::sync::oneshot::channel();
        if let Err(Undelivered(_)) = self.parts.semaphore.deliver(AcquirePermit { reply }) {
            tracing::debug!("the semaphore is between two lives; asking again");
        }
        self.last_want += 1;
        let (number, key) = (self.last_want, key.clone());
        let (path, scripts) = (self.path_of(key.stream), self.parts.scripts.clone());
        let (pinned, trust) = (key.pinned.clone(), self.parts.workers.trust.clone());
        let hiring = async move {
            let permit = permit.await.ok()?;
            let mut file = Script::read(&path);
            if pinned.is_none()
                && let Ok(script) = &file
                && let Some(why) = trust.why(&script.sha256)
            {
                if scripts.is_accepted(&script.sha256).await {
                    trust.accept(&script.sha256);
                } else {
                    file = Err(std::io::Error::other(why));
                }
            }
            let found = match (pinned, file) {
                (None, Ok(script)) => Found::Script(script),
                (Some(pin), Ok(script)) if *script.sha256 == *pin => Found::Script(script),
                (None, Err(error)) => Found::Broken(format!("{}: {error}", path.display())),
                (Some(pin), _) => match scripts.fetch(&path, &pin).await {
                    Some(script) => Found::Script(script),
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
                Some((_, Found::Broken(why))) => actor.script_broken(&key, &why, ctx),
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
        if live < self.config.python.max_workers as usize {
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
    fn hire(&mut self, key: &LaneKey, permit: Permit, mut script: Script, ctx: &mut Context<Self>) {
        script.params.clone_from(&self.config.streams[key.stream].params);
        if key.pinned.is_none() {
            self.use_version(key.stream, &script.sha256, ctx);
        }
        if !self.lanes.contains_key(key) {
            // The others were faster; the permit goes back.
            return;
        }
        let config = &self.config.streams[key.stream];
        metrics::gauge!(m::SCRIPT_INFO, "script" => script.name.clone(), "version" => short(&script.sha256).to_owned())
            .set(1.0);
        let slot = &self.parts.workers;
        let number = slot.next_number();
        let status = WorkerStatus {
            stream: config.name.clone(),
            script_sha256: script.sha256.clone(),
            pid: None,
            busy: false,
            ..WorkerStatus::default()
        };
        // The slot holds the worker, which must not hold the slot.
        let (announced, lease) = (Arc::downgrade(slot), permit.lease().clone());
        let recipe = Recipe {
            spec: WorkerSpec {
                worker_id: format!("{}-{number}", config.name),
                ..self.spec.clone()
            },
            script: Arc::new(script),
            input: self.decoders[key.stream].schema().clone(),
            deadline: Duration::from_secs_f64(self.config.python.batch_deadline_s),
            announce: Arc::new(move |pid, heartbeat| {
                if let Some(slot) = announced.upgrade() {
                    slot.announce(number, pid, lease.clone(), heartbeat);
                }
            }),
            leases: slot.leases().clone(),
            limits: AgeLimits::of(&self.config.python),
            trust: key.pinned.is_none().then(|| slot.trust.clone()),
            starts: slot.starts().clone(),
        };
        slot.add(key.clone(), number, Worker::new(recipe, permit), status);
        self.dispatch(key, ctx);
    }

    /// A stream's batches run under this version from now on, but those that are pinned to another.
    fn use_version(&mut self, stream: usize, sha256: &str, ctx: &mut Context<Self>) {
        if self.parts.workers.version(stream).as_deref() == Some(sha256) {
            return;
        }
        self.parts.workers.set_version(stream, sha256.into());
        let key = LaneKey::current(stream);
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        let (other, queue): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut lane.queue).into_iter().partition(|batch| {
                let pin = batch.pinned.as_ref().filter(|pin| !self.lost_versions.contains(*pin));
                pin.is_some_and(|pin| **pin != *sha256)
            });
        lane.queue = queue;
        for batch in other {
            let key = LaneKey { stream, pinned: batch.pinned.clone() };
            self.lanes.entry(key).or_default().queue.push_back(batch);
        }
        // Not this lane: its new worker is not in the slot yet, and it would ask for another.
        let others: Vec<LaneKey> =
            self.lanes.keys().filter(|other| **other != key).cloned().collect();
        others.iter().for_each(|key| self.dispatch(key, ctx));
    }

    /// What was pinned to a version that is nowhere any more runs under the current one.
    fn version_lost(&mut self, key: &LaneKey, ctx: &mut Context<Self>) {
        let Some(pin) = key.pinned.clone() else { return };
        tracing::warn!(
            stream = self.config.streams[key.stream].name,
            version = short(&pin),
            "Redis has lost the script version that showed values online: the current one runs instead"
        );
        self.lost_versions.insert(pin);
        let moved = self.lanes.get_mut(key).map(|lane| std::mem::take(&mut lane.queue));
        let current = LaneKey::current(key.stream);
        self.lanes.entry(current.clone()).or_default().queue.extend(moved.into_iter().flatten());
        self.dispatch(key, ctx);
        self.dispatch(&current, ctx);
    }

    /// The lane waits, visibly, until its script loads: no event is dead for the code's fault.
    fn script_broken(&mut self, key: &LaneKey, why: &str, ctx: &mut Context<Self>) {
        let name = self.name_of(key);
        METER.error("import");
        let known = lock(&self.parts.status.broken).insert(name.clone(), why.to_owned());
        if known.as_deref() != Some(why) {
            tracing::error!(stream = name, why, "the script does not load; its events wait");
        }
        let Some(lane) = self.lanes.get_mut(key) else { return };
        lane.retry_at = Some(Instant::now() + LOAD_RETRY);
        let key = key.clone();
        ctx.run_later(LOAD_RETRY, move |actor, ctx| actor.dispatch(&key, ctx));
    }

    /// The lane waits, visibly, for another version, or for an operator's word that what this one
    /// fails on is dead.
    fn suspect(&mut self, key: &LaneKey, sha256: &str, why: &str, ctx: &mut Context<Self>) {
        // Said already, by another worker's batch.
        if self.parts.workers.trust.why(sha256).is_some() {
            return self.dispatch(key, ctx);
        }
        let why = format!(
            "version {} is suspected: {why}. Mend the script, or take its failures for the data's \
             fault with `millstream transforms resume {} --dead-letter`",
            short(sha256),
            self.name_of(key)
        );
        self.parts.workers.trust.suspect(sha256, &why);
        lock(&self.parts.status.suspected).insert(self.name_of(key), sha256.to_owned());
        metrics::gauge!(m::SCRIPT_SUSPECTED, "stream" => self.name_of(key)).set(1.0);
        self.parts.workers.dismiss_if(|_, idle| idle.worker.script().sha256 == sha256);
        self.script_broken(key, &why, ctx);
    }

    /// Looks at what became of workers and batches since the last time.
    pub(super) fn look(&mut self, ctx: &mut Context<Self>) {
        for news in self.parts.workers.news() {
            match news {
                News::Free(key, idle) => {
                    if let Some((number, hired_at)) = idle {
                        self.freed(&key, number, hired_at);
                    }
                    self.dispatch(&key, ctx);
                    if key.pinned.is_some() {
                        self.dispatch(&LaneKey::current(key.stream), ctx);
                    }
                }
                News::Broken(key, batch, why) => {
                    self.put_back(batch);
                    self.script_broken(&key, &why, ctx);
                }
                News::Suspected(key, batch, sha256, why) => {
                    self.put_back(batch);
                    self.suspect(&key, &sha256, &why, ctx);
                }
                News::Again(batches) => {
                    let keys: BTreeSet<_> =
                        batches.into_iter().rev().map(|batch| self.put_back(batch)).collect();
                    keys.iter().for_each(|key| self.dispatch(key, ctx));
                }
            }
        }
    }

    /// A batch must run once more, before what came after it. Its lane may be another by now.
    fn put_back(&mut self, batch: EventBatch) -> LaneKey {
        let key = self.lane_of(&batch);
        self.lanes.entry(key.clone()).or_default().queue.push_front(batch);
        key
    }

    /// Whether a worker that just finished must leave its permit to another node that has fewer, or
    /// to a lane that has none: when its own lane has more than a fair share, or when there are fewer
    /// permits than lanes and it had its turn.
    fn must_yield(&self, key: &LaneKey, hired_at: Instant) -> bool {
        match self.parts.workers.leases().debt() {
            Debt::Now => return true,
            Debt::AfterATurn if hired_at.elapsed() >= TURN => return true,
            _ => {}
        }
        let crews: BTreeMap<LaneKey, usize> = self.parts.workers.crews().into_iter().collect();
        let live = |key: &LaneKey| crews.get(key).copied().unwrap_or(0);
        let waiting = || self.lanes.iter().filter(|(_, lane)| !lane.queue.is_empty());
        if !waiting().any(|(key, lane)| live(key) == 0 && !lane.wants.is_empty()) {
            return false;
        }
        let active: BTreeSet<&LaneKey> =
            crews.keys().chain(waiting().map(|(key, _)| key)).collect();
        let fair = self.config.python.max_workers as usize / active.len().max(1);
        live(key) > fair.max(1) || (fair == 0 && hired_at.elapsed() >= TURN)
    }

    /// A worker got its batch through; it may have to leave all the same.
    fn freed(&mut self, key: &LaneKey, number: u64, hired_at: Instant) {
        let trust = self.parts.workers.trust.clone();
        let version = match &key.pinned {
            Some(pin) => Some(pin.clone()),
            None => self.parts.workers.version(key.stream),
        };
        if version.as_deref().is_none_or(|version| trust.why(version).is_none()) {
            let name = self.name_of(key);
            lock(&self.parts.status.broken).remove(&name);
            if lock(&self.parts.status.suspected).remove(&name).is_some() {
                metrics::gauge!(m::SCRIPT_SUSPECTED, "stream" => name).set(0.0);
            }
        }
        // An old version's worker has nothing more to do when its batches are through.
        let is_over = key.pinned.is_some() && !self.lanes.contains_key(key);
        let leaves = is_over || self.must_yield(key, hired_at);
        self.parts.workers.dismiss_if(|_, idle| {
            let sha256 = &idle.worker.script().sha256;
            idle.number == number
                && (leaves || version.as_deref() != Some(&**sha256) || trust.why(sha256).is_some())
        });
    }

    fn dispatch_all(&mut self, ctx: &mut Context<Self>) {
        let keys: Vec<LaneKey> = self.lanes.keys().cloned().collect();
        keys.iter().for_each(|key| self.dispatch(key, ctx));
    }

    /// Workers without work for long enough stop; sooner when another lane or node wants a permit.
    pub(super) fn stop_idle(&mut self, ctx: &mut Context<Self>) {
        let mut after = Duration::from_secs_f64(self.config.python.idle_stop_s);
        let lane_waits = |lane: &Lane| !lane.wants.is_empty() && !lane.queue.is_empty();
        let owes = self.parts.workers.leases().debt() != Debt::Nothing;
        if owes || self.lanes.values().any(lane_waits) {
            after = after.min(TURN);
        }
        let lanes = &self.lanes;
        self.parts.workers.dismiss_if(|key, idle| {
            idle.since.elapsed() >= after || (key.pinned.is_some() && !lanes.contains_key(key))
        });
        // A worker whose lease was lost left without a word.
        self.dispatch_all(ctx);
    }
}

/// Whether a batch goes with those of the current version.
///
/// | pinned to | answer |
/// |---|---|
/// | nothing | yes |
/// | a version whose text is lost | yes |
/// | the version that the stream's workers run | yes |
/// | without workers: the version of the file | yes |
/// | another version | no: to that version's lane |
fn runs_as_current(
    pin: Option<&str>,
    is_lost: impl FnOnce(&str) -> bool,
    running: Option<&str>,
    file: impl FnOnce() -> Option<String>,
) -> bool {
    let Some(pin) = pin else { return true };
    is_lost(pin)
        || match running {
            Some(running) => running == pin,
            None => file().as_deref() == Some(pin),
        }
}

fn short(sha256: &str) -> &str {
    sha256.get(..12).unwrap_or(sha256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_of_the_table_of_lanes() {
        let as_current = |pin, lost, running, file: Option<&str>| {
            runs_as_current(pin, |_| lost, running, || file.map(str::to_owned))
        };
        assert!(as_current(None, false, Some("a"), Some("b")));
        assert!(as_current(Some("old"), true, Some("a"), Some("b")));
        assert!(as_current(Some("a"), false, Some("a"), Some("b")), "what runs counts");
        assert!(!as_current(Some("b"), false, Some("a"), Some("b")), "the file comes later");
        assert!(as_current(Some("b"), false, None, Some("b")));
        assert!(!as_current(Some("a"), false, None, Some("b")));
        assert!(!as_current(Some("a"), false, None, None), "the file cannot be read");
    }
}
