//! Sources, positions and tokens.

use serde::{Deserialize, Serialize};
use std::{fmt, sync::Arc};

/// A place in a source: for Kafka the offset. Ranges of positions are half-open, `[from, to)`.
pub type Position = i64;

/// The name of a source, for instance `kafka:clicks/user-events/3`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct SourceName(pub Arc<str>);

impl From<String> for SourceName {
    fn from(name: String) -> Self {
        Self(name.into())
    }
}

impl From<SourceName> for String {
    fn from(name: SourceName) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl SourceName {
    /// The source that one partition of a stream's topic is.
    #[must_use]
    pub fn kafka(stream: &str, topic: &str, partition: i32) -> Self {
        Self(format!("kafka:{stream}/{topic}/{partition}").into())
    }
}

impl SourceName {
    /// The source that a replay of a stream's dead letters is.
    #[must_use]
    pub fn replay(stream: &str, replay_id: &str) -> Self {
        Self(format!("replay:{stream}/{replay_id}").into())
    }

    /// Whether [`SourceName::replay`] named it.
    #[must_use]
    pub fn is_replay(&self) -> bool {
        self.0.starts_with("replay:")
    }

    /// The source that the rows of an upload to a stream are.
    #[must_use]
    pub fn upload(stream: &str, upload_id: &str) -> Self {
        Self(format!("upload:{stream}/{upload_id}").into())
    }

    /// Whether [`SourceName::upload`] named it.
    #[must_use]
    pub fn is_upload(&self) -> bool {
        self.0.starts_with("upload:")
    }

    /// How urgent its records are.
    #[must_use]
    pub fn urgency(&self) -> Urgency {
        if self.is_replay() || self.is_upload() { Urgency::Bulk } else { Urgency::Live }
    }
}

/// How urgent records are: what comes as it happens goes before what lies at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Urgency {
    /// Events as they happen: from Kafka, and what is written straight to the queue.
    Live,
    /// Rows of a file, dead letters that are sent again.
    Bulk,
}

impl Urgency {
    /// The more urgent first.
    pub const ALL: [Self; 2] = [Self::Live, Self::Bulk];
}

impl SourceName {
    /// Topic and partition, of a source that [`SourceName::kafka`] named.
    #[must_use]
    pub fn kafka_partition(&self) -> Option<(&str, i32)> {
        let mut parts = self.0.strip_prefix("kafka:")?.split('/');
        let (_stream, topic, partition) = (parts.next()?, parts.next()?, parts.next()?);
        Some((topic, partition.parse().ok()?))
    }

    /// The stream whose events it has; `None`: rows that were written without one.
    #[must_use]
    pub fn stream(&self) -> Option<&str> {
        let (kind, rest) = self.0.split_once(':')?;
        rest.split('/').next().filter(|_| kind != "writes")
    }

    /// Whether both are partitions of one topic in one stream.
    #[must_use]
    pub fn is_sibling_of(&self, other: &Self) -> bool {
        let family = |s: &Self| {
            s.kafka_partition()
                .is_some()
                .then(|| s.0.rsplit_once('/'))
                .flatten()
                .map(|(f, _)| f.to_owned())
        };
        self != other && family(self).is_some_and(|mine| family(other) == Some(mine))
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a consumer got when it opened a source. Only the newest one may write: tokens are
/// random and compared for equality, so that they fence zombies even after a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Token {
    /// Random, never used twice.
    pub id: uuid::Uuid,
    /// Counts the opens of the source, from 1.
    pub number: u32,
}

impl Token {
    /// A fresh token that follows `number`.
    #[must_use]
    pub fn after(number: u32) -> Self {
        Self { id: uuid::Uuid::new_v4(), number: number + 1 }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.id.simple(), self.number)
    }
}

/// What is compared when a source is opened: the same name with other attributes is another
/// log, and reading on in it would lose or double records.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceAttributes {
    /// The cluster's own id.
    pub cluster_id: Option<String>,
    /// The topic's own id: a topic that was deleted and made again has another one.
    pub topic_id: Option<String>,
}

/// What an OPEN asks of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenRequest {
    /// Which source.
    pub source: SourceName,
    /// Who will write, for people.
    pub owner: String,
    /// What must not have changed.
    pub attributes: SourceAttributes,
    /// Where the source starts when the store does not know it yet.
    pub start: Position,
    /// The oldest position that can still be read.
    pub low: Position,
    /// The position that the next record will get.
    pub high: Position,
    /// A broker that lives and dies with its node: other attributes mean a new log, not a
    /// recreated topic, and the store adopts it by itself.
    pub ephemeral: bool,
    /// Partitions that the topic has, for the rule of [`super::new_partition`].
    #[serde(default)]
    pub partitions: Option<i32>,
    /// High watermarks of older partitions when this one was discovered.
    #[serde(default)]
    pub ends: Vec<(SourceName, Position)>,
}

/// Where a source goes on when an operator has adopted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdoptAt {
    /// At DuckDB's position, whatever cluster or topic id it has now: the log was moved with its
    /// offsets, or what stood in the way was put aside.
    Here,
    /// At the oldest record that the broker has, as a new log.
    Earliest,
    /// At the end of the broker's log, as a new log.
    Latest,
}

impl AdoptAt {
    /// Its name in the table and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Here => "here",
            Self::Earliest => "earliest",
            Self::Latest => "latest",
        }
    }
}

