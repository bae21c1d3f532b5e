//! The marks that the store leaves in Redis, to notice when it lost data. The rule is
//! [`crate::protocol::generation`].
//!
//! | key | content |
//! |---|---|
//! | `{ns}:generation` | every online write names it; another one since: it is repeated |
//! | `{ns}:run_id` | the server's run under which the store last looked |
//! | `{ns}:online_to` | batches up to this one are online |
//! | `{ns}:critical` | fingerprint of the critical lists that the online store was filled with |
//! | `{ns}:rebuilt` | the generation whose online store is complete |
//! | `{ns}:store` | the database that this namespace belongs to |

use crate::{
    config::StreamConfig,
    protocol::generation::{Action, Found, action},
    queue::Keys,
};
use redis::{Script, aio::ConnectionManager};
use sha2::{Digest, Sha256};
use std::time::Duration;
use uuid::Uuid;

/// ARGV: namespace, database. Answers run, known run, generation, online_to, critical, and whose
/// the namespace is.
const LOOK: &str = r"
local ns = ARGV[1]
redis.call('SET', ns .. ':store', ARGV[2], 'NX')
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local marks = redis.call('MGET', ns .. ':run_id', ns .. ':generation', ns .. ':online_to',
  ns .. ':critical', ns .. ':store')
return {run, marks[1], marks[2], marks[3], marks[4], marks[5]}";

/// ARGV: namespace, generation, run, online_to, critical, lease time in ms or nothing. A server that
/// was started anew may have forgotten leases that it granted last.
const RENEW: &str = r"
local ns = ARGV[1]
redis.call('MSET', ns .. ':generation', ARGV[2], ns .. ':run_id', ARGV[3],
  ns .. ':online_to', ARGV[4], ns .. ':critical', ARGV[5])
redis.call('DEL', ns .. ':rebuilt')
if ARGV[6] ~= '' then
  local now = redis.call('TIME')
  local from = now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[6]
  redis.call('SET', ns .. ':permits_from', string.format('%d', from))
end
return 'OK'";

/// ARGV: namespace, generation, run, the batch up to which the online store is complete. Nothing is
/// noted in a Redis that lost data meanwhile.
const REBUILT: &str = r"
local ns = ARGV[1]
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
if run ~= ARGV[3] or redis.call('GET', ns .. ':generation') ~= ARGV[2] then
  return 0
end
redis.call('MSET', ns .. ':rebuilt', ARGV[2], ns .. ':online_to', ARGV[4])
return 1";

/// Keys that one step of a wipe looks at.
const WIPE_STEP: usize = 1_000;

/// What the store knows of Redis after a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// The generation that counts from now on.
    pub generation: String,
    /// The server's run.
    pub run_id: String,
    /// What must be put online again: everything of batches after this one.
    pub replay_after: Option<i64>,
}

/// Why the store cannot serve this namespace.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// Redis' word.
    #[error(transparent)]
    Redis(#[from] redis::RedisError),
    /// Two databases behind one queue would each get a part of the data.
    #[error(
        "the namespace {namespace} in Redis belongs to another database ({owner}, this one is {database}): \
         choose another `node.namespace`, or, when that database is gone for good, delete the key \
         {namespace}:store"
    )]
    OtherStore {
        /// The namespace.
        namespace: String,
        /// The database it belongs to.
        owner: String,
        /// This store's database.
        database: String,
    },
}

/// Which features are served online, in a few characters.
#[must_use]
pub fn fingerprint(streams: &[StreamConfig]) -> String {
    let mut hash = Sha256::new();
    for stream in streams {
        hash.update(format!("{:?}", (&stream.name, &stream.critical)));
    }
    format!("{:.16x}", hash.finalize())
}

