//! The server as a process: health, its own description, starting and stopping.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{TestServer, chandler};

/// Runs `chandler healthcheck`; answers whether it succeeded and what it said.
fn healthcheck(arguments: &[&str], env: &[(&str, &str)]) -> (bool, String) {
    let output = chandler()
        .arg("healthcheck")
        .args(arguments)
        .envs(env.iter().copied())
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8(said).unwrap().trim_end().to_owned(),
    )
}

#[test]
fn a_healthcheck_says_whether_the_server_can_work() {
    let server = TestServer::with_slots(0);
    let url = server.url("");
    let port = server.address().port();
    // As in a container: the wildcard address, and a proxy that the server is not behind.
    let listen = format!("0.0.0.0:{port}");
    let env = [
        ("CHANDLER_LISTEN", listen.as_str()),
        ("HTTP_PROXY", "http://127.0.0.1:1"),
    ];
    assert_eq!(healthcheck(&[], &env), (true, format!("ready: {url}")));

    let not_ready = |url: &str, why: &str| {
        format!("error: unavailable: the server at {url} is not ready: {why}")
    };
    server.kill();
    let refused = not_ready(&url, "Connection refused (os error 111)");
    assert_eq!(healthcheck(&["--url", &url], &[]), (false, refused));

    let sick = answer_once(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 45\r\n\r\n\
         {\"detail\": \"the database does not answer\"}   ",
    );
    let why = "the database does not answer (503 Service Unavailable)";
    let refused = not_ready(&sick, why);
    assert_eq!(healthcheck(&["--url", &sick], &[]), (false, refused));
}

/// A server that says `answer` to the first request, whatever it is; answers its URL.
fn answer_once(answer: &'static str) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        assert_ne!(stream.read(&mut request).unwrap(), 0);
        stream.write_all(answer.as_bytes()).unwrap();
    });
    url
}

#[test]
fn a_healthcheck_waits_no_longer_than_it_was_told() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let (ready, said) = healthcheck(&["--url", &url, "--timeout-ms", "50"], &[]);
    let why = format!("the server at {url} is not ready: no answer in time");
    assert_eq!((ready, said), (false, format!("error: unavailable: {why}")));
}

#[test]
fn probes_and_the_openapi_document_answer() {
    let server = TestServer::with_slots(0);
    assert_eq!(server.get("/healthz").status(), 200);
    assert_eq!(server.get("/readyz").status(), 200);
    let served: Value = server.get_json("/openapi.json");
    let committed: Value =
        serde_json::from_str(include_str!("../../openapi/openapi.json")).unwrap();
    assert_eq!(served, committed);
    let response = server.get("/healthz");
    assert!(response.headers().contains_key("x-request-id"));
}

#[test]
fn a_second_server_on_the_same_data_directory_is_refused() {
    let server = TestServer::with_slots(0);
    let output = chandler()
        .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(&server.data_dir)
        .output()
        .unwrap();
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("data_dir_locked"), "{error}");
    assert_eq!(server.get("/healthz").status(), 200, "the first serves on");
}

#[test]
fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let temp = tempfile::tempdir().unwrap();
    let output = chandler()
        .args([
            "serve",
            "--listen",
            &taken.local_addr().unwrap().to_string(),
            "--data-dir",
        ])
        .arg(temp.path().join("data"))
        .output()
        .unwrap();
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("port_in_use"), "{error}");
}

#[test]
fn a_data_directory_that_cannot_be_written_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("file");
    std::fs::write(&file, "").unwrap();
    let output = chandler()
        .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(file.join("data"))
        .output()
        .unwrap();
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("data_dir_not_writable"), "{error}");
}

#[test]
fn sigterm_stops_a_server_with_an_open_stream() {
    let server = TestServer::with_slots(0);
    let dataset = server.csv("text,label\na,x\nb,y\n");
    let job = server.job(&crate::support::spec(
        std::path::Path::new("org/model"),
        &dataset,
    ));
    let open = server
        .http
        .get(server.url(&format!("/v1/jobs/{job}/events")))
        .header("accept", "text/event-stream")
        .send()
        .unwrap();
    let started = Instant::now();
    let status = server.stop();
    assert!(status.success());
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "it must not hang"
    );
    drop(open);
}

#[test]
fn what_was_accepted_is_there_after_a_restart() {
    let temp = tempfile::tempdir().unwrap();
    let data_dir = temp.path().join("data");
    let server = TestServer::in_dir(&data_dir, 0);
    let dataset = server.csv("text,label\na,x\nb,y\n");
    let job = server.job(&crate::support::spec(
        std::path::Path::new("org/model"),
        &dataset,
    ));
    let before = server.get_json(&format!("/v1/jobs/{job}"));
    server.stop();
    let server = TestServer::in_dir(&data_dir, 0);
    assert_eq!(server.get_json(&format!("/v1/jobs/{job}")), before);
}
