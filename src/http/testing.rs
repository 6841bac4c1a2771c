//! A whole API over a temporary data directory, a client that reads like HTTP, and a trainer that reports
//! what it is told to.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::digest::hex;
use super::{AppState, InFlight, Limits, Subscribers, router, serve};
use crate::artifacts::DataDir;
use crate::domain::{
    AttemptId, CheckpointRecord, Device, Event, FileRecord, FixedClock, JobId, Message,
    MessagesRequest, Placement, SequentialIds, Slot, Timestamp,
};
use crate::store::Store;

/// Headers of a JSON request.
pub const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

/// The API, without a worker: tests claim jobs and report for them.
pub struct TestApp {
    pub state: AppState,
    pub router: Router,
    /// How often the worker was woken.
    pub woken: Arc<AtomicUsize>,
    _temp: TempDir,
}

impl TestApp {
    pub async fn start() -> Self {
        Self::with_limits(Limits::default()).await
    }

    pub async fn with_limits(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(FixedClock::new(Timestamp(1_795_000_000_000)));
        let ids = Arc::new(SequentialIds::default());
        let data_dir = DataDir::open(dir.path()).unwrap();
        let store = Store::open(&data_dir.database(), clock.clone(), ids.clone())
            .await
            .unwrap();
        let woken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&woken);
        let state = AppState {
            store,
            clock,
            ids,
            data_dir,
            slots: Arc::new([Slot {
                device: Device::Cpu,
                jobs: 1,
                memory_bytes: None,
            }]),
            worker: Arc::new(move || {
                count.fetch_add(1, Ordering::SeqCst);
            }),
            limits,
            draining: CancellationToken::new(),
            shutdown: CancellationToken::new(),
            subscribers: Subscribers::default(),
            in_flight: InFlight::default(),
        };
        Self {
            router: router(state.clone()),
            state,
            woken,
            _temp: dir,
        }
    }

    pub async fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        send(&self.router, method, path, headers, body).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], "").await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.request("DELETE", path, &[], "").await
    }

    /// Uploads a CSV file.
    pub async fn upload(&self, name: &str, content: &str) -> Value {
        let path = format!("/v1/datasets?name={name}");
        let headers = [("content-type", "text/csv")];
        let answer = self
            .request("POST", &path, &headers, content.to_owned())
            .await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        answer.json()
    }

    /// A valid body of `POST /v1/jobs`, its dataset uploaded.
    pub async fn job_spec(&self) -> Value {
        let dataset = self.upload("a.csv", "text,label\nx,1\ny,0\n").await;
        json!({
            "model": "m",
            "task": "sequence_classification",
            "dataset": {"train": dataset["id"]},
            "metadata": {"team": "support"},
        })
    }

    pub async fn queued_job(&self) -> Value {
        let spec = self.job_spec().await;
        let answer = self
            .request("POST", "/v1/jobs", &JSON, spec.to_string())
            .await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        answer.json()
    }

    /// Takes the next job as the worker would for the processor.
    pub async fn claim(&self) -> Trainer<'_> {
        self.claim_for(Placement::default()).await
    }

    /// Takes the next job as the worker would for this place.
    pub async fn claim_for(&self, placement: Placement) -> Trainer<'_> {
        let store = &self.state.store;
        let next = store.next_queued().await.unwrap().expect("a queued job");
        let claimed = store.claim(next.job_id, placement, 60_000).await.unwrap();
        let claimed = claimed.expect("the job is still queued");
        Trainer {
            app: self,
            attempt_id: claimed.attempt_id,
            job_id: claimed.job_id,
            token: claimed.token,
            next_seq: 1,
        }
    }

    pub fn metrics(step: u64, values: &[(&str, f64)]) -> Event {
        Event::Metrics {
            step,
            epoch: 1.0,
            values: values.iter().map(|&(k, v)| (k.to_owned(), v)).collect(),
        }
    }

    pub fn checkpoint(step: u64, metrics: &[(&str, f64)]) -> Event {
        Self::checkpoint_with(step, metrics, &[])
    }

    pub fn checkpoint_with(step: u64, metrics: &[(&str, f64)], files: &[(&str, &str)]) -> Event {
        let file = |&(path, content): &(&str, &str)| FileRecord {
            path: path.to_owned(),
            size_bytes: content.len() as u64,
            sha256: hex(Sha256::new_with_prefix(content)),
        };
        Event::Checkpoint(CheckpointRecord {
            step,
            epoch: 1.0,
            metrics: metrics.iter().map(|&(k, v)| (k.to_owned(), v)).collect(),
            resumable: false,
            files: files.iter().map(file).collect(),
        })
    }

    /// Writes a checkpoint's files where a trainer would.
    pub fn write_checkpoint(&self, job: JobId, step: u64, files: &[(&str, &str)]) {
        let dir = self.state.data_dir.checkpoint_dir(job, step);
        for (path, content) in files {
            let path = dir.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
    }

    /// The same API on a real socket.
    pub async fn serve(&self) -> Socket {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (router, shutdown) = (self.router.clone(), CancellationToken::new());
        let mut socket = Socket::start(listener, |l| serve(l, router, shutdown.clone()));
        socket.shutdown = shutdown;
        socket
    }
}

