//! What DuckDB holds of features and events, over HTTP: lists, history, lineage, the way of an event.

use super::{dlq::rows, http::problem};
use crate::{
    messages::{ReadReply, ReadRequest},
    node::NodeView,
    text::sql_literal,
};
use axum::{
    Json, Router,
    extract::{Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;
use uuid::Uuid;

/// Rows that a list has, unless it is told otherwise, and at most.
const LISTED: usize = 100;
const MOST_LISTED: usize = 100_000;

/// How long a comparison may take; it waits while the online store is being rebuilt.
const SKEW_PATIENCE: Duration = Duration::from_secs(120);

/// The version order, greatest first.
const NEWEST_FIRST: &str =
    "f.event_timestamp DESC, f.created_at DESC, f.source_no DESC, f.pos DESC, f.sub DESC";

/// A value and where it came from; `committed_at` is when it became durable.
pub(super) const VALUE: &str = "f.entity_id, f.feature_name, f.value, f.event_timestamp, f.created_at, f.available_at,
    f.event_id::VARCHAR AS event_id, s.source, f.pos, f.sub, f.batch_seq, l.transform, l.script_sha256,
    l.node, l.committed_at";

pub(super) const VALUES: &str = "features_table f JOIN sources s USING (source_no)
    LEFT JOIN ingest_ledger l ON l.batch_seq = f.batch_seq";

/// The routes.
pub fn routes() -> Router<NodeView> {
    Router::new()
        .route("/api/features", get(list))
        .route("/api/features/history", get(history))
        .route("/api/features/entities", get(entities))
        .route("/api/features/skew", get(skew))
        .route("/api/trace", get(trace))
}

/// Parameters of `GET /api/features`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ListParameters {
    /// Features whose names fit this pattern of `GLOB`.
    like: Option<String>,
}

/// Parameters of `GET /api/features/history`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HistoryParameters {
    entity: String,
    feature: Option<String>,
    limit: Option<usize>,
}

/// Parameters of `GET /api/features/entities`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EntitiesParameters {
    feature: String,
    limit: Option<usize>,
}

/// Parameters of `GET /api/features/skew`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SkewParameters {
    keys: usize,
}

impl Default for SkewParameters {
    fn default() -> Self {
        Self { keys: 1_000 }
    }
}

/// Parameters of `GET /api/trace`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TraceParameters {
    event_id: Uuid,
}

fn limit(asked: Option<usize>) -> usize {
    asked.unwrap_or(LISTED).min(MOST_LISTED)
}

async fn answer(view: &NodeView, sql: String) -> Response {
    match rows(view, sql).await {
        Ok(found) => Json(found).into_response(),
        Err(error) => problem(StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}")),
    }
}

async fn list(
    State(view): State<NodeView>,
    Query(ListParameters { like }): Query<ListParameters>,
) -> Response {
    answer(&view, list_sql(like.as_deref())).await
}

/// Freshness is from the newest event timestamp to now.
fn list_sql(like: Option<&str>) -> String {
    let condition = like
        .map_or_else(String::new, |like| format!("WHERE feature_name GLOB {}", sql_literal(like)));
    format!(
        "SELECT feature_name, count(*) AS n_rows, count(DISTINCT entity_id) AS n_entities,
                count(*) - count(value) AS n_null, min(event_timestamp) AS first_seen,
                max(event_timestamp) AS last_seen, max(available_at) AS last_available,
                epoch(now()) - epoch(max(event_timestamp)) AS freshness_s
         FROM features_table {condition} GROUP BY feature_name ORDER BY feature_name"
    )
}

async fn history(
    State(view): State<NodeView>,
    Query(HistoryParameters { entity, feature, limit: asked }): Query<HistoryParameters>,
) -> Response {
    answer(&view, history_sql(&entity, feature.as_deref(), limit(asked))).await
}

