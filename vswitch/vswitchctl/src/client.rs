//! The API's client: one request a connection, over the unix socket.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use vswitch::api::ErrorBody;

/// Bytes of an answer, at most: a full MAC table of a million entries has some 100 MB.
const MAX_ANSWER: usize = 1 << 28;

/// Speaks to one vswitchd.
pub(crate) struct Client {
    socket: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Client {
    /// For the vswitchd with this run directory.
    pub(crate) fn new(run_dir: &Path) -> anyhow::Result<Client> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .context("cannot start")?;
        Ok(Client {
            socket: run_dir.join("api.sock"),
            runtime,
        })
    }

    /// Asks for a resource.
    pub(crate) fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.call(Method::GET, path, Vec::new())
    }

    /// Makes, changes or deletes something.
    pub(crate) fn send(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<Answer> {
        self.call(method, path, serde_json::to_vec(body)?)
    }

    /// Deletes something.
    pub(crate) fn delete(&self, path: &str) -> anyhow::Result<Answer> {
        self.call(Method::DELETE, path, Vec::new())
    }

    fn call(&self, method: Method, path: &str, body: Vec<u8>) -> anyhow::Result<Answer> {
        self.runtime.block_on(self.exchange(method, path, body))
    }

    async fn exchange(&self, method: Method, path: &str, body: Vec<u8>) -> anyhow::Result<Answer> {
        let shown = self.socket.display();
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| match error.kind() {
            ErrorKind::PermissionDenied => {
                anyhow!("no permission for {shown}; allowed: root, and members of the socket's group")
            }
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                anyhow!("vswitchd does not answer on {shown}; start it, or give its --run-dir")
            }
            _ => anyhow!("cannot connect to {shown}: {error}"),
        })?;
        let lost = || format!("the connection to vswitchd on {shown} was lost");
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .with_context(lost)?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "vswitchd")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))?;
        let response = sender.send_request(request).await.with_context(lost)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await;
        let body = body
            .map_err(|error| anyhow!(error))
            .with_context(lost)?
            .to_bytes();
        if !status.is_success() {
            match serde_json::from_slice::<ErrorBody>(&body) {
                Ok(refusal) => bail!(refusal.error),
                Err(_) => bail!("vswitchd answered {status}"),
            }
        }
        Ok(Answer(body))
    }
}

/// The body of an answer that is a success.
pub(crate) struct Answer(Bytes);

impl Answer {
    /// The answer as what it stands for.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        serde_json::from_slice(&self.0)
            .context("vswitchd's answer is not understood; it may have another version")
    }

    /// The answer as it came.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The answer as JSON; `{}` where it is empty.
    pub(crate) fn json(&self) -> anyhow::Result<String> {
        if self.0.is_empty() {
            return Ok("{}".to_owned());
        }
        let value: serde_json::Value = self.parse()?;
        Ok(serde_json::to_string_pretty(&value)?)
    }
}
