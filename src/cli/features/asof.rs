//! `millstream features asof`.

use crate::{
    cli::{Failure, client::ClientArgs, demo, file_sink},
    text::sql_literal,
};
use anyhow::Context as _;
use arrow::ipc::writer::StreamWriter;
use clap::{Args, ValueEnum};
use duckdb::Connection;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// Ten million questions about many features take their time.
const DEADLINE: Duration = Duration::from_secs(3_600);

/// Arguments of `millstream features asof`.
#[derive(Debug, Args)]
pub struct AsOfArgs {
    /// The questions, a row each: an entity, an instant, and any columns of your own, which are kept.
    /// CSV, JSON, NDJSON, Parquet, or Arrow (an IPC stream), by the extension.
    #[arg(long, value_name = "FILE")]
    spine: PathBuf,
    /// Features, `name` or `stream:name`.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', required = true)]
    features: Vec<String>,
    /// The spine's column with the entity.
    #[arg(long, value_name = "COLUMN", default_value = "entity_id")]
    entity: String,
    /// The spine's column with the instant.
    #[arg(long, value_name = "COLUMN", default_value = "event_timestamp")]
    time: String,
    /// What a question may see.
    #[arg(long, value_enum, default_value = "as-known")]
    mode: AsOfMode,
    /// Leave out what came into sight at the very instant of a question.
    #[arg(long)]
    strict: bool,
    /// How old a value may be at its question [default: as the stream's `max_age_s` says].
    #[arg(long, value_name = "TIME", value_parser = demo::parse_duration)]
    ttl: Option<Duration>,
    /// Zone of instants that carry none; without it they are refused.
    #[arg(long, value_name = "ZONE", value_parser = ["UTC"])]
    timezone: Option<String>,
    /// First wait until everything that was accepted before has landed.
    #[arg(long)]
    wait: bool,
    /// Where the answer goes: .parquet, .csv, .ndjson, or .arrow (an Arrow IPC stream).
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AsOfMode {
    /// What could have been known at the instant: what was in the store by then.
    AsKnown,
    /// What was true at the instant, however late it came; a model that learns from it knows the future.
    EventTime,
}

/// Asks, and writes the answer down.
pub(super) async fn asof(args: AsOfArgs) -> Result<(), Failure> {
    file_sink::check(&args.output)?;
    let (file, columns) = (args.spine.clone(), [args.entity.clone(), args.time.clone()]);
    let reading = tokio::task::spawn_blocking(move || read(&file, &columns));
    let rows = reading.await.map_err(anyhow::Error::from)??;
    let response = ask(&args, rows).await?;
    let as_of = response.headers().get("x-millstream-as-of");
    let as_of = as_of.and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let n = file_sink::save(response, &args.output).await?;
    eprintln!("{n} rows as of {as_of} in {}", args.output.display());
    Ok(())
}

async fn ask(args: &AsOfArgs, spine: Vec<u8>) -> Result<reqwest::Response, Failure> {
    let mode = match args.mode {
        AsOfMode::AsKnown => "as-known",
        AsOfMode::EventTime => "event-time",
    };
    let mut query = vec![
        ("features", args.features.join(",")),
        ("entity", args.entity.clone()),
        ("time", args.time.clone()),
        ("mode", mode.to_owned()),
        ("strict", args.strict.to_string()),
        ("wait", args.wait.to_string()),
    ];
    query.extend(args.ttl.map(|age| ("max_age_s", age.as_secs_f64().to_string())));
    query.extend(args.timezone.clone().map(|zone| ("timezone", zone)));
    args.client.post_arrow("/get-historical-features", &query, spine, DEADLINE).await
}

/// The spine as an Arrow IPC stream. All but Arrow is read by a DuckDB of the command's own.
fn read(file: &Path, [entity, time]: &[String; 2]) -> Result<Vec<u8>, Failure> {
    let unreadable =
        |error: anyhow::Error| Failure::Usage(format!("{}: {error:#}", file.display()));
    let text = file.to_str().context("its name is no text").map_err(unreadable)?;
    if !file.is_file() {
        return Err(unreadable(anyhow::anyhow!("there is no such file")));
    }
    // DuckDB takes a name for a pattern.
    let name = sql_literal(&text.replace('[', "[[]").replace('*', "[*]").replace('?', "[?]"));
    // Ids are texts, also `007`, and a time keeps its zone until it is parsed.
    let texts = [entity, time];
    let types = texts.map(|column| format!("{}: 'VARCHAR'", sql_literal(column))).join(", ");
    let source = match file.extension().and_then(|e| e.to_str()) {
        Some("arrow" | "arrows") => {
            let bytes = std::fs::read(file).map_err(anyhow::Error::from).map_err(unreadable)?;
            return Ok(bytes);
        }
        // Types are of the whole file, not of its beginning.
        Some("csv") => {
            format!("read_csv({name}, header = true, sample_size = -1, types = {{{types}}})")
        }
        Some("parquet") => format!("read_parquet({name})"),
        Some("json" | "ndjson" | "jsonl") => {
            return json_to_arrow(&name, texts).map_err(unreadable);
        }
        _ => {
            return Err(Failure::Usage(format!(
                "{text}: its extension does not tell what it is: .csv, .json, .ndjson, .parquet, or .arrow (an \
                 Arrow IPC stream)"
            )));
        }
    };
    reader_of_files().and_then(|connection| to_arrow(&connection, &source)).map_err(unreadable)
}

fn reader_of_files() -> anyhow::Result<Connection> {
    let connection = Connection::open_in_memory()?;
    connection.execute_batch("SET TimeZone = 'UTC'; SET preserve_insertion_order = true;")?;
    Ok(connection)
}

fn json_to_arrow(name: &str, texts: [&String; 2]) -> anyhow::Result<Vec<u8>> {
    let connection = reader_of_files()?;
    let columns =
        columns_of_json(&connection, &format!("read_json({name}, sample_size = -1)"), texts)?;
    to_arrow(&connection, &format!("read_json({name}, columns = {{{columns}}})"))
}

fn to_arrow(connection: &Connection, source: &str) -> anyhow::Result<Vec<u8>> {
    let mut statement = connection.prepare(&format!("FROM {source}"))?;
    // Not as a stream: that one panics on a row that does not fit its column.
    let batches = statement.query_arrow([])?;
    let mut writer = StreamWriter::try_new(Vec::new(), &batches.get_schema())?;
    for batch in batches {
        writer.write(&batch)?;
    }
    Ok(writer.into_inner()?)
}

/// The columns of a JSON file as DuckDB finds them, but for those that stay texts.
fn columns_of_json(
    connection: &Connection,
    source: &str,
    texts: [&String; 2],
) -> anyhow::Result<String> {
    let mut statement = connection.prepare(&format!("DESCRIBE FROM {source}"))?;
    let found = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let found = found.collect::<Result<Vec<(String, String)>, _>>()?;
    let columns = found.iter().map(|(column, kind)| {
        let kind = if texts.contains(&column) { "VARCHAR" } else { kind };
        format!("{}: {}", sql_literal(column), sql_literal(kind))
    });
    Ok(columns.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first column's texts.
    fn column(file: &Path) -> Vec<String> {
        use arrow::{array::AsArray as _, ipc::reader::StreamReader};
        let bytes = read(file, &["e".to_owned(), "t".to_owned()]).unwrap();
        let batches = StreamReader::try_new(bytes.as_slice(), None).unwrap();
        let texts = |batch: arrow::array::RecordBatch| {
            let texts = batch.column(0).as_string::<i32>().iter();
            texts.map(|text| text.unwrap().to_owned()).collect::<Vec<_>>()
        };
        batches.flat_map(|batch| texts(batch.unwrap())).collect()
    }

    #[test]
    fn a_spine_is_one_file_whatever_its_name_and_ids_are_texts() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("a[1]*?.csv"), "e,t\n007,2026-01-01T00:00:00Z\n").unwrap();
        std::fs::write(path("a1x.csv"), "e,t\nother,2026-01-01T00:00:00Z\n").unwrap();
        std::fs::write(path("b.ndjson"), "{\"e\":\"008\",\"t\":\"2026-01-01T00:00:00Z\"}\n")
            .unwrap();
        std::fs::write(path("b.json"), "[{\"e\":9,\"t\":\"2026-01-01T00:00:00Z\"}]").unwrap();
        assert_eq!(column(&path("a[1]*?.csv")), ["007"]);
        assert_eq!(column(&path("b.ndjson")), ["008"]);
        assert_eq!(column(&path("b.json")), ["9"]);
        for (name, why) in [("none.csv", "no such file"), ("a.xlsx", "no such file")] {
            let Err(Failure::Usage(told)) = read(&path(name), &["e".into(), "t".into()]) else {
                panic!("{name}")
            };
            assert!(told.contains(why), "{told}");
        }
    }
}
