//! What is done about wishes, saved files and versions at fault.

use super::{
    DeployParts,
    desk::{Asked, Decided, Wish, WishError},
    history,
    noting::Event,
    watch::Watch,
};
use crate::{
    actors::python_worker_supervisor::{Current, Passed, Refusal, RollBack, Trials},
    config::Config,
    messages::ScriptText,
    protocol::script_history::{ScriptAction, ScriptState},
    python::Script,
    queue::{Keys, RETRY},
};
use futures::{StreamExt, stream::FuturesUnordered};
use redis::aio::ConnectionManager;
use serde_json::{Map, Value};
use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::{
    OnceCell,
    mpsc::{self, UnboundedReceiver, UnboundedSender},
    watch,
};

/// How often the other nodes' events are asked for, and what is to be rolled back.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often the files are looked at without a word from the system.
const FILES_EVERY: Duration = Duration::from_secs(1);

pub(super) type Task = Pin<Box<dyn Future<Output = ()>>>;

/// See the module.
pub(super) struct Deploying {
    pub(super) config: Arc<Config>,
    pub(super) parts: DeployParts,
    pub(super) keys: Keys,
    trials: Trials,
    pub(super) streams: Vec<StreamDesk>,
    /// Numbers of the other nodes' events, as they were heard of last.
    pub(super) heard: RefCell<HashMap<String, i64>>,
    pub(super) connection: OnceCell<ConnectionManager>,
    /// Versions of files that are dealt with now.
    pub(super) on_trial: RefCell<HashMap<usize, String>>,
    rolling_back: RefCell<HashSet<usize>>,
}

/// What is under way for one stream.
pub(super) struct StreamDesk {
    /// One trial after the other.
    trial: tokio::sync::Mutex<()>,
    /// Counts the versions of its file; a newer one ends the trial of an older.
    pub(super) saves: watch::Sender<u64>,
}

/// Where a version comes from.
#[derive(Clone, Copy)]
pub(super) enum Origin {
    /// A file that was saved, as the number of that save says.
    File { save: u64, saved_at: Option<SystemTime> },
    /// Somebody's wish.
    Wish,
}

impl Deploying {
    pub fn new(config: Arc<Config>, parts: DeployParts) -> Rc<Self> {
        let desk =
            || StreamDesk { trial: tokio::sync::Mutex::new(()), saves: watch::Sender::new(0) };
        Rc::new(Self {
            keys: Keys::new(&config.node.namespace),
            trials: Trials::new(config.clone(), parts.python.clone()),
            streams: config.streams.iter().map(|_| desk()).collect(),
            heard: RefCell::default(),
            connection: OnceCell::new(),
            on_trial: RefCell::default(),
            rolling_back: RefCell::default(),
            config,
            parts,
        })
    }

    /// Goes on until the actor ends, and all that is under way with it.
    pub async fn run(self: Rc<Self>) {
        let (begin, begun) = mpsc::unbounded_channel();
        // Side by side: a store that does not answer must not hold up a trial, which holds a permit.
        tokio::join!(self.clone().keep_house(begin), self.serve(begun));
    }

