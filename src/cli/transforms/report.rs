//! What `millstream transforms try` prints.

use super::{against::Compared, input::NO_TIME, short, table};
use crate::{
    messages::{DeadLetter, FeaturePart},
    python::{Loaded, Script, Style, WorkerError},
};
use arrow::{
    array::{Array, AsArray},
    datatypes::{Float64Type, Int64Type, TimestampMicrosecondType},
};
use chrono::{DateTime, SecondsFormat};
use serde::Serialize;
use std::{path::PathBuf, time::Duration};

/// Longest text in a cell, in characters.
const CELL_CHARS: usize = 100;

/// Which script was tried, and on whose events.
#[derive(Debug, Serialize)]
pub struct Subject {
    stream: String,
    script: String,
    file: PathBuf,
    sha256: String,
}

impl Subject {
    /// A script for the events of a stream.
    pub fn new(stream: &str, script: &Script) -> Self {
        Self {
            stream: stream.to_owned(),
            script: script.name.clone(),
            file: script.path.clone(),
            sha256: script.sha256.clone(),
        }
    }
}

/// What became of the events: `events = kept + filtered + dead`.
#[derive(Debug, Default, Serialize)]
struct Counts {
    events: i64,
    kept: i64,
    filtered: i64,
    dead: i64,
    rows: usize,
}

/// Times, in seconds.
#[derive(Debug, Default, Serialize)]
struct Timing {
    /// The start of the first worker: process, interpreter, import, `setup`.
    cold_start_s: f64,
    /// Of that the script's own: import and `setup`.
    import_s: f64,
    /// All batches, with what finding the rows at fault cost.
    transform_s: f64,
    events_per_s: f64,
    /// One, and one more for each that a failing batch cost.
    workers_started: usize,
}

/// One output row.
#[derive(Debug, Serialize)]
struct Row {
    /// The number of its input row, from 0.
    row: i64,
    entity_id: String,
    feature_name: String,
    value: Option<f64>,
    event_timestamp: String,
    /// `None`: a node takes the record's time.
    created_at: Option<String>,
}

/// One dead letter.
#[derive(Debug, Serialize)]
struct Letter {
    row: i64,
    stage: &'static str,
    reason: String,
    entity_id: Option<String>,
    detail: String,
    raw: Option<String>,
}

/// See the module.
#[derive(Debug, Serialize)]
pub struct Report {
    ok: bool,
    #[serde(flatten)]
    subject: Subject,
    style: Option<Style>,
    counts: Counts,
    timing: Timing,
    rows: Vec<Row>,
    dead_letters: Vec<Letter>,
    /// What another version makes of the same events, when that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    difference: Option<Compared>,
    /// How many rows, and how many dead letters, are kept.
    #[serde(skip)]
    limit: usize,
}

impl Report {
    /// A report that keeps at most `limit` rows, and as many dead letters.
    pub fn new(subject: Subject, limit: usize) -> Self {
        Self {
            ok: true,
            subject,
            style: None,
            counts: Counts::default(),
            timing: Timing::default(),
            rows: Vec::new(),
            dead_letters: Vec::new(),
            difference: None,
            limit,
        }
    }

    /// The script is loaded; `cold_start` counts from before there was a process.
    pub fn loaded(&mut self, loaded: Loaded, cold_start: Duration) {
        self.style = Some(loaded.style);
        self.timing.cold_start_s = cold_start.as_secs_f64();
        self.timing.import_s = loaded.seconds;
    }

    /// A batch is through.
    pub fn add(&mut self, part: &FeaturePart) {
        self.counts.events += part.n_in;
        self.counts.kept += part.n_kept;
        self.counts.filtered += part.n_filtered;
        self.counts.dead += part.dead.len() as i64;
        self.counts.rows += part.rows.num_rows();
        let room = self.limit - self.rows.len();
        self.rows.extend(rows_of(part, room));
        let room = self.limit - self.dead_letters.len();
        self.dead_letters.extend(part.dead.iter().take(room).map(letter_of));
    }

    /// What was tried.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// Events that are through.
    pub fn events(&self) -> i64 {
        self.counts.events
    }

    /// All batches are through.
    pub fn finish(&mut self, transform_time: Duration, workers_started: usize) {
        let seconds = transform_time.as_secs_f64();
        self.timing.transform_s = seconds;
        self.timing.events_per_s = self.counts.events as f64 / seconds.max(1e-9);
        self.timing.workers_started = workers_started;
    }

    /// Another version is through them as well.
    pub fn compared(&mut self, compared: Compared) {
        self.difference = Some(compared);
    }

    /// Prints it for people, or as one JSON object on one line.
    ///
    /// # Errors
    /// Only when there is no JSON for it, which is a defect.
    pub fn print(&self, json: bool) -> anyhow::Result<()> {
        if json {
            println!("{}", serde_json::to_string(self)?);
            return Ok(());
        }
        let Subject { stream, file, sha256, .. } = &self.subject;
        let style = self.style.map_or("", Style::as_str);
        println!("{} {} ({style}), events of the stream {stream}", file.display(), short(sha256));
        self.print_rows();
        self.print_dead_letters();
        let Counts { events, kept, filtered, dead, rows } = self.counts;
        println!(
            "events  {events}: {kept} kept, {filtered} filtered, {dead} dead; {rows} rows out"
        );
        let Timing { cold_start_s, import_s, transform_s, events_per_s, workers_started } =
            self.timing;
        println!(
            "time    start {cold_start_s:.2} s ({import_s:.2} s of it import), transform {transform_s:.3} s \
             ({events_per_s:.0} events/s)"
        );
        if workers_started > 1 {
            println!(
                "        {workers_started} workers were started, to find the rows at fault: a batch that fails is \
                 run again, then halved"
            );
        }
        self.difference.iter().for_each(Compared::print);
        Ok(())
    }

