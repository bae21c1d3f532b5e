//! What a client may ask: the text is parsed by DuckDB, and the tree is looked through. The engine's own
//! fences do not hold everything: a SELECT can read the database file, and overrun the stack.

use super::ReadError;
use crate::store::schema::READABLE_TABLES;
use duckdb::Connection;
use serde_json::{Map, Value};
use std::{collections::HashSet, sync::LazyLock};

/// Bytes of a text.
const MOST_TEXT: usize = 64 << 10;
/// Subqueries with a name: some hundred of them overrun the stack of DuckDB's planner.
const MOST_COMMON_TABLES: usize = 64;
/// Joins: DuckDB cannot be interrupted while it plans, which takes seconds beyond.
const MOST_JOINS: usize = 40;
/// Lambdas within each other, likewise.
const MOST_LAMBDAS: usize = 6;

/// Table functions that read nothing but their arguments.
const TABLE_FUNCTIONS: [&str; 3] = ["range", "generate_series", "unnest"];

/// Functions that read nothing but their arguments, change nothing, and end.
static FUNCTIONS: LazyLock<HashSet<&str>> = LazyLock::new(|| {
    let lines = include_str!("functions.txt").lines();
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
});

fn refused<T>(why: impl Into<String>) -> Result<T, ReadError> {
    Err(ReadError::Refused(why.into()))
}

/// Exactly one SELECT, over the listed tables, with the listed functions.
pub(super) fn check(connection: &Connection, sql: &str) -> Result<(), ReadError> {
    if sql.len() > MOST_TEXT {
        return refused(format!("a query has at most {} KiB", MOST_TEXT >> 10));
    }
    // DuckDB's parser would stop there.
    if sql.contains('\0') {
        return refused("a query has no null bytes");
    }
    let tree: String = connection
        .query_row("SELECT json_serialize_sql(?::VARCHAR)::VARCHAR", [sql], |row| row.get(0))
        .map_err(|e| ReadError::Refused(e.to_string()))?;
    // What it cannot be read for is its depth.
    let tree: Value = serde_json::from_str(&tree)
        .map_err(|_| ReadError::Refused("the query is nested too deeply".into()))?;
    if tree["error"].as_bool() == Some(true) {
        let why = tree["error_message"].as_str().unwrap_or("it cannot be parsed");
        return refused(format!("only one SELECT can be asked: {why}"));
    }
    if tree["statements"].as_array().map(Vec::len) != Some(1) {
        return refused("exactly one SELECT can be asked");
    }
    let mut walk = Walk::default();
    common_tables(&tree, &mut walk.named, &mut walk.n_named);
    if !walk.named.is_empty() {
        // Elsewhere in the query such a name would be the table.
        for taken in catalog(connection)? {
            if walk.named.contains(&taken) && !READABLE_TABLES.contains(&taken.as_str()) {
                return refused(format!("`{taken}` cannot be the name of a subquery"));
            }
        }
    }
    walk.node(&tree)
}

