//! What a node answers over HTTP (axum) and gRPC (tonic).

mod grpc;
mod http;

pub use grpc::serve as grpc;
pub use http::{QueryBody, serve as http};
