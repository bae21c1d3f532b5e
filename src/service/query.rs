//! One SELECT of a client: `POST /api/query`, and `FeatureService/Query`.

use super::http::{ARROW_STREAM, problem};
use crate::{
    json_rows::{TooLarge, json_rows},
    messages::{QueryBounds, ReadReply, ReadRequest},
    node::NodeView,
    proto::{ArrowChunk, QueryRequest},
};
use arrow::ipc::reader::StreamReader;
use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use futures::stream::{self, BoxStream, StreamExt};
use serde::{Deserialize, Serialize};
use std::{io::Cursor, time::Duration};
use tonic::Status;

/// How much longer than its deadline a query may wait for its turn.
const TURN: Duration = Duration::from_secs(40);
/// Bytes a message of a streamed answer: well under gRPC's usual limit of 4 MiB.
const CHUNK_BYTES: usize = 1 << 20;

/// Body of `POST /api/query`. The answer is an Arrow IPC stream, or with `Accept: application/json` a
/// list of rows; closing the connection ends the query.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueryBody {
    /// One SELECT.
    pub sql: String,
    /// How long it may run, in milliseconds; see [`QueryBounds`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// Rows that its answer may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rows: Option<usize>,
    /// Bytes that its answer may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<usize>,
}

/// Why a query has no answer.
enum Problem {
    Refused(String),
    Failed(String),
    Unavailable(String),
}

/// The route.
pub(super) fn routes() -> Router<NodeView> {
    Router::new().route("/api/query", post(over_http))
}

async fn ask(view: &NodeView, body: QueryBody) -> Result<Vec<u8>, Problem> {
    let QueryBody { sql, deadline_ms, max_rows, max_bytes } = body;
    let usual = QueryBounds::default();
    let bounds = QueryBounds {
        deadline_ms: deadline_ms.unwrap_or(usual.deadline_ms),
        max_rows: max_rows.unwrap_or(usual.max_rows),
        max_bytes: max_bytes.unwrap_or(usual.max_bytes),
    };
    let bounds = bounds.within_limits();
    let request = ReadRequest::Query { sql, bounds, own: false };
    match view.read(&request, bounds.deadline() + TURN).await {
        Ok((ReadReply::Failed { refused: true, reason }, _)) => Err(Problem::Refused(reason)),
        Ok((ReadReply::Failed { reason, .. }, _)) => Err(Problem::Failed(reason)),
        Ok((_, bytes)) => Ok(bytes),
        Err(error) => Err(Problem::Unavailable(format!("{error:#}"))),
    }
}

async fn over_http(
    State(view): State<NodeView>,
    headers: HeaderMap,
    Json(body): Json<QueryBody>,
) -> Response {
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let wants_json = accepted.is_some_and(|accepted| accepted.contains("application/json"));
    let most = QueryBounds::LIMITS.max_bytes;
    let most_bytes = body.max_bytes.unwrap_or(most).min(most);
    match ask(&view, body).await {
        Ok(bytes) if wants_json => {
            match tokio::task::spawn_blocking(move || to_json(bytes, most_bytes)).await {
                Ok(Ok(json)) => {
                    ([(header::CONTENT_TYPE, "application/json")], json).into_response()
                }
                Ok(Err(error)) if error.is::<TooLarge>() => problem(StatusCode::BAD_REQUEST, error),
                Ok(Err(error)) => problem(StatusCode::INTERNAL_SERVER_ERROR, error),
                Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, error),
            }
        }
        Ok(bytes) => ([(header::CONTENT_TYPE, ARROW_STREAM)], bytes).into_response(),
        Err(Problem::Refused(why)) => problem(StatusCode::BAD_REQUEST, why),
        Err(Problem::Failed(why)) => problem(StatusCode::INTERNAL_SERVER_ERROR, why),
        Err(Problem::Unavailable(why)) => problem(StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

fn to_json(arrow: Vec<u8>, most: usize) -> anyhow::Result<Vec<u8>> {
    let batches = StreamReader::try_new(Cursor::new(arrow), None)?;
    json_rows(&batches.collect::<Result<Vec<_>, _>>()?, most)
}

/// Answers over gRPC.
pub(super) async fn over_grpc(
    view: &NodeView,
    request: QueryRequest,
) -> Result<BoxStream<'static, Result<ArrowChunk, Status>>, Status> {
    // A number too large for this machine's memory is no bound either.
    let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let QueryRequest { sql, deadline_ms, max_rows, max_bytes } = request;
    let (max_rows, max_bytes) = (max_rows.map(size), max_bytes.map(size));
    let body = QueryBody { sql, deadline_ms, max_rows, max_bytes };
    let bytes = ask(view, body).await.map_err(|problem| match problem {
        Problem::Refused(why) => Status::invalid_argument(why),
        Problem::Failed(why) => Status::internal(why),
        Problem::Unavailable(why) => Status::unavailable(why),
    })?;
    Ok(stream::iter(chunks(bytes)).boxed())
}

/// Bytes of an Arrow IPC stream in pieces that fit into messages.
pub(super) fn chunks(bytes: Vec<u8>) -> impl Iterator<Item = Result<ArrowChunk, Status>> + Send {
    let bytes = axum::body::Bytes::from(bytes);
    (0..bytes.len()).step_by(CHUNK_BYTES).map(move |from| {
        let data = bytes.slice(from..bytes.len().min(from + CHUNK_BYTES));
        Ok(ArrowChunk { data: data.into() })
    })
}
