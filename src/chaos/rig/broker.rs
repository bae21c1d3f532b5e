//! The broker of the system under test.

use crate::chaos::{processes::Frozen, proxy::Proxy};
use anyhow::{Context as _, bail};
use rdkafka::{
    mocking::MockCluster,
    producer::DefaultProducerContext,
    types::{RDKafkaApiKey, RDKafkaRespErr as Code},
};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

/// Seconds that a broker which was killed waits for its former self.
const SESSION: &str = "4";
/// Brokers of the in-process cluster.
const IN_PROCESS: i32 = 3;

/// Which broker is used.
#[derive(Debug, Clone)]
pub enum BrokerChoice {
    /// librdkafka's mock cluster in this process: no set-up, little memory.
    InProcess,
    /// A real one that this script starts and stops (`scripts/kafka.sh`).
    Script(PathBuf),
    /// One that runs: `host:port,…`. It is not hurt.
    Running(String),
}

/// A broker.
pub enum Broker {
    /// See [`BrokerChoice::InProcess`].
    InProcess {
        /// Three brokers.
        cluster: MockCluster<'static, DefaultProducerContext>,
        /// Topics, and how many partitions each has.
        topics: Vec<String>,
        /// Partitions of each.
        partitions: i32,
        /// How often leaders have moved.
        moves: i32,
    },
    /// See [`BrokerChoice::Script`].
    Real {
        /// What starts and stops it.
        script: PathBuf,
        /// Its files.
        dir: PathBuf,
        /// What nodes connect to.
        proxy: Proxy,
        /// What everybody else connects to.
        address: String,
    },
    /// See [`BrokerChoice::Running`].
    Running(String),
}

impl Broker {
    /// Starts or finds it.
    ///
    /// # Errors
    /// What is missing.
    pub fn start(
        choice: BrokerChoice,
        dir: &Path,
        topics: Vec<String>,
        partitions: i32,
    ) -> anyhow::Result<Self> {
        match choice {
            BrokerChoice::Running(brokers) => Ok(Self::Running(brokers)),
            BrokerChoice::InProcess => {
                let cluster = MockCluster::new(IN_PROCESS).context("no in-process broker")?;
                for topic in &topics {
                    cluster.create_topic(topic, partitions, IN_PROCESS)?;
                }
                Ok(Self::InProcess { cluster, topics, partitions, moves: 0 })
            }
            BrokerChoice::Script(script) => {
                let dir = dir.join("kafka");
                std::fs::create_dir_all(&dir)?;
                let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
                let proxy = Proxy::start(None, nowhere)?;
                let address = start_real(&script, &dir, proxy.address())?;
                proxy.set_upstream(behind_the_proxy(&dir)?);
                Ok(Self::Real { script, dir, proxy, address })
            }
        }
    }

    /// What the generator and the judge connect to.
    #[must_use]
    pub fn address(&self) -> String {
        match self {
            Self::InProcess { cluster, .. } => cluster.bootstrap_servers(),
            Self::Real { address, .. } => address.clone(),
            Self::Running(brokers) => brokers.clone(),
        }
    }

    /// What nodes connect to.
    #[must_use]
    pub fn for_nodes(&self) -> String {
        match self {
            Self::Real { proxy, .. } => proxy.address().to_string(),
            other => other.address(),
        }
    }

    /// What stands between nodes and a broker of its own.
    ///
    /// # Errors
    /// When nothing does.
    pub fn proxy(&self) -> anyhow::Result<&Proxy> {
        match self {
            Self::Real { proxy, .. } => Ok(proxy),
            _ => bail!("nothing stands between the nodes and this broker"),
        }
    }

    /// SIGKILL, then a new start on the same port and data.
    ///
    /// # Errors
    /// When it does not start again, or is none of ours.
    pub fn kill_and_start_again(&self) -> anyhow::Result<()> {
        let Self::Real { script, dir, proxy, .. } = self else { bail!("this broker is not ours") };
        stop_real(script, dir)?;
        start_real(script, dir, proxy.address())?;
        Ok(())
    }

    /// SIGSTOP, until the guard is dropped.
    ///
    /// # Errors
    /// When it is none of ours.
    pub fn freeze(&self) -> anyhow::Result<Frozen> {
        let Self::Real { dir, .. } = self else { bail!("this broker is not ours") };
        let pid = std::fs::read_to_string(dir.join("broker.pid"))?;
        Ok(Frozen::new(pid.trim().parse()?)?)
    }

    /// Every partition gets another leader.
    ///
    /// # Errors
    /// When it is not in this process.
    pub fn move_leaders(&mut self) -> anyhow::Result<()> {
        let Self::InProcess { cluster, topics, partitions, moves } = self else {
            bail!("only the in-process broker's leaders can be moved")
        };
        *moves += 1;
        for topic in topics {
            for partition in 0..*partitions {
                let leader = (*moves + partition) % IN_PROCESS + 1;
                cluster.partition_leader(topic, partition, Some(leader))?;
            }
        }
        Ok(())
    }

    /// The next commits of offsets and fetches are refused, each for another reason.
    ///
    /// # Errors
    /// When it is not in this process.
    pub fn refuse(&self) -> anyhow::Result<()> {
        let Self::InProcess { cluster, .. } = self else {
            bail!("only the in-process broker refuses on demand")
        };
        cluster.request_errors(
            RDKafkaApiKey::OffsetCommit,
            &[
                Code::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
                Code::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS,
                Code::RD_KAFKA_RESP_ERR_OFFSET_METADATA_TOO_LARGE,
                Code::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED,
            ],
        );
        cluster.request_errors(
            RDKafkaApiKey::Fetch,
            &[
                Code::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
                Code::RD_KAFKA_RESP_ERR_REPLICA_NOT_AVAILABLE,
                Code::RD_KAFKA_RESP_ERR_UNKNOWN_LEADER_EPOCH,
            ],
        );
        Ok(())
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Self::Real { script, dir, .. } = self {
            // It ends with its owner, this process, in any case.
            let _ = stop_real(script, dir);
        }
    }
}

/// The port of the listener that only the proxy connects to.
fn behind_the_proxy(dir: &Path) -> anyhow::Result<SocketAddr> {
    let port = std::fs::read_to_string(dir.join("proxied.port"))?;
    Ok(SocketAddr::from(([127, 0, 0, 1], port.trim().parse()?)))
}

fn start_real(script: &Path, dir: &Path, proxy: SocketAddr) -> anyhow::Result<String> {
    let (owner, proxy) = (std::process::id().to_string(), proxy.to_string());
    let mut start = Command::new(script);
    start.args(["start", "--owner", &owner, "--session", SESSION, "--proxied", &proxy, "--dir"]);
    let output = start.arg(dir).output().with_context(|| format!("{}", script.display()))?;
    if !output.status.success() {
        bail!("the broker does not start: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn stop_real(script: &Path, dir: &Path) -> anyhow::Result<()> {
    let done = Command::new(script).args(["stop", "--kill", "--dir"]).arg(dir).output()?;
    if !done.status.success() {
        bail!("the broker does not stop: {}", String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(())
}
