//! The verdict of `demo` and `verify`: one object for people and programs.

use crate::{
    actors::generator::Expected,
    store::audit::{Audit, Check},
    supervision::Registry,
    telemetry,
};
use duckdb::Connection;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};
use uuid::Uuid;

/// What was done, and whether it is as promised.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Records that the broker took from us, and rows of files that a node took; for `verify`: records
    /// that the ledger accounts for.
    pub produced: u64,
    /// Rows in `features_table`.
    pub landed_rows: u64,
    /// Bad records, kept with their reason.
    pub dead_letters: u64,
    /// Records that their script filtered.
    pub filtered: u64,
    /// Records that are nowhere; for `verify`: that the ledger has and the tables have not.
    pub lost: u64,
    /// Rows or dead letters more than there should be.
    pub duplicated: u64,
    /// Kills on request.
    pub kills: u64,
    /// Instances of actors beyond the first.
    pub restarts: u64,
    /// Seconds from the start.
    pub elapsed_s: f64,
    /// Records a second over that time; for `verify`: those that this node has committed since its
    /// start.
    pub events_per_s: f64,
    /// Median from the record's timestamp to durable, in milliseconds; null when nothing came.
    pub p50_ms: Option<f64>,
    /// The 99th percentile of the same.
    pub p99_ms: Option<f64>,
    /// Dead letters by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dead_letter_reasons: BTreeMap<String, u64>,
    /// Rows by stream.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rows_by_stream: BTreeMap<String, u64>,
    /// Each promise that was checked.
    pub checks: Vec<Check>,
    /// Whether all of them hold.
    pub ok: bool,
}

impl Report {
    /// What an audit says.
    #[must_use]
    pub fn of_audit(audit: &Audit, elapsed: Duration, registry: &Registry) -> Self {
        let totals = &audit.totals;
        let latency = telemetry::durable_latency_ms();
        let restarts = registry.status().values().map(|a| a.generation.saturating_sub(1)).sum();
        let events = totals.events.cast_unsigned();
        Self {
            produced: events,
            landed_rows: totals.landed_rows.cast_unsigned(),
            dead_letters: totals.dead_letters.cast_unsigned(),
            filtered: totals.filtered.cast_unsigned(),
            lost: totals.missing.cast_unsigned(),
            duplicated: totals.duplicated.cast_unsigned(),
            kills: 0,
            restarts,
            elapsed_s: elapsed.as_secs_f64(),
            // Of this process: the ledger may be older than it.
            events_per_s: telemetry::totals().events as f64 / elapsed.as_secs_f64().max(1e-9),
            p50_ms: latency.map(|l| l.0),
            p99_ms: latency.map(|l| l.1),
            dead_letter_reasons: BTreeMap::new(),
            rows_by_stream: BTreeMap::new(),
            checks: audit.checks.clone(),
            ok: audit.ok(),
        }
    }

