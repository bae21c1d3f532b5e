//! Files that are broken, or meant to break something.

use super::{Sending, bench, kind, landed, made, ndjson, send, status};
use crate::support::Bench;
use millstream::files::hostile;
use std::{collections::BTreeSet, path::PathBuf};
use tonic::Code;
use tonic_types::StatusExt;

/// Names that lead out of a node's data, were they paths: from the root, and from its spool.
fn leading_out(bench: &Bench, file: &str) -> [String; 4] {
    let outside = bench.dir.path().join("outside");
    std::fs::create_dir_all(&outside).unwrap();
    let (absolute, relative) = (outside.display(), "../../../../outside");
    [
        format!("{absolute}/{file}"),
        format!("{absolute}/{file}\0.json"),
        format!("{relative}/{file}"),
        format!("{relative}/{file}\0/x"),
    ]
}

/// Everything in the folder of a bench but its node's data.
fn outside_of_the_data(bench: &Bench) -> BTreeSet<PathBuf> {
    let (mut found, mut folders) = (BTreeSet::new(), vec![bench.dir.path().to_owned()]);
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        for path in entries.filter(|path| *path != bench.config.node.data_dir) {
            if path.is_dir() {
                folders.push(path.clone());
            }
            found.insert(path);
        }
    }
    found
}

#[test]
fn hostile_and_broken_files_are_refused_in_words_and_harm_nothing() {
    let mut bench = bench();
    bench.config.uploads.max_decompressed_bytes = 256 << 20;
    let node = bench.node("process,store");
    let files = hostile::files();
    assert!(files.len() >= 40, "{}", files.len());
    let sound_names = leading_out(&bench, "sound");
    let outside = outside_of_the_data(&bench);
    let mut broken = 0;
    for (i, (name, kind, bytes, expected)) in files.into_iter().enumerate() {
        let refused = expected.is_some();
        let mut sending = Sending::new(name, kind, &bytes, 1 << 20);
        sending.header.filename.clone_from(&leading_out(&bench, name)[i % 4]);
        match (send(node.grpc, &sending), expected) {
            (Err(status), Some(reason)) => {
                broken += 1;
                assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status:?}");
                let details = status.get_error_details();
                let info = details.error_info().unwrap();
                assert_eq!(info.reason, reason, "{name}: {}", status.message());
                assert!(!info.metadata["hint"].is_empty(), "{name}: {}", status.message());
                let words = status.message();
                assert!(words.len() > 10 && words.len() < 2_000, "{name}: {words}");
            }
            (Ok(_), None) => drop(landed(&node, name)),
            (outcome, expected) => panic!("{name}: {outcome:?}, expected {expected:?}"),
        }
        let known = status(node.grpc, name);
        assert_eq!(known.is_err(), refused, "{name}: {known:?}");
    }
    assert!(broken >= 40, "{broken}");
    // The node is as it was.
    let resident = node.metric("process_resident_memory_bytes", &[]);
    assert!(resident < 1e9, "{resident} bytes resident");
    let (features, _) = made(&node);
    for (from, name) in (0..).step_by(500).zip(sound_names) {
        let key = format!("sound from {from}");
        let mut sound = Sending::new(&key, kind("x.ndjson"), &ndjson(from, 500), 1 << 20);
        sound.header.filename.clone_from(&name);
        send(node.grpc, &sound).unwrap();
        assert_eq!(landed(&node, &key).filename, name.replace('\0', ""), "a name is only text");
    }
    assert_eq!(made(&node).0, features + 2_000);
    assert_eq!(outside_of_the_data(&bench), outside);
    node.verify();
    node.stop_well();
    bench.judge_books();
}

#[test]
fn requests_that_make_no_sense_are_refused_in_words() {
    let mut bench = bench();
    bench.config.uploads.max_file_bytes = 1_000_000;
    bench.config.uploads.max_spool_bytes = 500_000;
    let node = bench.node("process,store");
    let bytes = ndjson(0, 100);
    let good = Sending::new("k", kind("x.ndjson"), &bytes, 1_000);
    let with = |change: &dyn Fn(&mut Sending)| {
        let mut sending = good.clone();
        change(&mut sending);
        send(node.grpc, &sending).unwrap_err()
    };
    let cases = [
        (with(&|s| s.header.idempotency_key.clear()), Code::InvalidArgument, "key"),
        (with(&|s| s.header.idempotency_key = "x".repeat(201)), Code::InvalidArgument, "key"),
        (with(&|s| s.header.stream = "nobody".into()), Code::NotFound, "features, clicks"),
        (with(&|s| s.header.format = "xml".into()), Code::InvalidArgument, "parquet"),
        (with(&|s| s.header.compression = "rar".into()), Code::InvalidArgument, "zstd"),
        (with(&|s| s.header.sha256 = "F".repeat(64)), Code::InvalidArgument, "SHA-256"),
        (with(&|s| s.header.sha256 = "0".repeat(64)), Code::InvalidArgument, "SHA-256"),
        (with(&|s| s.header.size += 1), Code::InvalidArgument, "announced"),
        (with(&|s| s.header.size -= 1), Code::InvalidArgument, "announced"),
        (with(&|s| s.header.size = 2_000_000), Code::InvalidArgument, "max_file_bytes"),
        (with(&|s| s.header.size = 600_000), Code::ResourceExhausted, "max_spool_bytes"),
    ];
    for (status, code, word) in cases {
        assert_eq!(status.code(), code, "{status:?}");
        let details = status.get_error_details();
        let hint = &details.error_info().unwrap().metadata["hint"];
        assert!(format!("{} {hint}", status.message()).contains(word), "{status:?}");
    }
    assert_eq!(made(&node), (0, 0));
    assert!(node.metric("millstream_spool_bytes", &[]) < 0.5);
    node.stop_well();
}

#[test]
fn exactly_the_bad_rows_of_a_sound_file_are_dead_letters() {
    let bench = bench();
    let node = bench.node("process,store");
    let good = String::from_utf8(ndjson(0, 10_000)).unwrap();
    let mut bad = Vec::new();
    let lines: Vec<String> = good
        .lines()
        .enumerate()
        .map(|(i, line)| {
            if i % 100 != 37 {
                return line.to_owned();
            }
            bad.push(i as i64);
            match (i / 100) % 5 {
                0 => line.replace("\"entity_id\"", "\"nobody\""),
                1 => line.replace("\"value\":", "\"value\":\"x"),
                2 => line[..line.len() - 9].to_owned(),
                3 => line.replace("2026-01", "2999-01"),
                _ => line.replace("\"feature_name\"", "\"name\""),
            }
        })
        .collect();
    let text = lines.join("\n") + "\n";
    let sending = Sending::new("bad rows", kind("x.ndjson"), text.as_bytes(), 1 << 20);
    send(node.grpc, &sending).unwrap();
    let status = landed(&node, "bad rows");
    assert_eq!((status.rows, status.dead_letters, status.kept), (10_000, 100, 9_900));
    let dead = node.query("SELECT pos FROM dead_letters ORDER BY pos");
    let dead: Vec<i64> =
        dead.as_array().unwrap().iter().map(|row| row["pos"].as_i64().unwrap()).collect();
    assert_eq!(dead, bad);
    node.verify();
    node.stop_well();
    bench.judge_books();
}
