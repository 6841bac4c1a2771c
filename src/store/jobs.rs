//! Jobs: create, read, list, delete. What changes a job's status on request is in `lifecycle`.

use sqlx::sqlite::SqliteRow;

use super::events::{FIRST, Origin, insert_event};
use super::rows::{get, get_count, get_json, get_json_or_null, get_parsed, get_time, to_json};
use super::types::{Idempotency, Job};
use super::writer::Tx;
use super::{Store, StoreError, idempotency};
use crate::domain::{DatasetId, Event, JobId, JobSpec, Phase, Status, Timestamp};

/// Sorts after every id.
pub(super) const PAST_EVERY_ID: &str = "~";

macro_rules! job_columns {
    () => {
        "id, status, phase, spec, progress, metrics, error, attempt, cancel_requested_at, \
         pause_requested_at, not_before, model_step, created_at, started_at, finished_at, \
         (SELECT device FROM attempt \
          WHERE attempt.job_id = job.id AND attempt.number = job.attempt) AS device"
    };
}

macro_rules! select_job {
    ($rest:literal) => {
        concat!("SELECT ", job_columns!(), " FROM job ", $rest)
    };
}

/// With room in the log for its first event; nothing if a dataset is not there.
const INSERT: &str = concat!(
    "INSERT INTO job (id, status, spec, train_dataset_id, eval_dataset_id, created_at, priority, last_seq) \
     SELECT ?1, 'queued', ?2, ?3, ?4, ?5, ?6, ?7 WHERE EXISTS (SELECT 1 FROM dataset WHERE id = ?3) \
         AND (?4 IS NULL OR EXISTS (SELECT 1 FROM dataset WHERE id = ?4)) RETURNING ",
    job_columns!()
);

pub(super) const SELECT: &str = select_job!("WHERE id = ?1");
pub(super) const LIST: &str = select_job!("WHERE id < ?1 ORDER BY id DESC LIMIT ?2");
pub(super) const LIST_BY_STATUS: &str =
    select_job!("WHERE id < ?1 AND status = ?3 ORDER BY id DESC LIMIT ?2");
impl Store {
    /// Stores the job, its `queued` event and the idempotency key in one transaction. Answers the job and
    /// whether it already existed under this key.
    ///
    /// # Errors
    /// `DatasetNotFound`, `IdempotencyKeyReused`.
    pub async fn create_job(
        &self,
        spec: JobSpec,
        idempotency: Option<Idempotency>,
    ) -> Result<(Job, bool), StoreError> {
        self.write(move |tx| Box::pin(create(tx, spec, idempotency)))
            .await
    }

    /// The job, if there is one.
    pub async fn job(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        let row = sqlx::query(SELECT)
            .bind(id.to_string())
            .fetch_optional(self.readers())
            .await?;
        row.as_ref().map(read_job).transpose()
    }

    /// Newest first, starting after the job `after`.
    pub async fn jobs(
        &self,
        status: Option<Status>,
        after: Option<JobId>,
        limit: u32,
    ) -> Result<Vec<Job>, StoreError> {
        let after = after.map_or_else(|| PAST_EVERY_ID.to_owned(), |id| id.to_string());
        let query = match status {
            None => sqlx::query(LIST).bind(after).bind(limit),
            Some(status) => sqlx::query(LIST_BY_STATUS)
                .bind(after)
                .bind(limit)
                .bind(status.as_str()),
        };
        let rows = query.fetch_all(self.readers()).await?;
        rows.iter().map(read_job).collect()
    }

    /// Removes a final job with its attempts, events and checkpoint rows; `StateConflict` otherwise.
    pub async fn delete_job(&self, id: JobId) -> Result<(), StoreError> {
        self.write(move |tx| Box::pin(delete(tx, id))).await
    }
}

/// The job as this transaction sees it.
pub(super) async fn load(tx: &mut Tx, id: JobId) -> Result<Job, StoreError> {
    let row = sqlx::query(SELECT)
        .bind(id.to_string())
        .fetch_optional(&mut tx.conn)
        .await?;
    read_job(&row.ok_or(StoreError::NotFound)?)
}

