//! `chandler healthcheck`: asks a server whether it can do its work. A container's health check is this
//! program, as its image has no other client.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use reqwest::blocking::{Client, Response};
use serde_json::Value;

use crate::config::{Config, Settings};
use crate::domain::{ErrorCode, JobError};

use super::server::reachable;

/// Ask a server whether it can do its work; the exit status is the answer
#[derive(Args, Debug)]
pub struct Healthcheck {
    /// Base URL of the server (unless given, where `serve` listens with these settings)
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// TOML file with the server's settings
    #[arg(long, env = "CHANDLER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address the server listens on
    #[arg(long, env = "CHANDLER_LISTEN", value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// No answer by then is a bad one
    #[arg(long, value_name = "MS", default_value_t = 3_000)]
    timeout_ms: u64,
}

impl Healthcheck {
    /// Asks `/readyz` once. Success is one line; anything but a 200 is an error.
    ///
    /// # Errors
    /// `unavailable`, with what the server or the connection said.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let url = self.server_url()?;
        // The server is named by its own address; a proxy for the outside world has no part in this.
        let client = Client::builder()
            .no_proxy()
            .timeout(Duration::from_millis(self.timeout_ms))
            .build()?;
        let answer = client.get(format!("{url}/readyz")).send();
        let response = answer.map_err(|error| not_ready(&url, &root_cause(&error)))?;
        if !response.status().is_success() {
            return Err(not_ready(&url, &refusal(response)).into());
        }
        println!("ready: {url}");
        Ok(ExitCode::SUCCESS)
    }

    fn server_url(&self) -> Result<String, JobError> {
        if let Some(url) = &self.url {
            return Ok(url.trim_end_matches('/').to_owned());
        }
        let file = match &self.config {
            Some(path) => Settings::from_file(path)?,
            None => Settings::default(),
        };
        let given = Settings {
            listen: self.listen,
            ..Settings::default()
        };
        let listen = Config::new(given.or(file))?.listen;
        if listen.port() == 0 {
            return Err(JobError::new(
                ErrorCode::ConfigInvalid,
                format!("the server was told to listen on {listen}, on any free port"),
            )
            .hint("its log says which one it took: give that with --url"));
        }
        Ok(format!("http://{}", reachable(listen)))
    }
}

fn not_ready(url: &str, why: &str) -> JobError {
    let message = format!("the server at {url} is not ready: {why}");
    JobError::new(ErrorCode::Unavailable, message)
}

/// The innermost error: those around it repeat the URL.
fn root_cause(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// The problem's own words, or the status of an answer that is none of ours.
fn refusal(response: Response) -> String {
    let status = response.status();
    let problem: Value = response.json().unwrap_or_default();
    match problem["detail"].as_str() {
        Some(detail) => format!("{detail} ({status})"),
        None => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        healthcheck: Healthcheck,
    }

    fn url(arguments: &[&str]) -> Result<String, JobError> {
        let line = Line::parse_from([&["healthcheck"], arguments].concat());
        line.healthcheck.server_url()
    }

    #[test]
    fn the_server_is_looked_for_where_it_listens() {
        assert_eq!(url(&[]).unwrap(), "http://127.0.0.1:8080");
        let any = url(&["--listen", "0.0.0.0:9000"]).unwrap();
        assert_eq!(any, "http://127.0.0.1:9000");
        let any = url(&["--listen", "[::]:9000"]).unwrap();
        assert_eq!(any, "http://[::1]:9000");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("chandler.toml");
        std::fs::write(&file, "listen = \"10.0.0.7:9001\"\nslots = 3\n").unwrap();
        let file = file.to_str().unwrap();
        assert_eq!(url(&["--config", file]).unwrap(), "http://10.0.0.7:9001");
        let given = url(&["--url", "https://host/chandler/", "--config", file]);
        assert_eq!(given.unwrap(), "https://host/chandler");
        let unknown = url(&["--listen", "127.0.0.1:0"]).unwrap_err();
        assert_eq!(unknown.code, ErrorCode::ConfigInvalid);
    }
}
