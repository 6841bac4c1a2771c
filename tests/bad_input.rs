//! Bad input gets a clear error with a stable code and loses nothing: after each, the same server does an
//! ordinary job.

use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::support::trainers::Trainers;
use crate::support::{TestServer, reviews, spec, tiny_bert};

fn tiny(server: &TestServer, name: &str) -> PathBuf {
    let model = server.data_dir.join(name);
    tiny_bert::write(&model);
    model
}

/// Uploads a file that must be refused; answers the problem.
fn refused(server: &TestServer, query: &str, content_type: &str, body: &[u8]) -> Value {
    let response = server.upload(query, content_type, body.to_vec());
    assert_eq!(response.status(), 422, "{}", response.text().unwrap());
    let listed = server.get_json("/v1/datasets");
    assert_eq!(listed["data"], json!([]), "nothing was kept");
    assert_eq!(
        std::fs::read_dir(server.data_dir.join("tmp"))
            .unwrap()
            .count(),
        0,
        "no temporary file is left"
    );
    response.json().unwrap()
}

/// Runs a job that must fail; answers its error.
fn failure(server: &TestServer, body: &Value) -> Value {
    let id = server.job(body);
    let job = server.wait(&id);
    assert_eq!(job["status"], "failed", "{job}");
    let events = server.events(&id);
    assert_eq!(events.last().unwrap()["data"]["error"], job["error"]);
    job["error"].clone()
}

/// The server still works.
fn still_works(server: &TestServer) {
    let model = tiny(server, "sound");
    let dataset = server.csv(&reviews(16));
    let job = server.wait(&server.job(&spec(&model, &dataset)));
    assert_eq!(job["status"], "succeeded", "{job}");
}

#[test]
fn files_that_are_no_datasets_are_refused_with_the_line() {
    let server = TestServer::with_slots(0);
    for (content_type, body, code, line) in [
        ("text/csv", &b""[..], "dataset_empty", None),
        ("text/csv", b"text,label\n", "dataset_empty", None),
        (
            "text/csv",
            b"text,label\na,b\nc\n",
            "dataset_ragged_row",
            Some(3),
        ),
        (
            "text/csv",
            b"text,label\na,b\n\xff\xfe,b\n",
            "dataset_not_utf8",
            Some(3),
        ),
        (
            "text/csv",
            b"text,label\n\"open,b\n",
            "dataset_malformed",
            Some(2),
        ),
        (
            "application/x-ndjson",
            b"{\"text\":\"a\"}\n{oops\n",
            "dataset_malformed",
            Some(2),
        ),
        (
            "text/tab-separated-values",
            b"a\tb\nc\td\te\n",
            "dataset_ragged_row",
            Some(2),
        ),
    ] {
        let problem = refused(&server, "name=x", content_type, body);
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["line"].as_u64(), line, "{problem}");
    }
    let mut long = b"text,label\n".to_vec();
    long.extend(std::iter::repeat_n(b'x', 2 << 20));
    let problem = refused(&server, "name=x", "text/csv", &long);
    assert_eq!(problem["code"], "dataset_line_too_long");
    let response = server.upload("name=x", "image/png", "x");
    assert_eq!(response.status(), 415);
}

#[test]
fn a_wrong_column_name_lists_those_there_are() {
    let server = TestServer::with_slots(0);
    let dataset = server.csv("review,stars\ngood,5\nbad,1\n");
    let response = server.post("/v1/jobs", &spec(Path::new("org/model"), &dataset));
    assert_eq!(response.status(), 422);
    let problem: Value = response.json().unwrap();
    let text = problem.to_string();
    assert!(text.contains("column_not_found"), "{text}");
    assert!(text.contains("/dataset/columns/text"), "{text}");
    assert!(text.contains("review") && text.contains("stars"), "{text}");
    assert_eq!(server.get_json("/v1/jobs")["data"], json!([]));
}

#[test]
fn labels_must_make_sense() {
    let server = TestServer::start();
    let model = tiny(&server, "tiny");
    let one = server.csv("text,label\na film,x\nthe story,x\n");
    let error = failure(&server, &spec(&model, &one));
    assert_eq!(error["code"], "labels_too_few");

    let (train, eval) = (
        server.csv(&reviews(8)),
        server.csv("text,label\na film,positive\nthe story,neutral\n"),
    );
    let mut body = spec(&model, &train);
    body["dataset"]["eval"] = json!(eval);
    let error = failure(&server, &body);
    assert_eq!(error["code"], "label_unknown");
    assert_eq!(error["line"], 3);
    assert!(
        error["message"].as_str().unwrap().contains("neutral"),
        "{error}"
    );

    let unlabelled = server.csv("text,label\na film,x\nthe story,\nplot,y\n");
    let error = failure(&server, &spec(&model, &unlabelled));
    assert_eq!(
        (error["code"].as_str(), error["line"].as_u64()),
        (Some("value_invalid"), Some(3))
    );
    still_works(&server);
}

