//! `millstream features list`, `history` and `entities`: what DuckDB holds.

use crate::{
    cli::{Failure, client::ClientArgs, dlq::shown},
    messages::Skew,
};
use clap::Args;
use serde_json::Value;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);
/// A comparison waits while the online store is being rebuilt.
const SKEW_DEADLINE: Duration = Duration::from_secs(150);

/// How it is printed, and who is asked.
#[derive(Debug, Args)]
struct OutputArgs {
    /// A JSON list instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// Arguments of `millstream features list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only names that fit, with `*` for anything.
    #[arg(value_name = "PATTERN")]
    like: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Arguments of `millstream features history`.
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// The entity's id.
    entity: String,
    /// Of this feature only.
    #[arg(long, value_name = "NAME")]
    feature: Option<String>,
    /// At most so many values, the newest first.
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    #[command(flatten)]
    output: OutputArgs,
}

/// Arguments of `millstream features entities`.
#[derive(Debug, Args)]
pub struct EntitiesArgs {
    /// The feature's name.
    feature: String,
    /// At most so many entities, those that changed last first.
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    #[command(flatten)]
    output: OutputArgs,
}

/// Arguments of `millstream features skew`.
#[derive(Debug, Args)]
pub struct SkewArgs {
    /// Keys to compare, at most: entities with a critical feature, chosen at random.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    keys: usize,
    #[command(flatten)]
    output: OutputArgs,
}

/// Asks and prints.
pub(super) async fn list(args: ListArgs) -> Result<(), Failure> {
    let query = args.like.map(|like| ("like", like));
    let columns = [
        "feature_name",
        "n_rows",
        "n_entities",
        "n_null",
        "first_seen",
        "last_seen",
        "freshness_s",
    ];
    show(&args.output, "/api/features", query.as_slice(), &columns).await
}

/// Asks and prints.
pub(super) async fn history(args: HistoryArgs) -> Result<(), Failure> {
    let mut query = vec![("entity", args.entity), ("limit", args.limit.to_string())];
    query.extend(args.feature.map(|feature| ("feature", feature)));
    let columns = [
        "feature_name",
        "value",
        "event_timestamp",
        "created_at",
        "available_at",
        "source",
        "pos",
        "transform",
        "script_sha256",
        "event_id",
    ];
    show(&args.output, "/api/features/history", &query, &columns).await
}

/// Asks and prints.
pub(super) async fn entities(args: EntitiesArgs) -> Result<(), Failure> {
    let query = [("feature", args.feature), ("limit", args.limit.to_string())];
    let columns = ["entity_id", "value", "event_timestamp", "available_at", "n_rows"];
    show(&args.output, "/api/features/entities", &query, &columns).await
}

/// Asks and prints.
pub(super) async fn skew(args: SkewArgs) -> Result<(), Failure> {
    let query = [("keys", args.keys.to_string())];
    let answer = args.output.client.get("/api/features/skew", &query, SKEW_DEADLINE).await?;
    let body = answer.done()?.body;
    let skew: Skew = serde_json::from_slice(&body).map_err(anyhow::Error::from)?;
    if args.output.json {
        println!("{}", String::from_utf8_lossy(&body));
    } else {
        let Skew { keys, equal, ahead, behind, missing, different, unreadable, .. } = skew;
        println!(
            "{keys} keys: {equal} equal, {ahead} ahead of DuckDB, {behind} behind it, {missing} missing, {different} \
             different, {unreadable} unreadable"
        );
        skew.examples.iter().for_each(|example| println!("  {example}"));
    }
    if skew.is_sound() {
        return Ok(());
    }
    Err(Failure::Check("online values are not the newest in DuckDB; `verify` looks at all".into()))
}

async fn show(
    output: &OutputArgs,
    path: &str,
    query: &[(&str, String)],
    columns: &[&str],
) -> Result<(), Failure> {
    let body = output.client.get(path, query, DEADLINE).await?.done()?.body;
    if output.json {
        println!("{}", String::from_utf8_lossy(&body));
        return Ok(());
    }
    let found: Vec<Value> = serde_json::from_slice(&body).map_err(anyhow::Error::from)?;
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_FULL_CONDENSED).set_header(columns);
    for row in &found {
        table.add_row(columns.iter().map(|name| match *name {
            "script_sha256" => shown(&row[*name]).chars().take(12).collect(),
            name => shown(&row[name]),
        }));
    }
    println!("{table}");
    Ok(())
}
