//! Each row once, whatever is cut off, killed, repeated or lost.

use super::{Sending, bench, client, kind, landed, made, ndjson, runtime, send, send_on, status};
use crate::support::{NodeProcess, wait_for};
use millstream::failpoint::UPLOAD_CRASH_POINTS;
use std::time::Duration;
use tonic::Code;

/// Points that chunks of files pass like batches of events, with how often before it strikes.
const OF_BATCHES: [(&str, u32); 4] =
    [("d_transformed", 1), ("g_in_transaction", 1), ("g_committed", 1), ("i_answered", 2)];

#[test]
fn an_upload_that_is_cut_off_anywhere_leaves_no_row_and_can_be_sent_again() {
    let bench = bench();
    let node = bench.node("process,store");
    let bytes = ndjson(0, 400);
    let sending = Sending::new("cut", kind("x.ndjson"), &bytes, bytes.len() / 12);
    let parts = sending.parts();
    for cut in 0..=parts.len() {
        runtime().block_on(async {
            let (sender, receiver) = tokio::sync::mpsc::channel(1);
            let stream = futures::stream::unfold(receiver, |mut receiver| async move {
                receiver.recv().await.map(|part| (part, receiver))
            });
            let mut client = client(node.grpc).await.unwrap();
            let call = tokio::spawn(async move { client.upload(stream).await });
            for part in &parts[..cut] {
                sender.send(part.clone()).await.unwrap();
            }
            // The connection goes away in the middle of the call.
            tokio::time::sleep(Duration::from_millis(20)).await;
            call.abort();
        });
    }
    // Ended in order, but too early: refused.
    let mut short = sending.clone();
    short.chunks.pop();
    let refused = send(node.grpc, &short).unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    assert!(refused.message().contains("announced bytes came"), "{refused:?}");
    // All of it, but with the hash of another: refused as well.
    let mut other = sending.clone();
    other.header.sha256 = "0".repeat(64);
    let refused = send(node.grpc, &other).unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    assert!(refused.message().contains("have the SHA-256"), "{refused:?}");
    assert_eq!(status(node.grpc, "cut").unwrap_err().code(), Code::NotFound);
    assert_eq!(made(&node), (0, 0));
    wait_for("the spool to be empty", || {
        (node.metric("millstream_spool_bytes", &[]) < 0.5).then_some(())
    });
    let receipt = send(node.grpc, &sending).unwrap();
    assert!(!receipt.duplicate);
    landed(&node, "cut");
    assert_eq!(made(&node), (400, 0));
    node.verify();
    node.stop_well();
    bench.judge_books();
}

#[test]
fn kill_9_at_every_step_of_an_upload() {
    let mut bench = bench();
    bench.config.batch.max_rows = 2_000;
    let redis = bench.redis();
    let (mut rows, mut forgotten) = (0, 0.0);
    let points = UPLOAD_CRASH_POINTS.into_iter().map(|p| (p, 0)).chain(OF_BATCHES);
    for (i, (point, passes)) in points.enumerate() {
        let (key, n) = (format!("killed at {point}"), 10_000);
        let bytes = ndjson(i as u64 * n, n);
        let sending = Sending::new(&key, kind("x.ndjson"), &bytes, 100_000);
        if point == "u_kept" {
            // The store never heard of that file: it is kept for an hour, should it still.
            forgotten = bytes.len() as f64;
        }
        let armed = format!("{point}={passes}*off->return");
        let mut node = NodeProcess::spawned(&bench, "process,store", &armed);
        node.learn_addresses();
        // With or without a receipt: the client does as clients must, and repeats.
        let first = send(node.grpc, &sending);
        node.ends_killed();
        redis.forget_leases(&bench.config.node.namespace);
        let node = bench.node("process,store");
        let again = send(node.grpc, &sending).unwrap();
        if let Ok(first) = first {
            assert!(again.duplicate, "{point}");
            assert_eq!(again.upload_id, first.upload_id, "{point}");
        }
        landed(&node, &key);
        rows += n as i64;
        assert_eq!(made(&node), (rows, 0), "{point}");
        node.verify();
        node.kill();
        redis.forget_leases(&bench.config.node.namespace);
    }
    let node = bench.node("process,store");
    assert_eq!(made(&node), (rows, 0));
    wait_for("the spool to hold nothing else", || {
        let bytes = node.metric("millstream_spool_bytes", &[]);
        ((bytes - forgotten).abs() < 0.5).then_some(())
    });
    node.stop_well();
    bench.judge_books();
}

