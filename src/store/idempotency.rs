//! The same request twice makes one job.

use super::rows::get_parsed;
use super::types::Idempotency;
use super::writer::Tx;
use super::{StoreError, rows};
use crate::domain::JobId;

/// The job this key made before, if any.
pub(super) async fn find(
    tx: &mut Tx,
    idempotency: &Idempotency,
) -> Result<Option<JobId>, StoreError> {
    let row = sqlx::query("SELECT request_sha256, job_id FROM idempotency_key WHERE key = ?1")
        .bind(&idempotency.key)
        .fetch_optional(&mut tx.conn)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let request_sha256: &str = rows::get(&row, "request_sha256")?;
    if request_sha256 != idempotency.request_sha256 {
        return Err(StoreError::IdempotencyKeyReused);
    }
    Ok(Some(get_parsed(&row, "job_id")?))
}

pub(super) async fn insert(
    tx: &mut Tx,
    idempotency: &Idempotency,
    job: JobId,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO idempotency_key (key, request_sha256, job_id, created_at) \
         VALUES (?1, ?2, ?3, ?4)",
    )
    .bind(&idempotency.key)
    .bind(&idempotency.request_sha256)
    .bind(job.to_string())
    .bind(tx.now.0)
    .execute(&mut tx.conn)
    .await?;
    Ok(())
}
