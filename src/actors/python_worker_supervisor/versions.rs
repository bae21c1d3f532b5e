//! What becomes of a stream's batches when its version changes, is lost, does not load or is at fault.

use super::{
    METER, PythonWorkerSupervisor,
    lanes::short,
    queue::Queue,
    slot::{Canary, LaneKey, RollBack},
    status::lock,
};
use crate::telemetry::catalogue as m;
use actix::{AsyncContext, Context};
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// A script that cannot be loaded is tried again after so long: what it needs may have come back.
const LOAD_RETRY: Duration = Duration::from_secs(1);

impl PythonWorkerSupervisor {
    /// Whether a lane runs this version.
    pub(super) fn is_of(&self, key: &LaneKey, sha256: &str) -> bool {
        match &key.pinned {
            Some(pin) => **pin == *sha256,
            None => {
                let current = self.parts.workers.board.current(key.stream);
                current.is_some_and(|current| current.script.sha256 == sha256)
            }
        }
    }

    /// A stream runs what the board says from now on, but for the batches that are pinned to another
    /// version. Workers that are busy finish their batch.
    pub(super) fn switched(
        &mut self,
        stream: usize,
        canary: Option<Canary>,
        ctx: &mut Context<Self>,
    ) {
        let workers = self.parts.workers.clone();
        let Some(current) = workers.board.current(stream) else { return };
        let key = LaneKey::current(stream);
        workers.retire_others(stream);
        if let Some(mut canary) = canary
            && canary.worker().is_some_and(|worker| worker.runs(&current.script))
        {
            canary.join(&workers, key.clone());
        }
        if workers.trust(stream).why(&current.script.sha256).is_none() {
            self.healthy(&key);
        }
        // Batches that are pinned to the version go with the others from now on, and the reverse.
        let mut lanes: Vec<LaneKey> =
            self.lanes.keys().filter(|lane| lane.stream == stream).cloned().collect();
        // What is pinned comes before what is not.
        lanes.sort_by_key(|lane| lane.pinned.is_none());
        let mut batches = VecDeque::new();
        for lane in lanes {
            // What was said of a version that its batches leave.
            if lane.pinned.is_some() {
                self.healthy(&lane);
            }
            let Some(lane) = self.lanes.get_mut(&lane) else { continue };
            lane.retry_at = None;
            batches.extend(std::mem::take(&mut lane.queue).into_items());
        }
        for batch in batches {
            let lane = self.lane_of(&batch);
            self.lanes.entry(lane).or_default().queue.push_back(batch.urgency(), batch);
        }
        let lanes: Vec<LaneKey> =
            self.lanes.keys().filter(|lane| lane.stream == stream).cloned().collect();
        lanes.iter().for_each(|lane| self.dispatch(lane, ctx));
    }

    /// What was pinned to a version that is nowhere any more runs under the current one.
    pub(super) fn version_lost(&mut self, key: &LaneKey, ctx: &mut Context<Self>) {
        let Some(pin) = key.pinned.clone() else { return };
        tracing::warn!(
            stream = self.config.streams[key.stream].name,
            version = short(&pin),
            "the store does not know the script version that showed values online: the current one runs instead"
        );
        self.lost_versions.insert(pin);
        let moved = self.lanes.get_mut(key).map(|lane| std::mem::take(&mut lane.queue));
        let current = LaneKey::current(key.stream);
        let queue = &mut self.lanes.entry(current.clone()).or_default().queue;
        for batch in moved.into_iter().flat_map(Queue::into_items) {
            queue.push_back(batch.urgency(), batch);
        }
        self.dispatch(key, ctx);
        self.dispatch(&current, ctx);
    }

    /// The lane waits, visibly, until its script loads: no event is dead for the code's fault.
    pub(super) fn script_broken(&mut self, key: &LaneKey, why: &str, ctx: &mut Context<Self>) {
        let name = self.name_of(key);
        METER.error("import");
        let known = lock(&self.parts.status.broken).insert(name.clone(), why.to_owned());
        if known.as_deref() != Some(why) {
            tracing::error!(stream = name, why, "the script does not run; its events wait");
        }
        let Some(lane) = self.lanes.get_mut(key) else { return };
        lane.retry_at = Some(Instant::now() + LOAD_RETRY);
        let key = key.clone();
        ctx.run_later(LOAD_RETRY, move |actor, ctx| actor.dispatch(&key, ctx));
    }

    /// The lane waits, visibly, for another version: the one before, when that is not at fault, or
    /// one that is mended, or for an operator's word that what this one fails on is dead.
    pub(super) fn suspect(
        &mut self,
        key: &LaneKey,
        sha256: &str,
        why: &str,
        roll_back_to: Option<String>,
        ctx: &mut Context<Self>,
    ) {
        let trust = self.parts.workers.trust(key.stream);
        if let Some(to) = &roll_back_to {
            let (from, to, why) = (sha256.to_owned(), to.clone(), why.to_owned());
            self.parts.workers.want_roll_back(key.stream, RollBack { from, to, why });
        }
        // Said already, by another worker's batch.
        if trust.why(sha256).is_some() {
            return self.dispatch(key, ctx);
        }
        let name = self.name_of(key);
        let way_on = match &roll_back_to {
            Some(to) => format!("It is rolled back to {}", short(to)),
            None => format!(
                "Mend the script, or take its failures for the data's fault with `millstream transforms \
                 resume {name} --dead-letter`"
            ),
        };
        let told = format!("version {} is suspected: {why}. {way_on}", short(sha256));
        trust.suspect(sha256, &told);
        lock(&self.parts.status.suspected).insert(name.clone(), sha256.to_owned());
        metrics::gauge!(m::SCRIPT_SUSPECTED, "stream" => name).set(1.0);
        self.parts.workers.dismiss_if(|lane, idle| {
            lane.stream == key.stream && idle.worker.script().sha256 == sha256
        });
        self.script_broken(key, &told, ctx);
    }

    /// The lane's version runs.
    pub(super) fn healthy(&self, key: &LaneKey) {
        let name = self.name_of(key);
        lock(&self.parts.status.broken).remove(&name);
        if lock(&self.parts.status.suspected).remove(&name).is_some() {
            metrics::gauge!(m::SCRIPT_SUSPECTED, "stream" => name).set(0.0);
        }
    }
}
