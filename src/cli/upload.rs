//! `millstream upload`.

use super::{Failure, client::GrpcArgs, run};
use crate::{
    files::FileKind,
    proto::{UploadReceipt, UploadStatus},
    upload_client::{
        ACCEPTED, HALTED, LANDED, Refusal, Step, UploadClient, UploadError, UploadFile,
    },
};
use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::{
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};
use tonic::Code;

/// How long a node that was reached may be gone, or without room, before the command gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// The reasons of a node for which it is the command's words that are wrong, not the file.
const WRONG_WORDS: [&str; 3] = ["unknown_stream", "unknown_format", "unknown_compression"];

/// Arguments of `millstream upload`.
#[derive(Debug, Args)]
pub struct UploadArgs {
    /// Files of events; sent one after the other.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// The stream whose script turns the rows into features.
    #[arg(long, value_name = "NAME")]
    stream: String,
    /// What the files hold [default: by their extension: .json (an array of objects), .ndjson,
    /// .jsonl, .csv, .parquet].
    #[arg(long, value_name = "FORMAT", value_parser = ["json", "ndjson", "csv", "parquet"])]
    format: Option<String>,
    /// How the files are compressed as a whole [default: by a last extension .gz or .zst].
    #[arg(long, value_name = "HOW", value_parser = ["none", "gzip", "zstd"])]
    compression: Option<String>,
    /// A name of your own for the upload of one file: sent again under it, nothing is added
    /// [default: made of the file's bytes and the stream].
    #[arg(long, value_name = "TEXT")]
    key: Option<String>,
    /// End as soon as the file is safe at the node, before its rows have landed.
    #[arg(long)]
    no_wait: bool,
    /// One JSON object a file instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    grpc: GrpcArgs,
}

/// What became of a file.
#[derive(Debug, Serialize)]
struct Outcome {
    upload_id: String,
    state: String,
    rows: u64,
    dead_letters: u64,
    filtered: u64,
    duplicate: bool,
    file: String,
    stream: String,
}

/// Sends the files, and waits until their rows are accounted for.
pub async fn upload(args: UploadArgs) -> Result<(), Failure> {
    if args.key.is_some() && args.files.len() > 1 {
        return Err(Failure::Usage(
            "--key names the upload of one file: send them one by one".into(),
        ));
    }
    let (mut interrupt, mut terminate) = run::signals()?;
    tokio::select! {
        outcome = send_all(&args) => outcome,
        _ = interrupt.recv() => Err(Failure::Interrupted),
        _ = terminate.recv() => Err(Failure::Interrupted),
    }
}

/// One after the other; one that fails does not stop the others.
async fn send_all(args: &UploadArgs) -> Result<(), Failure> {
    let client = UploadClient::connect(&args.grpc.grpc.to_string()).await.map_err(|error| {
        Failure::Unreachable(format!(
            "{error}: start one with `millstream run`, or name its address with --grpc"
        ))
    })?;
    let (mut outcomes, mut worst): (Vec<Outcome>, Option<Failure>) = (Vec::new(), None);
    let mut note = |failure: Failure| match &worst {
        Some(known) if severity(&failure) <= severity(known) => failure.print(),
        _ => {
            if let Some(lesser) = worst.replace(failure) {
                lesser.print();
            }
        }
    };
    for path in &args.files {
        match send(&client, args, path).await {
            Ok((outcome, halted)) => {
                if args.json {
                    say(&serde_json::to_string(&outcome).map_err(anyhow::Error::from)?)?;
                } else {
                    outcomes.push(outcome);
                }
                halted.into_iter().for_each(&mut note);
            }
            Err(failure) => note(failure),
        }
    }
    if !outcomes.is_empty() {
        say(&table(&outcomes).to_string())?;
    }
    worst.map_or(Ok(()), Err)
}

/// Which of several failures is the command's: a node that is not reached says most, one that has the
/// file least.
fn severity(failure: &Failure) -> u8 {
    match failure {
        Failure::Check(_) => 0,
        Failure::Usage(_) | Failure::Config(_) => 1,
        Failure::Runtime(_) | Failure::Refused { .. } => 2,
        Failure::Unreachable(_) => 3,
        Failure::Interrupted => 4,
    }
}

/// Sends one file; a halted one has an outcome and a failure.
async fn send(
    client: &UploadClient,
    args: &UploadArgs,
    path: &Path,
) -> Result<(Outcome, Option<Failure>), Failure> {
    let (format, compression) = kind(args, path)?;
    let name = path.display().to_string();
    let hashing = bar(0, &name, "{spinner} {prefix}: reading it for its hash");
    hashing.enable_steady_tick(Duration::from_millis(100));
    let opening = UploadFile::open(path, &args.stream, &format, &compression).await;
    hashing.finish_and_clear();
    let mut file = opening.map_err(|error| Failure::Usage(error.to_string()))?;
    if let Some(key) = &args.key {
        file = file.with_key(key);
    }
    let receipt = send_bytes(client, &file, &name).await.map_err(|e| failure_of(&name, e))?;
    let UploadReceipt { upload_id, state, rows, dead_letters, duplicate, filtered } = receipt;
    match (duplicate, state.as_str()) {
        (true, LANDED) => eprintln!("{name}: was uploaded before as {upload_id}; nothing is added"),
        (true, _) => eprintln!(
            "{name}: is known as {upload_id} and has not landed yet; no row is added twice"
        ),
        (false, _) => eprintln!("{name}: is safe at the node as {upload_id}, {rows} rows"),
    }
    let stream = args.stream.clone();
    let mut outcome =
        Outcome { upload_id, state, rows, dead_letters, filtered, duplicate, file: name, stream };
    if args.no_wait || outcome.state == LANDED {
        return Ok((outcome, None));
    }
    let status = wait(client, &outcome).await?;
    let halted = (status.state == HALTED).then(|| {
        Failure::Check(format!(
            "{}: halted after {} of {} rows: {}; `millstream sources adopt {} --at here` lets it go on",
            outcome.file, status.rows_done, status.rows, status.reason, status.source
        ))
    });
    let UploadStatus { state, rows, dead_letters, filtered, .. } = status;
    outcome = Outcome { state, rows, dead_letters, filtered, ..outcome };
    Ok((outcome, halted))
}

