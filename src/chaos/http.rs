//! Asking nodes over HTTP from threads that are no tasks.

use anyhow::{Context as _, bail};
use arrow::{array::AsArray, datatypes::Int64Type, ipc::reader::StreamReader};
use serde_json::Value;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::runtime::Runtime;

/// How long a question may take unless told otherwise.
pub const SOON: Duration = Duration::from_secs(5);

/// A client with a runtime of its own. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Http {
    runtime: Arc<Runtime>,
    client: reqwest::Client,
}

impl Http {
    /// One with a thread for all its calls.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn new() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("chaos-http")
            .enable_all()
            .build()?;
        // Nodes come and go: what was kept open to an earlier one would only fail.
        let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build()?;
        Ok(Self { runtime: Arc::new(runtime), client })
    }

    /// Runs something to its end. Not from a task.
    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// GETs JSON.
    ///
    /// # Errors
    /// No answer in time, or one that is no success: its text.
    pub fn get(&self, node: SocketAddr, path: &str) -> anyhow::Result<Value> {
        let request = self.client.get(format!("http://{node}{path}"));
        let (status, text) = self.send(request, SOON)?;
        if !(200..300).contains(&status) {
            bail!("{path}: {status}: {text}");
        }
        serde_json::from_str(&text).with_context(|| format!("{path} answers no JSON"))
    }

    /// Whether a path answers with success.
    #[must_use]
    pub fn is_well(&self, node: SocketAddr, path: &str) -> bool {
        let request = self.client.get(format!("http://{node}{path}"));
        self.send(request, Duration::from_secs(1)).is_ok_and(|(status, _)| status == 200)
    }

    /// POSTs JSON: status and answer, which is a text when it is no JSON.
    ///
    /// # Errors
    /// No answer in time.
    pub fn post(
        &self,
        node: SocketAddr,
        path: &str,
        body: &Value,
        deadline: Duration,
    ) -> anyhow::Result<(u16, Value)> {
        let request = self.client.post(format!("http://{node}{path}"));
        let request = request.header("content-type", "application/json").body(body.to_string());
        let (status, text) = self.send(request, deadline)?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    fn send(
        &self,
        request: reqwest::RequestBuilder,
        deadline: Duration,
    ) -> anyhow::Result<(u16, String)> {
        self.runtime.block_on(async {
            let answer = request.timeout(deadline).send().await?;
            Ok((answer.status().as_u16(), answer.text().await?))
        })
    }

    /// The only number that a SELECT answers.
    ///
    /// # Errors
    /// No answer in time, a refusal, or another kind of answer.
    pub fn count(&self, node: SocketAddr, sql: &str) -> anyhow::Result<i64> {
        let bytes = self.query(node, sql)?;
        let batch = StreamReader::try_new(bytes.as_slice(), None)?.next().context("no rows")??;
        let column = batch.column(0).as_primitive_opt::<Int64Type>().context("no number")?;
        column.iter().next().flatten().context("no row")
    }

    /// Rows of a SELECT, one Arrow IPC stream.
    ///
    /// # Errors
    /// No answer in time, or a refusal.
    pub fn query(&self, node: SocketAddr, sql: &str) -> anyhow::Result<Vec<u8>> {
        let body = serde_json::json!({ "sql": sql }).to_string();
        let request = self.client.post(format!("http://{node}/api/query"));
        let request = request.header("content-type", "application/json").body(body).timeout(SOON);
        self.runtime.block_on(async {
            let answer = request.send().await?.error_for_status()?;
            Ok(answer.bytes().await?.to_vec())
        })
    }
}