    /// Adds what the generator knows it sent, held against the tables of a closed store.
    ///
    /// # Errors
    /// DuckDB's word.
    pub fn judge(&mut self, expected: &Expected, store: &Connection) -> duckdb::Result<()> {
        let rows = counts_by_id(store, "features_table")?;
        let dead = counts_by_id(store, "dead_letters")?;
        let (rows_missing, rows_extra) = differences(&expected.rows, &rows);
        let (dead_missing, dead_extra) = differences(&expected.dead, &dead);
        self.produced = expected.produced;
        self.lost = rows_missing.len() as u64 + dead_missing.len() as u64;
        self.lost += expected.filtered.saturating_sub(self.filtered);
        self.duplicated += (rows_extra.len() + dead_extra.len()) as u64;
        self.events_per_s = expected.produced as f64 / self.elapsed_s.max(1e-9);

        let missing: Vec<String> =
            rows_missing.iter().chain(&dead_missing).map(|id| format!("{id} is nowhere")).collect();
        self.checks.push(Check::of("nothing_lost", &missing, "every acknowledged event landed"));
        let extra: Vec<String> = rows_extra
            .iter()
            .chain(&dead_extra)
            .map(|id| format!("{id} stands too often, or was never sent"))
            .collect();
        self.checks.push(Check::of(
            "nothing_doubled",
            &extra,
            "no event landed more often than it was sent",
        ));
        let filtered: Vec<String> = (expected.filtered != self.filtered)
            .then(|| format!("{} events filtered, {} expected", self.filtered, expected.filtered))
            .into_iter()
            .collect();
        self.checks.push(Check::of(
            "filtered_as_expected",
            &filtered,
            "the scripts filtered what they should",
        ));

        self.dead_letter_reasons =
            counts(store, "SELECT reason, count(*) FROM dead_letters GROUP BY ALL")?;
        let wanted: BTreeMap<String, u64> =
            expected.dead_reasons.iter().map(|(reason, n)| ((*reason).to_owned(), *n)).collect();
        let wrong: Vec<String> = wanted
            .keys()
            .chain(self.dead_letter_reasons.keys())
            .filter(|reason| wanted.get(*reason) != self.dead_letter_reasons.get(*reason))
            .map(|r| {
                format!("{r}: {:?} instead of {:?}", self.dead_letter_reasons.get(r), wanted.get(r))
            })
            .collect();
        let holds =
            "dead letters are exactly the malformed and future events, each with its reason";
        self.checks.push(Check::of("dead_letters_as_expected", &wrong, holds));

        let rows_of = counts(
            store,
            "SELECT split_part(split_part(source, ':', 2), '/', 1), count(f.pos)
             FROM sources LEFT JOIN features_table f USING (source_no)
             WHERE source NOT LIKE 'writes:%' GROUP BY ALL",
        )?;
        let silent: Vec<String> = rows_of
            .iter()
            .filter(|(_, n)| **n == 0)
            .map(|(s, _)| format!("{s} has no rows"))
            .collect();
        self.checks.push(Check::of("every_stream_landed", &silent, "every stream has rows"));
        self.rows_by_stream = rows_of;
        self.ok = self.checks.iter().all(|c| c.ok);
        Ok(())
    }
}

fn counts(store: &Connection, sql: &str) -> duckdb::Result<BTreeMap<String, u64>> {
    let mut statement = store.prepare(sql)?;
    let rows =
        statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.cast_unsigned())))?;
    rows.collect()
}

fn counts_by_id(store: &Connection, table: &str) -> duckdb::Result<BTreeMap<Uuid, u64>> {
    let sql = format!("SELECT event_id::VARCHAR, count(*) FROM {table} GROUP BY event_id");
    let mut statement = store.prepare(&sql)?;
    let rows = statement.query_map([], |row| {
        let id: Option<String> = row.get(0)?;
        // No id, or none of ours, is an id that was never sent.
        let id = id.and_then(|id| Uuid::parse_str(&id).ok()).unwrap_or(Uuid::nil());
        Ok((id, row.get::<_, i64>(1)?.cast_unsigned()))
    })?;
    rows.collect()
}

/// Ids that are there too seldom, and ids that are there too often.
fn differences(
    expected: &BTreeMap<Uuid, u64>,
    found: &BTreeMap<Uuid, u64>,
) -> (Vec<Uuid>, Vec<Uuid>) {
    let count = |map: &BTreeMap<Uuid, u64>, id: &Uuid| map.get(id).copied().unwrap_or(0);
    let missing =
        expected.iter().filter(|(id, n)| count(found, id) < **n).map(|(id, _)| *id).collect();
    let extra =
        found.iter().filter(|(id, n)| count(expected, id) < **n).map(|(id, _)| *id).collect();
    (missing, extra)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_judge_sees_what_is_missing_and_what_is_too_much() {
        let id = |n: u128| Uuid::from_u128(n);
        let expected = BTreeMap::from([(id(1), 1), (id(2), 2), (id(3), 1)]);
        let found = BTreeMap::from([(id(1), 1), (id(2), 1), (id(3), 2), (id(4), 1)]);
        assert_eq!(differences(&expected, &found), (vec![id(2)], vec![id(3), id(4)]));
        assert_eq!(differences(&expected, &expected), (vec![], vec![]));
    }
}
