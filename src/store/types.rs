//! What the store answers and takes.

use std::collections::BTreeMap;

use crate::domain::{
    AttemptId, CheckpointRecord, DatasetId, DatasetLayout, Device, Event, JobError, JobId, JobSpec,
    LossCause, Phase, Placement, Progress, RetryPolicy, Status, Timestamp,
};

/// A job as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    pub id: JobId,
    pub status: Status,
    /// What a running job does; `None` otherwise.
    pub phase: Option<Phase>,
    pub spec: JobSpec,
    pub progress: Option<Progress>,
    /// Newest value of every metric by name.
    pub metrics: BTreeMap<String, f64>,
    /// Set exactly when `status` is failed.
    pub error: Option<JobError>,
    /// Attempts started so far.
    pub attempt: u32,
    /// What the newest attempt trains on, or did.
    pub device: Option<Device>,
    /// A cancel was asked for and has not taken effect yet.
    pub cancel_requested: bool,
    /// A pause was asked for and has not taken effect yet.
    pub pause_requested: bool,
    /// A queued job is not started before this: the pause after a lost trainer.
    pub not_before: Option<Timestamp>,
    /// Step of the checkpoint that is the trained model; set exactly when `status` is succeeded.
    pub model_step: Option<u64>,
    pub created_at: Timestamp,
    /// When the first attempt started.
    pub started_at: Option<Timestamp>,
    /// Set exactly when `status` is final.
    pub finished_at: Option<Timestamp>,
}

/// A request's `Idempotency-Key` and the SHA-256 (hex) of its body.
#[derive(Clone, Debug)]
pub struct Idempotency {
    pub key: String,
    pub request_sha256: String,
}

/// One row of a job's event log. `seq` counts up from 1 within the job, without gaps.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredEvent {
    pub seq: i64,
    /// Attempt it happened in; `None` for what the server did.
    pub attempt: Option<u32>,
    pub created_at: Timestamp,
    pub event: Event,
}

/// One value of one metric.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricPoint {
    pub name: String,
    pub step: u64,
    pub epoch: f64,
    pub value: f64,
    pub created_at: Timestamp,
}

/// A published checkpoint of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredCheckpoint {
    pub record: CheckpointRecord,
    pub attempt: u32,
    pub created_at: Timestamp,
}

/// An uploaded dataset.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    pub id: DatasetId,
    pub name: String,
    pub layout: DatasetLayout,
    pub size_bytes: u64,
    pub sha256: String,
    pub rows: u64,
    pub created_at: Timestamp,
}

/// The job that is to be claimed next, as far as a place for it depends on it.
#[derive(Clone, Debug)]
pub struct QueuedJob {
    pub job_id: JobId,
    pub spec: JobSpec,
    /// Parts that micro-batches are split into.
    pub micro_batch_divisor: u32,
    /// An attempt of this round ended for want of memory: an estimate of what it takes has proved wrong.
    pub ran_out_of_memory: bool,
}

/// A job that was just handed to a slot.
#[derive(Clone, Debug)]
pub struct ClaimedAttempt {
    pub attempt_id: AttemptId,
    /// 1 for the job's first attempt.
    pub attempt: u32,
    pub job_id: JobId,
    /// Bearer token of this attempt; only its SHA-256 is stored.
    pub token: String,
    /// What to train on.
    pub device: Device,
}

/// An attempt that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenAttempt {
    pub attempt_id: AttemptId,
    pub attempt: u32,
    pub job_id: JobId,
    /// Where it is, and what it holds there.
    pub placement: Placement,
}

/// What a trainer needs from the store to begin; paths are added by `worker`.
#[derive(Clone, Debug)]
pub struct AttemptInput {
    pub attempt: u32,
    pub job_id: JobId,
    pub spec: JobSpec,
    /// Parts that micro-batches are split into.
    pub micro_batch_divisor: u32,
    /// Newest value of every metric by name.
    pub metrics: BTreeMap<String, f64>,
    pub train: Dataset,
    pub eval: Option<Dataset>,
}

/// How an attempt that reported no end is closed. Where a cancel was asked for, the job becomes cancelled,
/// whichever of these it is; where a pause was, it becomes paused unless it fails.
#[derive(Clone, Debug)]
pub enum AttemptEnd {
    /// The job fails with this error.
    Fail(JobError),
    /// The trainer was lost: `policy` decides between the queue and failing. `error` says how.
    Lost {
        cause: LossCause,
        error: JobError,
        policy: RetryPolicy,
    },
    /// The server took the job away from its trainer: back to the queue, not counted as lost.
    Return { reason: String },
}

/// What a `PATCH` changes; `None` leaves a field as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JobPatch {
    /// Only while the job is queued or paused.
    pub priority: Option<i32>,
    /// Replaces the name.
    pub name: Option<String>,
    /// Replaces all pairs.
    pub metadata: Option<BTreeMap<String, String>>,
}

/// What a guess at a queued job's start is made from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueueLoad {
    /// Seconds that running jobs expect to need; `None` for one that does not know yet.
    pub running_eta_s: Vec<Option<f64>>,
    /// Mean seconds that the last jobs took from start to success.
    pub mean_job_s: Option<f64>,
}
