//! `millstream features`.

mod asof;
mod export;
mod online;
mod stored;

use super::Failure;
use clap::{Args, Subcommand};

/// Arguments of `millstream features`.
#[derive(Debug, Args)]
pub struct FeaturesArgs {
    #[command(subcommand)]
    command: FeaturesCommand,
}

#[derive(Debug, Subcommand)]
enum FeaturesCommand {
    /// The newest values of entities, with their age, from Redis.
    Online(online::OnlineArgs),
    /// A training set: features of entities as they were known at instants.
    Asof(asof::AsOfArgs),
    /// All features, with counts, first and last seen, and freshness.
    List(stored::ListArgs),
    /// All values of an entity, with the script and the event that made each of them.
    History(stored::HistoryArgs),
    /// The entities that have a feature, with their newest values.
    Entities(stored::EntitiesArgs),
    /// All values of a range of time, into a file.
    Export(export::ExportArgs),
    /// Whether online values are the newest in DuckDB, on a sample of keys.
    Skew(stored::SkewArgs),
}

/// Asks and prints.
pub async fn features(args: FeaturesArgs) -> Result<(), Failure> {
    match args.command {
        FeaturesCommand::Online(args) => online::online(args).await,
        FeaturesCommand::Asof(args) => asof::asof(args).await,
        FeaturesCommand::List(args) => stored::list(args).await,
        FeaturesCommand::History(args) => stored::history(args).await,
        FeaturesCommand::Entities(args) => stored::entities(args).await,
        FeaturesCommand::Export(args) => export::export(args).await,
        FeaturesCommand::Skew(args) => stored::skew(args).await,
    }
}
