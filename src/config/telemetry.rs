//! `[telemetry]`: where traces go.

use axum::http::{Uri, uri::Scheme};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The standard variables of OpenTelemetry that name a receiver of traces; the first one that is set
/// counts.
const STANDARD: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// `[telemetry]`: where traces go.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// Address of an OTLP/gRPC receiver of traces, `http://host:port`; empty: what
    /// `OTEL_EXPORTER_OTLP_ENDPOINT` says, and none without it.
    pub otlp: String,
    /// Share of the batches whose traces are exported, from 0 (none) to 1. The batch's id decides, so
    /// that all processes decide alike.
    pub otlp_sample: f64,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { otlp: String::new(), otlp_sample: 1.0 }
    }
}

impl TelemetryConfig {
    /// Takes the receiver from the standard variables, unless it is configured.
    pub(super) fn or_standard(&mut self, mut variable: impl FnMut(&str) -> Option<String>) {
        if self.otlp.is_empty() {
            let found = STANDARD.into_iter().filter_map(&mut variable).find(|v| !v.is_empty());
            self.otlp = found.unwrap_or_default();
        }
    }

    /// What cannot be said by types alone.
    pub(super) fn validate(&self) -> Result<(), String> {
        if !(0.0..=1.0).contains(&self.otlp_sample) {
            return Err("`telemetry.otlp_sample` must be from 0 (none) to 1 (all)".into());
        }
        let told = &self.otlp;
        if told.is_empty() {
            return Ok(());
        }
        let from = format!("`telemetry.otlp` (or {})", STANDARD[1]);
        let address = told.parse::<Uri>().ok();
        match address.as_ref().and_then(Uri::scheme) {
            Some(scheme) if *scheme == Scheme::HTTP => Ok(()),
            Some(scheme) if *scheme == Scheme::HTTPS => Err(format!(
                "{from} is `{told}`: there is no TLS yet; write the http:// address of a collector on this machine"
            )),
            _ => Err(format!("{from} is `{told}`: write http://host:port")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_that_can_be_sent_to_is_taken() {
        let judged = |otlp: &str| {
            TelemetryConfig { otlp: otlp.into(), ..TelemetryConfig::default() }.validate()
        };
        for good in ["", "http://127.0.0.1:4317", "http://collector:4317/", "http://[::1]:4317"] {
            judged(good).unwrap();
        }
        for (bad, says) in [
            ("https://collector:4317", "no TLS"),
            ("collector:4317", "http://host:port"),
            ("/v1/traces", "http://host:port"),
            ("ftp://collector", "http://host:port"),
        ] {
            let error = judged(bad).unwrap_err();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }

    #[test]
    fn a_share_is_between_none_and_all() {
        let judged =
            |otlp_sample| TelemetryConfig { otlp_sample, ..TelemetryConfig::default() }.validate();
        assert!([0.0, 0.25, 1.0].map(judged).iter().all(Result::is_ok));
        assert!([-0.1, 1.5, f64::NAN].map(judged).iter().all(Result::is_err));
    }
}
