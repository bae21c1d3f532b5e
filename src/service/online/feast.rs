//! `POST /get-online-features`: the question and the answer of Feast's feature server (0.67), so that
//! its clients can ask here. A feature view is a stream.
//!
//! Where Feast's own server says less than its format can, this one says it: the status of each value
//! (Feast's Redis store calls everything `PRESENT`), the event timestamp of each feature rather than of
//! the first, and null for what is not there. A key of ours, `max_age_s`, limits the age.

use super::{Named, Problem, ask};
use crate::{node::NodeView, online::read::Newest, protocol::status::Status, text};
use axum::{
    Json, Router,
    extract::{State, rejection::JsonRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};

/// What stands for no timestamp.
const NO_TIMESTAMP: &str = "1970-01-01T00:00:00Z";

/// Body of the question. Other keys are ignored, as Feast does.
#[derive(Debug, Deserialize)]
struct Question {
    /// One key with the entities' ids.
    entities: BTreeMap<String, Vec<Value>>,
    #[serde(default)]
    features: Vec<String>,
    #[serde(default)]
    feature_service: Option<String>,
    #[serde(default)]
    full_feature_names: bool,
    #[serde(default)]
    max_age_s: Option<f64>,
}

/// The route.
pub(in crate::service) fn routes() -> Router<NodeView> {
    Router::new().route("/get-online-features", post(get_online_features))
}

async fn get_online_features(
    State(view): State<NodeView>,
    question: Result<Json<Question>, JsonRejection>,
) -> Response {
    let question = match question {
        Ok(Json(question)) => question,
        Err(rejection) => {
            return detail(StatusCode::UNPROCESSABLE_ENTITY, &rejection.body_text());
        }
    };
    match answer(&view, &question).await {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(problem) => refuse(problem),
    }
}

async fn answer(view: &NodeView, question: &Question) -> Result<Vec<u8>, Problem> {
    if question.feature_service.is_some() {
        let why = "there are no feature services: name the features";
        return Err(Problem::Invalid(why.into()));
    }
    if question.features.is_empty() {
        return Err(Problem::Invalid("no features are asked for".into()));
    }
    let (join_key, entities) = entities(&question.entities)?;
    let named = question.features.iter().map(|name| Named::of(name, &view.config));
    let named = named.collect::<Result<Vec<_>, _>>()?;
    let names: Vec<String> = named
        .iter()
        .map(|named| match named.stream.filter(|_| question.full_feature_names) {
            Some(stream) => format!("{stream}__{}", named.feature),
            None => named.feature.to_owned(),
        })
        .collect();
    let mut seen = HashSet::from([join_key]);
    if let Some(twice) = names.iter().find(|name| !seen.insert(name.as_str())) {
        return Err(Problem::Invalid(format!(
            "two columns of the answer would be called `{twice}`: ask for it once, or with full_feature_names"
        )));
    }
    let max_age_us = question.max_age_s.map(|s| (s * 1e6) as i64);
    let found = ask(view, &entities, &named, max_age_us).await?;
    Ok(body(join_key, &question.entities[join_key], &names, &found))
}

/// The join key and the ids, as texts.
fn entities(asked: &BTreeMap<String, Vec<Value>>) -> Result<(&str, Vec<String>), Problem> {
    let mut keys = asked.iter();
    let (Some((key, ids)), None) = (keys.next(), keys.next()) else {
        return Err(Problem::Invalid(format!(
            "`entities` has {} join keys: an entity has one",
            asked.len()
        )));
    };
    let id = |(row, id): (usize, &Value)| match id {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(Problem::Invalid(format!("row {row} of `{key}` is neither a text nor a number"))),
    };
    Ok((key, ids.iter().enumerate().map(id).collect::<Result<_, _>>()?))
}

/// The answer. Written by hand: it may have a hundred thousand values.
fn body(join_key: &str, ids: &[Value], names: &[String], found: &[Vec<Newest>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + 80 * (found.len() + 1) * (names.len() + 1));
    let list = |out: &mut Vec<u8>, n: usize, write: &mut dyn FnMut(&mut Vec<u8>, usize)| {
        out.push(b'[');
        for i in 0..n {
            if i > 0 {
                out.push(b',');
            }
            write(out, i);
        }
        out.push(b']');
    };
    let quoted = |out: &mut Vec<u8>, text: &str| {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    };
    out.extend_from_slice(b"{\"results\":");
    list(&mut out, names.len() + 1, &mut |out, column| {
        out.extend_from_slice(b"{\"values\":");
        list(out, ids.len(), &mut |out, row| match column.checked_sub(1) {
            None => out.extend_from_slice(ids[row].to_string().as_bytes()),
            Some(feature) => match found[row][feature].value {
                Some(value) => text::push_f64(out, value),
                None => out.extend_from_slice(b"null"),
            },
        });
        out.extend_from_slice(b",\"statuses\":");
        list(out, ids.len(), &mut |out, row| {
            let status = column.checked_sub(1).map(|feature| found[row][feature].status);
            quoted(out, status.unwrap_or(Status::Present).name());
        });
        out.extend_from_slice(b",\"event_timestamps\":");
        list(out, ids.len(), &mut |out, row| {
            let feature = column.checked_sub(1);
            match feature.and_then(|feature| found[row][feature].event_timestamp_us) {
                Some(us) => {
                    out.push(b'"');
                    push_timestamp(out, us);
                    out.push(b'"');
                }
                None => quoted(out, NO_TIMESTAMP),
            }
        });
        out.push(b'}');
    });
    out.extend_from_slice(b",\"metadata\":{\"feature_names\":");
    list(&mut out, names.len() + 1, &mut |out, column| match column.checked_sub(1) {
        None => text::push_string(out, join_key),
        Some(feature) => text::push_string(out, &names[feature]),
    });
    out.extend_from_slice(b"}}");
    out
}

/// With none, three or six digits of a second: as few as say it exactly.
pub(in crate::service) fn push_timestamp(out: &mut Vec<u8>, us: i64) {
    match us {
        us if us % 1_000_000 == 0 => text::push_instant(out, us / 1_000_000, 0),
        us if us % 1_000 == 0 => text::push_instant(out, us / 1_000, 3),
        us => text::push_instant(out, us, 6),
    }
}

/// What Feast's client makes the exception of that it names.
fn refuse(problem: Problem) -> Response {
    match problem {
        Problem::NoStream(message) => {
            let error = json!({ "module": "feast.errors", "class": "FeatureViewNotFoundException", "message": message });
            // A text that holds JSON: so Feast's server does it.
            (StatusCode::NOT_FOUND, Json(error.to_string())).into_response()
        }
        Problem::NoFeature(message) => detail(StatusCode::NOT_FOUND, &message),
        Problem::Invalid(message) => detail(StatusCode::UNPROCESSABLE_ENTITY, &message),
        Problem::Unavailable(message) => {
            let mut response = detail(StatusCode::SERVICE_UNAVAILABLE, &message);
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
            response
        }
    }
}

fn detail(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({ "detail": message }))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_feasts() {
        let newest = |value, status, event_timestamp_us: Option<i64>| Newest {
            value,
            status,
            event_timestamp_us,
            age_us: event_timestamp_us,
        };
        let found = [
            vec![newest(Some(1.0), Status::Present, Some(1_767_268_800_000_000))],
            vec![newest(None, Status::NullValue, Some(1_767_268_800_500_000))],
            vec![newest(Some(0.1), Status::Present, Some(1_767_268_800_123_456))],
            vec![Newest::NOT_FOUND],
        ];
        let ids = [json!("a\"b"), json!(7), json!("c"), json!("")];
        let body = body("entity_id", &ids, &["score".into()], &found);
        let expected = r#"{"results":[{"values":["a\"b",7,"c",""],"#.to_owned()
            + r#""statuses":["PRESENT","PRESENT","PRESENT","PRESENT"],"event_timestamps":["#
            + r#""1970-01-01T00:00:00Z","1970-01-01T00:00:00Z","1970-01-01T00:00:00Z","1970-01-01T00:00:00Z"]},"#
            + r#"{"values":[1.0,null,0.1,null],"statuses":["PRESENT","NULL_VALUE","PRESENT","NOT_FOUND"],"#
            + r#""event_timestamps":["2026-01-01T12:00:00Z","2026-01-01T12:00:00.500Z","#
            + r#""2026-01-01T12:00:00.123456Z","1970-01-01T00:00:00Z"]}],"#
            + r#""metadata":{"feature_names":["entity_id","score"]}}"#;
        assert_eq!(String::from_utf8(body).unwrap(), expected);
    }

    #[test]
    fn an_entity_has_one_key_and_an_id() {
        let of = |value: Value| {
            let asked = serde_json::from_value(value).unwrap();
            entities(&asked).map(|(key, ids)| (key.to_owned(), ids))
        };
        let ids = vec!["a".to_owned(), "12".to_owned()];
        assert_eq!(of(json!({ "user": ["a", 12] })), Ok(("user".into(), ids)));
        assert_eq!(of(json!({ "user": [] })), Ok(("user".into(), Vec::new())));
        for wrong in [json!({}), json!({ "a": [], "b": [] }), json!({ "a": ["x", null] })] {
            let Err(Problem::Invalid(why)) = of(wrong.clone()) else { panic!("{wrong}") };
            assert!(why.contains("join keys") || why.contains("row 1"), "{why}");
        }
    }
}
