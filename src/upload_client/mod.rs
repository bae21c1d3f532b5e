//! Sends files to a node over gRPC, and asks what became of them.
//!
//! A file is hashed first, then sent in chunks; no more than a few chunks are ever in memory. Every
//! upload has a key: the same key with the same bytes is the same upload, so one whose outcome is not
//! known may simply be sent again ([`UploadClient::upload_with_retries`]).

mod error;
mod file;
#[cfg(test)]
pub(crate) mod test_node;
#[cfg(test)]
mod tests;

pub use crate::proto::upload_query::Which;
pub use error::{Refusal, UploadError};
pub use file::UploadFile;

use crate::proto::{
    UploadQuery, UploadReceipt, UploadStatus, upload_service_client::UploadServiceClient,
};
use futures::{StreamExt, channel::mpsc, stream::BoxStream};
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};

/// The state of an upload that is durable, while not all its rows are accounted for.
pub const ACCEPTED: &str = "accepted";
/// The state of an upload of which every row is accounted for.
pub const LANDED: &str = "landed";
/// The state of an upload that waits for an operator.
pub const HALTED: &str = "halted";

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a question without a file may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a connection is tried on which nothing comes, so that a node that is gone without a word
/// is noticed; and how long its answer to that may take.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// The first pause between two tries; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Requests between the file and the connection: two chunks at most.
const REQUESTS_AHEAD: usize = 1;

/// What happens while a file is sent.
#[derive(Debug)]
pub enum Step<'a> {
    /// So many bytes of it were handed on, from its start, in this attempt.
    Sent(u64),
    /// An attempt failed for this reason; the next one follows after a pause.
    Again(&'a UploadError),
}

/// A client of one node. Cheap to clone; connects again by itself.
#[derive(Debug, Clone)]
pub struct UploadClient {
    address: String,
    service: UploadServiceClient<Channel>,
}

impl UploadClient {
    /// A client that is connected to the node at `address` (`host:port`).
    ///
    /// # Errors
    /// [`UploadError::Address`] or [`UploadError::Unreachable`].
    pub async fn connect(address: &str) -> Result<Self, UploadError> {
        let connecting = endpoint(address)?.connect().await;
        let channel = connecting.map_err(|error| UploadError::unreachable(address, &error))?;
        Ok(Self::on(address, channel))
    }

    /// A client that connects when it is used first; to be made within a tokio runtime.
    ///
    /// # Errors
    /// [`UploadError::Address`].
    pub fn lazy(address: &str) -> Result<Self, UploadError> {
        Ok(Self::on(address, endpoint(address)?.connect_lazy()))
    }

    fn on(address: &str, channel: Channel) -> Self {
        Self { address: address.to_owned(), service: UploadServiceClient::new(channel) }
    }

    /// Sends a file once. `progress` hears how many bytes were handed on. The answer means that the
    /// file is durable at the node; dropping this future before it takes nothing back.
    ///
    /// # Errors
    /// [`UploadError`]; no row of a refused file is taken.
    pub async fn upload(
        &self,
        file: &UploadFile,
        mut progress: impl FnMut(u64),
    ) -> Result<UploadReceipt, UploadError> {
        let (chunks, requests) = mpsc::channel(REQUESTS_AHEAD);
        let mut service = self.service.clone();
        let answering = service.upload(requests);
        let sending = file.send(chunks, &mut progress);
        tokio::pin!(answering, sending);
        // A node may answer before it has heard everything: a refusal, or a key that it knows.
        let answer = tokio::select! {
            biased;
            answer = &mut answering => answer,
            sent = &mut sending => {
                sent?;
                answering.await
            }
        };
        answer.map(tonic::Response::into_inner).map_err(|status| self.error(&status))
    }

