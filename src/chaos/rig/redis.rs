//! The Redis of the system under test, with a proxy before it. Whoever watches over an embedded
//! redis-server starts this one again when it is killed.

use crate::{
    chaos::{
        processes::{Frozen, signal},
        proxy::Proxy,
    },
    embedded::EmbeddedRedis,
};
use anyhow::{Context as _, bail};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How long it may take to answer again.
const BACK_WITHIN: Duration = Duration::from_secs(30);
/// The pace of looking.
const PACE: Duration = Duration::from_millis(20);
/// How long one look may take.
const LOOK: Duration = Duration::from_secs(1);

/// See the module.
pub struct Redis {
    server: EmbeddedRedis,
    dir: PathBuf,
    /// What nodes connect to.
    pub proxy: Proxy,
}

impl Redis {
    /// Starts it with its files in `dir`.
    ///
    /// # Errors
    /// When redis-server does not start.
    pub fn start(dir: &Path) -> anyhow::Result<Self> {
        let server = EmbeddedRedis::start(dir)?;
        let address = server.url().trim_start_matches("redis://").trim_end_matches("/0");
        let upstream: SocketAddr = address.parse()?;
        let proxy = Proxy::start(None, upstream)?;
        Ok(Self { server, dir: dir.canonicalize()?, proxy })
    }

    /// Where it is, without the proxy.
    #[must_use]
    pub fn url(&self) -> &str {
        self.server.url()
    }

    /// Where nodes find it.
    #[must_use]
    pub fn url_for_nodes(&self) -> String {
        format!("redis://{}/0", self.proxy.address())
    }

    /// A connection past the proxy.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn connection(&self) -> anyhow::Result<redis::Connection> {
        let client = redis::Client::open(self.url())?;
        let connection = client.get_connection_with_timeout(LOOK)?;
        connection.set_read_timeout(Some(BACK_WITHIN))?;
        Ok(connection)
    }

    fn pid(&self) -> anyhow::Result<u32> {
        let text = std::fs::read_to_string(self.dir.join("redis.pid"))?;
        text.trim().parse().with_context(|| format!("`{text}` is no pid"))
    }

    /// SIGSTOP, until the guard is dropped.
    ///
    /// # Errors
    /// The system's word.
    pub fn freeze(&self) -> anyhow::Result<Frozen> {
        Ok(Frozen::new(self.pid()?)?)
    }

    /// SIGKILL; with `empty` it finds no file when it is started again. Waits until it answers.
    ///
    /// # Errors
    /// When it does not answer again.
    pub fn kill(&self, empty: bool) -> anyhow::Result<()> {
        let pid = self.pid()?;
        // Stopped first: nothing is written any more while its files go.
        signal(pid, libc::SIGSTOP)?;
        if empty {
            std::fs::remove_dir_all(self.dir.join("appendonlydir"))?;
        }
        signal(pid, libc::SIGKILL)?;
        let until = Instant::now() + BACK_WITHIN;
        while Instant::now() < until {
            std::thread::sleep(PACE);
            if self.pid().is_ok_and(|now| now != pid) && self.answers() {
                return Ok(());
            }
        }
        bail!("redis-server does not come back")
    }

    fn answers(&self) -> bool {
        let asked = self.connection().map(|mut to| redis::cmd("PING").query::<String>(&mut to));
        matches!(asked, Ok(Ok(_)))
    }

    /// Two thirds of the time it answers nobody.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn slow(&self, length: Duration) -> anyhow::Result<()> {
        let mut connection = self.connection()?;
        let until = Instant::now() + length;
        while Instant::now() < until {
            redis::cmd("CLIENT").arg("PAUSE").arg(100).arg("ALL").query::<()>(&mut connection)?;
            std::thread::sleep(Duration::from_millis(150));
        }
        Ok(())
    }
}
