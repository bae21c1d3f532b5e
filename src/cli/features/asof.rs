//! `millstream features asof`.

use crate::{
    actors::replayer::quoted,
    cli::{Failure, client::ClientArgs, demo},
};
use anyhow::{Context as _, bail, ensure};
use arrow::{
    array::RecordBatch,
    buffer::Buffer,
    ipc::{reader::StreamDecoder, writer::StreamWriter},
};
use clap::{Args, ValueEnum};
use duckdb::Connection;
use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    time::Duration,
};
use tempfile::TempDir;

/// Ten million questions about many features take their time.
const DEADLINE: Duration = Duration::from_secs(3_600);

/// Arguments of `millstream features asof`.
#[derive(Debug, Args)]
pub struct AsOfArgs {
    /// The questions, a row each: an entity, an instant, and any columns of your own, which are kept.
    /// CSV, JSON, NDJSON or Parquet, by the extension.
    #[arg(long, value_name = "FILE")]
    spine: PathBuf,
    /// Features, `name` or `stream:name`.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', required = true)]
    features: Vec<String>,
    /// The spine's column with the entity.
    #[arg(long, value_name = "COLUMN", default_value = "entity_id")]
    entity: String,
    /// The spine's column with the instant.
    #[arg(long, value_name = "COLUMN", default_value = "event_timestamp")]
    time: String,
    /// What a question may see.
    #[arg(long, value_enum, default_value = "as-known")]
    mode: AsOfMode,
    /// Leave out what came into sight at the very instant of a question.
    #[arg(long)]
    strict: bool,
    /// How old a value may be at its question [default: as the stream's `max_age_s` says].
    #[arg(long, value_name = "TIME", value_parser = demo::parse_duration)]
    ttl: Option<Duration>,
    /// Zone of instants that carry none; without it they are refused.
    #[arg(long, value_name = "ZONE", value_parser = ["UTC"])]
    timezone: Option<String>,
    /// First wait until everything that was accepted before has landed.
    #[arg(long)]
    wait: bool,
    /// Where the answer goes: .parquet, .csv, .ndjson, or .arrow (an Arrow IPC stream).
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AsOfMode {
    /// What could have been known at the instant: what was in the store by then.
    AsKnown,
    /// What was true at the instant, however late it came; a model that learns from it knows the future.
    EventTime,
}

/// A kind of file, by its extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Csv,
    Json,
    Parquet,
    Arrow,
}

impl Kind {
    fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "csv" => Some(Self::Csv),
            "json" | "ndjson" | "jsonl" => Some(Self::Json),
            "parquet" => Some(Self::Parquet),
            "arrow" | "arrows" => Some(Self::Arrow),
            _ => None,
        }
    }
}

/// Asks, and writes the answer down.
pub(super) async fn asof(args: AsOfArgs) -> Result<(), Failure> {
    let unknown = |path: &Path, kinds| {
        Failure::Usage(format!(
            "{}: its extension does not tell what it is: {kinds}",
            path.display()
        ))
    };
    let spine = Kind::of(&args.spine).filter(|kind| *kind != Kind::Arrow);
    let spine = spine.ok_or_else(|| unknown(&args.spine, ".csv, .json, .ndjson or .parquet"))?;
    let output = Kind::of(&args.output)
        .ok_or_else(|| unknown(&args.output, ".parquet, .csv, .ndjson or .arrow"))?;
    let folder = args.output.parent().filter(|folder| *folder != Path::new(""));
    let dir = tempfile::Builder::new()
        .prefix(".millstream-asof-")
        .tempdir_in(folder.unwrap_or(Path::new(".")))
        .with_context(|| format!("cannot write beside {}", args.output.display()))?;
    let unreadable =
        |error: anyhow::Error| Failure::Usage(format!("{}: {error:#}", args.spine.display()));
    let table = Table::open(&args, spine, dir).map_err(unreadable)?;
    let rows = table.spine_as_arrow().map_err(unreadable)?;
    let mut response = ask(&args, rows).await?;
    let as_of = response.headers().get("x-millstream-as-of");
    let as_of = as_of.and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let mut sink = Sink::new(table, output, &args)?;
    let mut n = 0;
    let mut decoder = StreamDecoder::new();
    loop {
        let piece = response.chunk().await;
        let Some(piece) = piece.context("the answer breaks off: see the node's log")? else {
            break;
        };
        sink.raw(&piece)?;
        let mut buffer = Buffer::from(piece.to_vec());
        while let Some(batch) = decoder.decode(&mut buffer).map_err(anyhow::Error::from)? {
            n += batch.num_rows();
            sink.take(batch)?;
        }
    }
    decoder.finish().map_err(anyhow::Error::from)?;
    sink.finish(&args.output)?;
    eprintln!("{n} rows as of {as_of} in {}", args.output.display());
    Ok(())
}

async fn ask(args: &AsOfArgs, spine: Vec<u8>) -> Result<reqwest::Response, Failure> {
    let mode = match args.mode {
        AsOfMode::AsKnown => "as-known",
        AsOfMode::EventTime => "event-time",
    };
    let mut query = vec![
        ("features", args.features.join(",")),
        ("entity", args.entity.clone()),
        ("time", args.time.clone()),
        ("mode", mode.to_owned()),
        ("strict", args.strict.to_string()),
        ("wait", args.wait.to_string()),
    ];
    query.extend(args.ttl.map(|age| ("max_age_s", age.as_secs_f64().to_string())));
    query.extend(args.timezone.clone().map(|zone| ("timezone", zone)));
    args.client.post_arrow("/get-historical-features", &query, spine, DEADLINE).await
}

