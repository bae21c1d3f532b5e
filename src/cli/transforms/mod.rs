//! `millstream transforms`.

mod against;
mod decided;
mod deploy;
mod history;
mod input;
mod list;
mod pytest;
mod report;
mod try_script;
mod wishes;

use super::{Failure, NodeArgs, client::ClientArgs};
use crate::config::{Config, StreamConfig};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// How long a trial is waited for: it may have to wait for a permit before it runs a batch.
const TRIAL: Duration = Duration::from_secs(600);

/// Arguments of `millstream transforms`.
#[derive(Debug, Args)]
pub struct TransformsArgs {
    #[command(subcommand)]
    what: TransformsWhat,
}

#[derive(Debug, Subcommand)]
enum TransformsWhat {
    /// The configured streams with their scripts, and what a running node says of them.
    List(list::ListArgs),
    /// Run a script over the rows of a file, without a node. Nothing is stored.
    Try(try_script::TryArgs),
    /// Have a stream run another version, once that has passed its trial on the last real batch.
    Deploy(deploy::DeployArgs),
    /// Have a stream run an earlier version again.
    Rollback(wishes::RollBackArgs),
    /// Have a stream's events wait.
    Pause(wishes::PauseArgs),
    /// Let a stream go on that was paused, or that waits because its script is suspected.
    Resume(wishes::ResumeArgs),
    /// Give a stream's script other parameters, once it has passed a trial with them.
    Reconfigure(wishes::ReconfigureArgs),
    /// What happened to the streams' scripts, the newest first.
    History(history::HistoryArgs),
    /// Run the scripts' tests with pytest, in the environment that the scripts have.
    Test(pytest::TestArgs),
}

/// Does what was asked.
pub async fn transforms(args: TransformsArgs) -> Result<(), Failure> {
    match args.what {
        TransformsWhat::List(args) => list::list(args).await,
        TransformsWhat::Try(args) => try_script::try_script(args).await,
        TransformsWhat::Deploy(args) => deploy::deploy(args).await,
        TransformsWhat::Rollback(args) => wishes::roll_back(args).await,
        TransformsWhat::Pause(args) => wishes::pause(args).await,
        TransformsWhat::Resume(args) => wishes::resume(args).await,
        TransformsWhat::Reconfigure(args) => wishes::reconfigure(args).await,
        TransformsWhat::History(args) => history::history(args).await,
        TransformsWhat::Test(args) => pytest::test(args).await,
    }
}

/// Where the configuration is, for commands that need no node.
#[derive(Debug, Args)]
struct FileArgs {
    /// Configuration file [default: millstream.toml, when it is there].
    #[arg(long, value_name = "FILE", env = "MILLSTREAM_CONFIG")]
    config: Option<PathBuf>,
}

impl FileArgs {
    fn load(self) -> Result<Config, Failure> {
        NodeArgs { config: self.config, ..NodeArgs::default() }.load()
    }
}

/// Where the node is, for commands that have read the configuration.
#[derive(Debug, Args)]
struct HttpArgs {
    /// HTTP address of the node [default: the configuration's `node.http`].
    #[arg(long, value_name = "ADDR", env = "MILLSTREAM_HTTP")]
    http: Option<SocketAddr>,
}

impl HttpArgs {
    fn client(&self, config: &Config) -> ClientArgs {
        ClientArgs { http: self.http.unwrap_or(config.node.http) }
    }
}

/// The file of a stream's script.
fn file_of(config: &Config, stream: &StreamConfig) -> PathBuf {
    config.python.transforms_dir.join(format!("{}.py", stream.transform))
}

/// The file that a script's name or path stands for.
fn find_script(config: &Config, script: &str) -> Result<PathBuf, Failure> {
    let folder = &config.python.transforms_dir;
    let places = [PathBuf::from(script), folder.join(script), folder.join(format!("{script}.py"))];
    places.into_iter().find(|place| place.is_file()).ok_or_else(|| {
        let known: Vec<_> = config.streams.iter().map(|s| s.transform.as_str()).collect();
        Failure::Usage(format!(
            "there is no script `{script}`, neither here nor in {}; the streams have {}",
            folder.display(),
            known.join(", ")
        ))
    })
}

/// The stream whose events a script is given: the one that was named, else the one whose script
/// has the file's name.
fn find_stream<'a>(
    config: &'a Config,
    script: &Path,
    named: Option<&str>,
) -> Result<&'a StreamConfig, Failure> {
    let streams = &config.streams;
    let names =
        |of: &[&StreamConfig]| of.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ");
    let all = || names(&streams.iter().collect::<Vec<_>>());
    if let Some(name) = named {
        return streams.iter().find(|s| s.name == name).ok_or_else(|| {
            Failure::Usage(format!("there is no stream `{name}`; there are {}", all()))
        });
    }
    let stem = script.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let with_it: Vec<_> = streams.iter().filter(|s| s.transform == stem).collect();
    match with_it[..] {
        [one] => Ok(one),
        [] => Err(Failure::Usage(format!(
            "no stream has the script `{stem}`: name the stream whose events it gets with --stream; there are {}",
            all()
        ))),
        _ => Err(Failure::Usage(format!(
            "the streams {} have the script `{stem}`: say with --stream whose events it gets",
            names(&with_it)
        ))),
    }
}

/// A version as it is shown.
fn short(sha256: &str) -> &str {
    sha256.get(..12).unwrap_or(sha256)
}

/// A table of this program's look.
fn table(columns: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_FULL_CONDENSED).set_header(columns);
    table
}

/// Turns while something goes on; on a terminal only, by indicatif's own rule.
fn spinner(template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template);
    // A template of our own: it cannot be wrong.
    let bar = ProgressBar::new_spinner()
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_finds_its_stream_by_its_name() {
        let mut config = Config::default();
        let stream = |config: &Config, path: &str, named| {
            find_stream(config, Path::new(path), named).map(|s| s.name.clone())
        };
        let asked = |config: &Config, path, named| match stream(config, path, named) {
            Err(Failure::Usage(message)) => message,
            other => panic!("{other:?}"),
        };
        assert_eq!(stream(&config, "py_transforms/click_features.py", None).unwrap(), "clicks");
        assert_eq!(stream(&config, "/elsewhere/click_features.py", None).unwrap(), "clicks");
        assert_eq!(stream(&config, "new.py", Some("features")).unwrap(), "features");
        assert!(asked(&config, "new.py", None).contains("--stream; there are features, clicks"));
        assert!(asked(&config, "new.py", Some("click")).contains("no stream `click`"));
        config.streams[0].transform = "click_features".into();
        assert!(
            asked(&config, "click_features.py", None).starts_with("the streams features, clicks")
        );
        assert_eq!(stream(&config, "click_features.py", Some("clicks")).unwrap(), "clicks");
    }

    #[test]
    fn a_script_is_a_path_or_a_name() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.python.transforms_dir = folder.path().to_owned();
        let file = folder.path().join("a.b.py");
        std::fs::write(&file, "").unwrap();
        for name in ["a.b", "a.b.py", file.to_str().unwrap()] {
            assert_eq!(find_script(&config, name).unwrap(), file);
        }
        assert!(matches!(find_script(&config, "a"), Err(Failure::Usage(_))));
    }
}
