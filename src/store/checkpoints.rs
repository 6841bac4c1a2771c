//! Published checkpoints.

use sqlx::sqlite::SqliteRow;

use super::events::{Origin, append};
use super::rows::{get_count, get_json, get_time, to_i64, to_json};
use super::types::StoredCheckpoint;
use super::writer::Tx;
use super::{Store, StoreError};
use crate::domain::{CheckpointRecord, Event, JobId};

pub(super) const LIST: &str =
    "SELECT record, attempt, created_at FROM checkpoint WHERE job_id = ?1 ORDER BY step";

const ONE: &str = "SELECT record FROM checkpoint WHERE job_id = ?1 AND step = ?2";

impl Store {
    /// In order of step.
    pub async fn checkpoints(&self, job: JobId) -> Result<Vec<StoredCheckpoint>, StoreError> {
        let rows = sqlx::query(LIST)
            .bind(job.to_string())
            .fetch_all(self.readers())
            .await?;
        rows.iter().map(read_checkpoint).collect()
    }
}

/// A later attempt that takes the same step again replaces what the earlier one published. A trainer that goes
/// on from a checkpoint reports it once more, because the one before may have died before it could: if nothing
/// about it is new, nothing happens.
pub(super) async fn insert(
    tx: &mut Tx,
    job: JobId,
    attempt: u32,
    origin: Origin,
    record: &CheckpointRecord,
) -> Result<(), StoreError> {
    let row = sqlx::query(ONE)
        .bind(job.to_string())
        .bind(to_i64(record.step))
        .fetch_optional(&mut tx.conn)
        .await?;
    if let Some(row) = row {
        let known: CheckpointRecord = get_json(&row, "record")?;
        // By their hashes: metrics may differ in the last digit after a way through JSON.
        if known.files == record.files {
            return Ok(());
        }
    }
    sqlx::query(
        "INSERT INTO checkpoint (job_id, step, attempt, record, created_at) \
         VALUES (?1, ?2, ?3, ?4, ?5) \
         ON CONFLICT (job_id, step) DO UPDATE SET attempt = excluded.attempt, \
             record = excluded.record, created_at = excluded.created_at",
    )
    .bind(job.to_string())
    .bind(to_i64(record.step))
    .bind(attempt)
    .bind(to_json(record)?)
    .bind(origin.at.0)
    .execute(&mut tx.conn)
    .await?;
    append(tx, job, origin, &Event::Checkpoint(record.clone())).await?;
    Ok(())
}

/// Whether the checkpoint of this step was reported and is still there.
pub(super) async fn exists(tx: &mut Tx, job: JobId, step: u64) -> Result<bool, StoreError> {
    let row = sqlx::query(ONE)
        .bind(job.to_string())
        .bind(to_i64(step))
        .fetch_optional(&mut tx.conn)
        .await?;
    Ok(row.is_some())
}

pub(super) async fn remove(
    tx: &mut Tx,
    job: JobId,
    origin: Origin,
    step: u64,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM checkpoint WHERE job_id = ?1 AND step = ?2")
        .bind(job.to_string())
        .bind(to_i64(step))
        .execute(&mut tx.conn)
        .await?;
    append(tx, job, origin, &Event::CheckpointRemoved { step }).await?;
    Ok(())
}

fn read_checkpoint(row: &SqliteRow) -> Result<StoredCheckpoint, StoreError> {
    Ok(StoredCheckpoint {
        record: get_json(row, "record")?,
        attempt: get_count(row, "attempt")?,
        created_at: get_time(row, "created_at")?,
    })
}
