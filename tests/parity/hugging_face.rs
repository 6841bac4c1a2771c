//! Fifty steps beside the Hugging Face Trainer: no dropout, fp32, the same initial weights, the same order of
//! rows, the same schedule, clipping and parameter groups. `tests/fixtures/make_parity_fixture.py` recorded them.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Weights, distance, fixtures, norm, read_weights, train, weights_in};
use crate::support::recorder::Recorder;

/// What the Trainer did, and with what.
struct Recording {
    model: PathBuf,
    rows: PathBuf,
    expected: Value,
    last: Weights,
}

impl Recording {
    fn read(dir: &Path, model: PathBuf) -> Self {
        let text = std::fs::read_to_string(dir.join("expected.json")).unwrap();
        Self {
            model,
            rows: dir.join("train.csv"),
            expected: serde_json::from_str(&text).unwrap(),
            last: weights_in(&dir.join("final.safetensors")),
        }
    }

    /// The same training by us, every update's rows cut into this many micro-batches.
    fn repeat(&self, accumulation: u64) -> (Recorder, Weights) {
        let rows = self.expected["rows_per_update"].as_u64().unwrap();
        let mut args = self.expected["training_args"].clone();
        args["per_device_train_batch_size"] = json!(rows / accumulation);
        args["gradient_accumulation_steps"] = json!(accumulation);
        args["logging_steps"] = json!(1);
        args["save_strategy"] = json!("no");
        args["bf16"] = json!(false);
        let length = &self.expected["max_seq_length"];
        train(
            &self.model,
            &self.rows,
            &json!({"max_seq_length": length, "training_args": args}),
        )
    }

    /// Every number of every step, at accumulation 1, 2 and 4.
    fn check(&self) {
        let initial = read_weights(&self.model);
        let moved = distance(&self.last, &initial);
        assert!(
            moved > 1e-3 * norm(&initial),
            "a training that goes nowhere proves nothing"
        );
        for run in self.expected["runs"].as_array().unwrap() {
            let accumulation = run["gradient_accumulation_steps"].as_u64().unwrap();
            let (recorder, last) = self.repeat(accumulation);
            let loss = worst(&recorder, run, "loss");
            let grad_norm = worst(&recorder, run, "grad_norm");
            let learning_rate = worst(&recorder, run, "learning_rate");
            let apart = distance(&last, &self.last);
            let weights = apart / norm(&self.last);
            println!(
                "accumulation {accumulation}: loss {loss:.1e}, grad_norm {grad_norm:.1e}, weights {weights:.1e} \
                 ({:.1e} of the way they went)",
                apart / moved
            );
            assert!(loss <= 1e-4, "loss differs by {loss:e}");
            assert!(grad_norm <= 1e-3, "grad_norm differs by {grad_norm:e}");
            assert_eq!(learning_rate, 0.0, "the learning rate is not exact");
            assert!(weights <= 1e-4, "weights differ by {weights:e}");
            assert!(
                apart <= 1e-2 * moved,
                "weights went elsewhere: {apart} of {moved}"
            );
        }
    }
}

fn numbers(run: &Value, name: &str) -> Vec<f64> {
    let values = run[name].as_array().unwrap().iter();
    values
        .map(|text| text.as_str().unwrap().parse().unwrap())
        .collect()
}

/// The largest relative difference between our steps and the recorded ones.
fn worst(recorder: &Recorder, run: &Value, name: &str) -> f64 {
    let expected = numbers(run, name);
    let ours = recorder.series(name);
    assert!(
        ours.len() >= expected.len(),
        "{} steps of {name}",
        ours.len()
    );
    let pairs = ours.iter().zip(&expected);
    // The first rate of a warm-up is zero.
    pairs
        .map(|((_, x), y)| (x - y).abs() / y.abs().max(1e-12))
        .fold(0.0, f64::max)
}

/// The committed recording; the folder with its model goes away with the second value.
fn tiny() -> (Recording, TempDir) {
    let (dir, recorded) = (tempfile::tempdir().unwrap(), fixtures().join("parity"));
    for file in ["config.json", "model.safetensors"] {
        let from = fixtures().join("tiny-bert").join(file);
        std::fs::copy(from, dir.path().join(file)).unwrap();
    }
    let tokenizer = recorded.join("tokenizer.json");
    std::fs::copy(tokenizer, dir.path().join("tokenizer.json")).unwrap();
    (Recording::read(&recorded, dir.path().to_owned()), dir)
}

#[test]
fn fifty_steps_are_those_of_the_hugging_face_trainer() {
    let (tiny, _dir) = tiny();
    tiny.check();
}

/// Left alone, version 5 of the Trainer multiplies loss and gradient of BERT's heads by the number of
/// micro-batches. Ours are those of the whole update, so there they must not agree.
#[test]
fn the_trainers_own_accumulation_is_off_by_the_number_of_micro_batches() {
    let (tiny, _dir) = tiny();
    for shipped in tiny.expected["as_shipped"].as_array().unwrap() {
        let accumulation = shipped["gradient_accumulation_steps"].as_u64().unwrap();
        let (recorder, _) = tiny.repeat(accumulation);
        for name in ["loss", "grad_norm"] {
            let (ours, theirs) = (recorder.series(name)[0].1, numbers(shipped, name)[0]);
            let factor = theirs / ours;
            let off = (factor / accumulation as f64 - 1.0).abs();
            assert!(
                off < 1e-4,
                "{name} at accumulation {accumulation}: {factor} times ours"
            );
        }
        let agrees = worst(&recorder, shipped, "loss") < 1e-4;
        assert_eq!(agrees, accumulation == 1, "accumulation {accumulation}");
    }
}

/// The same with a real model and real rows, recorded into a folder by
/// `make_parity_fixture.py --model DIR --train FILE --out FOLDER`.
#[test]
#[ignore = "needs a recording: CHANDLER_PARITY_DIR"]
fn a_recorded_training_is_that_of_the_hugging_face_trainer() {
    let dir = PathBuf::from(std::env::var("CHANDLER_PARITY_DIR").unwrap());
    Recording::read(&dir, dir.join("model")).check();
}
