use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::net::TcpListener;

use crate::domain::{Event, Progress};
use crate::http::testing::{Socket, TestApp};
use crate::http::{Limits, ServeOptions, serve_with};

/// Nothing here depends on time; this only turns a hang into a failure.
const HANG: Duration = Duration::from_secs(30);

type Events = std::pin::Pin<Box<dyn futures_util::Stream<Item = sse_stream::Sse> + Send>>;

/// Opens the stream on a real socket.
async fn open(socket: &Socket, path: &str, after: Option<&str>) -> Events {
    let mut request = reqwest::Client::new()
        .get(socket.url(path))
        .header("accept", "text/event-stream");
    if let Some(after) = after {
        request = request.header("last-event-id", after);
    }
    let response = request.send().await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    let events = sse_stream::SseStream::from_bytes_stream(response.bytes_stream());
    Box::pin(events.filter_map(|event| async move { event.ok() }))
}

/// The next event that carries data.
async fn next(events: &mut Events) -> Option<sse_stream::Sse> {
    loop {
        let event = tokio::time::timeout(HANG, events.next())
            .await
            .expect("the stream hangs")?;
        if event.data.is_some() {
            return Some(event);
        }
    }
}

#[tokio::test]
async fn a_client_follows_leaves_and_resumes() {
    let app = TestApp::start().await;
    let socket = app.serve().await;
    app.queued_job().await;
    let mut trainer = app.claim().await;
    let path = format!("/v1/jobs/{}/events", trainer.job_id);

    let mut events = open(&socket, &path, None).await;
    assert_eq!(next(&mut events).await.unwrap().event.unwrap(), "queued");
    let mut last = next(&mut events).await.unwrap();
    assert_eq!(last.event.as_deref(), Some("started"));
    for step in 1..=3 {
        trainer
            .report(vec![TestApp::metrics(step, &[("loss", 0.5)])])
            .await;
        last = next(&mut events).await.unwrap();
        assert_eq!(last.event.as_deref(), Some("metrics"));
    }
    drop(events);

    trainer
        .report(vec![TestApp::metrics(4, &[("loss", 0.1)])])
        .await;
    let mut events = open(&socket, &path, last.id.as_deref()).await;
    let missed = next(&mut events).await.unwrap();
    assert!(missed.data.unwrap().contains("\"step\":4"));
    trainer.report(vec![Event::Cancelled {}]).await;
    let end = next(&mut events).await.unwrap();
    assert_eq!(end.event.as_deref(), Some("cancelled"));
    assert!(next(&mut events).await.is_none(), "the stream must end");

    let mut events = open(&socket, &path, end.id.as_deref()).await;
    assert!(next(&mut events).await.is_none(), "there is nothing more");
    socket.stop().await;
}

#[tokio::test]
async fn progress_comes_as_snapshots_without_an_id() {
    let app = TestApp::start().await;
    let socket = app.serve().await;
    app.queued_job().await;
    let mut trainer = app.claim().await;
    let path = format!("/v1/jobs/{}/events?after=2", trainer.job_id);
    let mut events = open(&socket, &path, None).await;
    for step in [5, 6] {
        let progress = Progress {
            global_step: step,
            total_steps: 10,
            ..Progress::default()
        };
        trainer.report(vec![Event::Progress(progress)]).await;
        let event = next(&mut events).await.unwrap();
        assert_eq!(event.event.as_deref(), Some("progress"));
        assert_eq!(event.id, None);
        let data: serde_json::Value = serde_json::from_str(&event.data.unwrap()).unwrap();
        assert_eq!(data["type"], "progress");
        assert_eq!(data["data"]["global_step"], step);
    }
    socket.stop().await;
}

#[tokio::test]
async fn shutdown_ends_open_streams() {
    let app = TestApp::start().await;
    let job = app.queued_job().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let socket = Socket::start(listener, |listener| {
        // With this deadline, only the token can end the stream in time.
        let options = ServeOptions {
            shutdown_deadline: HANG * 10,
            ..ServeOptions::default()
        };
        let shutdown = app.state.shutdown.clone();
        serve_with(listener, app.router.clone(), shutdown, options)
    });
    let path = format!("/v1/jobs/{}/events", job["id"].as_str().unwrap());
    let mut events = open(&socket, &path, None).await;
    assert!(next(&mut events).await.is_some());
    let began = Instant::now();
    app.state.shutdown.cancel();
    assert!(next(&mut events).await.is_none());
    socket.ended().await;
    assert!(began.elapsed() < HANG);
}

#[tokio::test]
async fn streams_of_a_job_are_bounded() {
    let app = TestApp::with_limits(Limits {
        subscribers_per_job: 1,
        ..Limits::default()
    })
    .await;
    let socket = app.serve().await;
    let job = app.queued_job().await;
    let path = format!("/v1/jobs/{}/events", job["id"].as_str().unwrap());
    let sse = [("accept", "text/event-stream")];
    let mut events = open(&socket, &path, None).await;
    assert!(next(&mut events).await.is_some());
    let refused = app.request("GET", &path, &sse, "").await;
    refused.assert_problem(axum::http::StatusCode::SERVICE_UNAVAILABLE, "unavailable");
    assert_eq!(refused.headers["retry-after"], "5");
    // A stream that ends gives its place back.
    app.request("POST", &path.replace("events", "cancel"), &[], "")
        .await;
    while next(&mut events).await.is_some() {}
    drop(events);
    socket.stop().await;
    assert_eq!(
        app.request("GET", &path, &sse, "").await.status.as_u16(),
        200
    );
}