fn history_sql(entity: &str, feature: Option<&str>, limit: usize) -> String {
    let condition = feature.map_or_else(String::new, |feature| {
        format!("AND f.feature_name = {}", sql_literal(feature))
    });
    format!(
        "SELECT {VALUE} FROM {VALUES} WHERE f.entity_id = {} {condition}
         ORDER BY {NEWEST_FIRST} LIMIT {limit}",
        sql_literal(entity)
    )
}

async fn entities(
    State(view): State<NodeView>,
    Query(EntitiesParameters { feature, limit: asked }): Query<EntitiesParameters>,
) -> Response {
    answer(&view, entities_sql(&feature, limit(asked))).await
}

/// Each entity with its newest value; those that changed last come first.
fn entities_sql(feature: &str, limit: usize) -> String {
    format!(
        "SELECT f.entity_id, f.value, f.event_timestamp, f.available_at,
                count(*) OVER (PARTITION BY f.entity_id) AS n_rows
         FROM features_table f WHERE f.feature_name = {}
         QUALIFY row_number() OVER (PARTITION BY f.entity_id ORDER BY {NEWEST_FIRST}) = 1
         ORDER BY f.event_timestamp DESC, f.entity_id LIMIT {limit}",
        sql_literal(feature)
    )
}

/// Compares the online values of a sample with DuckDB's newest.
async fn skew(
    State(view): State<NodeView>,
    Query(SkewParameters { keys }): Query<SkewParameters>,
) -> Response {
    match view.read(&ReadRequest::Skew { keys }, SKEW_PATIENCE).await {
        Ok((ReadReply::Json, json)) => {
            ([(header::CONTENT_TYPE, "application/json")], json).into_response()
        }
        Ok((ReadReply::Failed { reason, .. }, _)) => {
            problem(StatusCode::SERVICE_UNAVAILABLE, reason)
        }
        Ok(_) => problem(StatusCode::INTERNAL_SERVER_ERROR, "an answer of another kind"),
        Err(error) => problem(StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}")),
    }
}

async fn trace(
    State(view): State<NodeView>,
    Query(TraceParameters { event_id }): Query<TraceParameters>,
) -> Response {
    let [made, died] = trace_sql(event_id);
    match tokio::try_join!(rows(&view, made), rows(&view, died)) {
        Ok((values, dead_letters)) if values.is_empty() && dead_letters.is_empty() => problem(
            StatusCode::NOT_FOUND,
            format!(
                "nothing in DuckDB is of the event {event_id}: it was filtered by its script, is still on its way, \
                 or never came"
            ),
        ),
        Ok((values, dead_letters)) => {
            let traced: Value = json!({
                "event_id": event_id, "values": values, "dead_letters": dead_letters,
            });
            Json(traced).into_response()
        }
        Err(error) => problem(StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}")),
    }
}

