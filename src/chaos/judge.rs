//! The judge: what was sent held against the closed store, and the store against the online store.
//!
//! | | promise | held by |
//! |---|---|---|
//! | C1 | every acknowledged event is kept, dead or filtered | [`Report::judge`], [`no_position_is_skipped`] |
//! | C2 | no `(source_no, pos, sub)` twice, each id with exactly its outputs | audit, [`Report::judge`] |
//! | C3 | per entity the effects are in the producer's order | [`order_of_batches`], [`order_of_entities`] |
//! | C4 | no id that was never sent | [`Report::judge`] |
//! | C5 | the ledger is contiguous and its counts match the tables | audit |
//! | C6 | online equals the newest in DuckDB, neither behind nor ahead nor more | [`online_equals_newest`] |
//! | C7 | committed offsets never exceed `next_pos` | [`super::offsets`], `verify` |
//! | C8 | never more Python workers than the cap | [`super::processes`] |
//! | C10 | every dead letter has reason, source, position, hash | audit, [`dead_letters_complete`] |
//! | C11 | caught up soon after the last fault | [`super::run`] |
//! | C12 | memory is bounded | [`super::run`] |
//!
//! C9 is about calls that are refused for want of rights, which this version does not have.
//!
//! A judge that sees nothing proves nothing: `tests/it/judge.rs` plants a defect for each of these
//! checks in sound books, `tests/it/planted.rs` plants them in the running system.

use crate::{
    actors::generator::Expected,
    config::StreamConfig,
    decode::reasons,
    generate::EventId,
    online::{is_critical, parse_field},
    protocol::version::Version,
    queue::Keys,
    report::Report,
    store::{
        audit::{Check, audit},
        newest::{NewestValue, newest_values},
    },
    supervision::{FatalSender, Registry},
};
use duckdb::Connection;
use std::{collections::HashMap, time::Duration};

/// Broken rows of a check that are told at most.
const MOST: usize = 20;

/// Where the online store is.
#[derive(Debug, Clone, Copy)]
pub struct Online<'a> {
    /// `redis://host:port/db`, without anything between.
    pub url: &'a str,
    /// The names of its keys.
    pub keys: &'a Keys,
    /// Says what is critical.
    pub streams: &'a [StreamConfig],
}

/// Everything that can be said of the closed database and of a Redis that is still there.
///
/// # Errors
/// When one of them cannot be read: then nothing was judged.
pub fn judge(
    store: &Connection,
    expected: &Expected,
    online: Option<Online<'_>>,
    elapsed: Duration,
) -> anyhow::Result<Report> {
    let books = audit(store, 0)?;
    let nobody = Registry::new(FatalSender::channel().0);
    let mut report = Report::of_audit(&books, elapsed, &nobody);
    report.judge(expected, store)?;
    report.checks.push(no_position_is_skipped(store)?);
    report.checks.push(order_of_batches(store)?);
    report.checks.push(order_of_entities(store)?);
    report.checks.push(dead_letters_complete(store)?);
    if let Some(Online { url, keys, streams }) = online {
        let mut redis = redis::Client::open(url)?.get_connection()?;
        report.checks.push(online_equals_newest(store, &mut redis, keys, streams)?);
    }
    report.ok = report.checks.iter().all(|c| c.ok);
    Ok(report)
}

fn texts(store: &Connection, sql: &str) -> duckdb::Result<Vec<String>> {
    let mut statement = store.prepare(sql)?;
    let rows = statement.query_map([], |row| row.get(0))?;
    rows.collect()
}

/// The generator's producers use no transactions and nothing is compacted: every position holds a
/// record, so a batch has as many events as its range is long.
///
/// # Errors
/// DuckDB's word.
pub fn no_position_is_skipped(store: &Connection) -> duckdb::Result<Check> {
    let broken = texts(
        store,
        "SELECT concat(source, ': ', n_in, ' events in [', from_pos, ', ', to_pos, '), token ', l.token_no)
         FROM ingest_ledger l JOIN sources USING (source_no) WHERE n_in <> to_pos - from_pos LIMIT 20",
    )?;
    let holds = "every position of every range was read";
    Ok(Check::of("no_position_is_skipped", &broken, holds))
}

/// Within a source a later position never lies in an earlier batch, and one entity's never in an
/// earlier row of the table.
///
/// # Errors
/// DuckDB's word.
pub fn order_of_batches(store: &Connection) -> duckdb::Result<Check> {
    let broken = texts(
        store,
        "WITH placed AS (
             SELECT source_no, entity_id, pos, sub, batch_seq, rowid AS place,
                    lag(batch_seq) OVER by_source AS batch_before,
                    lag(rowid) OVER by_entity AS place_before
             FROM features_table
             WINDOW by_source AS (PARTITION BY source_no ORDER BY pos, sub),
                    by_entity AS (PARTITION BY source_no, entity_id ORDER BY pos, sub))
         SELECT concat('source ', source_no, ' position ', pos, ' of ', entity_id, ': batch ', batch_seq,
                       ' after ', batch_before, ', place ', place, ' after ', place_before)
         FROM placed WHERE batch_before > batch_seq OR place_before > place LIMIT 20",
    )?;
    Ok(Check::of("effects_in_order_of_positions", &broken, "positions are applied in order"))
}

