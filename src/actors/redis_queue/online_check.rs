//! Whether the online store holds what DuckDB says is newest: of every key for the audit, of a sample
//! for the skew check.

use crate::{
    actors::duckdb_writer::{ReadJob, WriterThread},
    config::{Config, StreamConfig},
    messages::{OnlineValue, Skew},
    online,
    protocol::version::Version,
    queue::{Keys, RETRY, RedisLink},
    store::{audit::Check, newest::NewestValue},
    telemetry::catalogue as m,
};
use anyhow::{Context as _, bail};
use redis::aio::ConnectionManager;
use std::{sync::Arc, time::Duration};

/// How long a check waits while the online store is being rebuilt.
const REBUILD_WAIT: Duration = Duration::from_secs(40);
/// Keys that one round trip asks for.
const KEYS_A_TRIP: usize = 2_000;
/// How often keys that do not agree are looked at again, and after how long.
const LOOKS_AGAIN: usize = 3;
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Keys of a sample that the store takes by itself.
const KEYS_A_LOOK: usize = 1_000;
/// Keys that a report tells about.
const TOLD: usize = 20;

/// How an online value stands to the newest one in DuckDB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Equal,
    /// Critical features go to Redis first.
    Ahead,
    Behind,
    Missing,
    /// The same version, another value.
    Different,
    Unreadable,
}

impl Standing {
    fn name(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Ahead => "ahead",
            Self::Behind => "behind",
            Self::Missing => "missing",
            Self::Different => "different",
            Self::Unreadable => "unreadable",
        }
    }

    fn is_sound(self) -> bool {
        matches!(self, Self::Equal | Self::Ahead)
    }
}

/// Compares a sample from time to time, until the actor ends; with 0 seconds never.
pub(super) async fn look_now_and_then(
    redis: RedisLink,
    keys: Keys,
    config: Arc<Config>,
    thread: Arc<WriterThread>,
) {
    let every = Duration::from_secs(config.store.skew_every_s);
    if every.is_zero() {
        return;
    }
    let mut manager = redis.manager_at_last().await;
    loop {
        tokio::time::sleep(every).await;
        match skew(&mut manager, &keys, &config, &thread, KEYS_A_LOOK).await {
            Ok(skew) if skew.is_sound() => tracing::debug!(?skew, "online and offline agree"),
            Ok(skew) => {
                tracing::error!(?skew, "online values are not the newest in DuckDB");
            }
            Err(error) => {
                tracing::warn!(error = %format!("{error:#}"), "online and offline were not compared");
            }
        }
    }
}

/// Compares a sample of critical keys.
///
/// # Errors
/// When DuckDB or Redis cannot be asked, or the online store is being rebuilt.
pub(super) async fn skew(
    manager: &mut ConnectionManager,
    keys: &Keys,
    config: &Arc<Config>,
    thread: &WriterThread,
    n_keys: usize,
) -> anyhow::Result<Skew> {
    let (done, sampled) = tokio::sync::oneshot::channel();
    let config = config.clone();
    let streams = config.clone();
    let is_critical = Box::new(move |source: &str, feature: &str| {
        online::is_critical(&streams.streams, source, feature)
    });
    thread.read(ReadJob::Sample { keys: n_keys, is_critical, done });
    let newest = sampled.await.context("the store's reader ended")??;
    wait_complete(manager, keys).await?;
    let mut skew = Skew::default();
    for (value, standing, told) in compare_all(manager, keys, &config.streams, &newest).await? {
        metrics::counter!(m::SKEW_KEYS, "result" => standing.name()).increment(1);
        skew.keys += 1;
        *match standing {
            Standing::Equal => &mut skew.equal,
            Standing::Ahead => &mut skew.ahead,
            Standing::Behind => &mut skew.behind,
            Standing::Missing => &mut skew.missing,
            Standing::Different => &mut skew.different,
            Standing::Unreadable => &mut skew.unreadable,
        } += 1;
        if !standing.is_sound() && skew.examples.len() < TOLD {
            skew.examples.push(format!("{} {}: {told}", value.entity_id, value.feature_name));
        }
    }
    Ok(skew)
}

