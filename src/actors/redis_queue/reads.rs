//! Reads of DuckDB through the queue: the asking side and the serving side.
//!
//! A read is an entry of the stream `{ns}:reads` with the fields `to` (the list for the answer),
//! `head` (JSON) and, for questions about the past, `rows` (an Arrow IPC stream). Its answer is one
//! element, or several of which all but the last are pieces: a JSON header line, then the bytes.

use super::{
    online_check::{skew, verify_online, wait_complete},
    server::{BLOCK, ensure_group, read_entries},
};
use crate::{
    actors::duckdb_writer::{ReadJob, WriterThread},
    config::Config,
    messages::{AsOfRequest, QueryBounds, ReadReply, ReadRequest},
    queue::{self, Keys, RETRY, RedisLink, STORE_GROUP},
    store::{audit::Audit, reader::ReadError},
};
use anyhow::{Context as _, bail};
use arrow::{
    array::RecordBatch,
    ipc::{reader::StreamReader, writer::StreamWriter},
};
use redis::{
    AsyncCommands as _,
    aio::{ConnectionManager, MultiplexedConnection},
};
use std::{sync::Arc, time::Duration};
use tokio::sync::Semaphore;
use uuid::Uuid;

/// Seconds that an answer waits to be fetched.
const ANSWER_TTL_S: i64 = 120;
/// Reads that one trip takes at most.
const READS_A_TRIP: usize = 2;
/// How long a question of the program itself may take.
const SELECT_DEADLINE: Duration = Duration::from_secs(60);
/// Pieces of an answer that may wait to be fetched, and how long they may.
const PIECES_AHEAD: usize = 2;
const PIECE_PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether they were.
const PIECE_LOOK: Duration = Duration::from_millis(2);
/// How often it is looked whether anybody still waits for the answer of a query.
const GONE_LOOK: Duration = Duration::from_millis(100);
/// Keys that a skew check compares at most.
const MOST_SKEW_KEYS: usize = 100_000;

/// Asks the store and waits for its answer.
///
/// # Errors
/// When Redis does not answer, or no store does within `deadline`.
pub async fn ask(
    redis: &RedisLink,
    keys: &Keys,
    request: &ReadRequest,
    deadline: Duration,
) -> anyhow::Result<(ReadReply, Vec<u8>)> {
    Question::put(redis, keys, request, None, deadline).await?.answer().await
}

/// A question that was put, and whose answers are waited for.
pub struct Question {
    redis: RedisLink,
    connection: MultiplexedConnection,
    keys: Keys,
    /// Its entry, once it is known.
    id: Option<String>,
    reply_to: String,
    /// How long each answer may take.
    patience: Duration,
    /// Whether the last answer came.
    is_done: bool,
}

impl Question {
    /// Puts a question; `rows` go with it as an Arrow IPC stream.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn put(
        redis: &RedisLink,
        keys: &Keys,
        request: &ReadRequest,
        rows: Option<Vec<u8>>,
        patience: Duration,
    ) -> anyhow::Result<Self> {
        let reply_to = keys.replies(&format!("read:{}", Uuid::now_v7()));
        let connection =
            queue::blocking_connection(redis, patience).await.context("Redis cannot be reached")?;
        let head = serde_json::to_vec(request)?;
        // From here on it may be on the queue: whoever drops it says so.
        let (redis, keys) = (redis.clone(), keys.clone());
        let mut question =
            Self { redis, connection, keys, id: None, reply_to, patience, is_done: false };
        let mut put = redis::cmd("XADD");
        put.arg(question.keys.reads()).arg("*").arg("to").arg(&question.reply_to);
        put.arg("head").arg(head);
        if let Some(rows) = rows {
            put.arg("rows").arg(rows);
        }
        question.id = Some(put.query_async(&mut question.connection).await?);
        Ok(question)
    }

    /// The next answer. After [`ReadReply::Piece`] there is another.
    ///
    /// # Errors
    /// When Redis does not answer, or no store does in time.
    pub async fn answer(&mut self) -> anyhow::Result<(ReadReply, Vec<u8>)> {
        let answer: Option<(String, Vec<u8>)> = redis::cmd("BLPOP")
            .arg(&self.reply_to)
            .arg(self.patience.as_secs_f64())
            .query_async(&mut self.connection)
            .await?;
        let Some((_, bytes)) = answer else {
            let patience = self.patience;
            bail!(
                "no store answered within {patience:?}: is a node with the role `store` running?"
            );
        };
        let end = bytes.iter().position(|b| *b == b'\n').context("the answer has no header")?;
        let reply = serde_json::from_slice(&bytes[..end])?;
        self.is_done = !matches!(reply, ReadReply::Piece);
        Ok((reply, bytes[end + 1..].to_vec()))
    }
}

