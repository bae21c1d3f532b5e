//! How a file is accepted: received, checked, put where it stays, registered, and only then
//! acknowledged.
//!
//! | the store says of the key | answer |
//! |---|---|
//! | unknown | registered: accepted |
//! | known, same bytes, landed or in the hands of a node that lives | its state, as a duplicate |
//! | known, same bytes, but its file is lost or its node is gone | this node goes on with it |
//! | known, but another file, stream or format | refused |

use super::{
    FileAccepted, FileUpload,
    refusal::Refusal,
    request::Request,
    spool::{Incoming, Spool},
    status::{self, ACCEPTED, LANDED, Unfinished, Which},
    watching::Watching,
};
use crate::{
    actors::redis_queue::register_upload,
    config::Config,
    files::{self, FileLimits},
    messages::{RegisterUpload, UploadRegistered},
    proto::{UploadReceipt, UploadRequest, UploadStatus, upload_request::Part},
    queue::{Keys, RETRY, RedisLink},
    supervision::Link,
    telemetry,
};
use anyhow::Context as _;
use futures::{Stream, StreamExt};
use sha2::{Digest, Sha256};
use std::{
    collections::HashSet,
    io::Write,
    path::PathBuf,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::{Semaphore, mpsc};
use tonic::{Code, Status};
use uuid::Uuid;

/// A client that sends nothing for so long is gone.
const STALLED: Duration = Duration::from_secs(60);
/// How long the store may take to write an upload down.
const REGISTERING: Duration = Duration::from_secs(30);
/// Files that are received at the same time: each takes a thread and some memory.
const RECEIVES: usize = 32;
/// A client must send at least so many bytes a second, taken over the whole file.
const SLOWEST: u64 = 64 << 10;
/// Files that are checked at the same time.
const CHECKS: usize = 2;
/// Messages of a client that are held between the network and the disk.
const CHUNKS_AHEAD: usize = 8;
/// A node that was not heard of for so long has lost its files.
const NODE_GONE_AFTER: Duration = Duration::from_secs(30);
/// A file that the store does not know is kept so long: its registration may still be on the queue.
const ORPHAN_KEPT: Duration = Duration::from_secs(3600);

/// See the module.
pub struct UploadDesk {
    config: Arc<Config>,
    pub(super) redis: RedisLink,
    pub(super) keys: Keys,
    spool: Arc<Spool>,
    pub(super) watching: Watching,
    /// Ids whose files are put to their places and not registered yet: nobody removes them.
    keeping: Mutex<HashSet<String>>,
    actor: Link<FileUpload>,
    /// The program whose subcommand checks files.
    program: PathBuf,
    /// Files that may be checked at the same time: each takes its memory.
    checks: Semaphore,
    /// Files that may be received at the same time.
    receives: Semaphore,
}

impl UploadDesk {
    /// The desk of this node. `program` is this binary.
    ///
    /// # Errors
    /// When the spool cannot be made.
    pub fn new(
        config: Arc<Config>,
        redis: RedisLink,
        actor: Link<FileUpload>,
        program: PathBuf,
    ) -> anyhow::Result<Self> {
        let (dir, node) = (config.spool(), config.node_name());
        let spool = Spool::open(&dir, &node, config.uploads.max_spool_bytes)
            .with_context(|| format!("cannot use the spool {}", dir.display()))?;
        let keys = Keys::new(&config.node.namespace);
        Ok(Self {
            config,
            redis,
            keys,
            spool: Arc::new(spool),
            watching: Watching::default(),
            keeping: Mutex::default(),
            actor,
            program,
            checks: Semaphore::new(CHECKS),
            receives: Semaphore::new(RECEIVES),
        })
    }

    pub(super) fn config(&self) -> &Arc<Config> {
        &self.config
    }

    pub(super) fn spool(&self) -> &Spool {
        &self.spool
    }

    /// The files of this node that are not processed yet, the oldest first.
    pub(super) async fn unfinished(&self) -> anyhow::Result<Vec<Unfinished>> {
        status::unfinished(&self.redis, &self.keys, self.spool.owner()).await
    }

    /// Whether an upload is still this node's.
    pub(super) async fn owns(&self, upload_id: &str) -> anyhow::Result<bool> {
        let which = Which::Id(upload_id.to_owned());
        let found = status::find(&self.redis, &self.keys, &which).await?;
        // A store that was restored may not know it: its file is all that there is then.
        let found = found.context("the store does not know it any more")?;
        Ok(found.owner == self.spool.owner())
    }

    fn keeping(&self) -> MutexGuard<'_, HashSet<String>> {
        self.keeping.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody needs a file any more.
    pub(super) async fn forget(&self, upload_id: &str) {
        if self.keeping().contains(upload_id) {
            return;
        }
        let (spool, id) = (self.spool.clone(), upload_id.to_owned());
        match tokio::task::spawn_blocking(move || spool.remove(&id)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, upload = upload_id, "a file stays in the spool; trying later");
            }
            // The thread pool ends with the node.
            Err(error) => tracing::debug!(%error, "a file stays in the spool"),
        }
    }

    /// Removes files that landed, or that the store has never known.
    pub(super) async fn sweep(&self) -> anyhow::Result<()> {
        let spool = self.spool.clone();
        for (upload_id, age) in tokio::task::spawn_blocking(move || spool.list()).await?? {
            let which = Which::Id(upload_id.clone());
            let found = status::find(&self.redis, &self.keys, &which).await?;
            let needed = match &found {
                Some(found) if found.status.state == LANDED => false,
                Some(found) if found.owner == self.spool.owner() => true,
                // Another's by now, or never known: its registration may be on the queue.
                _ => age < ORPHAN_KEPT,
            };
            if !needed {
                self.forget(&upload_id).await;
            }
        }
        Ok(())
    }

    /// Says again and again that this node lives, as long as its actor does.
    pub(super) async fn stay_known(&self) {
        let mut connection = self.redis.manager_at_last().await;
        let key = self.keys.upload_node(self.spool.owner());
        loop {
            let set = redis::cmd("SET")
                .arg(&key)
                .arg(1)
                .arg("EX")
                .arg(NODE_GONE_AFTER.as_secs())
                .exec_async(&mut connection)
                .await;
            let pause = match set {
                Ok(()) => NODE_GONE_AFTER / 3,
                Err(_) => RETRY,
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn lives(&self, node: &str) -> redis::RedisResult<bool> {
        let mut connection = self.redis.manager().await?;
        redis::cmd("EXISTS").arg(self.keys.upload_node(node)).query_async(&mut connection).await
    }

    /// Takes a file; see the table of the module.
    pub(super) async fn take(
        self: &Arc<Self>,
        parts: impl Stream<Item = Result<UploadRequest, Status>>,
    ) -> Result<UploadReceipt, Refusal> {
        let outcome = self.take_any(parts).await;
        let result = match &outcome {
            Ok(receipt) if receipt.duplicate => "duplicate",
            Ok(_) => "accepted",
            Err(_) => "refused",
        };
        metrics::counter!(telemetry::catalogue::UPLOADS, "result" => result).increment(1);
        outcome
    }

    async fn take_any(
        self: &Arc<Self>,
        parts: impl Stream<Item = Result<UploadRequest, Status>>,
    ) -> Result<UploadReceipt, Refusal> {
        let mut parts = pin!(parts);
        let header = match next(&mut parts).await? {
            Some(Part::Header(header)) => Request::of(header, &self.config)?,
            _ => {
                let why = "an upload begins with its header";
                return Err(Refusal::invalid("no_header", why, "send the header first"));
            }
        };
        // A repetition need not send the bytes again.
        let known = status::find(&self.redis, &self.keys, &Which::Key(header.key.clone())).await;
        if let Some(known) = known.map_err(unavailable)?
            && header.is(&known.status, &self.config)
            && !self.must_adopt(&known.status, &known.owner).await?
        {
            return Ok(duplicate(known.status));
        }
        let turn = self.receives.acquire().await.map_err(|error| unavailable(error.into()))?;
        let patience = STALLED + Duration::from_secs(header.size / SLOWEST);
        let received = tokio::time::timeout(patience, self.receive(&header, &mut parts)).await;
        let incoming = received.map_err(|_| {
            let why = format!("{} bytes did not come within {patience:?}", header.size);
            Refusal::too_slow(why)
        })??;
        drop(turn);
        crate::crash_point!("u_received");
        let limits = FileLimits::of(&self.config);
        let stream = &self.config.streams[header.stream];
        let turn = self.checks.acquire().await.map_err(|error| unavailable(error.into()))?;
        let checked =
            files::check_in_child(&self.program, incoming.path(), header.kind, stream, &limits)
                .await?;
        drop(turn);
        crate::crash_point!("u_checked");
        // From here on it goes to its end, whether the client still waits or not.
        let desk = self.clone();
        let registering =
            tokio::spawn(async move { desk.register(&header, incoming, checked.rows).await });
        registering.await.map_err(|error| unavailable(error.into()))?
    }

    /// Writes the bytes down, counting and hashing them.
    async fn receive(
        &self,
        header: &Request,
        parts: &mut (impl Stream<Item = Result<UploadRequest, Status>> + Unpin),
    ) -> Result<Incoming, Refusal> {
        let Request { size, sha256, .. } = header;
        let Some(incoming) = self.spool.reserve(*size) else {
            let why = format!("the spool has no room for {size} bytes now");
            let hint = "send it again later with the same key, or raise `uploads.max_spool_bytes`";
            return Err(Refusal::no_room("spool_full", why, hint));
        };
        let disk = |error: std::io::Error| {
            Refusal::unavailable("spool_failed", format!("the spool cannot be written: {error}"))
        };
        let mut file = std::fs::File::create(incoming.path()).map_err(disk)?;
        // Hashing and writing are work for a thread; this one only passes bytes on.
        let (sender, mut chunks) = mpsc::channel::<Vec<u8>>(CHUNKS_AHEAD);
        let writing = tokio::task::spawn_blocking(move || {
            let mut hash = Sha256::new();
            while let Some(chunk) = chunks.blocking_recv() {
                hash.update(&chunk);
                file.write_all(&chunk)?;
            }
            Ok(format!("{:x}", hash.finalize()))
        });
        let mut received = 0_u64;
        while let Some(part) = next(parts).await? {
            let Part::Chunk(chunk) = part else {
                let why = "a second header came in the middle of the file";
                return Err(Refusal::invalid("second_header", why, "send one file a call"));
            };
            if chunk.is_empty() {
                let why = "a chunk without bytes came";
                return Err(Refusal::invalid("empty_chunk", why, "send chunks of 256 KiB"));
            }
            received += chunk.len() as u64;
            if received > *size {
                let why = format!("more than the {size} bytes came that were announced");
                return Err(Refusal::invalid("size_mismatch", why, "announce the file's size"));
            }
            metrics::counter!(telemetry::catalogue::UPLOAD_BYTES).increment(chunk.len() as u64);
            if sender.send(chunk).await.is_err() {
                break;
            }
        }
        drop(sender);
        let written = writing.await.map_err(|error| unavailable(error.into()))?;
        let found = written.map_err(disk)?;
        if received != *size {
            let why = format!("{received} of {size} announced bytes came");
            return Err(Refusal::invalid("size_mismatch", why, "send it again with the same key"));
        }
        if found != *sha256 {
            let why = format!("the bytes that came have the SHA-256 {found}, not the announced");
            return Err(Refusal::invalid(
                "sha256_mismatch",
                why,
                "send it again with the same key",
            ));
        }
        Ok(incoming)
    }

    /// Whether this node must go on with a known upload that it is sent again.
    async fn must_adopt(&self, known: &UploadStatus, owner: &str) -> Result<bool, Refusal> {
        if known.state == LANDED {
            return Ok(false);
        }
        if owner == self.spool.owner() {
            return Ok(!self.spool.file(&known.upload_id).exists());
        }
        let lives = self.lives(owner).await.map_err(|error| unavailable(error.into()))?;
        Ok(!lives)
    }

    /// Puts a file to its place, and has the store know it.
    async fn register(
        &self,
        header: &Request,
        incoming: Incoming,
        rows: u64,
    ) -> Result<UploadReceipt, Refusal> {
        let Request { key, stream, kind, filename, size, sha256 } = header;
        // What the store knows by now decides under which id the file is kept.
        let known = status::find(&self.redis, &self.keys, &Which::Key(key.clone())).await;
        let known = known.map_err(unavailable)?;
        let adopt = match &known {
            Some(known) if header.is(&known.status, &self.config) => {
                if !self.must_adopt(&known.status, &known.owner).await? {
                    return Ok(duplicate(known.status.clone()));
                }
                true
            }
            _ => false,
        };
        let upload_id = match known.filter(|_| adopt) {
            Some(known) => known.status.upload_id,
            None => Uuid::now_v7().to_string(),
        };
        let keeping = Keeping::begin(self, &upload_id);
        self.keep(incoming, &upload_id).await?;
        crate::crash_point!("u_kept");
        let request = RegisterUpload {
            upload_id: upload_id.clone(),
            idempotency_key: key.clone(),
            stream: self.config.streams[*stream].name.clone(),
            owner: self.spool.owner().to_owned(),
            sha256: sha256.clone(),
            filename: filename.clone(),
            format: kind.format.as_str().to_owned(),
            compression: kind.compression.as_str().to_owned(),
            size: *size,
            rows: i64::try_from(rows).unwrap_or(i64::MAX),
            adopt,
        };
        // Without an answer the registration may still be carried out: the file stays, and is swept
        // away later if it was not.
        let registered = register_upload(&self.redis, &self.keys, &request, REGISTERING).await;
        let registered = registered.map_err(unavailable)?;
        let UploadRegistered { upload_id: id, conflict, landed, .. } = registered;
        drop(keeping);
        if id != upload_id {
            self.forget(&upload_id).await;
        }
        if let Some(conflict) = conflict {
            return Err(Refusal::conflict(conflict));
        }
        crate::crash_point!("u_accepted");
        if id == upload_id {
            // Between two lives it looks for files by itself.
            let _ = self.actor.deliver(FileAccepted { upload_id: id.clone() });
        }
        let state = if landed { LANDED } else { ACCEPTED };
        Ok(UploadReceipt {
            duplicate: adopt || id != upload_id,
            upload_id: id,
            state: state.to_owned(),
            rows,
            dead_letters: 0,
            filtered: 0,
        })
    }

    async fn keep(&self, incoming: Incoming, upload_id: &str) -> Result<(), Refusal> {
        let (spool, id) = (self.spool.clone(), upload_id.to_owned());
        let kept = tokio::task::spawn_blocking(move || spool.keep(incoming, &id)).await;
        kept.map_err(|error| unavailable(error.into()))?.map_err(|error| {
            Refusal::unavailable("spool_failed", format!("the spool cannot be written: {error}"))
        })
    }
}

/// As long as this lives, nobody removes a file.
struct Keeping<'a> {
    desk: &'a UploadDesk,
    id: String,
}

impl<'a> Keeping<'a> {
    fn begin(desk: &'a UploadDesk, id: &str) -> Self {
        desk.keeping().insert(id.to_owned());
        Self { desk, id: id.to_owned() }
    }
}

impl Drop for Keeping<'_> {
    fn drop(&mut self) {
        self.desk.keeping().remove(&self.id);
    }
}

