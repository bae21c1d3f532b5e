//! The letters, as DuckDB has them.

use super::desk::Refused;
use crate::{
    actors::redis_queue::{rows, select},
    messages::LetterToReplay,
    protocol::source::SourceName,
    queue::{Keys, RedisLink},
    text::sql_literal,
};
use anyhow::ensure;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Letters of one replay at most.
const MOST: usize = 100_000;
/// Letters of one replay whose records are read from Kafka again at most: each is a round trip.
pub const MOST_REREAD: usize = 1_000;
/// Bytes of such records at most: they travel to the store in one entry.
pub const MOST_REREAD_BYTES: usize = 32 << 20;
/// Letters that one look into a replay takes at most.
const A_LOOK: i64 = 5_000;
/// Bytes that it takes about.
const A_LOOK_BYTES: usize = 8 << 20;

/// Which letters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// Of this stream.
    pub stream: Option<String>,
    /// That died for this reason.
    pub reason: Option<String>,
    /// Of this source.
    pub source: Option<String>,
}

impl Filter {
    /// As conditions on `s.source` and `d.reason`.
    #[must_use]
    pub fn sql(&self) -> String {
        let mut conditions = vec!["true".to_owned()];
        if let Some(stream) = &self.stream {
            conditions.push(format!(
                "s.source NOT LIKE 'writes:%'
                 AND split_part(split_part(s.source, ':', 2), '/', 1) = {}",
                sql_literal(stream)
            ));
        }
        if let Some(reason) = &self.reason {
            conditions.push(format!("d.reason = {}", sql_literal(reason)));
        }
        if let Some(source) = &self.source {
            conditions.push(format!("s.source = {}", sql_literal(source)));
        }
        conditions.join(" AND ")
    }
}

/// A letter that no replay contains yet.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub source_no: i32,
    pub pos: i64,
    pub source: String,
    pub reason: String,
    /// Length of the whole record.
    pub raw_len: Option<i64>,
    /// Bytes that the letter kept.
    pub kept: Option<i64>,
    pub raw_sha256: Option<String>,
    pub recorded_at_us: Option<i64>,
    /// Its source is still the one of that name.
    pub is_current: bool,
}

impl Candidate {
    /// Whether the letter has everything that a replay needs.
    pub fn is_whole(&self) -> bool {
        self.raw_len.is_some() && self.raw_len == self.kept && self.recorded_at_us.is_some()
    }

    pub fn source(&self) -> SourceName {
        SourceName(self.source.as_str().into())
    }

    pub fn letter(&self, payload: Option<Vec<u8>>, at_us: Option<i64>) -> LetterToReplay {
        LetterToReplay {
            source_no: self.source_no,
            pos: self.pos,
            payload,
            recorded_at_us: at_us.or(self.recorded_at_us),
        }
    }

    pub fn refused(&self, why: String) -> Refused {
        let Self { source, pos, reason, .. } = self;
        Refused { source: source.clone(), pos: *pos, reason: reason.clone(), why }
    }
}

fn candidates_sql(filter: &Filter, longest: usize) -> String {
    format!(
        "SELECT d.source_no, d.pos, s.source, d.reason, d.raw_len, octet_length(d.raw)::BIGINT,
                d.raw_sha256, epoch_us(d.recorded_at),
                d.source_no = (SELECT max(x.source_no) FROM sources x WHERE x.source = s.source)
         FROM dead_letters d JOIN sources s USING (source_no)
         WHERE (d.source_no, d.pos) NOT IN (SELECT (source_no, pos) FROM dead_letter_replays)
           AND {}
         ORDER BY (d.reason = 'null_payload' OR s.source LIKE 'writes:%'
                   OR coalesce(d.raw_len, 0) > {longest}), d.batch_seq, d.pos
         LIMIT {}",
        filter.sql(),
        MOST + 1
    )
}

