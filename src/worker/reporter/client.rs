//! The two calls of the attempt protocol.

use std::thread;
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use reqwest::blocking::{Client as Http, RequestBuilder, Response};
use serde::de::DeserializeOwned;

use crate::domain::{AttemptId, AttemptSpec, Message, MessagesRequest, MessagesResponse};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a trainer that was just started looks for its server.
const FETCH_PATIENCE: Duration = Duration::from_secs(30);
const FETCH_PAUSE: Duration = Duration::from_millis(300);
const MAX_DETAIL_CHARS: usize = 500;

/// Why the server could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The token is wrong or the attempt is over (409).
    #[error("attempt is fenced")]
    Fenced,
    /// The server was not reached, or is not ready.
    #[error("server is away: {0}")]
    Unreachable(String),
    /// The server answered something else than the protocol says.
    #[error("server answered {status}: {detail}")]
    Unexpected {
        /// HTTP status.
        status: u16,
        /// The beginning of the body, or what was wrong with it.
        detail: String,
    },
}

/// Asks what this attempt is to do; patient for half a minute while the server is away.
///
/// # Errors
/// See [`ProtocolError`].
pub fn fetch_spec(
    server_url: &str,
    attempt_id: AttemptId,
    token: &str,
) -> Result<AttemptSpec, ProtocolError> {
    let mut client = Client::new(server_url, attempt_id, token);
    let deadline = Instant::now() + FETCH_PATIENCE;
    loop {
        match client.spec() {
            Err(ProtocolError::Unreachable(_)) if Instant::now() < deadline => {
                thread::sleep(FETCH_PAUSE);
            }
            result => return result,
        }
    }
}

/// Speaks for one attempt.
#[derive(Debug)]
pub(super) struct Client {
    base: String,
    token: String,
    http: Option<Http>,
}

impl Client {
    pub fn new(server_url: &str, attempt_id: AttemptId, token: &str) -> Self {
        let server = server_url.trim_end_matches('/');
        Self {
            base: format!("{server}/internal/attempts/{attempt_id}"),
            token: token.to_owned(),
            http: None,
        }
    }

    fn spec(&mut self) -> Result<AttemptSpec, ProtocolError> {
        let url = format!("{}/spec", self.base);
        let request = self.http()?.get(url);
        self.exchange(request)
    }

    pub fn send(&mut self, messages: Vec<Message>) -> Result<MessagesResponse, ProtocolError> {
        let url = format!("{}/messages", self.base);
        let request = self.http()?.post(url).json(&MessagesRequest { messages });
        self.exchange(request)
    }

    /// Made on first use: a blocking client must be made and dropped on the thread that blocks.
    fn http(&mut self) -> Result<&Http, ProtocolError> {
        if self.http.is_none() {
            // The server is named by its own address; a proxy for the outside world has no part in this.
            let http = Http::builder()
                .no_proxy()
                .connect_timeout(CONNECT_TIMEOUT)
                .timeout(REQUEST_TIMEOUT)
                .build()
                .map_err(unreachable)?;
            self.http = Some(http);
        }
        self.http
            .as_ref()
            .ok_or_else(|| ProtocolError::Unreachable("no HTTP client".to_owned()))
    }

    fn exchange<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ProtocolError> {
        let response = request
            .bearer_auth(&self.token)
            .send()
            .map_err(unreachable)?;
        let status = response.status();
        if status == StatusCode::CONFLICT {
            return Err(ProtocolError::Fenced);
        }
        if status.is_server_error() {
            return Err(ProtocolError::Unreachable(status.to_string()));
        }
        if !status.is_success() {
            return Err(unexpected(status, body_start(response)));
        }
        let body = response.bytes().map_err(unreachable)?;
        serde_json::from_slice(&body).map_err(|error| unexpected(status, error.to_string()))
    }
}

fn unreachable(error: reqwest::Error) -> ProtocolError {
    ProtocolError::Unreachable(error.to_string())
}

fn unexpected(status: StatusCode, detail: String) -> ProtocolError {
    ProtocolError::Unexpected {
        status: status.as_u16(),
        detail,
    }
}

fn body_start(response: Response) -> String {
    let text = response.text().unwrap_or_default();
    text.chars().take(MAX_DETAIL_CHARS).collect()
}
