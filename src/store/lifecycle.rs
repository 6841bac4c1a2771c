//! What users ask of a job that exists: cancel, pause, resume, retry, change.
//!
//! A running job is only marked: the request travels to its trainer with the answer to the next message, and
//! takes effect when the attempt ends (`apply::finish`).

use super::events::append_server_event;
use super::jobs::{check_datasets, load};
use super::rows::{exactly_one, to_json};
use super::types::{Job, JobPatch};
use super::writer::Tx;
use super::{Store, StoreError};
use crate::domain::{Event, JobId, Status};

impl Store {
    /// Queued and paused become cancelled at once; running is marked and told with its next message;
    /// cancelled stays as it is; succeeded and failed are a `StateConflict`.
    pub async fn cancel_job(&self, id: JobId) -> Result<Job, StoreError> {
        self.write(move |tx| Box::pin(cancel(tx, id))).await
    }

    /// Queued becomes paused at once; running is marked, saves a checkpoint and frees its slot; paused stays
    /// as it is; a final job is a `StateConflict`.
    pub async fn pause_job(&self, id: JobId) -> Result<Job, StoreError> {
        self.write(move |tx| Box::pin(pause(tx, id))).await
    }

    /// Paused is queued again, in its old place; a pause that has not taken effect yet is withdrawn; a final
    /// job is a `StateConflict`.
    pub async fn resume_job(&self, id: JobId) -> Result<Job, StoreError> {
        self.write(move |tx| Box::pin(resume(tx, id))).await
    }

    /// A failed or cancelled job is queued again and goes on from its newest checkpoint, as if it had never
    /// lost a trainer; any other is a `StateConflict`.
    ///
    /// # Errors
    /// `DatasetNotFound` if a dataset it needs was deleted since.
    pub async fn retry_job(&self, id: JobId) -> Result<Job, StoreError> {
        self.write(move |tx| Box::pin(retry(tx, id))).await
    }

    /// Changes what a patch names. A priority only matters while the job waits: otherwise `StateConflict`.
    pub async fn update_job(&self, id: JobId, patch: JobPatch) -> Result<Job, StoreError> {
        self.write(move |tx| Box::pin(update(tx, id, patch))).await
    }
}

async fn cancel(tx: &mut Tx, id: JobId) -> Result<Job, StoreError> {
    let status = load(tx, id).await?.status;
    match status {
        Status::Queued | Status::Paused => {
            let result = sqlx::query(
                "UPDATE job SET status = 'cancelled', finished_at = ?2, not_before = 0 \
                 WHERE id = ?1 AND status = ?3",
            )
            .bind(id.to_string())
            .bind(tx.now.0)
            .bind(status.as_str())
            .execute(&mut tx.conn)
            .await?;
            exactly_one(&result)?;
            append_server_event(tx, id, &Event::Cancelled {}).await?;
        }
        Status::Running => {
            let sql = "UPDATE job SET cancel_requested_at = COALESCE(cancel_requested_at, ?2) \
                       WHERE id = ?1 AND status = 'running'";
            mark(tx, id, sql).await?;
        }
        Status::Cancelled => {}
        Status::Succeeded | Status::Failed => return Err(StoreError::StateConflict(status)),
    }
    load(tx, id).await
}

async fn pause(tx: &mut Tx, id: JobId) -> Result<Job, StoreError> {
    let status = load(tx, id).await?.status;
    match status {
        Status::Queued => {
            set_waiting(tx, id, Status::Queued, Status::Paused).await?;
            append_server_event(tx, id, &Event::Paused {}).await?;
        }
        Status::Running => {
            let sql = "UPDATE job SET pause_requested_at = COALESCE(pause_requested_at, ?2) \
                       WHERE id = ?1 AND status = 'running'";
            mark(tx, id, sql).await?;
        }
        Status::Paused => {}
        _ => return Err(StoreError::StateConflict(status)),
    }
    load(tx, id).await
}

async fn resume(tx: &mut Tx, id: JobId) -> Result<Job, StoreError> {
    let status = load(tx, id).await?.status;
    match status {
        Status::Paused => {
            set_waiting(tx, id, Status::Paused, Status::Queued).await?;
            append_server_event(tx, id, &Event::Resumed {}).await?;
        }
        Status::Running => {
            // The trainer may be on its way out already; then the job is queued again by its report.
            let sql =
                "UPDATE job SET pause_requested_at = NULL WHERE id = ?1 AND status = 'running'";
            let result = sqlx::query(sql)
                .bind(id.to_string())
                .execute(&mut tx.conn)
                .await?;
            exactly_one(&result)?;
            tx.touch(id);
        }
        Status::Queued => {}
        _ => return Err(StoreError::StateConflict(status)),
    }
    load(tx, id).await
}

/// Between the two ways of waiting.
async fn set_waiting(tx: &mut Tx, id: JobId, from: Status, to: Status) -> Result<(), StoreError> {
    let result =
        sqlx::query("UPDATE job SET status = ?3, not_before = 0 WHERE id = ?1 AND status = ?2")
            .bind(id.to_string())
            .bind(from.as_str())
            .bind(to.as_str())
            .execute(&mut tx.conn)
            .await?;
    exactly_one(&result)
}

/// Notes a request on a running job; `?2` is the time.
async fn mark(tx: &mut Tx, id: JobId, sql: &'static str) -> Result<(), StoreError> {
    let result = sqlx::query(sql)
        .bind(id.to_string())
        .bind(tx.now.0)
        .execute(&mut tx.conn)
        .await?;
    tx.touch(id);
    exactly_one(&result)
}

async fn retry(tx: &mut Tx, id: JobId) -> Result<Job, StoreError> {
    let job = load(tx, id).await?;
    if !matches!(job.status, Status::Failed | Status::Cancelled) {
        return Err(StoreError::StateConflict(job.status));
    }
    check_datasets(tx, &job.spec).await?;
    let result = sqlx::query(
        "UPDATE job SET status = 'queued', error = NULL, finished_at = NULL, not_before = 0, \
             micro_batch_divisor = 1, round = round + 1 \
         WHERE id = ?1 AND status = ?2",
    )
    .bind(id.to_string())
    .bind(job.status.as_str())
    .execute(&mut tx.conn)
    .await?;
    exactly_one(&result)?;
    append_server_event(tx, id, &Event::Retried {}).await?;
    load(tx, id).await
}

async fn update(tx: &mut Tx, id: JobId, patch: JobPatch) -> Result<Job, StoreError> {
    let Job {
        status, mut spec, ..
    } = load(tx, id).await?;
    if let Some(priority) = patch.priority {
        if !matches!(status, Status::Queued | Status::Paused) {
            return Err(StoreError::StateConflict(status));
        }
        spec.priority = priority;
    }
    spec.name = patch.name.or(spec.name);
    if let Some(metadata) = patch.metadata {
        spec.metadata = metadata;
    }
    let result = sqlx::query("UPDATE job SET spec = ?2, priority = ?3 WHERE id = ?1")
        .bind(id.to_string())
        .bind(to_json(&spec)?)
        .bind(spec.priority)
        .execute(&mut tx.conn)
        .await?;
    exactly_one(&result)?;
    tx.touch(id);
    load(tx, id).await
}
