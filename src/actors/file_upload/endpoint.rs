//! The gRPC service of uploads.

use super::{
    METER, UploadDesk,
    refusal::Refusal,
    status::{HALTED, LANDED, Which},
};
use crate::proto::{
    UploadQuery, UploadReceipt, UploadRequest, UploadStatus, upload_query,
    upload_service_server::UploadService,
};
use futures::stream::{self, BoxStream, StreamExt};
use std::{sync::Arc, time::Duration};
use tonic::{Request, Response, Status, Streaming};

/// How often the store is asked on behalf of somebody who watches.
const WATCH_EVERY: Duration = Duration::from_millis(250);

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

fn which(query: UploadQuery) -> Result<Which, Status> {
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
        let rest = stream::unfold((desk, which, first.clone()), |(desk, which, last)| async move {
            if last.state == LANDED || last.state == HALTED {
                return None;
            }
            loop {
                tokio::time::sleep(WATCH_EVERY).await;
                match desk.status(&which).await {
                    Ok(status) if status == last => {}
                    Ok(status) => return Some((Ok(status.clone()), (desk, which, status))),
                    Err(error) => {
                        let ended = UploadStatus { state: LANDED.to_owned(), ..last };
                        return Some((Err(error), (desk, which, ended)));
                    }
                }
            }
        });
        Ok(Response::new(stream::iter([Ok(first)]).chain(rest).boxed()))
    }
}