async fn create(
    tx: &mut Tx,
    spec: JobSpec,
    idempotency: Option<Idempotency>,
) -> Result<(Job, bool), StoreError> {
    if let Some(idempotency) = &idempotency
        && let Some(existing) = idempotency::find(tx, idempotency).await?
    {
        return Ok((load(tx, existing).await?, true));
    }
    let id = JobId(tx.ids.next_uuid());
    let row = sqlx::query(INSERT)
        .bind(id.to_string())
        .bind(to_json(&spec)?)
        .bind(spec.dataset.train.to_string())
        .bind(spec.dataset.eval.map(|eval| eval.to_string()))
        .bind(tx.now.0)
        .bind(spec.priority)
        .bind(FIRST.seq)
        .fetch_optional(&mut tx.conn)
        .await?;
    let Some(row) = row else {
        check_datasets(tx, &spec).await?;
        return Err(StoreError::NotFound);
    };
    insert_event(tx, id, FIRST, Origin::server(tx.now), &Event::Queued {}).await?;
    if let Some(idempotency) = &idempotency {
        idempotency::insert(tx, idempotency, id).await?;
    }
    Ok((read_job(&row)?, false))
}

/// The datasets a job needs are there.
pub(super) async fn check_datasets(tx: &mut Tx, spec: &JobSpec) -> Result<(), StoreError> {
    check_dataset(tx, spec.dataset.train).await?;
    match spec.dataset.eval {
        Some(eval) => check_dataset(tx, eval).await,
        None => Ok(()),
    }
}

async fn check_dataset(tx: &mut Tx, id: DatasetId) -> Result<(), StoreError> {
    sqlx::query("SELECT 1 FROM dataset WHERE id = ?1")
        .bind(id.to_string())
        .fetch_optional(&mut tx.conn)
        .await?
        .map(|_| ())
        .ok_or(StoreError::DatasetNotFound(id))
}

async fn delete(tx: &mut Tx, id: JobId) -> Result<(), StoreError> {
    // Attempts, events, metrics, checkpoints and the key go with it (ON DELETE CASCADE).
    let result = sqlx::query(
        "DELETE FROM job WHERE id = ?1 AND status IN ('succeeded', 'failed', 'cancelled')",
    )
    .bind(id.to_string())
    .execute(&mut tx.conn)
    .await?;
    if result.rows_affected() == 0 {
        return Err(StoreError::StateConflict(load(tx, id).await?.status));
    }
    tx.touch(id);
    Ok(())
}

fn read_job(row: &SqliteRow) -> Result<Job, StoreError> {
    let phase: Option<&str> = get(row, "phase")?;
    let model_step: Option<i64> = get(row, "model_step")?;
    let time = |column| Ok::<_, StoreError>(get::<Option<i64>>(row, column)?.map(Timestamp));
    Ok(Job {
        id: get_parsed(row, "id")?,
        status: get_parsed(row, "status")?,
        phase: phase.map(read_phase).transpose()?,
        spec: get_json(row, "spec")?,
        progress: get_json_or_null(row, "progress")?,
        metrics: get_json(row, "metrics")?,
        error: get_json_or_null(row, "error")?,
        attempt: get_count(row, "attempt")?,
        device: get_json_or_null(row, "device")?,
        cancel_requested: time("cancel_requested_at")?.is_some(),
        pause_requested: time("pause_requested_at")?.is_some(),
        not_before: time("not_before")?.filter(|at| at.0 > 0),
        model_step: model_step.and_then(|step| u64::try_from(step).ok()),
        created_at: get_time(row, "created_at")?,
        started_at: time("started_at")?,
        finished_at: time("finished_at")?,
    })
}

fn read_phase(word: &str) -> Result<Phase, StoreError> {
    serde_json::from_value(serde_json::Value::from(word))
        .map_err(|error| StoreError::Database(format!("column `phase` is unreadable: {error}")))
}
