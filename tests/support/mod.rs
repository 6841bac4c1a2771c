//! A server in a process of its own with a data directory that goes away, and what tests ask of it.

pub mod tiny_bert;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::blocking::{Client, Response};
use serde_json::{Value, json};
use tempfile::TempDir;

/// No test job takes longer; a hang fails instead of blocking the suite.
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
        .env("RUST_LOG", "info");
    command
}

/// A running server. Dropping it stops it and its trainers.
pub struct TestServer {
    child: Child,
    url: String,
    pub data_dir: PathBuf,
    pub http: Client,
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
        let mut server = Self::spawn(&temp.path().join("data"), 1, env);
        server._temp = Some(temp);
        server
    }

    /// A server on a data directory that outlives it.
    pub fn in_dir(data_dir: &Path, slots: u32) -> Self {
        Self::spawn(data_dir, slots, &[])
    }

    fn spawn(data_dir: &Path, slots: u32, env: &[(&str, &str)]) -> Self {
        let mut child = chandler()
            .envs(env.iter().copied())
            .args(["serve", "--listen", "127.0.0.1:0", "--threads", "1"])
            .arg("--slots")
            .arg(slots.to_string())
            .arg("--data-dir")
            .arg(data_dir)
            .arg("--log-json")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let url = loop {
            let line = lines
                .next()
                .expect("the server ended before it was ready")
                .unwrap();
            let line: Value = serde_json::from_str(&line).unwrap_or_default();
            if line["message"] == "ready" {
                break line["address"].as_str().unwrap().to_owned();
            }
        };
        // Keep the pipe from filling up.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            child,
            url,
            data_dir: data_dir.to_owned(),
            http: Client::builder()
                .timeout(Duration::from_secs(30))
                .build()
                .unwrap(),
            _temp: None,
        }
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
        let started = Instant::now();
        loop {
            let view = self.get_json(&format!("/v1/jobs/{job}"));
            if reached(&view) {
                return view;
            }
            assert!(started.elapsed() < JOB_TIMEOUT, "still {view}");
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
    pub fn stop(mut self) -> std::process::ExitStatus {
        terminate(&self.child);
        self.child.wait().unwrap()
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
