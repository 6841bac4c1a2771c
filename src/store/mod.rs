//! The only SQL: jobs, attempts, events, checkpoints, datasets, idempotency keys.
//!
//! (Contract skeleton: types and signatures are agreed with `http` and `worker`; bodies follow.)

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

use crate::domain::{
    AttemptId, CheckpointRecord, Clock, DatasetId, DatasetLayout, Event, Ids, JobError, JobId,
    JobSpec, Message, MessagesResponse, Phase, Progress, Status, Timestamp,
};

/// A handle to the database; cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    _private: Arc<()>,
}

/// Why the store refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No such job, dataset or attempt.
    #[error("not found")]
    NotFound,
    /// The spec names a dataset that does not exist.
    #[error("dataset {0} does not exist")]
    DatasetNotFound(DatasetId),
    /// The job's status does not allow this.
    #[error("the job is {0}")]
    StateConflict(Status),
    /// An unfinished job needs this dataset.
    #[error("dataset is used by unfinished job {0}")]
    DatasetInUse(JobId),
    /// The same idempotency key came with another request.
    #[error("idempotency key was used with another request")]
    IdempotencyKeyReused,
    /// Wrong token, or the attempt is over.
    #[error("attempt is fenced")]
    Fenced,
    /// The disk is full.
    #[error("disk is full")]
    DiskFull,
    /// The database failed; the cause is for the log.
    #[error("database failed: {0}")]
    Database(String),
}

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
    /// A cancel was asked for and has not taken effect yet.
    pub cancel_requested: bool,
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

/// A job that was just handed to a slot.
#[derive(Clone, Debug)]
pub struct ClaimedAttempt {
    pub attempt_id: AttemptId,
    /// 1 for the job's first attempt.
    pub attempt: u32,
    pub job_id: JobId,
    /// Bearer token of this attempt; only its SHA-256 is stored.
    pub token: String,
}

/// What a trainer needs from the store to begin; paths are added by `worker`.
#[derive(Clone, Debug)]
pub struct AttemptInput {
    pub attempt: u32,
    pub job_id: JobId,
    pub spec: JobSpec,
    pub train: Dataset,
    pub eval: Option<Dataset>,
}

/// How an attempt that reported no end is closed.
#[derive(Clone, Debug)]
pub enum AttemptEnd {
    /// The job fails with this error.
    Fail(JobError),
    /// The job goes back to the queue, or fails with `error` once `max_attempts` were started.
    Requeue { error: JobError, max_attempts: u32 },
}

#[expect(unused_variables, reason = "contract skeleton")]
impl Store {
    /// Opens (and migrates) the database file, starts the writer task.
    pub async fn open(
        path: &Path,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn Ids>,
    ) -> Result<Self, StoreError> {
        todo!()
    }

    /// Stops the writer after what was handed to it is committed, and closes all connections.
    pub async fn close(&self) {
        todo!()
    }

    /// Answers whether the database can be read and written (for `/readyz`).
    pub async fn ping(&self) -> Result<(), StoreError> {
        todo!()
    }

    /// Wakes whenever something of this job was committed (events, progress, status). Payloads are read
    /// from the tables afterwards.
    pub fn subscribe(&self, job: JobId) -> watch::Receiver<u64> {
        todo!()
    }

    // -- jobs ------------------------------------------------------------------------------------

    /// Stores the job, its `queued` event and the idempotency key in one transaction. Answers the job and
    /// whether it already existed under this key.
    pub async fn create_job(
        &self,
        spec: JobSpec,
        idempotency: Option<Idempotency>,
    ) -> Result<(Job, bool), StoreError> {
        todo!()
    }

    pub async fn job(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        todo!()
    }

    /// Newest first, starting after the job `after`.
    pub async fn jobs(
        &self,
        status: Option<Status>,
        after: Option<JobId>,
        limit: u32,
    ) -> Result<Vec<Job>, StoreError> {
        todo!()
    }

    /// 1 for the next job to be claimed; `None` unless queued.
    pub async fn queue_position(&self, id: JobId) -> Result<Option<u64>, StoreError> {
        todo!()
    }

    /// Queued becomes cancelled at once; running is marked and told with its next message; cancelled stays
    /// as it is; succeeded and failed are a `StateConflict`.
    pub async fn cancel_job(&self, id: JobId) -> Result<Job, StoreError> {
        todo!()
    }

    /// Removes a final job with its attempts, events and checkpoint rows; `StateConflict` otherwise.
    pub async fn delete_job(&self, id: JobId) -> Result<(), StoreError> {
        todo!()
    }

    // -- events, metrics, checkpoints ------------------------------------------------------------

    /// Events with `seq > after`, oldest first.
    pub async fn events(
        &self,
        job: JobId,
        after: i64,
        limit: u32,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        todo!()
    }

    /// Metric values with `step >= since_step` in order of time; `names` empty means all.
    pub async fn metric_points(
        &self,
        job: JobId,
        names: &[String],
        since_step: u64,
    ) -> Result<Vec<MetricPoint>, StoreError> {
        todo!()
    }

    /// In order of step.
    pub async fn checkpoints(&self, job: JobId) -> Result<Vec<StoredCheckpoint>, StoreError> {
        todo!()
    }

    // -- datasets --------------------------------------------------------------------------------

    pub async fn create_dataset(&self, dataset: Dataset) -> Result<(), StoreError> {
        todo!()
    }

    pub async fn dataset(&self, id: DatasetId) -> Result<Option<Dataset>, StoreError> {
        todo!()
    }

    /// Newest first, starting after the dataset `after`.
    pub async fn datasets(
        &self,
        after: Option<DatasetId>,
        limit: u32,
    ) -> Result<Vec<Dataset>, StoreError> {
        todo!()
    }

    /// `DatasetInUse` while a job that is not final names it.
    pub async fn delete_dataset(&self, id: DatasetId) -> Result<(), StoreError> {
        todo!()
    }

    // -- attempts --------------------------------------------------------------------------------

    /// Takes the oldest queued job, if any: one guarded statement that sets it running, attempt + 1.
    pub async fn claim_next(&self, lease_ms: i64) -> Result<Option<ClaimedAttempt>, StoreError> {
        todo!()
    }

    /// What the attempt is to do. `Fenced` for a wrong token or an attempt that is over.
    pub async fn attempt_input(
        &self,
        attempt: AttemptId,
        token: &str,
    ) -> Result<AttemptInput, StoreError> {
        todo!()
    }

    /// Applies messages in order, each at most once, renews the lease, answers what comes next.
    /// Final events end the attempt and the job in the same transaction.
    pub async fn record_messages(
        &self,
        attempt: AttemptId,
        token: &str,
        messages: Vec<Message>,
        lease_ms: i64,
    ) -> Result<MessagesResponse, StoreError> {
        todo!()
    }

    /// Closes an attempt whose trainer is gone. Answers false, changing nothing, if it already ended.
    pub async fn end_attempt(
        &self,
        attempt: AttemptId,
        end: AttemptEnd,
    ) -> Result<bool, StoreError> {
        todo!()
    }

    /// Attempts still open whose lease ran out before now.
    pub async fn expired_attempts(&self) -> Result<Vec<(AttemptId, JobId)>, StoreError> {
        todo!()
    }
}
