//! `millstream transforms rollback`, `pause`, `resume` and `reconfigure`: what needs no script at hand.

use super::{Failure, TRIAL, decided, deploy::TRIAL_LOOK, spinner};
use crate::{
    cli::client::ClientArgs,
    service::{PauseBody, ReconfigureBody, ResumeBody, RollBackBody},
};
use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value};
use std::time::Duration;

/// The store only writes an event down.
const DEADLINE: Duration = Duration::from_secs(60);

/// Arguments of `millstream transforms rollback`.
#[derive(Debug, Args)]
pub struct RollBackArgs {
    /// Which stream.
    stream: String,
    /// The version, or its first digits, as `history` shows them [default: the one before].
    #[arg(long, value_name = "VERSION")]
    to: Option<String>,
    /// What became of it as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// Arguments of `millstream transforms pause`.
#[derive(Debug, Args)]
pub struct PauseArgs {
    /// Which stream.
    stream: String,
    /// Why, for whoever wonders later.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// What became of it as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// Arguments of `millstream transforms resume`.
#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// The stream that waits.
    stream: String,
    /// It waits because its script is suspected: what that fails on is the data's fault and becomes
    /// dead letters, on every node. Without this a suspected script goes on when it is mended.
    #[arg(long)]
    dead_letter: bool,
    /// What became of it as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// Arguments of `millstream transforms reconfigure`.
#[derive(Debug, Args)]
pub struct ReconfigureArgs {
    /// Which stream.
    stream: String,
    /// A parameter over the configuration's; its value is JSON, or else a text. Those that are
    /// given take the place of all that were given before; without any, the configuration's count.
    #[arg(long = "param", value_name = "KEY=VALUE", value_parser = parameter)]
    one: Vec<(String, Value)>,
    /// The same as one JSON object.
    #[arg(long = "params", value_name = "JSON", value_parser = parameters)]
    all: Option<Map<String, Value>>,
    /// What became of it as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// Has an earlier version run again.
pub async fn roll_back(args: RollBackArgs) -> Result<(), Failure> {
    let RollBackArgs { stream, to, json, client } = args;
    let body = RollBackBody { stream, to };
    decided::print(&wish(&client, "rollback", &body, DEADLINE).await?, json)
}

/// Has a stream's events wait.
pub async fn pause(args: PauseArgs) -> Result<(), Failure> {
    let PauseArgs { stream, reason, json, client } = args;
    let body = PauseBody { stream, reason };
    decided::print(&wish(&client, "pause", &body, DEADLINE).await?, json)?;
    eprintln!("its events wait until `millstream transforms resume {}`", body.stream);
    Ok(())
}

/// Lets a stream go on.
pub async fn resume(args: ResumeArgs) -> Result<(), Failure> {
    let ResumeArgs { stream, dead_letter, json, client } = args;
    let body = ResumeBody { stream, dead_letter };
    let answer = wish(&client, "resume", &body, DEADLINE).await?;
    if !dead_letter {
        return decided::print(&answer, json);
    }
    if json {
        println!("{}", String::from_utf8_lossy(&answer));
    }
    eprintln!("what this version fails on is dead from now on; the stream goes on within a second");
    Ok(())
}

/// Has the version that runs go on with other parameters.
pub async fn reconfigure(args: ReconfigureArgs) -> Result<(), Failure> {
    let ReconfigureArgs { stream, one, all, json, client } = args;
    let mut params = all.unwrap_or_default();
    params.extend(one);
    let spinner = spinner(TRIAL_LOOK);
    spinner.set_message(format!("trying other parameters on {stream}"));
    let answer = wish(&client, "reconfigure", &ReconfigureBody { stream, params }, TRIAL).await;
    spinner.finish_and_clear();
    decided::print(&answer?, json)
}

async fn wish(
    client: &ClientArgs,
    what: &str,
    body: &impl Serialize,
    deadline: Duration,
) -> Result<Vec<u8>, Failure> {
    let body = serde_json::to_value(body).map_err(anyhow::Error::from)?;
    let answer = client.post(&format!("/api/transforms/{what}"), &body, deadline).await?;
    Ok(answer.done()?.body)
}

fn parameter(text: &str) -> Result<(String, Value), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => {
            let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
            Ok((key.to_owned(), value))
        }
        _ => Err("say KEY=VALUE, for instance limit=100".into()),
    }
}

fn parameters(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| {
        format!("it must be a JSON object, for instance {{\"limit\": 100}}: {error}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_parameter_is_json_or_else_a_text() {
        for (text, key, value) in [
            ("limit=100", "limit", json!(100)),
            ("share=0.5", "share", json!(0.5)),
            ("on=true", "on", json!(true)),
            ("on=True", "on", json!("True")),
            ("nothing=null", "nothing", Value::Null),
            ("names=[\"a\", \"b\"]", "names", json!(["a", "b"])),
            ("text=\"5\"", "text", json!("5")),
            ("city=Lyon", "city", json!("Lyon")),
            ("sum=a=b", "sum", json!("a=b")),
            ("empty=", "empty", json!("")),
        ] {
            assert_eq!(parameter(text), Ok((key.to_owned(), value)), "{text}");
        }
        assert!(parameter("limit").unwrap_err().contains("KEY=VALUE"));
        assert!(parameter("=5").is_err());
    }

    #[test]
    fn parameters_are_one_object() {
        assert_eq!(parameters("{\"a\": {\"b\": 1}}").unwrap()["a"]["b"], 1);
        assert!(parameters("{}").unwrap().is_empty());
        assert!(parameters("[1]").unwrap_err().contains("JSON object"));
    }
}
