//! Real training through the API: a trainer process, a tiny BERT, a checkpoint.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{TestServer, chandler, reviews, spec, tiny_bert};

fn tiny(server: &TestServer) -> PathBuf {
    let model = server.data_dir.join("tiny");
    tiny_bert::write(&model);
    model
}

fn weights_of(job: &Value) -> Vec<u8> {
    let dir = Path::new(job["model_dir"].as_str().unwrap());
    std::fs::read(dir.join("model.safetensors")).unwrap()
}

fn values(server: &TestServer, job: &str, name: &str) -> Vec<f64> {
    let metrics = server.get_json(&format!("/v1/jobs/{job}/metrics?names={name}"));
    metrics["data"][name]
        .as_array()
        .unwrap_or_else(|| panic!("no {name}: {metrics}"))
        .iter()
        .map(|p| p["value"].as_f64().unwrap())
        .collect()
}

#[test]
fn a_job_learns_reports_and_leaves_a_hugging_face_model() {
    let server = TestServer::start();
    let model = tiny(&server);
    let (train, eval) = (server.csv(&reviews(160)), server.csv(&reviews(40)));
    let mut body = spec(&model, &train);
    body["dataset"]["eval"] = json!(eval);
    body["training_args"]["num_train_epochs"] = json!(4);
    body["training_args"]["learning_rate"] = json!(3e-3);
    body["training_args"]["eval_strategy"] = json!("epoch");
    let id = server.job(&body);
    let job = server.wait(&id);
    assert_eq!(job["status"], "succeeded", "{job}");
    assert_eq!(job["error"], Value::Null);
    assert_eq!(job["progress"]["global_step"], 80);
    assert_eq!(job["progress"]["total_steps"], 80);
    let metrics = job["metrics"].as_object().unwrap();
    for name in [
        "loss",
        "learning_rate",
        "grad_norm",
        "eval_loss",
        "eval_accuracy",
        "eval_f1",
        "train_runtime",
        "train_samples_per_second",
        "train_loss",
    ] {
        assert!(
            metrics[name].is_f64() || metrics[name].is_i64(),
            "no {name}"
        );
    }
    assert!(
        job["metrics"]["eval_accuracy"].as_f64().unwrap() >= 0.95,
        "{job}"
    );

    let losses = values(&server, &id, "loss");
    assert_eq!(losses.len(), 80);
    assert!(losses[79] < losses[0] / 2.0, "{losses:?}");
    let rates = values(&server, &id, "learning_rate");
    assert_eq!(rates[0], 3e-3, "HF logs the rate that the step used");
    assert!(rates.windows(2).all(|w| w[1] < w[0]));

    check_export(&job, &id);
    check_checkpoints(&server, &id);
    check_predict(job["model_dir"].as_str().unwrap());
}

fn check_export(job: &Value, id: &str) {
    let dir = Path::new(job["model_dir"].as_str().unwrap());
    let read = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(dir.join(name)).unwrap()).unwrap()
    };
    let config = read("config.json");
    assert_eq!(
        config["architectures"],
        json!(["BertForSequenceClassification"])
    );
    assert_eq!(
        config["id2label"],
        json!({"0": "negative", "1": "positive"})
    );
    assert_eq!(config["label2id"], json!({"negative": 0, "positive": 1}));
    assert_eq!(config["problem_type"], "single_label_classification");
    let state = read("trainer_state.json");
    assert_eq!(state["global_step"], 80);
    assert!(state["log_history"].as_array().unwrap().len() > 80);
    let card = std::fs::read_to_string(dir.join("README.md")).unwrap();
    assert!(
        card.starts_with("---\nlibrary_name: transformers"),
        "{card}"
    );
    assert!(card.contains(id));
    let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
    let names: Vec<String> = header.tensors().into_keys().collect();
    for name in [
        "bert.pooler.dense.weight",
        "classifier.weight",
        "classifier.bias",
    ] {
        assert!(names.iter().any(|n| n == name), "no {name}");
    }
    assert!(
        !dir.join("optimizer.safetensors").exists(),
        "a model needs no optimizer"
    );
}

