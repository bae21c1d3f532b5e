use super::*;
use crate::upload_client::test_node::TestNode;
use clap::Parser;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    args: UploadArgs,
}

fn parsed(words: &[&str]) -> Result<UploadArgs, String> {
    let words = std::iter::once("upload").chain(words.iter().copied());
    Cli::try_parse_from(words).map(|cli| cli.args).map_err(|error| error.to_string())
}

fn args(node: &TestNode, files: &[PathBuf], more: &[&str]) -> UploadArgs {
    let mut words: Vec<&str> = files.iter().map(|file| file.to_str().unwrap()).collect();
    words.extend(["--stream", "clicks", "--grpc", &node.address]);
    words.extend(more);
    parsed(&words).unwrap()
}

#[test]
fn arguments_are_checked_before_anything_is_sent() {
    assert!(parsed(&["--stream", "s"]).unwrap_err().contains("FILE"));
    assert!(parsed(&["a.json"]).unwrap_err().contains("--stream"));
    assert!(parsed(&["a", "--stream", "s", "--format", "xml"]).unwrap_err().contains("parquet"));
    assert!(parsed(&["a", "--stream", "s", "--compression", "lz4"]).unwrap_err().contains("zstd"));
    assert!(parsed(&["a", "--stream", "s", "--grpc", "nowhere"]).is_err());
    let args = parsed(&["a.json", "b.csv", "--stream", "s"]).unwrap();
    assert_eq!(args.files.len(), 2);
    assert!(!args.no_wait && !args.json && args.key.is_none());
}

#[test]
fn formats_are_told_by_extensions_or_flags() {
    for (name, expected) in [
        ("a.json", Some(("json", "none"))),
        ("a.ndjson", Some(("ndjson", "none"))),
        ("folder.csv/a.jsonl", Some(("ndjson", "none"))),
        ("a.b.CSV", Some(("csv", "none"))),
        ("a.parquet", Some(("parquet", "none"))),
        ("a.json.gz", Some(("json", "gzip"))),
        ("a.Csv.Zst", Some(("csv", "zstd"))),
        ("a.gz", None),
        ("a.txt", None),
        ("json", None),
        (".gz", None),
    ] {
        let args = parsed(&[name, "--stream", "s"]).unwrap();
        match (kind(&args, Path::new(name)), expected) {
            (Ok((format, compression)), Some(expected)) => {
                assert_eq!((format.as_str(), compression.as_str()), expected, "{name}");
            }
            (Err(Failure::Usage(message)), None) => assert!(message.contains("--format")),
            (other, _) => panic!("{name}: {other:?}"),
        }
    }
    let args = parsed(&["a.gz", "--stream", "s", "--format", "csv"]).unwrap();
    assert_eq!(kind(&args, Path::new("a.gz")).unwrap(), ("csv".into(), "gzip".into()));
    let args = parsed(&["x", "--stream", "s", "--format", "csv", "--compression", "zstd"]).unwrap();
    assert_eq!(kind(&args, Path::new("x.json.gz")).unwrap(), ("csv".into(), "zstd".into()));
}

