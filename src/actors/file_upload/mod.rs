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
//! | `watching` | what became of an upload, also for those who watch it |
//! | `rows` | the rows of an accepted file |

mod desk;
mod endpoint;
mod refusal;
mod request;
mod rows;
mod spool;
pub mod status;
mod watching;

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
use tokio::sync::{Notify, Semaphore, mpsc};

const METER: StageMeter = StageMeter::new("file_upload");

/// How often it looks for files that are not done, besides when one was accepted.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How often files that nobody needs any more are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// Uploads hold at most this part of the bytes in flight, so that live events find room, and little is
/// under way that takes the processor while DuckDB makes a checkpoint; the uploads
/// of one stream an equal share of that, so that those of a paused stream hold up no other.
const SHARE_OF_CREDIT: (usize, usize) = (3, 16);

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
    wake: Rc<Notify>,
}

impl FileUpload {
    /// An instance that goes on where the store is.
    #[must_use]
    pub fn new(parts: FileUploadParts) -> Self {
        Self { parts, ears: Ears::default(), wake: Rc::default() }
    }
}

impl Actor for FileUpload {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let FileUploadParts { feeder, desk } = self.parts.clone();
        let streams = feeder.config.streams.len().max(1);
        let total = (feeder.total_credit * SHARE_OF_CREDIT.0 / SHARE_OF_CREDIT.1 / streams).max(1);
        let feeders = (0..streams).map(|_| {
            let share = Share { credit: Arc::new(Semaphore::new(total)), total };
            Feeder::new(feeder.clone(), self.ears.clone(), Some(share))
        });
        let processing = Rc::new(Processing {
            feeders: feeders.collect(),
            parts: feeder,
            desk,
            wake: self.wake.clone(),
            under_way: RefCell::default(),
            ended: RefCell::default(),
            waiting: RefCell::default(),
        });
        let (to_feed, found) = mpsc::unbounded_channel();
        let [alive, looking, sweeping] = [0; 3].map(|_| processing.clone());
        ctx.spawn(async move { alive.desk.stay_known().await }.into_actor(self));
        ctx.spawn(async move { looking.look(to_feed).await }.into_actor(self));
        ctx.spawn(async move { sweeping.sweep().await }.into_actor(self));
        ctx.spawn(async move { processing.feed_all(found).await }.into_actor(self));
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
        self.wake.notify_one();
    }
}

struct Processing {
    parts: FeederParts,
    desk: Arc<UploadDesk>,
    /// By the stream's index.
    feeders: Vec<Feeder>,
    /// A file was accepted, or another one ended.
    wake: Rc<Notify>,
    /// Ids of the uploads that are fed now, and their streams.
    under_way: RefCell<HashMap<String, String>>,
    /// Those that ended since the last look began: what it finds may be older.
    ended: RefCell<HashSet<String>>,
    /// When those that could not go on are tried again: they hold up nobody.
    waiting: RefCell<HashMap<String, Instant>>,
}

impl Processing {
    /// Looks for files of this node that may be fed, a few of each stream at a time, the oldest first.
    async fn look(&self, to_feed: mpsc::UnboundedSender<Unfinished>) {
        let mut tick = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                () = self.wake.notified() => {}
                _ = tick.tick() => {}
            }
            self.ended.borrow_mut().clear();
            match self.desk.unfinished().await {
                Ok(uploads) => {
                    for upload in uploads.into_iter().filter(|upload| self.may_begin(upload)) {
                        // The feeding ends with the actor, as this does.
                        let _ = to_feed.send(upload);
                    }
                }
                Err(error) => {
                    tracing::debug!(error = %format!("{error:#}"), "uploads cannot be looked for");
                }
            }
        }
    }

    /// Feeds what was found.
    async fn feed_all(&self, mut found: mpsc::UnboundedReceiver<Unfinished>) {
        let mut feeding = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some(upload) = found.recv() => feeding.push(self.process(upload)),
                Some(()) = feeding.next() => self.wake.notify_one(),
                else => return,
            }
        }
    }

    async fn sweep(&self) {
        let mut tick = tokio::time::interval(SWEEP_EVERY);
        loop {
            tick.tick().await;
            if let Err(error) = self.desk.sweep().await {
                let error = format!("{error:#}");
                tracing::debug!(error, "the spool is not swept; it will be later");
            }
        }
    }

    /// Whether an upload is not under way and not waiting, and its stream has a place; it is under way
    /// then.
    fn may_begin(&self, Unfinished { upload_id, stream, .. }: &Unfinished) -> bool {
        let due = self.waiting.borrow().get(upload_id).is_none_or(|until| *until <= Instant::now());
        let mut under_way = self.under_way.borrow_mut();
        let begins = due
            && !self.ended.borrow().contains(upload_id)
            && !under_way.contains_key(upload_id)
            && under_way.values().filter(|other| *other == stream).count()
                < self.parts.config.uploads.parallel;
        if begins {
            under_way.insert(upload_id.clone(), stream.clone());
        }
        begins
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
        self.ended.borrow_mut().insert(id.clone());
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
        self.feeders[stream].feed(&feed, &mut rows).await
    }
}
