//! Brokers that librdkafka forgot.

use rdkafka::{bindings as rd, client::NativeClient, statistics::Statistics};
use std::ffi::CString;

/// Whether the client is connected to any broker.
#[must_use]
pub fn any_broker_up(statistics: &Statistics) -> bool {
    let real = |source: &str| source == "configured" || source == "learned";
    statistics.brokers.values().any(|b| real(&b.source) && b.state == "UP")
}

/// Tells the client its brokers again, `host:port,…`; those that it knows stay as they are.
///
/// While a cluster comes up it may answer that it has no brokers. librdkafka (2.10 to 2.13 at least,
/// issue 5301) then drops all that it knows, those of `bootstrap.servers` too, and as it has nobody
/// to ask it never learns of any again.
pub fn remember_brokers(client: &NativeClient, brokers: &str) {
    let Ok(list) = CString::new(brokers) else { return };
    // SAFETY: the client lives as long as its wrapper; librdkafka copies the list.
    let added = unsafe { rd::rd_kafka_brokers_add(client.ptr(), list.as_ptr()) };
    tracing::warn!(brokers, added, "no broker is connected; trying the configured ones again");
}
