//! A job as a client sees it.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use utoipa::ToSchema;

use super::estimate;
use crate::domain::{Device, JobError, JobId, JobSpec, Phase, Progress, Status, Timestamp};
use crate::http::AppState;
use crate::http::problem::Problem;
use crate::store::{Job, QueueLoad};

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
    /// `eval_accuracy`, at the end `train_runtime`, `train_samples_per_second`. On a GPU also `gpu_utilization_percent`,
    /// `gpu_memory_bytes`, `gpu_power_w`, and `gpu_energy_j`, what the job has cost so far.
    #[schema(example = json!({"loss": 0.31, "eval_loss": 0.28, "eval_accuracy": 0.93}))]
    pub metrics: BTreeMap<String, f64>,
    /// Why it failed; set exactly when `status` is `failed`.
    #[schema(required)]
    pub error: Option<JobError>,
    /// Attempts started so far.
    pub attempt: u32,
    /// What the newest attempt trains on, or did.
    #[schema(required)]
    pub device: Option<Device>,
    /// Jobs with a higher one are started first, older ones first among equals.
    pub priority: i32,
    /// 1 for the job that is started next. Set while `status` is `queued`, for the first thousand jobs.
    #[schema(required)]
    pub queue_position: Option<u64>,
    /// When a queued job may start: a guess from what running jobs expect and what earlier ones took. `null`
    /// where there is nothing to guess from.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    pub estimated_start_at: Option<Timestamp>,
    /// A queued job that lost its trainer is not started before this.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    pub not_before: Option<Timestamp>,
    /// A cancel was asked for and has not taken effect yet.
    pub cancel_requested: bool,
    /// A pause was asked for and has not taken effect yet.
    pub pause_requested: bool,
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
    let queue = Queue::around(state, std::slice::from_ref(&job)).await?;
    Ok(view_in(state, &queue, job))
}

/// As [`view`], of a page of jobs.
pub async fn views(state: &AppState, jobs: Vec<Job>) -> Result<Vec<JobView>, Problem> {
    let queue = Queue::around(state, &jobs).await?;
    Ok(jobs
        .into_iter()
        .map(|job| view_in(state, &queue, job))
        .collect())
}

/// The queue as far as it concerns some jobs.
struct Queue {
    positions: HashMap<JobId, u64>,
    load: QueueLoad,
}

impl Queue {
    async fn around(state: &AppState, jobs: &[Job]) -> Result<Self, Problem> {
        let positions = state.store.queue_positions(jobs).await?;
        let load = if positions.is_empty() {
            QueueLoad::default()
        } else {
            state.store.queue_load().await?
        };
        Ok(Self { positions, load })
    }
}

fn view_in(state: &AppState, queue: &Queue, job: Job) -> JobView {
    let queue_position = queue.positions.get(&job.id).copied();
    let slots = state.jobs_at_a_time();
    let wait_s = queue_position.and_then(|at| estimate::wait_s(at, slots, &queue.load));
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a guess; the cast saturates"
    )]
    let estimated_start_at = wait_s.map(|s| state.clock.now().plus_ms((s * 1000.0) as i64));
    let model_dir = job
        .model_step
        .map(|step| state.data_dir.checkpoint_dir(job.id, step));
    JobView {
        id: job.id,
        name: job.spec.name.clone(),
        status: job.status,
        phase: job.phase,
        progress: job.progress,
        metrics: job.metrics,
        error: job.error,
        attempt: job.attempt,
        device: job.device,
        priority: job.spec.priority,
        queue_position,
        estimated_start_at: estimated_start_at.map(|at| at.max(job.not_before.unwrap_or(at))),
        not_before: job.not_before,
        cancel_requested: job.cancel_requested,
        pause_requested: job.pause_requested,
        model_step: job.model_step,
        model_dir: model_dir.map(|dir| dir.display().to_string()),
        metadata: job.spec.metadata.clone(),
        spec: job.spec,
        created_at: job.created_at,
        started_at: job.started_at,
        finished_at: job.finished_at,
    }
}
