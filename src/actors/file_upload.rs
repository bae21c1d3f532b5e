//! FileUpload: files of events over gRPC.
//!
//! Its place in the flow is here: a service on the node's gRPC port, whose chunks will become
//! batches like those of KafkaIngest. Accepting files is not built yet; every upload is answered
//! `UNIMPLEMENTED` with a sentence that says what to use instead.

use crate::{
    proto::{UploadReceipt, UploadRequest, upload_service_server::UploadService},
    supervision::Link,
    telemetry::StageMeter,
};
use actix::{Actor, Context, Handler, Message};
use tonic::{Request, Response, Status, Streaming};

const METER: StageMeter = StageMeter::new("file_upload");

/// What an upload is answered for now.
const NOT_YET: &str = "this version of Millstream does not take files over gRPC yet: send the file as \
                       events with `millstream generate --replay FILE --topic TOPIC`";

/// See the module.
#[derive(Debug, Default)]
pub struct FileUpload;

impl Actor for FileUpload {
    type Context = Context<Self>;
}

/// A client began an upload.
#[derive(Debug, Message)]
#[rtype(result = "Result<UploadReceipt, Status>")]
struct BeginUpload;

impl Handler<BeginUpload> for FileUpload {
    type Result = Result<UploadReceipt, Status>;

    fn handle(&mut self, _: BeginUpload, _: &mut Self::Context) -> Self::Result {
        METER.error("unimplemented");
        Err(Status::unimplemented(NOT_YET))
    }
}

/// The gRPC end of the actor.
#[derive(Debug, Clone)]
pub struct UploadEndpoint(pub Link<FileUpload>);

#[tonic::async_trait]
impl UploadService for UploadEndpoint {
    async fn upload(
        &self,
        _: Request<Streaming<UploadRequest>>,
    ) -> Result<Response<UploadReceipt>, Status> {
        match self.0.ask(BeginUpload).await {
            Some(answer) => answer.map(Response::new),
            None => Err(Status::unavailable("the upload stage is starting; try again")),
        }
    }
}
