//! The one place that touches actix' machinery: starting, watching, restarting and reaching actors.
//!
//! actix' own `Supervisor` neither rebuilds an actor nor survives its panic, so here
//!
//! * a factory builds each new instance; threads and children live in slots that it adopts;
//! * the task's join handle tells how an instance ended: finished, failed, panicked or killed;
//! * restarts back off and are limited; beyond the limit the node stops with an error. Killing on
//!   request does not count, and the first restart is immediate;
//! * peers hold a [`Link`], which always leads to the living instance;
//! * every actor has an arbiter (a thread) of its own, so that a busy one starves nobody.

mod link;
mod recovery;
mod restart;

pub use link::{Link, Undelivered};
pub use recovery::Recovery;
pub use restart::{Cause, End, RestartPolicy};

use crate::telemetry;
use actix::{Actor, AsyncContext, Context};
use actix_rt::Arbiter;
use recovery::Recoveries;
use restart::Restarts;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

#[cfg(panic = "abort")]
compile_error!(
    "supervision needs `panic = \"unwind\"`: a panicking actor is restarted, not the process"
);

/// Messages that an actor's mailbox holds at most. Data is bounded by credit, not here; a full
/// mailbox is a defect that `deliver` reports rather than a way to wait.
const MAILBOX_CAPACITY: usize = 1 << 16;

/// Something that ends the node: an actor that fails again and again, a store that cannot go on.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{component}: {reason}")]
pub struct Fatal {
    /// Which actor or thread.
    pub component: String,
    /// One sentence.
    pub reason: String,
}

/// Where fatal conditions are reported; the node's main loop listens.
#[derive(Debug, Clone)]
pub struct FatalSender(mpsc::UnboundedSender<Fatal>);

impl FatalSender {
    /// A sender and the receiver for the main loop.
    #[must_use]
    pub fn channel() -> (Self, mpsc::UnboundedReceiver<Fatal>) {
        let (tx, rx) = mpsc::unbounded_channel();
        (Self(tx), rx)
    }

    /// Reports that the node cannot go on.
    pub fn report(&self, component: &str, reason: impl Into<String>) {
        let fatal = Fatal { component: component.into(), reason: reason.into() };
        tracing::error!(
            component = fatal.component,
            reason = fatal.reason,
            "the node cannot go on"
        );
        // Without a receiver the node is stopping already.
        let _ = self.0.send(fatal);
    }
}

/// What is known of an actor, for the status page.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ActorStatus {
    /// Whether an instance lives.
    pub up: bool,
    /// Instances started, from 1.
    pub generation: u64,
    /// How the last instance ended.
    pub last_cause: Option<String>,
    /// How long it was away each time.
    pub recovery: Recovery,
}

#[derive(Debug)]
struct Watched {
    up: AtomicBool,
    generation: AtomicU64,
    last_cause: Mutex<Option<Cause>>,
    recoveries: Mutex<Recoveries>,
    control: mpsc::UnboundedSender<Command>,
}

impl Watched {
    /// The next instance is linked; `ended_at`: when the one before ended. Its number.
    fn begins(&self, name: &'static str, ended_at: Option<Instant>) -> u64 {
        if let Some(took) = ended_at.map(|at| at.elapsed()) {
            telemetry::actor_recovered(name, took);
            lock(&self.recoveries).add(took);
        }
        // Whoever sees it up sees its number, and that it came back.
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        self.up.store(true, Ordering::Release);
        telemetry::actor_up(name, true);
        generation
    }

    fn ends(&self, name: &'static str) {
        self.up.store(false, Ordering::Release);
        telemetry::actor_up(name, false);
    }

    fn status(&self) -> ActorStatus {
        ActorStatus {
            up: self.up.load(Ordering::Acquire),
            generation: self.generation.load(Ordering::Relaxed),
            last_cause: lock(&self.last_cause).as_ref().map(ToString::to_string),
            recovery: lock(&self.recoveries).summary(),
        }
    }
}

#[derive(Debug)]
enum Command {
    /// The number of the instance is told when it is gone.
    End(End, oneshot::Sender<u64>),
    Stop(oneshot::Sender<()>),
}

/// All actors of a node by name.
#[derive(Debug, Clone)]
pub struct Registry {
    actors: Arc<Mutex<BTreeMap<&'static str, Arc<Watched>>>>,
    fatal: FatalSender,
}

impl Registry {
    /// An empty one that reports what cannot be mended to `fatal`.
    #[must_use]
    pub fn new(fatal: FatalSender) -> Self {
        Self { actors: Arc::default(), fatal }
    }

    /// Starts an actor under supervision, on an arbiter of its own. `link` leads to its living
    /// instance from now on.
    pub fn supervise<A, F>(
        &self,
        name: &'static str,
        link: Link<A>,
        policy: RestartPolicy,
        factory: F,
    ) where
        A: Actor<Context = Context<A>>,
        F: Fn() -> A + Send + 'static,
    {
        let (control, commands) = mpsc::unbounded_channel();
        let watched = Arc::new(Watched {
            up: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            last_cause: Mutex::new(None),
            recoveries: Mutex::default(),
            control,
        });
        telemetry::actor_supervised(name, Cause::LABELS, End::ALL.map(End::name));
        lock(&self.actors).insert(name, watched.clone());
        let fatal = self.fatal.clone();
        let arbiter = Arbiter::new();
        let handle = arbiter.handle();
        // The watcher's future stays on the arbiter's own thread, as the actor does.
        arbiter.spawn_fn(move || {
            tokio::task::spawn_local(async move {
                watch(name, link, policy, factory, &watched, commands, fatal).await;
                handle.stop();
            });
        });
    }

