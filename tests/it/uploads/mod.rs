//! Files over gRPC, with real nodes, real files and a client that misbehaves where it must.

mod exactly_once;
mod formats;
mod hostile;
mod load;

use crate::support::{Bench, NodeProcess, millstream, run_json, wait_for};
use millstream::{
    files::FileKind,
    proto::{
        UploadHeader, UploadQuery, UploadReceipt, UploadRequest, UploadStatus, upload_query::Which,
        upload_request::Part, upload_service_client::UploadServiceClient,
    },
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{net::SocketAddr, path::Path, process::Command};
use tonic::{Status, transport::Channel};

/// A file to be sent, and how its client names it.
#[derive(Debug, Clone)]
struct Sending {
    header: UploadHeader,
    chunks: Vec<Vec<u8>>,
}

impl Sending {
    /// `bytes` for the stream `features`, in chunks of this size.
    fn new(key: &str, kind: FileKind, bytes: &[u8], chunk: usize) -> Self {
        let header = UploadHeader {
            idempotency_key: key.into(),
            stream: "features".into(),
            format: kind.format.as_str().into(),
            filename: "any".into(),
            size: bytes.len() as u64,
            sha256: format!("{:x}", Sha256::digest(bytes)),
            compression: kind.compression.as_str().into(),
        };
        Self { header, chunks: bytes.chunks(chunk).map(<[u8]>::to_vec).collect() }
    }

    fn parts(&self) -> Vec<UploadRequest> {
        let header = Part::Header(self.header.clone());
        let chunks = self.chunks.iter().cloned().map(Part::Chunk);
        let parts = std::iter::once(header).chain(chunks);
        parts.map(|part| UploadRequest { part: Some(part) }).collect()
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn client(node: SocketAddr) -> Result<UploadServiceClient<Channel>, Status> {
    UploadServiceClient::connect(format!("http://{node}"))
        .await
        .map_err(|error| Status::unavailable(error.to_string()))
}

async fn send_on(node: SocketAddr, sending: &Sending) -> Result<UploadReceipt, Status> {
    let parts = futures::stream::iter(sending.parts());
    Ok(client(node).await?.upload(parts).await?.into_inner())
}

/// Sends a file.
fn send(node: SocketAddr, sending: &Sending) -> Result<UploadReceipt, Status> {
    runtime().block_on(send_on(node, sending))
}

/// What became of a key.
fn status(node: SocketAddr, key: &str) -> Result<UploadStatus, Status> {
    runtime().block_on(async {
        let query = UploadQuery { which: Some(Which::IdempotencyKey(key.into())) };
        Ok(client(node).await?.get_upload(query).await?.into_inner())
    })
}

/// Waits until every row of a key is accounted for.
fn landed(node: &NodeProcess, key: &str) -> UploadStatus {
    wait_for(&format!("{key} to land"), || {
        status(node.grpc, key).ok().filter(|status| status.state == "landed")
    })
}

/// `rows` good events as NDJSON.
fn ndjson(from: u64, rows: u64) -> Vec<u8> {
    let line = |i: u64| {
        format!(
            "{{\"entity_id\":\"u{}\",\"feature_name\":\"f{}\",\"value\":{}.5,\"validated_at\":\"2026-01-{:02}T00:00:{:02}Z\",\
             \"created_at\":\"2026-02-01T00:00:00Z\"}}\n",
            i % 97,
            i % 5,
            i,
            i % 28 + 1,
            i % 60
        )
    };
    (from..from + rows).map(line).collect::<String>().into_bytes()
}

fn kind(name: &str) -> FileKind {
    FileKind::of_path(Path::new(name)).unwrap()
}

/// Feature rows and dead letters that uploads made, and different positions of these.
fn made(node: &NodeProcess) -> (i64, i64) {
    let count = |table: &str| {
        let sql = format!(
            "SELECT count(*)::BIGINT AS n, count(DISTINCT (source_no, pos))::BIGINT AS d
             FROM {table} JOIN sources USING (source_no) WHERE source LIKE 'upload:%'"
        );
        let counted = &node.query(&sql)[0];
        assert_eq!(counted["n"], counted["d"], "{table}: a row twice");
        counted["n"].as_i64().unwrap()
    };
    (count("features_table"), count("dead_letters"))
}

/// A bench without a broker: files need none.
fn bench() -> Bench {
    let mut bench = Bench::new("");
    bench.config.generator.upload_every_s = 0.0;
    bench
}

/// Runs a Python program in the environment of the scripts.
fn python(bench: &Bench, program: &str) {
    let python = bench.config.python.venv.join("bin/python");
    let output = Command::new(python).arg("-c").arg(program).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// `millstream upload`: its one receipt.
fn upload_by_command(node: &NodeProcess, file: &Path, more: &[&str]) -> Value {
    let mut command = millstream();
    command.arg("upload").arg(file).args(["--json", "--grpc", &node.grpc.to_string()]);
    run_json(command.args(more))
}
