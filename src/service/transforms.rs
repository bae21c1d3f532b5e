//! Scripts over HTTP: deploying, rolling back, pausing, and what happened to them.

use super::{dlq::rows, http::problem};
use crate::{
    actors::transform_deployer::{Wish, WishError, history},
    messages::ScriptText,
    node::NodeView,
    python::HelperModule,
    text::sql_literal,
};
use anyhow::Context as _;
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Query, State, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Events that a history has at most.
const MOST_EVENTS: usize = 10_000;

/// Bytes of a version that is sent. Helpers alone may have 4 MiB, and JSON writes some characters as
/// two and more.
const MOST_BYTES: usize = 16 << 20;

/// Body of `POST /api/transforms/deploy`. The answer is a
/// [`Decided`](crate::actors::transform_deployer::Decided), as of all wishes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeployBody {
    /// Which stream.
    pub stream: String,
    /// The script's text.
    pub source: String,
    /// The modules that it imports besides installed packages.
    #[serde(default)]
    pub modules: Vec<HelperModule>,
}

/// Body of `POST /api/transforms/rollback`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollBackBody {
    /// Which stream.
    pub stream: String,
    /// The version, or a beginning of it that only one version has; `None`: the one before.
    #[serde(default)]
    pub to: Option<String>,
}

/// Body of `POST /api/transforms/pause`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PauseBody {
    /// Which stream.
    pub stream: String,
    /// For whoever wonders later.
    #[serde(default)]
    pub reason: Option<String>,
}

/// Body of `POST /api/transforms/resume`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResumeBody {
    /// The stream that waits.
    pub stream: String,
    /// It waits because its script is suspected, and what that fails on becomes dead letters from now
    /// on. Else it waits because it was paused.
    #[serde(default)]
    pub dead_letter: bool,
}

/// Body of `POST /api/transforms/reconfigure`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReconfigureBody {
    /// Which stream.
    pub stream: String,
    /// All parameters that are to differ from the configuration's.
    pub params: Map<String, Value>,
}

/// Parameters of `GET /api/transforms/history`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HistoryParameters {
    stream: Option<String>,
    limit: Option<usize>,
}

/// Parameters of `GET /api/transforms/version`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct VersionParameters {
    sha256: String,
}

/// The routes of scripts.
pub fn routes() -> Router<NodeView> {
    Router::new()
        .route("/api/transforms", get(list))
        .route("/api/transforms/history", get(events))
        .route("/api/transforms/version", get(version))
        .route("/api/transforms/deploy", post(deploy).layer(DefaultBodyLimit::max(MOST_BYTES)))
        .route("/api/transforms/rollback", post(roll_back))
        .route("/api/transforms/pause", post(pause))
        .route("/api/transforms/resume", post(resume))
        .route("/api/transforms/reconfigure", post(reconfigure))
}

/// What every stream runs, on this node.
async fn list(State(view): State<NodeView>) -> Response {
    Json(&view.status()["python"]["scripts"]).into_response()
}

/// What happened, the newest first.
async fn events(
    State(view): State<NodeView>,
    Query(HistoryParameters { stream, limit }): Query<HistoryParameters>,
) -> Response {
    let of = stream.map_or_else(|| "true".to_owned(), |s| format!("stream = {}", sql_literal(&s)));
    let limit = limit.unwrap_or(100).min(MOST_EVENTS);
    let sql = format!(
        "SELECT seq, stream, action, script_sha256 AS version, from_sha256 AS \"from\", reason, params, trial,
                node, noted_at AS \"at\"
         FROM transform_history WHERE {of} ORDER BY seq DESC LIMIT {limit}"
    );
    match rows(&view, sql).await {
        Ok(mut events) => {
            for event in &mut events {
                for key in ["params", "trial"] {
                    let parsed =
                        event[key].as_str().and_then(|text| serde_json::from_str(text).ok());
                    event[key] = parsed.unwrap_or(Value::Null);
                }
            }
            Json(events).into_response()
        }
        Err(error) => problem(StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}")),
    }
}

