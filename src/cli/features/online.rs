//! `millstream features online`.

use crate::{
    cli::{Failure, client::GrpcArgs, demo},
    proto::{
        FeatureStatus, OnlineFeaturesReply, OnlineFeaturesRequest,
        feature_service_client::FeatureServiceClient,
    },
};
use clap::Args;
use serde::Serialize;
use std::time::Duration;
use tonic::{Code, Status, transport::Endpoint};

/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of `millstream features online`.
#[derive(Debug, Args)]
pub struct OnlineArgs {
    /// Ids of entities.
    #[arg(value_name = "ENTITY", required = true)]
    entities: Vec<String>,
    /// Features, `name` or `stream:name` [default: all that any of the entities has].
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    features: Vec<String>,
    /// How old a value may be [default: as the stream's `max_age_s` says].
    #[arg(long, value_name = "TIME", value_parser = demo::parse_duration)]
    ttl: Option<Duration>,
    /// A JSON list instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    grpc: GrpcArgs,
}

/// A value, as it is printed.
#[derive(Debug, PartialEq, Serialize)]
struct Line {
    entity_id: String,
    feature: String,
    value: Option<f64>,
    status: &'static str,
    event_timestamp: Option<String>,
    age_s: Option<f64>,
}

/// Asks and prints.
pub(super) async fn online(args: OnlineArgs) -> Result<(), Failure> {
    let address = args.grpc.grpc;
    let unreachable = |why: &dyn std::fmt::Display| {
        Failure::Unreachable(format!(
            "no node answers at {address} ({why}): start one with `millstream run`, or name its address with --grpc"
        ))
    };
    let endpoint = Endpoint::from_shared(format!("http://{address}"));
    let endpoint = endpoint.map_err(anyhow::Error::from)?.timeout(PATIENCE);
    let channel = endpoint.connect_timeout(PATIENCE).connect().await;
    let mut client = FeatureServiceClient::new(channel.map_err(|error| unreachable(&error))?);
    let request = OnlineFeaturesRequest {
        entity_ids: args.entities.clone(),
        features: args.features,
        max_age_us: args.ttl.map(|age| i64::try_from(age.as_micros()).unwrap_or(i64::MAX)),
    };
    let reply = client.get_online_features(request).await.map_err(|status| failure(&status))?;
    let lines = lines(&args.entities, reply.into_inner());
    if args.json {
        println!("{}", serde_json::to_string(&lines).map_err(anyhow::Error::from)?);
    } else {
        println!("{}", table(&lines));
    }
    Ok(())
}

fn failure(status: &Status) -> Failure {
    let why = status.message().to_owned();
    match status.code() {
        Code::InvalidArgument | Code::NotFound => Failure::Usage(why),
        Code::Unavailable => Failure::Unreachable(why),
        _ => Failure::Runtime(anyhow::anyhow!("{status}")),
    }
}

/// Entity by entity, as they were asked for.
fn lines(entities: &[String], reply: OnlineFeaturesReply) -> Vec<Line> {
    let of_entity = |(i, entity): (usize, &String)| {
        let line = |feature: &crate::proto::OnlineFeature| {
            let value = feature.values.get(i)?;
            let at = value.event_timestamp_us.and_then(chrono::DateTime::from_timestamp_micros);
            Some(Line {
                entity_id: entity.clone(),
                feature: feature.name.clone(),
                value: value.value,
                status: match value.status() {
                    FeatureStatus::Present => "PRESENT",
                    FeatureStatus::NullValue => "NULL_VALUE",
                    FeatureStatus::OutsideMaxAge => "OUTSIDE_MAX_AGE",
                    FeatureStatus::NotFound | FeatureStatus::Unspecified => "NOT_FOUND",
                },
                event_timestamp: at
                    .map(|at| at.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)),
                age_s: value.age_us.map(|us| us as f64 / 1e6),
            })
        };
        reply.features.iter().filter_map(line).collect::<Vec<_>>()
    };
    entities.iter().enumerate().flat_map(of_entity).collect()
}

fn table(lines: &[Line]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_FULL_CONDENSED).set_header([
        "entity",
        "feature",
        "value",
        "age",
        "event timestamp",
        "status",
    ]);
    for line in lines {
        table.add_row([
            line.entity_id.clone(),
            line.feature.clone(),
            line.value.map(|v| v.to_string()).unwrap_or_default(),
            line.age_s.map(age).unwrap_or_default(),
            line.event_timestamp.clone().unwrap_or_default(),
            line.status.to_owned(),
        ]);
    }
    table
}

/// An age for people: the two greatest units.
fn age(seconds: f64) -> String {
    if seconds < 0.0 {
        return format!("in {}", age(-seconds));
    }
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds as u64;
    match whole {
        ..3_600 => format!("{} min {} s", whole / 60, whole % 60),
        3_600..86_400 => format!("{} h {} min", whole / 3_600, whole / 60 % 60),
        _ => format!("{} d {} h", whole / 86_400, whole / 3_600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{OnlineFeature, OnlineFeatureValue};

    #[test]
    fn ages_are_told_in_two_units() {
        for (seconds, text) in [
            (0.04, "0.0 s"),
            (59.94, "59.9 s"),
            (61.9, "1 min 1 s"),
            (7_260.0, "2 h 1 min"),
            (700_000.0, "8 d 2 h"),
            (-3.0, "in 3.0 s"),
        ] {
            assert_eq!(age(seconds), text);
        }
    }

    #[test]
    fn entity_by_entity_every_feature_is_told() {
        let value = |value: Option<f64>, status: FeatureStatus, at| OnlineFeatureValue {
            value,
            status: status.into(),
            event_timestamp_us: at,
            age_us: at.map(|_| 1_500_000),
        };
        let reply = OnlineFeaturesReply {
            features: vec![
                OnlineFeature {
                    name: "f".into(),
                    values: vec![
                        value(Some(2.0), FeatureStatus::Present, Some(1_500)),
                        value(None, FeatureStatus::NotFound, None),
                    ],
                },
                OnlineFeature {
                    name: "g".into(),
                    values: vec![
                        value(None, FeatureStatus::NullValue, Some(0)),
                        value(None, FeatureStatus::OutsideMaxAge, Some(0)),
                    ],
                },
            ],
        };
        let lines = lines(&["a".into(), "b".into()], reply);
        let told: Vec<_> =
            lines.iter().map(|l| (l.entity_id.as_str(), l.feature.as_str(), l.status)).collect();
        assert_eq!(
            told,
            [
                ("a", "f", "PRESENT"),
                ("a", "g", "NULL_VALUE"),
                ("b", "f", "NOT_FOUND"),
                ("b", "g", "OUTSIDE_MAX_AGE")
            ]
        );
        assert_eq!(lines[0].event_timestamp.as_deref(), Some("1970-01-01T00:00:00.001500Z"));
        assert_eq!((lines[0].age_s, lines[2].age_s), (Some(1.5), None));
    }
}
