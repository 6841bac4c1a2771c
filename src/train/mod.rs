//! One training, from rows and a base model to a published checkpoint. Synchronous; no network, no SQL.
//!
//! ```text
//!  prepare    rows → token cache → label map, split                     (phase tokenizing)
//!  model      base weights + new head, optimizer, schedule; or resume   (phase resolving_model)
//!  batches    the rows of the next steps, read and packed meanwhile
//!  trainer    for every step: micro-batches → norm → gate → clip → AdamW (phase training)
//!             at step end: log → evaluate → save, in HF's order; a save only copies to memory
//!  writer     writes and publishes that copy meanwhile, then removes old checkpoints
//!  watchdog   ends the process if the loop shows no sign of life
//!  finish     the final checkpoint is the model; per-class report
//! ```

mod background;
mod base_labels;
mod batches;
mod checkpoint;
mod data_order;
mod evaluate;
mod exact;
mod export;
mod file_rows;
mod gate;
mod gpu_check;
mod meter;
mod model_card;
mod observer;
mod predict;
mod prepare;
mod resume;
mod safetensors_io;
mod setup;
mod snapshot;
mod state;
mod step;
mod trainer;
mod watchdog;

use std::path::PathBuf;
use std::time::Duration;

use crate::artifacts;
use crate::domain::{
    DatasetLocation, DeviceKind, HUNG_EXIT_CODE, JobError, JobId, JobSpec, LogLevel, Phase,
};
use crate::faults::Faults;

pub use gpu_check::check_gpu;
pub use observer::Observer;
pub use predict::{Prediction, Predictor};
pub use trainer::Outcome;

use watchdog::Pulse;

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
    /// Micro-batches are this many times smaller than asked for from the start: 1, or more after a trainer
    /// died for want of memory.
    pub micro_batch_divisor: u32,
    /// What to train on.
    pub device: DeviceKind,
    /// What tests break; nothing in a release build.
    pub faults: Faults,
}

/// Trains, reporting to `observer`. Resumes from the newest complete checkpoint, if there is one.
///
/// # Errors
/// With a [`JobError`] that says what was wrong, where, and what to do.
pub fn run(job: &TrainJob, observer: &dyn Observer) -> Result<Outcome, JobError> {
    observer.phase(Phase::Tokenizing);
    let data = prepare::prepare(job, observer)?;
    let limit = job.faults.limit("train.watchdog");
    let pulse = Pulse::new(limit.map_or(watchdog::SHORTEST_LIMIT, Duration::from_millis));
    let mut trainer = trainer::Trainer::new(job, data, observer, &pulse)?;
    artifacts::sweep_leftovers(&job.checkpoints_dir)?;
    trainer.resume()?;
    watchdog::guard(
        &pulse,
        |limit| end_hung(observer, limit),
        || trainer.train(),
    )
}

/// The training loop does not answer, so the whole process goes; the server starts another attempt.
fn end_hung(observer: &dyn Observer, limit: Duration) {
    let message = format!(
        "training hangs: nothing has happened for {:.1} s; the trainer ends itself",
        limit.as_secs_f64()
    );
    tracing::error!("{message}");
    observer.log(LogLevel::Error, message);
    observer.flush();
    std::process::exit(HUNG_EXIT_CODE);
}
