use super::*;
use crate::{
    config::StreamConfig,
    decode::{Decoded, Decoder},
    generate::{Fate, Mix, Replay, ReplayOptions},
    messages::{Record, Records},
};
use std::{collections::BTreeMap, sync::Arc};
use uuid::Uuid;

const NOW_MS: u64 = 1_760_000_000_123;

/// Enough of everything that few events show every sort.
fn maker(stream: Builtin) -> EventMaker {
    let mix = Mix { late: 0.1, duplicate: 0.1, malformed: 0.4, future: 0.05, ..Mix::default() };
    EventMaker::new(stream, 42, &mix)
}

fn ids(count: u64) -> Vec<EventId> {
    (0..count).map(|seq| EventId::new(NOW_MS, 77, 4, seq)).collect()
}

/// The rows of a file as the payloads that a node makes of them, in their order.
fn payloads(file: &EventFile, format: FileFormat) -> Vec<Vec<u8>> {
    match format {
        FileFormat::Json => {
            let text = std::str::from_utf8(&file.bytes).unwrap();
            let whole: Vec<Value> = serde_json::from_str(text).unwrap();
            let rows = text.trim_end().strip_prefix("[\n").unwrap().strip_suffix("\n]").unwrap();
            let rows: Vec<_> = rows.split(",\n").map(|row| row.as_bytes().to_vec()).collect();
            assert_eq!(rows.len(), whole.len());
            rows
        }
        FileFormat::Parquet => {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("a.parquet");
            std::fs::write(&path, &file.bytes).unwrap();
            let mut replay = Replay::open(&path, &ReplayOptions::default()).unwrap();
            let mut payloads = Vec::new();
            while let Some(rows) = replay.next_batch(1_000) {
                payloads.extend(rows.unwrap().into_iter().map(|row| row.payload));
            }
            payloads
        }
    }
}

/// Decoded as they are on a topic when `header` is given, else by the id in their fields.
fn decoded(stream: Builtin, payloads: &[(Option<Uuid>, Option<Vec<u8>>)]) -> Decoded {
    let config = StreamConfig::shipped().into_iter().find(|s| s.name == stream.name()).unwrap();
    let mut records = Records::default();
    for (position, (event_id, payload)) in payloads.iter().enumerate() {
        records.push(Record {
            position: position as i64,
            timestamp_us: NOW_MS as i64 * 1_000,
            event_id: *event_id,
            payload: payload.as_deref().into(),
        });
    }
    Decoder::new(Arc::new(config)).decode(&[&[records]], NOW_MS as i64 * 1_000).unwrap()
}

#[test]
fn a_file_has_the_same_events_as_a_topic() {
    for stream in Builtin::ALL {
        for format in [FileFormat::Json, FileFormat::Parquet] {
            let maker = maker(stream);
            let file = maker.file(format, ids(3_000)).unwrap();
            let in_file: Vec<_> =
                payloads(&file, format).into_iter().map(|payload| (None, Some(payload))).collect();
            assert_eq!(file.rows(), in_file.len() as u64);
            let on_topic: Vec<_> = file
                .events
                .iter()
                .flat_map(|(id, times)| repeat_n(maker.make(*id), usize::from(*times)))
                .map(|event| (Some(event.id.uuid()), event.payload))
                .collect();
            let (file, topic) = (decoded(stream, &in_file), decoded(stream, &on_topic));
            assert_eq!(file.batch, topic.batch, "{stream:?} {format:?}");
            assert_eq!(file.event_ids, topic.event_ids);
            assert_eq!(file.created_at_us, topic.created_at_us);
            assert_eq!(file.positions, topic.positions);
            let told = |decoded: &Decoded| -> Vec<_> {
                decoded.dead[0].iter().map(|l| (l.pos, l.event_id, l.reason.clone())).collect()
            };
            assert_eq!(told(&file), told(&topic));
            assert!(file.batch.num_rows() > 1_500);
            assert!(file.dead[0].len() > 100);
        }
    }
}

#[test]
fn what_a_file_leaves_out_is_malformed_and_cannot_be_said() {
    for stream in Builtin::ALL {
        for format in [FileFormat::Json, FileFormat::Parquet] {
            let maker = maker(stream);
            let file = maker.file(format, ids(3_000)).unwrap();
            let said: BTreeMap<EventId, u8> = file.events.iter().copied().collect();
            assert_eq!(said.len(), file.events.len());
            let mut reasons = BTreeMap::<&str, bool>::new();
            for id in ids(3_000) {
                let event = maker.make(id);
                match (said.get(&id), event.fate) {
                    (Some(times), _) if *times != 1 + u8::from(event.duplicate) => {
                        panic!("{id} stands {times} times")
                    }
                    (Some(_), Fate::Dead { reason }) => *reasons.entry(reason).or_default() = true,
                    (Some(_), _) => {}
                    (None, Fate::Dead { reason }) => {
                        reasons.entry(reason).or_default();
                    }
                    (None, fate) => panic!("{id} is left out, though it is {fate:?}"),
                }
            }
            let said = |reason: &str| reasons.get(reason).copied();
            assert_eq!(said("missing_entity"), Some(true));
            assert_eq!(said("missing_event_timestamp"), Some(true));
            assert_eq!(said("future_timestamp"), Some(true));
            assert_eq!(said("null_payload"), Some(false));
            assert_eq!(said("invalid_utf8"), Some(false));
            assert_eq!(said("number_out_of_range"), Some(false));
            let typed = format == FileFormat::Parquet;
            assert_eq!(said("wrong_type"), Some(!typed));
            assert_eq!(said("invalid_timestamp"), Some(!typed));
        }
    }
}

#[test]
fn a_file_is_a_pure_function_of_its_ids() {
    for format in [FileFormat::Json, FileFormat::Parquet] {
        let bytes = |ids| maker(Builtin::Clicks).file(format, ids).unwrap().bytes;
        assert_eq!(bytes(ids(500)), bytes(ids(500)));
        assert_ne!(bytes(ids(500)), bytes(ids(501)));
        assert!(!bytes(Vec::new()).is_empty(), "a file without rows is a file");
    }
}
