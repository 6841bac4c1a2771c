use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use uuid::Uuid;
use wiremock::matchers::{header, method, path};
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate};

use super::*;
use crate::domain::{
    AttemptSpec, DatasetFormat, DatasetLayout, DatasetLocation, FixedClock, JobId, JobSpec,
    LogLevel, Message, MessagesRequest, MessagesResponse, Progress, Timestamp,
};

const ID: AttemptId = AttemptId(Uuid::from_u128(5));
const SOON: Duration = Duration::from_secs(20);
const MESSAGES: &str = "/internal/attempts/00000000-0000-0000-0000-000000000005/messages";
const SPEC: &str = "/internal/attempts/00000000-0000-0000-0000-000000000005/spec";

/// Applies messages as the store does; loses the first `lost_answers` answers after applying.
#[derive(Clone, Debug, Default)]
struct FakeServer(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    applied: Vec<Message>,
    requests: usize,
    refuse: usize,
    lost_answers: usize,
    cancel: bool,
    fenced: bool,
}

impl FakeServer {
    fn applied_kinds(&self) -> Vec<&'static str> {
        let state = self.0.lock().unwrap();
        state.applied.iter().map(|m| m.event.kind()).collect()
    }
}

impl Respond for FakeServer {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        let mut state = self.0.lock().unwrap();
        state.requests += 1;
        if state.fenced {
            return ResponseTemplate::new(409);
        }
        if state.refuse > 0 {
            state.refuse -= 1;
            return ResponseTemplate::new(503);
        }
        let body: MessagesRequest = serde_json::from_slice(&request.body).unwrap();
        for message in body.messages {
            if message.seq == state.applied.len() as u64 + 1 {
                state.applied.push(message);
            }
        }
        if state.lost_answers > 0 {
            state.lost_answers -= 1;
            return ResponseTemplate::new(500);
        }
        ResponseTemplate::new(200).set_body_json(MessagesResponse {
            acked_seq: state.applied.len() as u64,
            command: if state.cancel {
                Command::Cancel
            } else {
                Command::Continue
            },
            jobs_on_device: 3,
        })
    }
}

async fn mount(server: &MockServer, fake: &FakeServer) {
    Mock::given(method("POST"))
        .and(path(MESSAGES))
        .and(header("authorization", "Bearer secret"))
        .respond_with(fake.clone())
        .mount(server)
        .await;
}

fn start(url: &str, folder: &TempDir) -> Reporter {
    let clock = Arc::new(FixedClock::new(Timestamp(1000)));
    Reporter::start(url, ID, "secret", folder.path(), clock, 50).unwrap()
}

fn log(text: &str) -> Event {
    Event::Log {
        level: LogLevel::Info,
        message: text.to_owned(),
    }
}

