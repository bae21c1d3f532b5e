//! Reads: one SELECT of a client, on a connection of its own, to an Arrow IPC stream.

use super::schema::READABLE_TABLES;
use arrow::ipc::writer::StreamWriter;
use duckdb::Connection;
use serde_json::Value;
use std::time::Duration;

/// Largest answer, in bytes.
pub const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Table functions that read nothing but their arguments.
const TABLE_FUNCTIONS: [&str; 3] = ["range", "generate_series", "unnest"];

/// Why a read gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is not one SELECT over the listed tables.
    #[error("{0}")]
    Refused(String),
    /// It took too long.
    #[error("the query ran longer than {0:?}")]
    Deadline(Duration),
    /// DuckDB or Arrow failed.
    #[error("{0}")]
    Failed(String),
}

/// Runs one SELECT and gives its rows as an Arrow IPC stream.
///
/// # Errors
/// See [`ReadError`].
pub fn query(connection: &Connection, sql: &str, deadline: Duration) -> Result<Vec<u8>, ReadError> {
    check(connection, sql)?;
    with_deadline(connection, deadline, || run(connection, sql))
}

/// Interrupts what is done with the connection when it takes too long.
pub(super) fn with_deadline<T>(
    connection: &Connection,
    deadline: Duration,
    work: impl FnOnce() -> Result<T, ReadError>,
) -> Result<T, ReadError> {
    let interrupt = connection.interrupt_handle();
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        let late = wait.recv_timeout(deadline) == Err(std::sync::mpsc::RecvTimeoutError::Timeout);
        if late {
            interrupt.interrupt();
        }
        late
    });
    let result = work();
    drop(done);
    let late = watchdog.join().unwrap_or(false);
    match result {
        Err(_) if late => Err(ReadError::Deadline(deadline)),
        other => other,
    }
}

fn run(connection: &Connection, sql: &str) -> Result<Vec<u8>, ReadError> {
    let failed = |e: &dyn std::fmt::Display| ReadError::Failed(e.to_string());
    // What is wrong with a text that parses — an unknown column — is the client's to mend.
    let mut statement = connection.prepare(sql).map_err(|e| ReadError::Refused(e.to_string()))?;
    let batches = statement.query_arrow([]).map_err(|e| failed(&e))?;
    let schema = batches.get_schema();
    let mut writer = StreamWriter::try_new(Vec::new(), &schema).map_err(|e| failed(&e))?;
    for batch in batches {
        writer.write(&batch).map_err(|e| failed(&e))?;
        if writer.get_ref().len() > MAX_ANSWER_BYTES {
            let limit = MAX_ANSWER_BYTES >> 20;
            return Err(ReadError::Refused(format!(
                "the answer exceeds {limit} MiB: narrow the query"
            )));
        }
    }
    writer.into_inner().map_err(|e| failed(&e))
}

/// Exactly one SELECT, over the listed tables, without functions that read files.
fn check(connection: &Connection, sql: &str) -> Result<(), ReadError> {
    let tree: String = connection
        .query_row("SELECT json_serialize_sql(?::VARCHAR)::VARCHAR", [sql], |row| row.get(0))
        .map_err(|e| ReadError::Refused(e.to_string()))?;
    let tree: Value = serde_json::from_str(&tree).map_err(|e| ReadError::Failed(e.to_string()))?;
    if tree["error"].as_bool() == Some(true) {
        let why = tree["error_message"].as_str().unwrap_or("it cannot be parsed");
        return Err(ReadError::Refused(format!("only one SELECT can be asked: {why}")));
    }
    if tree["statements"].as_array().map(Vec::len) != Some(1) {
        return Err(ReadError::Refused("exactly one SELECT can be asked".into()));
    }
    let mut named = Vec::new();
    common_tables(&tree, &mut named);
    walk(&tree, &named)
}

/// Whether a name is one word. DuckDB opens the file of a table that it does not know by a name that
/// looks like one (`x.parquet`), also when it stands in parts (`"x".parquet`).
fn is_word(name: &str) -> bool {
    name.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// Names that the query itself gives to subqueries (`WITH name AS …`). Where they hold is not looked
/// at, so none of them may be one that DuckDB would take for a file elsewhere.
fn common_tables(node: &Value, named: &mut Vec<String>) {
    match node {
        Value::Object(map) => {
            if let Some(entries) = map.get("cte_map").and_then(|m| m["map"].as_array()) {
                let names = entries.iter().filter_map(|e| e["key"].as_str().map(str::to_lowercase));
                named.extend(names.filter(|name| is_word(name)));
            }
            map.values().for_each(|v| common_tables(v, named));
        }
        Value::Array(items) => items.iter().for_each(|v| common_tables(v, named)),
        _ => {}
    }
}

fn walk(node: &Value, named: &[String]) -> Result<(), ReadError> {
    match node {
        Value::Object(map) => {
            match map.get("type").and_then(Value::as_str) {
                Some("BASE_TABLE") => {
                    let text = |key: &str| map.get(key).and_then(Value::as_str).unwrap_or_default();
                    let table = text("table_name").to_lowercase();
                    let (schema, catalog) = (text("schema_name"), text("catalog_name"));
                    let alone = schema.is_empty() && catalog.is_empty();
                    let listed = READABLE_TABLES.contains(&table.as_str())
                        && is_word(schema)
                        && is_word(catalog);
                    if !(listed || alone && named.contains(&table)) {
                        let tables = READABLE_TABLES.join(", ");
                        return Err(ReadError::Refused(format!(
                            "there is no table `{table}`; there are {tables}"
                        )));
                    }
                }
                Some("TABLE_FUNCTION") => {
                    let name = map
                        .get("function")
                        .and_then(|f| f["function_name"].as_str())
                        .unwrap_or_default();
                    if !TABLE_FUNCTIONS.contains(&name) {
                        return Err(ReadError::Refused(format!(
                            "the table function `{name}` is not allowed"
                        )));
                    }
                }
                _ => {}
            }
            map.values().try_for_each(|v| walk(v, named))
        }
        Value::Array(items) => items.iter().try_for_each(|v| walk(v, named)),
        _ => Ok(()),
    }
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
        let ok = |sql| query(&connection, sql, Duration::from_secs(10)).map(|_| ());
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
            let refused = query(&connection, sql, Duration::from_secs(10)).unwrap_err();
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
            let refused = query(&connection, &sql, Duration::from_secs(10)).unwrap_err();
            let ReadError::Refused(why) = refused else { panic!("{sql}: {refused:?}") };
            assert!(why.contains("there is no table"), "{sql}: {why}");
        }
    }

    #[test]
    fn a_query_that_runs_too_long_is_interrupted() {
        let connection = database();
        let sql =
            "SELECT count(*) FROM range(100000000) a, range(100000) b WHERE a.range * b.range = 7";
        let late = query(&connection, sql, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(late, ReadError::Deadline(_)), "{late:?}");
    }
}
