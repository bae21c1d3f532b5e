//! `millstream transforms deploy`.

use super::{
    Failure, FileArgs, HttpArgs, TRIAL, decided, find_script, find_stream, short, spinner,
};
use crate::{python::Script, service::DeployBody};
use clap::Args;

/// Arguments of `millstream transforms deploy`.
#[derive(Debug, Args)]
pub struct DeployArgs {
    /// The script: a file, or the name of one in `python.transforms_dir`. Its helpers, from its own
    /// folder and from that one, go with it.
    script: String,
    /// The stream that is to run it [default: the one that has the script].
    #[arg(long, value_name = "NAME")]
    stream: Option<String>,
    /// What became of it as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    file: FileArgs,
    #[command(flatten)]
    http: HttpArgs,
}

/// Sends the script and waits until the node has tried it.
pub async fn deploy(args: DeployArgs) -> Result<(), Failure> {
    let DeployArgs { script, stream, json, file, http } = args;
    let config = file.load()?;
    let path = find_script(&config, &script)?;
    let stream = find_stream(&config, &path, stream.as_deref())?.name.clone();
    let script = Script::read_with(&path, &[&config.python.transforms_dir])
        .map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?;
    let spinner = spinner(TRIAL_LOOK);
    spinner.set_message(format!("trying {} on {stream}", short(&script.sha256)));
    let Script { source, modules, .. } = script;
    let body = DeployBody { stream, source: source.to_string(), modules };
    let body = serde_json::to_value(body).map_err(anyhow::Error::from)?;
    let answer = http.client(&config).post("/api/transforms/deploy", &body, TRIAL).await;
    spinner.finish_and_clear();
    decided::print(&answer?.done()?.body, json)
}

/// How it looks while a version is tried.
pub const TRIAL_LOOK: &str = "{spinner} {msg}, {elapsed}";
