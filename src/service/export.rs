//! `GET /api/features/export`: values of a range of time, as an Arrow IPC stream, in the order in which
//! they were stored. The store is asked piece by piece, so that an export of any size costs it no more
//! than one of its pieces, and nothing while nobody takes them.

use super::{
    dlq::rows,
    features::{VALUE, VALUES},
    http::{ARROW_STREAM, problem},
};
use crate::{
    decode::timestamp,
    messages::{QueryBounds, ReadReply, ReadRequest},
    node::NodeView,
    text::sql_literal,
};
use anyhow::{Context as _, bail};
use arrow::{
    array::RecordBatch,
    ipc::{reader::StreamReader, writer::StreamWriter},
};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures::stream;
use serde::Deserialize;
use std::{io::Cursor, time::Duration};

/// Rows of a piece, about; a batch is never divided.
const PIECE_ROWS: usize = 50_000;
/// How long the store may take with a piece.
const PATIENCE: Duration = Duration::from_secs(180);

/// Parameters of the export.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Parameters {
    /// From this instant on, RFC 3339.
    from: Option<String>,
    /// Before this instant.
    to: Option<String>,
    /// Which time of a value is meant.
    by: By,
    /// Names of features, separated by commas; none: all.
    features: String,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum By {
    /// When it became true.
    #[default]
    EventTimestamp,
    /// When it was in the store.
    AvailableAt,
}

/// The route.
pub(super) fn routes() -> Router<NodeView> {
    Router::new().route("/api/features/export", get(export))
}

async fn export(State(view): State<NodeView>, Query(parameters): Query<Parameters>) -> Response {
    let condition = match condition(&parameters) {
        Ok(condition) => condition,
        Err(why) => return problem(StatusCode::BAD_REQUEST, why),
    };
    match begin(view, condition).await {
        Ok(body) => ([(header::CONTENT_TYPE, ARROW_STREAM)], body).into_response(),
        Err(error) => problem(StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}")),
    }
}

/// What holds for the values, as SQL; or why it cannot be asked.
fn condition(parameters: &Parameters) -> Result<String, String> {
    let Parameters { from, to, by, features } = parameters;
    let column = match by {
        By::EventTimestamp => "f.event_timestamp",
        By::AvailableAt => "f.available_at",
    };
    let mut conditions = vec!["true".to_owned()];
    for (name, text, relation) in [("from", from, ">="), ("to", to, "<")] {
        if let Some(text) = text {
            let us =
                timestamp::parse(text, false).map_err(|why| format!("`{name}` {text:?}: {why}"))?;
            conditions.push(format!("{column} {relation} make_timestamptz({us}::BIGINT)"));
        }
    }
    let names: Vec<String> =
        features.split(',').filter(|name| !name.is_empty()).map(sql_literal).collect();
    if !names.is_empty() {
        conditions.push(format!("f.feature_name IN ({})", names.join(", ")));
    }
    Ok(conditions.join(" AND "))
}

/// Batches that divide the values into pieces; what is committed later is not among them.
fn pieces_sql(condition: &str) -> String {
    format!(
        "WITH counted AS (
             SELECT f.batch_seq, sum(count(*)) OVER (ORDER BY f.batch_seq) // {PIECE_ROWS} AS piece
             FROM features_table f WHERE {condition} GROUP BY f.batch_seq)
         SELECT min(batch_seq) AS first, max(batch_seq) AS last FROM counted GROUP BY piece ORDER BY piece"
    )
}

fn piece_sql(condition: &str, first: i64, last: i64) -> String {
    format!(
        "SELECT {VALUE} FROM {VALUES}
         WHERE f.batch_seq >= {first} AND f.batch_seq <= {last} AND {condition}
         ORDER BY f.batch_seq, f.pos, f.sub"
    )
}

/// Finds the pieces, and the columns from the first of them.
async fn begin(view: NodeView, condition: String) -> anyhow::Result<Body> {
    let pieces = rows(&view, pieces_sql(&condition)).await?;
    let piece = |row: &serde_json::Value| Some((row["first"].as_i64()?, row["last"].as_i64()?));
    let pieces: Option<Vec<(i64, i64)>> = pieces.iter().map(piece).collect();
    let mut pieces = pieces.context("a piece has no batches")?.into_iter();
    // Without any, the columns are told by a piece that has no rows.
    let (first, last) = pieces.next().unwrap_or((0, 0));
    let (schema, first) = fetch(&view, piece_sql(&condition, first, last)).await?;
    let mut writer = StreamWriter::try_new(Vec::new(), &schema)?;
    for batch in first {
        writer.write(&batch)?;
    }
    let stream = stream::unfold(Some((writer, pieces)), move |state| {
        let (view, condition) = (view.clone(), condition.clone());
        async move {
            let (mut writer, mut pieces) = state?;
            let bytes = Bytes::from(std::mem::take(writer.get_mut()));
            let Some((first, last)) = pieces.next() else {
                let end = writer.into_inner().map(|end| Bytes::from([&bytes[..], &end].concat()));
                return Some((end.map_err(std::io::Error::other), None));
            };
            match next(&view, &mut writer, piece_sql(&condition, first, last)).await {
                Ok(()) => Some((Ok(bytes), Some((writer, pieces)))),
                // The stream breaks off: whoever reads it sees that it has no end.
                Err(error) => {
                    tracing::warn!(error = %format!("{error:#}"), "an export breaks off");
                    Some((Err(std::io::Error::other(error)), None))
                }
            }
        }
    });
    Ok(Body::from_stream(stream))
}

async fn next(
    view: &NodeView,
    writer: &mut StreamWriter<Vec<u8>>,
    sql: String,
) -> anyhow::Result<()> {
    for batch in fetch(view, sql).await?.1 {
        writer.write(&batch)?;
    }
    Ok(())
}

async fn fetch(
    view: &NodeView,
    sql: String,
) -> anyhow::Result<(arrow::datatypes::SchemaRef, Vec<RecordBatch>)> {
    let request = ReadRequest::Query { sql, bounds: QueryBounds::LIMITS, own: false };
    match view.read(&request, PATIENCE).await? {
        (ReadReply::Failed { reason, .. }, _) => bail!("the store cannot be asked: {reason}"),
        (_, bytes) => {
            let reader = StreamReader::try_new(Cursor::new(bytes), None)?;
            let schema = reader.schema();
            Ok((schema, reader.collect::<Result<_, _>>()?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_its_first_instant_and_not_its_last() {
        let of = |from: Option<&str>, to: Option<&str>, features: &str| {
            let (from, to) = (from.map(str::to_owned), to.map(str::to_owned));
            condition(&Parameters { from, to, by: By::AvailableAt, features: features.into() })
        };
        assert_eq!(of(None, None, "").unwrap(), "true");
        assert_eq!(
            of(Some("1970-01-01T00:00:01Z"), Some("1970-01-01T00:00:02Z"), "a,it's").unwrap(),
            "true AND f.available_at >= make_timestamptz(1000000::BIGINT) AND f.available_at < \
             make_timestamptz(2000000::BIGINT) AND f.feature_name IN ('a', 'it''s')"
        );
        assert!(of(Some("1970-01-01"), None, "").unwrap_err().contains("`from`"));
    }
}