fn check_checkpoints(server: &TestServer, id: &str) {
    let list = server.get_json(&format!("/v1/jobs/{id}/checkpoints"));
    let last = list["data"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(last["step"], 80);
    assert_eq!(last["last"], true);
    let path = format!("/v1/jobs/{id}/checkpoints/last/files/config.json");
    let whole = server.get(&path);
    assert_eq!(whole.status(), 200);
    let etag = whole.headers()["etag"].to_str().unwrap().to_owned();
    let text = whole.text().unwrap();
    let record = last["files"]
        .as_array()
        .unwrap()
        .iter()
        .find(|f| f["path"] == "config.json")
        .unwrap();
    assert_eq!(etag, format!("\"{}\"", record["sha256"].as_str().unwrap()));
    let get = |name: &'static str, value: &str| {
        let request = server.http.get(server.url(&path));
        request.header(name, value).send().unwrap()
    };
    let part = get("range", "bytes=2-5");
    assert_eq!(part.status(), 206);
    assert_eq!(part.text().unwrap(), text[2..6]);
    assert_eq!(get("if-none-match", &etag).status(), 304);
    assert_eq!(get("range", "bytes=9999999-").status(), 416);
    let outside = server.get(&format!(
        "/v1/jobs/{id}/checkpoints/last/files/..%2F..%2F..%2Fchandler.db"
    ));
    assert_eq!(outside.status(), 404);
    let archive = server.get(&format!("/v1/jobs/{id}/checkpoints/last/archive"));
    assert_eq!(archive.status(), 200);
    let bytes = archive.bytes().unwrap();
    let mut found = None;
    for entry in tar::Archive::new(bytes.as_ref()).entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.path().unwrap().ends_with("config.json") {
            let mut content = String::new();
            std::io::Read::read_to_string(&mut entry, &mut content).unwrap();
            found = Some(content);
        }
    }
    assert_eq!(found.as_deref(), Some(text.as_str()));
}

fn check_predict(model_dir: &str) {
    let output = chandler()
        .args(["predict", model_dir, "a good film", "an awful film"])
        .output()
        .unwrap();
    assert!(output.status.success());
    let lines = String::from_utf8(output.stdout).unwrap();
    let labels: Vec<&str> = lines
        .lines()
        .map(|line| line.split('\t').next().unwrap())
        .collect();
    assert_eq!(labels, ["positive", "negative"]);
}

#[test]
fn the_same_spec_gives_the_same_weights() {
    let server = TestServer::start();
    let model = tiny(&server);
    let dataset = server.csv(&reviews(40));
    let body = spec(&model, &dataset);
    let jobs: Vec<Value> = (0..2).map(|_| server.wait(&server.job(&body))).collect();
    assert_eq!(weights_of(&jobs[0]), weights_of(&jobs[1]));
    let mut other = body.clone();
    other["training_args"]["seed"] = json!(8);
    let other = server.wait(&server.job(&other));
    assert_ne!(weights_of(&jobs[0]), weights_of(&other));
}

#[test]
fn accumulation_gives_the_gradient_of_the_whole_batch() {
    let server = TestServer::start();
    let model = tiny(&server);
    let dataset = server.csv(&reviews(32));
    let run = |batch: u32, accumulation: u32| {
        let mut body = spec(&model, &dataset);
        body["training_args"]["bf16"] = json!(false);
        body["training_args"]["max_steps"] = json!(3);
        body["training_args"]["per_device_train_batch_size"] = json!(batch);
        body["training_args"]["gradient_accumulation_steps"] = json!(accumulation);
        let id = server.job(&body);
        server.wait(&id);
        (
            values(&server, &id, "loss"),
            values(&server, &id, "grad_norm"),
        )
    };
    let (whole, split) = (run(8, 1), run(4, 2));
    for (a, b) in whole
        .0
        .iter()
        .zip(&split.0)
        .chain(whole.1.iter().zip(&split.1))
    {
        assert!((a - b).abs() / a < 1e-5, "{whole:?} {split:?}");
    }
}

