//! Dead letters over HTTP: the list, one letter, replays.

use super::http::problem;
use crate::{
    actors::{redis_queue::select_for_client, replayer::Filter},
    json_rows::json_rows,
    node::NodeView,
    text::sql_literal,
};
use anyhow::Context as _;
use axum::{
    Json, Router,
    extract::{Query, State, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::Value;

/// Letters that a list has at most.
const MOST_LISTED: usize = 10_000;

/// Parameters of `GET /api/dlq`. They stand here one by one: axum cannot flatten numbers.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ListParameters {
    stream: Option<String>,
    reason: Option<String>,
    source: Option<String>,
    limit: Option<usize>,
}

/// Parameters of `GET /api/dlq/letter`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LetterParameters {
    source: String,
    pos: i64,
}

/// Body of `POST /api/dlq/replay`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ReplayBody {
    stream: Option<String>,
    reason: Option<String>,
    source: Option<String>,
    dry_run: bool,
}

/// The routes of dead letters.
pub fn routes() -> Router<NodeView> {
    Router::new()
        .route("/api/dlq", get(list))
        .route("/api/dlq/letter", get(letter))
        .route("/api/dlq/replay", post(replay))
}

/// What is known of a letter; `state` is `open`, `replaying` or `resolved`.
const LETTER: &str = "s.source, d.pos, d.stage, d.reason, d.detail, d.entity_id,
    d.event_id::VARCHAR AS event_id, d.raw_len, d.raw_sha256, d.script_sha256, d.stored_at, d.recorded_at,
    CASE WHEN r.replay_id IS NULL THEN 'open'
         WHEN r.place < coalesce(t.next_pos, 0) THEN 'resolved' ELSE 'replaying' END AS state,
    r.replay_id";

/// Letters with the replay that contains them, and how far that is.
const FROM: &str = "dead_letters d JOIN sources s USING (source_no)
    LEFT JOIN dead_letter_replays r ON r.source_no = d.source_no AND r.pos = d.pos
    LEFT JOIN replays p ON p.replay_id = r.replay_id
    LEFT JOIN sources t ON t.source = p.source";

async fn list(
    State(view): State<NodeView>,
    Query(ListParameters { stream, reason, source, limit }): Query<ListParameters>,
) -> Response {
    let filter = Filter { stream, reason, source };
    let limit = limit.unwrap_or(100).min(MOST_LISTED);
    let sql = format!(
        "SELECT {LETTER} FROM {FROM} WHERE {}
         ORDER BY d.batch_seq DESC, d.pos DESC LIMIT {limit}",
        filter.sql()
    );
    match rows(&view, sql).await {
        Ok(letters) => Json(letters).into_response(),
        Err(error) => problem(StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}")),
    }
}

async fn letter(
    State(view): State<NodeView>,
    Query(LetterParameters { source, pos }): Query<LetterParameters>,
) -> Response {
    let sql = format!(
        "SELECT {LETTER}, d.raw FROM {FROM} WHERE s.source = {} AND d.pos = {pos}
         ORDER BY d.source_no DESC LIMIT 1",
        sql_literal(&source)
    );
    match rows(&view, sql).await.map(|mut letters| letters.pop()) {
        Ok(Some(mut letter)) => {
            with_text(&mut letter);
            Json(letter).into_response()
        }
        Ok(None) => {
            problem(StatusCode::NOT_FOUND, format!("no dead letter stands at {pos} of {source}"))
        }
        Err(error) => problem(StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}")),
    }
}

async fn replay(
    State(view): State<NodeView>,
    body: Result<Json<ReplayBody>, JsonRejection>,
) -> Response {
    let Json(ReplayBody { stream, reason, source, dry_run }) = match body {
        Ok(body) => body,
        Err(rejection) => return problem(StatusCode::BAD_REQUEST, rejection.body_text()),
    };
    let Some(desk) = &view.replays else {
        let why = "this node does not replay: ask one with the role `process`";
        return problem(StatusCode::BAD_REQUEST, why);
    };
    if let Some(name) = &stream
        && !view.config.streams.iter().any(|s| s.name == *name)
    {
        return problem(StatusCode::BAD_REQUEST, format!("there is no stream `{name}`"));
    }
    match desk.replay(&Filter { stream, reason, source }, dry_run).await {
        Ok(outcome) => Json(outcome).into_response(),
        Err(error) => problem(StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}")),
    }
}

/// Bytes of a list as JSON, at most.
const MOST_JSON_BYTES: usize = 256 << 20;

/// The rows of a SELECT as JSON objects; bytes are hexadecimal.
pub(super) async fn rows(view: &NodeView, sql: String) -> anyhow::Result<Vec<Value>> {
    let redis = view.redis.as_ref().context("this node has no Redis to ask through")?;
    let batches = select_for_client(redis, &view.keys, sql).await?;
    Ok(serde_json::from_slice(&json_rows(&batches, MOST_JSON_BYTES)?)?)
}

/// Adds the raw record as text, when it is text.
fn with_text(letter: &mut Value) {
    let text = letter["raw"].as_str().and_then(unhex).and_then(|raw| String::from_utf8(raw).ok());
    letter["raw_text"] = text.map_or(Value::Null, Value::String);
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_is_shown_as_text() {
        for (raw, text) in [
            (serde_json::json!("7b7d"), serde_json::json!("{}")),
            (serde_json::json!(""), serde_json::json!("")),
            (serde_json::json!("ff"), Value::Null),
            (Value::Null, Value::Null),
        ] {
            let mut letter = serde_json::json!({ "raw": raw });
            with_text(&mut letter);
            assert_eq!(letter["raw_text"], text);
        }
    }
}