/// In the order in which its effects were applied, an entity's generated events carry their
/// producer's sequence numbers in order; an event that was sent twice stands twice. When a topic grows, keys
/// move between partitions that it had before as well; Kafka gives no order there, and nobody can.
///
/// # Errors
/// DuckDB's word.
pub fn order_of_entities(store: &Connection) -> duckdb::Result<Check> {
    let mut statement = store.prepare(
        "SELECT entity_id, event_id::VARCHAR, source_no, coalesce(topic_partitions, -1)
         FROM features_table LEFT JOIN sources USING (source_no) WHERE event_id IS NOT NULL
         ORDER BY entity_id, batch_seq, source_no, pos, sub",
    )?;
    let rows = statement.query_map([], |row| {
        let place: (i32, i32) = (row.get(2)?, row.get(3)?);
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, place))
    })?;
    let (mut last, mut broken, mut looked_at) = (HashMap::new(), Vec::new(), 0);
    for row in rows {
        let (entity, id, (source, age)) = row?;
        let Some(parts) = id.parse().ok().and_then(EventId::parse) else { continue };
        looked_at += 1;
        let producer = (entity, parts.run, parts.task);
        let (before, source_before, age_before) =
            last.get(&producer).copied().unwrap_or((0, source, age));
        let moved_among_equals = source != source_before && age == age_before;
        if parts.seq < before && !moved_among_equals {
            broken.push(format!("{}: event {} after {before}", producer.0, parts.seq));
        }
        last.insert(producer, (parts.seq, source, age));
    }
    let holds = format!("{looked_at} effects are in their producers' order within each entity");
    Ok(Check::of("effects_in_order_of_producers", &broken, holds))
}

/// What the audit does not ask: a known reason and stage, a hash that is that of the bytes, bytes
/// that are all there up to their limit, a source and a batch that exist.
///
/// # Errors
/// DuckDB's word.
pub fn dead_letters_complete(store: &Connection) -> duckdb::Result<Check> {
    let reasons: Vec<String> = reasons::ALL.iter().map(|r| format!("'{r}'")).collect();
    let broken = texts(
        store,
        &format!(
            "SELECT concat('source ', source_no, ' position ', pos, ': ', stage, ' ', reason)
             FROM dead_letters
             WHERE stage NOT IN ('decode', 'transform', 'store')
                OR (stage = 'decode' AND reason NOT IN ({}))
                OR source_no NOT IN (SELECT source_no FROM sources)
                OR batch_seq NOT IN (SELECT batch_seq FROM ingest_ledger)
                OR (raw IS NULL) <> (raw_len IS NULL)
                OR octet_length(raw) <> least(raw_len, 65536)
                OR (raw_len <= 65536 AND raw_sha256 <> sha256(raw)) LIMIT 20",
            reasons.join(", ")
        ),
    )?;
    Ok(Check::of("dead_letters_are_whole", &broken, "every dead letter has all that mends it"))
}

/// Both ways: each newest value is online, and nothing else is online.
///
/// # Errors
/// When one of the two cannot be read.
pub fn online_equals_newest(
    store: &Connection,
    redis: &mut redis::Connection,
    keys: &Keys,
    streams: &[StreamConfig],
) -> anyhow::Result<Check> {
    let mut newest = HashMap::new();
    let mut newest_of_feature: HashMap<String, Version> = HashMap::new();
    for NewestValue { source, value, .. } in newest_values(store)? {
        if is_critical(streams, &source, &value.feature_name) {
            let of = newest_of_feature.entry(value.feature_name.clone()).or_insert(value.version);
            *of = value.version.max(*of);
            newest.insert((value.entity_id, value.feature_name), (value.value, value.version));
        }
    }
    let wanted = newest.len();
    let mut broken = Vec::new();
    let prefix = keys.entity("");
    for key in scan(redis, &format!("{prefix}*"))? {
        let entity = &key[prefix.len()..];
        let fields: HashMap<String, String> = redis::cmd("HGETALL").arg(&key).query(redis)?;
        for (feature, text) in fields {
            let online = parse_field(&text).map(|(value, version, _)| (value, version));
            let durable = newest.remove(&(entity.to_owned(), feature.clone()));
            if (online.is_none() || online != durable) && broken.len() < MOST {
                broken.push(format!("{entity} {feature}: online {online:?}, newest {durable:?}"));
            }
        }
    }
    let missing = newest.keys().map(|(entity, feature)| format!("{entity} {feature}: not online"));
    broken.extend(missing.take(MOST));
    let prefix = format!("{}:feature:", keys.namespace());
    for (feature, version) in newest_of_feature {
        let key = format!("{prefix}{feature}");
        let text: Option<String> = redis::cmd("HGET").arg(&key).arg("version").query(redis)?;
        let online = text.as_deref().and_then(Version::unpack).map(|(version, _)| version);
        if online != Some(version) {
            broken.push(format!("{key}: online {online:?}, newest {version:?}"));
        }
    }
    let holds = format!("exactly the newest {wanted} critical values are online");
    Ok(Check::of("online_is_exactly_the_newest", &broken, holds))
}

fn scan(redis: &mut redis::Connection, pattern: &str) -> redis::RedisResult<Vec<String>> {
    let (mut cursor, mut keys) = (0u64, Vec::new());
    loop {
        let (next, some): (u64, Vec<String>) = redis::cmd("SCAN")
            .arg(cursor)
            .arg("MATCH")
            .arg(pattern)
            .arg("COUNT")
            .arg(10_000)
            .query(redis)?;
        keys.extend(some);
        if next == 0 {
            keys.sort_unstable();
            keys.dedup();
            return Ok(keys);
        }
        cursor = next;
    }
}