async fn send_bytes(
    client: &UploadClient,
    file: &UploadFile,
    name: &str,
) -> Result<UploadReceipt, UploadError> {
    let template = "{prefix} {bar:30} {bytes}/{total_bytes}, {bytes_per_sec}";
    let bar = bar(file.header().size, name, template);
    let receipt = client.upload_with_retries(file, PATIENCE, |step| match step {
        Step::Sent(bytes) => bar.set_position(bytes),
        Step::Again(error) => {
            bar.suspend(|| eprintln!("{name}: {error}; it is sent again"));
        }
    });
    let receipt = receipt.await;
    bar.finish_and_clear();
    receipt
}

async fn wait(client: &UploadClient, outcome: &Outcome) -> Result<UploadStatus, Failure> {
    let template = "{prefix} {bar:30} {pos}/{len} rows, {per_sec}";
    let bar = bar(outcome.rows, &outcome.file, template);
    let mut told = String::new();
    let watching = client.wait_landed(&outcome.upload_id, PATIENCE, |status| {
        bar.set_length(status.rows);
        bar.set_position(status.rows_done);
        // Why it waits; why it is halted is the command's failure.
        if status.state == ACCEPTED && !status.reason.is_empty() && status.reason != told {
            bar.suspend(|| eprintln!("{}: waits: {}", outcome.file, status.reason));
            told.clone_from(&status.reason);
        }
    });
    let landed = watching.await;
    bar.finish_and_clear();
    landed.map_err(|error| match failure_of(&outcome.file, error) {
        Failure::Unreachable(message) => Failure::Unreachable(format!(
            "{message}; the file is safe at the node, the same command waits for its rows again"
        )),
        failure => failure,
    })
}

/// A bar; shown on a terminal only, by indicatif's own rule.
fn bar(length: u64, file: &str, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template);
    // A template of our own: it cannot be wrong.
    ProgressBar::new(length)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        .with_prefix(file.to_owned())
}

/// What a file is: as its flags say, else as its name does.
fn kind(args: &UploadArgs, path: &Path) -> Result<(String, String), Failure> {
    let (by_name, compressed) = kind_by_name(path);
    let format = args.format.as_deref().or(by_name).ok_or_else(|| {
        Failure::Usage(format!(
            "{}: its extension does not tell what it holds: .json, .ndjson, .jsonl, .csv and .parquet do, also with \
             .gz or .zst behind; else say it with --format",
            path.display()
        ))
    })?;
    let compression = args.compression.as_deref().unwrap_or(compressed);
    Ok((format.to_owned(), compression.to_owned()))
}

/// Format and compression that the extensions stand for.
fn kind_by_name(path: &Path) -> (Option<&'static str>, &'static str) {
    match FileKind::of_path(path) {
        Some(FileKind { format, compression }) => (Some(format.as_str()), compression.as_str()),
        None => {
            let ending =
                path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
            match ending.as_str() {
                "gz" => (None, "gzip"),
                "zst" => (None, "zstd"),
                _ => (None, "none"),
            }
        }
    }
}

/// What an error means for the command.
fn failure_of(file: &str, error: UploadError) -> Failure {
    let refusal = match error {
        UploadError::Refused(refusal) => *refusal,
        UploadError::Unreachable { .. } => return Failure::Unreachable(format!("{file}: {error}")),
        UploadError::Address { .. } => return Failure::Usage(error.to_string()),
        UploadError::Read { .. } => return Failure::Runtime(error.into()),
    };
    let is_of_words = |reason: &str| WRONG_WORDS.contains(&reason.to_ascii_lowercase().as_str());
    match refusal.code {
        Code::Unavailable => Failure::Unreachable(format!("{file}: {refusal}")),
        Code::NotFound => Failure::Usage(with_hint(file, &refusal)),
        Code::InvalidArgument if refusal.reason.as_deref().is_none_or(is_of_words) => {
            Failure::Usage(with_hint(file, &refusal))
        }
        _ => Failure::Refused {
            message: format!("{file} was not taken: {refusal}"),
            hint: refusal.hint,
        },
    }
}

fn with_hint(file: &str, refusal: &Refusal) -> String {
    let hint = refusal.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
    format!("{file}: {refusal}{hint}")
}

fn table(outcomes: &[Outcome]) -> comfy_table::Table {
    let columns = ["file", "upload_id", "state", "rows", "dead_letters", "filtered", "duplicate"];
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_FULL_CONDENSED).set_header(columns);
    for outcome in outcomes {
        let Outcome { upload_id, state, rows, dead_letters, filtered, duplicate, file, .. } =
            outcome;
        let [rows, dead_letters, filtered] = [rows, dead_letters, filtered].map(u64::to_string);
        let duplicate = if *duplicate { "yes" } else { "" }.to_owned();
        let (file, upload_id, state) = (file.clone(), upload_id.clone(), state.clone());
        table.add_row([file, upload_id, state, rows, dead_letters, filtered, duplicate]);
    }
    table
}

/// A line on stdout. When nobody reads it, the command ends with an error: files may be left.
fn say(line: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{line}").context("cannot write to stdout")
}

#[cfg(test)]
mod tests;
