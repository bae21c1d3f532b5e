//! Reads: one SELECT of a client, on a connection of its own, to an Arrow IPC stream.

mod check;

use self::check::check;
use crate::messages::QueryBounds;
use arrow::ipc::writer::StreamWriter;
use duckdb::Connection;
use std::{
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

/// How often it is looked whether anybody still waits for an answer, and at the memory.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Pause after a query that took too much memory.
const AFTER_MEMORY: Duration = Duration::from_millis(200);

/// Why a read gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is not one SELECT over the listed tables, or its answer is too large.
    #[error("{0}")]
    Refused(String),
    /// It took too long.
    #[error("the query ran longer than {0:?}")]
    Deadline(Duration),
    /// DuckDB's writer would be left without memory.
    #[error("the query needs more memory than the store can spare: narrow it")]
    Memory,
    /// Nobody waits for the answer.
    #[error("nobody waits for the answer any more")]
    Gone,
    /// DuckDB or Arrow failed.
    #[error("{0}")]
    Failed(String),
}

/// Runs one SELECT and gives its rows as an Arrow IPC stream. It is interrupted once `is_gone` says that
/// nobody wants them.
///
/// # Errors
/// See [`ReadError`].
pub fn query(
    connection: &Connection,
    sql: &str,
    bounds: QueryBounds,
    memory_limit: usize,
    is_gone: impl Fn() -> bool + Send,
) -> Result<Vec<u8>, ReadError> {
    let bounds = bounds.within_limits();
    // A second wall: whatever the check overlooks cannot change a table.
    let begun = connection.execute_batch("BEGIN TRANSACTION READ ONLY");
    begun.map_err(|e| ReadError::Failed(e.to_string()))?;
    let beside = connection.try_clone().map_err(|e| ReadError::Failed(e.to_string()))?;
    let before = used_memory(&beside);
    let must_end = move || {
        if is_gone() {
            return Some(ReadError::Gone);
        }
        // What others hold is not its fault.
        let used = used_memory(&beside);
        let own = used.saturating_sub(before);
        (used > memory_limit / 2 && own > memory_limit / 4).then_some(ReadError::Memory)
    };
    let answer = watched(connection, bounds.deadline(), must_end, || {
        check(connection, sql)?;
        run(connection, sql, bounds)
    });
    let answer = match answer {
        Err(ReadError::Failed(why)) if why.contains("Out of Memory") => Err(ReadError::Memory),
        answer => answer,
    };
    if let Err(ReadError::Memory) = answer {
        // A writer that met the limit needs a moment before the next one comes.
        std::thread::sleep(AFTER_MEMORY);
    }
    // The connection is for this question alone, and what is left of it ends with it.
    if let Err(error) = connection.execute_batch("ROLLBACK") {
        tracing::debug!(%error, "a reader's transaction ended by itself");
    }
    answer
}

/// Bytes that DuckDB's users hold together and that it cannot put aside on the disk, as it can with tables,
/// sorts and hash tables: with much of it the writer may find no memory.
fn used_memory(beside: &Connection) -> usize {
    let sql = "SELECT coalesce(sum(memory_usage_bytes), 0)::UBIGINT FROM duckdb_memory() WHERE tag = 'ALLOCATOR'";
    // Without an answer the query itself shows what is wrong.
    let used = beside.query_row(sql, [], |row| row.get::<_, u64>(0)).unwrap_or(0);
    usize::try_from(used).unwrap_or(usize::MAX)
}

/// Interrupts what is done with the connection when it takes too long, or nobody waits for it.
///
/// # Errors
/// [`ReadError::Deadline`], [`ReadError::Gone`], and those of the work.
pub fn with_deadline<T>(
    connection: &Connection,
    deadline: Duration,
    is_gone: impl Fn() -> bool + Send,
    work: impl FnOnce() -> Result<T, ReadError>,
) -> Result<T, ReadError> {
    watched(connection, deadline, move || is_gone().then_some(ReadError::Gone), work)
}

/// Interrupts what is done with the connection when it takes too long, or must end for a reason.
fn watched<T>(
    connection: &Connection,
    deadline: Duration,
    must_end: impl Fn() -> Option<ReadError> + Send,
    work: impl FnOnce() -> Result<T, ReadError>,
) -> Result<T, ReadError> {
    let (interrupt, until) = (connection.interrupt_handle(), Instant::now() + deadline);
    let (done, wait) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let watchdog = scope.spawn(move || {
            let mut cause = None;
            // Again and again: an interrupt stops only what DuckDB is at.
            while wait.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                if cause.is_none() {
                    let is_late = Instant::now() > until;
                    let late = is_late.then_some(ReadError::Deadline(deadline));
                    cause = late.or_else(&must_end);
                }
                if cause.is_some() {
                    interrupt.interrupt();
                }
            }
            cause
        });
        // Also when it panics.
        let result = {
            let _done = done;
            work()
        };
        match (result, watchdog.join()) {
            (Err(_), Ok(Some(cause))) => Err(cause),
            (result, _) => result,
        }
    })
}

/// What is wrong with a text that parses — an unknown column, a cast that fails — is the client's to mend.
fn told(error: &duckdb::Error) -> ReadError {
    let text = error.to_string();
    let ours = ["INTERRUPT", "INTERNAL", "FATAL", "IO Error", "Out of Memory"];
    if ours.iter().any(|word| text.contains(word)) {
        ReadError::Failed(text)
    } else {
        ReadError::Refused(text)
    }
}

