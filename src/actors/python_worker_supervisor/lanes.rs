//! Which batch waits where, and when workers come and go.
//!
//! Every stream has a lane for the current version of its script, and for each older version that
//! its batches are pinned to a lane of its own, as long as there are such batches. A lane's workers
//! run exactly its version. Lanes compete for permits as equals.

use super::{
    METER, PythonWorkerSupervisor,
    job::Job,
    queue::Queue,
    slot::{LaneKey, News},
};
use crate::{
    messages::{EventBatch, RECORD_OVERHEAD},
    protocol::lease::{self, Debt},
};
use actix::{AsyncContext, Context, SpawnHandle};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, Instant},
};

/// Batches that may wait for a busy worker before a further one is asked for.
const PILE: usize = 2;

/// While another lane waits for a permit, how long a worker keeps its own.
pub(super) const TURN: Duration = Duration::from_secs(1);

/// The batches of one stream that run under one version. Its workers are in the slot.
#[derive(Default)]
pub(super) struct Lane {
    pub(super) queue: Queue<EventBatch>,
    /// Questions for a worker that are not answered yet.
    pub(super) wants: Vec<(u64, SpawnHandle)>,
    pub(super) retry_at: Option<Instant>,
}

impl LaneKey {
    pub(super) fn current(stream: usize) -> Self {
        Self { stream, pinned: None }
    }
}

impl PythonWorkerSupervisor {
    /// Where a batch waits: see [`runs_as_current`].
    pub(super) fn lane_of(&self, batch: &EventBatch) -> LaneKey {
        let lane = LaneKey::current(batch.stream);
        let current = self.parts.workers.board.current(batch.stream);
        let as_current = runs_as_current(
            batch.pinned.as_deref(),
            |pin| self.lost_versions.contains(pin),
            current.as_ref().map(|current| current.script.sha256.as_str()),
        );
        match &batch.pinned {
            Some(pin) if !as_current => LaneKey { pinned: Some(pin.clone()), ..lane },
            _ => lane,
        }
    }

    pub(super) fn path_of(&self, stream: usize) -> PathBuf {
        self.config.script_file(stream)
    }

    /// What a lane is called on the status page.
    pub(super) fn name_of(&self, key: &LaneKey) -> String {
        let stream = &self.config.streams[key.stream].name;
        match &key.pinned {
            None => stream.clone(),
            Some(version) => format!("{stream}@{}", short(version)),
        }
    }