    /// Ends an actor's instance on request, which is counted. `None` when there is no such actor, else
    /// the number of the instance comes once it is gone; nothing comes when the actor is not started
    /// again before that, as in a node that stops.
    #[must_use]
    pub fn end(&self, name: &str, how: End) -> Option<oneshot::Receiver<u64>> {
        let actors = lock(&self.actors);
        let (name, watched) = actors.get_key_value(name)?;
        let (tell, told) = oneshot::channel();
        watched.control.send(Command::End(how, tell)).ok()?;
        telemetry::chaos_kill(name, how.name());
        Some(told)
    }

    /// Kills an actor's instance; it is restarted at once. `false` when there is no such actor.
    #[must_use]
    pub fn kill(&self, name: &str) -> bool {
        self.end(name, End::Kill).is_some()
    }

    /// Makes an actor's instance panic, as one of its handlers might. Unlike [`Registry::kill`] this
    /// counts as a failure of its own: back-off and limit apply. `false` when there is no such
    /// actor.
    #[must_use]
    pub fn panic(&self, name: &str) -> bool {
        self.end(name, End::Panic).is_some()
    }

    /// Makes an actor's instance end as if a handler had returned an error that it cannot mend.
    /// Counts like a panic. `false` when there is no such actor.
    #[must_use]
    pub fn fail(&self, name: &str) -> bool {
        self.end(name, End::Fail).is_some()
    }

    /// Stops an actor for good and waits until its instance is gone.
    pub async fn stop(&self, name: &str) {
        let (tx, rx) = oneshot::channel();
        let sent = lock(&self.actors).get(name).map(|w| w.control.send(Command::Stop(tx)));
        if matches!(sent, Some(Ok(()))) {
            // An error means that the watcher is gone, and its actor with it.
            let _ = rx.await;
        }
    }

    /// Every actor's state by name.
    #[must_use]
    pub fn status(&self) -> BTreeMap<&'static str, ActorStatus> {
        lock(&self.actors).iter().map(|(name, watched)| (*name, watched.status())).collect()
    }
}

/// A poisoned lock only says that a holder panicked; the maps here are never left half-changed.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// How an instance's task ends; an error is one that it could not mend.
type Ended = Result<(), String>;

/// An instance's whole life. The panic on request unwinds from the task in which the handlers run,
/// as theirs would.
async fn live(instance: impl Future<Output = ()>, doomed: oneshot::Receiver<End>) -> Ended {
    tokio::select! {
        biased;
        Ok(how) = doomed => match how {
            // Without the hook: nobody needs to read where.
            End::Panic => std::panic::resume_unwind(Box::new("on request")),
            End::Fail | End::Kill => Err("on request".to_owned()),
        },
        () = instance => Ok(()),
    }
}

/// Does to an instance what was asked for.
fn strike(command: Option<&Command>, task: &JoinHandle<Ended>, doom: oneshot::Sender<End>) {
    match command {
        // It may have ended by itself just now, which is as good.
        Some(Command::End(how @ (End::Panic | End::Fail), _)) => drop(doom.send(*how)),
        Some(Command::End(End::Kill, _) | Command::Stop(_)) | None => task.abort(),
    }
}

async fn watch<A, F>(
    name: &'static str,
    link: Link<A>,
    policy: RestartPolicy,
    factory: F,
    watched: &Watched,
    mut commands: mpsc::UnboundedReceiver<Command>,
    fatal: FatalSender,
) where
    A: Actor<Context = Context<A>>,
    F: Fn() -> A,
{
    let mut restarts = Restarts::new(policy);
    let mut last_end = None;
    loop {
        let mut context = Context::new();
        context.set_mailbox_capacity(MAILBOX_CAPACITY);
        let address = context.address();
        let (doom, doomed) = oneshot::channel();
        let mut task = tokio::task::spawn_local(live(context.into_future(factory()), doomed));
        link.set(address);
        let generation = watched.begins(name, last_end);

        let (cause, command) = tokio::select! {
            ended = &mut task => (Cause::of(ended), None),
            command = commands.recv() => {
                // What it holds reports when it is dropped, and whoever hears that sends at once: not
                // into a mailbox that nobody will read any more.
                link.clear();
                strike(command.as_ref(), &task, doom);
                // The instance is gone only when its task is: two never live side by side.
                (Cause::of((&mut task).await), command)
            }
        };
        let ended_at = Instant::now();
        last_end = Some(ended_at);
        link.clear();
        watched.ends(name);
        // In either case whoever asked may have stopped waiting.
        match command {
            Some(Command::Stop(done)) => {
                let _ = done.send(());
                return;
            }
            Some(Command::End(_, told)) => drop(told.send(generation)),
            None => {}
        }
        tracing::warn!(actor = name, %cause, "actor ended; starting a new instance");
        telemetry::actor_restarted(name, cause.label());
        *lock(&watched.last_cause) = Some(cause.clone());
        match restarts.next(&cause, ended_at) {
            Some(delay) if delay.is_zero() => {}
            Some(delay) => tokio::time::sleep(delay).await,
            None => {
                fatal.report(name, format!("failed again and again, last: {cause}"));
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests;
