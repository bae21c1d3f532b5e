//! The gRPC port: uploads, reads, the operator's questions, health and reflection.

use crate::{
    actors::file_upload::UploadEndpoint,
    node::NodeView,
    proto::{
        self, ArrowChunk, HistoricalFeaturesReply, HistoricalFeaturesRequest, KillActorReply,
        KillActorRequest, KillHow, OnlineFeaturesReply, OnlineFeaturesRequest, QueryRequest,
        StatusReply, StatusRequest,
        admin_service_server::{AdminService, AdminServiceServer},
        feature_service_server::{FeatureService, FeatureServiceServer},
        upload_service_server::UploadServiceServer,
    },
    supervision::End,
};
use futures::stream::BoxStream;
use tokio::net::TcpListener;
use tonic::{Request, Response, Status, Streaming, transport::server::TcpIncoming};

struct Reads(NodeView);

#[tonic::async_trait]
impl FeatureService for Reads {
    type QueryStream = BoxStream<'static, Result<ArrowChunk, Status>>;
    type GetHistoricalFeaturesStream = BoxStream<'static, Result<HistoricalFeaturesReply, Status>>;

    async fn get_online_features(
        &self,
        request: Request<OnlineFeaturesRequest>,
    ) -> Result<Response<OnlineFeaturesReply>, Status> {
        let answer = super::online::get_online_features(&self.0, request.into_inner());
        Ok(Response::new(answer.await?))
    }

    async fn query(
        &self,
        request: Request<QueryRequest>,
    ) -> Result<Response<Self::QueryStream>, Status> {
        let answer = super::query::over_grpc(&self.0, request.into_inner());
        Ok(Response::new(answer.await?))
    }

    async fn get_historical_features(
        &self,
        request: Request<Streaming<HistoricalFeaturesRequest>>,
    ) -> Result<Response<Self::GetHistoricalFeaturesStream>, Status> {
        let answer = super::historical::over_grpc(&self.0, request.into_inner());
        Ok(Response::new(answer.await?))
    }
}

struct Admin(NodeView);

#[tonic::async_trait]
impl AdminService for Admin {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        Ok(Response::new(StatusReply { json: self.0.status().to_string() }))
    }

    async fn kill_actor(
        &self,
        request: Request<KillActorRequest>,
    ) -> Result<Response<KillActorReply>, Status> {
        let from = request.remote_addr();
        let KillActorRequest { actor, how } = request.into_inner();
        let how = match KillHow::try_from(how) {
            Ok(KillHow::Unspecified | KillHow::Kill) => End::Kill,
            Ok(KillHow::Panic) => End::Panic,
            Ok(KillHow::Error) => End::Fail,
            Err(_) => {
                let why = format!("{how} is no way to end an actor; there are kill, panic, error");
                return Err(Status::invalid_argument(why));
            }
        };
        let generation = super::chaos::end_actor(&self.0, &actor, how, from).await?;
        Ok(Response::new(KillActorReply { generation }))
    }
}

/// Starts serving on a bound listener.
///
/// # Errors
/// When the descriptors for reflection cannot be read, which is a defect of the build.
pub async fn serve(
    view: NodeView,
    uploads: UploadEndpoint,
    listener: TcpListener,
) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<UploadServiceServer<UploadEndpoint>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let server = tonic::transport::Server::builder()
        .add_service(health_service)
        .add_service(reflection)
        .add_service(UploadServiceServer::new(uploads))
        .add_service(FeatureServiceServer::new(Reads(view.clone())))
        .add_service(AdminServiceServer::new(Admin(view)));
    // An answer of several writes would wait for the client's delayed acknowledgement.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Ok(tokio::spawn(async move {
        if let Err(error) = server.serve_with_incoming(incoming).await {
            tracing::error!(%error, "the gRPC server ended");
        }
    }))
}
