//! Writing newest values: the calls of the script, and in which pieces they go to Redis.

use super::{OnlineOutcome, Promise, format_timestamp, format_value};
use crate::{
    failpoint,
    messages::OnlineValue,
    planted,
    protocol::source::{SourceName, Token},
    queue::Keys,
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use redis::{Pipeline, Script, ScriptInvocation, aio::ConnectionManager};
use serde_json::json;
use std::{
    collections::{HashMap, HashSet},
    sync::LazyLock,
};

/// Fields that one call writes at most, so that no call keeps Redis from others for long.
const FIELDS_A_CALL: usize = 256;
/// Calls that are put together at once: whoever does so is kept from others for so long.
const CALLS_A_TRIP: usize = 8;
/// Trips on their way to Redis at once: it works on one while the next is put together.
const TRIPS: usize = 2;

/// The script. `KEYS` is not used: the keys' names depend on the data, and Redis Cluster is out of
/// scope.
const SCRIPT: &str = include_str!("write_online.lua");

/// The script, as it is unless a defect is planted. Made once: it is known to Redis by its hash.
fn script() -> &'static Script {
    static RULED: LazyLock<Script> = LazyLock::new(|| Script::new(SCRIPT));
    static UNFENCED: LazyLock<Script> = LazyLock::new(|| Script::new(&unfenced()));
    static UNRULED: LazyLock<Script> = LazyLock::new(|| Script::new(&unruled()));
    if planted!("no_token_check") {
        &UNFENCED
    } else if planted!("online_unruled") {
        &UNRULED
    } else {
        &RULED
    }
}

/// The script that asks nobody for a token.
fn unfenced() -> String {
    let check = "if call('HGET', ns .. ':tokens', ARGV[3]) ~= ARGV[4] then";
    failpoint::altered(SCRIPT, &[(check, "if false then")])
}

/// The script that compares no versions.
fn unruled() -> String {
    let rules = [
        ("if not stored or stored < version then", "do"),
        ("if not stored or sub(stored, -72) < sub(field, -72) then", "do"),
        ("if not stored[i] or sub(stored[i], -72) < sub(field, -72) then", "do"),
    ];
    failpoint::altered(SCRIPT, &rules)
}

/// A value with the number of the token that wrote it.
type Numbered<'a> = (&'a OnlineValue, u32);

/// Writes a part's online values.
///
/// # Errors
/// Redis' word; any of the values may or may not be online then, which is harmless.
pub async fn write(
    connection: &ConnectionManager,
    keys: &Keys,
    generation: &str,
    source: &SourceName,
    token: Token,
    promise: &Promise<'_>,
    values: &[OnlineValue],
) -> redis::RedisResult<OnlineOutcome> {
    let settled = promise.settled;
    let promise = json!({ "to": promise.to, "script_sha256": promise.script_sha256 }).to_string();
    let token_text = token.to_string();
    let owner = Owner { source: source.0.as_ref(), token: &token_text, promise: &promise, settled };
    let values: Vec<_> = values.iter().map(|value| (value, token.number)).collect();
    invoke(connection, keys, generation, &owner, &values).await
}

/// Puts values online again that are durable, each with the number of the token that wrote it. No
/// token is asked for: what is in DuckDB belongs online, whoever owns the source now.
///
/// # Errors
/// Redis' word; any of the values may or may not be online then, which is harmless.
pub async fn restore(
    connection: &ConnectionManager,
    keys: &Keys,
    generation: &str,
    values: &[Numbered<'_>],
) -> redis::RedisResult<OnlineOutcome> {
    let nobody = Owner { source: "", token: "", promise: "", settled: true };
    invoke(connection, keys, generation, &nobody, values).await
}

/// Who writes, as the script wants it; an empty source is the store itself.
struct Owner<'a> {
    source: &'a str,
    token: &'a str,
    promise: &'a str,
    settled: bool,
}

