//! A small client of the public API, as a user would write one.

use anyhow::{Context as _, bail};
use serde_json::Value;
use sse_stream::SseByteStream;

/// Talks to one server.
#[derive(Debug)]
pub struct Client {
    base_url: String,
    http: reqwest::Client,
}

impl Client {
    /// A client of the server at `base_url`.
    pub fn new(base_url: String) -> Self {
        Self {
            base_url,
            http: reqwest::Client::new(),
        }
    }

    /// The server's address.
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// Uploads a CSV file; answers the dataset.
    pub async fn upload(&self, name: &str, csv: &'static str) -> anyhow::Result<Value> {
        let request = self
            .http
            .post(format!("{}/v1/datasets", self.base_url))
            .query(&[("name", name)])
            .header("content-type", "text/csv")
            .body(csv);
        answer(request)
            .await
            .context("failed to upload the data set")
    }

    /// Posts a job; answers it.
    pub async fn post_job(&self, spec: &Value) -> anyhow::Result<Value> {
        let request = self
            .http
            .post(format!("{}/v1/jobs", self.base_url))
            .json(spec);
        answer(request).await.context("failed to post the job")
    }

    /// The job as it stands.
    pub async fn job(&self, id: &str) -> anyhow::Result<Value> {
        let request = self.http.get(format!("{}/v1/jobs/{id}", self.base_url));
        answer(request).await.context("failed to read the job")
    }

    /// The job's live event stream, from after event `last_seen`.
    pub async fn events(
        &self,
        id: &str,
        last_seen: Option<&str>,
    ) -> anyhow::Result<
        impl futures_util::Stream<Item = anyhow::Result<sse_stream::Sse>> + Unpin + use<>,
    > {
        use futures_util::StreamExt as _;
        let mut request = self
            .http
            .get(format!("{}/v1/jobs/{id}/events", self.base_url))
            .header("accept", "text/event-stream");
        if let Some(seq) = last_seen {
            request = request.header("last-event-id", seq);
        }
        let response = request.send().await?.error_for_status()?;
        let stream = SseByteStream::new(response.bytes_stream());
        Ok(stream.map(|item| item.map_err(|error| anyhow::anyhow!("{error}"))))
    }
}

/// Sends a request; an error answer becomes an error with the problem's own words.
async fn answer(request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
    let response = request.send().await?;
    let status = response.status();
    let body: Value = response.json().await.context("the answer is not JSON")?;
    if !status.is_success() {
        bail!("{status}: {body}");
    }
    Ok(body)
}