    /// Carries out wishes, and what the house-keeping has begun.
    async fn serve(self: Rc<Self>, mut begun: UnboundedReceiver<Task>) {
        // An earlier instance's task is gone with it: nobody else takes from the desk.
        let desk = self.parts.desk.clone();
        let mut wishes = desk.taken.lock().await;
        let mut tasks: FuturesUnordered<Task> = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some(asked) = wishes.recv() => {
                    let own = self.clone();
                    tasks.push(Box::pin(async move { own.answer(asked).await }));
                }
                Some(task) = begun.recv() => tasks.push(task),
                Some(()) = tasks.next() => {}
            }
        }
    }

    /// Looks at files, other nodes' events and versions at fault.
    async fn keep_house(self: Rc<Self>, begin: UnboundedSender<Task>) {
        let watch = Watch::start(&self.config.python.transforms_dir);
        let workers = self.parts.python.workers.clone();
        self.learn().await;
        let mut files_at = Instant::now();
        loop {
            if files_at <= Instant::now() {
                files_at = Instant::now() + FILES_EVERY;
                self.look_at_files(&begin).await;
            }
            let wait = LOOK_EVERY.min(files_at.saturating_duration_since(Instant::now()));
            tokio::select! {
                () = watch.changed() => files_at = Instant::now(),
                () = workers.roll_back_wanted() => {}
                () = tokio::time::sleep(wait) => {}
            }
            for (stream, wanted) in workers.roll_backs() {
                if self.rolling_back.borrow_mut().insert(stream) {
                    let own = self.clone();
                    let task = async move {
                        own.roll_back_at_fault(stream, &wanted).await;
                        own.rolling_back.borrow_mut().remove(&stream);
                    };
                    self.begin(&begin, Box::pin(task));
                }
            }
            self.listen().await;
        }
    }

    pub(super) fn begin(&self, begin: &UnboundedSender<Task>, task: Task) {
        // The receiver is the other half of this very actor's future.
        let _ = begin.send(task);
    }

    /// Learns from the store what every stream runs, however long it is away.
    async fn learn(&self) {
        while let Err(error) = self.refresh().await {
            let error = format!("{error:#}");
            tracing::warn!(error, "it cannot be learnt which scripts run; trying again");
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn answer(&self, Asked { stream, wish, answer }: Asked) {
        let decided = self.carry_out(stream, wish).await;
        // Whoever asked may have gone; it is done all the same.
        let _ = answer.send(decided);
    }

    async fn carry_out(&self, stream: usize, wish: Wish) -> Result<Decided, WishError> {
        let path = self.config.script_file(stream);
        if let Wish::Deploy(text) = &wish {
            // Its name is that of the stream's script, wherever its text comes from.
            let name = self.config.streams[stream].transform.clone();
            let script = ScriptText { name, ..text.clone() }.script(&path);
            return self.deploy(stream, script, None, Origin::Wish).await;
        }
        let current = self.parts.python.workers.board.current(stream);
        let current = current.ok_or_else(|| WishError::Failed("it runs no version yet".into()))?;
        let script = (*current.script).clone();
        let plain = |action, reason| Event {
            action,
            script: &script,
            with_text: false,
            expected: Some(script.sha256.clone()),
            reason,
            params: None,
            trial: None,
        };
        match wish {
            Wish::Deploy(_) => Err(WishError::Usage("it was dealt with above".into())),
            Wish::RollBack(to) => self.roll_back(stream, &current, to).await,
            Wish::Pause(reason) => {
                self.note(stream, plain(ScriptAction::Paused, reason), None, None).await
            }
            Wish::Resume if current.state.paused.is_none() => {
                Err(WishError::Usage("it is not paused".into()))
            }
            Wish::Resume => {
                let event = plain(ScriptAction::Resumed, "an operator's wish".into());
                self.note(stream, event, None, None).await
            }
            Wish::Reconfigure(params) => {
                let state = ScriptState { params: Some(params.clone()), ..current.state.clone() };
                let script = Script { params: self.params(stream, &state), ..script.clone() };
                self.deploy(stream, script, Some(params), Origin::Wish).await
            }
        }
    }

    /// Tries a version, or other parameters for the one that runs, and has it take over. One from a file
    /// is tried again when something else took over meanwhile: nobody waits for an answer who could
    /// ask once more.
    pub(super) async fn deploy(
        &self,
        stream: usize,
        script: Script,
        params: Option<Map<String, Value>>,
        origin: Origin,
    ) -> Result<Decided, WishError> {
        loop {
            let done = self.deploy_once(stream, script.clone(), params.clone(), origin).await;
            match (done, origin) {
                (Err(WishError::Overtaken(_)), Origin::File { .. }) => {}
                (done, _) => return done,
            }
        }
    }

    async fn deploy_once(
        &self,
        stream: usize,
        mut script: Script,
        params: Option<Map<String, Value>>,
        origin: Origin,
    ) -> Result<Decided, WishError> {
        let name = &self.config.streams[stream].name;
        let saved_at = match origin {
            Origin::File { saved_at, .. } => saved_at,
            Origin::Wish => None,
        };
        let newer = async {
            match origin {
                Origin::File { save, .. } => {
                    let mut saves = self.streams[stream].saves.subscribe();
                    // The sender is this very struct's.
                    let _ = saves.wait_for(|saves| *saves > save).await;
                }
                Origin::Wish => std::future::pending().await,
            }
        };
        let turn = self.streams[stream].trial.lock().await;
        let Some(current) = self.parts.python.workers.board.current(stream) else {
            return Err(WishError::Failed(format!("`{name}` runs no version yet; save its file")));
        };
        if params.is_none() {
            script.params = self.params(stream, &current.state);
            if script.sha256 == current.script.sha256 {
                return Err(WishError::Usage(format!("`{name}` runs that version already")));
            }
        }
        let refused = |reason: String, trial| Event {
            action: ScriptAction::Refused,
            script: &script,
            with_text: true,
            expected: Some(current.script.sha256.clone()),
            reason,
            params: None,
            trial,
        };
        self.trying(name, Some(&script));
        let tried = tokio::select! {
            tried = self.trials.run(stream, script.clone()) => Some(tried),
            () = newer => None,
        };
        self.trying(name, None);
        crate::crash_point!("s_tried");
        let event = match tried {
            None => {
                let reason = "overtaken: the file was saved again while this version was tried";
                return self.note(stream, refused(reason.into(), None), None, None).await;
            }
            Some(Err(Refusal { reason, report })) => {
                return self.note(stream, refused(reason, Some(report)), None, None).await;
            }
            Some(Ok(Passed { report, canary })) => {
                let action = match params {
                    Some(_) => ScriptAction::Reconfigured,
                    None => ScriptAction::Deployed,
                };
                let reason = report.to_string();
                let trial = Some(report);
                (Event { action, reason, params, trial, ..refused(String::new(), None) }, canary)
            }
        };
        let done = self.note(stream, event.0, Some(event.1), saved_at).await;
        drop(turn);
        done
    }

    fn trying(&self, stream: &str, script: Option<&Script>) {
        if let Some(status) = self.lock(&self.parts.python.status.scripts).get_mut(stream) {
            status.trying = script.map(|script| script.sha256.clone());
        }
    }

    async fn roll_back(
        &self,
        stream: usize,
        current: &Current,
        to: Option<String>,
    ) -> Result<Decided, WishError> {
        let name = &self.config.streams[stream].name;
        let to = match to {
            None => current.state.fallback().map(str::to_owned).ok_or_else(|| {
                WishError::Usage(format!("`{name}` has no earlier version to go back to"))
            })?,
            Some(beginning) => {
                let like = history::versions_like(&self.parts.redis, &self.keys, name, &beginning);
                match &like.await.map_err(failed)?[..] {
                    [only] => only.clone(),
                    [] => {
                        let why = format!("`{name}` has never known a version {beginning}…");
                        return Err(WishError::Usage(why));
                    }
                    several => {
                        let several = several.join(", ");
                        let why = format!("{beginning} is the beginning of several: {several}");
                        return Err(WishError::Usage(why));
                    }
                }
            }
        };
        if to == current.script.sha256 {
            return Err(WishError::Usage(format!("`{name}` runs that version already")));
        }
        self.go_back(stream, current, &to, "an operator's wish".into()).await
    }

    async fn go_back(
        &self,
        stream: usize,
        current: &Current,
        to: &str,
        reason: String,
    ) -> Result<Decided, WishError> {
        let script = self.version(stream, to).await.map_err(failed)?;
        let script = script
            .ok_or_else(|| WishError::Failed(format!("the store has lost the text of {to}")))?;
        let event = Event {
            action: ScriptAction::RolledBack,
            script: &script,
            // A store that was restored may not have it.
            with_text: true,
            expected: Some(current.script.sha256.clone()),
            reason,
            params: None,
            trial: None,
        };
        self.note(stream, event, None, None).await
    }

    /// A version is at fault: the one before it takes over again.
    async fn roll_back_at_fault(&self, stream: usize, wanted: &RollBack) {
        let Some(current) = self.parts.python.workers.board.current(stream) else { return };
        if let Err(error) = self.go_back(stream, &current, &wanted.to, wanted.why.clone()).await {
            let stream = &self.config.streams[stream].name;
            tracing::error!(%error, stream, "a version at fault is not rolled back yet");
        }
    }
}

pub(super) fn failed(error: anyhow::Error) -> WishError {
    WishError::Failed(format!("{error:#}"))
}
