//! The judge: what was sent held against the closed store, and the store against the online store.
//!
//! | | promise | held by |
//! |---|---|---|
//! | C1 | every acknowledged event is kept, dead or filtered | `Report::judge`, [`no_position_is_skipped`] |
//! | C2 | no `(source_no, pos, sub)` twice, each id with exactly its outputs | audit, `Report::judge` |
//! | C3 | per entity the effects are in the producer's order | [`order_of_batches`], [`order_of_entities`] |
//! | C4 | no id that was never sent | `Report::judge` |
//! | C5 | the ledger is contiguous and its counts match the tables | audit |
//! | C6 | online equals the newest in DuckDB, neither behind nor ahead nor more | [`online_equals_newest`] |
//! | C7 | committed offsets never exceed `next_pos` | [`super::Watch`], `verify` |
//! | C10 | every dead letter has reason, source, position, hash | audit, [`dead_letters_complete`] |

use super::Bench;
use duckdb::Connection;
use millstream::{
    actors::generator::Expected,
    config::StreamConfig,
    decode::reasons,
    generate::EventId,
    online::parse_field,
    protocol::version::Version,
    queue::Keys,
    report::Report,
    store::{
        audit::{Audit, Check, audit},
        newest::{NewestValue, newest_values},
    },
    supervision::{FatalSender, Registry},
};
use std::{collections::HashMap, time::Duration};

impl Bench {
    /// Everything that can be said of the closed database and of a Redis that is still there.
    pub fn judge(&self, expected: &Expected) -> Report {
        let store = self.closed_store();
        let books: Audit = audit(&store, 0).unwrap();
        let registry = Registry::new(FatalSender::channel().0);
        let mut report = Report::of_audit(&books, Duration::from_secs(1), &registry);
        report.judge(expected, &store).unwrap();
        report.checks.push(no_position_is_skipped(&store));
        report.checks.push(order_of_batches(&store));
        report.checks.push(order_of_entities(&store));
        report.checks.push(dead_letters_complete(&store));
        if !self.config.redis.url.is_empty() {
            let mut redis =
                redis::Client::open(&*self.config.redis.url).unwrap().get_connection().unwrap();
            let keys = Keys::new(&self.config.node.namespace);
            report.checks.push(online_equals_newest(
                &store,
                &mut redis,
                &keys,
                &self.config.streams,
            ));
        }
        report.ok = report.checks.iter().all(|c| c.ok);
        report
    }

    /// The same for a test that sent events of its own: ledger and tables, duplicates, order, dead
    /// letters. How many rows and letters there must be the test knows.
    pub fn judge_books(&self) {
        let store = self.closed_store();
        let mut checks = audit(&store, 0).unwrap().checks;
        checks.push(no_position_is_skipped(&store));
        checks.push(order_of_batches(&store));
        checks.push(dead_letters_complete(&store));
        let broken: Vec<&Check> = checks.iter().filter(|check| !check.ok).collect();
        assert!(broken.is_empty(), "{broken:#?}");
    }

    /// As [`Self::judge`], and nothing may be wrong.
    pub fn judge_well(&self, expected: &Expected) -> Report {
        let report = self.judge(expected);
        assert!(report.ok, "{report:#?}");
        assert_eq!((report.lost, report.duplicated), (0, 0));
        report
    }
}

fn texts(store: &Connection, sql: &str) -> Vec<String> {
    let mut statement = store.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| row.get(0)).unwrap();
    rows.map(Result::unwrap).collect()
}

/// The producers of these tests use no transactions and nothing is compacted: every position holds
/// a record, so a batch has as many events as its range is long.
pub fn no_position_is_skipped(store: &Connection) -> Check {
    let broken = texts(
        store,
        "SELECT concat(source, ': ', n_in, ' events in [', from_pos, ', ', to_pos, '), token ', l.token_no)
         FROM ingest_ledger l JOIN sources USING (source_no) WHERE n_in <> to_pos - from_pos LIMIT 20",
    );
    Check::of("no_position_is_skipped", &broken, "every position of every range was read")
}

/// Within a source a later position never lies in an earlier batch, and one entity's never in an
/// earlier row of the table.
pub fn order_of_batches(store: &Connection) -> Check {
    let broken = texts(
        store,
        "WITH placed AS (
             SELECT source_no, entity_id, pos, sub, batch_seq, rowid AS place,
                    lag(batch_seq) OVER by_source AS batch_before,
                    lag(rowid) OVER by_entity AS place_before
             FROM features_table
             WINDOW by_source AS (PARTITION BY source_no ORDER BY pos, sub),
                    by_entity AS (PARTITION BY source_no, entity_id ORDER BY pos, sub))
         SELECT format('source {} position {} of {}: batch {} after {}, place {} after {}', source_no, pos,
                       entity_id, batch_seq, batch_before, place, place_before)
         FROM placed WHERE batch_before > batch_seq OR place_before > place LIMIT 20",
    );
    Check::of("effects_in_order_of_positions", &broken, "positions are applied in order")
}

