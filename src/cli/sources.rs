//! `millstream sources`.

use super::{Failure, client::ClientArgs, query};
use crate::{
    protocol::source::{AdoptAt, SourceName},
    service::AdoptBody,
};
use clap::{Args, Subcommand};
use std::time::Duration;

/// The store answers within a minute or not at all.
const DEADLINE: Duration = Duration::from_secs(70);

const LIST: &str =
    "SELECT source, next_pos, token_no AS opened, owner, coalesce(halted, '') AS halted,
                           coalesce(adopt, '') AS adopted, updated_at
                    FROM sources QUALIFY source_no = max(source_no) OVER (PARTITION BY source)
                    ORDER BY source";

/// Arguments of `millstream sources`.
#[derive(Debug, Args)]
pub struct SourcesArgs {
    #[command(subcommand)]
    what: SourcesWhat,
}

#[derive(Debug, Subcommand)]
enum SourcesWhat {
    /// Every source with its position, as DuckDB knows it.
    List {
        /// A JSON list instead of a table.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Decide how a halted source goes on. Nothing that is stored changes.
    Adopt {
        /// Its name, for instance kafka:clicks/user-events/0.
        source: String,
        /// `here`: at DuckDB's position, the same log elsewhere; `earliest` or `latest`: another log,
        /// from its start or its end.
        #[arg(long, value_parser = |text: &str| text.parse::<AdoptAt>())]
        at: AdoptAt,
        #[command(flatten)]
        client: ClientArgs,
    },
}

/// Lists or adopts.
pub async fn sources(args: SourcesArgs) -> Result<(), Failure> {
    match args.what {
        SourcesWhat::List { json, client } => query::show(&client, LIST, json).await,
        SourcesWhat::Adopt { source, at, client } => {
            let body = AdoptBody { source: SourceName(source.into()), at };
            let body = serde_json::to_value(body).map_err(anyhow::Error::from)?;
            client.post("/api/sources/adopt", &body, DEADLINE).await?.done()?;
            eprintln!("adopted; it goes on when it is opened next, within 15 s where it is halted");
            Ok(())
        }
    }
}
