//! One training, from rows and a base model to a published checkpoint. Synchronous; no network, no SQL.
//!
//! ```text
//!  prepare    rows → examples → label map, split → token ids            (phase tokenizing)
//!  model      base weights + new head, optimizer, schedule; or resume   (phase resolving_model)
//!  trainer    for every step: micro-batches → norm → gate → clip → AdamW (phase training)
//!             at step end: log → evaluate → save, in HF's order
//!  finish     the final checkpoint is the model; per-class report
//! ```

mod checkpoint;
mod data_order;
mod evaluate;
mod export;
mod gate;
mod meter;
mod model_card;
mod observer;
mod predict;
mod prepare;
mod resume;
mod safetensors_io;
mod setup;
mod state;
mod step;
mod trainer;

use std::path::PathBuf;

use crate::domain::{DatasetLocation, JobError, JobId, JobSpec, Phase};

pub use observer::Observer;
pub use predict::{Prediction, Predictor};
pub use trainer::Outcome;

/// Everything one training needs. Paths are this machine's.
#[derive(Clone, Debug)]
pub struct TrainJob {
    /// The job, for the model card.
    pub job_id: JobId,
    /// What to train.
    pub spec: JobSpec,
    /// The training file.
    pub train: DatasetLocation,
    /// The evaluation file, where the spec names one.
    pub eval: Option<DatasetLocation>,
    /// Folder of the resolved base model.
    pub model_dir: PathBuf,
    /// Where checkpoints are published, and where an earlier attempt's are looked for.
    pub checkpoints_dir: PathBuf,
}

/// Trains, reporting to `observer`. Resumes from the newest complete checkpoint, if there is one.
///
/// # Errors
/// With a [`JobError`] that says what was wrong, where, and what to do.
pub fn run(job: &TrainJob, observer: &dyn Observer) -> Result<Outcome, JobError> {
    observer.phase(Phase::Tokenizing);
    let data = prepare::prepare(job, observer)?;
    let mut trainer = trainer::Trainer::new(job, data, observer)?;
    trainer.resume()?;
    trainer.train()
}