/// In the order in which its effects were applied, an entity's generated events carry their
/// producer's sequence numbers in order; an event that was sent twice stands twice. When a topic grows, keys
/// move between partitions that it had before as well; Kafka gives no order there, and nobody can.
pub fn order_of_entities(store: &Connection) -> Check {
    let mut statement = store
        .prepare(
            "SELECT entity_id, event_id::VARCHAR, source_no, coalesce(topic_partitions, -1)
             FROM features_table LEFT JOIN sources USING (source_no) WHERE event_id IS NOT NULL
             ORDER BY entity_id, batch_seq, source_no, pos, sub",
        )
        .unwrap();
    let rows = statement
        .query_map([], |row| {
            let place: (i32, i32) = (row.get(2)?, row.get(3)?);
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, place))
        })
        .unwrap();
    let (mut last, mut broken, mut looked_at) = (HashMap::new(), Vec::new(), 0);
    for row in rows {
        let (entity, id, (source, age)) = row.unwrap();
        let Some(parts) = EventId::parse(id.parse().unwrap()) else { continue };
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
    Check::of("effects_in_order_of_producers", &broken, holds)
}

/// What the audit does not ask: a known reason and stage, a hash that is that of the bytes, bytes
/// that are all there up to their limit, a source and a batch that exist.
pub fn dead_letters_complete(store: &Connection) -> Check {
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
    );
    Check::of("dead_letters_are_whole", &broken, "every dead letter has all that mends it")
}

/// Both ways: each newest value is online, and nothing else is online.
pub fn online_equals_newest(
    store: &Connection,
    redis: &mut redis::Connection,
    keys: &Keys,
    streams: &[StreamConfig],
) -> Check {
    let mut newest = HashMap::new();
    let mut newest_of_feature: HashMap<String, Version> = HashMap::new();
    for NewestValue { source, value, .. } in newest_values(store).unwrap() {
        let name = source.split_once(':').and_then(|(_, s)| s.split('/').next()).unwrap();
        let stream = streams.iter().find(|s| s.name == name).unwrap();
        if stream.is_critical(&value.feature_name) {
            let of = newest_of_feature.entry(value.feature_name.clone()).or_insert(value.version);
            *of = value.version.max(*of);
            newest.insert((value.entity_id, value.feature_name), (value.value, value.version));
        }
    }
    let wanted = newest.len();
    let mut broken = Vec::new();
    let prefix = keys.entity("");
    for key in scan(redis, &format!("{prefix}*")) {
        let entity = &key[prefix.len()..];
        let fields: HashMap<String, String> = redis::cmd("HGETALL").arg(&key).query(redis).unwrap();
        for (feature, text) in fields {
            let online = parse_field(&text).map(|(value, version, _)| (value, version));
            let durable = newest.remove(&(entity.to_owned(), feature.clone()));
            if online.is_none() || online != durable {
                broken.push(format!("{entity} {feature}: online {online:?}, newest {durable:?}"));
            }
        }
    }
    broken.extend(newest.keys().map(|(entity, feature)| format!("{entity} {feature}: not online")));
    let prefix = format!("{}:feature:", keys.namespace());
    for (feature, version) in newest_of_feature {
        let key = format!("{prefix}{feature}");
        let text: Option<String> =
            redis::cmd("HGET").arg(&key).arg("version").query(redis).unwrap();
        let online = text.as_deref().and_then(Version::unpack).map(|(version, _)| version);
        if online != Some(version) {
            broken.push(format!("{key}: online {online:?}, newest {version:?}"));
        }
    }
    let holds = format!("exactly the newest {wanted} critical values are online");
    Check::of("online_is_exactly_the_newest", &broken, holds)
}

fn scan(redis: &mut redis::Connection, pattern: &str) -> Vec<String> {
    let (mut cursor, mut keys) = (0u64, Vec::new());
    loop {
        let (next, some): (u64, Vec<String>) = redis::cmd("SCAN")
            .arg(cursor)
            .arg("MATCH")
            .arg(pattern)
            .arg("COUNT")
            .arg(10_000)
            .query(redis)
            .unwrap();
        keys.extend(some);
        if next == 0 {
            keys.sort_unstable();
            keys.dedup();
            return keys;
        }
        cursor = next;
    }
}