impl std::str::FromStr for AdoptAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Here, Self::Earliest, Self::Latest]
            .into_iter()
            .find(|at| at.name() == text)
            .ok_or_else(|| format!("`{text}`: there are here, earliest and latest"))
    }
}

/// Values of positions before `to` may be online though DuckDB does not have them yet. The next
/// owner runs these positions under the same script version, so that what was shown online and what
/// becomes durable come from the same code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promised {
    /// The position after the last that may be online.
    pub to: Position,
    /// The script version that made the values.
    pub script_sha256: String,
}

/// What the store answers to an OPEN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpenReply {
    /// Read from `next_pos` and write with `token`.
    Opened {
        /// The only token that may write from now on.
        token: Token,
        /// The small integer that stands for the source in the tables and in versions.
        source_no: i32,
        /// The first position whose effect is not in DuckDB.
        next_pos: Position,
        /// What the previous owner showed online beyond `next_pos`.
        #[serde(default)]
        promised: Option<Promised>,
    },
    /// A partition that came later: these older ones must first pass the ends that they had when it
    /// was discovered. Ask again, and say their ends.
    Waiting {
        /// Which.
        older: Vec<SourceName>,
    },
    /// Reading on would lose or double records: an operator must decide.
    Halted {
        /// One sentence for the operator.
        reason: String,
    },
}

/// Whether a source that the store knows can be read on.
///
/// | what | answer |
/// |---|---|
/// | cluster or topic id differs (both known) | halt |
/// | `next_pos < low` | halt: retention has passed it |
/// | `next_pos > high` | halt: the log was truncated |
/// | else | `None`: read on |
#[must_use]
pub fn halt_reason(
    known: &SourceAttributes,
    next_pos: Position,
    open: &OpenRequest,
) -> Option<String> {
    let differs =
        |a: &Option<String>, b: &Option<String>| matches!((a, b), (Some(a), Some(b)) if a != b);
    let OpenRequest { source, attributes, low, high, .. } = open;
    if differs(&known.cluster_id, &attributes.cluster_id) {
        return Some(format!(
            "{source} belongs to another Kafka cluster than before ({} instead of {}): connect to the \
             old cluster, or say `millstream sources adopt {source} --at here` (the same log elsewhere) or \
             `--at earliest` (another log)",
            attributes.cluster_id.as_deref().unwrap_or("?"),
            known.cluster_id.as_deref().unwrap_or("?"),
        ));
    }
    if differs(&known.topic_id, &attributes.topic_id) {
        return Some(format!(
            "the topic of {source} was deleted and made again since position {next_pos}: `millstream \
             sources adopt {source} --at earliest` reads it from its start"
        ));
    }
    if next_pos < *low {
        return Some(format!(
            "{source}: the broker's retention has passed position {next_pos} (its log starts at \
             {low}): {} positions are gone; `millstream sources adopt {source} --at earliest` goes on \
             without them",
            low - next_pos
        ));
    }
    if next_pos > *high {
        return Some(format!(
            "{source}: DuckDB has positions up to {next_pos}, but the broker's log ends at {high}: it \
             was truncated or restored; `millstream sources adopt {source} --at earliest` or `--at \
             latest` takes it as a new log"
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(cluster: &str, topic: Option<&str>, low: i64, high: i64) -> OpenRequest {
        OpenRequest {
            source: SourceName::kafka("s", "t", 0),
            owner: "test".into(),
            attributes: SourceAttributes {
                cluster_id: Some(cluster.into()),
                topic_id: topic.map(Into::into),
            },
            start: 0,
            low,
            high,
            ephemeral: false,
            partitions: None,
            ends: Vec::new(),
        }
    }

    #[test]
    fn a_kafka_source_tells_its_partition() {
        assert_eq!(SourceName::kafka("s", "a.b-c", 7).kafka_partition(), Some(("a.b-c", 7)));
        assert_eq!(SourceName("upload:x".into()).kafka_partition(), None);
        let source = SourceName::kafka("s", "t", 1);
        assert!(source.is_sibling_of(&SourceName::kafka("s", "t", 2)));
        assert!(!source.is_sibling_of(&source));
        assert!(!source.is_sibling_of(&SourceName::kafka("s2", "t", 2)));
        assert_eq!(SourceName::replay("s", "x").kafka_partition(), None);
        assert!(SourceName::replay("s", "x").is_replay());
        assert_eq!(SourceName::replay("s", "x").urgency(), Urgency::Bulk);
        assert_eq!(SourceName::upload("s", "x").urgency(), Urgency::Bulk);
        assert_eq!(SourceName::kafka("upload", "t", 0).urgency(), Urgency::Live);
        assert!(!SourceName::kafka("replay", "t", 0).is_replay());
    }

    #[test]
    fn each_row_of_the_halt_table() {
        let known = SourceAttributes { cluster_id: Some("c".into()), topic_id: Some("t1".into()) };
        let halts = |open: &OpenRequest, next| halt_reason(&known, next, open);
        assert_eq!(halts(&open("c", Some("t1"), 0, 10), 10), None);
        assert_eq!(halts(&open("c", None, 5, 10), 5), None, "an unknown topic id is no difference");
        assert!(halts(&open("d", Some("t1"), 0, 10), 5).unwrap().contains("another Kafka cluster"));
        assert!(halts(&open("c", Some("t2"), 0, 10), 5).unwrap().contains("made again"));
        assert!(halts(&open("c", Some("t1"), 6, 10), 5).unwrap().contains("retention"));
        assert!(halts(&open("c", Some("t1"), 0, 4), 5).unwrap().contains("truncated"));
    }
}
