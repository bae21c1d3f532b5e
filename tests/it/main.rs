//! Integration tests: one binary, modules by guarantee, real parts everywhere — a real Kafka
//! broker, a real redis-server, real Python, the real program as processes.
//!
//! A test that needs Java and Kafka's jars says so and is left out where they are missing, unless
//! `CI=true`: then everything must be there.

#![allow(clippy::unwrap_used)]

#[cfg(not(feature = "failpoints"))]
compile_error!(
    "the integration tests crash nodes at given points: add `--features failpoints`, as `make test` does"
);

mod admin;
mod as_of;
mod broker_faults;
mod chaos;
mod chaos_parts;
mod consumer_group;
mod dead_letters;
mod docs;
mod end_to_end;
mod exactly_once;
mod features;
mod file_check;
mod judge;
mod live_swap;
mod mock_cluster;
mod online_rule;
mod plain_writes;
mod planted;
mod python_workers;
mod real_input;
mod recovery;
mod redis_faults;
mod serving;
mod simulator;
mod store_faults;
mod store_recovery;
mod store_uploads;
mod supervision;
mod support;
mod telemetry;
mod transforms_cli;
mod transforms_swap_cli;
mod uploads;
