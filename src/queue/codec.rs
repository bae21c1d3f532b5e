//! Requests and answers as bytes.

use crate::messages::{
    DeadLetter, NoteScript, QueueReply, QueueRequest, RegisterReplay, RegisterUpload, ReplayHead,
    WriteHeader, WriteRequest, dead_letter_schema, dead_letters_to_arrow, feature_row_schema,
    replayed_letters_schema,
};
use crate::protocol::source::{AdoptAt, OpenRequest, SourceName};
use arrow::{
    array::RecordBatch,
    datatypes::SchemaRef,
    error::ArrowError,
    ipc::{reader::StreamReader, writer::StreamWriter},
};
use redis::{FromRedisValue, Value, streams::StreamId};
use serde::{Deserialize, Serialize};
use std::{io::Cursor, time::Duration};

/// The fields of an entry, in the order of XADD.
pub type Fields = Vec<(&'static str, Vec<u8>)>;

/// An answer with the round that it belongs to.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    /// As the request said.
    pub round: u64,
    /// What the store decided.
    pub reply: QueueReply,
    /// Microseconds for which the store had the request in hand; the rest was spent in Redis.
    #[serde(default)]
    pub held_us: u64,
}

/// An open request as fields.
///
/// # Errors
/// When it is no JSON, which is a defect.
pub fn encode_open(open: &OpenRequest) -> anyhow::Result<Fields> {
    Ok(vec![("kind", b"open".to_vec()), ("head", serde_json::to_vec(open)?)])
}

/// An adoption as fields.
///
/// # Errors
/// When it is no JSON, which is a defect.
pub fn encode_adopt(source: &SourceName, at: AdoptAt) -> anyhow::Result<Fields> {
    Ok(vec![("kind", b"adopt".to_vec()), ("head", serde_json::to_vec(&(source, at))?)])
}

/// A write as fields: part `i` of the header has `rows[i]` and `dead[i]`. The rows of a part with a
/// chunk are empty.
///
/// # Errors
/// When the columns do not fit the schema, which is a defect.
pub fn encode_write(
    header: &WriteHeader,
    rows: &[RecordBatch],
    dead: &[&[DeadLetter]],
) -> anyhow::Result<Fields> {
    let mut fields = vec![
        ("kind", b"write".to_vec()),
        ("head", serde_json::to_vec(header)?),
        ("rows", ipc(&feature_row_schema(), rows)?),
    ];
    if dead.iter().any(|letters| !letters.is_empty()) {
        let batches =
            dead.iter().map(|l| dead_letters_to_arrow(l)).collect::<Result<Vec<_>, _>>()?;
        fields.push(("dead", ipc(&dead_letter_schema(), &batches)?));
    }
    Ok(fields)
}

/// The registration of a replay as fields.
///
/// # Errors
/// When the columns do not fit the schema, which is a defect.
pub fn encode_register(replay: &RegisterReplay) -> anyhow::Result<Fields> {
    let RegisterReplay { replay_id, source, stream, owner, letters } = replay.clone();
    let head = ReplayHead { replay_id, source, stream, owner };
    Ok(vec![
        ("kind", b"register".to_vec()),
        ("head", serde_json::to_vec(&head)?),
        ("rows", ipc(&replayed_letters_schema(), &[letters])?),
    ])
}

/// An event of a stream's script as fields.
///
/// # Errors
/// When it is no JSON, which is a defect.
pub fn encode_note(note: &NoteScript) -> anyhow::Result<Fields> {
    Ok(vec![("kind", b"note".to_vec()), ("head", serde_json::to_vec(note)?)])
}

/// The registration of an upload as fields.
///
/// # Errors
/// When it is no JSON, which is a defect.
pub fn encode_upload(upload: &RegisterUpload) -> anyhow::Result<Fields> {
    Ok(vec![("kind", b"upload".to_vec()), ("head", serde_json::to_vec(upload)?)])
}