async fn invoke(
    connection: &ConnectionManager,
    keys: &Keys,
    generation: &str,
    owner: &Owner<'_>,
    values: &[Numbered<'_>],
) -> redis::RedisResult<OnlineOutcome> {
    let script = script();
    let a_trip = FIELDS_A_CALL * CALLS_A_TRIP;
    // Even without values the token is checked and the promise recorded.
    let trips = values.len().div_ceil(a_trip).max(1);
    let outcomes = stream::iter(0..trips)
        .map(|trip| {
            let mut connection = connection.clone();
            async move {
                let from = trip * a_trip;
                let values = &values[from..values.len().min(from + a_trip)];
                let mut pipeline = Pipeline::new();
                let mut calls = values.chunks(FIELDS_A_CALL);
                let first = calls.next().unwrap_or_default();
                for chunk in std::iter::once(first).chain(calls) {
                    let mut call = script.prepare_invoke();
                    add_arguments(&mut call, keys, generation, owner, chunk);
                    pipeline.invoke_script(&call);
                }
                let answers: Vec<String> = match pipeline.query_async(&mut connection).await {
                    Err(e)
                        if e.kind()
                            == redis::ErrorKind::Server(redis::ServerErrorKind::NoScript) =>
                    {
                        script.load_async(&mut connection).await?;
                        pipeline.query_async(&mut connection).await?
                    }
                    other => other?,
                };
                Ok::<_, redis::RedisError>(OnlineOutcome::of(&answers))
            }
        })
        .buffered(TRIPS);
    // What follows a trip that was not admitted would not be either.
    outcomes
        .try_fold(OnlineOutcome::Written, |worst, outcome| async move { Ok(worst.max(outcome)) })
        .await
}

fn add_arguments(
    call: &mut ScriptInvocation<'_>,
    keys: &Keys,
    generation: &str,
    owner: &Owner<'_>,
    values: &[Numbered<'_>],
) {
    let newest = newest_of_features(values);
    call.arg(keys.namespace())
        .arg(generation)
        .arg(owner.source)
        .arg(owner.token)
        .arg(owner.promise)
        .arg(u8::from(owner.settled))
        .arg(newest.len());
    for (value, token_number) in newest {
        call.arg(&value.feature_name)
            .arg(&value.entity_id)
            .arg(format_value(value.value))
            .arg(format_timestamp(value.version.event_timestamp))
            .arg(value.version.pack(token_number));
    }
    let mut rest = values;
    while let Some((first, _)) = rest.first() {
        let (group, others) = rest.split_at(group_len(rest));
        call.arg(&first.entity_id).arg(group.len());
        for (value, _) in group {
            call.arg(&value.feature_name);
        }
        for (value, token_number) in group {
            call.arg(super::format_field(value.value, &value.version, *token_number));
        }
        rest = others;
    }
}

/// How many values at the beginning are of one entity, each of another feature.
fn group_len<'a>(values: &[Numbered<'a>]) -> usize {
    let Some((first, _)) = values.first() else { return 0 };
    let mut features = HashSet::new();
    let of_group = |&(value, _): &Numbered<'a>| {
        value.entity_id == first.entity_id && features.insert(value.feature_name.as_str())
    };
    values.iter().copied().take_while(of_group).count()
}

/// The value with the greatest version of each feature.
fn newest_of_features<'a>(values: &[Numbered<'a>]) -> Vec<Numbered<'a>> {
    let mut newest: HashMap<&str, Numbered<'a>> = HashMap::new();
    for (value, token_number) in values {
        newest
            .entry(value.feature_name.as_str())
            .and_modify(|kept| {
                if (kept.0.version, kept.1) < (value.version, *token_number) {
                    *kept = (value, *token_number);
                }
            })
            .or_insert((value, *token_number));
    }
    newest.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::version::Version;

    fn value(entity: &str, feature: &str, pos: i64) -> OnlineValue {
        let version = Version { event_timestamp: 1, created_at: 0, source_no: 1, pos, sub: 0 };
        OnlineValue { entity_id: entity.into(), feature_name: feature.into(), value: None, version }
    }

    fn numbered(values: &[OnlineValue]) -> Vec<Numbered<'_>> {
        values.iter().map(|value| (value, 7)).collect()
    }

    #[test]
    fn a_group_is_one_entity_and_no_feature_twice() {
        let values = [
            value("a", "f", 0),
            value("a", "g", 1),
            value("b", "f", 2),
            value("b", "f", 3),
            value("b", "g", 4),
        ];
        let values = numbered(&values);
        assert_eq!([0, 2, 3, 5].map(|from| group_len(&values[from..])), [2, 1, 2, 0]);
    }

    #[test]
    fn the_defects_of_the_script_are_none_of_the_script_itself() {
        assert!(![unfenced(), unruled()].contains(&SCRIPT.to_owned()));
        let compares = |script: &str| script.contains("< version") || script.contains("< sub(");
        assert!(compares(SCRIPT) && compares(&unfenced()) && !compares(&unruled()));
    }

    #[test]
    fn the_newest_of_each_feature_is_told_once() {
        let values =
            [value("a", "f", 5), value("b", "f", 9), value("c", "f", 2), value("a", "g", 0)];
        let mut newest: Vec<_> = newest_of_features(&numbered(&values))
            .into_iter()
            .map(|(v, _)| (v.feature_name.as_str(), v.entity_id.as_str()))
            .collect();
        newest.sort_unstable();
        assert_eq!(newest, [("f", "b"), ("g", "a")]);
    }
}
