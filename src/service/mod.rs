//! What a node answers over HTTP (axum) and gRPC (tonic).

mod chaos;
mod dlq;
mod export;
mod features;
mod grpc;
mod historical;
mod http;
mod online;
mod query;
mod transforms;
mod uploads;

pub use chaos::ChaosBody;
pub use grpc::serve as grpc;
pub use http::{AdoptBody, serve as http};
pub use query::QueryBody;
pub use transforms::{DeployBody, PauseBody, ReconfigureBody, ResumeBody, RollBackBody};

use anyhow::Context;
use std::net::SocketAddr;
use tokio::net::TcpListener;

/// Binds an address.
///
/// # Errors
/// When it is taken; the message names the flag that chooses another.
pub async fn bind(what: &str, address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("the {what} address {address} cannot be used: choose another with {flag}")
    })
}
