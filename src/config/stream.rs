//! `[[streams]]`: a source, its schema and the script that turns its events into features.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{borrow::Cow, fmt};

/// The type of one declared field of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FieldType {
    /// UTF-8 text.
    String,
    /// 64-bit signed integer.
    Int64,
    /// Finite double.
    Float64,
    /// `true` or `false`.
    Bool,
    /// RFC 3339 text with a zone, microseconds, floored.
    Timestamp,
    /// Integer seconds since 1970-01-01 UTC.
    TimestampS,
    /// Integer milliseconds since 1970-01-01 UTC.
    TimestampMs,
    /// Integer microseconds since 1970-01-01 UTC.
    TimestampUs,
}

impl FieldType {
    /// Whether the column holds instants.
    #[must_use]
    pub fn is_timestamp(self) -> bool {
        matches!(self, Self::Timestamp | Self::TimestampS | Self::TimestampMs | Self::TimestampUs)
    }
}

/// From when on rows of files count as known, in reads of what was known at an instant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AsKnown {
    /// When they were stored.
    #[default]
    Arrival,
    /// When they were made: history that is loaded later counts as if it had come then.
    CreatedAt,
}

/// One declared field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaField {
    /// The key in the JSON object and the name of the column.
    pub name: String,
    /// What its values are.
    pub kind: FieldType,
}

/// `[[streams]]`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamConfig {
    /// The stream's name in commands, metrics and source names.
    pub name: String,
    /// The Kafka topic, keyed by entity.
    pub topic: String,
    /// The script in `python.transforms_dir`, without `.py`.
    pub transform: String,
    /// Whether the script keeps state between batches: then one worker runs the stream's batches of a
    /// node one after the other, in the order of their positions.
    #[serde(default)]
    pub ordered: bool,
    /// The field that names the entity; never null.
    pub entity: String,
    /// The field that says when the event became true; never null.
    pub event_time: String,
    /// Further fields that must be there and not null.
    #[serde(default)]
    pub required: Vec<String>,
    /// The field that says when the producer made the event; missing or null: the record's own
    /// timestamp.
    #[serde(default = "created_at")]
    pub created_at: String,
    /// Which features go to Redis: names, or globs with `*`.
    #[serde(default)]
    pub critical: Vec<String>,
    /// Seconds that a value read online may be old, unless the question says otherwise; none: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_s: Option<u64>,
    /// From when on rows of uploaded files count as known: `"arrival"`, or `"created_at"` for history that
    /// was made long before it is loaded. What comes from Kafka always counts from its arrival.
    #[serde(default)]
    pub as_known: AsKnown,
    /// Zone of timestamps that carry none; only `"UTC"`. Without it such timestamps are refused.
    #[serde(default)]
    pub timezone: Option<String>,
    /// How far in the future an event timestamp may lie, in seconds.
    #[serde(default = "future_tolerance_s")]
    pub future_tolerance_s: u64,
    /// What the script finds in `ctx.params`, over the defaults that it gives itself.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub params: serde_json::Map<String, serde_json::Value>,
    /// The declared fields, in the order of the columns that the script sees.
    #[serde(serialize_with = "schema_out", deserialize_with = "schema_in")]
    #[schemars(with = "std::collections::BTreeMap<String, FieldType>")]
    pub schema: Vec<SchemaField>,
}

fn created_at() -> String {
    "created_at".into()
}

fn future_tolerance_s() -> u64 {
    300
}

impl StreamConfig {
    /// The two streams that ship: events that already are features, and raw user events.
    #[must_use]
    pub fn shipped() -> Vec<Self> {
        use FieldType::{Float64, Int64, String, Timestamp};
        let base =
            |name: &str, topic: &str, transform: &str, entity: &str, event_time: &str| Self {
                name: name.into(),
                topic: topic.into(),
                transform: transform.into(),
                ordered: false,
                entity: entity.into(),
                event_time: event_time.into(),
                required: Vec::new(),
                created_at: created_at(),
                critical: Vec::new(),
                max_age_s: None,
                as_known: AsKnown::Arrival,
                timezone: None,
                future_tolerance_s: future_tolerance_s(),
                params: serde_json::Map::new(),
                schema: Vec::new(),
            };
        let schema = |fields: &[(&str, FieldType)]| {
            fields.iter().map(|(n, kind)| SchemaField { name: (*n).into(), kind: *kind }).collect()
        };
        vec![
            Self {
                required: vec!["feature_name".into()],
                critical: vec!["*".into()],
                schema: schema(&[
                    ("entity_id", String),
                    ("feature_name", String),
                    ("value", Float64),
                    ("validated_at", Timestamp),
                    ("created_at", Timestamp),
                ]),
                ..base(
                    "features",
                    "feature-events",
                    "validate_features",
                    "entity_id",
                    "validated_at",
                )
            },
            Self {
                required: vec!["action".into()],
                critical: vec!["clicks_*".into()],
                schema: schema(&[
                    ("user_id", Int64),
                    ("action", String),
                    ("timestamp", Timestamp),
                    ("page", String),
                    ("duration_ms", Int64),
                    ("amount", Float64),
                ]),
                ..base("clicks", "user-events", "click_features", "user_id", "timestamp")
            },
        ]
    }

