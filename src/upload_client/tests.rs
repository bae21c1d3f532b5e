use super::{test_node::TestNode, *};
use sha2::{Digest, Sha256};
use std::{collections::HashMap, path::PathBuf};
use tempfile::TempDir;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

const CHUNK: usize = file::CHUNK_BYTES;

/// Bytes that differ everywhere.
fn bytes(count: usize) -> Vec<u8> {
    (0..count as u64 / 8 + 1).flat_map(|i| (i * 0x9E37_79B9).to_le_bytes()).take(count).collect()
}

fn on_disk(name: &str, content: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    (folder, path)
}

fn accepted(rows_done: u64) -> UploadStatus {
    UploadStatus { state: ACCEPTED.into(), rows: 10, rows_done, ..UploadStatus::default() }
}

#[tokio::test]
async fn a_file_arrives_byte_for_byte_behind_its_header() {
    let node = TestNode::start().await;
    let client = UploadClient::connect(&node.address).await.unwrap();
    for size in [0, 1, CHUNK, CHUNK + 1, 5 * CHUNK + 77] {
        let content = bytes(size);
        let sha256 = format!("{:x}", Sha256::digest(&content));
        let (_folder, path) = on_disk("events.json.gz", &content);
        let from_disk = UploadFile::open(&path, "clicks", "json", "gzip").await.unwrap();
        let from_memory = UploadFile::of_bytes("m.csv", content.clone(), "clicks", "csv");
        for file in [from_disk, from_memory.with_key("mine")] {
            let mut sent = Vec::new();
            client.upload(&file, |bytes| sent.push(bytes)).await.unwrap();
            let attempt = node.kept().attempts.pop().unwrap();
            assert!(attempt.whole && attempt.bytes == content, "{size}");
            assert_eq!(&attempt.header, file.header());
            assert_eq!((attempt.header.size, &attempt.header.sha256), (size as u64, &sha256));
            assert!(attempt.chunks.iter().all(|chunk| *chunk <= CHUNK));
            assert_eq!(sent.last().copied().unwrap_or(0), size as u64);
            assert_eq!(sent.len(), attempt.chunks.len());
        }
        let header =
            UploadFile::open(&path, "clicks", "json", "gzip").await.unwrap().header().clone();
        assert_eq!(header.filename, "events.json.gz", "only the base name");
        assert_eq!(header.idempotency_key, format!("{sha256}:clicks"));
        assert_eq!((&*header.format, &*header.compression), ("json", "gzip"));
    }
}

#[tokio::test]
async fn a_refusal_is_told_with_its_details_though_the_file_is_not_sent_to_its_end() {
    let node = TestNode::start().await;
    let metadata = [("byte", "4242"), ("row", "17"), ("hint", "mend the row"), ("field", "x")];
    let metadata: HashMap<String, String> =
        metadata.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let details = ErrorDetails::with_error_info("torn_row", "millstream", metadata);
    let refusal =
        Status::with_error_details(Code::InvalidArgument, "the array is not closed", details);
    node.kept().refusals.push_back(refusal);
    let client = UploadClient::connect(&node.address).await.unwrap();
    let file = UploadFile::of_bytes("a.json", bytes(64 << 20), "clicks", "json");
    let mut sent = 0;
    let error = client.upload(&file, |bytes| sent = bytes).await.unwrap_err();
    assert_eq!(error.to_string(), "the array is not closed (torn_row, row 17, byte 4242)");
    assert!(!error.is_worth_retry() && error.is_final());
    assert!(sent < 64 << 20, "the rest was not sent");
    let refusal = error.refusal().unwrap();
    assert_eq!((refusal.code, refusal.byte), (Code::InvalidArgument, Some(4242)));
    assert_eq!((refusal.row, refusal.hint.as_deref()), (Some(17), Some("mend the row")));
    assert_eq!(refusal.metadata["field"], "x");

    // Without details, and with a link instead of a hint.
    let mut help = ErrorDetails::new();
    help.add_help_link("read the page", "https://example.org");
    for (status, told, hint) in [
        (Status::not_found("no stream `x`"), "no stream `x`", None),
        (Status::with_error_details(Code::Internal, "no", help), "no", Some("read the page")),
    ] {
        node.kept().refusals.push_back(status);
        let error = client.upload(&file, |_| ()).await.unwrap_err();
        assert_eq!(error.to_string(), told);
        assert_eq!(error.refusal().unwrap().hint.as_deref(), hint);
        assert!(!error.is_worth_retry());
    }
}

#[tokio::test]
async fn a_cut_connection_leads_to_the_same_upload_again() {
    let node = TestNode::start().await;
    let content = bytes(4 << 20);
    let address = node.behind_a_cut(1 << 20).await;
    let client = UploadClient::connect(&address).await.unwrap();
    let file = UploadFile::of_bytes("a.json", content.clone(), "clicks", "json");
    let mut failures = Vec::new();
    let receipt = client.upload_with_retries(&file, Duration::from_secs(30), |step| {
        if let Step::Again(error) = step {
            assert!(matches!(error, UploadError::Unreachable { .. }), "{error:?}");
            failures.push(error.to_string());
        }
    });
    let receipt = receipt.await.unwrap();
    assert_eq!((receipt.duplicate, failures.len()), (false, 1), "{failures:?}");
    let attempts = node.kept().attempts.clone();
    assert_eq!(attempts.len(), 2);
    assert!(!attempts[0].whole && content.starts_with(&attempts[0].bytes));
    assert!(attempts[1].whole && attempts[1].bytes == content);
    assert_eq!(attempts[0].header, attempts[1].header, "the same key");
    assert!(client.upload(&file, |_| ()).await.unwrap().duplicate);
}

