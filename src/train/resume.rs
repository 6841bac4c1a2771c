//! Goes back to where an earlier attempt was.

use std::collections::HashMap;
use std::path::Path;

use crate::kernels::tensor::Tensor;

use crate::artifacts;
use crate::domain::{CheckpointRecord, ErrorCode, Event, JobError, LogLevel};
use crate::kernels::view;

use super::checkpoint::{OPTIMIZER_FILE, OPTIMIZER_STEP_KEY, PROGRESS_FILE, WEIGHTS_FILE};
use super::state::TrainerState;
use super::step::{Learner, engine};
use super::{Observer, TrainJob, safetensors_io};

/// Loads the newest checkpoint whose hashes match into `learner` and answers its state. A damaged one is
/// skipped, with a warning in the event log.
///
/// Reports what is there once more: the trainer before may have died between publishing a checkpoint and
/// saying so. The server takes note of each only once.
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
    let Some((step, dir, record)) = found.found else {
        return Ok(None);
    };
    let state = load(&dir, &record, learner)?;
    report_all(job, step, observer)?;
    observer.log(
        LogLevel::Info,
        format!("resumed from the checkpoint of step {}", state.global_step),
    );
    Ok(Some(state))
}

/// Reports every checkpoint up to that of `newest`, in order. Older ones are not hashed again for it.
fn report_all(job: &TrainJob, newest: u64, observer: &dyn Observer) -> Result<(), JobError> {
    for step in artifacts::list_steps(&job.checkpoints_dir)? {
        let dir = job.checkpoints_dir.join(artifacts::checkpoint_name(step));
        if step <= newest
            && let Ok(record) = artifacts::read(&dir)
        {
            observer.event(Event::Checkpoint(record));
        }
    }
    Ok(())
}

/// Loads the checkpoint in `dir`, which was verified.
///
/// # Errors
/// `checkpoint_failed` if it does not fit.
pub fn load(
    dir: &Path,
    record: &CheckpointRecord,
    learner: &mut Learner,
) -> Result<TrainerState, JobError> {
    let optimizer = record.resumable.then_some(OPTIMIZER_FILE);
    for name in [WEIGHTS_FILE, PROGRESS_FILE].into_iter().chain(optimizer) {
        // What the manifest does not list was not verified.
        if !record.files.iter().any(|file| file.path == name) {
            return Err(mismatch(&format!("it has no {name}")));
        }
    }
    let (weights, _) = safetensors_io::read(&dir.join(WEIGHTS_FILE))?;
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
    serde_json::from_str(&text).map_err(|e| mismatch(&e.to_string()))
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
