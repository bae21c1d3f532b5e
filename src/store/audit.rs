//! The audit: does the ledger account for every position, and do the tables match the ledger?
//!
//! Each check is one question that gives the rows that break it; none is the good answer.

use super::StoreError;
use duckdb::Connection;
use serde::{Deserialize, Serialize};

/// One question of the audit and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Its name, for programs.
    pub id: String,
    /// Whether it holds.
    pub ok: bool,
    /// What was found, for people.
    pub detail: String,
}

impl Check {
    /// A check that holds when `broken` is empty.
    #[must_use]
    pub fn of(id: &str, broken: &[String], holds: impl Into<String>) -> Self {
        let detail = match broken {
            [] => holds.into(),
            [first, rest @ ..] => match rest.len() {
                0 => first.clone(),
                n => format!("{first} (and {n} more)"),
            },
        };
        Self { id: id.into(), ok: broken.is_empty(), detail }
    }
}

/// What the tables hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Events in the ledger.
    pub events: i64,
    /// Events with at least one row.
    pub kept: i64,
    /// Events that are dead letters.
    pub dead_letters: i64,
    /// Events that scripts filtered.
    pub filtered: i64,
    /// Feature rows.
    pub landed_rows: i64,
    /// Events of the ledger, kept or dead, that the tables do not have.
    pub missing: i64,
    /// Rows whose `(source_no, pos, sub)` stands more than once.
    pub duplicated: i64,
    /// Batches in the ledger.
    pub batches: i64,
    /// The last batch.
    pub last_batch_seq: i64,
}

/// The result of an audit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Audit {
    /// What the tables hold.
    pub totals: Totals,
    /// The checks, in order.
    pub checks: Vec<Check>,
}

impl Audit {
    /// Whether every check holds.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.checks.iter().all(|c| c.ok)
    }
}

