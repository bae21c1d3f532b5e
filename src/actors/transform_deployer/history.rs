//! What the store knows of scripts, by its tables `transform_history` and `transform_versions`.

use crate::{
    actors::redis_queue::{rows, select},
    messages::ScriptText,
    protocol::script_history::{ScriptAction, ScriptEvent, ScriptState},
    queue::{Keys, RedisLink},
    text::sql_literal,
};
use anyhow::Context as _;
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
    for row in rows(&select(redis, keys, sql.into()).await?) {
        // An action of a later version of this program changes nothing that this one knows.
        let Some(action) = ScriptAction::named(row.text(2).unwrap_or_default()) else { continue };
        let params = row.text(5).map(serde_json::from_str).transpose();
        states.entry(row.owned(0)).or_default().apply(ScriptEvent {
            seq: row.int(1).unwrap_or_default(),
            at_us: row.int(6).unwrap_or_default(),
            action,
            sha256: row.text(3).unwrap_or_default(),
            reason: row.text(4).unwrap_or_default(),
            params: params.context("the parameters of a script cannot be read")?,
        });
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
        sql_literal(sha256)
    );
    let found = select(redis, keys, sql).await?;
    let Some(row) = rows(&found).next() else { return Ok(None) };
    let modules = serde_json::from_str(row.text(2).unwrap_or_default())
        .context("the helpers of a script cannot be read")?;
    Ok(Some(ScriptText { name: row.owned(0), source: row.owned(1), modules }))
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
        sql_literal(stream),
        sql_literal(sha256)
    );
    Ok(rows(&select(redis, keys, sql).await?).next().is_some())
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
        sql_literal(stream),
        sql_literal(beginning)
    );
    Ok(rows(&select(redis, keys, sql).await?).map(|row| row.owned(0)).collect())
}
