//! `POST /get-historical-features`: a spine as an Arrow IPC stream, or as JSON (see [`super::feast`]); how
//! it is asked is in the query string. The answer to JSON is JSON, unless an Arrow IPC stream is
//! accepted. The header `x-millstream-as-of` says up to which commit the answer looks.

use super::{Answering, Ask, Problem, Spine, feast, spine::Columns};
use crate::{
    messages::Watermark,
    node::NodeView,
    protocol::as_of::Mode,
    service::http::{ARROW_STREAM, problem},
};
use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Query, State},
    http::{HeaderMap, HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use futures::stream::StreamExt;
use serde::Deserialize;

/// Bytes of a spine at most: ten million rows with some columns of their own.
pub(super) const MOST_SPINE_BYTES: usize = 2 << 30;
/// Bytes of a JSON body at most, and answers that are given as JSON.
const MOST_JSON_BYTES: usize = 64 << 20;
const MOST_JSON_ANSWERS: usize = 2_000_000;
const AS_OF: HeaderName = HeaderName::from_static("x-millstream-as-of");

/// Parameters of the question.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    /// Names of features, separated by commas; a JSON body may have them instead.
    #[serde(default)]
    features: String,
    entity: Option<String>,
    time: Option<String>,
    #[serde(default = "as_known")]
    mode: Mode,
    #[serde(default)]
    strict: bool,
    max_age_s: Option<f64>,
    /// Zone of times that carry none; only `UTC`.
    timezone: Option<String>,
    #[serde(default)]
    wait: bool,
}

fn as_known() -> Mode {
    Mode::AsKnown
}

/// The route.
pub(in crate::service) fn routes() -> Router<NodeView> {
    Router::new()
        .route("/get-historical-features", post(get_historical_features))
        .layer(DefaultBodyLimit::max(MOST_SPINE_BYTES))
}

async fn get_historical_features(
    State(view): State<NodeView>,
    Query(parameters): Query<Parameters>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match answer(view, parameters, &headers, body).await {
        Ok(response) => response,
        Err(Problem::Invalid(why)) => problem(StatusCode::BAD_REQUEST, why),
        Err(Problem::NoStream(why) | Problem::NoFeature(why)) => {
            problem(StatusCode::NOT_FOUND, why)
        }
        Err(Problem::Unavailable(why)) => problem(StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

async fn answer(
    view: NodeView,
    parameters: Parameters,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let mut ask = ask(parameters)?;
    let says = |name, kind| {
        headers.get(name).and_then(|v| v.to_str().ok()).is_some_and(|v: &str| v.contains(kind))
    };
    let is_json = says(header::CONTENT_TYPE, "application/json");
    let spine = if is_json {
        if body.len() > MOST_JSON_BYTES {
            let most = MOST_JSON_BYTES >> 20;
            let why = format!("a JSON body has at most {most} MiB: send an Arrow IPC stream");
            return Err(Problem::Invalid(why));
        }
        let question: feast::Question = serde_json::from_slice(&body)
            .map_err(|error| Problem::Invalid(format!("the body cannot be read: {error}")))?;
        let rows = question.spine()?;
        ask.features.extend(question.features);
        Spine::Rows(rows)
    } else {
        Spine::Arrow(body)
    };
    if is_json && !says(header::ACCEPT, ARROW_STREAM) {
        return as_json(view, spine, ask).await;
    }
    let answering = Answering::begin(view, spine, ask).await?;
    let (watermark, pieces) = answering.into_arrow().await?;
    // Whoever reads a stream that breaks off sees that it has no end.
    let pieces = pieces.map(|piece| {
        piece.map(Bytes::from).map_err(|problem| std::io::Error::other(format!("{problem:?}")))
    });
    let headers = [(header::CONTENT_TYPE, ARROW_STREAM.to_owned()), (AS_OF, as_of(watermark))];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

fn ask(parameters: Parameters) -> Result<Ask, Problem> {
    let Parameters { features, entity, time, mode, strict, max_age_s, timezone, wait } = parameters;
    let naive_is_utc = match timezone.as_deref() {
        None => false,
        Some("UTC") => true,
        Some(other) => {
            return Err(Problem::Invalid(format!("the time zone {other:?} is not known: say UTC")));
        }
    };
    let usual = Columns::default();
    let columns = Columns {
        entity: entity.unwrap_or(usual.entity),
        time: time.unwrap_or(usual.time),
        naive_is_utc,
    };
    let features = features.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    let max_age_us = max_age_s.map(|s| (s * 1e6) as i64);
    Ok(Ask { features, columns, mode, strict, max_age_us, wait })
}

async fn as_json(view: NodeView, spine: Spine, ask: Ask) -> Result<Response, Problem> {
    let n_features = ask.features.len();
    let mut answering = Answering::begin(view, spine, ask).await?;
    if answering.rows().saturating_mul(n_features) > MOST_JSON_ANSWERS {
        return Err(Problem::Invalid(format!(
            "at most {MOST_JSON_ANSWERS} answers are given as JSON: accept {ARROW_STREAM}"
        )));
    }
    let schema = answering.schema();
    let mut batches = Vec::new();
    while let Some(batch) = answering.next().await? {
        batches.push(batch);
    }
    let as_of = as_of(answering.watermark());
    let n_own = schema.fields().len() - 3 * n_features;
    let writing = tokio::task::spawn_blocking(move || feast::answer(&schema, n_own, &batches));
    let json = writing.await.map_err(super::internal)??;
    Ok(([(AS_OF, as_of)], Json(json)).into_response())
}

/// Nothing before the first commit.
fn as_of(watermark: Option<Watermark>) -> String {
    let at = watermark.and_then(|w| chrono::DateTime::from_timestamp_micros(w.stamp_us));
    at.map_or_else(String::new, |at| at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true))
}