impl Drop for Question {
    /// Nobody wants the answers any more.
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.is_done {
            return;
        }
        let (redis, keys) = (self.redis.clone(), self.keys.clone());
        let (id, reply_to) = (self.id.clone(), self.reply_to.clone());
        runtime.spawn(async move {
            // The question's own connection may still wait for an answer.
            let connection = queue::blocking_connection(&redis, Duration::ZERO).await;
            let mut connection = match connection {
                Ok(connection) => connection,
                Err(error) => {
                    tracing::debug!(%error, "a question that nobody waits for stays on the queue");
                    return;
                }
            };
            let mut pipeline = redis::pipe();
            if let Some(id) = id {
                pipeline.cmd("XACK").arg(keys.reads()).arg(STORE_GROUP).arg(&id).ignore();
                pipeline.cmd("XDEL").arg(keys.reads()).arg(&id).ignore();
            }
            pipeline.cmd("SET").arg(gone(&reply_to)).arg(1).arg("EX").arg(ANSWER_TTL_S).ignore();
            pipeline.del(&reply_to).ignore();
            let told: redis::RedisResult<()> = pipeline.query_async(&mut connection).await;
            if let Err(error) = told {
                tracing::debug!(%error, "a question that nobody waits for stays on the queue");
            }
        });
    }
}

/// The key that says that nobody waits at a list any more.
fn gone(reply_to: &str) -> String {
    format!("{reply_to}:gone")
}

/// Asks the store for the rows of one SELECT that the program needs to go on with its work; clients do
/// not hold it up.
///
/// # Errors
/// As [`ask`], and the store's word when it refuses.
pub async fn select(
    redis: &RedisLink,
    keys: &Keys,
    sql: String,
) -> anyhow::Result<Vec<RecordBatch>> {
    rows_of(redis, keys, sql, true).await
}

/// The same for a client's question, which stands in line with others.
///
/// # Errors
/// As [`select`].
pub async fn select_for_client(
    redis: &RedisLink,
    keys: &Keys,
    sql: String,
) -> anyhow::Result<Vec<RecordBatch>> {
    rows_of(redis, keys, sql, false).await
}

