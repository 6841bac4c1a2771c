//! Writes checkpoints: a Hugging Face model folder, plus what resuming needs.
//!
//! Besides HF's files a checkpoint holds `trainer_progress.json` ([`TrainerState`]) and, unless training is
//! over, `optimizer.safetensors` (AdamW's moments). No pickle.

use std::collections::HashMap;
use std::path::Path;

use candle_core::Tensor;

use crate::artifacts::{self, ArtifactError, CheckpointWriter};
use crate::data::LabelMap;
use crate::domain::{CheckpointRecord, JobError};

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
    let writer = CheckpointWriter::begin(&job.checkpoints_dir, state.global_step)?;
    let dir = writer.dir();
    write_weights(dir, learner)?;
    if resumable {
        write_optimizer(dir, learner)?;
    }
    write_json(&dir.join(PROGRESS_FILE), state)?;
    export::write_model_files(dir, job, setup, labels, state)?;
    let epoch = setup.order.epochs_after(state.global_step);
    Ok(writer.publish(epoch, state.metrics_now(), resumable)?)
}

/// Removes old checkpoints as `save_total_limit` says; answers their steps.
///
/// # Errors
/// `checkpoint_failed` if the folder cannot be read.
pub fn rotate(job: &TrainJob, state: &TrainerState) -> Result<Vec<u64>, JobError> {
    let args = &job.spec.training_args;
    let best = state
        .best_global_step
        .filter(|_| args.load_best_model_at_end);
    let steps = artifacts::list_steps(&job.checkpoints_dir)?;
    let removed = artifacts::plan(&steps, args.save_total_limit.map(u64::from), best, &[]);
    for step in &removed {
        artifacts::remove(&job.checkpoints_dir.join(artifacts::checkpoint_name(*step)))?;
    }
    Ok(removed)
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
///
/// # Errors
/// `disk_full` or `checkpoint_failed`.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), JobError> {
    let text = serde_json::to_string_pretty(value).map_err(engine)?;
    write_bytes(path, (text + "\n").as_bytes())
}

/// Writes a file of a checkpoint; publishing syncs it.
///
/// # Errors
/// `disk_full` or `checkpoint_failed`.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), JobError> {
    std::fs::write(path, bytes).map_err(|error| ArtifactError::io("write", path, error).into())
}
