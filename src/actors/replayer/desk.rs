//! Where a replay is asked for: which letters it would contain, and having the store fix that.

use super::letters::{self, Candidate, Filter, MOST_REREAD, MOST_REREAD_BYTES};
use crate::{
    actors::redis_queue,
    config::Config,
    decode::{MAX_RECORD_BYTES, reasons},
    kafka::Rereader,
    messages::{LetterToReplay, QueueReply, RegisterReplay},
    protocol::source::SourceName,
    queue::{Keys, RedisLink, encode_register},
};
use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::Notify;
use uuid::Uuid;

/// How long the store may take to write a replay down.
const REGISTERING: Duration = Duration::from_secs(60);
/// Refused letters that an answer lists one by one; the rest are counted.
const LISTED: usize = 1_000;

/// A letter that is not replayed, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Its source.
    pub source: String,
    /// Its position there.
    pub pos: i64,
    /// Why it died.
    pub reason: String,
    /// Why replaying it cannot help, or cannot be done.
    pub why: String,
}

/// One replay: letters of one stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// Its id; `None` when it was only looked at.
    pub replay_id: Option<String>,
    /// Which stream.
    pub stream: String,
    /// Letters that it contains.
    pub letters: i64,
}

/// The answer to the wish to replay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// One replay a stream.
    pub replays: Vec<Registered>,
    /// Letters that are not replayed; the first of them when they are many.
    pub refused: Vec<Refused>,
    /// How many are not replayed.
    pub refused_total: usize,
    /// There are more letters than one replay takes: ask again.
    pub more: bool,
}

/// Plans replays and has them registered. One a `process` node.
pub struct ReplayDesk {
    config: Arc<Config>,
    keys: Keys,
    redis: RedisLink,
    /// Tells the Replayer that there is something to do.
    pub(super) nudge: Notify,
}

/// What a look at the letters gave.
#[derive(Default)]
struct Plan {
    streams: BTreeMap<String, Vec<LetterToReplay>>,
    refused: Vec<Refused>,
    more: bool,
}

impl ReplayDesk {
    /// A desk whose replays this node owns.
    #[must_use]
    pub fn new(config: Arc<Config>, redis: RedisLink) -> Self {
        let keys = Keys::new(&config.node.namespace);
        Self { config, keys, redis, nudge: Notify::new() }
    }

    /// Replays the letters that `filter` names and no replay contains yet; with `dry_run` it only
    /// says what would be done. When this returns, the replays are fixed in DuckDB and go on
    /// whatever happens.
    ///
    /// # Errors
    /// When the store does not answer. Some of the replays may be registered then.
    pub async fn replay(&self, filter: &Filter, dry_run: bool) -> anyhow::Result<Outcome> {
        let Plan { streams, mut refused, more } = self.plan(filter).await?;
        let mut replays = Vec::with_capacity(streams.len());
        for (stream, letters) in streams {
            let n = letters.len() as i64;
            replays.push(if dry_run {
                Registered { replay_id: None, stream, letters: n }
            } else {
                self.register(stream, &letters).await?
            });
        }
        if !dry_run {
            self.nudge.notify_one();
        }
        let refused_total = refused.len();
        refused.truncate(LISTED);
        Ok(Outcome { replays, refused, refused_total, more })
    }

    async fn plan(&self, filter: &Filter) -> anyhow::Result<Plan> {
        let (candidates, more) =
            letters::candidates(&self.redis, &self.keys, filter, MAX_RECORD_BYTES).await?;
        let mut plan = Plan { more, ..Plan::default() };
        let (mut whole, mut incomplete, mut replayed) = (Vec::new(), Vec::new(), Vec::new());
        for (order, candidate) in candidates.into_iter().enumerate() {
            match self.judge(&candidate) {
                Err(why) => plan.refused.push(candidate.refused(why)),
                Ok(stream) if candidate.is_whole() => {
                    whole.push((order, stream, candidate.letter(None, None)));
                }
                Ok(stream) if candidate.source().is_replay() => {
                    replayed.push((order, stream, candidate));
                }
                Ok(stream) => incomplete.push((order, stream, candidate)),
            }
        }
        for part in [&mut incomplete, &mut replayed] {
            plan.more |= part.len() > MOST_REREAD;
            part.truncate(MOST_REREAD);
        }
        for (order, stream, candidate) in replayed {
            let (source, place) = (&candidate.source, candidate.pos);
            match letters::replayed_payload(&self.redis, &self.keys, source, place).await? {
                Some(payload) => {
                    whole.push((order, stream, candidate.letter(Some(payload), None)));
                }
                None => plan.refused.push(candidate.refused("its record was not kept".into())),
            }
        }
        if !incomplete.is_empty() {
            let config = self.config.clone();
            let reread =
                tokio::task::spawn_blocking(move || complete(&config, incomplete)).await??;
            plan.more |= reread.more;
            plan.refused.extend(reread.refused);
            whole.extend(reread.letters);
            // Letters keep their order, wherever their bytes came from.
            whole.sort_by_key(|(order, ..)| *order);
        }
        for (_, stream, letter) in whole {
            plan.streams.entry(stream).or_default().push(letter);
        }
        Ok(plan)
    }

