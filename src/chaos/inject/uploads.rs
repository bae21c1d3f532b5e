//! Files that must not be taken: broken ones, ones that mean harm, uploads that break off or lie.

use super::{Done, Trouble, nothing};
use crate::{
    chaos::{plan::Planned, rig::Rig},
    files::hostile,
    proto::{
        UploadHeader, UploadReceipt, UploadRequest, upload_request::Part,
        upload_service_client::UploadServiceClient,
    },
};
use sha2::{Digest, Sha256};
use std::{net::SocketAddr, time::Duration};
use tonic::{Code, Status};

/// Bytes of one chunk.
const CHUNK: usize = 64 << 10;
/// How long a node may take to answer.
const DEADLINE: Duration = Duration::from_secs(30);

/// A good row, which must not land: its upload is none.
const ROW: &str = r#"{"entity_id":"chaos","feature_name":"chaos","value":1,"validated_at":"2024-01-01T00:00:00Z"}"#;

/// Sends the planned file to one of the nodes, which must refuse it.
pub(super) fn send(rig: &Rig, planned: &Planned) -> Done {
    let (_, node) = rig.addresses.process[planned.pick as usize % 2];
    let (header, mut chunks) = match planned.kind.as_str() {
        "upload-hostile" => hostile_file(planned),
        _ => sound_file(planned),
    };
    let mut header = header;
    match planned.kind.as_str() {
        "upload-cut" => chunks.truncate(chunks.len() / 2),
        "upload-lies" => match planned.pick / 2 % 4 {
            0 => header.sha256 = "0".repeat(64),
            1 => header.size += 1,
            2 => header.size -= 1,
            _ => header.idempotency_key.clear(),
        },
        _ => {}
    }
    let breaks_off = planned.kind == "upload-cut";
    match rig.http.block_on(upload(node, header, chunks, breaks_off)) {
        Ok(receipt) => Err(Trouble::Broken(format!("{} was taken: {receipt:?}", planned.kind))),
        Err(status) if status.code() == Code::Unavailable || status.code() == Code::Unknown => {
            nothing(format!("the node did not answer: {}", status.message()))
        }
        Err(_) => Ok(None),
    }
}

fn header(planned: &Planned, bytes: &[u8], format: &str, compression: &str) -> UploadHeader {
    UploadHeader {
        idempotency_key: format!("chaos-{}-{}", planned.kind, planned.pick),
        stream: "features".into(),
        format: format.into(),
        filename: "../../chaos\0".into(),
        size: bytes.len() as u64,
        sha256: format!("{:x}", Sha256::digest(bytes)),
        compression: compression.into(),
    }
}

fn chunks(bytes: &[u8]) -> Vec<Vec<u8>> {
    bytes.chunks(CHUNK).map(<[u8]>::to_vec).collect()
}

/// One that is refused as a whole.
fn hostile_file(planned: &Planned) -> (UploadHeader, Vec<Vec<u8>>) {
    let mut files = hostile::files();
    files.retain(|(_, _, _, refused)| refused.is_some());
    let (_, kind, bytes, _) = files.swap_remove(planned.pick as usize % files.len());
    let header = header(planned, &bytes, kind.format.as_str(), kind.compression.as_str());
    (header, chunks(&bytes))
}

/// Enough rows for several chunks.
fn sound_file(planned: &Planned) -> (UploadHeader, Vec<Vec<u8>>) {
    let bytes = format!("{ROW}\n").repeat(4 * CHUNK / ROW.len()).into_bytes();
    (header(planned, &bytes, "ndjson", "none"), chunks(&bytes))
}

async fn upload(
    node: SocketAddr,
    header: UploadHeader,
    chunks: Vec<Vec<u8>>,
    breaks_off: bool,
) -> Result<UploadReceipt, Status> {
    let connecting = UploadServiceClient::connect(format!("http://{node}"));
    let mut client = tokio::time::timeout(DEADLINE, connecting)
        .await
        .map_err(|_| Status::unavailable("no connection in time"))?
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let parts = std::iter::once(Part::Header(header)).chain(chunks.into_iter().map(Part::Chunk));
    let parts: Vec<_> = parts.map(|part| UploadRequest { part: Some(part) }).collect();
    let sent = futures::stream::iter(parts);
    let answer = if breaks_off {
        // The client is gone in the middle: its stream never ends, and then its connection does.
        let endless = futures::StreamExt::chain(sent, futures::stream::pending());
        let asked = client.upload(endless);
        match tokio::time::timeout(Duration::from_millis(500), asked).await {
            Ok(answer) => answer,
            Err(_) => return Err(Status::cancelled("broken off")),
        }
    } else {
        tokio::time::timeout(DEADLINE, client.upload(sent))
            .await
            .map_err(|_| Status::unavailable("no answer in time"))?
    };
    Ok(answer?.into_inner())
}
