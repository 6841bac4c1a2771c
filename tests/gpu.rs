//! Whole trainings on an emulated GPU: what they compute is what the CPU computes, they repeat to the bit, and go on
//! from a checkpoint as if nothing had happened. On a card: `CHANDLER_TEST_GPU=1 cargo test --features cuda gpu`.

use std::path::Path;

use chandler::domain::{DeviceKind, ErrorCode};
use chandler::faults::Faults;
use chandler::train::{self, Outcome, TrainJob};
use serde_json::{Value, json};

use crate::checkpoints::lab::{Lab, Recorder, file, run};
use crate::slots::Machine;
use crate::support::{TestServer, emulated_gpu, reviews, spec, tiny_bert};

const STEPS: u64 = 12;

fn training(bf16: bool) -> Value {
    json!({"eval_split": 0.25, "training_args": {
        "max_steps": STEPS, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3, "eval_strategy": "epoch", "logging_steps": 1, "seed": 3, "bf16": bf16,
    }})
}

/// A lab whose model has heads of 32, which tensor cores take.
fn lab(dir: &Path) -> Lab {
    emulated_gpu::load();
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

/// Without anything to log, steps overlap: the next is started while the card is at one.
#[test]
fn steps_that_overlap_learn_the_same() {
    let temp = tempfile::tempdir().unwrap();
    let lab = lab(temp.path());
    let [each, none] = [("each", 1), ("none", STEPS * 10)].map(|(name, logging_steps)| {
        let mut spec = training(true);
        spec["training_args"]["logging_steps"] = json!(logging_steps);
        spec["training_args"]["eval_strategy"] = json!("no");
        let mut job = lab.job(&lab.dir.join(name), &spec);
        job.device = DeviceKind::Cuda;
        let recorder = finish(&job);
        let weights = file(&job, STEPS, "model.safetensors");
        (
            weights,
            recorder.series("train_loss"),
            recorder.series("loss").len(),
        )
    });
    assert_eq!((each.2, none.2), (STEPS as usize, 0));
    assert!(each.0 == none.0, "other weights");
    assert_eq!(each.1, none.1, "another mean loss");
}

#[test]
fn a_gradient_that_is_not_finite_is_seen_behind_steps_that_overlap() {
    let temp = tempfile::tempdir().unwrap();
    let lab = lab(temp.path());
    let mut spec = training(true);
    spec["training_args"]["logging_steps"] = json!(STEPS * 10);
    spec["training_args"]["save_strategy"] = json!("steps");
    spec["training_args"]["save_steps"] = json!(3);
    let mut job = lab.job(&lab.dir.join("run"), &spec);
    job.device = DeviceKind::Cuda;
    job.faults = Faults::parse("train.gradients@7=nan", 1).unwrap();
    let error = run(&job).0.unwrap_err();
    assert_eq!(error.code, ErrorCode::NonFiniteLoss, "{error}");
    assert!(error.message.contains("at step 7 "), "{error}");
    assert!(error.message.contains("on lines "), "{error}");
    assert!(lab.dir.join("run/checkpoints/checkpoint-6").is_dir());
}

/// A job of twelve steps, with a checkpoint after each.
fn short_job(server: &TestServer) -> String {
    let mut body = on_tiny_bert(server, 96);
    body["training_args"]["max_steps"] = json!(STEPS);
    body["training_args"]["save_steps"] = json!(1);
    body["training_args"]["save_total_limit"] = json!(2);
    server.job(&body)
}

fn on_tiny_bert(server: &TestServer, rows: usize) -> Value {
    let model = server.data_dir.join("tiny");
    tiny_bert::write(&model);
    spec(&model, &server.csv(&reviews(rows)))
}

fn weights(server: &TestServer, job: &str) -> Vec<u8> {
    let path = format!("/v1/jobs/{job}/checkpoints/last/files/model.safetensors");
    server.get(&path).bytes().unwrap().to_vec()
}

/// The card fails in the middle of every attempt. Each gets further than the one before, and the last to the end,
/// with the weights of a job that nothing happened to.
#[test]
fn a_fault_of_the_card_ends_its_attempt_and_not_the_job() {
    let sound = Machine::of_two();
    let server = sound.options().start();
    let job = short_job(&server);
    assert_eq!(server.wait(&job)["status"], "succeeded");
    let expected = weights(&server, &job);

    let broken = Machine::of_two();
    let fault = "adamw:6";
    let server = broken
        .options()
        .env("CHANDLER_FAKE_GPU_FAULT", fault)
        .start();
    let job = short_job(&server);
    let view = server.wait(&job);
    assert_eq!(view["status"], "succeeded", "{view}");
    assert_eq!(view["attempt"], 3, "{view}");
    assert!(weights(&server, &job) == expected, "other weights");
    let events = server.events(&job);
    let requeued = events.iter().filter(|event| event["type"] == "requeued");
    let reasons: Vec<_> = requeued.map(|event| &event["data"]["reason"]).collect();
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    for reason in reasons {
        let reason = reason.as_str().unwrap();
        assert!(reason.contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{reason}");
    }
}

/// A card too small for the micro-batch that was asked for.
#[test]
fn memory_that_runs_out_on_the_card_halves_micro_batches() {
    let machine = Machine::of_two();
    // 32 MiB of these are cuBLASLt's; 1024 rows take some 40 more.
    let bytes = 56 << 20;
    let server = machine
        .options()
        .env("CHANDLER_FAKE_GPU_MEMORY", bytes)
        .start();
    let mut body = on_tiny_bert(&server, 1024);
    body["training_args"]["max_steps"] = json!(1);
    body["training_args"]["bf16"] = json!(false);
    body["training_args"]["per_device_train_batch_size"] = json!(1024);
    let job = server.job(&body);
    let view = server.wait(&job);
    assert_eq!(view["status"], "succeeded", "{view}");
    let halved = |event: &Value| {
        let message = event["data"]["message"].as_str().unwrap_or_default();
        message.starts_with("out of memory at step 1: micro-batches have 512 rows instead of 1024")
    };
    let events = server.events(&job);
    assert!(events.iter().any(halved), "{events:?}");
}
