//! Millstream turns raw events into features, live: events in over Kafka, Python scripts in
//! between, the newest critical values in Redis, every row for ever in DuckDB — exactly once.
//!
//! The modules in the order of the flow:
//!
//! | module | what |
//! |---|---|
//! | [`config`], [`cli`], [`node`], [`service`], [`report`] | how a node is told, started and asked |
//! | [`generate`], [`kafka`], [`files`], [`upload_client`] | where events come from |
//! | [`messages`], [`actors`] | what moves, and who moves it |
//! | [`protocol`] | the rules of delivery, without I/O |
//! | [`decode`], [`python`] | records to columns, columns to features |
//! | [`queue`], [`online`] | Redis: the way to the store, the newest values |
//! | [`spool`] | the folder that nodes and the store may share: rows on their way as files |
//! | [`store`] | DuckDB: the one transaction, the audit, the reads |
//! | [`chaos`], [`failpoint`] | who breaks it and judges; where tests crash it, and plant defects |
//! | [`supervision`], [`telemetry`], [`embedded`] | what keeps it alive, visible and easy to try |

pub mod actors;
pub mod chaos;
pub mod cli;
pub mod config;
pub mod decode;
pub mod embedded;
pub mod failpoint;
pub mod files;
pub mod generate;
pub mod json_rows;
pub mod kafka;
pub mod messages;
pub mod node;
pub mod online;
pub mod protocol;
pub mod python;
pub mod queue;
pub mod report;
pub mod service;
pub mod spool;
pub mod store;
pub mod supervision;
pub mod telemetry;
mod text;
pub mod upload_client;

/// What `proto/` says, as Rust.
pub mod proto {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("millstream.v1");

    /// The services, for gRPC reflection.
    pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("millstream");

    /// The headers of the frames between a node and its Python workers.
    pub mod worker {
        tonic::include_proto!("millstream.worker.v1");
    }
}