    /// Gives waiting batches to idle workers and asks for workers where there are too few.
    pub(super) fn dispatch(&mut self, key: &LaneKey, ctx: &mut Context<Self>) {
        if self.waits_for_older(key) || self.is_held(key) {
            return self.show_depth();
        }
        let ordered = self.config.streams[key.stream].ordered;
        while !(ordered && self.parts.workers.busy(key) > 0)
            && let Some(lane) = self.lanes.get_mut(key)
            && !lane.queue.is_empty()
            && let Some((shift, worker)) = self.parts.workers.take(key)
            && let Some(batch) = lane.queue.pop()
        {
            let job = Job {
                config: self.config.clone(),
                decoder: self.decoders[key.stream].clone(),
                next: self.parts.next.clone(),
                ingest: self.parts.ingest.clone(),
                batch,
            };
            // Not the actor's own: it ends well when the actor does not.
            tokio::task::spawn_local(job.run(shift, worker));
        }
        self.show_depth();
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
        let most = match ordered {
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

    /// Tells what waits here: the metric, and Kafka's side.
    pub(super) fn show_depth(&self) {
        let queues = || self.lanes.values().map(|lane| &lane.queue);
        let firsts = queues().flat_map(Queue::firsts).filter_map(|batch| batch.parts.first());
        let oldest = firsts.map(|part| part.polled_at).min();
        METER.waiting(queues().map(Queue::len).sum(), oldest);
        for stream in 0..self.config.streams.len() {
            let own = self.lanes.iter().filter(|(key, _)| key.stream == stream);
            let bytes = own
                .flat_map(|(_, lane)| lane.queue.live())
                .map(|batch| batch.bytes() + batch.rows() * RECORD_OVERHEAD)
                .sum();
            self.parts.holds.piled_up(stream, bytes);
        }
    }

    /// Drops the batches of lanes that are held, or whose version does not run.
    pub(super) fn drop_held(&mut self) {
        let keys: Vec<LaneKey> = self.lanes.keys().cloned().collect();
        for key in keys {
            let held = self.is_held(&key);
            let Some(lane) = self.lanes.get_mut(&key) else { continue };
            let waits = held || lane.retry_at.is_some_and(|at| at > Instant::now());
            if waits && !lane.queue.is_empty() {
                let batches = lane.queue.len();
                lane.queue.clear();
                tracing::info!(
                    stream = self.name_of(&key),
                    batches,
                    "its events are read again later"
                );
            }
        }
        self.show_depth();
    }

    /// Whether the stream is paused, or it is not known yet what it runs.
    fn is_held(&self, key: &LaneKey) -> bool {
        match self.parts.workers.board.current(key.stream) {
            Some(current) => current.state.paused.is_some(),
            None => key.pinned.is_none(),
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
                News::Broken(key, batch, sha256, why) => {
                    let now = self.put_back(batch);
                    // Another version may have taken over meanwhile.
                    if self.is_of(&key, &sha256) {
                        self.script_broken(&key, &why, ctx);
                    } else {
                        self.dispatch(&now, ctx);
                    }
                }
                News::Suspected { key, batch, sha256, why, roll_back_to } => {
                    let now = self.put_back(batch);
                    if self.is_of(&key, &sha256) {
                        self.suspect(&key, &sha256, &why, roll_back_to, ctx);
                    } else {
                        self.dispatch(&now, ctx);
                    }
                }
                News::Switched(stream, canary) => self.switched(stream, canary, ctx),
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
        self.lanes.entry(key.clone()).or_default().queue.push_front(batch.urgency(), batch);
        key
    }

    /// Whether a worker that just finished must leave its permit to another node that has fewer, or
    /// to a lane, or a trial, of this one that has none.
    fn must_yield(&self, key: &LaneKey, hired_at: Instant) -> bool {
        match self.parts.workers.leases().debt() {
            Debt::Now => return true,
            Debt::AfterATurn if hired_at.elapsed() >= TURN => return true,
            _ => {}
        }
        let crews: BTreeMap<LaneKey, usize> = self.parts.workers.crews().into_iter().collect();
        let live = |key: &LaneKey| crews.get(key).copied().unwrap_or(0);
        let waiting = || self.lanes.iter().filter(|(_, lane)| !lane.queue.is_empty());
        let trials = self.parts.workers.trials_without_worker();
        if trials == 0 && !waiting().any(|(key, lane)| live(key) == 0 && !lane.wants.is_empty()) {
            return false;
        }
        let active: BTreeSet<&LaneKey> =
            crews.keys().chain(waiting().map(|(key, _)| key)).collect();
        let cap = self.config.python.max_workers as usize;
        let within_reach = self.parts.workers.leases().within_reach(cap);
        let had_its_turn = hired_at.elapsed() >= TURN;
        lease::makes_room(live(key), within_reach, active.len() + trials, had_its_turn)
    }

    /// A worker got its batch through; it may have to leave all the same.
    fn freed(&mut self, key: &LaneKey, number: u64, hired_at: Instant) {
        let workers = self.parts.workers.clone();
        let current = workers.board.current(key.stream);
        let version: Option<&str> = match (&key.pinned, &current) {
            (Some(pin), _) => Some(pin),
            (None, current) => current.as_ref().map(|current| current.script.sha256.as_str()),
        };
        let trust = workers.trust(key.stream);
        if version.is_none_or(|version| trust.why(version).is_none()) {
            self.healthy(key);
        }
        workers.hand_over(key.stream);
        // An old version's worker has nothing more to do when its batches are through.
        let is_over = key.pinned.is_some() && !self.lanes.contains_key(key);
        let leaves = is_over || self.must_yield(key, hired_at);
        workers.dismiss_if(|_, idle| {
            let script = idle.worker.script();
            let is_other = match (&key.pinned, &current) {
                (None, Some(current)) => !idle.worker.runs(&current.script),
                _ => version != Some(&*script.sha256),
            };
            idle.number == number && (leaves || is_other || trust.why(&script.sha256).is_some())
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
        let trials = self.parts.workers.trials_without_worker() > 0;
        if owes || trials || self.lanes.values().any(lane_waits) {
            after = after.min(TURN);
        }
        (0..self.config.streams.len()).for_each(|stream| self.parts.workers.hand_over(stream));
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
/// | the current version | yes |
/// | another version, or it is not known which one is current | no: to that version's lane |
fn runs_as_current(
    pin: Option<&str>,
    is_lost: impl FnOnce(&str) -> bool,
    current: Option<&str>,
) -> bool {
    pin.is_none_or(|pin| is_lost(pin) || current == Some(pin))
}

pub(super) fn short(sha256: &str) -> &str {
    sha256.get(..12).unwrap_or(sha256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_of_the_table_of_lanes() {
        let as_current = |pin, lost, current| runs_as_current(pin, |_| lost, current);
        assert!(as_current(None, false, Some("a")));
        assert!(as_current(None, false, None));
        assert!(as_current(Some("old"), true, Some("a")));
        assert!(as_current(Some("a"), false, Some("a")));
        assert!(!as_current(Some("b"), false, Some("a")));
        assert!(!as_current(Some("a"), false, None));
    }
}
