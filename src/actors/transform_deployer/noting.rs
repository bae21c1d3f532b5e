//! What is written down of scripts, and going by what is.

use super::{
    deploying::Deploying,
    desk::{Decided, WishError},
    history,
};
use crate::{
    actors::{
        python_worker_supervisor::{Canary, Current, News, ScriptEventStatus, TrialReport},
        redis_queue,
    },
    messages::{NoteScript, ScriptText},
    protocol::script_history::{ScriptAction, ScriptState},
    python::Script,
    queue::RETRY,
    telemetry::{StageMeter, catalogue as m},
};
use anyhow::Context as _;
use redis::AsyncCommands;
use serde_json::{Map, Value};
use std::{
    collections::HashMap,
    sync::{Arc, PoisonError},
    time::{Duration, Instant, SystemTime},
};
use uuid::Uuid;

const METER: StageMeter = StageMeter::new("python_worker_supervisor");

/// Earlier versions that one at fault is held against.
const FALLBACKS: usize = 2;

/// How long the store may take to write an event down.
const NOTING: Duration = Duration::from_secs(30);

/// An event to be written down.
pub(super) struct Event<'a> {
    pub action: ScriptAction,
    pub script: &'a Script,
    pub with_text: bool,
    pub expected: Option<String>,
    pub reason: String,
    pub params: Option<Map<String, Value>>,
    pub trial: Option<TrialReport>,
}

impl Deploying {
    /// Takes over whatever the store knows that is newer.
    pub(super) async fn refresh(&self) -> anyhow::Result<()> {
        let mut states = history::states(&self.parts.redis, &self.keys).await?;
        for (stream, config) in self.config.streams.iter().enumerate() {
            let Some(state) = states.remove(&config.name) else { continue };
            let known = self.parts.python.workers.board.current(stream);
            if known.is_none_or(|known| known.state.seq < state.seq) {
                self.adopt(stream, state, None, None).await?;
            }
        }
        Ok(())
    }

    /// Tells the other nodes of what this one goes by, and hears of what they do.
    pub(super) async fn listen(&self) {
        let events = match self.exchange().await {
            Ok(events) => events,
            // Others say so loudly.
            Err(error) => return tracing::debug!(%error, "events of scripts cannot be heard"),
        };
        if *self.heard.borrow() == events {
            return;
        }
        match self.refresh().await {
            Ok(()) => *self.heard.borrow_mut() = events,
            Err(error) => tracing::debug!(error = %format!("{error:#}"), "asked again soon"),
        }
    }

    /// The number of the newest event by stream, as all nodes know them; a Redis that knows less, or
    /// has lost them, is told.
    async fn exchange(&self) -> redis::RedisResult<HashMap<String, i64>> {
        let connection = self.connection.get_or_try_init(|| self.parts.redis.manager()).await?;
        let (mut connection, key) = (connection.clone(), self.keys.script_events());
        let events: HashMap<String, i64> = connection.hgetall(&key).await?;
        for (stream, config) in self.config.streams.iter().enumerate() {
            let Some(current) = self.parts.python.workers.board.current(stream) else { continue };
            let (name, own) = (&config.name, current.state.seq);
            if events.get(name).is_none_or(|known| *known < own) {
                let () = connection.hset(&key, name, own).await?;
            }
        }
        Ok(events)
    }

    /// Parameters of a stream's script: the configuration's, and over them what was set since.
    pub(super) fn params(&self, stream: usize, state: &ScriptState) -> Map<String, Value> {
        let mut params = self.config.streams[stream].params.clone();
        params.extend(state.params.clone().into_iter().flatten());
        params
    }

    pub(super) async fn version(
        &self,
        stream: usize,
        sha256: &str,
    ) -> anyhow::Result<Option<Script>> {
        let path = self.config.script_file(stream);
        Ok(self.parts.python.scripts.text(sha256).await?.map(|text| text.script(&path)))
    }

    /// A stream runs what a state says from now on, unless what is known is newer.
    pub(super) async fn adopt(
        &self,
        stream: usize,
        state: ScriptState,
        canary: Option<Canary>,
        saved_at: Option<SystemTime>,
    ) -> anyhow::Result<()> {
        let Some(active) = state.active.clone() else { return Ok(()) };
        let Some(mut script) = self.version(stream, &active).await? else {
            return Box::pin(self.replace_lost(stream, active)).await;
        };
        script.params = self.params(stream, &state);
        let mut fallbacks = Vec::new();
        for earlier in state.fallbacks().take(FALLBACKS) {
            if let Some(mut earlier) = self.version(stream, earlier).await? {
                earlier.params.clone_from(&script.params);
                fallbacks.push(Arc::new(earlier));
            }
        }
        let workers = &self.parts.python.workers;
        let before = workers.board.current(stream);
        let is_other = before.as_ref().is_none_or(|b| b.script.sha256 != script.sha256);
        let age_us = chrono::Utc::now().timestamp_micros() - state.since_us;
        // A clock that went back makes it new once more, which does no harm.
        let age = Duration::from_micros(age_us.max(0).cast_unsigned());
        let since = Instant::now().checked_sub(age).unwrap_or_else(Instant::now);
        let script = Arc::new(script);
        let next = Current { state, script, fallbacks, since, saved_at };
        if !workers.board.show(stream, next) {
            // Something newer is known.
            return Ok(());
        }
        if is_other {
            workers.trust(stream).forget(&active);
        }
        workers.tell(News::Switched(stream, canary));
        self.show(stream, before.filter(|_| is_other).as_deref(), is_other);
        Ok(())
    }

