//! Goes back to where an earlier attempt was.

use std::collections::HashMap;

use candle_core::Tensor;

use crate::artifacts;
use crate::domain::{ErrorCode, JobError, LogLevel};
use crate::kernels::view;

use super::checkpoint::{OPTIMIZER_FILE, OPTIMIZER_STEP_KEY, PROGRESS_FILE};
use super::state::TrainerState;
use super::step::{Learner, engine};
use super::{Observer, TrainJob, safetensors_io};

/// Loads the newest checkpoint whose hashes match into `learner` and answers its state. A damaged one is
/// skipped, with a warning in the event log.
///
/// # Errors
/// `checkpoint_failed` if a sound checkpoint does not fit this model.
pub fn newest(
    job: &TrainJob,
    learner: &mut Learner,
    observer: &dyn Observer,
) -> Result<Option<TrainerState>, JobError> {
    let found = artifacts::newest_valid(&job.checkpoints_dir)?;
    for skipped in &found.skipped {
        observer.log(
            LogLevel::Warning,
            format!(
                "the checkpoint of step {} is damaged and was skipped: {}",
                skipped.step, skipped.reason
            ),
        );
    }
    let Some((_, dir, record)) = found.found else {
        return Ok(None);
    };
    let (weights, _) = safetensors_io::read(&dir.join("model.safetensors"))?;
    restore_weights(learner, &weights)?;
    if record.resumable {
        let (moments, metadata) = safetensors_io::read(&dir.join(OPTIMIZER_FILE))?;
        let step = metadata
            .get(OPTIMIZER_STEP_KEY)
            .and_then(|s| s.parse().ok())
            .ok_or_else(|| mismatch("the optimizer's step is missing"))?;
        learner
            .optimizer
            .load_state(step, moments)
            .map_err(|e| mismatch(&e.to_string()))?;
    }
    let text =
        std::fs::read_to_string(dir.join(PROGRESS_FILE)).map_err(|e| mismatch(&e.to_string()))?;
    let state: TrainerState = serde_json::from_str(&text).map_err(|e| mismatch(&e.to_string()))?;
    observer.log(
        LogLevel::Info,
        format!("resumed from the checkpoint of step {}", state.global_step),
    );
    Ok(Some(state))
}

fn restore_weights(
    learner: &mut Learner,
    weights: &HashMap<String, Tensor>,
) -> Result<(), JobError> {
    for parameter in learner.model.parameters() {
        let saved = weights
            .get(&parameter.name)
            .filter(|t| t.dims() == parameter.value.dims())
            .ok_or_else(|| mismatch(&format!("tensor {} is missing", parameter.name)))?;
        let values = view::read(saved, <[f32]>::to_vec).map_err(engine)?;
        view::write(&parameter.value, |x| {
            x.copy_from_slice(&values);
            Ok(())
        })
        .map_err(engine)?;
    }
    learner.model.weights_changed().map_err(engine)
}

fn mismatch(what: &str) -> JobError {
    JobError::new(
        ErrorCode::CheckpointFailed,
        format!("the newest checkpoint does not fit this job: {what}"),
    )
}
