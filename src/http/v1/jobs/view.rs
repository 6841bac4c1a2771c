//! A job as a client sees it.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::{JobError, JobId, JobSpec, Phase, Progress, Status, Timestamp};
use crate::http::problem::Problem;
use crate::http::{AppState, paths};
use crate::store::Job;

/// A job as it stands.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = Job)]
pub struct JobView {
    /// Its id.
    pub id: JobId,
    /// A name for people.
    #[schema(required)]
    pub name: Option<String>,
    /// Where it stands. `succeeded`, `failed` and `cancelled` are final.
    pub status: Status,
    /// What a running job is doing.
    #[schema(required)]
    pub phase: Option<Phase>,
    /// How far training is.
    #[schema(required)]
    pub progress: Option<Progress>,
    /// Newest value of every metric by name, with HF's names: `loss`, `learning_rate`, `grad_norm`, `eval_loss`,
    /// `eval_accuracy`, at the end `train_runtime`, `train_samples_per_second`.
    #[schema(example = json!({"loss": 0.31, "eval_loss": 0.28, "eval_accuracy": 0.93}))]
    pub metrics: BTreeMap<String, f64>,
    /// Why it failed; set exactly when `status` is `failed`.
    #[schema(required)]
    pub error: Option<JobError>,
    /// Attempts started so far.
    pub attempt: u32,
    /// 1 for the job that is started next; set exactly when `status` is `queued`.
    #[schema(required)]
    pub queue_position: Option<u64>,
    /// A cancel was asked for and has not taken effect yet.
    pub cancel_requested: bool,
    /// Step of the checkpoint that is the trained model; set exactly when `status` is `succeeded`.
    #[schema(required)]
    pub model_step: Option<u64>,
    /// Folder of the trained model on the server's machine; set exactly when `status` is `succeeded`.
    #[schema(required)]
    pub model_dir: Option<String>,
    /// What was asked for, with every default filled in.
    pub spec: JobSpec,
    /// The user's own pairs.
    pub metadata: BTreeMap<String, String>,
    /// When it was accepted.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When its first attempt started.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    pub started_at: Option<Timestamp>,
    /// When it ended; set exactly when `status` is final.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    pub finished_at: Option<Timestamp>,
}

/// Adds to a stored job what only queue and disk layout know.
pub async fn view(state: &AppState, job: Job) -> Result<JobView, Problem> {
    let queue_position = match job.status {
        Status::Queued => state.store.queue_position(job.id).await?,
        _ => None,
    };
    let model_dir = job
        .model_step
        .map(|step| paths::checkpoint_dir(&state.data_dir, job.id, step));
    Ok(JobView {
        id: job.id,
        name: job.spec.name.clone(),
        status: job.status,
        phase: job.phase,
        progress: job.progress,
        metrics: job.metrics,
        error: job.error,
        attempt: job.attempt,
        queue_position,
        cancel_requested: job.cancel_requested,
        model_step: job.model_step,
        model_dir: model_dir.map(|dir| dir.display().to_string()),
        metadata: job.spec.metadata.clone(),
        spec: job.spec,
        created_at: job.created_at,
        started_at: job.started_at,
        finished_at: job.finished_at,
    })
}
