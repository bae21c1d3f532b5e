//! Reading newest values: any features of any entities in one round trip.
//!
//! What is said of what was found is [`crate::protocol::status`]'s. While Redis does not hold everything, because it lost data and is being filled again, "nothing" would say
//! nothing: every question is answered [`ReadError::Rebuilding`] then. The marks that tell are read in
//! the transaction that reads the values.

use super::parse_field;
use crate::{
    protocol::status::Status,
    queue::{Keys, RedisLink},
};
use redis::{RedisError, RedisResult, aio::MultiplexedConnection};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// How long Redis may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Values that one question asks for at most: it keeps Redis from others for so long.
pub const MOST_VALUES: usize = 100_000;

/// The answer for one feature of one entity.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Newest {
    /// The value, with [`Status::Present`] alone.
    pub value: Option<f64>,
    /// What is said of it.
    pub status: Status,
    /// UTC microseconds.
    pub event_timestamp_us: Option<i64>,
    /// Microseconds from the event timestamp to the question; negative when a producer's clock is ahead.
    pub age_us: Option<i64>,
}

impl Newest {
    /// Nothing is known.
    pub const NOT_FOUND: Self =
        Self { value: None, status: Status::NotFound, event_timestamp_us: None, age_us: None };

    fn of(field: Option<&str>, max_age_us: Option<i64>, now_us: i64) -> Result<Self, ReadError> {
        let Some(field) = field else { return Ok(Self::NOT_FOUND) };
        let (value, version, _) =
            parse_field(field).ok_or_else(|| ReadError::Unreadable(field.to_owned()))?;
        let at = version.event_timestamp;
        let (status, value) = Status::of(Some((value, at)), now_us, max_age_us);
        let age_us = Some(now_us.saturating_sub(at));
        Ok(Self { value, status, event_timestamp_us: Some(at), age_us })
    }
}

/// A feature that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub feature: String,
    /// Microseconds that a value may be old; `None`: any.
    pub max_age_us: Option<i64>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Redis lost data and is being filled again from DuckDB, or no store has looked at it yet.
    #[error("the online store is being filled from DuckDB: ask again in a moment")]
    Rebuilding,
    /// Redis' word.
    #[error("Redis does not answer: {0}")]
    Redis(#[from] RedisError),
    /// Somebody else wrote it.
    #[error("an online value cannot be read: {0:?}")]
    Unreadable(String),
}

/// A connection, and the run of the server that it was made to.
#[derive(Clone)]
struct Connected {
    connection: MultiplexedConnection,
    run_id: Arc<str>,
}

/// Reads the online store; shared by all who ask.
pub struct OnlineReader {
    redis: RedisLink,
    keys: Keys,
    connected: Mutex<Option<Connected>>,
}

impl OnlineReader {
    /// Does not connect yet.
    #[must_use]
    pub fn new(redis: RedisLink, keys: Keys) -> Self {
        Self { redis, keys, connected: Mutex::default() }
    }

