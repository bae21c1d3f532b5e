//! `millstream generate`: events into Kafka, made up or out of a real file; and made-up files to a
//! node.

use super::{Failure, NodeArgs, demo::parse_duration, run};
use crate::{
    actors::generator::{GeneratorParts, GeneratorTasks, send},
    config::Config,
    generate::{EventId, Replay, ReplayOptions},
    kafka,
};
use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use rdkafka::{
    ClientContext,
    message::DeliveryResult,
    producer::{Producer, ProducerContext, ThreadedProducer},
};
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Rows that are read from the file at once.
const ROWS_A_READ: usize = 4_096;
/// How long the last events may wait for the broker.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(120);

/// Arguments of `millstream generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// Send the rows of this NDJSON, CSV or Parquet file instead of made-up events.
    #[arg(long, value_name = "FILE", requires = "topic")]
    replay: Option<PathBuf>,
    /// Topic that the rows go to.
    #[arg(long, requires = "replay")]
    topic: Option<String>,
    /// Field that is the key of each record [default: the entity of the topic's stream].
    #[arg(long, value_name = "FIELD", requires = "replay")]
    key: Option<String>,
    /// A CSV text that stands for null, besides the empty one; may be given again.
    #[arg(long, value_name = "TEXT", requires = "replay")]
    null: Vec<String>,
    /// Events a second [default: the configuration's].
    #[arg(long, conflicts_with = "flat_out")]
    rate: Option<f64>,
    /// As fast as the broker takes them.
    #[arg(long)]
    flat_out: bool,
    /// Stop after so many events.
    #[arg(long, value_name = "N", conflicts_with = "replay")]
    count: Option<u64>,
    /// Stop after so long.
    #[arg(long, value_parser = parse_duration, value_name = "TIME", conflicts_with = "replay")]
    duration: Option<Duration>,
    /// Also upload files of made-up events to the node with this gRPC address (`host:port`), every
    /// `generator.upload_every_s` seconds [default: the configuration's].
    #[arg(long, value_name = "ADDR", conflicts_with_all = ["replay", "count"])]
    upload_to: Option<String>,
    /// What was sent, as one JSON object on stdout.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    node: NodeArgs,
}

/// Sends, and says how much the broker took.
pub async fn generate(args: GenerateArgs) -> Result<(), Failure> {
    let mut config = args.node.load()?;
    if config.kafka.brokers.is_empty() {
        return Err(Failure::Config(
            "`kafka.brokers` is not set: say where to send with MILLSTREAM__KAFKA__BROKERS=host:port".into(),
        ));
    }
    if let Some(rate) = args.rate {
        config.generator.rate = rate;
    }
    if args.flat_out {
        config.generator.rate = 0.0;
    }
    if let Some(address) = &args.upload_to {
        config.generator.upload_to.clone_from(address);
    }
    config.validate().map_err(Failure::Usage)?;
    if config.kafka.create_topics {
        kafka::create_missing_topics(&config).await?;
    }
    match (args.replay.clone(), args.topic.clone()) {
        (Some(file), Some(topic)) => replay(args, config, file, topic).await,
        _ => make_up(&args, config).await,
    }
}

