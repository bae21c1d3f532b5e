//! What is done with the stream of plain writes: reading, answering, quarantine, ids.

use super::{
    super::{
        reads, rows,
        server::{BLOCK, CONSUMER},
    },
    METER, Reading,
    batch::Effect,
};
use crate::{
    protocol::{
        plain_writes::EntryId,
        source::{Position, SourceName, Token},
    },
    queue::{Keys, RedisLink, STORE_GROUP},
};
use redis::{ErrorKind, RedisError, RedisResult, Script, Value, aio::ConnectionManager};
use std::collections::HashMap;

/// Entries that one read takes at first: their size is not known yet.
pub const FIRST_COUNT: usize = 64;
/// Entries that one read takes at most.
const MOST: usize = 1_000;
/// Bytes that one read should take about; a client may send a row of a megabyte a thousand times.
const BYTES: usize = 4 << 20;
/// Seconds that an answer waits to be fetched.
const ANSWER_TTL_S: i64 = 3_600;

/// One entry of the stream.
#[derive(Debug)]
pub struct Entry {
    /// Its id.
    pub id: EntryId,
    /// The row.
    pub json: Option<Vec<u8>>,
    /// The list for the answer.
    pub reply: Option<Vec<u8>>,
    /// It was read once and then deleted by somebody else.
    pub deleted: bool,
    /// All fields, as they came.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
}

/// How many entries the next read takes, after one of `found`.
pub fn next_count(count: usize, found: &[Entry]) -> usize {
    let bytes: usize = found.iter().flat_map(|e| &e.fields).map(|(k, v)| k.len() + v.len()).sum();
    if bytes > BYTES { (count / 4).max(1) } else { (count * 2).min(MOST) }
}

/// Reads entries, own pending ones or new ones; for the latter it waits a moment.
///
/// # Errors
/// Redis' word, for instance that the group is gone.
pub async fn read(
    connection: &mut Reading,
    stream: &str,
    pending: bool,
    count: usize,
) -> RedisResult<Vec<Entry>> {
    let value: Value = redis::cmd("XREADGROUP")
        .arg("GROUP")
        .arg(STORE_GROUP)
        .arg(CONSUMER)
        .arg("COUNT")
        .arg(count)
        .arg("BLOCK")
        .arg(BLOCK.as_millis() as u64)
        .arg("STREAMS")
        .arg(stream)
        .arg(if pending { "0" } else { ">" })
        .query_async(connection)
        .await?;
    parse(value).ok_or_else(|| {
        RedisError::from((ErrorKind::Parse, "XREADGROUP gave something that is no list of entries"))
    })
}

/// Reads the answer of XREADGROUP by bytes: a client may use any bytes as the name of a field, and
/// one such entry must not make all of them unreadable.
fn parse(value: Value) -> Option<Vec<Entry>> {
    let streams = match value {
        Value::Nil => return Some(Vec::new()),
        Value::Array(streams) => streams,
        Value::Map(streams) => {
            streams.into_iter().map(|(name, ids)| Value::Array(vec![name, ids])).collect()
        }
        _ => return None,
    };
    let mut entries = Vec::new();
    for stream in streams {
        let Value::Array(mut stream) = stream else { return None };
        let Some(Value::Array(ids)) = stream.pop() else { return None };
        for entry in ids {
            let Value::Array(parts) = entry else { return None };
            let mut parts = parts.into_iter();
            let Some(Value::BulkString(id)) = parts.next() else { return None };
            let id = EntryId::parse(std::str::from_utf8(&id).ok()?)?;
            entries.push(parse_entry(id, parts.next())?);
        }
    }
    Some(entries)
}

fn parse_entry(id: EntryId, fields: Option<Value>) -> Option<Entry> {
    let mut entry = Entry { id, json: None, reply: None, deleted: false, fields: Vec::new() };
    let Some(Value::Array(values)) = fields else {
        entry.deleted = matches!(fields, None | Some(Value::Nil));
        return entry.deleted.then_some(entry);
    };
    let mut values = values.into_iter();
    while let (Some(name), Some(value)) = (values.next(), values.next()) {
        let (Value::BulkString(name), Value::BulkString(value)) = (name, value) else {
            return None;
        };
        // The first of a name counts, as in the order of the entry.
        match name.as_slice() {
            b"json" if entry.json.is_none() => entry.json = Some(value.clone()),
            b"reply" if entry.reply.is_none() && !value.is_empty() => {
                entry.reply = Some(value.clone());
            }
            _ => {}
        }
        entry.fields.push((name, value));
    }
    Some(entry)
}

/// How an entry ends.
#[derive(Debug)]
pub struct Answer {
    entry: Entry,
    kind: Kind,
    duplicate: bool,
}

#[derive(Debug)]
enum Kind {
    /// There is nothing to say.
    Nothing,
    Decided(Effect),
    Quarantined {
        reason: &'static str,
        detail: String,
    },
}