/// Waits until the online store holds everything again: before that, what is missing says nothing.
pub(super) async fn wait_complete(
    manager: &mut ConnectionManager,
    keys: &Keys,
) -> anyhow::Result<()> {
    let until = tokio::time::Instant::now() + REBUILD_WAIT;
    while !online::marks::is_complete(manager, keys).await? {
        if tokio::time::Instant::now() > until {
            bail!("it is being rebuilt from DuckDB since Redis lost data; ask again later");
        }
        tokio::time::sleep(RETRY).await;
    }
    Ok(())
}

/// Whether every critical feature's online value is its newest in DuckDB. What is online may be
/// ahead while data flows: critical features go to Redis first.
///
/// # Errors
/// Redis' word.
pub async fn verify_online(
    manager: &mut ConnectionManager,
    keys: &Keys,
    streams: &[StreamConfig],
    newest: &[NewestValue],
) -> redis::RedisResult<Check> {
    let compared = compare_all(manager, keys, streams, newest).await?;
    let ahead = compared.iter().filter(|(_, standing, _)| *standing == Standing::Ahead).count();
    let holds = format!(
        "the online value of {} critical features equals the newest in DuckDB ({ahead} are ahead of it)",
        compared.len()
    );
    let broken: Vec<String> = compared
        .into_iter()
        .filter(|(_, standing, _)| !standing.is_sound())
        .map(|(value, _, told)| format!("{} {}: {told}", value.entity_id, value.feature_name))
        .collect();
    Ok(Check::of("online_equals_newest", &broken, holds))
}

/// How each critical key stands, with what is to be said of those that do not stand well. What does not is
/// looked at again after a moment: rows of files are durable a little before they are online.
async fn compare_all<'a>(
    manager: &mut ConnectionManager,
    keys: &Keys,
    streams: &[StreamConfig],
    newest: &'a [NewestValue],
) -> redis::RedisResult<Vec<(&'a OnlineValue, Standing, String)>> {
    let critical: Vec<&OnlineValue> = newest
        .iter()
        .filter(|v| online::is_critical(streams, &v.source, &v.value.feature_name))
        .map(|v| &v.value)
        .collect();
    let mut compared: Vec<_> =
        critical.into_iter().map(|value| (value, Standing::Missing, String::new())).collect();
    let mut doubtful: Vec<usize> = (0..compared.len()).collect();
    for look in 0..=LOOKS_AGAIN {
        if look > 0 {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        for chunk in doubtful.chunks(KEYS_A_TRIP) {
            let values: Vec<&OnlineValue> = chunk.iter().map(|i| compared[*i].0).collect();
            let fields = fields(manager, keys, &values).await?;
            for ((i, value), field) in chunk.iter().zip(values).zip(fields) {
                let (standing, told) = compare(value, field.as_deref());
                compared[*i] = (value, standing, told);
            }
        }
        doubtful.retain(|i| !compared[*i].1.is_sound());
        if doubtful.is_empty() {
            break;
        }
    }
    Ok(compared)
}

/// What Redis holds of keys.
async fn fields(
    manager: &mut ConnectionManager,
    keys: &Keys,
    values: &[&OnlineValue],
) -> redis::RedisResult<Vec<Option<String>>> {
    let mut pipeline = redis::pipe();
    for value in values {
        pipeline.hget(keys.entity(&value.entity_id), &value.feature_name);
    }
    pipeline.query_async(manager).await
}

fn compare(newest: &OnlineValue, field: Option<&str>) -> (Standing, String) {
    let OnlineValue { value, version, .. } = newest;
    let shown = |v: &Version| format!("{} at {}", v.pos, v.event_timestamp);
    let Some(field) = field else { return (Standing::Missing, "not online".into()) };
    let Some((online_value, online_version, _)) = online::parse_field(field) else {
        return (Standing::Unreadable, format!("unreadable online value {field:?}"));
    };
    if online_version > *version {
        (Standing::Ahead, String::new())
    } else if online_version < *version {
        let (online, newest) = (shown(&online_version), shown(version));
        (Standing::Behind, format!("online is the older version ({online} instead of {newest})"))
    } else if online_value.map(f64::to_bits) != value.map(f64::to_bits) {
        (Standing::Different, format!("online {online_value:?}, in DuckDB {value:?}"))
    } else {
        (Standing::Equal, String::new())
    }
}