/// Ids, what holding means, and the question; `?1` is the batch after which is audited.
const QUESTIONS: [(&str, &str, &str); 10] = [
    (
        "ledger_contiguous",
        "per source the ledger runs from its start to next_pos without a hole",
        "WITH lines AS (
             SELECT source_no, from_pos, to_pos,
                    lag(to_pos) OVER (PARTITION BY source_no ORDER BY batch_seq) AS before,
                    row_number() OVER (PARTITION BY source_no ORDER BY batch_seq DESC) AS back
             FROM ingest_ledger)
         SELECT format('{}: a batch starts at {} after {}', source, from_pos, coalesce(before, start_pos))
         FROM lines JOIN sources USING (source_no) WHERE from_pos <> coalesce(before, start_pos)
         UNION ALL
         SELECT format('{}: next_pos is {}, the ledger ends at {}', source, next_pos,
                       coalesce(to_pos, start_pos))
         FROM sources LEFT JOIN (SELECT * FROM lines WHERE back = 1) USING (source_no)
         WHERE next_pos <> coalesce(to_pos, start_pos)
         UNION ALL
         SELECT format('batch {} belongs to no source', batch_seq) FROM ingest_ledger
         WHERE source_no NOT IN (SELECT source_no FROM sources)",
    ),
    (
        "ledger_counts",
        "every event of the ledger is kept, dead or filtered",
        "SELECT format('batch {}: {} events, but {} kept + {} dead + {} filtered', batch_seq, n_in,
                       n_kept, n_dead, n_filtered)
         FROM ingest_ledger
         WHERE n_in <> n_kept + n_dead + n_filtered OR n_in > to_pos - from_pos",
    ),
    (
        "rows_match_ledger",
        "every batch has the rows and events that its ledger line says",
        "SELECT format('batch {}: {} rows of {} events, the ledger says {} of {}', batch_seq,
                       coalesce(t.n, 0), coalesce(t.events, 0), coalesce(l.n_rows, 0), coalesce(l.n_kept, 0))
         FROM (SELECT batch_seq, count(*) AS n, count(DISTINCT pos) AS events
               FROM features_table WHERE batch_seq > ?1 GROUP BY batch_seq) t
         FULL JOIN (SELECT * FROM ingest_ledger WHERE batch_seq > ?1) l USING (batch_seq)
         WHERE coalesce(t.n, 0) <> coalesce(l.n_rows, 0) OR coalesce(t.events, 0) <> coalesce(l.n_kept, 0)",
    ),
    (
        "dead_letters_match_ledger",
        "every batch has the dead letters that its ledger line says",
        "SELECT format('batch {}: {} dead letters, the ledger says {}', batch_seq,
                       coalesce(t.n, 0), coalesce(l.n_dead, 0))
         FROM (SELECT batch_seq, count(DISTINCT pos) AS n FROM dead_letters
               WHERE batch_seq > ?1 GROUP BY batch_seq) t
         FULL JOIN (SELECT * FROM ingest_ledger WHERE batch_seq > ?1) l USING (batch_seq)
         WHERE coalesce(t.n, 0) <> coalesce(l.n_dead, 0)",
    ),
    (
        "no_duplicates",
        "no (source_no, pos, sub) stands twice",
        "SELECT format('source {} position {} sub {} stands {} times', source_no, pos, sub, count(*))
         FROM features_table WHERE batch_seq > ?1
         GROUP BY source_no, pos, sub HAVING count(*) > 1",
    ),
    (
        "positions_in_range",
        "every row and dead letter lies in the range of its ledger line",
        "SELECT format('batch {}: position {} outside of [{}, {})', batch_seq, pos, from_pos, to_pos)
         FROM (SELECT batch_seq, source_no, pos FROM features_table WHERE batch_seq > ?1
               UNION ALL SELECT batch_seq, source_no, pos FROM dead_letters WHERE batch_seq > ?1) t
         JOIN ingest_ledger l USING (batch_seq)
         WHERE pos < from_pos OR pos >= to_pos OR t.source_no <> l.source_no",
    ),
    (
        "kept_or_dead",
        "no event is both a row and a dead letter",
        "SELECT format('source {} position {}', source_no, pos) FROM dead_letters
         WHERE batch_seq > ?1
           AND (source_no, pos) IN (SELECT (source_no, pos) FROM features_table WHERE batch_seq > ?1)",
    ),
    (
        "dead_letters_complete",
        "every dead letter has reason, source, position and hash",
        "SELECT format('source {} position {}', source_no, pos) FROM dead_letters
         WHERE batch_seq > ?1
           AND (reason = '' OR source_no NOT IN (SELECT source_no FROM sources)
                OR (raw_len IS NOT NULL AND (raw_sha256 IS NULL OR length(raw_sha256) <> 64)))",
    ),
    (
        "replays_whole",
        "every replay has its letters, each at one place, and no letter is in two",
        "SELECT format('replay {}: {} letters at {} places up to {}, registered were {}', replay_id,
                       coalesce(n, 0), coalesce(places, 0), coalesce(last, -1), coalesce(n_letters, 0))
         FROM (SELECT replay_id, count(*) AS n, count(DISTINCT place) AS places, max(place) AS last
               FROM dead_letter_replays GROUP BY replay_id) FULL JOIN replays USING (replay_id)
         WHERE coalesce(n, 0) <> coalesce(n_letters, 0) OR coalesce(places, 0) <> coalesce(n, 0)
            OR coalesce(last, -1) <> coalesce(n_letters, 0) - 1
         UNION ALL
         SELECT format('source {} position {} is in {} replays', source_no, pos, count(*))
         FROM dead_letter_replays GROUP BY source_no, pos HAVING count(*) > 1",
    ),
    (
        "uploads_whole",
        "every upload has its id, key and source alone, and no source goes beyond the rows of its file",
        "SELECT format('{} uploads have the {} {}', count(*), what, name)
         FROM (SELECT 'id' AS what, upload_id AS name FROM uploads
               UNION ALL SELECT 'key', idempotency_key FROM uploads
               UNION ALL SELECT 'source', source FROM uploads)
         GROUP BY what, name HAVING count(*) > 1
         UNION ALL
         SELECT format('{}: next_pos is {}, the file has {} rows', source, next_pos, rows)
         FROM uploads JOIN sources USING (source) WHERE next_pos > rows
         UNION ALL
         SELECT format('{} belongs to no upload', source) FROM sources
         WHERE starts_with(source, 'upload:') AND source NOT IN (SELECT source FROM uploads)",
    ),
];