fn run(connection: &Connection, sql: &str, bounds: QueryBounds) -> Result<Vec<u8>, ReadError> {
    let failed = |e: &dyn std::fmt::Display| ReadError::Failed(e.to_string());
    // DuckDB puts the answer together before it gives its first row, so it must know the bound. The text
    // alone was checked: nothing in it can end the parenthesis.
    let sql = sql.trim_end().trim_end_matches(|c: char| c == ';' || c.is_whitespace());
    let bounded = format!("FROM (\n{sql}\n) LIMIT {}", bounds.max_rows.saturating_add(1));
    let mut statement = connection.prepare(&bounded).map_err(|e| told(&e))?;
    let batches = statement.query_arrow([]).map_err(|e| told(&e))?;
    let schema = batches.get_schema();
    let mut writer = StreamWriter::try_new(Vec::new(), &schema).map_err(|e| failed(&e))?;
    let mut rows = 0;
    for batch in batches {
        rows += batch.num_rows();
        writer.write(&batch).map_err(|e| failed(&e))?;
        if rows > bounds.max_rows || writer.get_ref().len() > bounds.max_bytes {
            return Err(ReadError::Refused(bounds.exceeded()));
        }
    }
    writer.into_inner().map_err(|e| failed(&e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::schema::DDL;

    fn database() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(DDL).unwrap();
        connection
    }

    #[test]
    fn one_select_over_listed_tables_is_answered() {
        let connection = database();
        let ok =
            |sql| query(&connection, sql, QueryBounds::default(), 1 << 30, || false).map(|_| ());
        ok("SELECT count(*) FROM features_table").unwrap();
        ok("WITH f AS (SELECT * FROM dead_letters) SELECT reason, count(*) FROM f GROUP BY ALL")
            .unwrap();
        ok("SELECT * FROM range(3)").unwrap();
        ok("SELECT count(*) FROM main.sources").unwrap();
        ok("DESCRIBE features_table").unwrap();
    }

    #[test]
    fn everything_else_is_refused_with_a_reason() {
        let connection = database();
        for sql in [
            "DELETE FROM features_table",
            "SELECT 1; SELECT 2",
            "SELECT 1; DROP TABLE sources",
            "SELECT * FROM read_csv('/etc/passwd')",
            "SELECT * FROM 'file.parquet'",
            "SELECT * FROM duckdb_settings()",
            "SELECT * FROM (SELECT * FROM information_schema.tables)",
            "SUMMARIZE 'file.parquet'",
            "DESCRIBE 'file.parquet'",
            "TABLE \"file.parquet\"",
            "SELECT * FROM read_parquet('file.parquet')",
            "SELECT * FROM parquet_metadata('file.parquet')",
            "SELECT * FROM glob('*')",
            "SELECT * FROM query_table('file.parquet')",
            "SELECT * FROM query('FROM sources')",
            "SELECT (SELECT count(*) FROM 'file.parquet')",
            "SELECT * FROM sources WHERE source IN (FROM 'file.parquet')",
            "COPY features_table TO 'x.csv'",
            "not sql at all",
            "SELECT no_such_column FROM features_table",
        ] {
            let refused =
                query(&connection, sql, QueryBounds::default(), 1 << 30, || false).unwrap_err();
            assert!(matches!(refused, ReadError::Refused(_)), "{sql}: {refused:?}");
        }
    }

    #[test]
    fn a_file_is_not_read_under_the_name_of_a_subquery() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.parquet");
        let path = path.to_str().unwrap();
        let connection = database();
        connection.execute_batch(&format!("COPY (SELECT 1 AS a) TO '{path}'")).unwrap();
        let (stem, _) = path.rsplit_once('.').unwrap();
        for sql in [
            format!("SELECT * FROM (WITH \"{path}\" AS (SELECT 1) SELECT 1), \"{path}\""),
            format!("SELECT * FROM (WITH parquet AS (SELECT 1) SELECT 1), \"{stem}\".parquet"),
            format!("SELECT * FROM (WITH parquet AS (SELECT 1) SELECT 1), a.\"{stem}\".parquet"),
            format!("WITH sources AS (FROM \"{path}\") SELECT * FROM sources"),
        ] {
            // DuckDB itself would read it, or look for it.
            let refused =
                query(&connection, &sql, QueryBounds::default(), 1 << 30, || false).unwrap_err();
            let ReadError::Refused(why) = refused else { panic!("{sql}: {refused:?}") };
            assert!(why.contains("there is no table"), "{sql}: {why}");
        }
    }

    #[test]
    fn a_query_that_runs_too_long_is_interrupted() {
        let connection = database();
        let sql =
            "SELECT count(*) FROM range(100000000) a, range(100000) b WHERE a.range * b.range = 7";
        let bounds = QueryBounds { deadline_ms: 50, ..QueryBounds::default() };
        let late = query(&connection, sql, bounds, 1 << 30, || false).unwrap_err();
        assert!(matches!(late, ReadError::Deadline(_)), "{late:?}");
        let gone = query(&connection, sql, QueryBounds::default(), 1 << 30, || true).unwrap_err();
        assert!(matches!(gone, ReadError::Gone), "{gone:?}");
    }

    #[test]
    fn an_answer_beyond_its_bounds_is_refused_and_not_cut() {
        let connection = database();
        let ask = |sql, max_rows, max_bytes| {
            let bounds = QueryBounds { max_rows, max_bytes, ..QueryBounds::default() };
            query(&connection, sql, bounds, 1 << 30, || false).map(|_| ())
        };
        ask("SELECT * FROM range(5)", 5, 1 << 20).unwrap();
        for (sql, rows, bytes) in
            [("SELECT * FROM range(6)", 5, 1 << 20), ("SELECT * FROM range(1000)", 5_000, 1_000)]
        {
            let refused = ask(sql, rows, bytes).unwrap_err();
            assert!(refused.to_string().contains("larger than"), "{refused}");
        }
    }
}