async fn make_up(args: &GenerateArgs, config: Config) -> Result<(), Failure> {
    let parts = GeneratorParts {
        config: Arc::new(config),
        gate: None,
        keep_ids: false,
        count: args.count,
        hold: false,
        own_grpc: None,
        stop_patience: GeneratorParts::STOP_PATIENCE,
    };
    let started = Instant::now();
    let tasks = GeneratorTasks::start(&parts)?;
    let (mut interrupt, mut terminate) = run::signals()?;
    tokio::select! {
        () = async {
            match args.duration {
                Some(duration) => tokio::time::sleep(duration).await,
                None => std::future::pending().await,
            }
        } => {}
        () = async {
            while !tasks.is_done() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        } => {}
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    let stopping = tasks.clone();
    tokio::task::spawn_blocking(move || stopping.stop()).await.map_err(anyhow::Error::from)?;
    let tally = tasks.tally();
    report(args.json, tally.acknowledged(), tally.refused(), started.elapsed());
    if tasks.has_failed() || tally.refused() > 0 {
        return Err(Failure::Runtime(anyhow::anyhow!("not every event was taken")));
    }
    Ok(())
}

fn report(json: bool, sent: u64, refused: u64, elapsed: Duration) {
    let seconds = elapsed.as_secs_f64();
    if json {
        println!(
            "{}",
            serde_json::json!({ "sent": sent, "refused": refused, "elapsed_s": seconds })
        );
    } else {
        let rate = sent as f64 / seconds.max(1e-9);
        println!("{sent} events sent in {seconds:.1} s ({rate:.0}/s), {refused} refused");
    }
}

/// Counts the broker's answers.
#[derive(Default)]
struct Answers {
    taken: AtomicU64,
    refused: AtomicU64,
}

struct Counting(Arc<Answers>);

impl ClientContext for Counting {}

impl ProducerContext for Counting {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, _: usize) {
        match result {
            Ok(_) => self.0.taken.fetch_add(1, Ordering::Relaxed),
            Err((error, _)) => {
                tracing::warn!(%error, "the broker did not take an event");
                self.0.refused.fetch_add(1, Ordering::Relaxed)
            }
        };
    }
}

async fn replay(
    args: GenerateArgs,
    config: Config,
    file: PathBuf,
    topic: String,
) -> Result<(), Failure> {
    let stream = config.streams.iter().find(|s| s.topic == topic);
    let key_field = args.key.clone().or_else(|| stream.map(|s| s.entity.clone()));
    if key_field.is_none() {
        return Err(Failure::Usage(format!(
            "no configured stream reads the topic `{topic}`, so its key is not known: name it with --key"
        )));
    }
    let rate = if args.flat_out { 0.0 } else { args.rate.unwrap_or(config.generator.rate) };
    let json = args.json;
    let options = ReplayOptions { key_field, null_values: args.null };
    // Reading and sending block; the main thread only waits for them.
    let sending =
        tokio::task::spawn_blocking(move || send_file(&config, &file, &topic, &options, rate));
    let (answers, elapsed) = sending.await.map_err(anyhow::Error::from)??;
    let (taken, refused) =
        (answers.taken.load(Ordering::Relaxed), answers.refused.load(Ordering::Relaxed));
    report(json, taken, refused, elapsed);
    if refused > 0 {
        return Err(Failure::Runtime(anyhow::anyhow!("the broker did not take every event")));
    }
    Ok(())
}

fn send_file(
    config: &Config,
    file: &std::path::Path,
    topic: &str,
    options: &ReplayOptions,
    rate: f64,
) -> anyhow::Result<(Arc<Answers>, Duration)> {
    let mut replay = Replay::open(file, options)?;
    let answers = Arc::new(Answers::default());
    let mut settings = kafka::client_config(&config.kafka);
    settings
        .set("enable.idempotence", "true")
        .set("linger.ms", "10")
        .set("message.timeout.ms", "120000");
    let producer: ThreadedProducer<Counting> =
        settings.create_with_context(Counting(answers.clone()))?;
    let bar = match replay.total_rows() {
        Some(rows) => ProgressBar::new(rows),
        None => ProgressBar::new_spinner(),
    };
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} events, {per_sec}");
    // A template of our own: it cannot be wrong.
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let run = EventId::run_tag(config.generator.seed, rand::random());
    let started = Instant::now();
    while let Some(records) = replay.next_batch(ROWS_A_READ) {
        for record in records? {
            if rate > 0.0 {
                let due = Duration::from_secs_f64(record.row as f64 / rate);
                std::thread::sleep(due.saturating_sub(started.elapsed()));
            }
            let now_ms = chrono::Utc::now().timestamp_millis().cast_unsigned();
            let id = EventId::new(now_ms, run, u8::MAX, record.row).uuid().hyphenated().to_string();
            send(&producer, topic, record.key.as_deref(), Some(&record.payload), &id, 0)?;
            bar.inc(1);
        }
    }
    producer.flush(FLUSH_TIMEOUT).context("the broker did not take the last events in time")?;
    bar.finish_and_clear();
    Ok((answers, started.elapsed()))
}
