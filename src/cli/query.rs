//! `millstream query`.

use super::{Failure, client::ClientArgs};
use arrow::{
    array::RecordBatch,
    ipc::reader::StreamReader,
    json::{WriterBuilder, writer::JsonArray},
    util::display::{ArrayFormatter, FormatOptions},
};
use clap::Args;
use std::{io::Cursor, time::Duration};

/// The store interrupts a query after 20 s; queue and network come on top.
const DEADLINE: Duration = Duration::from_secs(60);

/// Arguments of `millstream query`.
#[derive(Debug, Args)]
pub struct QueryArgs {
    /// One SELECT over features_table, dead_letters, ingest_ledger, sources and the other tables.
    sql: String,
    /// A JSON list of rows instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// Asks and prints.
pub async fn query(args: QueryArgs) -> Result<(), Failure> {
    show(&args.client, &args.sql, args.json).await
}

/// Asks one SELECT and prints its rows.
pub(super) async fn show(client: &ClientArgs, sql: &str, json: bool) -> Result<(), Failure> {
    let body = serde_json::json!({ "sql": sql });
    let answer = client.post("/api/query", &body, DEADLINE).await?.done()?;
    let batches = StreamReader::try_new(Cursor::new(answer.body), None)
        .and_then(|reader| {
            let schema = reader.schema();
            let mut batches = reader.collect::<Result<Vec<_>, _>>()?;
            if batches.is_empty() {
                batches.push(RecordBatch::new_empty(schema));
            }
            Ok(batches)
        })
        .map_err(anyhow::Error::from)?;
    if json {
        print_json(&batches)?
    } else {
        print_table(&batches)?
    }
    Ok(())
}

fn print_json(batches: &[RecordBatch]) -> anyhow::Result<()> {
    let mut writer: arrow::json::Writer<_, JsonArray> =
        WriterBuilder::new().with_explicit_nulls(true).build(Vec::new());
    writer.write_batches(&batches.iter().collect::<Vec<_>>())?;
    writer.finish()?;
    let text = String::from_utf8(writer.into_inner())?;
    println!("{}", if text.is_empty() { "[]" } else { &text });
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
