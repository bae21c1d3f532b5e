//! Connections to Redis.

use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, IntoConnectionInfo, RedisError, RedisResult,
    aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection},
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// How long one command may take before the connection counts as broken. The queue's entries are
/// megabytes and its scripts touch hundreds of fields, so this is far from the usual.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Redis, as an address that connections are made from.
#[derive(Debug, Clone)]
pub struct RedisLink {
    client: Client,
}

impl RedisLink {
    /// `redis://host:port/db`. Does not connect yet.
    ///
    /// # Errors
    /// When the address is none.
    pub fn new(url: &str) -> RedisResult<Self> {
        // Without TCP_NODELAY the end of a large pipeline waits for a delayed acknowledgement.
        let tcp = TcpSettings::default().set_nodelay(true);
        let address = url.into_connection_info()?.set_tcp_settings(tcp);
        Ok(Self { client: Client::open(address)? })
    }

    /// A connection that mends itself; commands on it are pipelined in the order of their calls.
    ///
    /// # Errors
    /// When Redis does not answer now.
    pub async fn manager(&self) -> RedisResult<ConnectionManager> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT))
            .set_number_of_retries(6)
            .set_max_delay(Duration::from_secs(1));
        ConnectionManager::new_with_config(self.client.clone(), config).await
    }
}

/// After an error of Redis, the same is tried again after so long.
pub const RETRY: Duration = Duration::from_millis(200);

impl RedisLink {
    /// Like [`RedisLink::manager`], but goes on until Redis can be reached.
    pub async fn manager_at_last(&self) -> ConnectionManager {
        loop {
            match self.manager().await {
                Ok(manager) => return manager,
                Err(error) => tracing::warn!(%error, "Redis cannot be reached; trying again"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// A connection of its own for commands that block for at most `block` (`XREADGROUP … BLOCK`,
/// `BLPOP`). An answer that is overdue by much more means that the connection is dead, even when
/// nobody said so.
///
/// # Errors
/// When Redis does not answer now.
pub async fn blocking_connection(
    link: &RedisLink,
    block: Duration,
) -> Result<MultiplexedConnection, RedisError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(block + RESPONSE_TIMEOUT));
    link.client.get_multiplexed_async_connection_with_config(&config).await
}

/// The connection on which the living instance of an actor waits for entries. It outlives the
/// instance, so that the next one can end what is left of it: a read that is still waiting would
/// take entries that nobody then works on.
#[derive(Debug, Clone, Default)]
pub struct ReadingSlot(Arc<Mutex<Option<i64>>>);

impl ReadingSlot {
    /// A connection for commands that block, after the one before it was ended.
    ///
    /// # Errors
    /// When Redis does not answer now.
    pub async fn connect(
        &self,
        link: &RedisLink,
        block: Duration,
    ) -> Result<MultiplexedConnection, RedisError> {
        let mut connection = blocking_connection(link, block).await?;
        let before = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = before {
            // How many were ended: none, when it is gone already.
            let _: i64 = redis::cmd("CLIENT")
                .arg("KILL")
                .arg("ID")
                .arg(id)
                .query_async(&mut connection)
                .await?;
        }
        let id = redis::cmd("CLIENT").arg("ID").query_async(&mut connection).await?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(id);
        Ok(connection)
    }
}