    /// For each entity, in their order, what is wanted, in its order.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn newest(
        &self,
        entities: &[String],
        wanted: &[Wanted],
        now_us: i64,
    ) -> Result<Vec<Vec<Newest>>, ReadError> {
        let features: Vec<&str> = wanted.iter().map(|wanted| wanted.feature.as_str()).collect();
        let mut pipeline = redis::pipe();
        for entity in entities {
            pipeline.cmd("HMGET").arg(self.keys.entity(entity)).arg(&features);
        }
        let found: Vec<Vec<Option<String>>> = self.asked(pipeline).await?;
        let of_entity = |fields: Vec<Option<String>>| {
            let fields = fields.iter().zip(wanted);
            fields.map(|(f, wanted)| Newest::of(f.as_deref(), wanted.max_age_us, now_us)).collect()
        };
        found.into_iter().map(of_entity).collect()
    }

    /// The names of all features that any of these entities has, in their order.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn features_of(&self, entities: &[String]) -> Result<Vec<String>, ReadError> {
        let mut pipeline = redis::pipe();
        for entity in entities {
            pipeline.cmd("HKEYS").arg(self.keys.entity(entity));
        }
        let found: Vec<Vec<String>> = self.asked(pipeline).await?;
        Ok(found.into_iter().flatten().collect::<BTreeSet<_>>().into_iter().collect())
    }

    /// Those of these features that no entity has.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn unknown<'a>(&self, features: &[&'a str]) -> Result<Vec<&'a str>, ReadError> {
        let mut pipeline = redis::pipe();
        for feature in features {
            pipeline.cmd("EXISTS").arg(self.keys.feature(feature));
        }
        let known: Vec<bool> = self.asked(pipeline).await?;
        Ok(features.iter().zip(known).filter(|(_, known)| !known).map(|(f, _)| *f).collect())
    }

    /// Runs reads in one transaction with the marks that say whether their answers mean anything.
    async fn asked<T: redis::FromRedisValue>(
        &self,
        reads: redis::Pipeline,
    ) -> Result<Vec<T>, ReadError> {
        let Connected { mut connection, run_id } = self.connected().await?;
        let mut pipeline = redis::pipe();
        pipeline.atomic();
        pipeline
            .cmd("MGET")
            .arg(self.keys.rebuilt())
            .arg(self.keys.generation())
            .arg(self.keys.run_id());
        for read in reads.cmd_iter() {
            pipeline.add_command(read.clone());
        }
        let answered: RedisResult<Vec<redis::Value>> = pipeline.query_async(&mut connection).await;
        let mut answers = match answered {
            Ok(answers) => answers.into_iter(),
            Err(error) => {
                // Whatever is there when it is made anew is looked at anew.
                self.lock().take();
                return Err(error.into());
            }
        };
        let marks: (Option<String>, Option<String>, Option<String>) =
            redis::from_redis_value(answers.next().unwrap_or(redis::Value::Nil))
                .map_err(RedisError::from)?;
        let (rebuilt, generation, looked_at) = marks;
        let is_whole =
            generation.is_some() && rebuilt == generation && looked_at.as_deref() == Some(&*run_id);
        if !is_whole {
            return Err(ReadError::Rebuilding);
        }
        let values = answers.map(redis::from_redis_value).collect::<Result<_, _>>();
        Ok(values.map_err(RedisError::from)?)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Connected>> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connected(&self) -> RedisResult<Connected> {
        let known = self.lock().clone();
        if let Some(connected) = known {
            return Ok(connected);
        }
        let mut connection = crate::queue::blocking_connection(&self.redis, PATIENCE).await?;
        let info: String = redis::cmd("INFO").arg("server").query_async(&mut connection).await?;
        let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap_or_default();
        let connected = Connected { connection, run_id: run_id.trim().into() };
        *self.lock() = Some(connected.clone());
        Ok(connected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{online::format_field, protocol::version::Version};

    #[test]
    fn a_field_is_told_with_its_age() {
        let version =
            Version { event_timestamp: 1_000, created_at: 0, source_no: 1, pos: 2, sub: 0 };
        let field = format_field(Some(-0.5), &version, 3);
        let of = |max_age, now| Newest::of(Some(&field), max_age, now).unwrap();
        let present = Newest {
            value: Some(-0.5),
            status: Status::Present,
            event_timestamp_us: Some(1_000),
            age_us: Some(7),
        };
        assert_eq!(of(Some(7), 1_007), present);
        let old = Newest { value: None, status: Status::OutsideMaxAge, ..present };
        assert_eq!(of(Some(6), 1_007), old);
        assert_eq!(of(None, 990).age_us, Some(-10), "the producer's clock is ahead");
        assert_eq!(Newest::of(None, Some(1), 0).unwrap(), Newest::NOT_FOUND);
        assert!(matches!(Newest::of(Some("12"), None, 0), Err(ReadError::Unreadable(_))));
    }
}