    /// Sends a file, and again after a pause when that failed for a reason that may pass, until
    /// `patience` is over since the first failure. Safe, as every attempt has the same key.
    ///
    /// # Errors
    /// That of the last attempt.
    pub async fn upload_with_retries(
        &self,
        file: &UploadFile,
        patience: Duration,
        mut step: impl FnMut(Step<'_>),
    ) -> Result<UploadReceipt, UploadError> {
        let (mut pauses, mut failing_since) = (Pauses::new(), None);
        loop {
            let error = match self.upload(file, |sent| step(Step::Sent(sent))).await {
                Err(error) if error.is_worth_retry() => error,
                outcome => return outcome,
            };
            let since = failing_since.get_or_insert_with(Instant::now);
            if !pauses.fits(since.elapsed(), patience) {
                return Err(error);
            }
            step(Step::Again(&error));
            pauses.rest().await;
        }
    }

    /// What became of an upload.
    ///
    /// # Errors
    /// [`UploadError`]; with the code `NOT_FOUND` when the node knows no such upload.
    pub async fn status(&self, which: Which) -> Result<UploadStatus, UploadError> {
        let mut service = self.service.clone();
        let asking = service.get_upload(UploadQuery { which: Some(which) });
        match tokio::time::timeout(ASK_TIMEOUT, asking).await {
            Ok(answer) => {
                answer.map(tonic::Response::into_inner).map_err(|status| self.error(&status))
            }
            Err(_) => Err(self.silent(format!("no answer within {ASK_TIMEOUT:?}"))),
        }
    }

    /// What becomes of an upload: its status now and whenever it changes, until it has landed.
    ///
    /// # Errors
    /// [`UploadError`], at once or as an item.
    pub async fn watch(
        &self,
        which: Which,
    ) -> Result<BoxStream<'static, Result<UploadStatus, UploadError>>, UploadError> {
        let mut service = self.service.clone();
        let asking = service.watch_upload(UploadQuery { which: Some(which) });
        let states = asking.await.map_err(|status| self.error(&status))?.into_inner();
        let address = self.address.clone();
        let of = move |status| UploadError::of(&address, &status);
        Ok(states.map(move |state| state.map_err(&of)).boxed())
    }

    /// Watches an upload until it has landed or is halted, and through a restart of the node as long as
    /// nothing is heard of it for no longer than `patience`. `told` hears of every change.
    ///
    /// # Errors
    /// [`UploadError`].
    pub async fn wait_landed(
        &self,
        upload_id: &str,
        patience: Duration,
        mut told: impl FnMut(&UploadStatus),
    ) -> Result<UploadStatus, UploadError> {
        let (mut pauses, mut heard) = (Pauses::new(), Instant::now());
        loop {
            let error = match self.watch(Which::UploadId(upload_id.to_owned())).await {
                Ok(mut states) => loop {
                    match states.next().await {
                        Some(Ok(status)) => {
                            (pauses, heard) = (Pauses::new(), Instant::now());
                            told(&status);
                            if [LANDED, HALTED].contains(&status.state.as_str()) {
                                return Ok(status);
                            }
                        }
                        Some(Err(error)) => break error,
                        // A node that stops ends its answers.
                        None => break self.silent("it has stopped answering".into()),
                    }
                },
                Err(error) => error,
            };
            if !error.is_worth_retry() || !pauses.fits(heard.elapsed(), patience) {
                return Err(error);
            }
            pauses.rest().await;
        }
    }

    fn error(&self, status: &tonic::Status) -> UploadError {
        UploadError::of(&self.address, status)
    }

    fn silent(&self, detail: String) -> UploadError {
        UploadError::Unreachable { address: self.address.clone(), detail }
    }
}

fn endpoint(address: &str) -> Result<Endpoint, UploadError> {
    let wrong = || UploadError::Address { address: address.to_owned() };
    let port = address.rsplit_once(':').and_then(|(host, port)| {
        let port = port.parse::<u16>().ok()?;
        (!host.is_empty()).then_some(port)
    });
    port.ok_or_else(wrong)?;
    Ok(Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| wrong())?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE))
}

/// The pauses between tries.
#[derive(Debug)]
pub(crate) struct Pauses(Duration);

impl Pauses {
    /// Short at first.
    pub(crate) fn new() -> Self {
        Self(FIRST_PAUSE)
    }

    /// Whether the next one ends in time.
    fn fits(&self, passed: Duration, patience: Duration) -> bool {
        passed.saturating_add(self.0) <= patience
    }

    /// Waits for the next one.
    pub(crate) async fn rest(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
    }
}
