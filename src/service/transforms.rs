//! Scripts over HTTP: taking the failures of a suspected version for the data's fault.

use super::http::problem;
use crate::node::NodeView;
use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use serde::{Deserialize, Serialize};

/// Body of `POST /api/transforms/resume`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResumeBody {
    /// The stream that waits.
    pub stream: String,
    /// What its script fails on becomes dead letters. There is no other way on but a mended script,
    /// which needs no word.
    pub dead_letter: bool,
}

/// The routes of scripts.
pub fn routes() -> Router<NodeView> {
    Router::new().route("/api/transforms/resume", post(resume))
}

async fn resume(
    State(view): State<NodeView>,
    Json(ResumeBody { stream, dead_letter }): Json<ResumeBody>,
) -> Response {
    if !dead_letter {
        let why = "a suspected script goes on when its file is mended; `dead_letter` says that its \
                   failures are the data's fault instead";
        return problem(StatusCode::BAD_REQUEST, why);
    }
    let Some(version) = view.python.suspected(&stream) else {
        let why = format!("no script of the stream `{stream}` is suspected on this node");
        return problem(StatusCode::NOT_FOUND, why);
    };
    match view.accept_script(&version).await {
        Ok(()) => {
            tracing::warn!(stream, version, "what this script fails on is dead from now on");
            Json(serde_json::json!({ "stream": stream, "version": version })).into_response()
        }
        Err(error) => problem(StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}")),
    }
}
