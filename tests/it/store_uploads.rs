//! The store's side of uploads: known once by their keys, their rows taken from files in the spool.

use crate::support::{Bench, NodeProcess};
use arrow::array::{
    FixedSizeBinaryArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use millstream::{
    actors::redis_queue::{ask, register_upload, request},
    messages::{
        ChunkFile, PartHeader, PartVerdict, QueueReply, ReadRequest, RegisterUpload, WriteHeader,
        feature_row_schema,
    },
    protocol::{
        apply::Decision,
        source::{OpenReply, OpenRequest, SourceAttributes, SourceName, Token},
    },
    queue::{Fields, Keys, RedisLink, encode_open, encode_write},
    spool::SharedSpool,
};
use std::{sync::Arc, time::Duration};
use tokio::{runtime::Runtime, task::JoinHandle};

const DEADLINE: Duration = Duration::from_secs(100);

/// Who asks the store, beside any node.
struct Asker {
    runtime: Runtime,
    redis: RedisLink,
    keys: Keys,
}

impl Asker {
    fn ask(&self, fields: Fields) -> JoinHandle<QueueReply> {
        let (redis, keys) = (self.redis.clone(), self.keys.clone());
        self.runtime.spawn(async move { request(&redis, &keys, fields, DEADLINE).await.unwrap() })
    }

    fn verdict(&self, asked: JoinHandle<QueueReply>) -> PartVerdict {
        match self.runtime.block_on(asked).unwrap() {
            QueueReply::Written { verdicts } => verdicts[0].clone(),
            other => panic!("{other:?}"),
        }
    }

    fn open(&self, source: &SourceName) -> Token {
        let open = OpenRequest {
            source: source.clone(),
            owner: "test".into(),
            attributes: SourceAttributes::default(),
            start: 0,
            low: 0,
            high: 4_000,
            ephemeral: false,
            partitions: None,
            ends: Vec::new(),
        };
        match self.runtime.block_on(self.ask(encode_open(&open).unwrap())).unwrap() {
            QueueReply::Opened { reply: OpenReply::Opened { token, .. }, .. } => token,
            other => panic!("{other:?}"),
        }
    }
}

fn rows(from: i64, to: i64) -> RecordBatch {
    let pos: Vec<i64> = (from..to).collect();
    let times = || {
        let times = pos.iter().map(|p| 1_700_000_000_000_000 + p);
        Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC"))
    };
    let ids = pos.iter().map(|p| (p % 2 == 0).then(|| (*p as u128).to_be_bytes()));
    RecordBatch::try_new(
        feature_row_schema(),
        vec![
            Arc::new(StringArray::from_iter_values(pos.iter().map(|p| format!("e{}", p % 50)))),
            Arc::new(StringArray::from_iter_values(pos.iter().map(|_| "f"))),
            Arc::new(Float64Array::from_iter_values(pos.iter().map(|p| *p as f64 / 7.0))),
            times(),
            times(),
            Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(ids, 16).unwrap()),
            Arc::new(Int64Array::from(pos.clone())),
            Arc::new(Int32Array::from(vec![0; pos.len()])),
        ],
    )
    .unwrap()
}

/// The write of positions `[from, to)`; its rows are in the chunk, if there is one. It was made
/// under a generation of Redis that never was, so that the store puts its values online.
fn write(
    source: &SourceName,
    token: Token,
    (from, to): (i64, i64),
    chunk: Option<&ChunkFile>,
) -> Fields {
    let n = to - from;
    let part = PartHeader {
        source: source.clone(),
        token,
        from,
        to,
        n_in: n,
        n_kept: n,
        n_dead: 0,
        n_filtered: 0,
        n_rows: n,
        chunk: chunk.cloned(),
    };
    let header = WriteHeader {
        node: "n".into(),
        batch_id: uuid::Uuid::nil(),
        transform: "x".into(),
        script_sha256: "abc".into(),
        generation: "another".into(),
        as_known: millstream::config::AsKnown::Arrival,
        parts: vec![part],
    };
    let rows = if chunk.is_some() { rows(0, 0) } else { rows(from, to) };
    encode_write(&header, &[rows], &[&[]]).unwrap()
}

