//! Handing the next queued job to a slot: highest priority first, then oldest.
//!
//! Whoever has slots looks at the job first ([`Store::next_queued`]), as a place for it may depend on what it needs,
//! and then takes it ([`Store::claim`]).

use sha2::{Digest, Sha256};

use super::events::{Origin, Place, insert_event};
use super::rows::{get, get_count, get_json, get_parsed, to_i64, to_json};
use super::types::{ClaimedAttempt, QueuedJob};
use super::writer::Tx;
use super::{Store, StoreError};
use crate::domain::{AttemptId, Event, JobId, JobSpec, Placement};

pub(super) const NEXT: &str = "SELECT id, spec, micro_batch_divisor, \
         EXISTS (SELECT 1 FROM attempt WHERE attempt.job_id = job.id AND attempt.round = job.round \
                     AND attempt.loss_cause = 'out_of_memory') AS ran_out_of_memory \
     FROM job WHERE status = 'queued' AND not_before <= ?1 ORDER BY priority DESC, id LIMIT 1";
/// The single writer makes two claims of one job impossible; the guard and the unique index on open attempts would
/// refuse them anyway. Takes the place in the log for `started`.
pub(super) const CLAIM: &str = "UPDATE job SET status = 'running', phase = 'starting', attempt = attempt + 1, \
         started_at = COALESCE(started_at, ?1), not_before = 0, last_seq = last_seq + 1 \
     WHERE id = ?2 AND status = 'queued' AND not_before <= ?1 \
     RETURNING attempt, round, spec, last_seq";
/// Milliseconds a round of a job has run so far.
const USED: &str = "SELECT COALESCE(SUM(ended_at - created_at), 0) AS used_ms FROM attempt \
     WHERE job_id = ?1 AND round = ?2 AND ended_at IS NOT NULL";

impl Store {
    /// The job that is to be claimed next, if any is queued and not waiting out a loss.
    pub async fn next_queued(&self) -> Result<Option<QueuedJob>, StoreError> {
        let row = sqlx::query(NEXT)
            .bind(self.inner.clock.now().0)
            .fetch_optional(self.readers())
            .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(QueuedJob {
            job_id: get_parsed(&row, "id")?,
            spec: get_json(&row, "spec")?,
            micro_batch_divisor: get_count(&row, "micro_batch_divisor")?,
            ran_out_of_memory: get(&row, "ran_out_of_memory")?,
        }))
    }

    /// Takes this job for a slot: one guarded statement that sets it running, attempt + 1. `None` if it is no longer
    /// queued.
    pub async fn claim(
        &self,
        job: JobId,
        placement: Placement,
        lease_ms: i64,
    ) -> Result<Option<ClaimedAttempt>, StoreError> {
        self.write(move |tx| Box::pin(claim(tx, job, placement, lease_ms)))
            .await
    }
}

async fn claim(
    tx: &mut Tx,
    job_id: JobId,
    placement: Placement,
    lease_ms: i64,
) -> Result<Option<ClaimedAttempt>, StoreError> {
    let row = sqlx::query(CLAIM)
        .bind(tx.now.0)
        .bind(job_id.to_string())
        .fetch_optional(&mut tx.conn)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let Placement {
        device,
        reserved_bytes,
    } = placement;
    let attempt: u32 = get_count(&row, "attempt")?;
    let round: u32 = get_count(&row, "round")?;
    let deadline = deadline(tx, job_id, round, &get_json(&row, "spec")?).await?;
    let attempt_id = AttemptId(tx.ids.next_uuid());
    let token = tx.ids.next_secret();
    sqlx::query(
        "INSERT INTO attempt (id, job_id, number, token_sha256, lease_expires_at, created_at, \
             round, deadline_at, device, reserved_bytes) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )
    .bind(attempt_id.to_string())
    .bind(job_id.to_string())
    .bind(attempt)
    .bind(hash_token(&token))
    .bind(tx.now.plus_ms(lease_ms).0)
    .bind(tx.now.0)
    .bind(round)
    .bind(deadline)
    .bind(to_json(&device)?)
    .bind(reserved_bytes.map(to_i64))
    .execute(&mut tx.conn)
    .await?;
    let origin = Origin {
        attempt: Some(attempt),
        message_seq: None,
        at: tx.now,
    };
    let place = Place::read(&row)?;
    let started = Event::Started {
        attempt,
        device: device.clone(),
    };
    insert_event(tx, job_id, place, origin, &started).await?;
    Ok(Some(ClaimedAttempt {
        attempt_id,
        attempt,
        job_id,
        token,
        device,
    }))
}

/// When the job's time is used up, if it has a limit.
async fn deadline(
    tx: &mut Tx,
    job: JobId,
    round: u32,
    spec: &JobSpec,
) -> Result<Option<i64>, StoreError> {
    let Some(limit_s) = spec.max_runtime_s else {
        return Ok(None);
    };
    let row = sqlx::query(USED)
        .bind(job.to_string())
        .bind(round)
        .fetch_one(&mut tx.conn)
        .await?;
    let used_ms: i64 = get(&row, "used_ms")?;
    let left_ms = to_i64(limit_s).saturating_mul(1000) - used_ms;
    Ok(Some(tx.now.plus_ms(left_ms.max(0)).0))
}

/// SHA-256 of a token as 64 hexadecimal digits. The token has 256 random bits, so no slow hash is needed.
pub(super) fn hash_token(token: &str) -> String {
    Sha256::digest(token.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Compares two hashes without stopping at the first difference.
pub(super) fn same_hash(a: &str, b: &str) -> bool {
    a.len() == b.len()
        && a.bytes()
            .zip(b.bytes())
            .fold(0, |acc, (x, y)| acc | (x ^ y))
            == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_compare_by_content() {
        // SHA-256 of "abc", FIPS 180-2 appendix B.1.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash_token("abc"), abc);
        assert!(same_hash(&hash_token("abc"), abc));
        assert!(!same_hash(&hash_token("abd"), abc));
        assert!(!same_hash("", abc));
    }
}
