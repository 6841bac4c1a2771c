//! Attempts: what they are to do, whose lease ran out, and how one without a report ends.

use sqlx::sqlite::SqliteRow;

use super::apply::{Ending, finish};
use super::claim::{hash_token, same_hash};
use super::rows::{get, get_count, get_json, get_parsed};
use super::types::{AttemptEnd, AttemptInput, Dataset, OpenAttempt};
use super::writer::Tx;
use super::{Store, StoreError};
use crate::domain::{AttemptId, DatasetId, JobId, JobSpec, Timestamp};

macro_rules! select_attempt {
    ($rest:literal) => {
        concat!(
            "SELECT attempt.id, attempt.job_id, attempt.number, attempt.token_sha256, \
             attempt.acked_seq, attempt.lease_expires_at, attempt.created_at, attempt.ended_at, \
             job.cancel_requested_at, job.spec \
             FROM attempt JOIN job ON job.id = attempt.job_id ",
            $rest
        )
    };
}

const SELECT: &str = select_attempt!("WHERE attempt.id = ?1");
pub(super) const OPEN: &str =
    "SELECT id, job_id, number FROM attempt WHERE ended_at IS NULL ORDER BY lease_expires_at";
pub(super) const EXPIRED: &str = "SELECT id, job_id FROM attempt \
     WHERE ended_at IS NULL AND lease_expires_at < ?1 ORDER BY lease_expires_at";
pub(super) const OVERDUE_CANCELS: &str = "SELECT attempt.id, attempt.job_id \
     FROM job JOIN attempt ON attempt.job_id = job.id AND attempt.ended_at IS NULL \
     WHERE job.cancel_requested_at < ?1";

impl Store {
    /// What the attempt is to do. `Fenced` for a wrong token or an attempt that is over.
    pub async fn attempt_input(
        &self,
        attempt: AttemptId,
        token: &str,
    ) -> Result<AttemptInput, StoreError> {
        let row = sqlx::query(SELECT)
            .bind(attempt.to_string())
            .fetch_optional(self.readers())
            .await?
            .ok_or(StoreError::Fenced)?;
        let attempt = Attempt::read(&row)?;
        attempt.check_token(&hash_token(token))?;
        if attempt.is_over {
            return Err(StoreError::Fenced);
        }
        let spec: JobSpec = get_json(&row, "spec")?;
        let train = self.needed_dataset(spec.dataset.train).await?;
        let eval = match spec.dataset.eval {
            Some(id) => Some(self.needed_dataset(id).await?),
            None => None,
        };
        Ok(AttemptInput {
            attempt: attempt.number,
            job_id: attempt.job_id,
            spec,
            train,
            eval,
        })
    }

    async fn needed_dataset(&self, id: DatasetId) -> Result<Dataset, StoreError> {
        let dataset = self.dataset(id).await?;
        dataset.ok_or(StoreError::DatasetNotFound(id))
    }

    /// Closes an attempt whose trainer is gone. Answers false, changing nothing, if it already ended.
    pub async fn end_attempt(
        &self,
        attempt: AttemptId,
        end: AttemptEnd,
    ) -> Result<bool, StoreError> {
        self.write(move |tx| Box::pin(end_attempt(tx, attempt, end, false)))
            .await
    }

    /// As [`Store::end_attempt`], but also false if the lease was renewed meanwhile.
    pub async fn end_expired_attempt(
        &self,
        attempt: AttemptId,
        end: AttemptEnd,
    ) -> Result<bool, StoreError> {
        self.write(move |tx| Box::pin(end_attempt(tx, attempt, end, true)))
            .await
    }

    /// Attempts that have not ended: each holds a slot.
    pub async fn open_attempts(&self) -> Result<Vec<OpenAttempt>, StoreError> {
        let rows = sqlx::query(OPEN).fetch_all(self.readers()).await?;
        rows.iter()
            .map(|row| {
                Ok(OpenAttempt {
                    attempt_id: get_parsed(row, "id")?,
                    attempt: get_count(row, "number")?,
                    job_id: get_parsed(row, "job_id")?,
                })
            })
            .collect()
    }

    /// Attempts still open whose lease ran out before now.
    pub async fn expired_attempts(&self) -> Result<Vec<(AttemptId, JobId)>, StoreError> {
        self.attempts_before(EXPIRED, self.inner.clock.now()).await
    }