/// Broken rows that a check lists at most.
const SHOWN: usize = 20;

/// Audits all batches after `after_batch_seq`, the ledger itself always in full, and counts what
/// all the tables hold.
///
/// # Errors
/// [`StoreError::Statement`].
pub fn audit(connection: &Connection, after_batch_seq: i64) -> Result<Audit, StoreError> {
    in_snapshot(connection, || {
        Ok(Audit { checks: ask(connection, after_batch_seq)?, totals: totals(connection)? })
    })
}

/// Only the checks, without counting all that was ever stored: what an opening can afford. Gives
/// the last batch as well.
///
/// # Errors
/// [`StoreError::Statement`].
pub fn check(
    connection: &Connection,
    after_batch_seq: i64,
) -> Result<(Vec<Check>, i64), StoreError> {
    in_snapshot(connection, || {
        let sql = "SELECT coalesce(max(batch_seq), 0) FROM ingest_ledger";
        let last =
            connection.query_row(sql, [], |row| row.get(0)).map_err(StoreError::of_statement)?;
        Ok((ask(connection, after_batch_seq)?, last))
    })
}

/// One snapshot for all questions: batches that land meanwhile do not count.
pub(super) fn in_snapshot<T>(
    connection: &Connection,
    work: impl FnOnce() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    connection.execute_batch("BEGIN TRANSACTION READ ONLY").map_err(StoreError::of_statement)?;
    let result = work();
    connection.execute_batch("ROLLBACK").map_err(StoreError::of_statement)?;
    result
}

fn ask(connection: &Connection, after: i64) -> Result<Vec<Check>, StoreError> {
    let mut checks = Vec::with_capacity(QUESTIONS.len());
    for (id, holds, sql) in QUESTIONS {
        let sql =
            format!("SELECT * FROM ({}) LIMIT {SHOWN}", sql.replace("?1", &after.to_string()));
        let mut statement = connection.prepare(&sql).map_err(StoreError::of_statement)?;
        let broken = statement
            .query_map([], |row| row.get::<_, String>(0))
            .and_then(Iterator::collect::<duckdb::Result<Vec<_>>>)
            .map_err(StoreError::of_statement)?;
        checks.push(Check::of(id, &broken, holds));
    }
    Ok(checks)
}

fn totals(connection: &Connection) -> Result<Totals, StoreError> {
    connection
        .query_row(
            "SELECT coalesce(sum(n_in), 0)::BIGINT, coalesce(sum(n_kept), 0)::BIGINT,
                    coalesce(sum(n_dead), 0)::BIGINT, coalesce(sum(n_filtered), 0)::BIGINT,
                    (SELECT count(*) FROM features_table),
                    greatest(0, coalesce(sum(n_kept), 0)
                        - (SELECT count(DISTINCT (source_no, pos)) FROM features_table))::BIGINT
                    + greatest(0, coalesce(sum(n_dead), 0)
                        - (SELECT count(DISTINCT (source_no, pos)) FROM dead_letters))::BIGINT,
                    (SELECT coalesce(sum(n - 1), 0)::BIGINT FROM
                       (SELECT count(*) AS n FROM features_table GROUP BY source_no, pos, sub)),
                    count(*), coalesce(max(batch_seq), 0)
             FROM ingest_ledger",
            [],
            |row| {
                Ok(Totals {
                    events: row.get(0)?,
                    kept: row.get(1)?,
                    dead_letters: row.get(2)?,
                    filtered: row.get(3)?,
                    landed_rows: row.get(4)?,
                    missing: row.get(5)?,
                    duplicated: row.get(6)?,
                    batches: row.get(7)?,
                    last_batch_seq: row.get(8)?,
                })
            },
        )
        .map_err(StoreError::of_statement)
}

/// Up to which batch the books were audited and found clean.
///
/// # Errors
/// [`StoreError::Statement`].
pub fn audited_to(connection: &Connection) -> Result<i64, StoreError> {
    let sql = "SELECT coalesce(max(audited_to_batch_seq), 0) FROM service_meta";
    connection.query_row(sql, [], |row| row.get(0)).map_err(StoreError::of_statement)
}

#[cfg(test)]
mod tests;