#[test]
fn a_text_without_tokens_is_named_by_its_line() {
    let server = TestServer::start();
    let model = tiny(&server, "tiny");
    let dataset = server.csv("text,label\na film,x\n\" \u{200b} \",y\nplot,y\n");
    let error = failure(&server, &spec(&model, &dataset));
    assert_eq!(
        (error["code"].as_str(), error["line"].as_u64()),
        (Some("text_has_no_tokens"), Some(3)),
        "{error}"
    );
    still_works(&server);
}

#[test]
fn an_unknown_model_lists_all_that_was_tried() {
    let server = TestServer::start();
    let dataset = server.csv(&reviews(8));
    let error = failure(&server, &spec(Path::new("nobody/nothing"), &dataset));
    assert_eq!(error["code"], "model_not_found");
    let message = error["message"].as_str().unwrap();
    for tried in ["local folder", "hub cache", "HF_HUB_OFFLINE"] {
        assert!(message.contains(tried), "{tried} is not in: {message}");
    }
    still_works(&server);
}

#[test]
fn broken_base_models_are_named_for_what_they_are() {
    let server = TestServer::start();
    let dataset = server.csv(&reviews(8));
    let edit_config = |name: &str, key: &str, value: Value| {
        let dir = tiny(&server, name);
        let path = dir.join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        std::fs::write(&path, config.to_string()).unwrap();
        dir
    };
    let unsupported = edit_config("t5", "model_type", json!("t5"));
    let error = failure(&server, &spec(&unsupported, &dataset));
    assert_eq!(error["code"], "model_type_unsupported");
    assert!(
        error["message"].as_str().unwrap().contains("bert"),
        "{error}"
    );

    for (key, value) in [
        ("hidden_size", json!(4_000_000_000u64)),
        ("hidden_size", json!(-1)),
        ("num_attention_heads", json!(5)),
        ("hidden_dropout_prob", json!("much")),
        ("vocab_size", json!(7)),
    ] {
        let hostile = edit_config("hostile", key, value);
        let error = failure(&server, &spec(&hostile, &dataset));
        assert_eq!(error["code"], "model_invalid", "{key}: {error}");
    }

    let corrupt = tiny(&server, "corrupt");
    let weights = corrupt.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    bytes.truncate(bytes.len() / 2);
    std::fs::write(&weights, &bytes).unwrap();
    let error = failure(&server, &spec(&corrupt, &dataset));
    assert_eq!(error["code"], "model_invalid", "{error}");

    let pickle = tiny(&server, "pickle");
    std::fs::rename(
        pickle.join("model.safetensors"),
        pickle.join("pytorch_model.bin"),
    )
    .unwrap();
    let error = failure(&server, &spec(&pickle, &dataset));
    assert_eq!(error["code"], "model_pickle_refused", "{error}");
    still_works(&server);
}

#[test]
fn sequences_longer_than_the_model_are_refused() {
    let server = TestServer::start();
    let model = tiny(&server, "tiny");
    let dataset = server.csv(&reviews(8));
    let mut body = spec(&model, &dataset);
    body["max_seq_length"] = json!(512);
    let error = failure(&server, &body);
    assert_eq!(error["pointer"], "/max_seq_length", "{error}");
}

#[test]
fn a_diverging_training_stops_before_the_update() {
    let server = TestServer::start();
    let model = tiny(&server, "tiny");
    let dataset = server.csv(&reviews(32));
    let mut body = spec(&model, &dataset);
    body["training_args"] =
        json!({"learning_rate": 1e38, "max_grad_norm": 0, "num_train_epochs": 20});
    let error = failure(&server, &body);
    assert_eq!(error["code"], "non_finite_loss", "{error}");
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("step") && message.contains("lines"),
        "{message}"
    );
    still_works(&server);
}

#[test]
fn a_trainer_killed_from_outside_fails_only_its_job() {
    let server = TestServer::start();
    let model = tiny(&server, "tiny");
    let dataset = server.csv(&reviews(64));
    let mut body = spec(&model, &dataset);
    body["training_args"]["num_train_epochs"] = json!(10_000);
    let id = server.job(&body);
    let waiting = server.job(&spec(&model, &dataset));
    let trainers = Trainers::of(&server.data_dir);
    let mut killed = std::collections::BTreeSet::new();
    let job = loop {
        let view = server.wait_until(&id, |job| {
            job["status"] != "running" && job["status"] != "queued"
                || job["progress"]["global_step"].as_u64() > Some(0)
        });
        if view["status"] == "failed" {
            break view;
        }
        for trainer in trainers.of_job(&id) {
            if kill(trainer, Signal::SIGKILL).is_ok() {
                killed.insert(trainer);
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    assert_eq!(job["error"]["code"], "poisoned", "{job}");
    let message = job["error"]["message"].as_str().unwrap();
    assert!(message.contains("SIGKILL"), "{job}");
    assert_eq!(killed.len(), 3, "three trainers may die, no more");
    assert_eq!(server.wait(&waiting)["status"], "succeeded");
}
