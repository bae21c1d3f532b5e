//! Gauges of the store's side that nobody's work sets: they must be true while nothing is done, too.

use super::reads::select;
use crate::{
    config::Config,
    protocol::source::SourceName,
    queue::{Keys, RedisLink},
    telemetry::catalogue as m,
};
use arrow::{array::AsArray, datatypes::Int64Type};
use redis::{Script, aio::ConnectionManager};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// How often the queue is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often DuckDB is asked for what is newest.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// Features that are shown, in the order of their names: a label must have bounds.
const MOST_FEATURES: usize = 100;

/// How many entries stand on the queue, and the age of the oldest in milliseconds on Redis' clock.
/// Only its id is answered: the entry itself may be megabytes.
const LOOK: &str = r"
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if not first then return { 0, 0 } end
local now = redis.call('TIME')
local age = now[1] * 1000 + math.floor(now[2] / 1000) - string.match(first[1], '^%d+')
return { redis.call('XLEN', KEYS[1]), math.max(age, 0) }";

/// The newest event timestamp of each feature by stream, as far as it was asked for.
#[derive(Debug, Default)]
struct Freshness {
    newest_us: BTreeMap<(String, String), i64>,
    /// Up to which batch.
    to_batch_seq: i64,
}

/// Keeps the gauges until the actor ends.
pub(super) async fn keep(redis: RedisLink, keys: Keys, config: Arc<Config>) {
    for stream in &config.streams {
        if let Some(age) = stream.max_age_s {
            metrics::gauge!(m::MAX_AGE, "stream" => stream.name.clone()).set(age as f64);
        }
    }
    // Side by side: the queue's age counts most when DuckDB does not answer.
    tokio::join!(watch_queue(redis.clone(), keys.clone()), ask_for_newest(redis, keys));
}

async fn watch_queue(redis: RedisLink, keys: Keys) {
    let mut manager = redis.manager_at_last().await;
    loop {
        if let Err(error) = look(&mut manager, &keys).await {
            tracing::debug!(%error, "the queue could not be looked at");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn ask_for_newest(redis: RedisLink, keys: Keys) {
    let mut freshness = Freshness::default();
    loop {
        if let Err(error) = freshness.ask(&redis, &keys).await {
            tracing::warn!(error = %format!("{error:#}"), "how fresh features are is not known");
        }
        let until = Instant::now() + ASK_EVERY;
        while Instant::now() < until {
            freshness.show(chrono::Utc::now().timestamp_micros());
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

async fn look(manager: &mut ConnectionManager, keys: &Keys) -> redis::RedisResult<()> {
    let (entries, age_ms): (i64, i64) =
        Script::new(LOOK).key(keys.queue()).invoke_async(manager).await?;
    metrics::gauge!(m::QUEUE_ENTRIES).set(entries as f64);
    metrics::gauge!(m::QUEUE_ENTRIES_OLDEST).set(age_ms as f64 / 1e3);
    Ok(())
}

impl Freshness {
    /// Asks for the batches that came since the last time; the first time for all.
    async fn ask(&mut self, redis: &RedisLink, keys: &Keys) -> anyhow::Result<()> {
        let sql = format!(
            "SELECT s.source, n.feature_name, n.newest, n.batch_seq FROM (
                 SELECT source_no, feature_name, epoch_us(max(event_timestamp)) AS newest,
                        max(batch_seq) AS batch_seq
                 FROM features_table WHERE batch_seq > {} GROUP BY source_no, feature_name
             ) n JOIN sources s USING (source_no)",
            self.to_batch_seq
        );
        for rows in select(redis, keys, sql).await? {
            let (sources, features) = (rows.column(0).as_string::<i32>(), rows.column(1));
            let features = features.as_string::<i32>();
            let newest = rows.column(2).as_primitive::<Int64Type>();
            let batches = rows.column(3).as_primitive::<Int64Type>();
            for i in 0..rows.num_rows() {
                self.take(sources.value(i), features.value(i), newest.value(i));
                self.to_batch_seq = self.to_batch_seq.max(batches.value(i));
            }
        }
        Ok(())
    }

    fn take(&mut self, source: &str, feature: &str, at_us: i64) {
        let source = SourceName::from(source.to_owned());
        let key = (source.stream().unwrap_or("writes").to_owned(), feature.to_owned());
        let known = self.newest_us.entry(key).or_insert(at_us);
        *known = at_us.max(*known);
    }

    fn show(&self, now_us: i64) {
        for ((stream, feature), at_us) in self.newest_us.iter().take(MOST_FEATURES) {
            metrics::gauge!(m::FRESHNESS, "stream" => stream.clone(), "feature" => feature.clone())
                .set((now_us - at_us).max(0) as f64 / 1e6);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_all_sources_of_a_stream_counts() {
        let mut freshness = Freshness::default();
        freshness.take("kafka:clicks/t/0", "a", 5);
        freshness.take("kafka:clicks/t/1", "a", 9);
        freshness.take("kafka:clicks/t/2", "a", 7);
        freshness.take("kafka:other/u/0", "a", 1);
        freshness.take("writes:features_table", "a", 3);
        let newest: Vec<(&str, i64)> =
            freshness.newest_us.iter().map(|((stream, _), at)| (stream.as_str(), *at)).collect();
        assert_eq!(newest, [("clicks", 9), ("other", 1), ("writes", 3)]);
    }
}
