//! FileUpload: files of events over gRPC.
//!
//! Input: files that a client streams to the [`UploadEndpoint`]. Output:
//! [`SourceBatch`](crate::messages::SourceBatch)es to the BatchAccumulator, as from any other source: an
//! upload is the source `upload:<stream>/<id>`, the number of a row in the file is its position.
//! Promises that
//!
//! * a client that has a receipt can forget the file: it is on the disk, whole, checked, and known
//!   to the store;
//! * each of its rows is accounted once from then on, whatever is killed or sent again;
//! * of a file that was not accepted there is no row.
//!
//! | file | holds |
//! |---|---|
//! | `endpoint` | the gRPC service |
//! | `desk` | how a file is accepted; outlives the actor |
//! | `request` | what a client says of its file |
//! | `refusal` | what a client is told whose file is not |
//! | `spool` | files on the disk, and how many bytes they may be |
//! | `status` | what the store knows of uploads |
//! | `rows` | the rows of an accepted file |

mod desk;
mod endpoint;
mod refusal;
mod request;
mod rows;
mod spool;
pub mod status;

pub use desk::UploadDesk;
pub use endpoint::UploadEndpoint;

use super::feeder::{Ears, Fed, Feed, Feeder, FeederParts, Heard, Share};
use crate::{
    messages::{Acknowledged, OfSource, SourceOpened},
    protocol::source::SourceName,
    telemetry::StageMeter,
};
use actix::{Actor, AsyncContext, Context, Handler, Message, WrapFuture};
use anyhow::Context as _;
use futures::{StreamExt, stream::FuturesUnordered};
use rows::FileRows;
use status::Unfinished;
use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{Notify, Semaphore};

const METER: StageMeter = StageMeter::new("file_upload");

/// How often it looks for files that are not done, besides when one was accepted.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How often files that nobody needs any more are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// Uploads hold at most this part of the bytes in flight, so that live events find room.
const SHARE_OF_CREDIT: usize = 4;

/// What outlives an instance.
#[derive(Clone)]
pub struct FileUploadParts {
    /// The way into the flow.
    pub feeder: FeederParts,
    /// Where files are accepted.
    pub desk: Arc<UploadDesk>,
}

/// A file was accepted: it waits in the spool.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct FileAccepted {
    /// Its id.
    pub upload_id: String,
}

/// See the module.
pub struct FileUpload {
    parts: FileUploadParts,
    ears: Ears,
    accepted: Rc<Notify>,
}

impl FileUpload {
    /// An instance that goes on where the store is.
    #[must_use]
    pub fn new(parts: FileUploadParts) -> Self {
        Self { parts, ears: Ears::default(), accepted: Rc::default() }
    }
}

impl Actor for FileUpload {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let FileUploadParts { feeder, desk } = self.parts.clone();
        let total = (feeder.total_credit / SHARE_OF_CREDIT).max(1);
        let share = Share { credit: Arc::new(Semaphore::new(total)), total };
        let processing = Rc::new(Processing {
            feeder: Feeder::new(feeder.clone(), self.ears.clone(), Some(share)),
            parts: feeder,
            desk,
            accepted: self.accepted.clone(),
            under_way: RefCell::default(),
            waiting: RefCell::default(),
        });
        let alive = processing.clone();
        ctx.spawn(async move { alive.desk.stay_known().await }.into_actor(self));
        ctx.spawn(async move { processing.run().await }.into_actor(self));
    }
}

impl Handler<SourceOpened> for FileUpload {
    type Result = ();

    fn handle(&mut self, opened: SourceOpened, _: &mut Self::Context) {
        self.ears.tell(&opened.source.clone(), Heard::Opened(opened));
    }
}

impl Handler<Acknowledged> for FileUpload {
    type Result = ();

    fn handle(&mut self, acknowledged: Acknowledged, _: &mut Self::Context) {
        self.ears.tell(acknowledged.source(), Heard::Acknowledged);
    }
}

impl Handler<FileAccepted> for FileUpload {
    type Result = ();

    fn handle(&mut self, accepted: FileAccepted, _: &mut Self::Context) {
        tracing::debug!(upload = accepted.upload_id, "a file waits");
        self.accepted.notify_one();
    }
}

struct Processing {
    parts: FeederParts,
    desk: Arc<UploadDesk>,
    feeder: Feeder,
    accepted: Rc<Notify>,
    /// Ids of the uploads that are fed now.
    under_way: RefCell<HashSet<String>>,
    /// When those that could not go on are tried again: they hold up nobody.
    waiting: RefCell<HashMap<String, Instant>>,
}

impl Processing {
    /// Feeds the files of this node, a few at a time, the oldest first.
    async fn run(&self) {
        let parallel = self.parts.config.uploads.parallel;
        let mut feeding = FuturesUnordered::new();
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                () = self.accepted.notified() => {}
                _ = look.tick() => {}
                Some(()) = feeding.next() => {}
                _ = sweep.tick() => {
                    if let Err(error) = self.desk.sweep().await {
                        let error = format!("{error:#}");
                        tracing::debug!(error, "the spool is not swept; it will be later");
                    }
                    continue;
                }
            }
            if feeding.len() >= parallel {
                continue;
            }
            match self.desk.unfinished().await {
                Ok(uploads) => {
                    for upload in uploads {
                        if feeding.len() >= parallel {
                            break;
                        }
                        if self.may_begin(&upload.upload_id) {
                            feeding.push(self.process(upload));
                        }
                    }
                }
                Err(error) => {
                    tracing::debug!(error = %format!("{error:#}"), "uploads cannot be looked for");
                }
            }
        }
    }

    /// Whether an upload is not under way and not waiting; it is under way then.
    fn may_begin(&self, id: &str) -> bool {
        let due = self.waiting.borrow().get(id).is_none_or(|until| *until <= Instant::now());
        due && self.under_way.borrow_mut().insert(id.to_owned())
    }

    async fn process(&self, upload: Unfinished) {
        let (id, rows) = (upload.upload_id.clone(), upload.rows);
        match self.feed(upload).await {
            Ok(Fed::Landed) => {
                crate::crash_point!("u_landed");
                self.desk.forget(&id).await;
                tracing::info!(upload = id, rows, "an upload has landed");
            }
            Ok(Fed::Gone) => {
                self.desk.forget(&id).await;
                tracing::info!(upload = id, "another node has taken over an upload");
            }
            Err(error) => {
                METER.error("waiting");
                tracing::warn!(upload = id, error = %format!("{error:#}"), "an upload waits");
                // Not at once again: whatever is the matter, it will not have passed yet.
                let until = Instant::now() + LOOK_EVERY;
                self.waiting.borrow_mut().insert(id.clone(), until);
                self.under_way.borrow_mut().remove(&id);
                return;
            }
        }
        self.waiting.borrow_mut().remove(&id);
        self.under_way.borrow_mut().remove(&id);
    }

    async fn feed(&self, upload: Unfinished) -> anyhow::Result<Fed> {
        let streams = &self.parts.config.streams;
        let stream = streams
            .iter()
            .position(|s| s.name == upload.stream)
            .with_context(|| format!("there is no stream `{}` any more", upload.stream))?;
        let source = SourceName(upload.source.as_str().into());
        let feed = Feed { stream, source, total: upload.rows };
        let mut rows = FileRows::new(self.desk.clone(), upload, stream);
        self.feeder.feed(&feed, &mut rows).await
    }
}
