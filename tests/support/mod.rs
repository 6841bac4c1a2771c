//! A server in a process of its own with a data directory that goes away, and what tests ask of it.

pub mod database;
pub mod lane;
pub mod raw_http;
pub mod recorder;
pub mod submitters;
pub mod tiny_bert;
pub mod trainers;

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use reqwest::blocking::{Client, Response};
use serde_json::{Value, json};
use tempfile::TempDir;

/// No test job stands still for longer; a hang fails instead of blocking the suite.
const JOB_TIMEOUT: Duration = Duration::from_secs(120);

/// The program under test.
pub fn chandler() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chandler"));
    // Tests never look at the network or at this user's caches.
    command
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_HOME", "/nonexistent")
        .env_remove("HF_HUB_CACHE")
        .env_remove("CHANDLER_CONFIG")
        .env_remove("CHANDLER_DRAIN")
        .env_remove("CHANDLER_JOBS_PER_GPU")
        .env_remove("CUDA_VISIBLE_DEVICES")
        .env("RUST_LOG", "info");
    command
}

/// How a server is to be started, again and again on the same data directory.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    pub data_dir: PathBuf,
    /// A number or `auto`.
    pub slots: String,
    /// Threads of one trainer.
    pub threads: u32,
    /// 0 for any.
    pub port: u16,
    /// Whether trainers leave when the server is told to stop.
    pub drain: bool,
    pub env: Vec<(String, String)>,
}

impl ServerOptions {
    /// One slot, any port, and trainers that leave with their server: a test leaves no process behind.
    pub fn new(data_dir: &Path) -> Self {
        Self {
            data_dir: data_dir.to_owned(),
            slots: "1".to_owned(),
            threads: 1,
            port: 0,
            drain: true,
            env: Vec::new(),
        }
    }

    pub fn slots(mut self, slots: impl ToString) -> Self {
        self.slots = slots.to_string();
        self
    }

    pub fn threads(mut self, threads: u32) -> Self {
        self.threads = threads;
        self
    }

    /// A port that is free now, the same one at every start: trainers find the next server there. Together
    /// with `leave`, hold a [`Trainers`], which ends what is left.
    pub fn fixed_port(mut self) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        self.port = free.local_addr().unwrap().port();
        self
    }

    /// Trainers outlive the server.
    pub fn leave(mut self) -> Self {
        self.drain = false;
        self
    }

    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.env.push((name.to_owned(), value.to_string()));
        self
    }

    fn command(&self) -> Command {
        let mut command = chandler();
        command
            .args(["serve", "--log-json"])
            .args(["--threads", &self.threads.to_string()])
            .args(["--listen", &format!("127.0.0.1:{}", self.port)])
            .args(["--slots", &self.slots])
            .args(["--drain", if self.drain { "true" } else { "false" }])
            .arg("--data-dir")
            .arg(&self.data_dir)
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts the process and waits for nothing.
    pub fn spawn(&self) -> Child {
        let mut command = self.command();
        command.stderr(Stdio::null()).spawn().unwrap()
    }

    /// Starts the server; it answers when this returns.
    pub fn start(&self) -> TestServer {
        let mut child = self.command().stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut seen = Vec::new();
        let url = loop {
            let Some(line) = lines.next() else {
                panic!("the server ended before it was ready: {seen:?}");
            };
            let line = line.unwrap();
            let entry: Value = serde_json::from_str(&line).unwrap_or_default();
            if entry["message"] == "ready" {
                break entry["address"].as_str().unwrap().to_owned();
            }
            seen.push(line);
        };
        // Read on, or the pipe fills up; what is worse than information is kept.
        let log = Arc::new(Mutex::new(seen));
        let kept = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if !line.contains("\"answered\"") {
                    kept.lock().unwrap().push(line);
                }
            }
        });
        TestServer {
            child,
            url,
            data_dir: self.data_dir.clone(),
            http: Client::builder()
                .timeout(Duration::from_secs(30))
                .build()
                .unwrap(),
            log,
            reader: Some(reader),
            _temp: None,
        }
    }
}

/// A running server. Dropping it stops it.
pub struct TestServer {
    child: Child,
    url: String,
    pub data_dir: PathBuf,
    pub http: Client,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
    _temp: Option<TempDir>,
}

impl TestServer {
    /// A server with one slot and a data directory of its own.
    pub fn start() -> Self {
        Self::with_slots(1)
    }

