//! Faults on request: ending actors and Python workers, to see that they come back. Only where
//! `chaos.allow` says so.

use super::http::problem;
use crate::{
    node::NodeView,
    python::{ProcessHandle, WorkerSignal},
    supervision::End,
    telemetry,
    text::nearest,
};
use axum::{
    Json, Router,
    extract::{ConnectInfo, DefaultBodyLimit, State, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{net::SocketAddr, time::Duration};

/// Bytes of a wish: a name and a word.
const MOST_BYTES: usize = 4 << 10;

/// Characters of a wrong name that are said again.
const MOST_ECHOED: usize = 64;

/// How long an instance may take to end. One that backs off is struck when the next one lives, after
/// 5 s at most.
const PATIENCE: Duration = Duration::from_secs(30);

/// Body of `POST /api/chaos`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum ChaosBody {
    /// Drops an actor's instance.
    Kill {
        /// Which actor.
        actor: String,
    },
    /// Has it panic.
    Panic {
        /// Which actor.
        actor: String,
    },
    /// Has it end with an error.
    Error {
        /// Which actor.
        actor: String,
    },
    /// Kills a Python worker of this node.
    WorkerKill {
        /// Its process.
        pid: u32,
    },
    /// Freezes one.
    WorkerStop {
        /// Its process.
        pid: u32,
    },
    /// Lets a frozen one go on.
    WorkerContinue {
        /// Its process.
        pid: u32,
    },
}

/// Why a fault was not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error(
        "this node does not end its own parts on request: set chaos.allow = true in its configuration, or start it \
         with MILLSTREAM__CHAOS__ALLOW=true"
    )]
    NotAllowed,
    #[error("there is no actor `{wrong}` on this node{meant}; its actors are {known}")]
    NoActor { wrong: String, meant: String, known: String },
    #[error("{pid} is no live Python worker of this node; its workers are {known}")]
    NoWorker { pid: u32, known: String },
    #[error("{actor} was asked to end and has not: the node stops, or cannot start it again")]
    NotEnded { actor: String },
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::NotAllowed => StatusCode::FORBIDDEN,
            Self::NoActor { .. } | Self::NoWorker { .. } => StatusCode::NOT_FOUND,
            Self::NotEnded { .. } => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl From<Refusal> for tonic::Status {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::NotAllowed => Self::permission_denied(message),
            Refusal::NoActor { .. } | Refusal::NoWorker { .. } => Self::not_found(message),
            Refusal::NotEnded { .. } => Self::unavailable(message),
        }
    }
}

/// The routes of faults.
pub fn routes() -> Router<NodeView> {
    Router::new()
        .route("/api/chaos", get(targets).post(strike))
        .layer(DefaultBodyLimit::max(MOST_BYTES))
}

/// What can be struck here.
async fn targets(State(view): State<NodeView>) -> Json<Value> {
    let actors: Vec<&str> = view.registry.status().into_keys().collect();
    let workers: Vec<Value> = view
        .python
        .processes()
        .into_iter()
        .map(|(process, stream)| json!({ "pid": process, "stream": stream }))
        .collect();
    Json(json!({
        "allowed": view.config.chaos.allow,
        "actors": actors,
        "workers": workers,
        "max_workers": view.config.python.max_workers,
    }))
}

async fn strike(
    State(view): State<NodeView>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    body: Result<Json<ChaosBody>, JsonRejection>,
) -> Response {
    let body = match body {
        Ok(Json(body)) => body,
        Err(rejection) => return problem(StatusCode::BAD_REQUEST, rejection.body_text()),
    };
    let done = match body {
        ChaosBody::Kill { actor } => over_http(&view, &actor, End::Kill, from).await,
        ChaosBody::Panic { actor } => over_http(&view, &actor, End::Panic, from).await,
        ChaosBody::Error { actor } => over_http(&view, &actor, End::Fail, from).await,
        ChaosBody::WorkerKill { pid } => signal(&view, pid, WorkerSignal::Kill, from),
        ChaosBody::WorkerStop { pid } => signal(&view, pid, WorkerSignal::Stop, from),
        ChaosBody::WorkerContinue { pid } => signal(&view, pid, WorkerSignal::Continue, from),
    };
    match done {
        Ok(answer) => Json(answer).into_response(),
        Err(refusal) => problem(refusal.status(), refusal),
    }
}

async fn over_http(
    view: &NodeView,
    actor: &str,
    how: End,
    from: SocketAddr,
) -> Result<Value, Refusal> {
    let generation = end_actor(view, actor, how, Some(from)).await?;
    Ok(json!({ "actor": actor, "do": how.name(), "generation": generation }))
}

/// Ends an actor's instance, and waits until it is gone; the number that it had. `from`: who asks.
///
/// # Errors
/// [`Refusal`]; nothing was done but for [`Refusal::NotEnded`].
pub(super) async fn end_actor(
    view: &NodeView,
    actor: &str,
    how: End,
    from: Option<SocketAddr>,
) -> Result<u64, Refusal> {
    let allowed = view.config.chaos.allow;
    let (name, fault): (String, _) = (actor.chars().take(MOST_ECHOED).collect(), how.name());
    tracing::warn!(actor = ?name, fault, ?from, allowed, "somebody asks to end an actor's instance");
    if !allowed {
        return Err(Refusal::NotAllowed);
    }
    let Some(gone) = view.registry.end(actor, how) else {
        let known: Vec<&str> = view.registry.status().into_keys().collect();
        let meant = nearest(actor, known.iter().copied());
        let meant = meant.map_or_else(String::new, |name| format!(", did you mean `{name}`?"));
        return Err(Refusal::NoActor { wrong: name, meant, known: known.join(", ") });
    };
    match tokio::time::timeout(PATIENCE, gone).await {
        Ok(Ok(generation)) => Ok(generation),
        _ => Err(Refusal::NotEnded { actor: name }),
    }
}

/// Sends a signal to a worker of this node. Any other process's number is refused, and so is one that
/// a worker had which has ended.
fn signal(
    view: &NodeView,
    pid: u32,
    signal: WorkerSignal,
    from: SocketAddr,
) -> Result<Value, Refusal> {
    let allowed = view.config.chaos.allow;
    tracing::warn!(pid, ?signal, %from, allowed, "somebody asks to signal a Python worker");
    if !allowed {
        return Err(Refusal::NotAllowed);
    }
    let workers = view.python.processes();
    let sent = |process: &ProcessHandle| process.pid() == pid && process.signal(signal);
    if !workers.iter().any(|(process, _)| sent(process)) {
        let known: Vec<String> = workers.iter().map(|(p, _)| p.pid().to_string()).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Err(Refusal::NoWorker { pid, known });
    }
    match signal {
        WorkerSignal::Kill => telemetry::chaos_kill(telemetry::PYTHON_WORKER, "worker_kill"),
        WorkerSignal::Stop => telemetry::chaos_kill(telemetry::PYTHON_WORKER, "worker_stop"),
        // That mends one.
        WorkerSignal::Continue => {}
    }
    Ok(json!({ "pid": pid }))
}
