//! Through the server, with real trainer processes: a hanging step, and training on from another job's
//! checkpoint.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{TestServer, reviews, spec, tiny_bert};

fn tiny(server: &TestServer) -> PathBuf {
    let model = server.data_dir.join("tiny");
    tiny_bert::write(&model);
    model
}

fn messages(server: &TestServer, job: &str) -> Vec<String> {
    let events = server.events(job);
    let message = |event: &Value| event["data"]["message"].as_str().map(str::to_owned);
    events.iter().filter_map(message).collect()
}

/// The steps that told of their loss. One after the last checkpoint may do so in both attempts.
fn steps(server: &TestServer, job: &str) -> BTreeSet<u64> {
    let metrics = server.get_json(&format!("/v1/jobs/{job}/metrics?names=loss"));
    let points = metrics["data"]["loss"].as_array().unwrap();
    points.iter().map(|p| p["step"].as_u64().unwrap()).collect()
}

fn losses(server: &TestServer, job: &str) -> Vec<f64> {
    let metrics = server.get_json(&format!("/v1/jobs/{job}/metrics?names=loss"));
    let points = metrics["data"]["loss"].as_array().unwrap();
    points
        .iter()
        .map(|p| p["value"].as_f64().unwrap())
        .collect()
}

fn weights(job: &Value) -> Vec<u8> {
    let dir = Path::new(job["model_dir"].as_str().unwrap_or_else(|| panic!("{job}")));
    std::fs::read(dir.join("model.safetensors")).unwrap()
}

#[test]
fn a_hanging_step_is_ended_by_the_watchdog_and_the_job_goes_on() {
    let faults = "train.step@9=hang#1,train.watchdog@1500=limit#1";
    let server = TestServer::with_env(&[("CHANDLER_FAULTS", faults)]);
    let model = tiny(&server);
    let dataset = server.csv(&reviews(64));
    let mut body = spec(&model, &dataset);
    body["training_args"]["save_steps"] = json!(4);
    let id = server.job(&body);
    let job = server.wait(&id);
    assert_eq!(job["status"], "succeeded", "{job}");
    let messages = messages(&server, &id);
    let has = |start: &str| messages.iter().any(|m| m.starts_with(start));
    assert!(
        has("training hangs: nothing has happened for 1.5 s"),
        "{messages:?}"
    );
    assert!(has("resumed from the checkpoint of step 8"), "{messages:?}");
    let undisturbed = TestServer::start();
    let model = tiny(&undisturbed);
    let dataset = undisturbed.csv(&reviews(64));
    let mut body = spec(&model, &dataset);
    body["training_args"]["save_steps"] = json!(4);
    let reference = undisturbed.wait(&undisturbed.job(&body));
    assert!(
        weights(&job) == weights(&reference),
        "the second attempt trained something else"
    );
}

#[test]
fn a_trainer_that_memory_ends_leaves_smaller_micro_batches_to_the_next() {
    let server = TestServer::with_env(&[("CHANDLER_FAULTS", "train.step@9=abort#1")]);
    let model = tiny(&server);
    let mut body = spec(&model, &server.csv(&reviews(64)));
    body["training_args"]["save_steps"] = json!(4);
    let id = server.job(&body);
    let job = server.wait(&id);
    assert_eq!(job["status"], "succeeded", "{job}");
    assert_eq!(job["attempt"], 2, "{job}");
    let events = server.events(&id);
    let requeued = events.iter().find(|event| event["type"] == "requeued");
    let reason = requeued.unwrap()["data"]["reason"].as_str().unwrap();
    assert!(reason.contains("ran out of memory"), "{reason}");
    assert!(
        reason.ends_with("micro-batches of 4 rows, batch unchanged"),
        "{reason}"
    );
    assert!(
        steps(&server, &id).into_iter().eq(1..=16),
        "a step is left out"
    );
    let dir = Path::new(job["model_dir"].as_str().unwrap());
    let progress = std::fs::read(dir.join("trainer_progress.json")).unwrap();
    let progress: Value = serde_json::from_slice(&progress).unwrap();
    assert_eq!(progress["micro_batch_divisor"], 2);
}

#[test]
fn a_job_goes_on_from_another_jobs_best_checkpoint() {
    let server = TestServer::start();
    let model = tiny(&server);
    let dataset = server.csv(&reviews(120));
    let mut body = spec(&model, &dataset);
    body["dataset"]["eval_split"] = json!(0.2);
    body["training_args"] = json!({
        "num_train_epochs": 6, "learning_rate": 3e-3, "logging_steps": 1, "seed": 7,
        "eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": true,
    });
    let first = server.job(&body);
    let done = server.wait(&first);
    assert_eq!(done["status"], "succeeded", "{done}");
    let before = losses(&server, &first);
    let fresh = before[0];
    let reached = before[before.len() - 5..].iter().sum::<f64>() / 5.0;
    assert!(reached < fresh / 3.0, "{before:?}");

    body["model"] = json!(format!("job:{first}@best"));
    body["training_args"]["learning_rate"] = json!(1e-4);
    body["training_args"]["num_train_epochs"] = json!(1);
    let second = server.job(&body);
    assert_eq!(server.wait(&second)["status"], "succeeded");
    let after = losses(&server, &second)[0];
    assert!(
        after < reached + fresh / 4.0,
        "began at {after}, {reached} was reached"
    );
    let said = messages(&server, &second);
    assert!(
        said.iter()
            .any(|m| m.starts_with("the base model has the same labels")),
        "{said:?}"
    );

    // The same texts with other labels, as many: nothing of the old classifier is left.
    let renamed = reviews(120)
        .replace(",positive", ",yes")
        .replace(",negative", ",no");
    body["dataset"]["train"] = json!(server.csv(&renamed));
    let third = server.job(&body);
    let job = server.wait(&third);
    assert_eq!(job["status"], "succeeded", "{job}");
    let said = messages(&server, &third);
    let other =
        "the base model has other labels (negative, positive) than the training set (no, yes)";
    assert!(said.iter().any(|m| m.starts_with(other)), "{said:?}");
    let new = "newly initialized: classifier.weight, classifier.bias".to_owned();
    assert!(said.contains(&new), "{said:?}");
    let began = losses(&server, &third)[0];
    assert!(
        began > after + 0.2,
        "a new classifier cannot know: {began} after {after}"
    );
}
