//! `millstream verify`.

use super::{Failure, client::ClientArgs, demo};
use crate::report::Report;
use clap::Args;
use std::time::Duration;

/// An audit of everything may take its time.
const DEADLINE: Duration = Duration::from_secs(600);

/// Arguments of `millstream verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The verdict as one JSON object on stdout.
    #[arg(long)]
    json: bool,
    /// Audit all batches, not only those since the last clean audit.
    #[arg(long)]
    full: bool,
    /// First wait until everything in the topics and in uploaded files has landed, at most so long.
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "120s",
          value_parser = demo::parse_duration)]
    wait: Option<Duration>,
    #[command(flatten)]
    client: ClientArgs,
}

/// Asks the running node for the audit and prints the verdict.
pub async fn verify(args: VerifyArgs) -> Result<(), Failure> {
    let wait = args.wait.map_or(0, |w| w.as_secs().max(1));
    let path = format!("/api/verify?full={}&wait={wait}", args.full);
    let answer = args.client.post(&path, &serde_json::json!({}), DEADLINE).await?;
    if !answer.ok {
        return Err(Failure::Runtime(anyhow::anyhow!(answer.error())));
    }
    let report: Report = serde_json::from_slice(&answer.body).map_err(anyhow::Error::from)?;
    demo::print(&report, args.json)?;
    if report.ok { Ok(()) } else { Err(Failure::Check("the books do not balance".into())) }
}
