//! Ending actors, and how soon their next instances live.

use super::{Done, nothing, way_of_ending};
use crate::{
    chaos::{http::Http, plan::Planned, rig::NodeSlot},
    supervision::Registry,
};
use anyhow::{Context as _, anyhow, bail};
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// How long an actor may take to come back before that is a failure.
const BACK_WITHIN: Duration = Duration::from_secs(30);
/// The pace of looking.
const PACE: Duration = Duration::from_millis(2);

/// An actor that was ended, and how soon its next instance lived, as its supervision measured.
#[derive(Debug, Clone)]
pub struct Recovery {
    /// The actor.
    pub actor: String,
    /// From the end of one instance to the moment that the next one was linked.
    pub took: Duration,
}

/// Ends the planned actor of a node.
pub(super) fn end(node: &mut NodeSlot, planned: &Planned) -> Done {
    node.keep()?;
    let actor = planned.actor.as_deref().context("the plan names no actor")?;
    let how = way_of_ending(&planned.kind)?;
    match end_actor(&node.parts.http, node.http, actor, how) {
        Ok(recovery) => Ok(Some(recovery)),
        // It has failed too often of late: the node gives up in order, and is started again.
        Err(error) if !node.look() => {
            node.start()?;
            nothing(format!("the node ended: {error:#}"))
        }
        Err(error) => Err(error.into()),
    }
}

/// Ends an actor of a node through its interface, and waits for the next instance.
///
/// # Errors
/// What the node says, or that no instance came.
pub fn end_actor(
    http: &Http,
    node: SocketAddr,
    actor: &str,
    how: &str,
) -> anyhow::Result<Recovery> {
    let asked_at = Instant::now();
    let body = json!({ "do": how, "actor": actor });
    let (status, answer) = http.post(node, "/api/chaos", &body, BACK_WITHIN)?;
    if status != 200 {
        bail!("{actor}: {status}: {}", answer["error"].as_str().unwrap_or_default());
    }
    let ended =
        answer["generation"].as_u64().with_context(|| format!("no generation: {answer}"))?;
    while asked_at.elapsed() < BACK_WITHIN {
        // A node that is busy answers later.
        if let Ok(status) = http.get(node, "/api/status")
            && let Some(took) = took_to_come_back(&status["actors"][actor], ended)
        {
            return Ok(Recovery { actor: actor.to_owned(), took });
        }
        std::thread::sleep(PACE);
    }
    Err(anyhow!("{actor} did not come back within {BACK_WITHIN:?}"))
}

/// How long an actor was away, as its supervision measured; `None` until it is back.
fn took_to_come_back(actor: &Value, ended: u64) -> Option<Duration> {
    let is_back = actor["up"] == true && actor["generation"].as_u64()? > ended;
    let ms = actor["recovery"]["last_ms"].as_f64()?;
    is_back.then(|| Duration::from_secs_f64(ms / 1e3))
}

/// Ends an actor of this process.
pub(super) fn end_own(registry: &Registry, actor: &str, planned: &Planned) -> Done {
    let state = || registry.status().remove(actor).filter(|actor| actor.up);
    let asked_at = Instant::now();
    let Some(before) = state() else { return nothing("it is between two lives") };
    let was_told = match way_of_ending(&planned.kind)? {
        "kill" => registry.kill(actor),
        "panic" => registry.panic(actor),
        _ => registry.fail(actor),
    };
    if !was_told {
        return Err(anyhow!("{actor} is not supervised any more").into());
    }
    while asked_at.elapsed() < BACK_WITHIN {
        if let Some(now) = state().filter(|now| now.generation > before.generation)
            && let Some(ms) = now.recovery.last_ms
        {
            let took = Duration::from_secs_f64(ms / 1e3);
            return Ok(Some(Recovery { actor: actor.to_owned(), took }));
        }
        std::thread::sleep(PACE);
    }
    Err(anyhow!("{actor} did not come back within {BACK_WITHIN:?}").into())
}
