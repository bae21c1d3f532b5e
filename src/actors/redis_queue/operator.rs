//! What an operator asks of the store, through the queue like everything else.

use crate::{
    messages::QueueReply,
    protocol::source::{AdoptAt, SourceName},
    queue::{self, Keys, RedisLink, decode_reply, encode_adopt},
};
use anyhow::{Context as _, bail};
use redis::Value;
use std::time::Duration;
use uuid::Uuid;

/// Has the store note how a source goes on; `false` when it knows no such source.
///
/// # Errors
/// When Redis does not answer, no store does within `deadline`, or it refuses.
pub async fn adopt(
    redis: &RedisLink,
    keys: &Keys,
    source: &SourceName,
    at: AdoptAt,
    deadline: Duration,
) -> anyhow::Result<bool> {
    let reply_to = keys.replies(&format!("operator:{}", Uuid::now_v7()));
    let mut connection =
        queue::blocking_connection(redis, deadline).await.context("Redis cannot be reached")?;
    let mut add = redis::cmd("XADD");
    add.arg(keys.queue()).arg("*").arg("to").arg(&reply_to).arg("round").arg(0);
    for (name, value) in encode_adopt(source, at)? {
        add.arg(name).arg(value);
    }
    let _: String = add.query_async(&mut connection).await?;
    let answer: Option<(String, Value)> = redis::cmd("BLPOP")
        .arg(&reply_to)
        .arg(deadline.as_secs_f64())
        .query_async(&mut connection)
        .await?;
    let Some((_, value)) = answer else {
        bail!(
            "no store answered within {deadline:?}: is a node with the role `store` running? The decision stands on \
             the queue and will be carried out"
        );
    };
    match decode_reply(&value)?.reply {
        QueueReply::Adopted { known } => Ok(known),
        QueueReply::Refused { reason } => bail!("{reason}"),
        other => bail!("an unexpected answer: {other:?}"),
    }
}
