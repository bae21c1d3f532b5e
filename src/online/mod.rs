//! The online store: the newest value of every critical feature, in Redis.
//!
//! | key | content |
//! |---|---|
//! | `{ns}:entity:<entity_id>` | hash, a field a feature: `value\|event timestamp\|version` |
//! | `{ns}:feature:<feature_name>` | hash `value`, `timestamp`, `entity_id`, `version`: the newest over all entities |
//!
//! Both are written by one atomic script that never lets an older version win, however writes are
//! repeated or reordered. A batch is first reduced to the newest value a key.

pub mod marks;
mod repair;

pub use repair::repair;

use crate::{
    config::StreamConfig,
    messages::OnlineValue,
    protocol::{
        source::{Position, SourceName, Token},
        version::Version,
    },
    queue::Keys,
};
use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{Float64Type, Int32Type, Int64Type, TimestampMicrosecondType},
};
use redis::{Script, aio::ConnectionManager};
use serde_json::json;
use std::collections::HashMap;

/// Fields that one call writes at most, so that no call keeps Redis from others for long.
const FIELDS_A_CALL: usize = 256;

/// The script. `KEYS` is not used: the keys' names depend on the data, and Redis Cluster is out of
/// scope.
const SCRIPT: &str = include_str!("write_online.lua");

/// A value as it is kept: readable, and with its version at a fixed place.
#[must_use]
pub fn format_field(value: Option<f64>, version: &Version, token_number: u32) -> String {
    format!(
        "{}|{}|{}",
        format_value(value),
        format_timestamp(version.event_timestamp),
        version.pack(token_number)
    )
}

/// Reads what [`format_field`] wrote: value, version, number of the token that wrote it.
#[must_use]
pub fn parse_field(text: &str) -> Option<(Option<f64>, Version, u32)> {
    let mut parts = text.split('|');
    let (value, _timestamp, version) = (parts.next()?, parts.next()?, parts.next()?);
    let value = if value == "null" { None } else { Some(value.parse().ok()?) };
    let (version, token_number) = Version::unpack(version)?;
    Some((value, version, token_number))
}

fn format_value(value: Option<f64>) -> String {
    value.map_or_else(|| "null".into(), |v| v.to_string())
}

fn format_timestamp(us: i64) -> String {
    chrono::DateTime::from_timestamp_micros(us)
        .map(|t| t.to_rfc3339_opts(chrono::SecondsFormat::Micros, true))
        .unwrap_or_default()
}

/// What the next owner of a source must know of values that are online but not yet durable.
#[derive(Debug, Clone)]
pub struct Promise<'a> {
    /// Positions before this one may be online.
    pub to: Position,
    /// The script version that made them.
    pub script_sha256: &'a str,
    /// Whether everything before the part is durable: only then another version may be promised.
    pub settled: bool,
}

/// What became of an online write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnlineOutcome {
    /// Every value is online, or a newer one is.
    Written,
    /// The token is not the current one: the source has another owner.
    Fenced,
    /// What another script version has shown before is not durable yet: nothing was written.
    Early,
    /// Redis is not the Redis it was: it lost everything in between.
    Generation,
}

/// Writes a part's online values.
///
/// # Errors
/// Redis' word; any of the values may or may not be online then, which is harmless.
pub async fn write(
    connection: &mut ConnectionManager,
    keys: &Keys,
    generation: &str,
    source: &SourceName,
    token: Token,
    promise: &Promise<'_>,
    values: &[OnlineValue],
) -> redis::RedisResult<OnlineOutcome> {
    let settled = promise.settled;
    let promise = json!({ "to": promise.to, "script_sha256": promise.script_sha256 }).to_string();
    let token_text = token.to_string();
    let owner = Owner { source: source.0.as_ref(), token: &token_text, promise: &promise, settled };
    let values: Vec<_> = values.iter().map(|value| (value, token.number)).collect();
    invoke(connection, keys, generation, &owner, &values).await
}

/// Puts values online again that are durable, each with the number of the token that wrote it. No
/// token is asked for: what is in DuckDB belongs online, whoever owns the source now.
///
/// # Errors
/// Redis' word; any of the values may or may not be online then, which is harmless.
pub async fn restore(
    connection: &mut ConnectionManager,
    keys: &Keys,
    generation: &str,
    values: &[(&OnlineValue, u32)],
) -> redis::RedisResult<OnlineOutcome> {
    let nobody = Owner { source: "", token: "", promise: "", settled: true };
    invoke(connection, keys, generation, &nobody, values).await
}

/// Who writes, as the script wants it; an empty source is the store itself.
struct Owner<'a> {
    source: &'a str,
    token: &'a str,
    promise: &'a str,
    settled: bool,
}

async fn invoke(
    connection: &mut ConnectionManager,
    keys: &Keys,
    generation: &str,
    owner: &Owner<'_>,
    values: &[(&OnlineValue, u32)],
) -> redis::RedisResult<OnlineOutcome> {
    let script = Script::new(SCRIPT);
    let mut chunks = values.chunks(FIELDS_A_CALL).peekable();
    let empty: &[(&OnlineValue, u32)] = &[];
    // Even without values the token is checked and the promise recorded.
    let first = if chunks.peek().is_none() { Some(empty) } else { None };
    let mut pipeline = redis::pipe();
    for chunk in first.into_iter().chain(chunks) {
        let mut call = script.prepare_invoke();
        call.arg(keys.namespace())
            .arg(generation)
            .arg(owner.source)
            .arg(owner.token)
            .arg(owner.promise)
            .arg(u8::from(owner.settled))
            .arg(chunk.len());
        for (value, token_number) in chunk {
            let packed = value.version.pack(*token_number);
            call.arg(&value.entity_id)
                .arg(&value.feature_name)
                .arg(format_value(value.value))
                .arg(format_timestamp(value.version.event_timestamp))
                .arg(packed);
        }
        pipeline.invoke_script(&call);
    }
    let answers: Vec<String> = match pipeline.query_async(connection).await {
        Err(e) if e.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::NoScript) => {
            script.load_async(connection).await?;
            pipeline.query_async(connection).await?
        }
        other => other?,
    };
    Ok(outcome(&answers))
}

