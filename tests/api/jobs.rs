//! Creating, listing, cancelling and deleting jobs.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::{TestServer, reviews, spec, tiny_bert};

const NOWHERE: &str = "org/model";

#[test]
fn a_posted_job_waits_in_the_queue() {
    let server = TestServer::with_slots(0);
    let dataset = server.csv(&reviews(8));
    let mut body = spec(Path::new(NOWHERE), &dataset);
    body["name"] = json!("first");
    body["metadata"] = json!({"team": "search"});
    let response = server.post("/v1/jobs", &body);
    assert_eq!(response.status(), 201);
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    let job: Value = response.json().unwrap();
    assert_eq!(job["status"], "queued");
    assert_eq!(job["queue_position"], 1);
    assert_eq!(job["name"], "first");
    assert_eq!(job["metadata"], json!({"team": "search"}));
    assert_eq!(job["error"], Value::Null);
    assert_eq!(
        job["spec"]["training_args"]["per_device_train_batch_size"],
        8
    );
    assert_eq!(server.get_json(&location), job);
    let second = server.job(&spec(Path::new(NOWHERE), &dataset));
    assert_eq!(
        server.get_json(&format!("/v1/jobs/{second}"))["queue_position"],
        2
    );
    let list = server.get_json("/v1/jobs?status=queued&limit=1");
    assert_eq!(list["data"][0]["id"], second.as_str());
    assert_eq!(list["has_more"], true);
}

#[test]
fn all_errors_of_a_spec_come_at_once() {
    let server = TestServer::with_slots(0);
    let body = json!({
        "task": "sequence_classification", "dataset": {"train": "x"}, "max_seq_len": 3,
        "training_args": {"learning_rate": -1, "learningrate": 1},
    });
    let response = server.post("/v1/jobs", &body);
    assert_eq!(response.status(), 422);
    assert_eq!(
        response.headers()["content-type"],
        "application/problem+json"
    );
    let problem: Value = response.json().unwrap();
    assert_eq!(problem["code"], "validation_failed");
    let pointers: Vec<&str> = problem["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["pointer"].as_str().unwrap())
        .collect();
    assert_eq!(
        pointers,
        [
            "/model",
            "/dataset/train",
            "/training_args/learning_rate",
            "/training_args/learningrate",
            "/max_seq_len",
        ]
    );
}

#[test]
fn one_idempotency_key_makes_one_job() {
    let server = TestServer::with_slots(0);
    let dataset = server.csv(&reviews(8));
    let body = spec(Path::new(NOWHERE), &dataset);
    let send = |body: &Value| {
        server
            .http
            .post(server.url("/v1/jobs"))
            .header("idempotency-key", "k-1")
            .json(body)
            .send()
            .unwrap()
    };
    let first: Value = send(&body).json().unwrap();
    let again = send(&body);
    assert_eq!(again.status(), 201);
    assert_eq!(again.json::<Value>().unwrap()["id"], first["id"]);
    let mut other = body.clone();
    other["name"] = json!("other");
    let refused = send(&other);
    assert_eq!(
        refused.json::<Value>().unwrap()["code"],
        "idempotency_key_reused"
    );
    assert_eq!(
        server.get_json("/v1/jobs")["data"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn a_queued_job_is_cancelled_at_once_and_then_deleted() {
    let server = TestServer::with_slots(0);
    let dataset = server.csv(&reviews(8));
    let id = server.job(&spec(Path::new(NOWHERE), &dataset));
    let early = server
        .http
        .delete(server.url(&format!("/v1/jobs/{id}")))
        .send()
        .unwrap();
    assert_eq!(early.status(), 409);
    let cancelled = server.post(&format!("/v1/jobs/{id}/cancel"), &json!({}));
    assert_eq!(cancelled.json::<Value>().unwrap()["status"], "cancelled");
    let kinds: Vec<Value> = server
        .events(&id)
        .iter()
        .map(|e| e["type"].clone())
        .collect();
    assert_eq!(kinds, [json!("queued"), json!("cancelled")]);
    let deleted = server
        .http
        .delete(server.url(&format!("/v1/jobs/{id}")))
        .send()
        .unwrap();
    assert_eq!(deleted.status(), 204);
    assert_eq!(server.get(&format!("/v1/jobs/{id}")).status(), 404);
}

#[test]
fn a_running_job_is_cancelled_within_a_moment() {
    let server = TestServer::start();
    let model = server.data_dir.join("tiny");
    tiny_bert::write(&model);
    let dataset = server.csv(&reviews(64));
    let mut body = spec(&model, &dataset);
    body["training_args"]["num_train_epochs"] = json!(10_000);
    let id = server.job(&body);
    server.wait_until(&id, |job| job["progress"]["global_step"].as_u64() > Some(3));
    server.post(&format!("/v1/jobs/{id}/cancel"), &json!({}));
    let job = server.wait(&id);
    assert_eq!(job["status"], "cancelled");
    let events = server.events(&id);
    let finals = events.iter().filter(|e| {
        matches!(
            e["type"].as_str(),
            Some("succeeded" | "failed" | "cancelled")
        )
    });
    assert_eq!(finals.count(), 1);
    let conflict = server.post(&format!("/v1/jobs/{id}/cancel"), &json!({}));
    assert_eq!(conflict.status(), 200, "cancelling twice changes nothing");
}

#[test]
fn unknown_paths_ids_and_methods_are_problems() {
    let server = TestServer::with_slots(0);
    let missing = "01900000-0000-7000-8000-000000000001";
    for (path, status, code) in [
        ("/v1/nothing".to_owned(), 404, "not_found"),
        (format!("/v1/jobs/{missing}"), 404, "job_not_found"),
        (format!("/v1/jobs/{missing}/events"), 404, "job_not_found"),
        (format!("/v1/jobs/{missing}/metrics"), 404, "job_not_found"),
        (
            format!("/v1/jobs/{missing}/checkpoints"),
            404,
            "job_not_found",
        ),
        (format!("/v1/datasets/{missing}"), 404, "dataset_not_found"),
        ("/v1/jobs?status=done".to_owned(), 422, "validation_failed"),
        ("/v1/jobs?colour=red".to_owned(), 422, "validation_failed"),
        ("/v1/jobs?limit=0".to_owned(), 422, "validation_failed"),
    ] {
        let response = server.get(&path);
        assert_eq!(response.status(), status, "{path}");
        assert_eq!(
            response.headers()["content-type"],
            "application/problem+json"
        );
        assert_eq!(response.json::<Value>().unwrap()["code"], code, "{path}");
    }
    let wrong = server.http.put(server.url("/v1/jobs")).send().unwrap();
    assert_eq!(wrong.status(), 405);
}
