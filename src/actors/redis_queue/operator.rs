//! What is asked of the store besides batches, through the queue like everything else.

use crate::{
    messages::{NoteScript, QueueReply, RegisterUpload, ScriptNoted, UploadRegistered},
    protocol::source::{AdoptAt, SourceName},
    queue::{
        self, Fields, Keys, RedisLink, decode_reply, encode_adopt, encode_note, encode_upload,
    },
};
use anyhow::{Context as _, bail};
use redis::Value;
use std::time::Duration;
use uuid::Uuid;

/// Puts an entry on the queue and waits for its answer.
///
/// # Errors
/// When Redis does not answer, no store does within `deadline` (it may still carry it out later), or
/// it refuses.
pub async fn request(
    redis: &RedisLink,
    keys: &Keys,
    fields: Fields,
    deadline: Duration,
) -> anyhow::Result<QueueReply> {
    let reply_to = keys.replies(&format!("request:{}", Uuid::now_v7()));
    let mut connection =
        queue::blocking_connection(redis, deadline).await.context("Redis cannot be reached")?;
    let mut add = redis::cmd("XADD");
    add.arg(keys.queue()).arg("*").arg("to").arg(&reply_to).arg("round").arg(0);
    for (name, value) in fields {
        add.arg(name).arg(value);
    }
    let () = add.exec_async(&mut connection).await?;
    let answer: Option<(String, Value)> = redis::cmd("BLPOP")
        .arg(&reply_to)
        .arg(deadline.as_secs_f64())
        .query_async(&mut connection)
        .await?;
    let Some((_, value)) = answer else {
        bail!(
            "no store answered within {deadline:?}: is a node with the role `store` running? What was asked stands on \
             the queue and will be carried out"
        );
    };
    match decode_reply(&value)?.reply {
        QueueReply::Refused { reason } => bail!("{reason}"),
        reply => Ok(reply),
    }
}

/// Has the store note how a source goes on; `false` when it knows no such source.
///
/// # Errors
/// As [`request`].
pub async fn adopt(
    redis: &RedisLink,
    keys: &Keys,
    source: &SourceName,
    at: AdoptAt,
    deadline: Duration,
) -> anyhow::Result<bool> {
    match request(redis, keys, encode_adopt(source, at)?, deadline).await? {
        QueueReply::Adopted { known } => Ok(known),
        other => bail!("an unexpected answer: {other:?}"),
    }
}

/// Has the store append an event to the history of a stream's script.
///
/// # Errors
/// As [`request`]. Asking again with the same id is safe.
pub async fn note_script(
    redis: &RedisLink,
    keys: &Keys,
    note: &NoteScript,
    deadline: Duration,
) -> anyhow::Result<ScriptNoted> {
    match request(redis, keys, encode_note(note)?, deadline).await? {
        QueueReply::Noted(noted) => Ok(noted),
        other => bail!("an unexpected answer: {other:?}"),
    }
}

/// Has the store know an upload.
///
/// # Errors
/// As [`request`]. Asking again with the same id is safe.
pub async fn register_upload(
    redis: &RedisLink,
    keys: &Keys,
    upload: &RegisterUpload,
    deadline: Duration,
) -> anyhow::Result<UploadRegistered> {
    match request(redis, keys, encode_upload(upload)?, deadline).await? {
        QueueReply::Uploaded(registered) => Ok(registered),
        other => bail!("an unexpected answer: {other:?}"),
    }
}