fn outcome(answers: &[String]) -> OnlineOutcome {
    let has = |word: &str| answers.iter().any(|a| a == word);
    if has("GENERATION") {
        OnlineOutcome::Generation
    } else if has("FENCED") {
        OnlineOutcome::Fenced
    } else if has("EARLY") {
        OnlineOutcome::Early
    } else {
        OnlineOutcome::Written
    }
}

/// Whether a feature that comes from `source` is served online: when its stream says so, or, for
/// sources that belong to no stream, when any stream does.
#[must_use]
pub fn is_critical(streams: &[StreamConfig], source: &str, feature: &str) -> bool {
    match streams.iter().find(|s| belongs(source, &s.name)) {
        Some(stream) => stream.is_critical(feature),
        None => source.starts_with("writes:") && streams.iter().any(|s| s.is_critical(feature)),
    }
}

/// `kafka:<stream>/…` belongs to the stream.
fn belongs(source: &str, stream: &str) -> bool {
    let Some((kind, rest)) = source.split_once(':') else { return false };
    kind != "writes"
        && rest.strip_prefix(stream).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The newest value of each critical feature among rows of one source, see
/// [`crate::messages::feature_row_schema`].
#[must_use]
pub fn newest_of_rows(
    is_critical: impl Fn(&str) -> bool,
    source_no: i32,
    rows: &RecordBatch,
) -> Vec<OnlineValue> {
    if rows.num_rows() == 0 {
        return Vec::new();
    }
    let (entities, features) =
        (rows.column(0).as_string::<i32>(), rows.column(1).as_string::<i32>());
    let values = rows.column(2).as_primitive::<Float64Type>();
    let times = rows.column(3).as_primitive::<TimestampMicrosecondType>().values();
    let made = rows.column(4).as_primitive::<TimestampMicrosecondType>().values();
    let positions = rows.column(6).as_primitive::<Int64Type>().values();
    let subs = rows.column(7).as_primitive::<Int32Type>().values();
    let mut critical: HashMap<&str, bool> = HashMap::new();
    let mut newest = Newest::default();
    for i in 0..rows.num_rows() {
        let feature = features.value(i);
        if !*critical.entry(feature).or_insert_with(|| is_critical(feature)) {
            continue;
        }
        let version = Version {
            event_timestamp: times[i],
            created_at: made[i],
            source_no,
            pos: positions[i],
            sub: subs[i],
        };
        let value = values.is_valid(i).then(|| values.value(i));
        newest.offer(entities.value(i), feature, value, version);
    }
    newest.into_values()
}

/// Keeps the newest value of each (entity, feature).
#[derive(Debug, Default)]
pub struct Newest<'a> {
    values: HashMap<(&'a str, &'a str), (Option<f64>, Version)>,
}

impl<'a> Newest<'a> {
    /// Offers a value.
    pub fn offer(
        &mut self,
        entity: &'a str,
        feature: &'a str,
        value: Option<f64>,
        version: Version,
    ) {
        self.values
            .entry((entity, feature))
            .and_modify(|kept| {
                if version > kept.1 {
                    *kept = (value, version);
                }
            })
            .or_insert((value, version));
    }

    /// What is left, in no order.
    #[must_use]
    pub fn into_values(self) -> Vec<OnlineValue> {
        self.values
            .into_iter()
            .map(|((entity, feature), (value, version))| OnlineValue {
                entity_id: entity.to_owned(),
                feature_name: feature.to_owned(),
                value,
                version,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_belongs_to_the_stream_of_its_name_only() {
        assert!(belongs("kafka:clicks/user-events/0", "clicks"));
        assert!(belongs("replay:clicks/x", "clicks"));
        assert!(!belongs("kafka:clicks2/user-events/0", "clicks"));
        assert!(!belongs("kafka:features/clicks/0", "clicks"));
        assert!(!belongs("writes:clicks", "clicks"), "that is a namespace");
    }

    fn version(event_timestamp: i64, pos: i64) -> Version {
        Version { event_timestamp, created_at: 0, source_no: 1, pos, sub: 0 }
    }

    #[test]
    fn a_batch_is_reduced_to_the_newest_of_each_key() {
        let mut newest = Newest::default();
        newest.offer("a", "f", Some(1.0), version(10, 0));
        newest.offer("a", "f", Some(2.0), version(30, 1));
        newest.offer("a", "f", Some(3.0), version(20, 2));
        newest.offer("b", "f", None, version(5, 3));
        let mut values = newest.into_values();
        values.sort_by(|x, y| x.entity_id.cmp(&y.entity_id));
        assert_eq!(values.len(), 2);
        assert_eq!((values[0].value, values[0].version.pos), (Some(2.0), 1));
        assert_eq!((values[1].value, values[1].entity_id.as_str()), (None, "b"));
    }

    #[test]
    fn a_field_survives_the_way() {
        for value in [Some(1.5), Some(-0.0), Some(1e300), None] {
            let v = version(1_700_000_000_123_456, 9);
            let text = format_field(value, &v, 3);
            assert_eq!(parse_field(&text), Some((value, v, 3)), "{text}");
        }
        assert_eq!(parse_field("12"), None);
    }
}