    /// The stream whose script a letter goes through.
    fn judge(&self, candidate: &Candidate) -> Result<String, String> {
        let source = &candidate.source;
        let Some((kind, rest)) = source.split_once(':') else {
            return Err("its source has no kind".into());
        };
        if kind == "writes" {
            return Err("a plain write passes no script: its client sends a better one".into());
        }
        let name = rest.split('/').next().unwrap_or_default();
        if !self.config.streams.iter().any(|s| s.name == name) {
            return Err(format!("there is no stream `{name}` any more"));
        }
        if candidate.reason == reasons::NULL_PAYLOAD {
            return Err("there is nothing in it to replay".into());
        }
        if candidate.raw_len.is_some_and(|n| n > MAX_RECORD_BYTES as i64) {
            return Err(format!("no record of more than {MAX_RECORD_BYTES} bytes is decoded"));
        }
        Ok(name.to_owned())
    }

    async fn register(
        &self,
        stream: String,
        letters: &[LetterToReplay],
    ) -> anyhow::Result<Registered> {
        let replay_id = Uuid::now_v7().to_string();
        let replay = RegisterReplay {
            source: SourceName::replay(&stream, &replay_id),
            replay_id: replay_id.clone(),
            stream: stream.clone(),
            owner: self.config.node_name(),
            letters: LetterToReplay::to_arrow(letters)?,
        };
        let fields = encode_register(&replay)?;
        let reply = redis_queue::request(&self.redis, &self.keys, fields, REGISTERING)
            .await
            .with_context(|| format!("replay {replay_id} is not known to be written down"))?;
        match reply {
            QueueReply::Registered { letters } => {
                Ok(Registered { replay_id: Some(replay_id), stream, letters })
            }
            other => bail!("the store does not take the replay: {other:?}"),
        }
    }
}

type Ordered<T> = (usize, String, T);

#[derive(Default)]
struct Completed {
    letters: Vec<Ordered<LetterToReplay>>,
    refused: Vec<Refused>,
    more: bool,
}

/// Reads again what the letters have not kept. Blocks.
fn complete(config: &Config, incomplete: Vec<Ordered<Candidate>>) -> anyhow::Result<Completed> {
    let reader = Rereader::new(&config.kafka)?;
    let mut done = Completed::default();
    let mut bytes = 0;
    for (order, stream, candidate) in incomplete {
        if bytes >= MOST_REREAD_BYTES {
            done.more = true;
            break;
        }
        match read_again(&reader, &candidate) {
            Ok((payload, at)) => {
                bytes += payload.len();
                done.letters.push((order, stream, candidate.letter(Some(payload), at)));
            }
            Err(why) => done.refused.push(candidate.refused(why)),
        }
    }
    Ok(done)
}

/// The whole record of a letter, with its timestamp.
fn read_again(reader: &Rereader, candidate: &Candidate) -> Result<(Vec<u8>, Option<i64>), String> {
    let name = candidate.source();
    let Some((topic, partition)) = name.kafka_partition() else {
        return Err("only a part of it was kept, and its source cannot be read again".into());
    };
    if !candidate.is_current {
        return Err("only a part of it was kept, and its log was replaced by another".into());
    }
    let record = reader.read(topic, partition, candidate.pos)?;
    let payload = record.payload.ok_or("the log holds a null payload there")?;
    let hash = format!("{:x}", Sha256::digest(&payload));
    if candidate.raw_sha256.as_ref().is_some_and(|known| *known != hash) {
        return Err("the log holds another record there: the hashes differ".into());
    }
    if payload.len() > MAX_RECORD_BYTES {
        return Err(format!("no record of more than {MAX_RECORD_BYTES} bytes is decoded"));
    }
    let at = record.timestamp_us.or(candidate.recorded_at_us);
    if at.is_none() {
        return Err("its time is not known".into());
    }
    Ok((payload, at))
}