/// Looks at the marks and, when Redis lost data, sets new ones. What is online is wiped first when
/// all of it has to be put there anew: it may be newer than anything in a DuckDB that was restored,
/// or belong to features that are not served any more.
///
/// # Errors
/// [`LookError`].
pub async fn look(
    connection: &mut ConnectionManager,
    keys: &Keys,
    database: &str,
    last_batch_seq: i64,
    critical: &str,
    lease: Duration,
) -> Result<Look, LookError> {
    type Marks = (String, Option<String>, Option<String>, Option<i64>, Option<String>, String);
    let (run_id, known_run_id, generation, online_to, found_critical, owner): Marks =
        Script::new(LOOK).arg(keys.namespace()).arg(database).invoke_async(connection).await?;
    if owner != database {
        let (namespace, database) = (keys.namespace().to_owned(), database.to_owned());
        return Err(LookError::OtherStore { namespace, owner, database });
    }
    let found = Found {
        run_id: run_id.clone(),
        known_run_id,
        generation: generation.clone(),
        online_to,
        critical: found_critical,
    };
    // Without a generation the rule always renews.
    let known = generation.unwrap_or_default();
    let (generation, replay_after) = match action(&found, last_batch_seq, critical) {
        Action::Keep => (known, None),
        Action::Replay { after_batch_seq } => (known, Some(after_batch_seq)),
        Action::Renew { after_batch_seq: after } => {
            let restarted = found.known_run_id.as_ref().is_some_and(|known| *known != run_id);
            if after == 0 {
                wipe(connection, keys).await?;
            }
            let fresh = Uuid::now_v7().to_string();
            let renew = Script::new(RENEW);
            let mut call = renew.arg(keys.namespace());
            call.arg(&fresh).arg(&run_id).arg(after).arg(critical);
            let put_off = if restarted { lease.as_millis().to_string() } else { String::new() };
            call.arg(put_off);
            let () = call.invoke_async(connection).await?;
            (fresh, (last_batch_seq > after).then_some(after))
        }
    };
    Ok(Look { generation, run_id, replay_after })
}

/// Whether the marks still are what a look found; cheap enough for every second.
///
/// # Errors
/// Redis' word.
pub async fn unchanged(
    connection: &mut ConnectionManager,
    keys: &Keys,
    look: &Look,
) -> redis::RedisResult<bool> {
    const SCRIPT: &str = r"
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
return {run, redis.call('GET', ARGV[1] .. ':generation')}";
    let (run_id, generation): (String, Option<String>) =
        Script::new(SCRIPT).arg(keys.namespace()).invoke_async(connection).await?;
    Ok(run_id == look.run_id && generation.as_deref() == Some(&look.generation))
}

/// Takes everything off the online store. Without a generation nobody writes to it meanwhile, and a
/// wipe that was cut short is done again.
async fn wipe(connection: &mut ConnectionManager, keys: &Keys) -> redis::RedisResult<()> {
    let () = redis::cmd("DEL")
        .arg(keys.generation())
        .arg(keys.rebuilt())
        .arg(keys.promised())
        .query_async(connection)
        .await?;
    for kind in ["entity", "feature"] {
        let pattern = format!("{}:{kind}:*", escape(keys.namespace()));
        let mut cursor = 0u64;
        loop {
            let (next, found): (u64, Vec<Vec<u8>>) = redis::cmd("SCAN")
                .arg(cursor)
                .arg("MATCH")
                .arg(&pattern)
                .arg("COUNT")
                .arg(WIPE_STEP)
                .query_async(connection)
                .await?;
            if !found.is_empty() {
                let () = redis::cmd("UNLINK").arg(found).query_async(connection).await?;
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
    }
    Ok(())
}

/// A namespace as the part of a pattern that stands for itself.
fn escape(namespace: &str) -> String {
    let special = |c: char| matches!(c, '*' | '?' | '[' | ']' | '^' | '\\');
    namespace.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}

/// The online store of this generation is complete up to a batch. `false`: Redis lost data
/// meanwhile, so it is not.
///
/// # Errors
/// Redis' word.
pub async fn note_rebuilt(
    connection: &mut ConnectionManager,
    keys: &Keys,
    look: &Look,
    to_batch_seq: i64,
) -> redis::RedisResult<bool> {
    let script = Script::new(REBUILT);
    let mut call = script.arg(keys.namespace());
    call.arg(&look.generation).arg(&look.run_id).arg(to_batch_seq);
    call.invoke_async(connection).await
}

/// The database that this namespace belongs to; `None` before a store has looked at it.
///
/// # Errors
/// Redis' word.
pub async fn database(
    connection: &mut ConnectionManager,
    keys: &Keys,
) -> redis::RedisResult<Option<String>> {
    redis::cmd("GET").arg(keys.store()).query_async(connection).await
}

/// Whether the online store is complete, so that "not there" means "no such value".
///
/// # Errors
/// Redis' word.
pub async fn is_complete(
    connection: &mut ConnectionManager,
    keys: &Keys,
) -> redis::RedisResult<bool> {
    let (rebuilt, generation): (Option<String>, Option<String>) = redis::cmd("MGET")
        .arg(keys.rebuilt())
        .arg(keys.generation())
        .query_async(connection)
        .await?;
    Ok(generation.is_some() && rebuilt == generation)
}
