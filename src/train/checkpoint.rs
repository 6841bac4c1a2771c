//! Writes checkpoints: a Hugging Face model folder, plus what resuming needs.
//!
//! Besides HF's files a checkpoint holds `trainer_progress.json` ([`TrainerState`](super::state::TrainerState))
//! and, unless training is over, `optimizer.safetensors` (AdamW's moments). No pickle.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::artifacts::{self, ArtifactError, CheckpointWriter, Disk};
use crate::data::LabelMap;
use crate::domain::{CheckpointRecord, ErrorCode, JobError};

use super::setup::Setup;
use super::snapshot::Snapshot;
use super::state::TrainerState;
use super::step::engine;
use super::{TrainJob, export, safetensors_io};

/// File with the weights.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// File with the optimizer's moments.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// File with the trainer's counters.
pub const PROGRESS_FILE: &str = "trainer_progress.json";
/// Metadata key of the optimizer's update count.
pub const OPTIMIZER_STEP_KEY: &str = "step";

/// Turns snapshots into published checkpoints; knows all that is the same for each of them.
#[derive(Debug)]
pub struct Publisher {
    job: TrainJob,
    setup: Setup,
    labels: LabelMap,
    /// Files copied from the base model. Read once: its folder may be gone by the next checkpoint.
    copied: BTreeMap<&'static str, Vec<u8>>,
    disk: Disk,
}

/// What became of a snapshot.
#[derive(Debug)]
pub struct Published {
    /// The checkpoint, whole and durable.
    pub record: CheckpointRecord,
    /// Steps of older ones that `save_total_limit` has no more room for.
    pub obsolete: Vec<u64>,
}

impl Publisher {
    /// For the checkpoints of this training.
    ///
    /// # Errors
    /// `checkpoint_failed` if the base model's tokenizer files cannot be read.
    pub fn new(job: &TrainJob, setup: &Setup, labels: &LabelMap) -> Result<Self, JobError> {
        Ok(Self {
            job: job.clone(),
            setup: setup.clone(),
            labels: labels.clone(),
            copied: export::tokenizer_files(&job.model_dir)?,
            disk: Disk::with_faults(job.faults.clone()),
        })
    }

    /// Writes and publishes a checkpoint. It is either whole or not there; what was there
    /// before stays until it is. Gives up between two pieces when `abandoned` is set.
    ///
    /// # Errors
    /// `disk_full`, with the bytes needed and free, or `checkpoint_failed`.
    pub fn publish(
        &self,
        snapshot: &Snapshot,
        abandoned: &AtomicBool,
    ) -> Result<Published, JobError> {
        let files = self.small_files(snapshot)?;
        let small: u64 = files.values().map(|bytes| bytes.len() as u64).sum();
        let needed = snapshot.tensor_bytes() + small + ROOM_FOR_HEADERS;
        // The unfinished folder is gone before the free space is counted.
        let record = self
            .write(snapshot, &files, needed, abandoned)
            .map_err(|failure| match failure {
                Failure::Artifact(ArtifactError::DiskFull { path, .. }) => {
                    ArtifactError::disk_full(&path, needed).into()
                }
                Failure::Artifact(other) => other.into(),
                Failure::Job(error) => error,
            })?;
        let obsolete = obsolete(&self.job, &snapshot.state)?;
        Ok(Published { record, obsolete })
    }

    fn write(
        &self,
        snapshot: &Snapshot,
        files: &BTreeMap<&'static str, Vec<u8>>,
        needed: u64,
        abandoned: &AtomicBool,
    ) -> Result<CheckpointRecord, Failure> {
        let state = &snapshot.state;
        let dir = &self.job.checkpoints_dir;
        let mut writer =
            CheckpointWriter::begin_on(self.disk.clone(), dir, state.global_step, needed)?;
        // Older transformers refuse a file that does not say so.
        let format = [("format", "pt".to_owned())];
        writer.write(WEIGHTS_FILE, |file| {
            safetensors_io::write(file, &snapshot.weights, &format, &|| going_on(abandoned))
        })?;
        if snapshot.resumable {
            let step = [(OPTIMIZER_STEP_KEY, snapshot.optimizer_step.to_string())];
            writer.write(OPTIMIZER_FILE, |file| {
                safetensors_io::write(file, &snapshot.moments, &step, &|| going_on(abandoned))
            })?;
        }
        for (name, bytes) in files {
            writer.write(name, |file| file.append(bytes).map_err(Failure::from))?;
        }
        going_on(abandoned)?;
        let epoch = self.setup.order.epochs_after(state.global_step);
        Ok(writer.publish(epoch, state.metrics_now(), snapshot.resumable)?)
    }

    /// Removes checkpoints. One that cannot be is in the way of nothing, and its turn comes again with the next
    /// one that is published.
    pub fn remove(&self, steps: &[u64]) {
        for step in steps {
            let name = artifacts::checkpoint_name(*step);
            let removed = artifacts::remove(&self.disk, &self.job.checkpoints_dir.join(name));
            if let Err(error) = removed {
                tracing::warn!(%error, "an old checkpoint stays");
            }
        }
    }

    /// All files but the tensors.
    fn small_files(
        &self,
        snapshot: &Snapshot,
    ) -> Result<BTreeMap<&'static str, Vec<u8>>, JobError> {
        let state = &snapshot.state;
        let mut files = export::model_files(&self.job, &self.setup, &self.labels, state)?;
        files.insert(PROGRESS_FILE, export::to_json(state)?);
        files.extend(
            self.copied
                .iter()
                .map(|(name, bytes)| (*name, bytes.clone())),
        );
        Ok(files)
    }
}

/// Steps of the checkpoints that `save_total_limit` has no room for, now that the one of `state` is there. That
/// one stays, and so does the best. Later ones do not count: an attempt that resumed found them damaged, and
/// will write them again.
///
/// # Errors
/// If the folder cannot be read.
pub fn obsolete(job: &TrainJob, state: &TrainerState) -> Result<Vec<u64>, JobError> {
    let args = &job.spec.training_args;
    let best = state
        .best_global_step
        .filter(|_| args.load_best_model_at_end);
    let newest = state.global_step;
    let mut steps = artifacts::list_steps(&job.checkpoints_dir)?;
    steps.retain(|step| *step <= newest);
    let limit = args.save_total_limit.map(u64::from);
    Ok(artifacts::plan(&steps, limit, best, &[newest]))
}

/// Headers, manifest and folders: a guess that is too large.
const ROOM_FOR_HEADERS: u64 = 64 * 1024;

/// A checkpoint could not be written.
#[derive(Debug)]
pub enum Failure {
    /// By the disk.
    Artifact(ArtifactError),
    /// By anything else.
    Job(JobError),
}

impl From<ArtifactError> for Failure {
    fn from(error: ArtifactError) -> Self {
        Self::Artifact(error)
    }
}

/// An error once nobody waits for the checkpoint any more.
fn going_on(abandoned: &AtomicBool) -> Result<(), Failure> {
    if abandoned.load(Ordering::Relaxed) {
        let message = "the checkpoint under way was given up";
        return Err(Failure::Job(JobError::new(
            ErrorCode::CheckpointFailed,
            message,
        )));
    }
    Ok(())
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::Job(engine(error))
    }
}
