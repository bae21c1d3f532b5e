//! The same rows in every format, and files that are none.

use super::{
    hostile::makers::{BASE_US, SampleRow, file, frame, parquet, rows},
    *,
};
use crate::decode::{Decoded, Decoder};
use polars::prelude::{IntoColumn, NamedFrom, Series};
use proptest::prelude::*;
use std::path::PathBuf;
use tempfile::TempDir;

const NOW: i64 = BASE_US + 60_000_000;
const LIMITS: FileLimits = FileLimits {
    max_decompressed_bytes: 1 << 30,
    max_ratio: 250,
    max_rows: 1_000_000_000,
    max_columns: 2_000,
    check_memory_bytes: 2 << 30,
};

fn stream() -> StreamConfig {
    StreamConfig::shipped().remove(0)
}

fn kinds() -> impl Iterator<Item = FileKind> {
    FileFormat::ALL.into_iter().flat_map(|format| {
        Compression::ALL.into_iter().map(move |compression| FileKind { format, compression })
    })
}

fn plain(format: FileFormat) -> FileKind {
    FileKind { format, compression: Compression::None }
}

fn saved(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn open(path: &Path, kind: FileKind) -> FileReader {
    FileReader::open(path, kind, &stream(), &LIMITS, BASE_US).unwrap()
}

fn chunks(reader: &mut FileReader, most: usize) -> Vec<Records> {
    std::iter::from_fn(|| reader.next(most).unwrap()).collect()
}

/// Checks the file and decodes it whole.
fn decoded(kind: FileKind, bytes: &[u8]) -> Decoded {
    let (folder, path) = saved(bytes);
    let checked = check(&path, kind, &stream(), &LIMITS).unwrap();
    let chunks = chunks(&mut open(&path, kind), 123);
    assert_eq!(chunks.iter().map(Records::len).sum::<usize>() as u64, checked.rows, "{kind}");
    let positions = chunks.iter().flat_map(Records::iter).map(|record| record.position);
    assert!(positions.eq(0..checked.rows as i64), "{kind}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no copy is left");
    Decoder::new(Arc::new(stream())).decode(&[&chunks], NOW).unwrap()
}

fn assert_same(a: &Decoded, b: &Decoded, what: &str) {
    assert_eq!(a.batch, b.batch, "{what}");
    assert_eq!(a.positions, b.positions, "{what}");
    assert_eq!(a.event_ids, b.event_ids, "{what}");
    assert_eq!(a.created_at_us, b.created_at_us, "{what}");
    let dead =
        |d: &Decoded| d.dead[0].iter().map(|l| (l.pos, l.reason.clone())).collect::<Vec<_>>();
    assert_eq!(dead(a), dead(b), "{what}");
}

#[test]
fn every_format_and_compression_gives_the_same_columns() {
    let rows = rows(1_000);
    let expected = decoded(plain(FileFormat::Ndjson), &file(plain(FileFormat::Ndjson), &rows));
    assert_eq!((expected.positions.len(), expected.dead[0].len()), (1_000, 0));
    for kind in kinds() {
        assert_same(&decoded(kind, &file(kind, &rows)), &expected, &kind.to_string());
    }
    // Other ways to have the same in Parquet: text for instants, nanoseconds, one row group.
    let mut other = frame(&rows);
    let texts: Vec<String> = rows.iter().map(instant_text).collect();
    other.replace("validated_at", Series::new("validated_at".into(), texts).into_column()).unwrap();
    let parquet = parquet(&mut other, 100_000);
    assert_same(&decoded(plain(FileFormat::Parquet), &parquet), &expected, "text for instants");
}

fn instant_text(row: &SampleRow) -> String {
    chrono::DateTime::from_timestamp_micros(row.at_us).unwrap().to_rfc3339()
}

#[test]
fn a_bad_row_has_the_same_reason_in_every_format_and_in_a_replay() {
    let at = "2023-11-14T22:13:20Z";
    // entity, feature, value as JSON, validated_at; each but the first is bad.
    let rows: Vec<[String; 4]> = [
        ["e", "f", "1.5", at],
        ["null", "f", "1.5", at],
        ["e", "null", "1.5", at],
        ["e", "f", "1e999", at],
        ["e", "f", "\"x\"", at],
        ["e", "f", "1", "yesterday"],
        ["e", "f", "1", "2023-11-14T22:13:20"],
        ["e", "f", "1", "2033-11-14T22:13:20Z"],
        ["e", "f", "1", "1066-11-14T22:13:20Z"],
        ["e", "f", "1", "null"],
    ]
    .map(|row| row.map(str::to_owned))
    .into();
    let quoted = |text: &str| if text == "null" { text.into() } else { format!("{text:?}") };
    let lines: Vec<String> = rows
        .iter()
        .map(|[entity, feature, value, at]| {
            format!(
                "{{\"entity_id\":{},\"feature_name\":{},\"value\":{value},\"validated_at\":{}}}",
                quoted(entity),
                quoted(feature),
                quoted(at)
            )
        })
        .collect();
    let cell = |text: &String| if text == "null" { String::new() } else { text.replace('"', "") };
    let csv: Vec<String> = rows.iter().map(|row| row.each_ref().map(cell).join(",")).collect();
    let csv = format!("entity_id,feature_name,value,validated_at\n{}\n", csv.join("\n"));
    let ndjson = decoded(plain(FileFormat::Ndjson), (lines.join("\n") + "\n").as_bytes());
    let array = format!("[{}]", lines.join(","));
    assert_same(&decoded(plain(FileFormat::Json), array.as_bytes()), &ndjson, "json");
    let csv = decoded(plain(FileFormat::Csv), csv.as_bytes());
    assert_same(&csv, &ndjson, "csv");
    assert_eq!(ndjson.dead[0].len(), rows.len() - 1);
    for (a, b) in csv.dead[0].iter().zip(&ndjson.dead[0]) {
        assert_eq!(a.raw, b.raw);
    }
}

#[test]
fn a_reader_begins_at_any_row() {
    let rows = rows(1_000);
    for kind in kinds() {
        let (_folder, path) = saved(&file(kind, &rows));
        for row in [0, 1, 299, 300, 301, 650, 999, 1_000, 2_000] {
            let mut reader = open(&path, kind);
            reader.skip_to(row).unwrap();
            let chunk = reader.next(7).unwrap();
            let first = chunk.as_ref().and_then(|chunk| chunk.get(0)).map(|r| r.position as u64);
            assert_eq!(first, (row < 1_000).then_some(row), "{kind}, row {row}");
            let Some(chunk) = chunk else { continue };
            let then = reader.next(7).unwrap().and_then(|c| c.get(0).map(|r| r.position as u64));
            let expected = row + chunk.len() as u64;
            assert_eq!(then, (expected < 1_000).then_some(expected), "{kind}, row {row}");
            // And from within what was read already.
            reader.skip_to(900).unwrap();
            let then = reader.next(1).unwrap().and_then(|c| c.get(0).map(|r| r.position as u64));
            assert!(then.is_none_or(|then| then >= 900), "{kind}, row {row}: {then:?}");
        }
    }
}

#[test]
fn chunks_are_bounded_by_rows_and_bytes() {
    let mut large = rows(300);
    large.iter_mut().for_each(|row| row.entity = "x".repeat(100 << 10));
    large[7].entity = "y".repeat(9 << 20);
    for format in FileFormat::ALL {
        let (_folder, path) = saved(&file(plain(format), &large));
        let chunks = chunks(&mut open(&path, plain(format)), 1_000);
        assert_eq!(chunks.iter().map(Records::len).sum::<usize>(), 300, "{format:?}");
        assert!(chunks.len() >= 4, "{format:?}: {}", chunks.len());
        let most = chunks.iter().map(Records::bytes).max().unwrap();
        assert!(most < 20 << 20, "{format:?}: {most}");
        let (_folder, path) = saved(&file(plain(format), &rows(50)));
        let lengths: Vec<usize> = super::tests::chunks(&mut open(&path, plain(format)), 20)
            .iter()
            .map(Records::len)
            .collect();
        assert_eq!(lengths, [20, 20, 10], "{format:?}");
    }
}

/// The verdict; a sound file is read as well, and gives the rows that were counted.
fn verdict(kind: FileKind, path: &Path) -> Result<Checked, FileError> {
    let checked = check(path, kind, &stream(), &LIMITS)?;
    let mut reader = open(path, kind);
    let decoder = Decoder::new(Arc::new(stream()));
    let mut rows = 0;
    for chunk in chunks(&mut reader, 1_000) {
        rows += chunk.len();
        let decoded = decoder.decode(&[&[chunk]], NOW).unwrap();
        // What is dead says so with its bytes.
        assert!(decoded.dead[0].iter().all(|letter| letter.raw.is_some()));
    }
    assert_eq!(rows as u64, checked.rows);
    Ok(checked)
}

#[test]
fn hostile_files_are_refused_for_the_right_reason() {
    let files = hostile::files();
    assert!(files.len() >= 45);
    let mut wrong = Vec::new();
    for (name, kind, bytes, reason) in files {
        let (_folder, path) = saved(&bytes);
        let found = verdict(kind, &path);
        let found_reason = found.as_ref().err().map(|error| error.reason.as_str());
        if found_reason != reason {
            wrong.push(format!("{name}: {found_reason:?}, not {reason:?}: {found:?}"));
        }
        if let Err(error) = &found {
            assert!(reasons::ALL.contains(&error.reason.as_str()), "{name}");
            assert!(!error.detail.is_empty() && !error.hint.is_empty(), "{name}");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_file_that_was_cut_off_is_refused_wherever_that_can_be_seen() {
    let rows = rows(500);
    for kind in kinds() {
        let whole = file(kind, &rows);
        for part in 1..16 {
            let (_folder, path) = saved(&whole[..whole.len() * part / 16]);
            match verdict(kind, &path) {
                Err(error) => assert!(!error.detail.is_empty(), "{kind}, {part}/16"),
                // Between two lines, or in the last cell of a row, nobody can see it.
                Ok(checked) => {
                    let open = matches!(kind.format, FileFormat::Csv | FileFormat::Ndjson);
                    assert!(open && kind.compression == Compression::None, "{kind}, {part}/16");
                    assert!(checked.rows < 500, "{kind}, {part}/16");
                }
            }
        }
    }
}

#[test]
fn errors_say_where() {
    let error = |format, text: &str| {
        let (_folder, path) = saved(text.as_bytes());
        let error = check(&path, plain(format), &stream(), &LIMITS).unwrap_err();
        (error.row, error.byte.map(|byte| byte as usize))
    };
    let text = "[{},\n {\"a\":\n tru}]";
    assert_eq!(error(FileFormat::Json, text), (Some(1), text.find('}').and(text.rfind('}'))));
    assert_eq!(error(FileFormat::Json, "[{},{}"), (Some(2), Some(6)));
    let csv = "entity_id,validated_at\na,b\na,b,c\n";
    assert_eq!(error(FileFormat::Csv, csv), (Some(1), csv.find("a,b,c")));
    assert_eq!(error(FileFormat::Ndjson, "{\"a\":1}\n{\"a\""), (Some(1), Some(8)));
}

#[test]
fn limits_hold() {
    let few =
        FileLimits { max_rows: 10, max_decompressed_bytes: 1 << 30, max_columns: 3, ..LIMITS };
    let small = FileLimits { max_decompressed_bytes: 2_000, ..LIMITS };
    for kind in kinds() {
        let (_folder, path) = saved(&file(kind, &rows(100)));
        let reason =
            |limits: &FileLimits| check(&path, kind, &stream(), limits).unwrap_err().reason;
        let columns = matches!(kind.format, FileFormat::Csv | FileFormat::Parquet);
        let expected = if columns { reasons::TOO_MANY_COLUMNS } else { reasons::TOO_MANY_ROWS };
        assert_eq!(reason(&few), expected, "{kind}");
        assert_eq!(
            reason(&FileLimits { max_columns: 99, ..few }),
            reasons::TOO_MANY_ROWS,
            "{kind}"
        );
        assert_eq!(reason(&small), reasons::TOO_LARGE, "{kind}");
    }
}

#[test]
fn parquet_columns_of_other_types_are_read() {
    let mut other = frame(&rows(6));
    let bytes: Vec<&[u8]> = vec![b"a", b"\xFF", b"c", b"d", b"", b"f"];
    other.replace("entity_id", Series::new("entity_id".into(), bytes).into_column()).unwrap();
    other
        .replace("value", Series::new("value".into(), [1u8, 2, 3, 4, 5, 6]).into_column())
        .unwrap();
    let days = Series::new("validated_at".into(), [19_675i32; 6]);
    let days = days.cast(&polars::prelude::DataType::Date).unwrap();
    other.replace("validated_at", days.into_column()).unwrap();
    let read = decoded(plain(FileFormat::Parquet), &parquet(&mut other, 100));
    let dead: Vec<_> = read.dead[0].iter().map(|l| (l.pos, l.reason.as_str())).collect();
    assert_eq!(dead, [(1, "invalid_utf8"), (4, "empty_entity")]);
    assert!(read.dead[0][0].raw.as_ref().unwrap().windows(3).any(|w| w == b"\"\xFF\""));
    let times = &read.batch.column_by_name("validated_at").unwrap();
    assert!(format!("{times:?}").contains("2023-11-14T00:00:00"), "{times:?}");
}

#[test]
fn kinds_are_told_by_names() {
    let kind = |name: &str| FileKind::of_path(Path::new(name)).map(|kind| kind.to_string());
    assert_eq!(kind("a/b.json").as_deref(), Some("json"));
    assert_eq!(kind("b.JSONL.GZ").as_deref(), Some("ndjson, gzip"));
    assert_eq!(kind("x.y.csv.zst").as_deref(), Some("csv, zstd"));
    assert_eq!(kind("b.parquet").as_deref(), Some("parquet"));
    assert_eq!((kind("json"), kind("b.txt"), kind("b.gz"), kind("/")), (None, None, None, None));
    assert_eq!("".parse(), Ok(Compression::None));
    assert_eq!("zstd".parse(), Ok(Compression::Zstd));
    assert!("lz4".parse::<Compression>().is_err() && "xml".parse::<FileFormat>().is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever happens to the bytes: an answer, and rows that agree with it.
    #[test]
    fn damage_is_refused_or_harmless(
        which in 0usize..12,
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::weighted(0.3, any::<prop::sample::Index>()),
        gap in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let kind = kinds().nth(which).unwrap();
        let mut bytes = file(kind, &rows(60));
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(at) = gap {
            bytes.remove(at.index(bytes.len()));
        }
        if let Some(at) = cut {
            bytes.truncate(at.index(bytes.len()));
        }
        let (_folder, path) = saved(&bytes);
        let _ = verdict(kind, &path);
    }

    #[test]
    fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..300), which in 0usize..12) {
        let (_folder, path) = saved(&bytes);
        let _ = verdict(kinds().nth(which).unwrap(), &path);
    }

    /// Elements are found as serde_json finds them.
    #[test]
    fn arrays_are_cut_into_their_elements(elements in prop::collection::vec("\\PC{0,20}", 0..20), deep in 0usize..9) {
        let values: Vec<serde_json::Value> = elements.iter().map(|text| {
            (0..deep).fold(serde_json::json!({"k\"]": text}), |value, _| serde_json::json!([value, "}"]))
        }).collect();
        let (_folder, path) = saved(serde_json::to_string_pretty(&values).unwrap().as_bytes());
        let chunks = chunks(&mut open(&path, plain(FileFormat::Json)), 1_000);
        let read: Vec<serde_json::Value> = chunks.iter().flat_map(Records::iter)
            .map(|record| serde_json::from_slice(&record.payload.raw().unwrap()).unwrap()).collect();
        prop_assert_eq!(read, values);
    }
}