/// The texts of a version.
async fn version(
    State(view): State<NodeView>,
    Query(VersionParameters { sha256 }): Query<VersionParameters>,
) -> Response {
    let found = async {
        let redis = view.redis.as_ref().context("this node has no Redis to ask through")?;
        history::text(redis, &view.keys, &sha256).await
    };
    match found.await {
        Ok(Some(text)) => Json(text).into_response(),
        Ok(None) => problem(StatusCode::NOT_FOUND, format!("there is no version {sha256}")),
        Err(error) => problem(StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}")),
    }
}

type Body<T> = Result<Json<T>, JsonRejection>;

async fn deploy(State(view): State<NodeView>, body: Body<DeployBody>) -> Response {
    let DeployBody { stream, source, modules } = match body {
        Ok(Json(body)) => body,
        Err(rejection) => return problem(StatusCode::BAD_REQUEST, rejection.body_text()),
    };
    // Its name is that of the stream's script.
    let text = ScriptText { name: String::new(), source, modules };
    wish(&view, &stream, Wish::Deploy(text)).await
}

async fn roll_back(State(view): State<NodeView>, body: Body<RollBackBody>) -> Response {
    match body {
        Ok(Json(RollBackBody { stream, to })) => wish(&view, &stream, Wish::RollBack(to)).await,
        Err(rejection) => problem(StatusCode::BAD_REQUEST, rejection.body_text()),
    }
}

async fn pause(State(view): State<NodeView>, body: Body<PauseBody>) -> Response {
    match body {
        Ok(Json(PauseBody { stream, reason })) => {
            let reason = reason.unwrap_or_else(|| "an operator's wish".into());
            wish(&view, &stream, Wish::Pause(reason)).await
        }
        Err(rejection) => problem(StatusCode::BAD_REQUEST, rejection.body_text()),
    }
}

async fn reconfigure(State(view): State<NodeView>, body: Body<ReconfigureBody>) -> Response {
    match body {
        Ok(Json(ReconfigureBody { stream, params })) => {
            wish(&view, &stream, Wish::Reconfigure(params)).await
        }
        Err(rejection) => problem(StatusCode::BAD_REQUEST, rejection.body_text()),
    }
}

async fn resume(State(view): State<NodeView>, body: Body<ResumeBody>) -> Response {
    let ResumeBody { stream, dead_letter } = match body {
        Ok(Json(body)) => body,
        Err(rejection) => return problem(StatusCode::BAD_REQUEST, rejection.body_text()),
    };
    let suspected = view.python.suspected(&stream);
    match (dead_letter, suspected) {
        (false, _) if view.python.is_paused(&stream) => wish(&view, &stream, Wish::Resume).await,
        (false, None) => wish(&view, &stream, Wish::Resume).await,
        (false, Some(_)) => {
            let why = "the stream's script is suspected: it goes on when another version is deployed; \
                       `dead_letter` says that its failures are the data's fault instead";
            problem(StatusCode::BAD_REQUEST, why)
        }
        (true, None) => {
            let why = format!("no script of the stream `{stream}` is suspected on this node");
            problem(StatusCode::NOT_FOUND, why)
        }
        (true, Some(version)) => match view.accept_script(&version).await {
            Ok(()) => {
                tracing::warn!(stream, version, "what this script fails on is dead from now on");
                Json(json!({ "stream": stream, "version": version })).into_response()
            }
            Err(error) => problem(StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}")),
        },
    }
}

async fn wish(view: &NodeView, stream: &str, wish: Wish) -> Response {
    let Some(desk) = &view.scripts else {
        let why = "this node runs no scripts: ask one with the role `process`";
        return problem(StatusCode::BAD_REQUEST, why);
    };
    match desk.wish(stream, wish).await {
        Ok(decided) => Json(decided).into_response(),
        Err(error @ WishError::Usage(_)) => problem(StatusCode::BAD_REQUEST, error),
        Err(error @ WishError::Overtaken(_)) => problem(StatusCode::CONFLICT, error),
        Err(error @ WishError::Failed(_)) => problem(StatusCode::SERVICE_UNAVAILABLE, error),
    }
}