/// A running server.
pub struct Socket {
    address: SocketAddr,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
}

impl Socket {
    pub fn start<F>(listener: TcpListener, run: impl FnOnce(TcpListener) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self {
            address: listener.local_addr().unwrap(),
            shutdown: CancellationToken::new(),
            server: tokio::spawn(run(listener)),
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Sends raw bytes and answers all that comes until the server closes the connection.
    pub async fn send_and_read_to_end(&self, bytes: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Waits until the server has ended by itself.
    pub async fn ended(self) {
        self.server.await.unwrap();
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        self.ended().await;
    }
}

/// One attempt, reporting over HTTP.
pub struct Trainer<'a> {
    app: &'a TestApp,
    pub attempt_id: AttemptId,
    pub job_id: JobId,
    token: String,
    pub next_seq: u64,
}

impl Trainer<'_> {
    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.token)
    }

    pub async fn get_spec(&self) -> Answer {
        let path = format!("/internal/attempts/{}/spec", self.attempt_id);
        let headers = [("authorization", &*self.authorization())];
        self.app.request("GET", &path, &headers, "").await
    }

    /// Reports events and answers what the server says.
    pub async fn report(&mut self, events: Vec<Event>) -> Value {
        let answer = self.send(events).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        answer.json()
    }

    pub async fn send(&mut self, events: Vec<Event>) -> Answer {
        let numbered = events.into_iter().map(|event| {
            self.next_seq += 1;
            Message {
                seq: self.next_seq - 1,
                at: self.app.state.clock.now(),
                event,
            }
        });
        let batch = MessagesRequest {
            messages: numbered.collect(),
        };
        let path = format!("/internal/attempts/{}/messages", self.attempt_id);
        let headers = [JSON[0], ("authorization", &*self.authorization())];
        let body = serde_json::to_string(&batch).unwrap();
        self.app.request("POST", &path, &headers, body).await
    }
}

/// A response, read whole.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    #[track_caller]
    pub fn assert_problem(&self, status: StatusCode, code: &str) {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.headers["content-type"], "application/problem+json");
        let json = self.json();
        assert_eq!(json["code"], code, "{json}");
        assert_eq!(json["status"], status.as_u16());
        for member in ["type", "title", "detail", "instance", "request_id"] {
            assert!(json[member].is_string(), "{member} is missing: {json}");
        }
    }

    /// Where the errors are.
    pub fn pointers(&self) -> Vec<String> {
        let json = self.json();
        let errors = json["errors"].as_array().cloned().unwrap_or_default();
        let pointers = errors
            .iter()
            .map(|e| e["pointer"].as_str().unwrap().to_owned());
        pointers.collect()
    }
}

/// Sends one request through a router.
pub async fn send(
    router: &Router,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Body>,
) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(body.into()).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    Answer {
        status: parts.status,
        headers: parts.headers,
        body: to_bytes(body, usize::MAX).await.unwrap(),
    }
}