async fn rows_of(
    redis: &RedisLink,
    keys: &Keys,
    sql: String,
    own: bool,
) -> anyhow::Result<Vec<RecordBatch>> {
    let query = ReadRequest::Query { sql, bounds: QueryBounds::default(), own };
    let bytes = match ask(redis, keys, &query, SELECT_DEADLINE).await? {
        (ReadReply::Failed { reason, .. }, _) => bail!("the store cannot be asked: {reason}"),
        (_, bytes) => bytes,
    };
    let rows = StreamReader::try_new(std::io::Cursor::new(bytes), None)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Answers reads until the actor ends.
pub(super) async fn serve(
    redis: RedisLink,
    keys: Keys,
    config: Arc<Config>,
    thread: Arc<WriterThread>,
) {
    loop {
        match queue::blocking_connection(&redis, BLOCK).await {
            Ok(mut connection) => {
                if let Err(error) = serve_on(&mut connection, &redis, &keys, &config, &thread).await
                {
                    tracing::warn!(error = %format!("{error:#}"), "reads cannot be served; trying again");
                }
            }
            Err(error) => tracing::warn!(%error, "reads cannot be served: Redis cannot be reached"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn serve_on(
    connection: &mut MultiplexedConnection,
    redis: &RedisLink,
    keys: &Keys,
    config: &Arc<Config>,
    thread: &Arc<WriterThread>,
) -> anyhow::Result<()> {
    let stream = keys.reads();
    ensure_group(connection, &stream).await?;
    let manager = redis.manager().await?;
    // A read that an earlier instance left is asked again by its client, if it still wants it; with its
    // rows it would stay for ever.
    loop {
        let left = read_entries(connection, &stream, "0", READS_A_TRIP).await?;
        if left.is_empty() {
            break;
        }
        let ids: Vec<&str> = left.iter().map(|entry| entry.id.as_str()).collect();
        let mut pipeline = redis::pipe();
        pipeline.cmd("XACK").arg(&stream).arg(STORE_GROUP).arg(&ids).ignore();
        pipeline.cmd("XDEL").arg(&stream).arg(&ids).ignore();
        let () = pipeline.query_async(connection).await?;
    }
    let turn = Arc::new(Semaphore::new(1));
    loop {
        for entry in read_entries(connection, &stream, ">", READS_A_TRIP).await? {
            let (keys, config, thread) = (keys.clone(), config.clone(), thread.clone());
            let turn = turn.clone();
            let mut manager = manager.clone();
            // Side by side: a long audit must not hold up a short question.
            tokio::task::spawn_local(async move {
                let to: String = entry.get("to").unwrap_or_default();
                let head: Vec<u8> = entry.get("head").unwrap_or_default();
                let answering = async {
                    match serde_json::from_slice(&head) {
                        Ok(ReadRequest::AsOf(request)) => {
                            // Nobody closes the semaphore. One at a time: they are large, and another
                            // thread must be free for short questions.
                            let _turn = turn.acquire().await;
                            let questions: Vec<u8> = entry.get("rows").unwrap_or_default();
                            answer_as_of(request, questions, manager.clone(), &to, &thread).await
                        }
                        Ok(request) => {
                            answer(request, &mut manager.clone(), &keys, &config, &thread).await
                        }
                        Err(error) => refused(format!("the read cannot be understood: {error}")),
                    }
                };
                let (reply, body) = tokio::select! {
                    answer = answering => answer,
                    // A query, an AS OF read and a sample are dropped with this, and interrupted.
                    () = until_gone(manager.clone(), &to) => failed("nobody waits any more".into()),
                };
                if let Err(error) = send(&mut manager, &keys, &entry.id, &to, &reply, &body).await {
                    tracing::warn!(error = %format!("{error:#}"), "a read's answer was not sent");
                }
            });
        }
    }
}

/// Ends when nobody waits at a list any more.
async fn until_gone(mut manager: ConnectionManager, to: &str) {
    loop {
        tokio::time::sleep(GONE_LOOK).await;
        // Without Redis nobody can be answered either, and the read ends by itself.
        if manager.exists(gone(to)).await.unwrap_or(false) {
            return;
        }
    }
}

async fn send(
    manager: &mut ConnectionManager,
    keys: &Keys,
    id: &str,
    to: &str,
    reply: &ReadReply,
    body: &[u8],
) -> anyhow::Result<()> {
    let mut pipeline = redis::pipe();
    pipeline.rpush(to, element(reply, body)?).ignore();
    pipeline.expire(to, ANSWER_TTL_S).ignore();
    pipeline.cmd("XACK").arg(keys.reads()).arg(STORE_GROUP).arg(id).ignore();
    pipeline.cmd("XDEL").arg(keys.reads()).arg(id).ignore();
    let () = pipeline.query_async(manager).await?;
    Ok(())
}

fn element(reply: &ReadReply, body: &[u8]) -> serde_json::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(reply)?;
    bytes.push(b'\n');
    bytes.extend_from_slice(body);
    Ok(bytes)
}

/// Sends a piece a feature; the last answer says up to where the store looked, as JSON.
async fn answer_as_of(
    request: AsOfRequest,
    questions: Vec<u8>,
    mut manager: ConnectionManager,
    to: &str,
    thread: &WriterThread,
) -> (ReadReply, Vec<u8>) {
    let (answers, mut answered) = tokio::sync::mpsc::unbounded_channel();
    let (done, result) = tokio::sync::oneshot::channel();
    thread.read(ReadJob::AsOf { request, questions, answers, done });
    while let Some(batch) = answered.recv().await {
        if let Err(error) = send_piece(&mut manager, to, &batch).await {
            // Nobody takes the answers: dropping the receiver ends the reading.
            let _: redis::RedisResult<()> = manager.del(to).await;
            return failed(format!("{error:#}"));
        }
    }
    match result.await {
        Ok(Ok(watermark)) => match serde_json::to_vec(&watermark) {
            Ok(json) => (ReadReply::Json, json),
            Err(error) => failed(error.to_string()),
        },
        Ok(Err(error @ ReadError::Refused(_))) => refused(error.to_string()),
        Ok(Err(error)) => failed(error.to_string()),
        Err(_) => failed("the store's reader ended".into()),
    }
}

/// Puts a piece on the list, as soon as not too many wait there.
async fn send_piece(
    manager: &mut ConnectionManager,
    to: &str,
    batch: &RecordBatch,
) -> anyhow::Result<()> {
    let until = tokio::time::Instant::now() + PIECE_PATIENCE;
    while manager.llen::<_, usize>(to).await? >= PIECES_AHEAD {
        if manager.exists(gone(to)).await? {
            bail!("nobody waits for the answers any more");
        }
        if tokio::time::Instant::now() > until {
            bail!("the answers were not fetched within {PIECE_PATIENCE:?}");
        }
        tokio::time::sleep(PIECE_LOOK).await;
    }
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema())?;
    writer.write(batch)?;
    let mut pipeline = redis::pipe();
    pipeline.rpush(to, element(&ReadReply::Piece, &writer.into_inner()?)?).ignore();
    pipeline.expire(to, ANSWER_TTL_S).ignore();
    let () = pipeline.query_async(manager).await?;
    Ok(())
}

fn refused(reason: String) -> (ReadReply, Vec<u8>) {
    (ReadReply::Failed { refused: true, reason }, Vec::new())
}

fn failed(reason: String) -> (ReadReply, Vec<u8>) {
    (ReadReply::Failed { refused: false, reason }, Vec::new())
}

async fn answer(
    request: ReadRequest,
    manager: &mut ConnectionManager,
    keys: &Keys,
    config: &Arc<Config>,
    thread: &WriterThread,
) -> (ReadReply, Vec<u8>) {
    let (done, result) = tokio::sync::oneshot::channel();
    match request {
        ReadRequest::Query { sql, bounds, own } => {
            thread.read(ReadJob::Query { sql, bounds, own, done });
            match result.await {
                Ok(Ok(bytes)) => (ReadReply::Arrow, bytes),
                Ok(Err(error @ (ReadError::Refused(_) | ReadError::Memory))) => {
                    refused(error.to_string())
                }
                Ok(Err(error)) => failed(error.to_string()),
                Err(_) => failed("the store's reader ended".into()),
            }
        }
        ReadRequest::Skew { keys: n_keys } => {
            match skew(manager, keys, config, thread, n_keys.clamp(1, MOST_SKEW_KEYS)).await {
                Ok(skew) => match serde_json::to_vec(&skew) {
                    Ok(json) => (ReadReply::Json, json),
                    Err(error) => failed(error.to_string()),
                },
                Err(error) => failed(format!("online and offline cannot be compared: {error:#}")),
            }
        }
        ReadRequest::AsOf(_) => refused("its rows are missing".into()),
        ReadRequest::Verify { full } => {
            let (done, result) = tokio::sync::oneshot::channel();
            thread.read(ReadJob::Verify { full, done });
            let (mut audit, newest) = match result.await {
                Ok(Ok(found)) => found,
                Ok(Err(error)) => return failed(error.to_string()),
                Err(_) => return failed("the store's reader ended".into()),
            };
            if let Err(error) = wait_complete(manager, keys).await {
                return failed(format!("the online store cannot be checked: {error:#}"));
            }
            match verify_online(manager, keys, &config.streams, &newest).await {
                Ok(check) => audit.checks.push(check),
                Err(error) => {
                    return failed(format!("the online store cannot be checked: {error}"));
                }
            }
            match serde_json::to_vec::<Audit>(&audit) {
                Ok(json) => (ReadReply::Json, json),
                Err(error) => failed(error.to_string()),
            }
        }
    }
}
