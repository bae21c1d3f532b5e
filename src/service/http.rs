//! The HTTP port: the page, the metrics, health, and the JSON interface that the command line uses.

use crate::{
    node::NodeView,
    protocol::source::{AdoptAt, SourceName},
    report::Report,
    telemetry,
};
use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::ListenerExt as _,
};
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, time::Duration};
use tokio::net::TcpListener;

/// The content type of an Arrow IPC stream.
pub(super) const ARROW_STREAM: &str = "application/vnd.apache.arrow.stream";
/// The content type of Prometheus' text format.
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Body of `POST /api/sources/adopt`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdoptBody {
    /// The source's name.
    pub source: SourceName,
    /// Where it goes on.
    pub at: AdoptAt,
}

/// Parameters of `POST /api/verify`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct VerifyParameters {
    /// All batches, not only those since the last clean audit.
    full: bool,
    /// Seconds to wait until everything in the topics has landed; 0: do not wait.
    wait: u64,
}

/// Starts serving on a bound listener.
#[must_use]
pub fn serve(view: NodeView, listener: TcpListener) -> tokio::task::JoinHandle<()> {
    let router = Router::new()
        .route("/", get(|| async { file("index.html") }))
        .route("/{file}", get(|Path(name): Path<String>| async move { file(&name) }))
        .route("/metrics", get(|| async { metrics(None) }))
        .route(
            "/metrics/{stage}",
            get(|Path(stage): Path<String>| async move { metrics(Some(&stage)) }),
        )
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route(
            "/api/status",
            get(|State(view): State<NodeView>| async move { Json(view.status()) }),
        )
        .route("/api/verify", post(verify))
        .route("/api/sources/adopt", post(adopt))
        .merge(super::chaos::routes())
        .merge(super::query::routes())
        .merge(super::dlq::routes())
        .merge(super::transforms::routes())
        .merge(super::uploads::routes())
        .merge(super::online::routes())
        .merge(super::features::routes())
        .merge(super::export::routes())
        .merge(super::historical::routes())
        .with_state(view);
    tokio::spawn(async move {
        // A streamed answer would wait for the client's delayed acknowledgement.
        let listener = listener.tap_io(|connection| {
            if let Err(error) = connection.set_nodelay(true) {
                tracing::debug!(%error, "a connection stays slow");
            }
        });
        // A fault is logged with who asked for it.
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        if let Err(error) = axum::serve(listener, service).await {
            tracing::error!(%error, "the HTTP server ended");
        }
    })
}

/// The page's files, in the binary.
#[derive(rust_embed::Embed)]
#[folder = "web/"]
struct Web;

fn file(name: &str) -> Response {
    let Some(file) = Web::get(name) else {
        return (StatusCode::NOT_FOUND, "not found\n").into_response();
    };
    let kind = match name.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        _ => "image/svg+xml",
    };
    let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")];
    (headers, file.data.into_owned()).into_response()
}

fn metrics(stage: Option<&str>) -> Response {
    match telemetry::render(stage) {
        Some(text) => ([(header::CONTENT_TYPE, PROMETHEUS_TEXT)], text).into_response(),
        None => {
            let why = match stage {
                Some(_) => {
                    let stages = telemetry::catalogue::STAGES.join(", ");
                    format!(
                        "there is no such stage, or `node.metrics` is false; stages are {stages}\n"
                    )
                }
                None => "no metrics are kept: `node.metrics` is false\n".to_owned(),
            };
            (StatusCode::NOT_FOUND, why).into_response()
        }
    }
}

async fn ready(State(view): State<NodeView>) -> Response {
    let missing = view.not_ready().await;
    if missing.is_empty() {
        return "ready\n".into_response();
    }
    let text: String =
        missing.iter().map(|(component, why)| format!("{component}: {why}\n")).collect();
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

pub(super) fn problem(status: StatusCode, message: impl ToString) -> Response {
    (status, Json(serde_json::json!({ "error": message.to_string() }))).into_response()
}

async fn adopt(
    State(view): State<NodeView>,
    Json(AdoptBody { source, at }): Json<AdoptBody>,
) -> Response {
    match view.adopt(&source, at).await {
        Ok(true) => Json(serde_json::json!({ "source": source, "at": at })).into_response(),
        Ok(false) => problem(StatusCode::NOT_FOUND, format!("the store knows no source {source}")),
        Err(error) => problem(StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}")),
    }
}

async fn verify(
    State(view): State<NodeView>,
    Query(VerifyParameters { full, wait }): Query<VerifyParameters>,
) -> Response {
    if wait > 0
        && let Err(error) = view.wait_caught_up(Duration::from_secs(wait)).await
    {
        return problem(StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}"));
    }
    match view.verify(full).await {
        Ok(audit) => Json(Report::of_audit(&audit, view.started_at.elapsed(), &view.registry))
            .into_response(),
        Err(error) => problem(StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}")),
    }
}
