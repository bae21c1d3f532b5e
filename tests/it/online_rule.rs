//! The online rule inside Redis is the rule of `protocol::online`: the same random writes through
//! both leave the same hashes.

use millstream::{
    embedded::EmbeddedRedis,
    messages::OnlineValue,
    online::{self, OnlineOutcome, Promise, format_field},
    protocol::{
        online::{Admission, OnlineRule, PromiseFate, promise_fate, stored_version, wins},
        source::{SourceName, Token},
        version::Version,
    },
    queue::{Keys, RedisLink},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use redis::{AsyncCommands, aio::ConnectionManager};
use std::collections::BTreeMap;

/// Every hash below the namespace, by its key.
type Hashes = BTreeMap<String, BTreeMap<String, String>>;

const GENERATIONS: [&str; 2] = ["g1", "g2"];
const ENTITIES: [&str; 3] = ["a", "b|c", "ä:1"];
const FEATURES: [&str; 2] = ["f", "version"];

/// What Redis would hold if the rule were written in Rust.
struct Model {
    namespace: String,
    generation: Option<&'static str>,
    hashes: Hashes,
}

impl Model {
    fn write(
        &mut self,
        generation: &str,
        source: &SourceName,
        token: Token,
        promise: &Promise<'_>,
        values: &[OnlineValue],
    ) -> OnlineOutcome {
        let key = |suffix: &str| format!("{}:{suffix}", self.namespace);
        let stored_token =
            self.hashes.get(&key("tokens")).and_then(|h| h.get(source.0.as_ref())).cloned();
        let rule = OnlineRule { generation: self.generation, token: stored_token.as_deref() };
        match rule.admit(generation, &token.to_string()) {
            Admission::Generation => return OnlineOutcome::Generation,
            Admission::Fenced => return OnlineOutcome::Fenced,
            Admission::Early => unreachable!("the promise decides that"),
            Admission::Admitted => {}
        }
        let settled = promise.settled;
        let promise =
            serde_json::json!({ "to": promise.to, "script_sha256": promise.script_sha256 });
        let promised = self.hashes.get(&key("promised"));
        let noted = promised.and_then(|p| p.get(source.0.as_ref()));
        let noted = noted.map(|p| serde_json::from_str(p).unwrap());
        let new = serde_json::from_value(promise.clone()).unwrap();
        match promise_fate(noted.as_ref(), &new, settled) {
            PromiseFate::Noted => {
                let promised = self.hashes.entry(key("promised")).or_default();
                promised.insert(source.0.to_string(), promise.to_string());
            }
            PromiseFate::KeptOut => {}
            PromiseFate::Early => return OnlineOutcome::Early,
        }
        for value in values {
            let packed = value.version.pack(token.number);
            let field = format_field(value.value, &value.version, token.number);
            let entity =
                self.hashes.entry(key(&format!("entity:{}", value.entity_id))).or_default();
            let stored = entity.get(&value.feature_name).and_then(|f| stored_version(f));
            if wins(stored, packed.as_str()) {
                entity.insert(value.feature_name.clone(), field.clone());
            }
            let newest =
                self.hashes.entry(key(&format!("feature:{}", value.feature_name))).or_default();
            if wins(newest.get("version").map(String::as_str), packed.as_str()) {
                let mut parts = field.split('|');
                newest.insert("value".into(), parts.next().unwrap().into());
                newest.insert("timestamp".into(), parts.next().unwrap().into());
                newest.insert("entity_id".into(), value.entity_id.clone());
                newest.insert("version".into(), packed);
            }
        }
        OnlineOutcome::Written
    }
}

fn random_values(random: &mut SmallRng) -> Vec<OnlineValue> {
    // One call writes at most 256 fields: now and then there are several.
    let count = if random.random_ratio(1, 10) { 300 } else { random.random_range(0..6) };
    let extremes = [i64::MIN, -1, 0, 1, 1_700_000_000_000_000];
    (0..count)
        .map(|_| OnlineValue {
            entity_id: ENTITIES[random.random_range(0..ENTITIES.len())].into(),
            feature_name: FEATURES[random.random_range(0..FEATURES.len())].into(),
            value: random.random_bool(0.9).then(|| random.random_range(-3..3).into()),
            version: Version {
                event_timestamp: extremes[random.random_range(1..extremes.len())],
                created_at: extremes[random.random_range(0..extremes.len())],
                source_no: random.random_range(-1..2),
                pos: random.random_range(0..3),
                sub: random.random_range(0..2),
            },
        })
        .collect()
}

async fn hashes(connection: &mut ConnectionManager, namespace: &str) -> Hashes {
    let keys: Vec<String> = connection.keys(format!("{namespace}:*")).await.unwrap();
    let mut found = Hashes::new();
    for key in keys {
        let kind: String = redis::cmd("TYPE").arg(&key).query_async(connection).await.unwrap();
        if kind == "hash" {
            found.insert(key.clone(), connection.hgetall(&key).await.unwrap());
        }
    }
    found
}

/// Drives one sequence of writes through both.
async fn compare(connection: &mut ConnectionManager, seed: u64) -> BTreeMap<&'static str, usize> {
    let mut random = SmallRng::seed_from_u64(seed);
    let namespace = format!("seed{seed}");
    let keys = Keys::new(&namespace);
    let mut model = Model { namespace: namespace.clone(), generation: None, hashes: Hashes::new() };
    let sources = [SourceName::kafka("s", "t", 0), SourceName::kafka("s", "t", 1)];
    let tokens = [Token::after(0), Token::after(1), Token::after(2)];
    let mut outcomes = BTreeMap::new();
    for _ in 0..60 {
        let source = &sources[random.random_range(0..sources.len())];
        let token = tokens[random.random_range(0..tokens.len())];
        match random.random_range(0..10) {
            0 => {
                let generation = GENERATIONS[random.random_range(0..GENERATIONS.len())];
                model.generation = Some(generation);
                let () = connection.set(keys.generation(), generation).await.unwrap();
            }
            1 | 2 => {
                let field = source.0.to_string();
                let () = connection.hset(keys.tokens(), &field, token.to_string()).await.unwrap();
                let known = model.hashes.entry(keys.tokens()).or_default();
                known.insert(field, token.to_string());
            }
            _ => {
                let generation = GENERATIONS[random.random_range(0..GENERATIONS.len())];
                let promise = Promise {
                    to: random.random_range(0..9),
                    script_sha256: ["h", "i"][random.random_range(0..2)],
                    settled: random.random_bool(0.7),
                };
                let values = random_values(&mut random);
                let outcome =
                    online::write(connection, &keys, generation, source, token, &promise, &values)
                        .await
                        .unwrap();
                let expected = model.write(generation, source, token, &promise, &values);
                assert_eq!(outcome, expected, "seed {seed}");
                let name = match outcome {
                    OnlineOutcome::Written => "written",
                    OnlineOutcome::Fenced => "fenced",
                    OnlineOutcome::Early => "early",
                    OnlineOutcome::Generation => "generation",
                };
                *outcomes.entry(name).or_default() += 1;
            }
        }
    }
    assert_eq!(hashes(connection, &namespace).await, model.hashes, "seed {seed}");
    outcomes
}

#[test]
fn the_script_in_redis_is_the_rule() {
    let dir = tempfile::tempdir().unwrap();
    let server = EmbeddedRedis::start(dir.path()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut connection = RedisLink::new(server.url()).unwrap().manager().await.unwrap();
        let mut outcomes: BTreeMap<&str, usize> = BTreeMap::new();
        for seed in 0..60 {
            for (name, n) in compare(&mut connection, seed).await {
                *outcomes.entry(name).or_default() += n;
            }
        }
        // Else the comparison says nothing of that row of the table.
        for name in ["written", "fenced", "early", "generation"] {
            assert!(outcomes.get(name).copied().unwrap_or_default() > 50, "{outcomes:?}");
        }
    });
}