fn duplicate(known: UploadStatus) -> UploadReceipt {
    UploadReceipt {
        upload_id: known.upload_id,
        state: known.state,
        rows: known.rows,
        dead_letters: known.dead_letters,
        duplicate: true,
        filtered: known.filtered,
    }
}

pub(super) fn unavailable(error: anyhow::Error) -> Refusal {
    Refusal::unavailable("store_away", format!("{error:#}"))
}

/// The next part of an upload; `None` at its end.
async fn next(
    parts: &mut (impl Stream<Item = Result<UploadRequest, Status>> + Unpin),
) -> Result<Option<Part>, Refusal> {
    match tokio::time::timeout(STALLED, parts.next()).await {
        Err(_) => Err(Refusal::too_slow(format!("nothing came for {STALLED:?}"))),
        Ok(None) => Ok(None),
        Ok(Some(Ok(request))) => match request.part {
            Some(part) => Ok(Some(part)),
            None => {
                let why = "a message is neither a header nor a chunk";
                Err(Refusal::invalid("no_part", why, "send it with this version's upload.proto"))
            }
        },
        Ok(Some(Err(status))) if status.code() == Code::OutOfRange => {
            let hint = "send chunks of at most 4 MiB; 256 KiB are a good size";
            Err(Refusal::invalid("chunk_too_large", status.message(), hint))
        }
        Ok(Some(Err(status))) => {
            let why = format!("the connection broke off: {}", status.message());
            Err(Refusal::unavailable("cut_off", why))
        }
    }
}
