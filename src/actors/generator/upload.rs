//! The task that uploads files of made-up events.
//!
//! Files come one after the other, JSON and Parquet in turn, and the streams in turn, so that four
//! files show everything. A file is sent under one key until the node has taken it or refuses it for
//! good; its events count as sent when the receipt is there. A file that is on its way when the task is
//! stopped is waited for.

use super::tally::Tally;
use crate::{
    generate::{EventFile, EventId, EventMaker, FileFormat},
    telemetry::StageMeter,
    upload_client::{LANDED, Pauses, UploadClient, UploadError, UploadFile, Which},
};
use anyhow::bail;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;
use tonic::Code;

const METER: StageMeter = StageMeter::new("generator");

/// How often it looks whether it is to stop, or is released.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Files that may be taken and not have landed; beyond that a node is behind, and gets no more.
const MAX_PENDING: usize = 8;

/// What the task needs.
#[derive(Debug)]
pub(super) struct UploadTask {
    /// The gRPC address of the node that the files go to.
    pub(super) to: String,
    /// Between the beginnings of two files.
    pub(super) every: Duration,
    /// How long it waits, once stopped, for the answer to the file that is on its way.
    pub(super) patience: Duration,
    /// Events of one file.
    pub(super) events: u32,
    /// The tag of this run.
    pub(super) run: u32,
    /// Each stream's number among the tasks, and its maker.
    pub(super) streams: Vec<(u8, EventMaker)>,
    pub(super) tally: Arc<Tally>,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) held: Arc<AtomicBool>,
}

/// What became of a file.
enum Delivered {
    Taken {
        upload_id: String,
        state: String,
    },
    Refused,
    /// The node takes no files at all.
    NotServed,
}

/// Ids of the uploads that the node has taken and of which not every row is known to have landed.
#[derive(Debug, Default)]
struct PendingUploads(Vec<String>);

impl PendingUploads {
    /// Forgets those that have landed; whether there is room for another.
    async fn has_room(&mut self, client: &UploadClient) -> bool {
        let mut waiting = Vec::with_capacity(self.0.len());
        for id in self.0.drain(..) {
            // One whose status is not known waits, until the node answers again.
            match client.status(Which::UploadId(id.clone())).await {
                Ok(status) if status.state == LANDED => {}
                Ok(_) | Err(_) => waiting.push(id),
            }
        }
        self.0 = waiting;
        self.0.len() < MAX_PENDING
    }
}

impl UploadTask {
    /// Makes and sends files until it is stopped. Blocks.
    pub(super) fn run(self) -> anyhow::Result<()> {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(self.work())
    }

    async fn work(self) -> anyhow::Result<()> {
        while self.held.load(Ordering::Relaxed) && !self.is_stopped() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let client = UploadClient::lazy(&self.to)?;
        let mut pending = PendingUploads::default();
        let mut next_seq = vec![0; self.streams.len()];
        let mut due = Instant::now();
        for number in 0.. {
            tokio::select! {
                biased;
                () = self.stopped() => return Ok(()),
                () = tokio::time::sleep_until(due) => {}
            }
            // What was missed meanwhile is not made up for.
            due = Instant::now() + self.every;
            let has_room = tokio::select! {
                () = self.stopped() => return Ok(()),
                has_room = pending.has_room(&client) => has_room,
            };
            if !has_room {
                continue;
            }
            let (format, stream) = turn(number, self.streams.len());
            let (task, maker) = &self.streams[stream];
            let file = self.make(*task, maker, format, &mut next_seq[stream])?;
            match self.deliver(&client, *task, maker, format, file).await? {
                Delivered::Taken { upload_id, state } if state != LANDED => {
                    pending.0.push(upload_id)
                }
                Delivered::Taken { .. } | Delivered::Refused => {}
                Delivered::NotServed => return Ok(()),
            }
        }
        Ok(())
    }

    fn make(
        &self,
        task: u8,
        maker: &EventMaker,
        format: FileFormat,
        next_seq: &mut u64,
    ) -> anyhow::Result<EventFile> {
        let now_ms = chrono::Utc::now().timestamp_millis().cast_unsigned();
        let seqs = *next_seq..*next_seq + u64::from(self.events);
        *next_seq = seqs.end;
        Ok(maker.file(format, seqs.map(|seq| EventId::new(now_ms, self.run, task, seq)))?)
    }

    /// Sends a file until it is taken or refused for good.
    async fn deliver(
        &self,
        client: &UploadClient,
        task: u8,
        maker: &EventMaker,
        format: FileFormat,
        mut file: EventFile,
    ) -> anyhow::Result<Delivered> {
        let first = file.events.first().map_or_else(String::new, |(id, _)| id.to_string());
        let name = format!("{}-{first}.{}", maker.stream().name(), format.name());
        let bytes = std::mem::take(&mut file.bytes);
        let sent = UploadFile::of_bytes(&name, bytes, maker.stream().name(), format.name());
        let outcome = tokio::select! {
            outcome = self.until_answered(client, &sent) => outcome,
            () = self.patience_ends() => bail!(
                "the node at {} has not answered for the file {name} within {:?} after the stop: what \
                 became of it is not known",
                self.to, self.patience
            ),
        };
        match outcome {
            Ok((upload_id, state)) => {
                self.tally.file_taken(usize::from(task), &file);
                Ok(Delivered::Taken { upload_id, state })
            }
            Err(error) if error.refusal().is_some_and(|r| r.code == Code::Unimplemented) => {
                tracing::warn!(%error, "no files are made up: the node takes none");
                Ok(Delivered::NotServed)
            }
            Err(error) => {
                tracing::error!(%error, file = name, "a made-up file was refused");
                self.tally.file_refused(&file);
                Ok(Delivered::Refused)
            }
        }
    }

    /// Id and state of an upload that was taken, or why it never will be.
    async fn until_answered(
        &self,
        client: &UploadClient,
        file: &UploadFile,
    ) -> Result<(String, String), UploadError> {
        let (mut pauses, mut told) = (Pauses::new(), false);
        loop {
            match client.upload(file, |_| ()).await {
                Ok(receipt) => return Ok((receipt.upload_id, receipt.state)),
                Err(error) => {
                    METER.error("upload");
                    if error.is_final() {
                        return Err(error);
                    }
                    if !told {
                        tracing::warn!(%error, "a made-up file was not taken; it is sent again until it is");
                        told = true;
                    }
                }
            }
            pauses.rest().await;
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    async fn stopped(&self) {
        while !self.is_stopped() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn patience_ends(&self) {
        self.stopped().await;
        tokio::time::sleep(self.patience).await;
    }
}

/// Format and stream of a file by its number: neighbours differ in the format, and four files show
/// both formats of two streams.
fn turn(number: usize, streams: usize) -> (FileFormat, usize) {
    let format = if number.is_multiple_of(2) { FileFormat::Json } else { FileFormat::Parquet };
    (format, (number / 2 + number) % streams)
}

#[cfg(test)]
mod tests;
