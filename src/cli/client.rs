//! How commands reach a running node: its HTTP interface, or its gRPC services.

use super::Failure;
use clap::Args;
use std::{net::SocketAddr, time::Duration};

/// Where the node is.
#[derive(Debug, Clone, Args)]
pub struct ClientArgs {
    /// HTTP address of the node.
    #[arg(long, value_name = "ADDR", env = "MILLSTREAM_HTTP", default_value = "127.0.0.1:7070")]
    pub http: SocketAddr,
}

/// Where the node's gRPC services are.
#[derive(Debug, Clone, Args)]
pub struct GrpcArgs {
    /// Address of the node's gRPC services.
    #[arg(long, value_name = "ADDR", env = "MILLSTREAM_GRPC", default_value = "127.0.0.1:7071")]
    pub grpc: SocketAddr,
}

/// A node's answer.
#[derive(Debug)]
pub struct Answer {
    /// Whether the node did what it was asked.
    pub ok: bool,
    /// Whether it was the question that was wrong.
    pub refused: bool,
    /// Whether the node's configuration does not allow it.
    pub forbidden: bool,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Answer {
    /// What the node says was wrong.
    #[must_use]
    pub fn error(&self) -> String {
        serde_json::from_slice::<serde_json::Value>(&self.body)
            .ok()
            .and_then(|v| v["error"].as_str().map(str::to_owned))
            .unwrap_or_else(|| String::from_utf8_lossy(&self.body).into_owned())
    }
}

impl Answer {
    /// The answer, when the node did what it was asked.
    ///
    /// # Errors
    /// [`Failure::Usage`] when it was the question that was wrong, else [`Failure::Runtime`].
    pub fn done(self) -> Result<Self, Failure> {
        match (self.ok, self.refused && !self.forbidden) {
            (true, _) => Ok(self),
            (false, true) => Err(Failure::Usage(self.error())),
            (false, false) => Err(Failure::Runtime(anyhow::anyhow!(self.error()))),
        }
    }

    fn of(status: reqwest::StatusCode, body: Vec<u8>) -> Self {
        Self {
            ok: status.is_success(),
            refused: status.is_client_error(),
            forbidden: status == reqwest::StatusCode::FORBIDDEN,
            body,
        }
    }
}

impl ClientArgs {
    /// Posts JSON and waits for the answer.
    ///
    /// # Errors
    /// [`Failure::Unreachable`] when no node answers there in time.
    pub async fn post(
        &self,
        path: &str,
        json: &serde_json::Value,
        deadline: Duration,
    ) -> Result<Answer, Failure> {
        let url = format!("http://{}{path}", self.http);
        let request = client(deadline)?
            .post(url)
            .header("content-type", "application/json")
            .body(json.to_string());
        self.answer(request).await
    }

    /// Gets; the answer's body comes as it is made.
    ///
    /// # Errors
    /// As [`ClientArgs::post_arrow`].
    pub async fn get_stream(
        &self,
        path: &str,
        query: &[(&str, String)],
        deadline: Duration,
    ) -> Result<reqwest::Response, Failure> {
        let url = reqwest::Url::parse_with_params(&format!("http://{}{path}", self.http), query)
            .map_err(anyhow::Error::from)?;
        self.stream(client(deadline)?.get(url)).await
    }

    /// Posts an Arrow IPC stream; the answer's body comes as it is made.
    ///
    /// # Errors
    /// [`Failure::Unreachable`] when no node answers there in time, and what the node refuses as
    /// [`Answer::done`] says.
    pub async fn post_arrow(
        &self,
        path: &str,
        query: &[(&str, String)],
        body: Vec<u8>,
        deadline: Duration,
    ) -> Result<reqwest::Response, Failure> {
        let url = reqwest::Url::parse_with_params(&format!("http://{}{path}", self.http), query)
            .map_err(anyhow::Error::from)?;
        let request = client(deadline)?
            .post(url)
            .header("content-type", "application/vnd.apache.arrow.stream")
            .body(body);
        self.stream(request).await
    }

    async fn stream(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, Failure> {
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.bytes().await.map_err(|error| self.unreachable(&error))?.to_vec();
        Err(match Answer::of(status, body).done() {
            Err(failure) => failure,
            Ok(_) => Failure::Runtime(anyhow::anyhow!("{status}")),
        })
    }

    /// Gets, and waits for the answer.
    ///
    /// # Errors
    /// [`Failure::Unreachable`] when no node answers there in time.
    pub async fn get(
        &self,
        path: &str,
        query: &[(&str, String)],
        deadline: Duration,
    ) -> Result<Answer, Failure> {
        let url = reqwest::Url::parse_with_params(&format!("http://{}{path}", self.http), query)
            .map_err(anyhow::Error::from)?;
        self.answer(client(deadline)?.get(url)).await
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> Result<Answer, Failure> {
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let body = response.bytes().await.map_err(|error| self.unreachable(&error))?.to_vec();
        Ok(Answer::of(status, body))
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        // What it was asked it may have begun.
        let is_late = error.is_timeout() && !error.is_connect();
        Failure::Unreachable(match is_late {
            true => format!(
                "the node at http://{} has not answered in time; it may still do what it was asked",
                self.http
            ),
            false => format!(
                "no node answers at http://{} ({error}): start one with `millstream run`, or name its address \
                 with --http",
                self.http
            ),
        })
    }
}

fn client(deadline: Duration) -> Result<reqwest::Client, Failure> {
    let client = reqwest::Client::builder().no_proxy().timeout(deadline).build();
    Ok(client.map_err(anyhow::Error::from)?)
}
