//! The same spec gives the same bits, in another process and with other threads; and an update's weights do
//! not depend on the micro-batches it was cut into.

use std::path::Path;

use serde_json::{Value, json};

use super::{distance, norm, train};
use crate::support::{ServerOptions, TestServer, reviews, spec, tiny_bert};

/// Wide enough that every op has work for several threads.
fn write_model(dir: &Path) {
    tiny_bert::write(dir);
    let text = std::fs::read(dir.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    for (name, size) in [
        ("hidden_size", 128),
        ("num_attention_heads", 4),
        ("intermediate_size", 512),
    ] {
        config[name] = json!(size);
    }
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    tiny_bert::write_weights_of(dir, &config);
}

/// The weights' bytes and every logged number.
fn outcome(server: &TestServer, body: &Value) -> (Vec<u8>, Value) {
    let id = server.job(body);
    let job = server.wait(&id);
    assert_eq!(job["status"], "succeeded", "{job}");
    let weights = Path::new(job["model_dir"].as_str().unwrap()).join("model.safetensors");
    let names = "loss,grad_norm,learning_rate,eval_loss";
    let metrics = server.get_json(&format!("/v1/jobs/{id}/metrics?names={names}"));
    let series = &metrics["data"];
    let values: Vec<(&String, Vec<&Value>)> = series
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, points)| {
            let points = points.as_array().unwrap().iter();
            (name, points.map(|p| &p["value"]).collect())
        })
        .collect();
    (std::fs::read(weights).unwrap(), json!(values))
}

#[test]
fn threads_and_processes_do_not_change_a_bit() {
    let temp = tempfile::tempdir().unwrap();
    let model = temp.path().join("model");
    write_model(&model);
    let server_with = |threads: u32| {
        let dir = temp.path().join(format!("threads-{threads}"));
        ServerOptions::new(&dir).threads(threads).start()
    };
    let (one, two) = (server_with(1), server_with(2));
    for bf16 in [json!(true), json!(false)] {
        let body = |server: &TestServer| {
            let mut body = spec(&model, &server.csv(&reviews(96)));
            body["dataset"]["eval_split"] = json!(0.25);
            body["training_args"]["bf16"] = bf16.clone();
            body
        };
        let first = outcome(&one, &body(&one));
        assert!(
            first == outcome(&one, &body(&one)),
            "another run, bf16 {bf16}"
        );
        assert!(
            first == outcome(&two, &body(&two)),
            "two threads, bf16 {bf16}"
        );
        let mut other = body(&two);
        other["training_args"]["seed"] = json!(8);
        assert!(
            first != outcome(&two, &other),
            "the seed counts for nothing"
        );
    }
}

#[test]
fn micro_batches_do_not_change_an_update() {
    let temp = tempfile::tempdir().unwrap();
    let (model, rows) = (temp.path().join("model"), temp.path().join("rows.csv"));
    write_model(&model);
    std::fs::write(&rows, reviews(160)).unwrap();
    for dropout in [0.1, 0.0] {
        let path = model.join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config["hidden_dropout_prob"] = json!(dropout);
        config["attention_probs_dropout_prob"] = json!(dropout);
        std::fs::write(&path, config.to_string()).unwrap();
        let run = |batch: u32, accumulation: u32| {
            let args = json!({
                "num_train_epochs": 3, "learning_rate": 1e-4, "seed": 7, "bf16": false, "save_strategy": "no",
                "per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation,
            });
            train(
                &model,
                &rows,
                &json!({"max_seq_length": 32, "training_args": args}),
            )
            .1
        };
        let (whole, halves) = (run(32, 1), run(16, 2));
        let apart = distance(&whole, &halves) / norm(&whole);
        println!("dropout {dropout}: weights differ by {apart:.1e}");
        assert!(apart < 1e-6, "dropout {dropout}: {apart:e}");
        // And the measure sees a training that is a little different.
        assert!(distance(&whole, &run(31, 1)) / norm(&whole) > 1e-5);
    }
}