impl Answer {
    /// The store has its effect.
    pub fn of(entry: Entry, effect: Effect) -> Self {
        Self { entry, kind: Kind::Decided(effect), duplicate: false }
    }

    /// The store had its effect before.
    pub fn into_duplicate(self) -> Self {
        Self { duplicate: true, ..self }
    }

    /// It only leaves the stream.
    pub fn nothing(entry: Entry) -> Self {
        Self { entry, kind: Kind::Nothing, duplicate: false }
    }

    /// It can never be stored, and is kept aside.
    pub fn quarantined(entry: Entry, reason: &'static str, detail: String) -> Self {
        Self { entry, kind: Kind::Quarantined { reason, detail }, duplicate: false }
    }

    /// The entry's id.
    pub fn id(&self) -> EntryId {
        self.entry.id
    }

    /// Whether it is kept aside.
    pub fn is_quarantined(&self) -> bool {
        matches!(self.kind, Kind::Quarantined { .. })
    }

    fn text(&self) -> Option<String> {
        let id = self.entry.id.to_string();
        let refused = |reason: &str, detail: &str| {
            serde_json::json!({
                "id": id, "ok": false, "reason": reason, "detail": detail, "duplicate": self.duplicate,
            })
        };
        let answer = match &self.kind {
            Kind::Nothing => return None,
            Kind::Decided(Effect::Row) => {
                serde_json::json!({ "id": id, "ok": true, "duplicate": self.duplicate })
            }
            Kind::Decided(Effect::Dead { reason, detail }) => refused(reason, detail),
            Kind::Quarantined { reason, detail } => refused(reason, detail),
        };
        Some(answer.to_string())
    }
}

/// Answers entries and takes them off the stream, in one step.
///
/// # Errors
/// Redis' word; then nothing of it happened, or all of it.
pub async fn answer(
    connection: &mut ConnectionManager,
    keys: &Keys,
    answers: Vec<Answer>,
) -> RedisResult<()> {
    let script = Script::new(include_str!("answer.lua"));
    let texts: Vec<(&[u8], String)> =
        answers.iter().filter_map(|a| Some((a.entry.reply.as_deref()?, a.text()?))).collect();
    let mut call = script.prepare_invoke();
    call.arg(keys.writes()).arg(STORE_GROUP).arg(ANSWER_TTL_S).arg(texts.len());
    for (list, text) in &texts {
        call.arg(*list).arg(text);
    }
    for answer in &answers {
        call.arg(answer.entry.id.to_string());
    }
    // Loaded first: in a transaction a missing script would cost the rest of it.
    script.load_async(connection).await?;
    let mut pipeline = redis::pipe();
    pipeline.atomic();
    for Answer { entry, kind, .. } in &answers {
        if let Kind::Quarantined { reason, detail } = kind {
            let id = entry.id.to_string();
            METER.error("quarantined");
            tracing::error!(id, reason, detail, "a plain write was quarantined");
            let add = pipeline.cmd("XADD").arg(keys.quarantine()).arg("*");
            add.arg("from").arg(keys.writes()).arg("id").arg(id);
            add.arg("reason").arg(*reason).arg("detail").arg(detail);
            for (name, value) in &entry.fields {
                add.arg(name.as_slice()).arg(value.as_slice());
            }
            add.ignore();
        }
    }
    pipeline.invoke_script(&call);
    let (lost,): (u64,) = pipeline.query_async(connection).await?;
    if lost > 0 {
        tracing::warn!(lost, "answers to plain writes found no list under the name that they gave");
    }
    Ok(())
}

/// The token that may write online, as the answer to an open over the queue puts it.
///
/// # Errors
/// Redis' word.
pub async fn put_token(
    connection: &mut ConnectionManager,
    keys: &Keys,
    source: &SourceName,
    token: Token,
) -> RedisResult<()> {
    let mut put = redis::cmd("HSET");
    put.arg(keys.tokens()).arg(source.0.as_ref()).arg(token.to_string());
    put.query_async(connection).await
}

/// Makes every id to come greater than `last`.
///
/// # Errors
/// Redis' word.
pub async fn forward(
    connection: &mut ConnectionManager,
    stream: &str,
    last: EntryId,
) -> RedisResult<()> {
    let script = Script::new(include_str!("forward.lua"));
    let moved: bool =
        script.key(stream).arg(last.ms).arg(last.seq).invoke_async(connection).await?;
    if moved {
        tracing::info!(stream, %last, "the stream goes on after the store's position");
    }
    Ok(())
}

/// Takes the stream's last id back to `floor` after an id that no good one can follow; `false` when
/// the stream is not empty.
///
/// # Errors
/// Redis' word.
pub async fn mend(
    connection: &mut ConnectionManager,
    stream: &str,
    floor: Option<EntryId>,
) -> RedisResult<bool> {
    let floor = floor.unwrap_or(EntryId { ms: 0, seq: 1 }).to_string();
    let script = Script::new(include_str!("mend.lua"));
    script.key(stream).arg(STORE_GROUP).arg(floor).invoke_async(connection).await
}