/// Waits for what another thread does; the limit only ends a failing test.
fn eventually(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come about");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_arrive_in_order_and_once() {
    let (server, fake) = (MockServer::start().await, FakeServer::default());
    mount(&server, &fake).await;
    let folder = tempfile::tempdir().unwrap();
    let reporter = start(&server.uri(), &folder);
    for n in 0..250 {
        reporter.event(log(&n.to_string()));
    }
    reporter.event(Event::Progress(Progress::default()));
    reporter.event(Event::Succeeded { model_step: 1 });
    assert!(reporter.flush(SOON));
    let state = fake.0.lock().unwrap();
    let seqs: Vec<u64> = state.applied.iter().map(|m| m.seq).collect();
    assert_eq!(seqs, (1..=252).collect::<Vec<u64>>());
    let last: Vec<_> = state.applied[250..]
        .iter()
        .map(|m| m.event.kind())
        .collect();
    assert_eq!(last, ["progress", "succeeded"]);
    let spooled = std::fs::read_to_string(folder.path().join("events.jsonl")).unwrap();
    assert_eq!(spooled.lines().count(), 252);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_refuses_and_loses_answers_still_gets_everything_once() {
    let (server, fake) = (MockServer::start().await, FakeServer::default());
    {
        let mut state = fake.0.lock().unwrap();
        state.refuse = 2;
        state.lost_answers = 2;
    }
    mount(&server, &fake).await;
    let folder = tempfile::tempdir().unwrap();
    let reporter = start(&server.uri(), &folder);
    reporter.event(log("a"));
    reporter.event(Event::Cancelled {});
    assert!(reporter.flush(SOON));
    assert_eq!(fake.applied_kinds(), ["log", "cancelled"]);
    assert!(fake.0.lock().unwrap().requests >= 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_wait_for_a_server_that_is_away() {
    // Bound, but nobody answers yet.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let reporter = start(&url, &folder);
    for step in 0..50 {
        reporter.event(log("kept"));
        let progress = Progress {
            global_step: step,
            ..Progress::default()
        };
        reporter.event(Event::Progress(progress));
    }
    assert!(!reporter.flush(Duration::from_millis(50)));
    assert_eq!(reporter.command(), Command::Continue);

    let server = MockServer::builder().listener(listener).start().await;
    let fake = FakeServer::default();
    mount(&server, &fake).await;
    assert!(reporter.flush(SOON));
    let kinds = fake.applied_kinds();
    assert_eq!(kinds.iter().filter(|kind| **kind == "log").count(), 50);
    // Of fifty progress reports only those that were worth a number: never one per step.
    assert!(kinds.len() < 60, "{} messages", kinds.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_bring_the_cancel() {
    let (server, fake) = (MockServer::start().await, FakeServer::default());
    mount(&server, &fake).await;
    let folder = tempfile::tempdir().unwrap();
    let reporter = start(&server.uri(), &folder);
    eventually(|| fake.0.lock().unwrap().requests >= 3);
    assert_eq!(reporter.command(), Command::Continue);
    assert_eq!(reporter.jobs_on_device(), 3);
    fake.0.lock().unwrap().cancel = true;
    eventually(|| reporter.command() == Command::Cancel);
    assert!(!reporter.is_fenced());
    assert_eq!(fake.applied_kinds(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_attempt_is_told_to_cancel_and_sends_no_more() {
    let (server, fake) = (MockServer::start().await, FakeServer::default());
    mount(&server, &fake).await;
    fake.0.lock().unwrap().fenced = true;
    let folder = tempfile::tempdir().unwrap();
    let reporter = start(&server.uri(), &folder);
    eventually(|| reporter.is_fenced());
    assert_eq!(reporter.command(), Command::Cancel);
    let requests = fake.0.lock().unwrap().requests;
    reporter.event(log("too late"));
    assert!(!reporter.flush(SOON));
    assert_eq!(fake.0.lock().unwrap().requests, requests);
    let spooled = std::fs::read_to_string(folder.path().join("events.jsonl")).unwrap();
    assert!(spooled.contains("too late"));
}

fn attempt_spec() -> AttemptSpec {
    let spec = json!({
        "model": "org/model",
        "task": "sequence_classification",
        "dataset": {"train": Uuid::from_u128(9)},
    });
    AttemptSpec {
        attempt_id: ID,
        attempt: 1,
        job_id: JobId(Uuid::from_u128(4)),
        spec: JobSpec::parse(&spec).unwrap(),
        train: DatasetLocation {
            path: PathBuf::from("train.csv"),
            layout: DatasetLayout {
                format: DatasetFormat::Csv,
                header: true,
                columns: Vec::new(),
            },
            sha256: "00".repeat(32),
        },
        eval: None,
        data_dir: PathBuf::from("data"),
        micro_batch_divisor: 1,
        gpu_energy_j: 0.0,
        heartbeat_ms: 2000,
    }
}

async fn fetch(url: String) -> Result<AttemptSpec, ProtocolError> {
    tokio::task::spawn_blocking(move || fetch_spec(&url, ID, "secret"))
        .await
        .unwrap()
}

#[tokio::test]
async fn the_spec_is_fetched_once_the_server_is_ready() {
    let server = MockServer::start().await;
    Mock::given(path(SPEC))
        .respond_with(ResponseTemplate::new(503))
        .up_to_n_times(1)
        .mount(&server)
        .await;
    Mock::given(path(SPEC))
        .and(header("authorization", "Bearer secret"))
        .respond_with(ResponseTemplate::new(200).set_body_json(attempt_spec()))
        .mount(&server)
        .await;
    // A slash too many does no harm.
    let fetched = fetch(format!("{}/", server.uri())).await;
    assert_eq!(fetched.unwrap(), attempt_spec());
}

#[tokio::test]
async fn a_refusal_to_give_the_spec_is_final() {
    for (status, expected) in [(409, "attempt is fenced"), (404, "server answered 404: no")] {
        let server = MockServer::start().await;
        Mock::given(path(SPEC))
            .respond_with(ResponseTemplate::new(status).set_body_string("no"))
            .expect(1)
            .mount(&server)
            .await;
        let error = fetch(server.uri()).await.unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}