    /// What is written is gone by: when its texts cannot be fetched now, it is learnt again soon.
    async fn adopt_at_last(
        &self,
        stream: usize,
        state: ScriptState,
        canary: Option<Canary>,
        saved_at: Option<SystemTime>,
    ) {
        if let Err(error) = self.adopt(stream, state, canary, saved_at).await {
            tracing::warn!(error = %format!("{error:#}"), "an event of a script is gone by later");
            self.heard.borrow_mut().clear();
        }
    }

    /// Shows what a stream runs.
    fn show(&self, stream: usize, before: Option<&Current>, is_other: bool) {
        let Some(current) = self.parts.python.workers.board.current(stream) else { return };
        let (name, state) = (&self.config.streams[stream].name, &current.state);
        {
            let mut scripts = self.lock(&self.parts.python.status.scripts);
            let status = scripts.entry(name.clone()).or_default();
            status.name.clone_from(&current.script.name);
            status.params.clone_from(&current.script.params);
            status.version.clone_from(&state.active);
            status.fallback = state.fallback().map(str::to_owned);
            status.paused.clone_from(&state.paused);
            if is_other {
                status.swap_s = None;
            }
        }
        metrics::gauge!(m::SCRIPT_PAUSED, "stream" => name.clone())
            .set(f64::from(u8::from(state.paused.is_some())));
        for (of, is) in [(before, 0.0), (Some(&*current), 1.0)] {
            let Some(Current { script, .. }) = of else { continue };
            let version = script.sha256.get(..12).unwrap_or_default().to_owned();
            metrics::gauge!(m::SCRIPT_INFO, "script" => script.name.clone(), "version" => version)
                .set(is);
        }
    }

    /// The store does not know the text of what runs: it was restored from elsewhere. The file takes
    /// over as it is, there is nothing that it could be held against.
    async fn replace_lost(&self, stream: usize, active: String) -> anyhow::Result<()> {
        let path = self.config.script_file(stream);
        let script = Script::read(&path).with_context(|| {
            format!("the store has lost version {active}, and {} cannot be read", path.display())
        })?;
        let event = Event {
            action: ScriptAction::Deployed,
            script: &script,
            with_text: true,
            expected: Some(active),
            reason: "the store has lost the text of the version before".into(),
            params: None,
            trial: None,
        };
        self.note(stream, event, None, None).await?;
        self.parts.desk.set_seen(stream, &script.sha256);
        Ok(())
    }

    pub(super) fn lock<'a, T>(&self, of: &'a std::sync::Mutex<T>) -> std::sync::MutexGuard<'a, T> {
        of.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the store write an event down and, when it was taken, goes by it. Asked until the store
    /// answers: nobody may believe in an event that is not written.
    pub(super) async fn note(
        &self,
        stream: usize,
        event: Event<'_>,
        canary: Option<Canary>,
        saved_at: Option<SystemTime>,
    ) -> Result<Decided, WishError> {
        let Event { action, script, with_text, expected, reason, params, trial } = event;
        let name = self.config.streams[stream].name.clone();
        let note = NoteScript {
            note_id: Uuid::now_v7().to_string(),
            stream: name.clone(),
            action,
            sha256: script.sha256.clone(),
            text: with_text.then(|| ScriptText::of(script)),
            expected: expected.clone(),
            reason: reason.clone(),
            params,
            trial: trial.as_ref().and_then(|trial| serde_json::to_value(trial).ok()),
            node: self.config.node_name(),
        };
        let noted = loop {
            let asked = redis_queue::note_script(&self.parts.redis, &self.keys, &note, NOTING);
            match asked.await {
                Ok(noted) => break noted,
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(
                        error,
                        stream = name,
                        "an event of a script is not written down yet"
                    );
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        crate::crash_point!("s_noted");
        if !noted.taken {
            self.adopt_at_last(stream, noted.state, None, None).await;
            let why = "another version took over meanwhile; look at it and ask again";
            return Err(WishError::Overtaken(why.into()));
        }
        if with_text {
            self.parts.python.scripts.remember(script);
        }
        if action != ScriptAction::Refused {
            self.adopt_at_last(stream, noted.state, canary, saved_at).await;
        }
        metrics::counter!(m::SCRIPT_SWAPS, "script" => script.name.clone(), "result" => action.name())
            .increment(1);
        if let Some(status) = self.lock(&self.parts.python.status.scripts).get_mut(&name) {
            status.last = Some(ScriptEventStatus {
                action: action.name(),
                version: script.sha256.clone(),
                reason: reason.clone(),
                at: chrono::Utc::now(),
            });
        }
        let version = script.sha256.clone();
        match action {
            ScriptAction::Refused => {
                METER.error("refused");
                tracing::error!(
                    stream = name,
                    version,
                    reason,
                    "a script version is refused; the old one goes on"
                );
            }
            ScriptAction::RolledBack => {
                tracing::error!(
                    stream = name,
                    version,
                    from = expected,
                    reason,
                    "a script was rolled back"
                );
            }
            _ => tracing::info!(
                stream = name,
                version,
                action = action.name(),
                reason,
                "a script's history"
            ),
        }
        Ok(Decided { stream: name, action, version, from: expected, reason, trial })
    }
}