/// Its values, and its dead letters.
fn trace_sql(event_id: Uuid) -> [String; 2] {
    [
        format!(
            "SELECT {VALUE} FROM {VALUES} WHERE f.event_id = '{event_id}'::UUID
             ORDER BY f.batch_seq, f.pos, f.sub"
        ),
        format!(
            "SELECT s.source, d.pos, d.batch_seq, d.stage, d.reason, d.detail, d.entity_id,
                    d.script_sha256, l.transform, l.node, d.recorded_at, l.committed_at,
                    r.replay_id
             FROM dead_letters d JOIN sources s USING (source_no)
             LEFT JOIN ingest_ledger l ON l.batch_seq = d.batch_seq
             LEFT JOIN dead_letter_replays r ON r.source_no = d.source_no AND r.pos = d.pos
             WHERE d.event_id = '{event_id}'::UUID ORDER BY d.batch_seq, d.pos"
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::QueryBounds;

    /// A store with an entity whose newest value of `f` came first, and an event that died once.
    fn store() -> duckdb::Connection {
        let connection = duckdb::Connection::open_in_memory().unwrap();
        connection.execute_batch(crate::store::schema::DDL).unwrap();
        connection
            .execute_batch(
                "INSERT INTO sources (source_no, source, token, token_no, owner, next_pos, start_pos, updated_at)
                     VALUES (1, 'kafka:s/t/0', gen_random_uuid(), 1, 'o', 9, 0, now());
                 INSERT INTO ingest_ledger (batch_seq, source_no, token_no, from_pos, to_pos, n_in, n_kept, n_dead,
                                            n_filtered, n_rows, transform, script_sha256, node, committed_at)
                     VALUES (1, 1, 1, 0, 9, 3, 2, 1, 0, 3, 'script', 'sha', 'n', now());
                 INSERT INTO features_table
                     SELECT e, f, v, make_timestamptz(t), make_timestamptz(t), id::UUID, now(), 1, 1, p, 0
                     FROM (VALUES ('it''s', 'f', 2.0, 20, NULL, 0), ('it''s', 'f', 1.0, 10, NULL, 1),
                                  ('b', 'f', NULL, 5, NULL, 2),
                                  ('b', 'g', 7.0, 5, '01900000-0000-7000-8000-000000000001', 3)) x(e, f, v, t, id, p);
                 INSERT INTO dead_letters
                     SELECT 1, 1, 4, '01900000-0000-7000-8000-000000000002', 'b', 'decode', 'r', 'd', NULL, NULL,
                            NULL, 'sha', now(), now();",
            )
            .unwrap();
        connection
    }

    fn asked(sql: &str) -> Vec<Value> {
        let bytes =
            crate::store::reader::query(&store(), sql, QueryBounds::default(), 1 << 30, || false)
                .unwrap();
        let reader =
            arrow::ipc::reader::StreamReader::try_new(std::io::Cursor::new(bytes), None).unwrap();
        let mut writer = arrow::json::ArrayWriter::new(Vec::new());
        reader.for_each(|batch| writer.write(&batch.unwrap()).unwrap());
        writer.finish().unwrap();
        match writer.into_inner() {
            json if json.is_empty() => Vec::new(),
            json => serde_json::from_slice(&json).unwrap(),
        }
    }

    #[test]
    fn features_are_listed_with_their_counts() {
        let found = asked(&list_sql(None));
        let counts = |i: usize| ["n_rows", "n_entities", "n_null"].map(|c| found[i][c].as_i64());
        assert_eq!(counts(0), [Some(3), Some(2), Some(1)]);
        assert_eq!(counts(1), [Some(1), Some(1), Some(0)]);
        assert_eq!(asked(&list_sql(Some("g*"))).len(), 1);
        assert!(asked(&list_sql(Some("'"))).is_empty());
    }

    #[test]
    fn history_is_in_version_order_and_names_its_script() {
        let found = asked(&history_sql("it's", Some("f"), 10));
        let values: Vec<_> = found.iter().map(|row| row["value"].as_f64().unwrap()).collect();
        assert_eq!(values, [2.0, 1.0]);
        assert_eq!(
            (&found[0]["transform"], &found[0]["source"]),
            (&"script".into(), &"kafka:s/t/0".into())
        );
        assert_eq!(asked(&history_sql("b", None, 1)).len(), 1);
    }

    #[test]
    fn entities_have_their_newest_value() {
        let found = asked(&entities_sql("f", 10));
        let told: Vec<_> = found
            .iter()
            .map(|row| (row["entity_id"].as_str().unwrap(), row["value"].as_f64()))
            .collect();
        assert_eq!(told, [("it's", Some(2.0)), ("b", None)]);
    }

    #[test]
    fn an_event_is_found_by_its_values_or_its_letters() {
        let of = |last: u8| {
            let id = format!("01900000-0000-7000-8000-00000000000{last}").parse().unwrap();
            trace_sql(id).map(|sql| asked(&sql).len())
        };
        assert_eq!((of(1), of(2), of(3)), ([1, 0], [0, 1], [0, 0]));
    }
}
