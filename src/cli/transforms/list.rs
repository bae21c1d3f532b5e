//! `millstream transforms list`.

use super::{Failure, FileArgs, HttpArgs, decided::brief, file_of, short, table};
use crate::{cli::client::ClientArgs, config::Config, python::Script};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeSet, fmt, path::PathBuf, time::Duration};

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
    #[command(flatten)]
    http: HttpArgs,
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
    /// Whether the file is another version than the active one; `None`: one of them is not known.
    differs: Option<bool>,
    #[serde(flatten)]
    told: Told,
}

/// What the node tells of the stream's script; all `None` without a node.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Told {
    /// The active version.
    #[serde(rename(deserialize = "version"))]
    active: Option<String>,
    /// The version to fall back to.
    fallback: Option<String>,
    /// Why the stream's events wait.
    paused: Option<String>,
    /// The version that is on trial.
    trying: Option<String>,
    /// What happened last on that node.
    last: Option<LastEvent>,
    /// Seconds from saving the active version's file to its first batch.
    swap_s: Option<f64>,
}

/// What happened to a script.
#[derive(Debug, Serialize, Deserialize)]
struct LastEvent {
    action: String,
    version: String,
    reason: String,
    at: String,
}

impl Told {
    /// That of a stream, by a node's status.
    fn of(stream: &str, status: Option<&Value>) -> Self {
        let told = status.map(|status| &status["python"]["scripts"][stream]);
        // A node of another version may tell it in other words: then it has told nothing.
        told.and_then(|told| Self::deserialize(told).ok()).unwrap_or_default()
    }
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
    let status = status(http.client(&config)).await?;
    let lines = lines(&config, status.as_ref());
    if json {
        println!("{}", serde_json::to_string(&lines).map_err(anyhow::Error::from)?);
        return Ok(());
    }
    let mut table = table(&["stream", "script", "version", "state", "last", "swap"]);
    for line in &lines {
        table.add_row([
            line.stream.clone(),
            line.file.display().to_string(),
            version(line),
            state(line),
            line.told.last.as_ref().map(last).unwrap_or_default(),
            line.told.swap_s.map(|s| format!("{s:.2} s")).unwrap_or_default(),
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
        let (state, told) = (State::of(&stream.name, status), Told::of(&stream.name, status));
        let differs =
            sha256.as_ref().zip(told.active.as_ref()).map(|(file, active)| file != active);
        Line { stream: stream.name.clone(), file, sha256, problem, state, differs, told }
    };
    config.streams.iter().map(line).collect()
}

/// The active version, or the file's where that is not known; then whatever differs from it.
fn version(line: &Line) -> String {
    let Line { sha256, problem, told, .. } = line;
    let file = match (sha256, problem) {
        (Some(sha256), _) => short(sha256).to_owned(),
        (None, problem) => problem.clone().unwrap_or_default(),
    };
    let shown = told.active.as_ref().or(sha256.as_ref());
    let mut text = match &told.active {
        Some(active) if sha256.as_ref() == Some(active) => file,
        Some(active) if sha256.is_some() => format!("{}; the file is {file}", short(active)),
        Some(active) => format!("{}; the file: {file}", short(active)),
        None => file,
    };
    if let State::Running { versions, .. } = &line.state {
        for other in versions.iter().filter(|running| Some(*running) != shown) {
            text.push_str(&format!("; {} still runs", short(other)));
        }
    }
    text
}

/// Whether it waits, whether a version is tried, what its workers do.
fn state(line: &Line) -> String {
    let Told { paused, trying, .. } = &line.told;
    let paused = paused.iter().map(|reason| format!("paused: {}", brief(reason)));
    let trying = trying.iter().map(|version| format!("{} is tried", short(version)));
    let all: Vec<String> = paused.chain(trying).chain([line.state.to_string()]).collect();
    all.join("; ")
}

/// What happened last; why only where nobody wished it.
fn last(event: &LastEvent) -> String {
    let LastEvent { action, version, reason, .. } = event;
    match action.as_str() {
        "refused" => format!("refused {}: {}", short(version), brief(reason)),
        "rolled_back" => format!("rolled back to {}: {}", short(version), brief(reason)),
        other => other.to_owned(),
    }
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

    fn line(sha256: Option<&str>, told: Told, state: State) -> Line {
        Line {
            stream: "s".into(),
            file: "s.py".into(),
            sha256: sha256.map(str::to_owned),
            problem: sha256.is_none().then(|| "no such file".into()),
            state,
            differs: None,
            told,
        }
    }

    #[test]
    fn what_differs_from_the_active_version_is_said() {
        let active = |version: &str| Told { active: Some(version.into()), ..Told::default() };
        let shown = |sha256, told| version(&line(sha256, told, State::Idle));
        assert_eq!(shown(Some("v1"), Told::default()), "v1");
        assert_eq!(shown(Some("v1"), active("v1")), "v1");
        assert_eq!(shown(Some("v2"), active("v1")), "v1; the file is v2");
        assert_eq!(shown(None, active("v1")), "v1; the file: no such file");
        assert_eq!(shown(None, Told::default()), "no such file");
        let versions = ["v1".to_owned(), "v2".to_owned()].into();
        let running = State::Running { workers: 2, versions };
        assert_eq!(version(&line(Some("v2"), active("v2"), running)), "v2; v1 still runs");
    }

    #[test]
    fn what_a_node_tells_of_a_script() {
        let status = json!({"python": {"scripts": {"s": {
            "name": "n", "version": "v1", "fallback": null, "paused": "night", "trying": "v2", "swap_s": 0.4,
            "last": {"action": "refused", "version": "v0", "at": "2024-05-01T10:00:00Z",
                     "reason": "with exception: Traceback (most recent call last):\n  File\nValueError: no"},
        }}}});
        let told = Told::of("s", Some(&status));
        assert_eq!(last(told.last.as_ref().unwrap()), "refused v0: ValueError: no");
        let json = serde_json::to_value(&told).unwrap();
        assert_eq!((&json["active"], &json["swap_s"]), (&json!("v1"), &json!(0.4)));
        assert_eq!(state(&line(None, told, State::Idle)), "paused: night; v2 is tried; idle");
        for nothing in [Told::of("other", Some(&status)), Told::of("s", None)] {
            assert_eq!(state(&line(None, nothing, State::NoNode)), "no node");
        }
    }

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