/// The letters that `filter` names and no replay contains, in the order in which they died, and
/// whether there are more of them. Those that can never be replayed come last.
pub async fn candidates(
    redis: &RedisLink,
    keys: &Keys,
    filter: &Filter,
    longest: usize,
) -> anyhow::Result<(Vec<Candidate>, bool)> {
    let mut candidates = Vec::new();
    for row in rows(&select(redis, keys, candidates_sql(filter, longest)).await?) {
        candidates.push(Candidate {
            source_no: row.int(0).unwrap_or_default() as i32,
            pos: row.int(1).unwrap_or_default(),
            source: row.owned(2),
            reason: row.owned(3),
            raw_len: row.int(4),
            kept: row.int(5),
            raw_sha256: row.text(6).map(str::to_owned),
            recorded_at_us: row.int(7),
            is_current: row.flag(8),
        });
    }
    let more = candidates.len() > MOST;
    candidates.truncate(MOST);
    Ok((candidates, more))
}

/// The whole record of a letter that died in a replay, when that had to read it again.
pub async fn replayed_payload(
    redis: &RedisLink,
    keys: &Keys,
    source: &str,
    place: i64,
) -> anyhow::Result<Option<Vec<u8>>> {
    let sql = format!(
        "SELECT r.payload FROM dead_letter_replays r JOIN replays p USING (replay_id)
         WHERE p.source = {} AND r.place = {place}",
        sql_literal(source)
    );
    let batches = select(redis, keys, sql).await?;
    Ok(rows(&batches).next().and_then(|row| row.bytes(0)).map(<[u8]>::to_vec))
}

/// A replay that is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    pub replay_id: String,
    pub source: String,
    pub stream: String,
    pub letters: i64,
}

fn unfinished_sql(owner: &str) -> String {
    format!(
        "SELECT p.replay_id, p.source, p.stream, p.n_letters
         FROM replays p LEFT JOIN sources s ON s.source = p.source
         WHERE p.owner = {} AND coalesce(s.next_pos, 0) < p.n_letters
         ORDER BY p.registered_at, p.replay_id",
        sql_literal(owner)
    )
}

/// The replays of a node that are not done, the oldest first.
pub async fn unfinished(
    redis: &RedisLink,
    keys: &Keys,
    owner: &str,
) -> anyhow::Result<Vec<Unfinished>> {
    let batches = select(redis, keys, unfinished_sql(owner)).await?;
    let found = rows(&batches).map(|row| Unfinished {
        replay_id: row.owned(0),
        source: row.owned(1),
        stream: row.owned(2),
        letters: row.int(3).unwrap_or_default(),
    });
    Ok(found.collect())
}

/// A letter as it is sent again.
#[derive(Debug)]
pub struct Resent {
    pub place: i64,
    pub payload: Vec<u8>,
    pub event_id: Option<Uuid>,
    pub recorded_at_us: i64,
}

fn of_replay_sql(replay_id: &str, from: i64) -> String {
    format!(
        "SELECT place, payload, event_id, recorded_us FROM (
             SELECT r.place, coalesce(r.payload, d.raw) AS payload, d.event_id::VARCHAR AS event_id,
                    epoch_us(r.recorded_at) AS recorded_us,
                    sum(octet_length(coalesce(r.payload, d.raw))) OVER (ORDER BY r.place) AS bytes
             FROM dead_letter_replays r JOIN dead_letters d USING (source_no, pos)
             WHERE r.replay_id = {} AND r.place >= {from} AND r.place < {})
         WHERE bytes <= {A_LOOK_BYTES} OR place = {from} ORDER BY place",
        sql_literal(replay_id),
        from + A_LOOK
    )
}