#[test]
fn a_hundred_clients_with_one_key_have_one_effect() {
    let bench = bench();
    let node = bench.node("process,store");
    let bytes = ndjson(0, 5_000);
    let sending = Sending::new("one key", kind("x.ndjson"), &bytes, 64_000);
    let receipts = runtime().block_on(async {
        let clients = (0..100).map(|_| send_on(node.grpc, &sending));
        futures::future::join_all(clients).await
    });
    let receipts: Vec<_> = receipts.into_iter().map(Result::unwrap).collect();
    let new = receipts.iter().filter(|receipt| !receipt.duplicate).count();
    assert_eq!(new, 1, "one of them was the first");
    assert!(receipts.iter().all(|r| r.upload_id == receipts[0].upload_id && r.rows == 5_000));
    landed(&node, "one key");
    assert_eq!(made(&node), (5_000, 0));

    // Other bytes, another stream, another format under that key: refused, and nothing changes.
    let other_bytes = Sending::new("one key", kind("x.ndjson"), &ndjson(1, 5_000), 64_000);
    let mut other_stream = sending.clone();
    other_stream.header.stream = "clicks".into();
    for other in [other_bytes, other_stream] {
        let refused = send(node.grpc, &other).unwrap_err();
        assert_eq!(refused.code(), Code::AlreadyExists, "{refused:?}");
        assert!(refused.message().contains("key"), "{refused:?}");
    }
    assert_eq!(made(&node), (5_000, 0));
    // The same bytes under another key are another upload: whoever names it so means it.
    let mut second = sending.clone();
    second.header.idempotency_key = "another key".into();
    assert!(!send(node.grpc, &second).unwrap().duplicate);
    landed(&node, "another key");
    assert_eq!(made(&node), (10_000, 0));
    node.verify();
    node.stop_well();
    bench.judge_books();
}

#[test]
fn a_file_whose_node_is_gone_is_gone_on_with_by_whoever_is_sent_it_again() {
    let mut bench = bench();
    bench.config.batch.max_rows = 1_000;
    let _redis = bench.redis();
    // It lands on a node that dies in the middle of it and never comes back.
    let bytes = ndjson(0, 60_000);
    let sending = Sending::new("moved", kind("x.ndjson"), &bytes, 100_000);
    let mut lost = bench.config.clone();
    std::mem::swap(&mut lost, &mut bench.config);
    bench.config.node.name = "lost-node".into();
    let mut first = NodeProcess::spawned(&bench, "process,store", "g_committed=1*off->return");
    first.learn_addresses();
    // The receipt may be on its way when the node dies.
    let _ = send(first.grpc, &sending);
    first.ends_killed();
    std::mem::swap(&mut lost, &mut bench.config);
    std::fs::remove_dir_all(bench.config.spool()).unwrap();
    let node = bench.node("process,store");
    let known = status(node.grpc, "moved").unwrap();
    assert_eq!((known.state.as_str(), known.rows), ("accepted", 60_000));
    assert!(known.rows_done < 60_000, "{known:?}");
    // Its node was alive half a minute ago: until it counts as gone, a repetition changes nothing.
    let receipt = wait_for("the upload to be taken over", || {
        let receipt = send(node.grpc, &sending).unwrap();
        assert!(receipt.duplicate && receipt.upload_id == known.upload_id, "{receipt:?}");
        let status = status(node.grpc, "moved").unwrap();
        (status.rows_done > known.rows_done).then_some(receipt)
    });
    assert_eq!(receipt.rows, 60_000);
    landed(&node, "moved");
    assert_eq!(made(&node), (60_000, 0));
    node.verify();
    node.stop_well();
    bench.judge_books();
}
