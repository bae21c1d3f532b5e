//! `millstream query`.

use super::{
    Failure,
    client::ClientArgs,
    demo,
    file_sink::{self, FileSink},
};
use crate::{json_rows::json_rows, messages::QueryBounds, service::QueryBody};
use arrow::{
    array::RecordBatch,
    ipc::reader::StreamReader,
    util::display::{ArrayFormatter, FormatOptions},
};
use clap::Args;
use std::{io::Cursor, path::PathBuf, time::Duration};

/// The store interrupts a query after two minutes at most; queue and network come on top.
const DEADLINE: Duration = Duration::from_secs(180);

/// Arguments of `millstream query`.
#[derive(Debug, Args)]
pub struct QueryArgs {
    /// One SELECT over features_table, dead_letters, ingest_ledger, sources and the other tables.
    sql: String,
    /// A JSON list of rows instead of a table.
    #[arg(long, conflicts_with = "output")]
    json: bool,
    /// Into a file instead: .parquet, .csv, .ndjson, or .arrow (an Arrow IPC stream).
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// How long it may run; at most 2 minutes.
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = demo::parse_duration)]
    deadline: Duration,
    /// Rows that the answer may have; beyond them the query fails.
    #[arg(long, value_name = "N", default_value_t = QueryBounds::default().max_rows)]
    max_rows: usize,
    #[command(flatten)]
    client: ClientArgs,
}

/// Asks and prints.
pub async fn query(args: QueryArgs) -> Result<(), Failure> {
    if let Some(path) = &args.output {
        file_sink::check(path)?;
    }
    let body = QueryBody {
        sql: args.sql,
        // More than four weeks are no deadline either.
        deadline_ms: Some(u64::try_from(args.deadline.as_millis()).unwrap_or(u64::MAX)),
        max_rows: Some(args.max_rows),
        max_bytes: None,
    };
    let batches = ask(&args.client, &body).await?;
    let Some(path) = &args.output else { return print(&batches, args.json) };
    let mut sink = FileSink::new(path, &batches[0].schema())?;
    batches.iter().try_for_each(|batch| sink.write(batch))?;
    eprintln!("{} rows in {}", sink.finish()?, path.display());
    Ok(())
}

/// Asks one SELECT and prints its rows.
pub(super) async fn show(client: &ClientArgs, sql: &str, json: bool) -> Result<(), Failure> {
    let body = QueryBody { sql: sql.to_owned(), ..QueryBody::default() };
    print(&ask(client, &body).await?, json)
}

/// At least one batch, be it an empty one.
async fn ask(client: &ClientArgs, body: &QueryBody) -> Result<Vec<RecordBatch>, Failure> {
    let body = serde_json::to_value(body).map_err(anyhow::Error::from)?;
    let answer = client.post("/api/query", &body, DEADLINE).await?.done()?;
    let reader = StreamReader::try_new(Cursor::new(answer.body), None);
    let reader = reader.map_err(anyhow::Error::from)?;
    let schema = reader.schema();
    let mut batches = reader.collect::<Result<Vec<_>, _>>().map_err(anyhow::Error::from)?;
    if batches.is_empty() {
        batches.push(RecordBatch::new_empty(schema));
    }
    Ok(batches)
}

fn print(batches: &[RecordBatch], json: bool) -> Result<(), Failure> {
    if json {
        print_json(batches)?
    } else {
        print_table(batches)?
    }
    Ok(())
}

fn print_json(batches: &[RecordBatch]) -> anyhow::Result<()> {
    println!("{}", String::from_utf8(json_rows(batches, usize::MAX)?)?);
    Ok(())
}

fn print_table(batches: &[RecordBatch]) -> anyhow::Result<()> {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_FULL_CONDENSED);
    let options = FormatOptions::default().with_null("NULL");
    for batch in batches {
        table.set_header(batch.schema().fields().iter().map(|f| f.name()));
        let columns: Vec<ArrayFormatter<'_>> = batch
            .columns()
            .iter()
            .map(|c| ArrayFormatter::try_new(c, &options))
            .collect::<Result<_, _>>()?;
        for row in 0..batch.num_rows() {
            table.add_row(columns.iter().map(|c| c.value(row).to_string()));
        }
    }
    println!("{table}");
    Ok(())
}
