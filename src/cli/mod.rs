//! The command line. Data goes to stdout, messages to stderr.
//!
//! Exit codes: 0 ok, 1 runtime, 2 usage, 3 configuration, 4 a dependency cannot be reached, 5 a
//! check failed, 130 interrupted.

mod chaos;
mod client;
mod demo;
mod dlq;
mod failure;
mod features;
mod file_sink;
mod generate;
mod kill;
mod query;
mod run;
mod sources;
mod trace;
mod transforms;
mod upload;
mod verify;

pub use failure::Failure;

use crate::telemetry::traces;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::{net::SocketAddr, path::PathBuf, process::ExitCode};
use tracing_subscriber::EnvFilter;

/// A streaming feature engine: raw events in, features out, exactly once.
#[derive(Debug, Parser)]
#[command(name = "millstream", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// More messages: -v for the node's steps, -vv for everything. RUST_LOG wins.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    /// How messages are written: for people, or one JSON object a line.
    #[arg(
        long,
        value_name = "FORMAT",
        env = "MILLSTREAM_LOG_FORMAT",
        default_value = "pretty",
        global = true
    )]
    log_format: LogFormat,
}

/// How messages are written.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    /// Lines for people.
    Pretty,
    /// One JSON object a line, with the spans that it belongs to.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The whole system with everything embedded; with --duration, a verdict at the end.
    Demo(demo::DemoArgs),
    /// Run a node.
    Run(run::RunArgs),
    /// Kill, stop and mislead all that can be, under load, and judge whether every promise holds.
    Chaos(chaos::ChaosArgs),
    /// Send events to Kafka: made-up ones, or the rows of a real file.
    Generate(generate::GenerateArgs),
    /// Send files of events to a node, and wait until their rows have landed.
    Upload(upload::UploadArgs),
    /// Values of features: the newest, from Redis.
    Features(features::FeaturesArgs),
    /// Where an event went: source, batch, script, values or dead letter, times.
    Trace(trace::TraceArgs),
    /// Ask DuckDB one SELECT, through the running node.
    Query(query::QueryArgs),
    /// Audit ledger, tables, online store and offsets.
    Verify(verify::VerifyArgs),
    /// Sources: where they are, and how a halted one goes on.
    Sources(sources::SourcesArgs),
    /// Dead letters: what they are, and sending them through their scripts again.
    Dlq(dlq::DlqArgs),
    /// Scripts: what the streams run, trying, deploying and rolling back versions, running their tests.
    Transforms(transforms::TransformsArgs),
    /// End an actor of a running node, and see it come back.
    Kill(kill::KillArgs),
    /// The configuration: what is in force, or what can be said.
    Config(run::ConfigArgs),
    /// A Python worker, as the node starts it.
    #[command(hide = true)]
    PythonWorker {
        /// The inherited socket.
        #[arg(long)]
        fd: i32,
    },
    /// The process of which Python workers are forks, as the node starts it.
    #[command(hide = true)]
    PythonForkserver {
        /// The inherited socket.
        #[arg(long)]
        fd: i32,
    },
    /// The check of an uploaded file, as the node starts it.
    #[command(hide = true)]
    CheckFile,
}

/// Where the configuration is, and what flags say over it.
#[derive(Debug, Clone, Default, Args)]
pub struct NodeArgs {
    /// Configuration file [default: millstream.toml, when it is there].
    #[arg(long, value_name = "FILE", env = "MILLSTREAM_CONFIG")]
    pub config: Option<PathBuf>,
    /// Folder of the DuckDB file, the embedded Redis and the spool.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address of the page, the metrics and the JSON interface.
    #[arg(long, value_name = "ADDR")]
    pub http: Option<SocketAddr>,
    /// Address of the gRPC services.
    #[arg(long, value_name = "ADDR")]
    pub grpc: Option<SocketAddr>,
}

