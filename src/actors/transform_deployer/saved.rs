//! What saved files bring: new versions, and a stream's first.

use super::{
    deploying::{Deploying, Origin, Task},
    desk::WishError,
    files::{self, FileIs, Look},
    history,
    noting::Event,
};
use crate::{protocol::script_history::ScriptAction, python::Script, telemetry::StageMeter};
use std::rc::Rc;
use tokio::sync::mpsc::UnboundedSender;

const METER: StageMeter = StageMeter::new("python_worker_supervisor");

impl Deploying {
    /// Looks for versions that were saved, and begins to deal with them.
    pub(super) async fn look_at_files(self: &Rc<Self>, begin: &UnboundedSender<Task>) {
        for stream in 0..self.config.streams.len() {
            let path = self.config.script_file(stream);
            let current = self.parts.python.workers.board.current(stream);
            if current.is_some() && !self.config.python.watch {
                continue;
            }
            let script = match Script::read(&path) {
                Ok(script) => script,
                Err(error) => {
                    self.unreadable(stream, &format!("{}: {error}", path.display()));
                    continue;
                }
            };
            let on_trial = self.on_trial.borrow().get(&stream).cloned();
            if on_trial.as_ref() == Some(&script.sha256) {
                continue;
            }
            // Whatever it is, the file does not say any more what is on trial.
            let mut save = 0;
            self.streams[stream].saves.send_modify(|saves| {
                *saves += u64::from(on_trial.is_some());
                save = *saves;
            });
            let seen = self.parts.desk.seen(stream);
            let mut look = Look {
                sha256: &script.sha256,
                seen: seen.as_deref(),
                active: current.as_ref().map(|current| current.script.sha256.as_str()),
                was_before: false,
            };
            // Asked only where it matters; the script's name changes with the configuration.
            let renamed = current.as_ref().is_some_and(|c| c.script.name != script.name);
            if seen.is_none() && !renamed && files::decide(look) == FileIs::New {
                let name = &self.config.streams[stream].name;
                let asked = history::is_known(&self.parts.redis, &self.keys, name, look.sha256);
                match asked.await {
                    Ok(known) => look.was_before = known,
                    Err(error) => {
                        let error = format!("{error:#}");
                        tracing::warn!(error, stream = name, "a script's file is looked at later");
                        continue;
                    }
                }
            }
            match files::decide(look) {
                FileIs::Known => {}
                FileIs::Earlier => tracing::warn!(
                    stream = self.config.streams[stream].name,
                    file = script.sha256,
                    runs = look.active,
                    "the script's file is an earlier version, or one that was refused or rolled back; `millstream \
                     transforms deploy` runs it all the same"
                ),
                FileIs::First => {
                    if self.first(stream, &script).await.is_err() {
                        continue;
                    }
                }
                FileIs::New => {
                    self.on_trial.borrow_mut().insert(stream, script.sha256.clone());
                    let own = self.clone();
                    self.begin(
                        begin,
                        Box::pin(async move { own.saved(stream, script, save).await }),
                    );
                    continue;
                }
            }
            self.parts.desk.set_seen(stream, &script.sha256);
        }
    }

    /// Deals with a version that was saved. It counts as seen only then: should this instance die in
    /// the middle, the next one begins anew.
    async fn saved(&self, stream: usize, script: Script, save: u64) {
        let saved_at = files::saved_at(&script);
        let sha256 = script.sha256.clone();
        let done = self.deploy(stream, script, None, Origin::File { save, saved_at }).await;
        if let Err(error) = done {
            let stream = &self.config.streams[stream].name;
            tracing::warn!(%error, stream, version = sha256, "a saved version is not deployed");
        }
        let mut on_trial = self.on_trial.borrow_mut();
        if on_trial.get(&stream) == Some(&sha256) {
            on_trial.remove(&stream);
        }
        // Else the file says something else by now, which was looked at since.
        if *self.streams[stream].saves.borrow() == save {
            self.parts.desk.set_seen(stream, &sha256);
        }
    }

    /// A file that cannot be read: without a version the stream waits for it.
    fn unreadable(&self, stream: usize, why: &str) {
        let name = &self.config.streams[stream].name;
        if self.parts.python.workers.board.current(stream).is_none() {
            let known =
                self.lock(&self.parts.python.status.broken).insert(name.clone(), why.to_owned());
            if known.as_deref() != Some(why) {
                METER.error("import");
                tracing::error!(stream = name, why, "there is no script yet; its events wait");
            }
        } else {
            tracing::debug!(stream = name, why, "the file cannot be read; its last version runs");
        }
    }

    /// The first version of a stream takes over as it is: its first batch will tell.
    async fn first(&self, stream: usize, script: &Script) -> Result<(), WishError> {
        let event = Event {
            action: ScriptAction::Deployed,
            script,
            with_text: true,
            expected: None,
            reason: "the first version".into(),
            params: None,
            trial: None,
        };
        let done = self.note(stream, event, None, None).await;
        if let Err(error) = &done {
            tracing::warn!(%error, stream = self.config.streams[stream].name, "the first version waits");
        }
        done.map(drop)
    }
}
