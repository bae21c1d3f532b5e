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
pub mod read;
mod repair;
mod write;

pub use repair::repair;
pub use write::{restore, write};

use crate::{
    config::StreamConfig,
    messages::OnlineValue,
    protocol::{source::Position, version::Version},
    text::push_instant,
};
use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{Float64Type, Int32Type, Int64Type, TimestampMicrosecondType},
};
use std::collections::HashMap;

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
    let mut text = Vec::with_capacity(27);
    push_instant(&mut text, us, 6);
    // It is ASCII.
    String::from_utf8(text).unwrap_or_default()
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

/// What became of an online write; of several calls the greatest counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OnlineOutcome {
    /// Every value is online, or a newer one is.
    Written,
    /// What another script version has shown before is not durable yet: nothing was written.
    Early,
    /// The token is not the current one: the source has another owner.
    Fenced,
    /// Redis is not the Redis it was: it lost everything in between.
    Generation,
}

impl OnlineOutcome {
    /// The worst of the script's answers.
    fn of(answers: &[String]) -> Self {
        let outcome = |answer: &String| match answer.as_str() {
            "GENERATION" => Self::Generation,
            "FENCED" => Self::Fenced,
            "EARLY" => Self::Early,
            _ => Self::Written,
        };
        answers.iter().map(outcome).max().unwrap_or(Self::Written)
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

    /// What is left, the features of an entity together.
    #[must_use]
    pub fn into_values(self) -> Vec<OnlineValue> {
        let mut values: Vec<_> = self.values.into_iter().collect();
        values.sort_unstable_by_key(|(key, _)| *key);
        values
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
        let values = newest.into_values();
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
