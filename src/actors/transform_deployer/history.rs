//! What the store knows of scripts, by its tables `transform_history` and `transform_versions`.

use crate::{
    actors::{redis_queue::select, replayer::quoted},
    messages::ScriptText,
    protocol::script_history::{ScriptAction, ScriptEvent, ScriptState},
    queue::{Keys, RedisLink},
};
use anyhow::Context as _;
use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::Int64Type,
};
use std::collections::HashMap;

/// What every stream runs.
///
/// # Errors
/// When no store answers.
pub async fn states(
    redis: &RedisLink,
    keys: &Keys,
) -> anyhow::Result<HashMap<String, ScriptState>> {
    let sql = "SELECT stream, seq, action, script_sha256, reason, params, epoch_us(noted_at)
               FROM transform_history WHERE action != 'refused' ORDER BY seq";
    let mut states: HashMap<String, ScriptState> = HashMap::new();
    for batch in select(redis, keys, sql.into()).await? {
        let text = |i: usize| batch.column(i).as_string::<i32>();
        let (streams, actions, versions) = (text(0), text(2), text(3));
        let (reasons, params) = (text(4), text(5));
        let numbers = batch.column(1).as_primitive::<Int64Type>();
        let times = batch.column(6).as_primitive::<Int64Type>();
        for i in 0..batch.num_rows() {
            // An action of a later version of this program changes nothing that this one knows.
            let Some(action) = ScriptAction::named(actions.value(i)) else { continue };
            let params = params.is_valid(i).then(|| params.value(i));
            let params = params.map(serde_json::from_str).transpose();
            states.entry(streams.value(i).to_owned()).or_default().apply(ScriptEvent {
                seq: numbers.value(i),
                at_us: times.value(i),
                action,
                sha256: versions.value(i),
                reason: reasons.value(i),
                params: params.context("the parameters of a script cannot be read")?,
            });
        }
    }
    Ok(states)
}

/// The texts of a version; `None`: the store does not know it.
///
/// # Errors
/// When no store answers.
pub async fn text(
    redis: &RedisLink,
    keys: &Keys,
    sha256: &str,
) -> anyhow::Result<Option<ScriptText>> {
    let sql = format!(
        "SELECT name, source, modules FROM transform_versions WHERE script_sha256 = {}",
        quoted(sha256)
    );
    let found = select(redis, keys, sql).await?;
    let Some(batch) = found.iter().find(|batch| batch.num_rows() > 0) else { return Ok(None) };
    let text = |i: usize| batch.column(i).as_string::<i32>().value(0);
    let modules =
        serde_json::from_str(text(2)).context("the helpers of a script cannot be read")?;
    Ok(Some(ScriptText { name: text(0).to_owned(), source: text(1).to_owned(), modules }))
}

/// Whether a version was ever tried or run by a stream.
///
/// # Errors
/// When no store answers.
pub async fn is_known(
    redis: &RedisLink,
    keys: &Keys,
    stream: &str,
    sha256: &str,
) -> anyhow::Result<bool> {
    let sql = format!(
        "SELECT seq FROM transform_history WHERE stream = {} AND script_sha256 = {} LIMIT 1",
        quoted(stream),
        quoted(sha256)
    );
    Ok(select(redis, keys, sql).await?.iter().any(|batch| batch.num_rows() > 0))
}

/// Versions of a stream's history whose SHA-256 begins like this, the newest first.
///
/// # Errors
/// When no store answers.
pub async fn versions_like(
    redis: &RedisLink,
    keys: &Keys,
    stream: &str,
    beginning: &str,
) -> anyhow::Result<Vec<String>> {
    let sql = format!(
        "SELECT script_sha256 FROM transform_history WHERE stream = {} AND starts_with(script_sha256, {})
         GROUP BY 1 ORDER BY max(seq) DESC",
        quoted(stream),
        quoted(beginning)
    );
    let found = select(redis, keys, sql).await?;
    let names = |batch: &RecordBatch| -> Vec<String> {
        batch.column(0).as_string::<i32>().iter().flatten().map(str::to_owned).collect()
    };
    Ok(found.iter().flat_map(names).collect())
}
