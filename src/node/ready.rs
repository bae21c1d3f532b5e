//! Whether a node is ready, and why not.

use super::NodeView;
use std::time::Duration;

impl NodeView {
    async fn redis_problem(&self) -> Option<String> {
        let redis = self.redis.as_ref()?;
        let mut manager = match redis.manager().await {
            Ok(manager) => manager,
            Err(error) => return Some(error.to_string()),
        };
        let pong: redis::RedisResult<String> = redis::cmd("PING").query_async(&mut manager).await;
        pong.err().map(|error| error.to_string())
    }

    /// What is not ready, by component; empty: everything is.
    pub async fn not_ready(&self) -> Vec<(&'static str, String)> {
        let mut missing = Vec::new();
        if let Some(why) = self.redis_problem().await {
            missing.push(("redis", why));
        }
        for (actor, status) in self.registry.status() {
            if !status.up {
                missing.push(("actors", format!("{actor} is between two lives")));
            }
        }
        if let Some(ingest) = &self.ingest {
            let partitions = ingest.status();
            let waiting: Vec<&String> = partitions
                .iter()
                .filter(|(_, p)| p.state != "reading")
                .map(|(name, _)| name)
                .collect();
            if let Some(first) = waiting.first() {
                let state = partitions.get(*first).map_or("", |p| p.state);
                missing.push((
                    "kafka",
                    format!("{} partitions are not read yet ({first}: {state})", waiting.len()),
                ));
            } else if partitions.is_empty() && self.started_at.elapsed() < Duration::from_secs(20) {
                missing.push(("kafka", "no partitions are assigned yet".into()));
            }
        }
        missing
    }
}
