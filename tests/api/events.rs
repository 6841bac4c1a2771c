//! The event log as pages and as a live stream.

use std::io::{BufRead as _, BufReader};

use serde_json::{Value, json};

use crate::support::{TestServer, reviews, spec, tiny_bert};

/// One server-sent event.
#[derive(Debug, PartialEq)]
struct Sse {
    id: Option<i64>,
    event: String,
    data: Value,
}

/// Reads a stream to its end.
fn stream(server: &TestServer, job: &str, last_event_id: Option<i64>) -> Vec<Sse> {
    let mut request = server
        .http
        .get(server.url(&format!("/v1/jobs/{job}/events")))
        .header("accept", "text/event-stream");
    if let Some(id) = last_event_id {
        request = request.header("last-event-id", id.to_string());
    }
    let response = request.send().unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let (mut events, mut id, mut kind) = (Vec::new(), None, String::new());
    for line in BufReader::new(response).lines() {
        let line = line.unwrap();
        if let Some(value) = line.strip_prefix("id: ") {
            id = Some(value.parse().unwrap());
        } else if let Some(value) = line.strip_prefix("event: ") {
            value.clone_into(&mut kind);
        } else if let Some(value) = line.strip_prefix("data: ") {
            events.push(Sse {
                id: id.take(),
                event: std::mem::take(&mut kind),
                data: serde_json::from_str(value).unwrap(),
            });
        }
    }
    events
}

#[test]
fn the_stream_shows_all_that_happens_and_ends() {
    let server = TestServer::start();
    let model = server.data_dir.join("tiny");
    tiny_bert::write(&model);
    let train = server.csv(&reviews(48));
    let eval = server.csv(&reviews(16));
    let mut body = spec(&model, &train);
    body["dataset"]["eval"] = json!(eval);
    // Long enough for progress, which is told four times a second.
    body["training_args"] = json!({
        "num_train_epochs": 400, "eval_strategy": "steps", "eval_steps": 800, "logging_steps": 400,
    });
    let id = server.job(&body);

    let live = stream(&server, &id, None);
    let logged: Vec<&Sse> = live.iter().filter(|e| e.id.is_some()).collect();
    let ids: Vec<i64> = logged.iter().filter_map(|e| e.id).collect();
    let expected: Vec<i64> = (1..=i64::try_from(ids.len()).unwrap()).collect();
    assert_eq!(ids, expected, "no gap, no repetition");
    assert_eq!(logged[0].event, "queued");
    assert_eq!(logged.last().unwrap().event, "succeeded");
    for kind in [
        "started",
        "phase",
        "metrics",
        "classification_report",
        "checkpoint",
    ] {
        assert!(logged.iter().any(|e| e.event == kind), "no {kind}");
    }
    assert!(live.iter().any(|e| e.event == "progress"));

    // The stream, its replay, and the pages tell the same.
    let replay = stream(&server, &id, None);
    let replayed: Vec<&Sse> = replay.iter().filter(|e| e.id.is_some()).collect();
    assert_eq!(logged, replayed);
    let pages = server.events(&id);
    let data: Vec<Value> = logged.iter().map(|e| e.data.clone()).collect();
    assert_eq!(data, pages);
}

#[test]
fn a_stream_is_taken_up_where_it_broke() {
    let server = TestServer::with_slots(0);
    let dataset = server.csv(&reviews(8));
    let id = server.job(&spec(std::path::Path::new("org/model"), &dataset));
    server.post(&format!("/v1/jobs/{id}/cancel"), &json!({}));
    let rest = stream(&server, &id, Some(1));
    assert_eq!(rest.len(), 1);
    assert_eq!((rest[0].id, rest[0].event.as_str()), (Some(2), "cancelled"));
    assert_eq!(stream(&server, &id, Some(2)), []);
}

#[test]
fn pages_of_events_follow_each_other() {
    let server = TestServer::with_slots(0);
    let dataset = server.csv(&reviews(8));
    let id = server.job(&spec(std::path::Path::new("org/model"), &dataset));
    server.post(&format!("/v1/jobs/{id}/cancel"), &json!({}));
    let first = server.get_json(&format!("/v1/jobs/{id}/events?limit=1"));
    assert_eq!(first["has_more"], true);
    let cursor = &first["next_cursor"];
    let cursor = cursor
        .as_str()
        .map_or_else(|| cursor.to_string(), str::to_owned);
    let second = server.get_json(&format!("/v1/jobs/{id}/events?after={cursor}"));
    assert_eq!(second["data"][0]["type"], "cancelled");
    assert_eq!(second["has_more"], false);
}
