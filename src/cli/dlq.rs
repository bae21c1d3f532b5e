//! `millstream dlq`.

use super::{Failure, client::ClientArgs};
use crate::actors::replayer::Outcome;
use clap::{Args, Subcommand};
use serde_json::Value;
use std::time::Duration;

/// Reading again what letters have not kept may take a while.
const DEADLINE: Duration = Duration::from_secs(600);

/// Arguments of `millstream dlq`.
#[derive(Debug, Args)]
pub struct DlqArgs {
    #[command(subcommand)]
    command: DlqCommand,
}

#[derive(Debug, Subcommand)]
enum DlqCommand {
    /// The newest dead letters, and what became of them.
    List(ListArgs),
    /// One dead letter with its raw record.
    Show(ShowArgs),
    /// Send dead letters through their stream's script again; each at most once.
    Replay(ReplayArgs),
}

/// Which letters.
#[derive(Debug, Args)]
struct FilterArgs {
    /// Of this stream only.
    #[arg(long, value_name = "NAME")]
    stream: Option<String>,
    /// That died for this reason only.
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
    /// Of this source only, for instance `kafka:clicks/user-events/0`.
    #[arg(long, value_name = "SOURCE")]
    source: Option<String>,
}

#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// A JSON list instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// Its source, as `list` shows it.
    source: String,
    /// Its position there.
    pos: i64,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
struct ReplayArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Only say what would be replayed, and what would be refused.
    #[arg(long)]
    dry_run: bool,
    /// The outcome as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// Does what was asked.
pub async fn dlq(args: DlqArgs) -> Result<(), Failure> {
    match args.command {
        DlqCommand::List(args) => list(args).await,
        DlqCommand::Show(args) => show(args).await,
        DlqCommand::Replay(args) => replay(args).await,
    }
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let FilterArgs { stream, reason, source } = args.filter;
    let mut query = vec![("limit", args.limit.to_string())];
    for (name, value) in [("stream", stream), ("reason", reason), ("source", source)] {
        query.extend(value.map(|v| (name, v)));
    }
    let body = args.client.get("/api/dlq", &query, DEADLINE).await?.done()?.body;
    if args.json {
        println!("{}", String::from_utf8_lossy(&body));
        return Ok(());
    }
    let letters: Vec<Value> = serde_json::from_slice(&body).map_err(anyhow::Error::from)?;
    let columns = ["source", "pos", "stage", "reason", "entity_id", "stored_at", "state", "detail"];
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_FULL_CONDENSED).set_header(columns);
    for letter in &letters {
        table.add_row(columns.map(|name| shown(&letter[name])));
    }
    println!("{table}");
    Ok(())
}

/// A cell: text as it is, long text cut.
pub(super) fn shown(value: &Value) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match text.char_indices().nth(80) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

async fn show(args: ShowArgs) -> Result<(), Failure> {
    let query = [("source", args.source), ("pos", args.pos.to_string())];
    let body = args.client.get("/api/dlq/letter", &query, DEADLINE).await?.done()?.body;
    let letter: Value = serde_json::from_slice(&body).map_err(anyhow::Error::from)?;
    println!("{}", serde_json::to_string_pretty(&letter).map_err(anyhow::Error::from)?);
    Ok(())
}

async fn replay(args: ReplayArgs) -> Result<(), Failure> {
    let FilterArgs { stream, reason, source } = args.filter;
    let body = serde_json::json!({
        "stream": stream, "reason": reason, "source": source, "dry_run": args.dry_run,
    });
    let body = args.client.post("/api/dlq/replay", &body, DEADLINE).await?.done()?.body;
    if args.json {
        println!("{}", String::from_utf8_lossy(&body));
        return Ok(());
    }
    let Outcome { replays, refused, refused_total, more } =
        serde_json::from_slice(&body).map_err(anyhow::Error::from)?;
    if replays.is_empty() {
        println!("no dead letter is left to replay");
    }
    for replay in &replays {
        match &replay.replay_id {
            Some(id) => println!("{}: {} letters, replay {id}", replay.stream, replay.letters),
            None => println!("{}: {} letters would be replayed", replay.stream, replay.letters),
        }
    }
    for letter in &refused {
        eprintln!(
            "not replayed: {} {} ({}): {}",
            letter.source, letter.pos, letter.reason, letter.why
        );
    }
    if refused_total > refused.len() {
        eprintln!("not replayed: {} more", refused_total - refused.len());
    }
    if more {
        eprintln!("there are more letters than one replay takes: run this again");
    }
    Ok(())
}