    pub fn with_slots(slots: u32) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let mut server = Self::in_dir(&temp.path().join("data"), slots);
        server._temp = Some(temp);
        server
    }

    /// A server with one slot that has these variables; its trainers inherit them.
    pub fn with_env(env: &[(&str, &str)]) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let mut options = ServerOptions::new(&temp.path().join("data"));
        for (name, value) in env {
            options = options.env(name, value);
        }
        let mut server = options.start();
        server._temp = Some(temp);
        server
    }

    /// A server on a data directory that outlives it.
    pub fn in_dir(data_dir: &Path, slots: u32) -> Self {
        ServerOptions::new(data_dir).slots(slots).start()
    }

    /// Where raw connections go.
    pub fn address(&self) -> SocketAddr {
        self.url.trim_start_matches("http://").parse().unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lines of the server's log so far, without those of answered requests.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// SIGKILL; returns when the process is gone.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    pub fn get(&self, path: &str) -> Response {
        self.http.get(self.url(path)).send().unwrap()
    }

    pub fn get_json(&self, path: &str) -> Value {
        let response = self.get(path);
        assert!(
            response.status().is_success(),
            "GET {path}: {}",
            response.status()
        );
        response.json().unwrap()
    }

    pub fn post(&self, path: &str, body: &Value) -> Response {
        self.http.post(self.url(path)).json(body).send().unwrap()
    }

    /// Uploads `body`; answers the response as it came.
    pub fn upload(
        &self,
        query: &str,
        content_type: &str,
        body: impl Into<reqwest::blocking::Body>,
    ) -> Response {
        self.http
            .post(self.url(&format!("/v1/datasets?{query}")))
            .header("content-type", content_type)
            .body(body)
            .send()
            .unwrap()
    }

    /// Uploads a CSV that must be accepted; answers its id.
    pub fn csv(&self, body: &str) -> String {
        let response = self.upload("name=test", "text/csv", body.to_owned());
        assert_eq!(response.status(), 201, "{}", response.text().unwrap());
        id_of(&response.json().unwrap())
    }

    /// Posts a job that must be accepted; answers its id.
    pub fn job(&self, spec: &Value) -> String {
        let response = self.post("/v1/jobs", spec);
        assert_eq!(response.status(), 201, "{}", response.text().unwrap());
        id_of(&response.json().unwrap())
    }

    /// Waits until the job's status is final; answers the job.
    pub fn wait(&self, job: &str) -> Value {
        self.wait_until(job, |view| {
            matches!(
                view["status"].as_str(),
                Some("succeeded" | "failed" | "cancelled")
            )
        })
    }

    /// Waits until `reached` holds; answers the job.
    pub fn wait_until(&self, job: &str, reached: impl Fn(&Value) -> bool) -> Value {
        let (mut moved, mut progress) = (Instant::now(), Value::Null);
        loop {
            let view = self.get_json(&format!("/v1/jobs/{job}"));
            if reached(&view) {
                return view;
            }
            if view["progress"] != progress {
                (moved, progress) = (Instant::now(), view["progress"].clone());
            }
            assert!(moved.elapsed() < JOB_TIMEOUT, "still {view}");
            std::thread::sleep(Duration::from_millis(25));
        }
    }

    /// All events of a job, as the JSON pages give them.
    pub fn events(&self, job: &str) -> Vec<Value> {
        let mut events: Vec<Value> = Vec::new();
        loop {
            let after = events.last().map_or(0, |e| e["seq"].as_i64().unwrap());
            let page = self.get_json(&format!("/v1/jobs/{job}/events?limit=1000&after={after}"));
            events.extend(page["data"].as_array().unwrap().iter().cloned());
            if page["has_more"] == false {
                return events;
            }
        }
    }

    /// Sends SIGTERM and waits for the end.
    pub fn stop(self) -> ExitStatus {
        self.stop_and_log().0
    }

    /// Sends SIGTERM and waits for the end; answers the whole log, too.
    pub fn stop_and_log(mut self) -> (ExitStatus, Vec<String>) {
        terminate(&self.child);
        let status = self.child.wait().unwrap();
        self.reader.take().unwrap().join().unwrap();
        (status, self.log())
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            terminate(&self.child);
            let _ = self.child.wait();
        }
    }
}

/// Waits until `reached` answers something.
pub fn await_some<T>(what: &str, mut reached: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = reached() {
            return found;
        }
        assert!(started.elapsed() < JOB_TIMEOUT, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn terminate(child: &Child) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
}

pub fn id_of(view: &Value) -> String {
    view["id"].as_str().unwrap().to_owned()
}

/// A job on `dataset` that a tiny BERT does in a second or two.
pub fn spec(model: &Path, dataset: &str) -> Value {
    json!({
        "model": model,
        "task": "sequence_classification",
        "dataset": {"train": dataset},
        "max_seq_length": 32,
        "training_args": {"num_train_epochs": 2, "learning_rate": 1e-3, "logging_steps": 1, "seed": 7},
    })
}

/// `rows` short reviews whose label can be learned from one word.
pub fn reviews(rows: usize) -> String {
    let words = tiny_bert::FILLERS;
    let mut csv = String::from("text,label\n");
    for i in 0..rows {
        let (word, label) = if i % 2 == 0 {
            (["good", "great", "fine"][i / 2 % 3], "positive")
        } else {
            (["bad", "awful", "poor"][i / 2 % 3], "negative")
        };
        let filler = |k: usize| words[(i * 7 + k * 3) % words.len()];
        let text: Vec<&str> = (0..i % 5 + 1).map(filler).chain([word]).collect();
        csv.push_str(&format!("{} {i},{label}\n", text.join(" ")));
    }
    csv
}
