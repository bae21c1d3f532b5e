//! Newest values of features, over HTTP and gRPC.
//!
//! A feature is named as `feature` or `stream:feature`; the stream only says whose `max_age_s` holds.
//! Without it the strictest of the streams that serve the feature online counts. A feature that no
//! entity has ever had, and that no stream names as critical, is an error: it is misspelt, or not
//! served online.

mod feast;
mod grpc;

pub(super) use feast::{push_timestamp, routes};
pub(super) use grpc::get_online_features;

use crate::{
    config::{Config, StreamConfig},
    node::NodeView,
    online::read::{MOST_VALUES, Newest, ReadError, Wanted},
    protocol::status::Status,
};

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Problem {
    /// The question is wrong.
    Invalid(String),
    /// It names a stream that is not there.
    NoStream(String),
    /// It names a feature that is not there.
    NoFeature(String),
    /// Ask again later.
    Unavailable(String),
}

impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// A feature as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named<'a> {
    pub(super) stream: Option<&'a str>,
    pub(super) feature: &'a str,
}

impl<'a> Named<'a> {
    /// Up to the first colon stands the stream: a feature whose own name has a colon is asked for with it.
    pub(super) fn of(name: &'a str, config: &Config) -> Result<Self, Problem> {
        let Some((stream, feature)) = name.split_once(':') else {
            return Ok(Self { stream: None, feature: name });
        };
        if !config.streams.iter().any(|s| s.name == stream) {
            let streams: Vec<&str> = config.streams.iter().map(|s| s.name.as_str()).collect();
            let streams = streams.join(", ");
            return Err(Problem::NoStream(format!(
                "there is no stream `{stream}` (of `{name}`); there are {streams}"
            )));
        }
        Ok(Self { stream: Some(stream), feature })
    }

    /// The streams that may serve it.
    fn streams(&self, config: &'a Config) -> impl Iterator<Item = &'a StreamConfig> {
        let named = self.stream;
        let feature = self.feature;
        config.streams.iter().filter(move |stream| match named {
            Some(name) => stream.name == name,
            None => stream.is_critical(feature),
        })
    }

    /// Its own limit of age, or the question's.
    pub(super) fn wanted(&self, config: &'a Config, max_age_us: Option<i64>) -> Wanted {
        let of_stream = |stream: &StreamConfig| {
            stream.max_age_s.map(|s| i64::try_from(s).unwrap_or(i64::MAX).saturating_mul(1_000_000))
        };
        Wanted {
            feature: self.feature.to_owned(),
            max_age_us: max_age_us.or_else(|| self.streams(config).filter_map(of_stream).min()),
        }
    }

    /// Whether the configuration names it, not only a pattern that it fits.
    fn is_configured(&self, config: &Config) -> bool {
        config.streams.iter().any(|stream| stream.critical.iter().any(|c| c == self.feature))
    }
}

/// Newest values by entity and feature, in the order of the question.
async fn ask(
    view: &NodeView,
    entities: &[String],
    named: &[Named<'_>],
    max_age_us: Option<i64>,
) -> Result<Vec<Vec<Newest>>, Problem> {
    let online = view
        .online
        .as_ref()
        .ok_or_else(|| Problem::Unavailable("this node has no Redis to ask".into()))?;
    if named.is_empty() {
        return Err(Problem::Invalid("no features are asked for".into()));
    }
    if entities.len().saturating_mul(named.len()) > MOST_VALUES {
        return Err(Problem::Invalid(format!(
            "{} entities with {} features are asked for; at most {MOST_VALUES} values are answered at once",
            entities.len(),
            named.len()
        )));
    }
    if max_age_us.is_some_and(|most| most <= 0) {
        return Err(Problem::Invalid("a limit of age is more than nothing".into()));
    }
    let wanted: Vec<Wanted> =
        named.iter().map(|named| named.wanted(&view.config, max_age_us)).collect();
    let now_us = chrono::Utc::now().timestamp_micros();
    let found = online.newest(entities, &wanted, now_us).await?;
    let doubtful: Vec<&str> = (named.iter().enumerate())
        .filter(|(i, named)| {
            found.iter().all(|of_entity| of_entity[*i].status == Status::NotFound)
                && !named.is_configured(&view.config)
        })
        .map(|(_, named)| named.feature)
        .collect();
    if !doubtful.is_empty() {
        let unknown = online.unknown(&doubtful).await?;
        if let Some(first) = unknown.first() {
            return Err(Problem::NoFeature(format!(
                "there is no feature `{first}` online: it is misspelt, has never had a value, or no stream has it \
                 among its `critical` ones"
            )));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let mut config = Config::default();
        let [mut a, mut b] = [config.streams[0].clone(), config.streams[0].clone()];
        (a.name, a.critical, a.max_age_s) = ("a".into(), vec!["*".into()], Some(60));
        (b.name, b.critical, b.max_age_s) = ("b".into(), vec!["x".into()], Some(5));
        config.streams = vec![a, b];
        config
    }

    #[test]
    fn a_name_may_say_its_stream() {
        let config = config();
        let named = |name| Named::of(name, &config).map(|n| (n.stream, n.feature));
        assert_eq!(named("x"), Ok((None, "x")));
        assert_eq!(named("a:x"), Ok((Some("a"), "x")));
        assert_eq!(named("a:x:y"), Ok((Some("a"), "x:y")));
        let Err(Problem::NoStream(why)) = named("c:x") else { panic!("there is no c") };
        assert!(why.contains("`c`") && why.contains("a, b"), "{why}");
    }

    #[test]
    fn the_question_then_the_stream_then_the_strictest_stream_limits_the_age() {
        let config = config();
        let age = |name, asked| Named::of(name, &config).unwrap().wanted(&config, asked).max_age_us;
        assert_eq!(age("a:x", Some(7)), Some(7));
        assert_eq!(age("a:x", None), Some(60_000_000));
        assert_eq!(age("x", None), Some(5_000_000));
        assert_eq!(age("y", None), Some(60_000_000), "b does not serve it");
    }

    #[test]
    fn a_pattern_does_not_name_a_feature() {
        let config = config();
        let is_configured = |name| Named::of(name, &config).unwrap().is_configured(&config);
        assert!(is_configured("x") && is_configured("a:x") && !is_configured("y"));
    }
}