    /// Whether the feature's newest value is kept in Redis.
    #[must_use]
    pub fn is_critical(&self, feature: &str) -> bool {
        self.critical.iter().any(|pattern| glob(pattern, feature))
    }

    /// # Errors
    /// The first rule that is broken, as a sentence.
    pub fn validate(&self) -> Result<(), String> {
        for (key, value) in
            [("name", &self.name), ("topic", &self.topic), ("transform", &self.transform)]
        {
            let sound = value.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
            if value.is_empty() || !sound || value.starts_with('.') {
                return Err(format!(
                    "`{key}` must be letters, digits, `.`, `_` or `-`, not `{value}`"
                ));
            }
        }
        if self.schema.is_empty() {
            return Err("`schema` declares no field".into());
        }
        let field = |name: &str| self.schema.iter().find(|f| f.name == name);
        match field(&self.entity).map(|f| f.kind) {
            Some(FieldType::String | FieldType::Int64) => {}
            Some(_) => {
                return Err(format!("the entity `{}` must be a string or int64", self.entity));
            }
            None => return Err(format!("the entity `{}` is not in `schema`", self.entity)),
        }
        match field(&self.event_time) {
            Some(f) if f.kind.is_timestamp() => {}
            Some(_) => {
                return Err(format!("the event_time `{}` must be a timestamp", self.event_time));
            }
            None => return Err(format!("the event_time `{}` is not in `schema`", self.event_time)),
        }
        for name in &self.required {
            if field(name).is_none() {
                return Err(format!("the required field `{name}` is not in `schema`"));
            }
        }
        if field(&self.created_at).is_some_and(|f| !f.kind.is_timestamp()) {
            return Err(format!("the created_at field `{}` must be a timestamp", self.created_at));
        }
        if self.timezone.as_deref().is_some_and(|zone| zone != "UTC") {
            return Err("`timezone` can only be \"UTC\"".into());
        }
        if field("_row").is_some() {
            return Err("`_row` is the node's own column and cannot be declared".into());
        }
        Ok(())
    }
}

/// `*` stands for any run of characters, everything else for itself.
fn glob(pattern: &str, text: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else { return pattern == text };
    let Some(rest) = text.strip_prefix(head) else { return false };
    (0..=rest.len()).any(|i| rest.is_char_boundary(i) && glob(tail, &rest[i..]))
}

fn schema_out<S: Serializer>(fields: &[SchemaField], s: S) -> Result<S::Ok, S::Error> {
    s.collect_map(fields.iter().map(|f| (&f.name, f.kind)))
}

/// Keeps the order of the file, which is the order of the columns.
fn schema_in<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<SchemaField>, D::Error> {
    struct Visitor;
    impl<'de> de::Visitor<'de> for Visitor {
        type Value = Vec<SchemaField>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a table of field names and types")
        }

        fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut fields: Vec<SchemaField> = Vec::new();
            while let Some((name, kind)) = map.next_entry::<Cow<'_, str>, FieldType>()? {
                if fields.iter().any(|f| f.name == name) {
                    return Err(de::Error::custom(format!("the field `{name}` is declared twice")));
                }
                fields.push(SchemaField { name: name.into_owned(), kind });
            }
            Ok(fields)
        }
    }
    d.deserialize_map(Visitor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_names_and_runs() {
        for (pattern, text, matches) in [
            ("*", "anything", true),
            ("clicks_*", "clicks_7d", true),
            ("clicks_*", "purchase", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b", "a-c", false),
            ("exact", "exact", true),
            ("exact", "exactly", false),
        ] {
            assert_eq!(glob(pattern, text), matches, "{pattern} against {text}");
        }
    }
}