#[test]
fn an_upload_is_known_once_and_its_chunks_land_once_wherever_the_store_dies() {
    let mut bench = Bench::new("");
    let _redis = bench.redis();
    let asker = Asker {
        runtime: Runtime::new().unwrap(),
        redis: RedisLink::new(&bench.config.redis.url).unwrap(),
        keys: Keys::new(&bench.config.node.namespace),
    };
    let upload = |id: &str| RegisterUpload {
        upload_id: id.into(),
        idempotency_key: "k".into(),
        stream: "features".into(),
        owner: "n".into(),
        sha256: "ab".into(),
        filename: "f.csv".into(),
        format: "csv".into(),
        compression: "none".into(),
        size: 9,
        rows: 4_000,
        adopt: false,
    };
    let register = |id: &str| {
        let (redis, keys, upload) = (asker.redis.clone(), asker.keys.clone(), upload(id));
        asker
            .runtime
            .spawn(async move { register_upload(&redis, &keys, &upload, DEADLINE).await.unwrap() })
    };

    // It dies with the upload written down; its next life answers as if nothing had been.
    let dying = NodeProcess::spawned(&bench, "store", "u_registered=return");
    let registering = register("u1");
    dying.ends_killed();
    let dying = NodeProcess::spawned(&bench, "store", "u_chunk_read=return");
    let registered = asker.runtime.block_on(registering).unwrap();
    assert_eq!((registered.upload_id.as_str(), registered.landed), ("u1", false));
    let source = SourceName::upload("features", "u1");

    // Node and store share the folder.
    let spool = SharedSpool::new(&bench.config.spool(), "n").unwrap();
    let elsewhere = SharedSpool::new(&bench.dir.path().join("elsewhere"), "n").unwrap();
    let shared = asker.runtime.block_on(async {
        let mut redis = asker.redis.manager().await.unwrap();
        let here = spool.is_shared(&mut redis, &asker.keys).await;
        (here, elsewhere.is_shared(&mut redis, &asker.keys).await)
    });
    assert_eq!(shared, (true, false));

    // It dies with the rows in its transaction.
    let token = asker.open(&source);
    let chunk = spool.chunks().write(&rows(0, 2_000)).unwrap();
    let first = write(&source, token, (0, 2_000), Some(chunk.file()));
    let writing = asker.ask(first.clone());
    dying.ends_killed();
    let node = bench.node("store");
    assert_eq!(asker.verdict(writing).decision, Decision::Apply);
    drop(chunk);
    assert_eq!(asker.verdict(asker.ask(first)).decision, Decision::Duplicate);

    // A chunk that is gone is a gap; the same rows over the queue fill it.
    let gone = spool.chunks().write(&rows(2_000, 4_000)).unwrap().file().clone();
    let verdict = asker.verdict(asker.ask(write(&source, token, (2_000, 4_000), Some(&gone))));
    assert_eq!((verdict.decision, verdict.next_pos), (Decision::Gap, 2_000));
    let verdict = asker.verdict(asker.ask(write(&source, token, (2_000, 4_000), None)));
    assert_eq!((verdict.decision, verdict.next_pos), (Decision::Apply, 4_000));
    let again = asker.runtime.block_on(register("u2")).unwrap();
    assert_eq!((again.upload_id.as_str(), again.landed), ("u1", true));

    let sql =
        "SELECT count(*) AS n, count(DISTINCT pos) AS p, count(event_id) AS i, sum(value * 7) AS v
               FROM features_table";
    let found = node.query(sql);
    assert_eq!(
        (&found[0]["n"], &found[0]["p"], &found[0]["i"]),
        (&4_000.into(), &4_000.into(), &2_000.into())
    );
    let (_, report) = asker
        .runtime
        .block_on(ask(&asker.redis, &asker.keys, &ReadRequest::Verify { full: true }, DEADLINE))
        .unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.iter().all(|check| check["ok"] == true), "{report:#}");
    let online = checks.iter().find(|check| check["id"] == "online_equals_newest").unwrap();
    assert!(online["detail"].as_str().unwrap().contains("of 50 critical"), "{report:#}");
}
