//! `millstream run` and `millstream config`.

use super::{Failure, NodeArgs};
use crate::{
    config::Config,
    node::{Node, NodeOptions, Role},
};
use clap::{Args, Subcommand};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How long a node may take until everything is ready before it says what it waits for.
const SLOW_START: Duration = Duration::from_secs(30);

/// Arguments of `millstream run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Roles of this process: any of generate, process, store.
    #[arg(long, value_delimiter = ',', default_values = ["generate", "process", "store"], value_parser = parse_role)]
    roles: Vec<Role>,
    #[command(flatten)]
    node: NodeArgs,
}

fn parse_role(text: &str) -> Result<Role, String> {
    text.parse()
}

/// Arguments of `millstream config`.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    what: ConfigWhat,
}

#[derive(Debug, Subcommand)]
enum ConfigWhat {
    /// What is in force: defaults, file, environment and flags.
    Show {
        #[command(flatten)]
        node: NodeArgs,
    },
    /// What can be said, as a JSON schema.
    Schema,
}

/// Runs a node until it is told to stop or cannot go on.
pub async fn run(args: RunArgs) -> Result<(), Failure> {
    let config = args.node.load()?;
    let mut node = Node::start(config, NodeOptions::new(args.roles)).await?;
    announce(&node);
    let (mut interrupt, mut terminate) = signals()?;
    let ready = tokio::select! {
        ready = node.wait_ready(SLOW_START) => ready,
        _ = interrupt.recv() => return stop(node).await,
        _ = terminate.recv() => return stop(node).await,
    };
    match ready {
        Ok(()) => eprintln!("ready"),
        Err(error) if error.is::<crate::supervision::Fatal>() => return Err(error.into()),
        // It may still become so: a broker that comes up later is no reason to leave.
        Err(error) => tracing::warn!("{error:#}; still trying"),
    }
    tokio::select! {
        fatal = node.fatal() => Err(Failure::Runtime(fatal.into())),
        _ = interrupt.recv() => stop(node).await,
        _ = terminate.recv() => stop(node).await,
    }
}

/// The signals that ask for an ordered stop.
pub(super) fn signals() -> anyhow::Result<(tokio::signal::unix::Signal, tokio::signal::unix::Signal)>
{
    Ok((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?))
}

async fn stop(node: Node) -> Result<(), Failure> {
    eprintln!("stopping: handing on what is on its way");
    node.stop().await?;
    eprintln!("stopped");
    Ok(())
}

/// Where everything is, for whoever started it.
pub(super) fn announce(node: &Node) {
    let config: &Config = &node.view.config;
    let roles: Vec<String> =
        node.view.roles.iter().map(|r| format!("{r:?}").to_lowercase()).collect();
    eprintln!("millstream {} ({})", env!("CARGO_PKG_VERSION"), roles.join(", "));
    eprintln!("  page     http://{}/", node.http);
    eprintln!("  metrics  http://{}/metrics", node.http);
    eprintln!("  gRPC     {}", node.grpc);
    if node.view.roles.contains(&Role::Store) {
        eprintln!("  DuckDB   {}", config.database().display());
    }
    eprintln!("  Redis    {}", config.redis.url);
    if node.view.embedded_broker {
        eprintln!(
            "  Kafka    {} (in this process, in memory: for trying things out)",
            config.kafka.brokers
        );
    } else if !config.kafka.brokers.is_empty() {
        eprintln!("  Kafka    {}", config.kafka.brokers);
    }
}

/// Prints the configuration.
pub fn config(args: &ConfigArgs) -> Result<(), Failure> {
    match &args.what {
        ConfigWhat::Show { node } => {
            let text = toml::to_string_pretty(&node.load()?).map_err(anyhow::Error::from)?;
            print!("{text}");
        }
        ConfigWhat::Schema => {
            let schema = schemars::schema_for!(Config);
            println!("{}", serde_json::to_string_pretty(&schema).map_err(anyhow::Error::from)?);
        }
    }
    Ok(())
}
