//! The Hub source against a mock of the endpoints that `hf-hub` asks: the model's info at a revision, then
//! HEAD and GET of each file at the commit.

use std::fs;
use std::path::Path;

use tokio::runtime::Runtime;
use wiremock::matchers::{header, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::*;
use crate::artifacts::hash_file;
use crate::domain::ErrorCode;
use crate::hub::testing::{COMMIT, Machine};

/// A mock Hub with one repository, `org/tiny`.
struct MockHub {
    runtime: Runtime,
    server: MockServer,
}

const WEIGHTS_CONTENT: &str = "weights of the mock";

impl MockHub {
    fn new() -> Self {
        let runtime = Runtime::new().unwrap();
        let server = runtime.block_on(MockServer::start());
        Self { runtime, server }
    }

    /// Answers the info at `revision` with these files.
    fn info(&self, revision: &str, files: &[&str]) {
        let siblings: Vec<_> = files
            .iter()
            .map(|name| serde_json::json!({"rfilename": name}))
            .collect();
        let body = serde_json::json!({"id": "org/tiny", "sha": COMMIT, "siblings": siblings});
        self.mount(
            Mock::given(method("GET")).and(path(format!("/api/models/org/tiny{revision}"))),
            ResponseTemplate::new(200).set_body_json(body),
        );
    }

    /// Serves a file at the commit; weights carry the headers of a large file.
    fn file(&self, name: &str, content: &str, temp: &Path) {
        let sample = temp.join("sample");
        fs::write(&sample, content).unwrap();
        let sha256 = hash_file(&sample).unwrap().sha256;
        let etag = if name == WEIGHTS {
            &sha256
        } else {
            &sha256[..40]
        };
        let url = format!("/org/tiny/resolve/{COMMIT}/{name}");
        for verb in ["HEAD", "GET"] {
            let answer = ResponseTemplate::new(200)
                .insert_header("etag", format!("\"{etag}\""))
                .insert_header("x-repo-commit", COMMIT)
                .set_body_string(content);
            self.mount(Mock::given(method(verb)).and(path(url.clone())), answer);
        }
    }

    fn mount(&self, mock: wiremock::MockBuilder, answer: ResponseTemplate) {
        self.runtime
            .block_on(mock.respond_with(answer).mount(&self.server));
    }

    /// Method and path of everything that was asked.
    fn asked(&self) -> Vec<String> {
        let requests = self.runtime.block_on(self.server.received_requests());
        let line = |r: &wiremock::Request| format!("{} {}", r.method, r.url.path());
        requests.unwrap().iter().map(line).collect()
    }
}

/// A machine that reaches the mock, and the mock with a whole model on `main`.
fn setup() -> (Machine, MockHub) {
    let (mut machine, hub) = (Machine::new(), MockHub::new());
    machine.env.endpoint = Some(hub.server.uri());
    machine.env.token = Some("hf_secret".to_owned());
    let temp = machine.temp.path();
    hub.file("config.json", r#"{"model_type":"bert"}"#, temp);
    hub.file("tokenizer.json", r#"{"version":"1.0"}"#, temp);
    hub.file("vocab.txt", "[PAD]\n", temp);
    hub.file(WEIGHTS, WEIGHTS_CONTENT, temp);
    (machine, hub)
}

const FILES: [&str; 6] = [
    "README.md",
    "config.json",
    "tokenizer.json",
    "vocab.txt",
    WEIGHTS,
    "pytorch_model.bin",
];

fn tiny(revision: Option<&str>) -> RepoRef {
    RepoRef {
        id: "org/tiny".to_owned(),
        revision: revision.map(str::to_owned),
    }
}

fn fetch_tiny(machine: &Machine) -> Result<Found, Miss> {
    fetch(&machine.env, &tiny(None), &|_| {})
}

#[test]
fn only_what_is_needed_is_downloaded_and_the_cache_serves_it_afterwards() {
    let (machine, hub) = setup();
    hub.info("", &FILES);
    let found = fetch_tiny(&machine).unwrap();
    assert_eq!(found.revision.as_deref(), Some(COMMIT));
    let weights = fs::read_to_string(found.dir.join(WEIGHTS)).unwrap();
    assert_eq!(weights, WEIGHTS_CONTENT);
    assert_eq!(fs::read_dir(&found.dir).unwrap().count(), 4);
    let asked = hub.asked().join("\n");
    assert!(
        !asked.contains("README") && !asked.contains("pytorch_model.bin"),
        "{asked}"
    );

    drop(hub);
    let again = cache::find(&machine.env.cache_dir(), &tiny(None)).unwrap();
    assert_eq!(again.dir, found.dir);
    assert_eq!(again.model_sha256, found.model_sha256);
}

#[test]
fn the_token_is_sent_with_every_question_and_never_told() {
    let (machine, hub) = setup();
    let bearer = header("authorization", "Bearer hf_secret");
    let body = serde_json::json!({
        "id": "org/tiny", "sha": COMMIT,
        "siblings": FILES.map(|name| serde_json::json!({"rfilename": name})),
    });
    hub.mount(
        Mock::given(method("GET"))
            .and(path("/api/models/org/tiny"))
            .and(bearer),
        ResponseTemplate::new(200).set_body_json(body),
    );
    fetch_tiny(&machine).unwrap();
    let requests = hub.runtime.block_on(hub.server.received_requests());
    for request in requests.unwrap() {
        assert_eq!(request.headers["authorization"], "Bearer hf_secret");
    }

    let mut other = Machine::new();
    other.env.endpoint = machine.env.endpoint.clone();
    other.env.token = Some("hf_wrong".to_owned());
    let miss = fetch_tiny(&other).unwrap_err();
    assert!(!miss.outcome.contains("hf_wrong"), "{}", miss.outcome);
}

#[test]
fn a_revision_is_pinned_to_its_commit() {
    let (machine, hub) = setup();
    hub.info("/revision/v2", &FILES);
    let found = fetch(&machine.env, &tiny(Some("v2")), &|_| {}).unwrap();
    assert_eq!(found.revision.as_deref(), Some(COMMIT));
    let asked = hub.asked();
    assert_eq!(asked[0], "GET /api/models/org/tiny/revision/v2");
    assert!(
        asked[1..].iter().all(|line| line.contains(COMMIT)),
        "{asked:?}"
    );
    let cache_dir = machine.env.cache_dir();
    assert!(cache::find(&cache_dir, &tiny(Some("v2"))).is_ok());
    assert!(cache::find(&cache_dir, &tiny(None)).is_err());
}

#[test]
fn answers_that_mean_no() {
    for (status, words) in [
        (404, "has no model org/tiny"),
        (401, "HF_TOKEN"),
        (403, "may not read it"),
        (500, "500"),
    ] {
        let (machine, hub) = setup();
        hub.mount(
            Mock::given(method("GET")).and(path("/api/models/org/tiny")),
            ResponseTemplate::new(status),
        );
        let miss = fetch_tiny(&machine).unwrap_err();
        assert!(miss.outcome.contains(words), "{status}: {}", miss.outcome);
        assert!(miss.fault.is_none() && !miss.outcome.contains("hf_secret"));
    }
}

#[test]
fn pickle_and_missing_files_are_seen_before_anything_is_downloaded() {
    for (files, code) in [
        (
            vec!["config.json", "tokenizer.json", "pytorch_model.bin"],
            ErrorCode::ModelPickleRefused,
        ),
        (vec!["config.json", WEIGHTS], ErrorCode::ModelInvalid),
    ] {
        let (machine, hub) = setup();
        hub.info("", &files);
        let miss = fetch_tiny(&machine).unwrap_err();
        assert_eq!(miss.fault.unwrap().0, code);
        assert_eq!(hub.asked().len(), 1);
    }
}

#[test]
fn weights_that_do_not_match_their_hash_are_refused_and_removed() {
    let (machine, hub) = setup();
    hub.info("", &FILES);
    let url = format!("/org/tiny/resolve/{COMMIT}/{WEIGHTS}");
    let broken = ResponseTemplate::new(200).set_body_string("an error page");
    let mock = Mock::given(method("GET")).and(path(url.clone()));
    let mock = mock.respond_with(broken).with_priority(1);
    hub.runtime.block_on(mock.mount(&hub.server));
    let miss = fetch_tiny(&machine).unwrap_err();
    assert!(
        miss.outcome.contains("does not match its hash"),
        "{}",
        miss.outcome
    );
    let gets = hub
        .asked()
        .iter()
        .filter(|line| **line == format!("GET {url}"))
        .count();
    assert_eq!(gets, 2, "fetched once more before giving up");
    let snapshot = machine
        .env
        .cache_dir()
        .join("models--org--tiny/snapshots")
        .join(COMMIT);
    assert!(!snapshot.join(WEIGHTS).is_symlink());
    assert!(cache::find(&machine.env.cache_dir(), &tiny(None)).is_err());
}

#[test]
fn a_json_file_that_is_an_error_page_is_refused() {
    let (machine, hub) = setup();
    hub.info("", &FILES);
    let url = format!("/org/tiny/resolve/{COMMIT}/tokenizer.json");
    let broken = ResponseTemplate::new(403).set_body_string("<html>no</html>");
    let mock = Mock::given(method("GET")).and(path(url));
    let mock = mock.respond_with(broken).with_priority(1);
    hub.runtime.block_on(mock.mount(&hub.server));
    let miss = fetch_tiny(&machine).unwrap_err();
    assert!(
        miss.outcome.contains("tokenizer.json is damaged"),
        "{}",
        miss.outcome
    );
}

#[test]
fn offline_asks_nobody() {
    let (mut machine, hub) = setup();
    hub.info("", &FILES);
    machine.env.offline = true;
    let miss = fetch_tiny(&machine).unwrap_err();
    assert!(miss.outcome.contains("HF_HUB_OFFLINE"));
    assert!(hub.asked().is_empty());
}

#[test]
fn an_unreachable_hub_is_told_from_one_that_says_no() {
    let machine = Machine::new();
    let miss = fetch_tiny(&machine).unwrap_err();
    assert!(
        miss.outcome.contains("cannot be reached"),
        "{}",
        miss.outcome
    );

    let mut machine = Machine::new();
    machine.env.endpoint = Some("not a url".to_owned());
    assert!(fetch_tiny(&machine).is_err());
}