fn ipc(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<u8>, ArrowError> {
    let bytes: usize = batches.iter().map(RecordBatch::get_array_memory_size).sum();
    let mut writer = StreamWriter::try_new(Vec::with_capacity(bytes + 1_024), schema)?;
    for batch in batches {
        writer.write(batch)?;
    }
    writer.into_inner()
}

/// Reads an entry: where the answer goes, its round, and what is asked. What cannot be read is
/// [`QueueRequest::Unreadable`], so that it is answered and does not come again for ever.
#[must_use]
pub fn decode_entry(entry: &StreamId) -> (String, u64, QueueRequest) {
    let text = |name: &str| entry.get::<String>(name);
    let reply_to = text("to").unwrap_or_default();
    let round = text("round").and_then(|r| r.parse().ok()).unwrap_or_default();
    let request = decode_request(entry)
        .unwrap_or_else(|e| QueueRequest::Unreadable(format!("entry {}: {e:#}", entry.id)));
    (reply_to, round, request)
}

fn decode_request(entry: &StreamId) -> anyhow::Result<QueueRequest> {
    let bytes = |name: &str| -> anyhow::Result<&[u8]> {
        match entry.map.get(name) {
            Some(Value::BulkString(bytes)) => Ok(bytes),
            _ => anyhow::bail!("the field `{name}` is missing"),
        }
    };
    match bytes("kind")? {
        b"open" => Ok(QueueRequest::Open(serde_json::from_slice(bytes("head")?)?)),
        b"adopt" => {
            let (source, at) = serde_json::from_slice(bytes("head")?)?;
            Ok(QueueRequest::Adopt { source, at })
        }
        b"note" => Ok(QueueRequest::Note(serde_json::from_slice(bytes("head")?)?)),
        b"upload" => Ok(QueueRequest::Upload(serde_json::from_slice(bytes("head")?)?)),
        b"write" => {
            let header: WriteHeader = serde_json::from_slice(bytes("head")?)?;
            let parts = header.parts.len();
            let rows = read_ipc(bytes("rows")?, &feature_row_schema(), parts)?;
            let dead = match bytes("dead") {
                Ok(dead) => read_ipc(dead, &dead_letter_schema(), parts)?,
                Err(_) => vec![RecordBatch::new_empty(dead_letter_schema()); parts],
            };
            Ok(QueueRequest::Write(WriteRequest {
                header,
                again: bytes("again").is_ok(),
                rows,
                dead,
            }))
        }
        b"register" => {
            let ReplayHead { replay_id, source, stream, owner } =
                serde_json::from_slice(bytes("head")?)?;
            let mut letters = read_ipc(bytes("rows")?, &replayed_letters_schema(), 1)?;
            let letters = letters.swap_remove(0);
            Ok(QueueRequest::Register(RegisterReplay { replay_id, source, stream, owner, letters }))
        }
        other => anyhow::bail!("unknown kind {:?}", String::from_utf8_lossy(other)),
    }
}

fn read_ipc(bytes: &[u8], schema: &SchemaRef, parts: usize) -> anyhow::Result<Vec<RecordBatch>> {
    let reader = StreamReader::try_new(Cursor::new(bytes), None)?;
    anyhow::ensure!(reader.schema() == *schema, "the columns are not those of this version");
    let batches = reader.collect::<Result<Vec<_>, _>>()?;
    anyhow::ensure!(batches.len() == parts, "{} batches for {parts} parts", batches.len());
    Ok(batches)
}

/// An answer as bytes.
///
/// # Errors
/// When it is no JSON, which is a defect.
pub fn encode_reply(round: u64, reply: QueueReply, held: Duration) -> serde_json::Result<Vec<u8>> {
    let held_us = u64::try_from(held.as_micros()).unwrap_or(u64::MAX);
    serde_json::to_vec(&Answer { round, reply, held_us })
}

/// Reads an answer.
///
/// # Errors
/// When it is none.
pub fn decode_reply(value: &Value) -> anyhow::Result<Answer> {
    let bytes = Vec::<u8>::from_redis_value_ref(value)?;
    Ok(serde_json::from_slice(&bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        messages::{ChunkFile, PartHeader, Payload, Record, Stage},
        protocol::source::{SourceName, Token},
    };
    use std::collections::HashMap;

    fn entry(fields: Fields) -> StreamId {
        let mut map: HashMap<String, Value> =
            fields.into_iter().map(|(k, v)| (k.to_owned(), Value::BulkString(v))).collect();
        map.insert("to".into(), Value::BulkString(b"list".to_vec()));
        map.insert("round".into(), Value::BulkString(b"7".to_vec()));
        StreamId { id: "1-1".into(), map, ..StreamId::default() }
    }

    fn header(parts: usize) -> WriteHeader {
        let part = |i: usize| PartHeader {
            source: SourceName::kafka("s", "t", i as i32),
            token: Token::after(0),
            from: 0,
            to: 1,
            n_in: 1,
            n_kept: 0,
            n_dead: 1,
            n_filtered: 0,
            n_rows: 0,
            chunk: None,
        };
        WriteHeader {
            node: "n".into(),
            batch_id: uuid::Uuid::nil(),
            transform: "x".into(),
            script_sha256: "h".into(),
            generation: "g".into(),
            as_known: crate::config::AsKnown::Arrival,
            parts: (0..parts).map(part).collect(),
        }
    }

    #[test]
    fn a_write_survives_the_way_with_its_parts_apart() {
        let record = Record {
            position: 3,
            timestamp_us: 0,
            event_id: None,
            payload: Payload::Json(&[0xff]),
        };
        let letter = DeadLetter::with_reason(&record, None, Stage::Decode, "r".into(), "d".into());
        let empty = RecordBatch::new_empty(feature_row_schema());
        let sent = header(2);
        let fields = encode_write(&sent, &[empty.clone(), empty], &[&[], &[letter]]).unwrap();
        let (to, round, request) = decode_entry(&entry(fields));
        assert_eq!((to.as_str(), round), ("list", 7));
        let QueueRequest::Write(write) = request else { panic!("{request:?}") };
        assert_eq!(write.header, sent);
        assert_eq!((write.dead[0].num_rows(), write.dead[1].num_rows()), (0, 1));
    }

    #[test]
    fn a_registration_survives_the_way() {
        use crate::messages::LetterToReplay;
        let letter = LetterToReplay {
            source_no: 4,
            pos: 9,
            payload: Some(vec![0xff]),
            recorded_at_us: Some(5),
        };
        let sent = RegisterReplay {
            replay_id: "x".into(),
            source: SourceName::replay("s", "x"),
            stream: "s".into(),
            owner: "n".into(),
            letters: LetterToReplay::to_arrow(&[letter]).unwrap(),
        };
        let (_, _, request) = decode_entry(&entry(encode_register(&sent).unwrap()));
        let QueueRequest::Register(read) = request else { panic!("{request:?}") };
        assert_eq!(
            (read.letters, read.source, read.owner),
            (sent.letters, sent.source, sent.owner)
        );
        assert_eq!((read.replay_id, read.stream), (sent.replay_id, sent.stream));
    }

    #[test]
    fn an_upload_survives_the_way() {
        let sent = RegisterUpload {
            upload_id: "u".into(),
            idempotency_key: "k \u{e4}".into(),
            stream: "s".into(),
            owner: "n".into(),
            sha256: "ab".into(),
            filename: "../x".into(),
            format: "csv".into(),
            compression: "none".into(),
            size: u64::MAX,
            rows: 3,
            adopt: true,
        };
        let (_, _, request) = decode_entry(&entry(encode_upload(&sent).unwrap()));
        let QueueRequest::Upload(read) = request else { panic!("{request:?}") };
        assert_eq!(read, sent);
    }

    #[test]
    fn a_chunk_is_named_in_the_header_only_where_there_is_one() {
        let mut sent = header(2);
        assert!(!serde_json::to_string(&sent).unwrap().contains("chunk"), "as before");
        sent.parts[1].chunk = Some(ChunkFile { name: "a.parquet".into(), sha256: "ab".into() });
        let empty = RecordBatch::new_empty(feature_row_schema());
        let fields = encode_write(&sent, &[empty.clone(), empty], &[&[], &[]]).unwrap();
        let (_, _, request) = decode_entry(&entry(fields));
        let QueueRequest::Write(write) = request else { panic!("{request:?}") };
        assert_eq!(write.header, sent);
    }

    #[test]
    fn what_cannot_be_read_is_said_so_rather_than_dropped() {
        for fields in [
            vec![],
            vec![("kind", b"write".to_vec()), ("head", b"{".to_vec())],
            vec![
                ("kind", b"write".to_vec()),
                ("head", serde_json::to_vec(&header(1)).unwrap()),
                ("rows", b"x".to_vec()),
            ],
            vec![("kind", b"dance".to_vec())],
        ] {
            let (_, _, request) = decode_entry(&entry(fields));
            assert!(matches!(request, QueueRequest::Unreadable(_)), "{request:?}");
        }
    }
}
