//! Whole trainings on an emulated GPU: what they compute is what the CPU computes, they repeat to the bit, and go on
//! from a checkpoint as if nothing had happened. On a card: `CHANDLER_TEST_GPU=1 cargo test --features cuda gpu`.

use std::path::Path;

use chandler::domain::DeviceKind;
use chandler::train::{self, Outcome, TrainJob};
use serde_json::{Value, json};

use crate::checkpoints::lab::{Lab, Recorder, file, run};
use crate::support::{emulated_gpu, tiny_bert};

const STEPS: u64 = 12;

fn training(bf16: bool) -> Value {
    json!({"eval_split": 0.25, "training_args": {
        "max_steps": STEPS, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3, "eval_strategy": "epoch", "logging_steps": 1, "seed": 3, "bf16": bf16,
    }})
}

/// A lab whose model has heads of 32, which tensor cores take.
fn lab(dir: &Path) -> Lab {
    if std::env::var_os("CHANDLER_TEST_GPU").is_none() {
        emulated_gpu::load();
    }
    let lab = Lab::set_up(dir, 48);
    for name in ["dropout", "no-dropout"] {
        let path = lab.dir.join(name).join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config["hidden_size"] = json!(64);
        std::fs::write(&path, config.to_string()).unwrap();
        tiny_bert::write_weights_of(&lab.dir.join(name), &config);
    }
    lab
}

fn job(lab: &Lab, name: &str, device: DeviceKind, bf16: bool) -> TrainJob {
    let mut job = lab.job(&lab.dir.join(name), &training(bf16));
    job.device = device;
    job
}

/// Trains to the end.
fn finish(job: &TrainJob) -> Recorder {
    let (outcome, recorder) = run(job);
    assert_eq!(outcome.unwrap(), Outcome::Finished { model_step: STEPS });
    recorder
}

#[test]
fn losses_norms_and_evaluations_are_the_cpus() {
    let temp = tempfile::tempdir().unwrap();
    let lab = lab(temp.path());
    let cpu = finish(&job(&lab, "cpu", DeviceKind::Cpu, false));
    for (name, bf16, share) in [("f32", false, 1e-4), ("bf16", true, 0.03)] {
        let gpu = finish(&job(&lab, name, DeviceKind::Cuda, bf16));
        let on = |m: &String| m.contains(" on Emulated") || m.contains(" on NVIDIA");
        assert!(gpu.messages().iter().any(on), "{:?}", gpu.messages());
        for series in ["loss", "grad_norm", "eval_loss"] {
            let (expected, actual) = (cpu.series(series), gpu.series(series));
            assert!(!expected.is_empty() && expected.len() == actual.len());
            for ((step, x), (_, y)) in expected.iter().zip(&actual) {
                let off = (x - y).abs() / x.abs();
                assert!(off < share, "{name}, {series} at step {step}: {x} and {y}");
            }
        }
    }
}

#[test]
fn a_training_repeats_and_resumes_to_the_bit() {
    let temp = tempfile::tempdir().unwrap();
    let lab = lab(temp.path());
    let whole = job(&lab, "whole", DeviceKind::Cuda, true);
    let again = job(&lab, "again", DeviceKind::Cuda, true);
    let losses = finish(&whole).series("loss");
    assert_eq!(finish(&again).series("loss"), losses);
    let bits = |job: &TrainJob| file(job, STEPS, "model.safetensors");
    assert!(bits(&whole) == bits(&again), "a repetition differs");

    let paused = job(&lab, "paused", DeviceKind::Cuda, true);
    let outcome = train::run(&paused, &Recorder::pausing_at(6));
    assert_eq!(outcome, Ok(Outcome::Paused));
    let rest = finish(&paused).series("loss");
    assert!(rest.len() < losses.len());
    assert_eq!(losses[losses.len() - rest.len()..], rest);
    assert!(bits(&whole) == bits(&paused), "a pause shows");
}
