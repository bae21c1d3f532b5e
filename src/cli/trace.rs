//! `millstream trace`.

use super::{Failure, client::ClientArgs, dlq::shown};
use clap::Args;
use serde_json::Value;
use std::{fmt::Write as _, time::Duration};
use uuid::Uuid;

const DEADLINE: Duration = Duration::from_secs(60);

/// Arguments of `millstream trace`.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// The event's id, a UUID: `event_id` of dead letters, of `millstream features history` and of
    /// features_table.
    event_id: Uuid,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// Asks where an event went, and prints it.
pub async fn trace(args: TraceArgs) -> Result<(), Failure> {
    let query = [("event_id", args.event_id.to_string())];
    let body = args.client.get("/api/trace", &query, DEADLINE).await?.done()?.body;
    if args.json {
        println!("{}", String::from_utf8_lossy(&body));
        return Ok(());
    }
    let traced: Value = serde_json::from_slice(&body).map_err(anyhow::Error::from)?;
    print!("{}", told(&traced));
    Ok(())
}

/// A paragraph for each place that it came from.
fn told(traced: &Value) -> String {
    let mut out = format!("event {}\n", shown(&traced["event_id"]));
    let none = Vec::new();
    let list = |key: &str| traced[key].as_array().unwrap_or(&none).clone();
    let mut last_place = None;
    // Writing to a String cannot fail.
    for value in list("values") {
        let place = (value["source"].clone(), value["pos"].clone());
        if last_place.as_ref() != Some(&place) {
            let _ = write!(out, "\n{}", came(&value));
            let _ = writeln!(out, "  became true  {}", shown(&value["event_timestamp"]));
            let _ = writeln!(out, "  was made     {}", shown(&value["created_at"]));
            out.push_str(&batch(&value));
            last_place = Some(place);
        }
        let _ = writeln!(
            out,
            "  value        {} of {} = {}",
            shown(&value["feature_name"]),
            shown(&value["entity_id"]),
            match &value["value"] {
                Value::Null => "NULL".to_owned(),
                number => number.to_string(),
            }
        );
    }
    for letter in list("dead_letters") {
        let _ = write!(out, "\n{}", came(&letter));
        let _ = writeln!(out, "  recorded     {}", shown(&letter["recorded_at"]));
        out.push_str(&batch(&letter));
        let _ = writeln!(
            out,
            "  dead letter  {} in {}: {}",
            shown(&letter["reason"]),
            shown(&letter["stage"]),
            shown(&letter["detail"])
        );
        if let Some(replay) = letter["replay_id"].as_str() {
            let _ = writeln!(out, "  replayed     by {replay}");
        }
    }
    out
}

/// `kafka:stream/topic/partition` and an offset, or another source and a position.
fn came(of: &Value) -> String {
    let (source, pos) = (shown(&of["source"]), shown(&of["pos"]));
    let kafka = source.strip_prefix("kafka:").and_then(|rest| {
        let mut parts = rest.split('/');
        Some((parts.next()?, parts.next()?, parts.next()?))
    });
    match kafka {
        Some((stream, topic, partition)) => {
            format!("stream {stream}: topic {topic}, partition {partition}, offset {pos}\n")
        }
        None => format!("source {source}, position {pos}\n"),
    }
}

fn batch(of: &Value) -> String {
    let sha256: String = shown(&of["script_sha256"]).chars().take(12).collect();
    format!(
        "  batch        {}, script {} {sha256}, node {}\n  durable      {}\n",
        shown(&of["batch_seq"]),
        shown(&of["transform"]),
        shown(&of["node"]),
        shown(&of["committed_at"])
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_place_is_told_once_with_all_that_became_of_it() {
        let value = |feature: &str, pos: i64| {
            json!({ "source": "kafka:s/t/3", "pos": pos, "feature_name": feature, "entity_id": "e", "value": 1.5,
                    "event_timestamp": "A", "created_at": "B", "batch_seq": 7, "transform": "x",
                    "script_sha256": "0123456789abcdef", "node": "n", "committed_at": "C" })
        };
        let letter = json!({ "source": "upload:s/u", "pos": 4, "reason": "r", "stage": "decode", "detail": "d",
                             "replay_id": "p" });
        let traced = json!({ "event_id": "i", "values": [value("f", 1), value("g", 1), value("f", 2)], "dead_letters": [letter] });
        let told = told(&traced);
        assert_eq!(told.matches("partition 3, offset 1\n").count(), 1, "{told}");
        assert_eq!(told.matches("partition 3, offset 2\n").count(), 1, "{told}");
        for words in [
            "g of e = 1.5",
            "script x 0123456789ab,",
            "source upload:s/u, position 4",
            "r in decode: d",
            "by p",
        ] {
            assert!(told.contains(words), "{words}: {told}");
        }
    }
}
