//! `millstream kill`: ends an actor of a running node, where it allows that.

use super::{Failure, client::ClientArgs};
use crate::service::ChaosBody;
use clap::Args;
use serde::Deserialize;
use serde_json::json;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// The node waits up to half a minute for an instance that is still to begin.
const DEADLINE: Duration = Duration::from_secs(40);

/// How long the next instance may take: the longest back-off is 5 s.
const COMES_BACK: Duration = Duration::from_secs(30);

/// The pace of looking for it.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Arguments of `millstream kill`.
#[derive(Debug, Args)]
pub struct KillArgs {
    /// Which actor; --list shows them.
    #[arg(required_unless_present = "list", conflicts_with = "list")]
    actor: Option<String>,
    /// It panics, as one of its handlers might: unlike a kill that counts as a failure.
    #[arg(long, conflicts_with_all = ["error", "list"])]
    panic: bool,
    /// It ends as if a handler had returned an error; counts as a failure too.
    #[arg(long, conflicts_with = "list")]
    error: bool,
    /// Only show the actors: state, restarts, how the last instance ended.
    #[arg(long)]
    list: bool,
    /// JSON instead of text: one object, or with --list a list.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// What `GET /api/status` says of an actor, as far as it is used here.
#[derive(Debug, Deserialize)]
struct Actor {
    up: bool,
    generation: u64,
    last_cause: Option<String>,
    recovery: Recovery,
}

#[derive(Debug, Deserialize)]
struct Recovery {
    last_ms: Option<f64>,
}

#[derive(Debug, Deserialize)]
struct Status {
    actors: BTreeMap<String, Actor>,
}

#[derive(Debug, Deserialize)]
struct Ended {
    generation: u64,
}

/// Ends one and waits for the next, or lists them.
pub async fn kill(args: KillArgs) -> Result<(), Failure> {
    let KillArgs { actor, panic, error, json, client, list: _ } = args;
    // Without a name it is `--list`: clap sees to that.
    let Some(actor) = actor else { return list(&client, json).await };
    let (body, verb) = match (panic, error) {
        (true, _) => (ChaosBody::Panic { actor: actor.clone() }, "panicked"),
        (_, true) => (ChaosBody::Error { actor: actor.clone() }, "failed"),
        _ => (ChaosBody::Kill { actor: actor.clone() }, "killed"),
    };
    let body = serde_json::to_value(body).map_err(anyhow::Error::from)?;
    let answer = client.post("/api/chaos", &body, DEADLINE).await?.done()?;
    let ended_at = Instant::now();
    let Ended { generation } = serde_json::from_slice(&answer.body).map_err(anyhow::Error::from)?;
    let next = next_instance(&client, &actor, generation).await?;
    // The node's own measure is of the newest recovery: another one's when the actor ended again.
    let measured = next.recovery.last_ms.filter(|_| next.generation == generation + 1);
    let after_ms = measured.unwrap_or(ended_at.elapsed().as_secs_f64() * 1e3);
    if json {
        let done = json!({
            "actor": actor, "do": body["do"], "generation": generation,
            "next_generation": next.generation, "after_ms": after_ms,
        });
        println!("{done}");
        return Ok(());
    }
    let precision = usize::from(after_ms < 10.0);
    println!(
        "{actor}: instance {generation} {verb}, instance {} lives after {after_ms:.precision$} ms",
        next.generation
    );
    Ok(())
}

/// Waits until an instance beyond `ended` lives.
async fn next_instance(client: &ClientArgs, actor: &str, ended: u64) -> Result<Actor, Failure> {
    let until = Instant::now() + COMES_BACK;
    while Instant::now() < until {
        let found = actors(client).await?.remove(actor);
        if let Some(next) = found.filter(|actor| actor.up && actor.generation > ended) {
            return Ok(next);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Err(Failure::Runtime(anyhow::anyhow!(
        "{actor}: instance {ended} has ended, and no other lives after {} s; the node's log says why",
        COMES_BACK.as_secs()
    )))
}

async fn actors(client: &ClientArgs) -> Result<BTreeMap<String, Actor>, Failure> {
    let body = client.get("/api/status", &[], DEADLINE).await?.done()?.body;
    let Status { actors } = serde_json::from_slice(&body).map_err(anyhow::Error::from)?;
    Ok(actors)
}

async fn list(client: &ClientArgs, json: bool) -> Result<(), Failure> {
    let actors = actors(client).await?;
    let lines = actors.iter().map(|(name, actor)| {
        let state = if actor.up { "up" } else { "down" };
        (name, state, actor.generation.saturating_sub(1), actor.last_cause.as_deref())
    });
    if json {
        let lines = lines.map(|(name, state, restarts, last_cause)| {
            json!({ "actor": name, "state": state, "restarts": restarts, "last_cause": last_cause })
        });
        println!("{}", serde_json::Value::from_iter(lines));
        return Ok(());
    }
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_FULL_CONDENSED).set_header([
        "actor",
        "state",
        "restarts",
        "last cause",
    ]);
    for (name, state, restarts, last_cause) in lines {
        table.add_row([name, state, &restarts.to_string(), last_cause.unwrap_or("–")]);
    }
    println!("{table}");
    Ok(())
}
