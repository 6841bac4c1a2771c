//! NaN and infinity never reach a checkpoint (row 23).

use chandler::artifacts::list_steps;
use chandler::domain::ErrorCode;
use chandler::faults::Faults;
use chandler::train::TrainJob;
use safetensors::SafeTensors;
use serde_json::{Value, json};

use super::lab::{Lab, file, run};

fn spec(learning_rate: f64) -> Value {
    json!({"training_args": {
        "num_train_epochs": 4, "per_device_train_batch_size": 4, "learning_rate": learning_rate,
        "max_grad_norm": 0.0, "logging_steps": 1, "seed": 3, "save_steps": 1,
    }})
}

/// Checks every number of every checkpoint; answers how many checkpoints there are.
fn all_finite(job: &TrainJob) -> usize {
    let steps = list_steps(&job.checkpoints_dir).unwrap();
    for step in &steps {
        for name in ["model.safetensors", "optimizer.safetensors"] {
            let path = job
                .checkpoints_dir
                .join(format!("checkpoint-{step}"))
                .join(name);
            if !path.exists() {
                continue;
            }
            let bytes = file(job, *step, name);
            for (tensor, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
                let (values, _) = view.data().as_chunks::<4>();
                let finite = values.iter().all(|b| f32::from_le_bytes(*b).is_finite());
                assert!(finite, "{tensor} of step {step}");
            }
        }
    }
    steps.len()
}

#[test]
fn a_nan_gradient_is_caught_before_the_update_with_step_rate_and_rows() {
    let temp = tempfile::tempdir().unwrap();
    let lab = Lab::set_up(&temp.path().join("lab"), 40);
    let mut job = lab.job(&temp.path().join("nan"), &spec(1e-3));
    job.faults = Faults::parse("train.gradients@7=nan", 1).unwrap();
    let (outcome, recorder) = run(&job);
    let error = outcome.unwrap_err();
    assert_eq!(error.code, ErrorCode::NonFiniteLoss);
    assert!(
        error.message.contains("at step 7 (learning rate 8."),
        "{error}"
    );
    assert!(
        error.message.contains("the weights were not updated"),
        "{error}"
    );
    let lines = error.message.split("rows are on lines ").nth(1).unwrap();
    let lines = lines.split(" of the training file").next().unwrap();
    let lines: Vec<u64> = lines
        .split(", ")
        .map(|line| line.parse().unwrap())
        .collect();
    assert!(
        lines.len() == 4 && lines.iter().all(|line| (2..=41).contains(line)),
        "{lines:?}"
    );
    assert_eq!(recorder.series("loss").len(), 6);
    assert_eq!(
        recorder.published(),
        [1, 2, 3, 4, 5, 6],
        "the one under way is still reported"
    );
    assert_eq!(all_finite(&job), 6);
}

/// Learning rates from bad to absurd: some diverge to NaN, some overflow weights by an update whose gradient
/// was finite. None leaves a checkpoint that is not finite.
#[test]
fn a_bad_learning_rate_fails_the_job_and_leaves_sound_checkpoints() {
    let temp = tempfile::tempdir().unwrap();
    let lab = Lab::set_up(&temp.path().join("lab"), 40);
    let (mut failed, mut checkpoints) = (0, 0);
    for rate in [1e2, 1e10, 1e20, 1e37, 1e38, 1e39, 1e60, 1e300] {
        let job = lab.job(&temp.path().join(rate.to_string()), &spec(rate));
        if let Err(error) = run(&job).0 {
            assert_eq!(error.code, ErrorCode::NonFiniteLoss, "{rate}: {error}");
            assert_eq!(
                error.pointer.as_deref(),
                Some("/training_args/learning_rate")
            );
            failed += 1;
        }
        checkpoints += all_finite(&job);
    }
    println!("{failed} of 8 failed, {checkpoints} checkpoints are sound");
    assert!(failed >= 4, "only {failed} failed");
    assert!(checkpoints > 0);
}
