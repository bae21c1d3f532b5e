//! `millstream transforms resume`.

use super::super::{Failure, client::ClientArgs};
use crate::service::ResumeBody;
use clap::Args;
use std::time::Duration;

/// The node only tells Redis.
const DEADLINE: Duration = Duration::from_secs(30);

/// Arguments of `millstream transforms resume`.
#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// The stream that waits.
    stream: String,
    /// What its script fails on is the data's fault: it becomes dead letters, on every node. Without
    /// this a suspected script goes on when its file is mended.
    #[arg(long, required = true)]
    dead_letter: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// Tells the node.
pub async fn resume(args: ResumeArgs) -> Result<(), Failure> {
    let ResumeArgs { stream, dead_letter, client } = args;
    let body =
        serde_json::to_value(ResumeBody { stream, dead_letter }).map_err(anyhow::Error::from)?;
    client.post("/api/transforms/resume", &body, DEADLINE).await?.done()?;
    eprintln!("what this version fails on is dead from now on; the stream goes on within a second");
    Ok(())
}
