//! `millstream features export`.

use crate::cli::{Failure, client::ClientArgs, file_sink};
use clap::{Args, ValueEnum};
use std::{path::PathBuf, time::Duration};

/// A long history takes its time.
const DEADLINE: Duration = Duration::from_secs(24 * 3_600);

/// Arguments of `millstream features export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Values from this instant on, RFC 3339.
    #[arg(long, value_name = "INSTANT")]
    from: Option<String>,
    /// Values before this instant.
    #[arg(long, value_name = "INSTANT")]
    to: Option<String>,
    /// Which time of a value is meant.
    #[arg(long, value_enum, default_value = "event-time")]
    by: By,
    /// Only these features.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    features: Vec<String>,
    /// Where they go: .parquet, .csv, .ndjson, or .arrow (an Arrow IPC stream).
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum By {
    /// When it became true.
    EventTime,
    /// When it was in the store.
    AsKnown,
}

/// Asks, and writes the answer down.
pub(super) async fn export(args: ExportArgs) -> Result<(), Failure> {
    file_sink::check(&args.output)?;
    let by = match args.by {
        By::EventTime => "event_timestamp",
        By::AsKnown => "available_at",
    };
    let mut query = vec![("by", by.to_owned()), ("features", args.features.join(","))];
    query.extend(args.from.map(|from| ("from", from)));
    query.extend(args.to.map(|to| ("to", to)));
    let response = args.client.get_stream("/api/features/export", &query, DEADLINE).await?;
    let n = file_sink::save(response, &args.output).await?;
    eprintln!("{n} values in {}", args.output.display());
    Ok(())
}