/// What DuckDB holds at these positions.
///
/// # Errors
/// When it cannot be asked.
pub async fn stored(
    redis: &RedisLink,
    keys: &Keys,
    source_no: i32,
    positions: &[Position],
) -> anyhow::Result<HashMap<Position, Effect>> {
    let list = positions.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let sql = format!(
        "SELECT pos, NULL::VARCHAR AS reason, NULL::VARCHAR AS detail FROM features_table
         WHERE source_no = {source_no} AND pos IN ({list})
         UNION ALL
         SELECT pos, reason, detail FROM dead_letters
         WHERE source_no = {source_no} AND pos IN ({list})"
    );
    let mut effects = HashMap::new();
    for row in rows(&reads::select(redis, keys, sql).await?) {
        let effect = match row.text(1) {
            None => Effect::Row,
            Some(reason) => Effect::Dead { reason: reason.to_owned(), detail: row.owned(2) },
        };
        effects.insert(row.int(0).unwrap_or_default(), effect);
    }
    Ok(effects)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(bytes: &[u8]) -> Value {
        Value::BulkString(bytes.to_vec())
    }

    fn reply(entries: Vec<Value>) -> Value {
        Value::Array(vec![Value::Array(vec![bulk(b"ns:writes"), Value::Array(entries)])])
    }

    fn entry(id: &str, fields: &[&[u8]]) -> Value {
        let fields = fields.iter().map(|f| bulk(f)).collect();
        Value::Array(vec![bulk(id.as_bytes()), Value::Array(fields)])
    }

    #[test]
    fn any_bytes_can_be_read() {
        let found = parse(reply(vec![
            entry("1-0", &[b"json", b"{}", b"reply", b"list"]),
            entry("1-1", &[b"\xff\xfe", b"\x00", b"json", b"\xff", b"json", b"second"]),
            entry("1-2", &[b"reply", b""]),
            Value::Array(vec![bulk(b"1-3"), Value::Nil]),
            entry("18446744073709551615-18446744073709551615", &[b"json", b"{}"]),
        ]))
        .unwrap();
        assert_eq!(found[0].json.as_deref(), Some(b"{}".as_slice()));
        assert_eq!(found[0].reply.as_deref(), Some(b"list".as_slice()));
        assert_eq!(found[1].json.as_deref(), Some(b"\xff".as_slice()), "the first counts");
        assert_eq!(found[1].fields.len(), 3, "all are kept");
        assert_eq!((found[2].json.is_none(), found[2].reply.is_none()), (true, true));
        let deleted: Vec<bool> = found.iter().map(|e| e.deleted).collect();
        assert_eq!(deleted, [false, false, false, true, false]);
        assert!(found[4].id.position().is_err());
    }

    #[test]
    fn an_answer_that_is_none_is_an_error_rather_than_nothing() {
        assert!(parse(Value::Nil).unwrap().is_empty());
        assert!(parse(Value::Int(3)).is_none());
        assert!(parse(reply(vec![Value::Int(3)])).is_none());
        assert!(parse(reply(vec![entry("nonsense", &[])])).is_none());
        assert!(parse(reply(vec![entry("1-1", &[b"json"])])).unwrap()[0].json.is_none());
    }

    #[test]
    fn batches_grow_with_the_stream_and_shrink_with_the_rows() {
        let of = |bytes: usize| Entry {
            id: EntryId { ms: 1, seq: 0 },
            json: None,
            reply: None,
            deleted: false,
            fields: vec![(Vec::new(), vec![0; bytes])],
        };
        assert_eq!(next_count(64, &[of(10)]), 128);
        assert_eq!(next_count(MOST, &[of(10)]), MOST);
        assert_eq!(next_count(64, &[of(BYTES), of(1)]), 16);
        assert_eq!(next_count(1, &[of(BYTES + 1)]), 1);
    }

    #[test]
    fn answers_say_what_became_of_the_entry() {
        let entry = || Entry {
            id: EntryId { ms: 5, seq: 6 },
            json: None,
            reply: None,
            deleted: false,
            fields: Vec::new(),
        };
        let text = |answer: Answer| -> serde_json::Value {
            serde_json::from_str(&answer.text().unwrap()).unwrap()
        };
        let ok = text(Answer::of(entry(), Effect::Row));
        assert_eq!(ok, serde_json::json!({"id": "5-6", "ok": true, "duplicate": false}));
        assert_eq!(text(Answer::of(entry(), Effect::Row).into_duplicate())["duplicate"], true);
        let dead = Effect::Dead { reason: "wrong_type".into(), detail: "d".into() };
        let dead = text(Answer::of(entry(), dead));
        assert_eq!((&dead["ok"], &dead["reason"]), (&false.into(), &"wrong_type".into()));
        let aside = text(Answer::quarantined(entry(), "id_in_the_past", "d".into()));
        assert_eq!((&aside["ok"], &aside["reason"]), (&false.into(), &"id_in_the_past".into()));
        assert!(Answer::nothing(entry()).text().is_none());
    }
}