/// Whether a name is one word. DuckDB opens the file of a table that it does not know by a name that
/// looks like one (`x.parquet`), also when it stands in parts (`"x".parquet`).
fn is_word(name: &str) -> bool {
    name.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// Every table and view that DuckDB knows, its own ones, too.
fn catalog(connection: &Connection) -> Result<Vec<String>, ReadError> {
    let sql = "SELECT lower(table_name) FROM duckdb_tables() UNION SELECT lower(view_name) FROM duckdb_views()";
    let failed = |error: duckdb::Error| ReadError::Failed(error.to_string());
    let mut statement = connection.prepare(sql).map_err(failed)?;
    let names = statement.query_map([], |row| row.get(0)).map_err(failed)?;
    names.collect::<Result<_, _>>().map_err(failed)
}

/// Names that the query itself gives to subqueries (`WITH name AS …`), and how many there are. Where they
/// hold is not looked at, so none of them may be one that DuckDB would take for a file or another table elsewhere.
fn common_tables(node: &Value, named: &mut HashSet<String>, n: &mut usize) {
    match node {
        Value::Object(map) => {
            if let Some(entries) = map.get("cte_map").and_then(|m| m["map"].as_array()) {
                *n += entries.len();
                let names = entries.iter().filter_map(|e| e["key"].as_str().map(str::to_lowercase));
                named.extend(names.filter(|name| is_word(name)));
            }
            map.values().for_each(|v| common_tables(v, named, n));
        }
        Value::Array(items) => items.iter().for_each(|v| common_tables(v, named, n)),
        _ => {}
    }
}

#[derive(Default)]
struct Walk {
    named: HashSet<String>,
    n_named: usize,
    joins: usize,
    lambdas: usize,
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> &'a str {
    map.get(key).and_then(Value::as_str).unwrap_or_default()
}

impl Walk {
    fn node(&mut self, node: &Value) -> Result<(), ReadError> {
        if self.n_named > MOST_COMMON_TABLES {
            return refused(format!("a query names at most {MOST_COMMON_TABLES} subqueries"));
        }
        match node {
            Value::Object(map) => self.object(map),
            Value::Array(items) => items.iter().try_for_each(|v| self.node(v)),
            _ => Ok(()),
        }
    }

    fn object(&mut self, map: &Map<String, Value>) -> Result<(), ReadError> {
        match (text(map, "class"), text(map, "type")) {
            (_, "BASE_TABLE") => self.table(map)?,
            (_, "TABLE_FUNCTION") => return self.table_function(map),
            // All but those of a query tell of the catalog.
            (_, "SHOW_REF") if map.get("query").is_none_or(Value::is_null) => {
                return refused("of the catalog only `DESCRIBE` of a table is told");
            }
            (_, "JOIN") => {
                self.joins += 1;
                if self.joins > MOST_JOINS {
                    return refused(format!("a query joins at most {MOST_JOINS} times"));
                }
            }
            ("FUNCTION" | "WINDOW", _) => {
                let name = text(map, "function_name");
                if !FUNCTIONS.contains(name) {
                    return refused(format!("the function `{name}` is not allowed"));
                }
            }
            ("LAMBDA", _) => {
                self.lambdas += 1;
                if self.lambdas > MOST_LAMBDAS {
                    let why = format!("lambdas stand at most {MOST_LAMBDAS} deep in each other");
                    return refused(why);
                }
                let walked = map.values().try_for_each(|v| self.node(v));
                self.lambdas -= 1;
                return walked;
            }
            _ => {}
        }
        map.values().try_for_each(|v| self.node(v))
    }

    fn table(&self, map: &Map<String, Value>) -> Result<(), ReadError> {
        let table = text(map, "table_name").to_lowercase();
        let (schema, catalog) = (text(map, "schema_name"), text(map, "catalog_name"));
        let alone = schema.is_empty() && catalog.is_empty();
        let listed =
            READABLE_TABLES.contains(&table.as_str()) && is_word(schema) && is_word(catalog);
        if listed || alone && self.named.contains(&table) {
            return Ok(());
        }
        let tables = READABLE_TABLES.join(", ");
        refused(format!("there is no table `{table}`; there are {tables}"))
    }

    fn table_function(&mut self, map: &Map<String, Value>) -> Result<(), ReadError> {
        let function = map.get("function").and_then(Value::as_object);
        let name = function.map_or("", |function| text(function, "function_name"));
        if !TABLE_FUNCTIONS.contains(&name) {
            return refused(format!("the table function `{name}` is not allowed"));
        }
        // Its name is of another list than those within it.
        let inner = function.into_iter().flat_map(Map::values);
        let outer = map.iter().filter(|(key, _)| *key != "function").map(|(_, value)| value);
        inner.chain(outer).try_for_each(|v| self.node(v))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_that_is_allowed_is_one_of_duckdbs() {
        let connection = Connection::open_in_memory().unwrap();
        let sql = "SELECT count(*) FROM duckdb_functions() WHERE lower(function_name) = ?";
        let is_known = |name: &&str| {
            let n: i64 = connection.query_row(sql, [name], |row| row.get(0)).unwrap();
            n > 0
        };
        let unknown: Vec<&str> = FUNCTIONS.iter().copied().filter(|name| !is_known(name)).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
        assert!(FUNCTIONS.len() > 500);
    }
}