#[test]
fn the_best_checkpoint_is_the_model_and_the_rest_rotates() {
    let server = TestServer::start();
    let model = tiny(&server);
    let dataset = server.csv(&reviews(80));
    let mut body = spec(&model, &dataset);
    body["dataset"]["eval_split"] = json!(0.25);
    body["training_args"] = json!({
        "num_train_epochs": 5, "learning_rate": 3e-3, "eval_strategy": "epoch", "save_strategy": "epoch",
        "save_total_limit": 1, "load_best_model_at_end": true, "metric_for_best_model": "accuracy",
    });
    let id = server.job(&body);
    let job = server.wait(&id);
    assert_eq!(job["status"], "succeeded", "{job}");
    let list = server.get_json(&format!("/v1/jobs/{id}/checkpoints"));
    let list = list["data"].as_array().unwrap();
    assert!(
        (1..=2).contains(&list.len()),
        "the best and the last: {list:?}"
    );
    let best = list.iter().find(|c| c["best"] == true).unwrap();
    assert_eq!(best["step"], job["model_step"]);
    assert_eq!(
        best["metrics"]["eval_accuracy"],
        job["metrics"]["eval_accuracy"]
    );
    let folders = std::fs::read_dir(server.data_dir.join("jobs").join(&id).join("checkpoints"));
    assert_eq!(folders.unwrap().count(), list.len());
}

#[test]
fn a_model_this_server_trained_is_a_base_model() {
    let server = TestServer::start();
    let model = tiny(&server);
    let dataset = server.csv(&reviews(40));
    let first = server.job(&spec(&model, &dataset));
    server.wait(&first);
    for name in [first.clone(), format!("job:{first}")] {
        let job = server.wait(&server.job(&spec(Path::new(&name), &dataset)));
        assert_eq!(job["status"], "succeeded", "{job}");
    }
}

#[test]
fn pairs_of_texts_are_trained_on() {
    let server = TestServer::start();
    let model = tiny(&server);
    let mut csv = String::from("a,b,same\n");
    for i in 0..24 {
        csv.push_str(&format!("film {i},story {},{}\n", i % 3, i % 2));
    }
    let dataset = server.csv(&csv);
    let mut body = spec(&model, &dataset);
    body["dataset"]["columns"] = json!({"text": "a", "text_pair": "b", "label": "same"});
    let job = server.wait(&server.job(&body));
    assert_eq!(job["status"], "succeeded", "{job}");
}

#[test]
fn a_stopped_server_goes_on_from_the_checkpoint_and_ends_with_the_same_weights() {
    let temp = tempfile::tempdir().unwrap();
    let data_dir = temp.path().join("data");
    let server = TestServer::in_dir(&data_dir, 1);
    let model = tiny(&server);
    let dataset = server.csv(&reviews(200));
    let mut body = spec(&model, &dataset);
    // Long enough to be stopped in the middle, and few enough log entries to read them all.
    body["training_args"]["num_train_epochs"] = json!(120);
    body["training_args"]["logging_steps"] = json!(500);
    let whole = server.wait(&server.job(&body));

    let id = server.job(&body);
    server.wait_until(&id, |job| {
        job["progress"]["global_step"].as_u64() > Some(20)
    });
    server.stop();
    let server = TestServer::in_dir(&data_dir, 1);
    let resumed = server.wait(&id);
    assert_eq!(resumed["status"], "succeeded", "{resumed}");
    let log: Vec<Value> = server.events(&id);
    assert!(
        log.iter().any(|e| e["data"]["message"]
            .as_str()
            .is_some_and(|m| m.starts_with("resumed from the checkpoint"))),
        "it started over"
    );
    assert_eq!(weights_of(&resumed), weights_of(&whole));
}

#[test]
fn two_slots_train_two_jobs_at_a_time() {
    let server = TestServer::with_slots(2);
    let model = tiny(&server);
    let dataset = server.csv(&reviews(64));
    let mut body = spec(&model, &dataset);
    body["training_args"]["num_train_epochs"] = json!(10_000);
    let jobs = [server.job(&body), server.job(&body)];
    for job in &jobs {
        server.wait_until(job, |view| {
            view["progress"]["global_step"].as_u64() > Some(0)
        });
    }
    let third = server.job(&body);
    assert_eq!(
        server.get_json(&format!("/v1/jobs/{third}"))["status"],
        "queued"
    );
    for job in jobs.iter().chain([&third]) {
        server.post(&format!("/v1/jobs/{job}/cancel"), &json!({}));
    }
    for job in jobs.iter().chain([&third]) {
        assert_eq!(server.wait(job)["status"], "cancelled");
    }
}
