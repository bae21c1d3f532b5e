//! `millstream transforms list`.

use super::{Failure, FileArgs, file_of, short, table};
use crate::{cli::client::ClientArgs, config::Config, python::Script};
use clap::Args;
use serde::Serialize;
use serde_json::Value;
use std::{collections::BTreeSet, fmt, net::SocketAddr, path::PathBuf, time::Duration};

/// A node answers this at once or is of no use here.
const DEADLINE: Duration = Duration::from_secs(3);

/// Arguments of `millstream transforms list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// A JSON list instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    file: FileArgs,
    /// HTTP address of the node [default: the configuration's `node.http`].
    #[arg(long, value_name = "ADDR", env = "MILLSTREAM_HTTP")]
    http: Option<SocketAddr>,
}

/// A stream and its script.
#[derive(Debug, Serialize)]
struct Line {
    stream: String,
    file: PathBuf,
    /// The version of the file as it is now; `None`: it cannot be read.
    sha256: Option<String>,
    /// Why the file cannot be read.
    problem: Option<String>,
    #[serde(flatten)]
    state: State,
}

/// What the node says.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
enum State {
    /// No node answers that runs scripts.
    NoNode,
    /// No event waits, so there is no worker.
    Idle,
    /// There are workers.
    Running {
        workers: usize,
        /// The versions that they run.
        versions: BTreeSet<String>,
    },
    /// The stream's events wait: its script does not load.
    Broken { reason: String },
}

impl State {
    /// That of a stream, by a node's status.
    fn of(stream: &str, status: Option<&Value>) -> Self {
        let Some(python) = status.map(|status| &status["python"]) else { return Self::NoNode };
        let broken = python["broken"].as_object();
        // The workers of an older version that is still needed are called `stream@version`.
        let is_of = |name: &str| name.split('@').next() == Some(stream);
        if let Some((_, reason)) = broken.and_then(|all| all.iter().find(|(name, _)| is_of(name))) {
            return Self::Broken { reason: reason.as_str().unwrap_or_default().to_owned() };
        }
        let workers = python["workers"].as_object();
        let own: Vec<_> = workers
            .into_iter()
            .flat_map(|w| w.values())
            .filter(|w| w["stream"] == stream)
            .collect();
        if own.is_empty() {
            return Self::Idle;
        }
        let versions = own.iter().filter_map(|w| w["script_sha256"].as_str()).map(str::to_owned);
        Self::Running { workers: own.len(), versions: versions.collect() }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNode => f.write_str("no node"),
            Self::Idle => f.write_str("idle"),
            Self::Running { workers: 1, .. } => f.write_str("running (1 worker)"),
            Self::Running { workers, .. } => write!(f, "running ({workers} workers)"),
            // The first line names the error; the traceback follows.
            Self::Broken { reason } => {
                write!(f, "broken: {}", reason.lines().next().unwrap_or_default())
            }
        }
    }
}

/// Prints the streams with their scripts.
pub async fn list(args: ListArgs) -> Result<(), Failure> {
    let ListArgs { json, file, http } = args;
    let config = file.load()?;
    let status = status(ClientArgs { http: http.unwrap_or(config.node.http) }).await?;
    let lines = lines(&config, status.as_ref());
    if json {
        println!("{}", serde_json::to_string(&lines).map_err(anyhow::Error::from)?);
        return Ok(());
    }
    let mut table = table(&["stream", "script", "version", "state"]);
    for line in &lines {
        table.add_row([
            line.stream.clone(),
            line.file.display().to_string(),
            version(line),
            line.state.to_string(),
        ]);
    }
    println!("{table}");
    Ok(())
}

fn lines(config: &Config, status: Option<&Value>) -> Vec<Line> {
    let line = |stream: &crate::config::StreamConfig| {
        let file = file_of(config, stream);
        let (sha256, problem) = match Script::read(&file) {
            Ok(script) => (Some(script.sha256), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let state = State::of(&stream.name, status);
        Line { stream: stream.name.clone(), file, sha256, problem, state }
    };
    config.streams.iter().map(line).collect()
}

/// The file's version, and those that run besides.
fn version(line: &Line) -> String {
    let file = line.sha256.as_deref();
    let mut text = match (file, &line.problem) {
        (Some(sha256), _) => short(sha256).to_owned(),
        (None, problem) => problem.clone().unwrap_or_default(),
    };
    if let State::Running { versions, .. } = &line.state {
        for other in versions.iter().filter(|running| Some(running.as_str()) != file) {
            text.push_str(&format!("; {} still runs", short(other)));
        }
    }
    text
}

/// The status of a node that runs scripts; `None`: there is none.
async fn status(client: ClientArgs) -> Result<Option<Value>, Failure> {
    let answer = match client.get("/api/status", &[], DEADLINE).await {
        Ok(answer) => answer,
        Err(Failure::Unreachable(_)) => return Ok(None),
        Err(other) => return Err(other),
    };
    let status: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let Some(roles) = status["roles"].as_array().filter(|_| answer.ok) else {
        eprintln!("what answers at http://{} is no Millstream node", client.http);
        return Ok(None);
    };
    if roles.iter().all(|role| role != "process") {
        eprintln!("the node at http://{} has no role `process`: it runs no scripts", client.http);
        return Ok(None);
    }
    Ok(Some(status))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_state() {
        let worker = |stream, version| json!({"stream": stream, "script_sha256": version, "pid": 7, "busy": true});
        let status = json!({"roles": ["process"], "python": {
            "cap": 4,
            "workers": {"1": worker("a", "v1"), "2": worker("a", "v2"), "3": worker("c", "v1")},
            "broken": {"b": "the script cannot be loaded: SyntaxError\nTraceback", "c@0123": "lost"},
        }});
        let state = |stream| State::of(stream, Some(&status));
        let versions = ["v1".to_owned(), "v2".to_owned()].into();
        assert_eq!(state("a"), State::Running { workers: 2, versions });
        assert_eq!(state("a").to_string(), "running (2 workers)");
        assert_eq!(state("b").to_string(), "broken: the script cannot be loaded: SyntaxError");
        assert_eq!(state("c").to_string(), "broken: lost");
        assert_eq!(state("d").to_string(), "idle");
        assert_eq!(State::of("a", None).to_string(), "no node");
        assert_eq!(serde_json::to_value(State::NoNode).unwrap(), json!({"state": "no_node"}));
    }
}
