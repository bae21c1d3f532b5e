//! A node as far as files go, for tests: it keeps what it is sent, and fails as it is told.

use crate::proto::{
    UploadHeader, UploadQuery, UploadReceipt, UploadRequest, UploadStatus,
    upload_query::Which,
    upload_request::Part,
    upload_service_server::{UploadService, UploadServiceServer},
};
use futures::{StreamExt, stream, stream::BoxStream};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::net::{TcpListener, TcpStream};
use tonic::{Request, Response, Status, Streaming, transport::server::TcpIncoming};

/// What came with one call of Upload, as far as it was heard.
#[derive(Debug, Default, Clone)]
pub(crate) struct Attempt {
    pub(crate) header: UploadHeader,
    pub(crate) bytes: Vec<u8>,
    pub(crate) chunks: Vec<usize>,
    /// The end of the stream was seen.
    pub(crate) whole: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) attempts: Vec<Attempt>,
    /// Answers to the next calls, given as soon as the header is there; then every file is taken.
    pub(crate) refusals: VecDeque<Status>,
    /// What is said of each upload; the last one again and again. Empty: it has landed.
    pub(crate) states: Vec<UploadStatus>,
    taken: Vec<(String, u64)>,
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct TestNode {
    pub(crate) address: String,
    kept: Arc<Mutex<Kept>>,
}

impl TestNode {
    /// Answers until the runtime ends.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let node = Self { address, kept: Arc::default() };
        let service = UploadServiceServer::new(node.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        node
    }

    pub(crate) fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap()
    }

    /// An address from which the first connection is cut once it has carried so many bytes.
    pub(crate) async fn behind_a_cut(&self, after: u64) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let node = self.address.clone();
        tokio::spawn(async move {
            let mut limit = after;
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&node).await.unwrap();
                tokio::spawn(carry(client, server, std::mem::replace(&mut limit, u64::MAX)));
            }
        });
        address
    }
}

async fn carry(client: TcpStream, server: TcpStream, limit: u64) {
    let (from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let mut from_client = tokio::io::AsyncReadExt::take(from_client, limit);
    tokio::select! {
        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
        _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
    }
}

#[tonic::async_trait]
impl UploadService for TestNode {
    type WatchUploadStream = BoxStream<'static, Result<UploadStatus, Status>>;

    async fn upload(
        &self,
        request: Request<Streaming<UploadRequest>>,
    ) -> Result<Response<UploadReceipt>, Status> {
        let mut parts = request.into_inner();
        let Some(UploadRequest { part: Some(Part::Header(header)) }) = parts.message().await?
        else {
            return Err(Status::invalid_argument("the header comes first"));
        };
        let place = {
            let mut kept = self.kept();
            kept.attempts.push(Attempt { header: header.clone(), ..Attempt::default() });
            if let Some(refusal) = kept.refusals.pop_front() {
                return Err(refusal);
            }
            kept.attempts.len() - 1
        };
        while let Some(UploadRequest { part }) = parts.message().await? {
            let Some(Part::Chunk(chunk)) = part else {
                return Err(Status::invalid_argument("one header is enough"));
            };
            let attempt = &mut self.kept().attempts[place];
            attempt.chunks.push(chunk.len());
            attempt.bytes.extend(chunk);
        }
        let mut kept = self.kept();
        kept.attempts[place].whole = true;
        let known = kept.taken.iter().position(|(key, _)| *key == header.idempotency_key);
        if known.is_none() {
            kept.taken.push((header.idempotency_key, header.size));
        }
        let number = known.unwrap_or(kept.taken.len() - 1);
        Ok(Response::new(UploadReceipt {
            upload_id: format!("upload-{number}"),
            state: "accepted".into(),
            rows: 10,
            duplicate: known.is_some(),
            ..UploadReceipt::default()
        }))
    }

    async fn get_upload(
        &self,
        request: Request<UploadQuery>,
    ) -> Result<Response<UploadStatus>, Status> {
        let mut states = self.states(request.into_inner())?;
        Ok(Response::new(states.remove(0)))
    }

    async fn watch_upload(
        &self,
        request: Request<UploadQuery>,
    ) -> Result<Response<Self::WatchUploadStream>, Status> {
        let states = self.states(request.into_inner())?;
        let states = stream::iter(states).then(|state| async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok(state)
        });
        Ok(Response::new(states.boxed()))
    }
}

impl TestNode {
    fn states(&self, query: UploadQuery) -> Result<Vec<UploadStatus>, Status> {
        let kept = self.kept();
        let mut ids = (0..kept.taken.len()).map(|number| format!("upload-{number}"));
        let upload_id = match query.which {
            Some(Which::UploadId(id)) => ids.find(|known| *known == id),
            Some(Which::IdempotencyKey(key)) => {
                ids.zip(&kept.taken).find(|(_, (known, _))| *known == key).map(|(id, _)| id)
            }
            None => return Err(Status::invalid_argument("which?")),
        };
        let upload_id = upload_id.ok_or_else(|| Status::not_found("no such upload"))?;
        let landed = UploadStatus {
            state: "landed".into(),
            rows: 10,
            rows_done: 10,
            kept: 7,
            dead_letters: 2,
            filtered: 1,
            ..UploadStatus::default()
        };
        let states = if kept.states.is_empty() { vec![landed] } else { kept.states.clone() };
        let named = |state| UploadStatus { upload_id: upload_id.clone(), ..state };
        Ok(states.into_iter().map(named).collect())
    }
}
