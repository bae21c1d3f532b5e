//! Uploads over HTTP: the newest of them.

use super::http::problem;
use crate::{actors::file_upload::status, node::NodeView, proto::UploadStatus};
use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Deserialize;
use serde_json::{Value, json};

/// Uploads that a list has, unless it is told otherwise, and at most.
const LISTED: usize = 20;
const MOST_LISTED: usize = 1_000;

/// Parameters of `GET /api/uploads`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ListParameters {
    limit: Option<usize>,
}

/// The routes of uploads.
pub fn routes() -> Router<NodeView> {
    Router::new().route("/api/uploads", get(list))
}

async fn list(State(view): State<NodeView>, Query(parameters): Query<ListParameters>) -> Response {
    let limit = parameters.limit.unwrap_or(LISTED).min(MOST_LISTED);
    let Some(redis) = &view.redis else {
        return problem(StatusCode::NOT_FOUND, "this node has no Redis");
    };
    match status::newest(redis, &view.keys, limit).await {
        Ok(uploads) => {
            let uploads = uploads.into_iter().map(|found| as_json(found.status, &found.owner));
            Json(uploads.collect::<Vec<_>>()).into_response()
        }
        Err(error) => problem(StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}")),
    }
}

fn as_json(status: UploadStatus, owner: &str) -> Value {
    json!({
        "upload_id": status.upload_id,
        "idempotency_key": status.idempotency_key,
        "stream": status.stream,
        "filename": status.filename,
        "format": status.format,
        "compression": status.compression,
        "size": status.size,
        "sha256": status.sha256,
        "state": status.state,
        "reason": status.reason,
        "rows": status.rows,
        "rows_done": status.rows_done,
        "kept": status.kept,
        "dead_letters": status.dead_letters,
        "filtered": status.filtered,
        "source": status.source,
        // The rest is the id of its spool.
        "node": owner.split('/').next(),
    })
}
