//! Writes checkpoints: a Hugging Face model folder, plus what resuming needs.
//!
//! Besides HF's files a checkpoint holds `trainer_progress.json` ([`TrainerState`]) and, unless training is
//! over, `optimizer.safetensors` (AdamW's moments). No pickle.

use std::collections::HashMap;
use std::path::Path;

use candle_core::Tensor;

use crate::artifacts::{self, ArtifactError, CheckpointWriter};
use crate::data::LabelMap;
use crate::domain::{CheckpointRecord, ErrorCode, JobError};

use super::setup::Setup;
use super::state::TrainerState;
use super::step::{Learner, engine};
use super::{TrainJob, export, safetensors_io};

/// File with the optimizer's moments.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// File with the trainer's counters.
pub const PROGRESS_FILE: &str = "trainer_progress.json";
/// Metadata key of the optimizer's update count.
pub const OPTIMIZER_STEP_KEY: &str = "step";

/// Publishes a checkpoint atomically: it is either whole or not there.
///
/// # Errors
/// `disk_full` or `checkpoint_failed`; what was there before stays.
pub fn save(
    job: &TrainJob,
    setup: &Setup,
    labels: &LabelMap,
    learner: &Learner,
    state: &TrainerState,
    resumable: bool,
) -> Result<CheckpointRecord, JobError> {
    let writer =
        CheckpointWriter::begin(&job.checkpoints_dir, state.global_step).map_err(failed)?;
    let dir = writer.dir();
    write_weights(dir, learner)?;
    if resumable {
        write_optimizer(dir, learner)?;
    }
    write_json(&dir.join(PROGRESS_FILE), state)?;
    export::write_model_files(dir, job, setup, labels, state)?;
    let epoch = setup.sampler.epoch_at(state.global_step);
    writer
        .publish(epoch, state.metrics_now(), resumable)
        .map_err(failed)
}

/// Removes old checkpoints as `save_total_limit` says; answers their steps.
///
/// # Errors
/// `checkpoint_failed` if the folder cannot be read.
pub fn rotate(job: &TrainJob, state: &TrainerState) -> Result<Vec<u64>, JobError> {
    let Some(limit) = job.spec.training_args.save_total_limit else {
        return Ok(Vec::new());
    };
    let best = if job.spec.training_args.load_best_model_at_end {
        state.best_global_step
    } else {
        None
    };
    artifacts::rotate(&job.checkpoints_dir, limit as usize, best).map_err(failed)
}

fn write_weights(dir: &Path, learner: &Learner) -> Result<(), JobError> {
    let tensors: Vec<(String, Tensor)> = learner
        .model
        .parameters()
        .iter()
        .map(|p| (p.name.clone(), p.value.clone()))
        .collect();
    // Older transformers refuse a file that does not say so.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors_io::write(&dir.join("model.safetensors"), &tensors, metadata)
}

fn write_optimizer(dir: &Path, learner: &Learner) -> Result<(), JobError> {
    let (step, tensors) = learner.optimizer.state();
    let metadata = HashMap::from([(OPTIMIZER_STEP_KEY.to_owned(), step.to_string())]);
    safetensors_io::write(&dir.join(OPTIMIZER_FILE), &tensors, metadata)
}

/// Writes `value` as indented JSON.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), JobError> {
    let text = serde_json::to_string_pretty(value).map_err(engine)?;
    std::fs::write(path, text + "\n").map_err(|error| failed(ArtifactError::from(error)))
}

/// What a user is told when a checkpoint cannot be written.
pub fn failed(error: ArtifactError) -> JobError {
    if error.is_disk_full() {
        return JobError::new(
            ErrorCode::DiskFull,
            format!("the disk is full while saving a checkpoint: {error}"),
        )
        .hint("free space, or set save_total_limit");
    }
    JobError::new(
        ErrorCode::CheckpointFailed,
        format!("a checkpoint could not be written: {error}"),
    )
}
