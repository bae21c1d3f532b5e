//! What a node answers: health, reads, uploads, errors.

use crate::support::{Bench, millstream, wait_for};
use millstream::proto::{
    QueryRequest, UploadRequest, feature_service_client::FeatureServiceClient,
    upload_service_client::UploadServiceClient,
};
use std::{os::unix::process::ExitStatusExt, process::Stdio};

#[test]
fn health_readiness_reads_and_uploads() {
    let mut bench = Bench::new("");
    bench.config.generator.rate = 500.0;
    let node = bench.node("generate,process,store");
    assert_eq!(node.get("/healthz"), (200, "ok\n".into()));
    wait_for("the node to be ready", || (node.get("/readyz").0 == 200).then_some(()));
    wait_for("rows", || (node.committed_events() > 500).then_some(()));

    let rows = node.query("SELECT count(*) AS n, NULL AS nothing FROM features_table");
    assert!(rows[0]["n"].as_i64().unwrap() > 100, "{rows}");
    assert!(rows[0]["nothing"].is_null());
    let refused = |sql: &str| {
        let output =
            millstream().args(["query", sql, "--http", &node.http.to_string()]).output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(2),
            "{sql}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    refused("DELETE FROM features_table");
    refused("SELECT * FROM read_text('/etc/hostname')");
    refused("SELECT 1; SELECT 2");

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let url = format!("http://{}", node.grpc);
        let mut uploads = UploadServiceClient::connect(url.clone()).await.unwrap();
        let refused =
            uploads.upload(tokio_stream_of(UploadRequest { part: None })).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        assert!(refused.message().contains("neither a header nor a chunk"), "{refused:?}");

        let mut reads = FeatureServiceClient::connect(url.clone()).await.unwrap();
        let sql = "SELECT 41 + 1 AS answer".to_owned();
        let mut chunks = reads
            .query(QueryRequest { sql, ..QueryRequest::default() })
            .await
            .unwrap()
            .into_inner();
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.message().await.unwrap() {
            bytes.extend(chunk.data);
        }
        let mut batches =
            arrow::ipc::reader::StreamReader::try_new(bytes.as_slice(), None).unwrap();
        let answer = arrow::util::display::array_value_to_string(
            batches.next().unwrap().unwrap().column(0),
            0,
        );
        assert_eq!(answer.unwrap(), "42");

        let channel = tonic::transport::Endpoint::new(url).unwrap().connect().await.unwrap();
        let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
        let request =
            tonic_health::pb::HealthCheckRequest { service: "millstream.v1.UploadService".into() };
        assert_eq!(health.check(request).await.unwrap().into_inner().status, 1);
    });
    node.stop_well();
}

fn tokio_stream_of<T: Send + 'static>(item: T) -> impl futures::Stream<Item = T> + Send {
    futures::stream::once(std::future::ready(item))
}

#[test]
fn errors_say_what_to_do_and_have_their_exit_codes() {
    let code_and_text = |command: &mut std::process::Command| {
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text) = code_and_text(millstream().args(["verify", "--http", "127.0.0.1:1"]));
    assert_eq!(code, Some(4), "{text}");
    assert!(text.contains("millstream run"), "{text}");

    let (code, text) = code_and_text(millstream().args(["run", "--roles", "process,cook"]));
    assert_eq!(code, Some(2), "{text}");

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.toml");
    std::fs::write(&file, "[python]\nmax_worker = 3\n").unwrap();
    let (code, text) = code_and_text(millstream().args(["run", "--config"]).arg(&file));
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains(":2:1") && text.contains("max_workers"), "{text}");

    let (code, text) = code_and_text(millstream().args(["run", "--roles", "store"]));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("MILLSTREAM__REDIS__URL"), "{text}");
}

#[test]
fn a_command_whose_reader_has_gone_ends_quietly() {
    let mut command = millstream();
    command.args(["config", "schema"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Far less than it would print.
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.signal(), Some(libc::SIGPIPE));
}
