//! `millstream transforms history`, and what else the node knows of versions.

use super::{Failure, decided::brief, report::cut, short, table};
use crate::{cli::client::ClientArgs, messages::ScriptText};
use chrono::{DateTime, SecondsFormat, Utc};
use clap::Args;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::time::Duration;

/// The node asks the store, which may be busy.
const DEADLINE: Duration = Duration::from_secs(30);
/// Events among which a version is looked for: all that a node tells at once.
const ALL: usize = 10_000;

/// Arguments of `millstream transforms history`.
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// Of this stream only.
    stream: Option<String>,
    /// At most so many events.
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
    /// A JSON list instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// What happened to a stream's script once, as far as the table shows it.
#[derive(Debug, Deserialize)]
struct Event {
    stream: String,
    action: String,
    version: String,
    from: Option<String>,
    reason: String,
    params: Option<Map<String, Value>>,
    node: String,
    at: String,
}

/// Prints what happened, the newest first.
pub async fn history(args: HistoryArgs) -> Result<(), Failure> {
    let HistoryArgs { stream, limit, json, client } = args;
    let body = ask(&client, stream.as_deref(), limit).await?;
    if json {
        println!("{}", String::from_utf8_lossy(&body));
        return Ok(());
    }
    let events: Vec<Event> = serde_json::from_slice(&body).map_err(anyhow::Error::from)?;
    let mut table = table(&["when", "stream", "what", "version", "from", "why", "node"]);
    events.iter().for_each(|event| {
        table.add_row(cells(event));
    });
    println!("{table}");
    Ok(())
}

async fn ask(client: &ClientArgs, stream: Option<&str>, limit: usize) -> Result<Vec<u8>, Failure> {
    let mut query = vec![("limit", limit.to_string())];
    query.extend(stream.map(|stream| ("stream", stream.to_owned())));
    Ok(client.get("/api/transforms/history", &query, DEADLINE).await?.done()?.body)
}

fn cells(event: &Event) -> [String; 7] {
    let Event { stream, action, version, from, reason, params, node, at } = event;
    let when = DateTime::parse_from_rfc3339(at).map_or_else(
        |_| at.clone(),
        |at| at.with_timezone(&Utc).to_rfc3339_opts(SecondsFormat::Secs, true),
    );
    // Of what changes no version, that one is the same.
    let from = from.as_deref().filter(|from| from != version).map(short).unwrap_or_default();
    let why = match params {
        Some(params) => cut(&format!("{}: {reason}", Value::Object(params.clone()))),
        None => brief(reason),
    };
    let what = action.replace('_', " ");
    [when, stream.clone(), what, short(version).into(), from.into(), why, node.clone()]
}

/// Versions that a stream has tried or run whose SHA-256 begins like this, the newest first.
pub async fn versions_like(
    client: &ClientArgs,
    stream: &str,
    beginning: &str,
) -> Result<Vec<String>, Failure> {
    let body = ask(client, Some(stream), ALL).await?;
    let events: Vec<Event> = serde_json::from_slice(&body).map_err(anyhow::Error::from)?;
    let mut found: Vec<String> = Vec::new();
    for Event { version, .. } in events {
        if version.starts_with(beginning) && !found.contains(&version) {
            found.push(version);
        }
    }
    Ok(found)
}

/// The version that a stream runs.
pub async fn running(client: &ClientArgs, stream: &str) -> Result<String, Failure> {
    let body = client.get("/api/transforms", &[], DEADLINE).await?.done()?.body;
    let scripts: Value = serde_json::from_slice(&body).map_err(anyhow::Error::from)?;
    let version = scripts[stream]["version"].as_str().map(str::to_owned);
    version.ok_or_else(|| {
        Failure::Usage(format!(
            "the node at http://{} runs no version of the stream `{stream}`: ask one with the role `process`, \
             with --http, or name a version or a file",
            client.http
        ))
    })
}

/// The texts of a version.
pub async fn text(client: &ClientArgs, sha256: &str) -> Result<ScriptText, Failure> {
    let query = [("sha256", sha256.to_owned())];
    let body = client.get("/api/transforms/version", &query, DEADLINE).await?.done()?.body;
    Ok(serde_json::from_slice(&body).map_err(anyhow::Error::from)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_says_when_what_and_why() {
        let event = |action: &str, params: Value| {
            let event = json!({
                "seq": 3, "stream": "s", "action": action, "version": "0123456789abcdef",
                "from": if action == "paused" { "0123456789abcdef" } else { "fedcba9876543210" },
                "reason": "with exception: Traceback (most recent call last):\n  File\nValueError: no",
                "params": params, "trial": null, "node": "n", "at": "2024-05-01T12:00:00.123456+02:00",
            });
            cells(&serde_json::from_value(event).unwrap())
        };
        let when = "2024-05-01T10:00:00Z";
        assert_eq!(
            event("rolled_back", Value::Null),
            [when, "s", "rolled back", "0123456789ab", "fedcba987654", "ValueError: no", "n"]
        );
        assert_eq!(event("paused", Value::Null)[4], "");
        assert!(event("reconfigured", json!({"a": 1}))[5].starts_with("{\"a\":1}: with"));
    }
}
