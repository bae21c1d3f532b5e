//! What became of uploads. The store is asked for all that somebody watches in one question, again and
//! again as long as there are any.

use super::{
    UploadDesk,
    desk::unavailable,
    refusal::Refusal,
    status::{self, ACCEPTED, Found, HALTED, LANDED, Which},
};
use crate::proto::UploadStatus;
use futures::stream::{self, Stream};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::watch;
use tonic::Status;

/// How often the store is asked.
const WATCH_EVERY: Duration = Duration::from_millis(250);
/// Uploads that are watched at the same time, at most.
const MOST: usize = 1_000;

/// What was heard last; `None`: nothing yet.
type Heard = Option<Result<UploadStatus, Status>>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Watching(Mutex<Watched>);

#[derive(Debug, Default)]
struct Watched {
    uploads: HashMap<String, watch::Sender<Heard>>,
    /// Whether somebody asks for them.
    asks: bool,
}

impl Watching {
    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ids of the uploads that somebody still watches; when nobody does, the asking ends.
    fn ids(&self) -> Vec<String> {
        let mut watched = self.lock();
        watched.uploads.retain(|_, sender| sender.receiver_count() > 0);
        watched.asks = !watched.uploads.is_empty();
        watched.uploads.keys().cloned().collect()
    }

    fn tell(&self, id: &str, heard: Result<UploadStatus, Status>) {
        if let Some(sender) = self.lock().uploads.get(id) {
            sender.send_replace(Some(heard));
        }
    }
}

impl UploadDesk {
    /// What became of an upload.
    pub(super) async fn status(&self, which: &Which) -> Result<UploadStatus, Status> {
        let mut found = self.found(which).await?;
        if self.is_without_file(&found) {
            // It may just have landed: then its file is not needed any more.
            found = self.found(which).await?;
            if self.is_without_file(&found) {
                found.status.reason =
                    "the node has lost its file: send it again with the same key".to_owned();
            }
        }
        Ok(found.status)
    }

    /// What became of these, by id; those that the store does not know are missing.
    pub(super) async fn statuses(
        &self,
        ids: &[String],
    ) -> Result<HashMap<String, UploadStatus>, Status> {
        let all = status::find_all(&self.redis, &self.keys, ids).await.map_err(unavailable)?;
        let mut statuses = HashMap::with_capacity(all.len());
        for found in all {
            let id = found.status.upload_id.clone();
            let status = match self.is_without_file(&found) {
                false => found.status,
                true => self.status(&Which::Id(id.clone())).await?,
            };
            statuses.insert(id, status);
        }
        Ok(statuses)
    }

    async fn found(&self, which: &Which) -> Result<Found, Status> {
        let found = status::find(&self.redis, &self.keys, which).await.map_err(unavailable)?;
        found.ok_or_else(|| {
            let (Which::Id(name) | Which::Key(name)) = which;
            let detail = format!("no upload is known as {name:?}");
            Refusal::not_found("unknown_upload", detail, "").into()
        })
    }

    fn is_without_file(&self, found: &Found) -> bool {
        found.status.state == ACCEPTED
            && found.owner == self.spool().owner()
            && !self.spool().file(&found.status.upload_id).exists()
    }
}

/// The status of an upload that has this one, and whenever it changes, until it has landed or is halted.
///
/// # Errors
/// When too many are watched.
pub(super) fn follow(
    desk: &Arc<UploadDesk>,
    now: UploadStatus,
) -> Result<impl Stream<Item = Result<UploadStatus, Status>> + use<>, Refusal> {
    let heard = {
        let mut watched = desk.watching.lock();
        if watched.uploads.len() >= MOST && !watched.uploads.contains_key(&now.upload_id) {
            let why = format!("{MOST} uploads are watched already");
            return Err(Refusal::no_room("too_many_watched", why, "ask for the status instead"));
        }
        let sender = watched.uploads.entry(now.upload_id.clone());
        let heard = sender.or_insert_with(|| watch::channel(None).0).subscribe();
        if !std::mem::replace(&mut watched.asks, true) {
            tokio::spawn(ask(desk.clone()));
        }
        heard
    };
    let states = stream::unfold((Some(heard), now), |(heard, last)| async move {
        let mut heard = heard.filter(|_| !is_over(&last))?;
        loop {
            heard.changed().await.ok()?;
            let told = heard.borrow_and_update().clone();
            match told {
                Some(Ok(status)) if status != last => {
                    return Some((Ok(status.clone()), (Some(heard), status)));
                }
                Some(Err(error)) => return Some((Err(error), (None, last))),
                _ => {}
            }
        }
    });
    Ok(states)
}

fn is_over(status: &UploadStatus) -> bool {
    [LANDED, HALTED].contains(&status.state.as_str())
}

/// Asks for all watched uploads until there are none.
async fn ask(desk: Arc<UploadDesk>) {
    loop {
        tokio::time::sleep(WATCH_EVERY).await;
        let ids = desk.watching.ids();
        if ids.is_empty() {
            return;
        }
        match desk.statuses(&ids).await {
            Ok(mut found) => {
                for id in ids {
                    let status = found.remove(&id).ok_or_else(|| {
                        Status::not_found(format!("the store does not know {id} any more"))
                    });
                    desk.watching.tell(&id, status);
                }
            }
            Err(error) => ids.iter().for_each(|id| desk.watching.tell(id, Err(error.clone()))),
        }
    }
}
