//! The gRPC service of uploads.

use super::{METER, UploadDesk, refusal::Refusal, status::Which, watching};
use crate::proto::{
    UploadQuery, UploadReceipt, UploadRequest, UploadStatus, upload_query,
    upload_service_server::UploadService,
};
use futures::stream::{self, BoxStream, StreamExt};
use std::sync::Arc;
use tonic::{Request, Response, Status, Streaming};

/// See the module. Without a desk the node has no role `process` and takes no files.
#[derive(Clone)]
pub struct UploadEndpoint(pub Option<Arc<UploadDesk>>);

impl UploadEndpoint {
    fn desk(&self) -> Result<Arc<UploadDesk>, Status> {
        self.0.clone().ok_or_else(|| {
            let why = "this node takes no files: send them to a node with the role `process`";
            Status::unimplemented(why)
        })
    }
}

/// Bytes of an id or a key, at most.
const MOST_NAME: usize = 200;

fn which(query: UploadQuery) -> Result<Which, Status> {
    if let Some(upload_query::Which::UploadId(name) | upload_query::Which::IdempotencyKey(name)) =
        &query.which
        && name.len() > MOST_NAME
    {
        let why = format!("no upload has a name of more than {MOST_NAME} bytes");
        return Err(Refusal::invalid("bad_name", why, "name it by its id or its key").into());
    }
    match query.which {
        Some(upload_query::Which::UploadId(id)) => Ok(Which::Id(id)),
        Some(upload_query::Which::IdempotencyKey(key)) => Ok(Which::Key(key)),
        None => {
            let why = "which upload is not said";
            Err(Refusal::invalid("no_name", why, "name it by its id or its key").into())
        }
    }
}

#[tonic::async_trait]
impl UploadService for UploadEndpoint {
    type WatchUploadStream = BoxStream<'static, Result<UploadStatus, Status>>;

    async fn upload(
        &self,
        request: Request<Streaming<UploadRequest>>,
    ) -> Result<Response<UploadReceipt>, Status> {
        let desk = self.desk()?;
        let taken = desk.take(request.into_inner()).await;
        taken.map(Response::new).map_err(|refusal| {
            METER.error("refused");
            tracing::warn!(?refusal, "a file is refused");
            refusal.into()
        })
    }

    async fn get_upload(
        &self,
        request: Request<UploadQuery>,
    ) -> Result<Response<UploadStatus>, Status> {
        let which = which(request.into_inner())?;
        Ok(Response::new(self.desk()?.status(&which).await?))
    }

    async fn watch_upload(
        &self,
        request: Request<UploadQuery>,
    ) -> Result<Response<Self::WatchUploadStream>, Status> {
        let (desk, which) = (self.desk()?, which(request.into_inner())?);
        let first = desk.status(&which).await?;
        let rest = watching::follow(&desk, first.clone())?;
        Ok(Response::new(stream::iter([Ok(first)]).chain(rest).boxed()))
    }
}