impl NodeArgs {
    /// The configuration that these flags give.
    ///
    /// # Errors
    /// [`Failure::Config`].
    pub fn load(&self) -> Result<crate::config::Config, Failure> {
        let beside = PathBuf::from("millstream.toml");
        let file = self.config.clone().or_else(|| beside.exists().then_some(beside));
        let mut config = crate::config::load(file.as_deref())?;
        if let Some(dir) = &self.data_dir {
            config.node.data_dir.clone_from(dir);
        }
        if let Some(http) = self.http {
            config.node.http = http;
        }
        if let Some(grpc) = self.grpc {
            config.node.grpc = grpc;
        }
        for (what, address) in [("node.http", config.node.http), ("node.grpc", config.node.grpc)] {
            if !address.ip().is_loopback() {
                return Err(Failure::Config(format!(
                    "`{what}` is {address}: beyond loopback TLS and a token are required, which this version does \
                     not have yet; bind to 127.0.0.1 and put a proxy in front"
                )));
            }
        }
        Ok(config)
    }
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    #[cfg(target_env = "gnu")]
    give_memory_back();
    let cli = Cli::parse();
    #[cfg(feature = "failpoints")]
    let _armed = fail::FailScenario::setup();
    if let Command::PythonWorker { fd } = cli.command {
        return crate::python::worker_main(fd);
    }
    if let Command::PythonForkserver { fd } = cli.command {
        return crate::python::forkserver_main(fd);
    }
    if let Command::CheckFile = cli.command {
        return crate::files::child_main();
    }
    if ends_with_its_reader(&cli.command) {
        end_with_the_reader();
    }
    install_tracing(cli.verbose, cli.log_format, &cli.command);
    #[cfg(feature = "failpoints")]
    match crate::failpoint::all_planted() {
        Ok([]) => {}
        Ok(defects) => tracing::warn!(?defects, "planted: promises are broken on purpose"),
        Err(unknown) => {
            let failure = Failure::Usage(unknown.to_owned());
            failure.print();
            return failure.exit_code();
        }
    }
    let system = actix::System::new();
    let outcome = system.block_on(async {
        match cli.command {
            Command::Demo(args) => demo::demo(args).await,
            Command::Run(args) => run::run(args).await,
            Command::Chaos(args) => chaos::chaos(args).await,
            Command::Generate(args) => generate::generate(args).await,
            Command::Upload(args) => upload::upload(args).await,
            Command::Features(args) => features::features(args).await,
            Command::Trace(args) => trace::trace(args).await,
            Command::Query(args) => query::query(args).await,
            Command::Verify(args) => verify::verify(args).await,
            Command::Sources(args) => sources::sources(args).await,
            Command::Dlq(args) => dlq::dlq(args).await,
            Command::Transforms(args) => transforms::transforms(args).await,
            Command::Kill(args) => kill::kill(args).await,
            Command::Config(args) => run::config(&args),
            Command::PythonWorker { .. }
            | Command::PythonForkserver { .. }
            | Command::CheckFile => Ok(()),
        }
    });
    // Whatever the outcome: a trace tells most about a node that could not go on.
    traces::stop(traces::LAST_WORDS);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print();
            failure.exit_code()
        }
    }
}

/// Large buffers go back to the system when they are freed. By itself glibc takes them, after the first
/// few, from heaps that it keeps: a node that once answered a million questions kept half a gigabyte.
#[cfg(target_env = "gnu")]
fn give_memory_back() {
    const LARGE: i32 = 4 << 20;
    // SAFETY: it only sets a number; no other thread runs yet.
    let is_set = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
    debug_assert_eq!(is_set, 1);
}

/// Whether it only asks. The signal would also end those that write to a connection which a node may
/// close at any time.
fn ends_with_its_reader(command: &Command) -> bool {
    !matches!(
        command,
        Command::Run(_)
            | Command::Demo(_)
            | Command::Chaos(_)
            | Command::Generate(_)
            | Command::Upload(_)
    )
}

/// A command whose output nobody reads any more, as in `millstream query … | head`, ends quietly
/// like others do. Rust ignores the signal for it, and then printing panics. A node goes on.
fn end_with_the_reader() {
    // SAFETY: before any thread is made; the default action is always there.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// A node says what it does; a command only what is wrong. What a script prints while it is tried
/// is of interest, but not each step of the search for the rows at fault, which are reported.
fn install_tracing(verbose: u8, format: LogFormat, command: &Command) {
    let default = match (verbose, command) {
        (0, Command::Run(_)) => "info",
        // What its faults do to its own connections is no news.
        (0, Command::Chaos(_)) => "error,librdkafka=off,rdkafka=off",
        (0, Command::Transforms(_)) => {
            "warn,millstream::python::logs=info,millstream::actors=error"
        }
        (0, _) => "warn",
        (1, _) => "info,millstream=debug",
        _ => "debug",
    };
    let quiet = format!("librdkafka=error,rdkafka=error,{default}");
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(quiet));
    let color = std::io::IsTerminal::is_terminal(&std::io::stderr())
        && std::env::var_os("NO_COLOR").is_none();
    let messages = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Pretty => messages.with_ansi(color).init(),
        LogFormat::Json => messages.json().flatten_event(true).with_current_span(false).init(),
    }
}