/// The letters of a replay from place `from` on: some of them, by number and bytes.
pub async fn of_replay(
    redis: &RedisLink,
    keys: &Keys,
    replay: &Unfinished,
    from: i64,
) -> anyhow::Result<Vec<Resent>> {
    let mut found: Vec<Resent> = Vec::new();
    for row in rows(&select(redis, keys, of_replay_sql(&replay.replay_id, from)).await?) {
        let place = row.int(0).unwrap_or_default();
        if found.last().is_some_and(|last| last.place == place) {
            // One record can have several letters; they hold the same bytes.
            continue;
        }
        let expected = found.last().map_or(from, |last| last.place + 1);
        let (Some(payload), Some(recorded_at_us), true) =
            (row.bytes(1), row.int(3), place == expected)
        else {
            anyhow::bail!("the letter at place {expected} is not what was registered");
        };
        let event_id = row.text(2).and_then(|id| Uuid::parse_str(id).ok());
        found.push(Resent { place, payload: payload.to_vec(), event_id, recorded_at_us });
    }
    ensure!(!found.is_empty(), "there is no letter at place {from}");
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_cannot_leave_its_quotes() {
        let filter = Filter { reason: Some("x' OR true --".into()), ..Filter::default() };
        assert_eq!(filter.sql(), "true AND d.reason = 'x'' OR true --'");
        assert_eq!(Filter::default().sql(), "true");
    }

    #[test]
    fn only_a_letter_with_all_bytes_and_its_time_is_whole() {
        let letter = |raw_len, kept, recorded_at_us| Candidate {
            source_no: 1,
            pos: 2,
            source: "kafka:s/t/0".into(),
            reason: "r".into(),
            raw_len,
            kept,
            raw_sha256: None,
            recorded_at_us,
            is_current: true,
        };
        assert!(letter(Some(5), Some(5), Some(1)).is_whole());
        assert!(letter(Some(0), Some(0), Some(1)).is_whole());
        assert!(!letter(Some(6), Some(5), Some(1)).is_whole());
        assert!(!letter(None, None, Some(1)).is_whole());
        assert!(!letter(Some(5), Some(5), None).is_whole());
    }

    /// A store with three letters, of which the first is in a replay of two that is half done.
    fn store() -> duckdb::Connection {
        let connection = duckdb::Connection::open_in_memory().unwrap();
        connection.execute_batch(crate::store::schema::DDL).unwrap();
        connection
            .execute_batch(
                "INSERT INTO sources (source_no, source, token, token_no, owner, next_pos,
                                      start_pos, updated_at) VALUES
                     (1, 'kafka:s/t/0', gen_random_uuid(), 1, 'o', 20, 0, now()),
                     (2, 'replay:s/r', gen_random_uuid(), 1, 'o', 1, 0, now());
                 INSERT INTO dead_letters
                     SELECT 1, 1, i, NULL, NULL, 'decode', 'r' || i, '', repeat('x', i)::BLOB, i,
                            repeat('a', 64), 'h', now(), make_timestamptz(i)
                     FROM range(1, 5) t(i);
                 INSERT INTO replays VALUES ('r', 'replay:s/r', 's', 'n''n', 2, now());
                 INSERT INTO dead_letter_replays VALUES
                     (1, 1, 'r', now(), 0, NULL, make_timestamptz(7)),
                     (1, 2, 'r', now(), 1, 'whole'::BLOB, make_timestamptz(8));",
            )
            .unwrap();
        connection
    }

    fn count(sql: &str) -> usize {
        let bounds = crate::messages::QueryBounds::default();
        let bytes = crate::store::reader::query(&store(), sql, bounds, 1 << 30, || false).unwrap();
        let reader =
            arrow::ipc::reader::StreamReader::try_new(std::io::Cursor::new(bytes), None).unwrap();
        reader.map(|batch| batch.unwrap().num_rows()).sum()
    }

    #[test]
    fn the_store_answers_every_question() {
        let any = Filter::default();
        assert_eq!(count(&candidates_sql(&any, 1 << 20)), 2, "two are in a replay");
        let one = Filter { reason: Some("r4".into()), stream: Some("s".into()), ..any.clone() };
        assert_eq!(count(&candidates_sql(&one, 1 << 20)), 1);
        let other = Filter { stream: Some("t".into()), ..any };
        assert_eq!(count(&candidates_sql(&other, 1 << 20)), 0);
        assert_eq!(count(&unfinished_sql("n'n")), 1);
        assert_eq!(count(&unfinished_sql("other")), 0);
        assert_eq!(count(&of_replay_sql("r", 0)), 2);
        assert_eq!(count(&of_replay_sql("r", 1)), 1);
    }
}