    fn print_rows(&self) {
        if self.counts.rows == 0 {
            println!("no rows");
            return;
        }
        let columns =
            ["row", "entity_id", "feature_name", "value", "event_timestamp", "created_at"];
        let mut table = table(&columns);
        for row in &self.rows {
            table.add_row([
                row.row.to_string(),
                cut(&row.entity_id),
                cut(&row.feature_name),
                row.value.map_or_else(|| "NULL".into(), |value| value.to_string()),
                row.event_timestamp.clone(),
                row.created_at.clone().unwrap_or_default(),
            ]);
        }
        println!("{table}");
        more(self.counts.rows - self.rows.len(), "rows");
    }

    fn print_dead_letters(&self) {
        if self.counts.dead == 0 {
            return;
        }
        println!("dead letters");
        let mut table = table(&["row", "stage", "reason", "entity_id", "detail"]);
        for letter in &self.dead_letters {
            table.add_row([
                letter.row.to_string(),
                letter.stage.to_owned(),
                letter.reason.clone(),
                cut(letter.entity_id.as_deref().unwrap_or_default()),
                cut(gist(&letter.detail)),
            ]);
        }
        println!("{table}");
        // Counted above, so it is not negative.
        more(self.counts.dead as usize - self.dead_letters.len(), "dead letters");
    }
}

/// What is told, with --json, of a script that did not get as far as rows.
pub fn print_failure(subject: &Subject, error: &WorkerError) {
    #[derive(Serialize)]
    struct Failed<'a> {
        ok: bool,
        #[serde(flatten)]
        subject: &'a Subject,
        error: String,
        traceback: &'a str,
    }
    let traceback = traceback_of(error).unwrap_or_default();
    let failed = Failed { ok: false, subject, error: error.to_string(), traceback };
    // Strings and a path that was read as text: there is nothing that could not be written.
    println!("{}", serde_json::to_string(&failed).unwrap_or_default());
}

/// What a script left behind when it failed as a whole.
pub fn traceback_of(error: &WorkerError) -> Option<&str> {
    let text = match error {
        WorkerError::Import { traceback, .. } | WorkerError::Script { traceback, .. } => traceback,
        WorkerError::Exited { stderr, .. } => stderr,
        _ => return None,
    };
    Some(text.as_str()).filter(|text| !text.is_empty())
}

fn more(count: usize, what: &str) {
    if count > 0 {
        println!("… and {count} more {what} (--rows N shows N, --json all)");
    }
}

/// The first rows of a part, by the columns of `feature_row_schema`.
fn rows_of(part: &FeaturePart, most: usize) -> impl Iterator<Item = Row> {
    let columns = part.rows.columns();
    let (entities, features) = (columns[0].as_string::<i32>(), columns[1].as_string::<i32>());
    let values = columns[2].as_primitive::<Float64Type>();
    let event_times = columns[3].as_primitive::<TimestampMicrosecondType>();
    let created = columns[4].as_primitive::<TimestampMicrosecondType>();
    let positions = columns[6].as_primitive::<Int64Type>();
    (0..part.rows.num_rows().min(most)).map(move |i| Row {
        row: positions.value(i),
        entity_id: entities.value(i).to_owned(),
        feature_name: features.value(i).to_owned(),
        value: values.is_valid(i).then(|| values.value(i)),
        event_timestamp: instant(event_times.value(i)),
        created_at: Some(created.value(i)).filter(|at| *at != NO_TIME).map(instant),
    })
}

fn letter_of(letter: &DeadLetter) -> Letter {
    Letter {
        row: letter.pos,
        stage: letter.stage.name(),
        reason: letter.reason.clone(),
        entity_id: letter.entity_id.clone(),
        detail: letter.detail.clone(),
        raw: letter.raw.as_ref().map(|raw| String::from_utf8_lossy(raw).into_owned()),
    }
}

/// RFC 3339 in UTC; the bare microseconds where a calendar ends.
fn instant(us: i64) -> String {
    DateTime::from_timestamp_micros(us)
        .map_or_else(|| us.to_string(), |at| at.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}

/// The line that says it: the last of a traceback, else the first.
fn gist(detail: &str) -> &str {
    let mut lines = detail.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = if detail.starts_with("Traceback") { lines.next_back() } else { lines.next() };
    line.unwrap_or_default()
}

/// A text as it fits in a cell.
pub fn cut(text: &str) -> String {
    match text.char_indices().nth(CELL_CHARS) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_that_says_it() {
        let traceback =
            "Traceback (most recent call last):\n  File \"s.py\", line 3\nValueError: no\n\n";
        assert_eq!(gist(traceback), "ValueError: no");
        assert_eq!(
            gist("the Python worker ended: signal 11\nFatal Python error\n"),
            "the Python worker ended: signal 11"
        );
        assert_eq!(gist(""), "");
    }

    #[test]
    fn instants_are_told_in_utc_with_the_decimals_they_have() {
        assert_eq!(instant(1_714_557_600_000_000), "2024-05-01T10:00:00Z");
        assert_eq!(instant(1_714_557_600_250_001), "2024-05-01T10:00:00.250001Z");
        assert_eq!(instant(i64::MAX), i64::MAX.to_string());
    }

    #[test]
    fn long_texts_are_cut_at_characters() {
        assert_eq!(cut("ä"), "ä");
        assert_eq!(cut(&"ä".repeat(101)).chars().count(), CELL_CHARS + 1);
    }
}