#[tokio::test]
async fn what_may_pass_is_tried_again_until_the_patience_ends() {
    let node = TestNode::start().await;
    let client = UploadClient::connect(&node.address).await.unwrap();
    let file = UploadFile::of_bytes("a.json", bytes(10), "clicks", "json");
    let full = || Status::resource_exhausted("the spool is full");
    node.kept().refusals = [Status::unavailable("starting"), full()].into();
    let mut again = 0;
    let patience = Duration::from_secs(30);
    let counted = |step: Step<'_>| again += usize::from(matches!(step, Step::Again(_)));
    client.upload_with_retries(&file, patience, counted).await.unwrap();
    assert_eq!(again, 2);

    node.kept().refusals = (0..9).map(|_| full()).collect();
    let error =
        client.upload_with_retries(&file, Duration::from_millis(300), |_| ()).await.unwrap_err();
    assert_eq!(error.to_string(), "the spool is full");
    assert_eq!(node.kept().refusals.len(), 7, "one pause fits");
}

#[tokio::test]
async fn nobody_there_is_told_with_the_address() {
    let nowhere = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = nowhere.local_addr().unwrap().to_string();
    drop(nowhere);
    let error = UploadClient::connect(&address).await.unwrap_err();
    assert!(error.to_string().contains(&address), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
    assert!(error.is_worth_retry() && !error.is_final());
    let file = UploadFile::of_bytes("a.json", bytes(10), "clicks", "json");
    let client = UploadClient::lazy(&address).unwrap();
    let error = client.upload(&file, |_| ()).await.unwrap_err();
    assert!(matches!(error, UploadError::Unreachable { .. }), "{error:?}");
    for address in ["", "localhost", "localhost:", ":7071", "a b:1", "http://localhost:7071/x"] {
        let error = UploadClient::lazy(address).unwrap_err();
        assert!(matches!(error, UploadError::Address { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_told() {
    let node = TestNode::start().await;
    let client = UploadClient::connect(&node.address).await.unwrap();
    let (folder, path) = on_disk("a.json", &bytes(3 * CHUNK));
    let gone = UploadFile::open(&folder.path().join("b"), "clicks", "json", "none").await;
    assert!(gone.unwrap_err().to_string().contains("No such file"));
    let no_file = UploadFile::open(folder.path(), "clicks", "json", "none").await.unwrap_err();
    assert!(no_file.to_string().contains("it is no file"), "{no_file}");

    let file = UploadFile::open(&path, "clicks", "json", "none").await.unwrap();
    std::fs::write(&path, bytes(2 * CHUNK + 5)).unwrap();
    let error = client.upload(&file, |_| ()).await.unwrap_err();
    assert!(error.to_string().contains("became shorter"), "{error}");
    assert!(!error.is_worth_retry());
    std::fs::write(&path, bytes(9 * CHUNK)).unwrap();
    client.upload(&file, |_| ()).await.unwrap();
    let attempt = node.kept().attempts.pop().unwrap();
    assert_eq!(attempt.bytes, bytes(3 * CHUNK), "what it has grown since is not sent");
}

#[tokio::test]
async fn an_upload_is_watched_until_it_has_landed_or_is_halted() {
    let node = TestNode::start().await;
    let client = UploadClient::connect(&node.address).await.unwrap();
    let file = UploadFile::of_bytes("a.json", bytes(10), "clicks", "json");
    let id = client.upload(&file, |_| ()).await.unwrap().upload_id;
    let key = file.header().idempotency_key.clone();
    assert_eq!(client.status(Which::IdempotencyKey(key)).await.unwrap().state, LANDED);
    let unknown = client.status(Which::UploadId("nobody".into())).await.unwrap_err();
    assert_eq!(unknown.refusal().unwrap().code, Code::NotFound);
    assert!(client.wait_landed("nobody", Duration::MAX, |_| ()).await.is_err());

    let patience = Duration::from_secs(30);
    for end in [LANDED, HALTED] {
        let last = UploadStatus { state: end.into(), ..accepted(10) };
        node.kept().states = vec![accepted(0), accepted(4), last];
        let mut done = Vec::new();
        let status = client.wait_landed(&id, patience, |status| done.push(status.rows_done)).await;
        assert_eq!((status.unwrap().state.as_str(), done), (end, vec![0, 4, 10]));
    }

    // An answer that ends too early is asked for again.
    node.kept().states = vec![accepted(4)];
    let changing = node.clone();
    let mut seen = 0;
    let status = client.wait_landed(&id, patience, |_| {
        seen += 1;
        changing.kept().states = Vec::new();
    });
    assert_eq!((status.await.unwrap().state.as_str(), seen), (LANDED, 2));
    node.kept().states = vec![accepted(4)];
    let error = client.watch(Which::UploadId("nobody".into())).await;
    assert_eq!(error.err().unwrap().refusal().unwrap().code, Code::NotFound);
}