fn exit_of(status: &Status) -> String {
    let error = UploadError::of("a:1", status);
    match failure_of("f.json", error) {
        Failure::Usage(message) => format!("2 {message}"),
        Failure::Refused { message, hint } => format!("1 {message}; {}", hint.unwrap_or_default()),
        Failure::Unreachable(message) => format!("4 {message}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_refusal_is_told_by_its_kind() {
    let with = |code, reason: &str, message: &str| {
        let metadata = [("row".to_owned(), "3".to_owned()), ("hint".to_owned(), "mend it".into())];
        let details = ErrorDetails::with_error_info(reason, "millstream", metadata);
        exit_of(&Status::with_error_details(code, message, details))
    };
    assert_eq!(exit_of(&Status::not_found("no stream")), "2 f.json: no stream");
    assert_eq!(exit_of(&Status::invalid_argument("no stream")), "2 f.json: no stream");
    assert_eq!(
        with(Code::InvalidArgument, "UNKNOWN_STREAM", "no stream"),
        "2 f.json: no stream (UNKNOWN_STREAM, row 3); mend it"
    );
    assert_eq!(
        with(Code::InvalidArgument, "torn_row", "not closed"),
        "1 f.json was not taken: not closed (torn_row, row 3); mend it"
    );
    assert!(exit_of(&Status::resource_exhausted("full")).starts_with("1 f.json was not taken"));
    assert!(exit_of(&Status::unavailable("starting")).starts_with("4 f.json"));
    assert!(exit_of(&Status::internal("oh")).starts_with("1 "));
}

#[tokio::test]
async fn a_failing_file_does_not_stop_the_others_and_the_worst_is_the_commands() {
    let node = TestNode::start().await;
    let folder = tempfile::tempdir().unwrap();
    let [good, gone, odd] = ["a.json", "gone.json", "odd.txt"].map(|name| folder.path().join(name));
    std::fs::write(&good, "[]").unwrap();
    std::fs::write(&odd, "").unwrap();
    let files = [gone, odd, good.clone()];
    let failure = send_all(&args(&node, &files, &["--json"])).await.unwrap_err();
    assert!(matches!(&failure, Failure::Usage(m) if m.contains("gone.json")), "{failure:?}");
    assert_eq!(node.kept().attempts.len(), 1);
    assert_eq!(node.kept().attempts[0].header.filename, "a.json");

    node.kept().refusals.push_back(Status::data_loss("torn"));
    let files = [files[0].clone(), good.clone(), good.clone()];
    let failure = send_all(&args(&node, &files, &[])).await.unwrap_err();
    assert!(matches!(failure, Failure::Refused { .. }), "{failure:?}");
    assert_eq!(node.kept().attempts.len(), 3);
}

#[tokio::test]
async fn the_outcome_is_what_became_of_the_rows() {
    let node = TestNode::start().await;
    let client = UploadClient::connect(&node.address).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.csv.gz");
    std::fs::write(&path, "x").unwrap();
    let files = [path.clone()];
    let early = args(&node, &files, &["--no-wait", "--key", "mine"]);
    let (outcome, halted) = send(&client, &early, &path).await.unwrap();
    assert!(halted.is_none());
    assert_eq!((outcome.state.as_str(), outcome.duplicate), ("accepted", false));
    let header = node.kept().attempts[0].header.clone();
    assert_eq!((&*header.idempotency_key, &*header.compression), ("mine", "gzip"));

    let patient = args(&node, &files, &["--key", "mine"]);
    let (outcome, _) = send(&client, &patient, &path).await.unwrap();
    let json = serde_json::to_value(&outcome).unwrap();
    let file = path.to_str().unwrap();
    let expected = serde_json::json!({
        "upload_id": "upload-0", "state": "landed", "rows": 10, "dead_letters": 2, "filtered": 1,
        "duplicate": true, "file": file, "stream": "clicks",
    });
    assert_eq!(json, expected);

    node.kept().states = vec![UploadStatus {
        state: HALTED.into(),
        reason: "the file is gone".into(),
        source: "upload:clicks/upload-0".into(),
        rows: 10,
        rows_done: 4,
        ..UploadStatus::default()
    }];
    match send(&client, &patient, &path).await.unwrap() {
        (outcome, Some(Failure::Check(message))) => {
            assert_eq!(outcome.state, HALTED);
            assert!(message.contains("4 of 10 rows: the file is gone"), "{message}");
            assert!(message.contains("adopt upload:clicks/upload-0"), "{message}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn one_key_is_for_one_file_and_a_missing_node_is_told() {
    let node = TestNode::start().await;
    let files = [PathBuf::from("a.json"), PathBuf::from("b.json")];
    let failure = upload(args(&node, &files, &["--key", "k"])).await.unwrap_err();
    assert!(matches!(&failure, Failure::Usage(m) if m.contains("--key")), "{failure:?}");
    let nobody = parsed(&["a.json", "--stream", "s", "--grpc", "127.0.0.1:1"]).unwrap();
    let failure = send_all(&nobody).await.unwrap_err();
    assert!(
        matches!(&failure, Failure::Unreachable(m) if m.contains("127.0.0.1:1")),
        "{failure:?}"
    );
}
