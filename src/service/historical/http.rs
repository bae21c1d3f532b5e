//! `POST /get-historical-features`: a spine as an Arrow IPC stream, what is asked in the query string;
//! the answer is an Arrow IPC stream. The header `x-millstream-as-of` says up to which commit the answer
//! looks.

use super::{Answering, Ask, Problem, spine::Columns};
use crate::{
    node::NodeView,
    protocol::as_of::Mode,
    service::http::{ARROW_STREAM, problem},
};
use arrow::ipc::writer::StreamWriter;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Query, State},
    http::{HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use futures::stream;
use serde::Deserialize;

/// Bytes of a spine at most: ten million rows with some columns of their own.
const MOST_SPINE_BYTES: usize = 2 << 30;
const AS_OF: HeaderName = HeaderName::from_static("x-millstream-as-of");

/// Parameters of the question.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    /// Names of features, separated by commas.
    features: String,
    #[serde(default = "entity_id")]
    entity: String,
    #[serde(default = "event_timestamp")]
    time: String,
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

fn entity_id() -> String {
    "entity_id".into()
}

fn event_timestamp() -> String {
    "event_timestamp".into()
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
    body: Bytes,
) -> Response {
    match answer(view, parameters, body).await {
        Ok(response) => response,
        Err(Problem::Invalid(why)) => problem(StatusCode::BAD_REQUEST, why),
        Err(Problem::NoStream(why) | Problem::NoFeature(why)) => {
            problem(StatusCode::NOT_FOUND, why)
        }
        Err(Problem::Unavailable(why)) => problem(StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

async fn answer(view: NodeView, parameters: Parameters, body: Bytes) -> Result<Response, Problem> {
    let Parameters { features, entity, time, mode, strict, max_age_s, timezone, wait } = parameters;
    let naive_is_utc = match timezone.as_deref() {
        None => false,
        Some("UTC") => true,
        Some(other) => {
            return Err(Problem::Invalid(format!("the time zone {other:?} is not known: say UTC")));
        }
    };
    let ask = Ask {
        features: features.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        columns: Columns { entity, time, naive_is_utc },
        mode,
        strict,
        max_age_us: max_age_s.map(|s| (s * 1e6) as i64),
        wait,
    };
    let mut answering = Answering::begin(view, body, ask).await?;
    let schema = answering.schema();
    // The first rows are waited for: most errors show then, and can still be said.
    let first = answering.next().await?;
    let as_of = answering.watermark().map_or_else(String::new, |watermark| {
        chrono::DateTime::from_timestamp_micros(watermark.stamp_us)
            .map(|at| at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true))
            .unwrap_or_default()
    });
    let writer = StreamWriter::try_new(Vec::new(), &schema);
    let writer = writer.map_err(|error| Problem::Unavailable(error.to_string()))?;
    let pieces = stream::unfold(Some((writer, first, answering)), |state| async move {
        let (mut writer, batch, mut answering) = state?;
        let failed = |error: &dyn std::fmt::Display| std::io::Error::other(error.to_string());
        let Some(batch) = batch else {
            let end = writer.into_inner().map(Bytes::from).map_err(|error| failed(&error));
            return Some((end, None));
        };
        if let Err(error) = writer.write(&batch) {
            return Some((Err(failed(&error)), None));
        }
        let piece = std::mem::take(writer.get_mut());
        match answering.next().await {
            Ok(next) => Some((Ok(Bytes::from(piece)), Some((writer, next, answering)))),
            // The stream breaks off: whoever reads it sees that it has no end.
            Err(problem) => {
                tracing::warn!(?problem, "a training set breaks off");
                Some((Err(failed(&format!("{problem:?}"))), None))
            }
        }
    });
    let headers = [(header::CONTENT_TYPE, ARROW_STREAM.to_owned()), (AS_OF, as_of)];
    Ok((headers, Body::from_stream(pieces)).into_response())
}