/// A DuckDB of the command's own, on the disk beside the answer: it reads the spine, and holds the rows of
/// the answer until they are written.
struct Table {
    connection: Connection,
    _dir: TempDir,
}

fn name(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

impl Table {
    fn open(args: &AsOfArgs, kind: Kind, dir: TempDir) -> anyhow::Result<Self> {
        ensure!(args.spine.is_file(), "there is no such file");
        let connection = Connection::open(dir.path().join("answer.duckdb"))?;
        connection.execute_batch("SET TimeZone = 'UTC'; SET preserve_insertion_order = true;")?;
        let file = quoted(args.spine.to_str().context("its name is no text")?);
        // Ids are texts, also `007`, and a time keeps its zone until it is parsed.
        let texts = [&args.entity, &args.time].map(|c| format!("{}: 'VARCHAR'", quoted(c)));
        let texts = texts.join(", ");
        let source = match kind {
            Kind::Csv => format!("read_csv({file}, header = true, types = {{{texts}}})"),
            Kind::Parquet => format!("read_parquet({file})"),
            Kind::Json | Kind::Arrow => {
                let columns = columns_of_json(&connection, &file, [&args.entity, &args.time])?;
                format!("read_json({file}, columns = {{{columns}}})")
            }
        };
        connection.execute_batch(&format!("CREATE VIEW spine AS FROM {source}"))?;
        Ok(Self { connection, _dir: dir })
    }

    /// The spine as an Arrow IPC stream.
    fn spine_as_arrow(&self) -> anyhow::Result<Vec<u8>> {
        let mut statement = self.connection.prepare("FROM spine")?;
        // Not as a stream: that one panics on a row that does not fit its column.
        let batches = statement.query_arrow([])?;
        let mut writer = StreamWriter::try_new(Vec::new(), &batches.get_schema())?;
        for batch in batches {
            writer.write(&batch)?;
        }
        Ok(writer.into_inner()?)
    }
}

/// The columns of a JSON file as DuckDB finds them, but for those that stay texts.
fn columns_of_json(
    connection: &Connection,
    file: &str,
    texts: [&String; 2],
) -> anyhow::Result<String> {
    let mut statement = connection.prepare(&format!("DESCRIBE FROM read_json({file})"))?;
    let found = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let found = found.collect::<Result<Vec<(String, String)>, _>>()?;
    let columns = found.iter().map(|(column, kind)| {
        let kind = if texts.contains(&column) { "VARCHAR" } else { kind };
        format!("{}: {}", quoted(column), quoted(kind))
    });
    Ok(columns.collect::<Vec<_>>().join(", "))
}

/// Where the rows of an answer go.
enum Sink {
    /// The stream as it comes.
    Arrow(BufWriter<File>),
    /// Through a table, which is written in the end.
    Table { table: Table, kind: Kind, made: bool, features: Vec<String> },
}

impl Sink {
    fn new(table: Table, kind: Kind, args: &AsOfArgs) -> anyhow::Result<Self> {
        if kind == Kind::Arrow {
            let file = File::create(&args.output);
            let file = file.with_context(|| format!("cannot write {}", args.output.display()))?;
            return Ok(Self::Arrow(BufWriter::new(file)));
        }
        let plain = |feature: &String| match feature.split_once(':') {
            Some((_, feature)) => feature.to_owned(),
            None => feature.clone(),
        };
        let features = args.features.iter().map(plain).collect();
        Ok(Self::Table { table, kind, made: false, features })
    }

    fn raw(&mut self, piece: &[u8]) -> anyhow::Result<()> {
        match self {
            Self::Arrow(file) => Ok(file.write_all(piece)?),
            Self::Table { .. } => Ok(()),
        }
    }

    fn take(&mut self, batch: RecordBatch) -> anyhow::Result<()> {
        let Self::Table { table, made, features, .. } = self else { return Ok(()) };
        if !*made {
            make_table(&table.connection, features)?;
            *made = true;
        }
        let mut appender = table.connection.appender("answer")?;
        appender.append_record_batch(batch)?;
        Ok(appender.flush()?)
    }

    fn finish(self, output: &Path) -> anyhow::Result<()> {
        let (table, kind, made, features) = match self {
            Self::Arrow(mut file) => return Ok(file.flush()?),
            Self::Table { table, kind, made, features } => (table, kind, made, features),
        };
        if !made {
            make_table(&table.connection, &features)?;
        }
        let format = match kind {
            Kind::Csv => "FORMAT csv, HEADER",
            Kind::Json => "FORMAT json",
            Kind::Parquet => "FORMAT parquet, COMPRESSION zstd",
            Kind::Arrow => bail!("an Arrow file is written as it comes"),
        };
        let to = quoted(output.to_str().context("the output's name is no text")?);
        table.connection.execute_batch(&format!("COPY answer TO {to} ({format})"))?;
        Ok(())
    }
}

/// The spine's columns, then three of each feature.
fn make_table(connection: &Connection, features: &[String]) -> anyhow::Result<()> {
    let columns = features.iter().map(|feature| {
        let (status, time) = (format!("{feature}__status"), format!("{feature}__event_timestamp"));
        let (value, status, time) = (name(feature), name(&status), name(&time));
        format!("NULL::DOUBLE AS {value}, NULL::VARCHAR AS {status}, NULL::TIMESTAMPTZ AS {time}")
    });
    let columns = columns.collect::<Vec<_>>().join(", ");
    let sql = format!("CREATE TABLE answer AS SELECT *, {columns} FROM spine LIMIT 0");
    Ok(connection.execute_batch(&sql)?)
}