    /// Attempts still open although their job's cancel was asked for more than `grace_ms` ago.
    pub async fn overdue_cancels(
        &self,
        grace_ms: i64,
    ) -> Result<Vec<(AttemptId, JobId)>, StoreError> {
        let before = self.inner.clock.now().plus_ms(-grace_ms);
        self.attempts_before(OVERDUE_CANCELS, before).await
    }

    async fn attempts_before(
        &self,
        sql: &'static str,
        before: Timestamp,
    ) -> Result<Vec<(AttemptId, JobId)>, StoreError> {
        let rows = sqlx::query(sql)
            .bind(before.0)
            .fetch_all(self.readers())
            .await?;
        rows.iter()
            .map(|row| Ok((get_parsed(row, "id")?, get_parsed(row, "job_id")?)))
            .collect()
    }

    /// Gives every open attempt at least `lease_ms` from now. For a server that was away: its trainers
    /// could not renew, and those that live should be adopted, not fenced.
    pub async fn extend_leases(&self, lease_ms: i64) -> Result<(), StoreError> {
        self.write(move |tx| {
            Box::pin(async move {
                sqlx::query(
                    "UPDATE attempt SET lease_expires_at = ?1 \
                     WHERE ended_at IS NULL AND lease_expires_at < ?1",
                )
                .bind(tx.now.plus_ms(lease_ms).0)
                .execute(&mut tx.conn)
                .await?;
                Ok(())
            })
        })
        .await
    }
}

/// An attempt's row, as far as transitions need it.
pub(super) struct Attempt {
    pub id: AttemptId,
    pub job_id: JobId,
    pub number: u32,
    pub acked_seq: u64,
    pub lease_expires_at: Timestamp,
    pub created_at: Timestamp,
    pub is_over: bool,
    pub cancel_requested: bool,
    token_sha256: String,
}

impl Attempt {
    pub async fn load(tx: &mut Tx, id: AttemptId) -> Result<Option<Self>, StoreError> {
        let row = sqlx::query(SELECT)
            .bind(id.to_string())
            .fetch_optional(&mut tx.conn)
            .await?;
        row.as_ref().map(Self::read).transpose()
    }

    /// `Fenced` unless the token is this attempt's.
    pub fn check_token(&self, token_sha256: &str) -> Result<(), StoreError> {
        if same_hash(&self.token_sha256, token_sha256) {
            Ok(())
        } else {
            Err(StoreError::Fenced)
        }
    }

    fn read(row: &SqliteRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: get_parsed(row, "id")?,
            job_id: get_parsed(row, "job_id")?,
            number: get_count(row, "number")?,
            acked_seq: get_count(row, "acked_seq")?,
            lease_expires_at: Timestamp(get(row, "lease_expires_at")?),
            created_at: Timestamp(get(row, "created_at")?),
            is_over: get::<Option<i64>>(row, "ended_at")?.is_some(),
            cancel_requested: get::<Option<i64>>(row, "cancel_requested_at")?.is_some(),
            token_sha256: get(row, "token_sha256")?,
        })
    }
}

async fn end_attempt(
    tx: &mut Tx,
    id: AttemptId,
    end: AttemptEnd,
    only_if_expired: bool,
) -> Result<bool, StoreError> {
    // A job that was deleted took its attempts with it: they are over as well.
    let Some(attempt) = Attempt::load(tx, id).await? else {
        return Ok(false);
    };
    if attempt.is_over || (only_if_expired && attempt.lease_expires_at >= tx.now) {
        return Ok(false);
    }
    let ending = if attempt.cancel_requested {
        Ending::Cancelled
    } else {
        match end {
            AttemptEnd::Fail(error) => Ending::Failed { error },
            AttemptEnd::Return { reason } => Ending::Returned { reason },
            AttemptEnd::Requeue {
                error,
                max_attempts,
            } => {
                if lost_attempts(tx, attempt.job_id).await? + 1 >= max_attempts {
                    Ending::Failed { error }
                } else {
                    Ending::Lost {
                        reason: error.message,
                    }
                }
            }
        }
    };
    let at = tx.now;
    finish(tx, &attempt, None, at, ending).await?;
    Ok(true)
}

async fn lost_attempts(tx: &mut Tx, job: JobId) -> Result<u32, StoreError> {
    let row =
        sqlx::query("SELECT COUNT(*) AS lost FROM attempt WHERE job_id = ?1 AND outcome = 'lost'")
            .bind(job.to_string())
            .fetch_one(&mut tx.conn)
            .await?;
    get_count(&row, "lost")
}
