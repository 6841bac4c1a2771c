//! Out of memory: smaller micro-batches, the same updates (row 22).

use chandler::domain::ErrorCode;
use chandler::faults::Faults;
use chandler::train::{self, Outcome};
use serde_json::{Value, json};

use super::lab::{Lab, Recorder, file, run};

fn spec(batch: u32) -> Value {
    json!({"training_args": {
        "num_train_epochs": 2, "per_device_train_batch_size": batch, "gradient_accumulation_steps": 2,
        "learning_rate": 3e-3, "logging_steps": 1, "seed": 3, "save_steps": 5,
    }})
}

#[test]
fn out_of_memory_at_a_step_is_a_switch_to_half_the_micro_batch_there() {
    let temp = tempfile::tempdir().unwrap();
    let lab = Lab::set_up(&temp.path().join("lab"), 44);
    let finished = Ok(Outcome::Finished { model_step: 12 });
    let whole = lab.job(&temp.path().join("whole"), &spec(4));
    let (outcome, undisturbed) = run(&whole);
    assert_eq!(outcome, finished);

    let mut job = lab.job(&temp.path().join("oom"), &spec(4));
    job.faults = Faults::parse("train.memory@4=oom", 1).unwrap();
    let (outcome, recorder) = run(&job);
    assert_eq!(outcome, finished);
    let warning = "out of memory at step 4: micro-batches have 2 rows instead of 4 from now on";
    assert!(recorder.messages().iter().any(|m| m.starts_with(warning)));

    // The same switch by script: three steps, then the rest with half the micro-batch.
    let mut scripted = lab.job(&temp.path().join("scripted"), &spec(4));
    let outcome = train::run(&scripted, &Recorder::pausing_at(4));
    assert_eq!(outcome, Ok(Outcome::Paused));
    scripted.micro_batch_divisor = 2;
    let (outcome, rest) = run(&scripted);
    assert_eq!(outcome, finished);
    let weights = file(&job, 12, "model.safetensors");
    assert!(
        weights == file(&scripted, 12, "model.safetensors"),
        "not the scripted switch"
    );
    assert_eq!(recorder.series("loss")[3..], rest.series("loss"));

    // As many steps over the same rows as without the fault; only the order of sums differs.
    let (a, b) = (undisturbed.series("loss"), recorder.series("loss"));
    assert_eq!((a.len(), a[..3] == b[..3]), (b.len(), true));
    for ((step, x), (_, y)) in a.iter().zip(&b) {
        assert!((x - y).abs() < 1e-3 * x.abs(), "step {step}: {x} and {y}");
    }

    // The checkpoint remembers, and so does whoever goes on from it.
    let progress: Value = serde_json::from_slice(&file(&job, 5, "trainer_progress.json")).unwrap();
    assert_eq!(progress["micro_batch_divisor"], 2);
    std::fs::remove_dir_all(job.checkpoints_dir.join("checkpoint-12")).unwrap();
    job.faults = Faults::default();
    assert_eq!(run(&job).0, finished);
    assert!(
        weights == file(&job, 12, "model.safetensors"),
        "the size was forgotten"
    );
}

#[test]
fn a_single_row_that_does_not_fit_fails_the_job() {
    let temp = tempfile::tempdir().unwrap();
    let lab = Lab::set_up(&temp.path().join("lab"), 24);
    let mut job = lab.job(&temp.path().join("oom"), &spec(4));
    job.faults = Faults::parse(&["train.memory@2=oom"; 3].join(","), 1).unwrap();
    let (outcome, recorder) = run(&job);
    let error = outcome.unwrap_err();
    assert_eq!(error.code, ErrorCode::OutOfMemory);
    assert_eq!(
        error.pointer.as_deref(),
        Some("/training_args/per_device_train_batch_size")
    );
    let halved = recorder
        .messages()
        .iter()
        .filter(|m| m.starts_with("out of memory"))
        .count();
    assert_eq!(halved, 2, "4 → 2 → 1");
}
