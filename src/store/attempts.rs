//! Attempts: what they are to do, and which of them need looking after.

use sqlx::sqlite::SqliteRow;

use super::claim::{hash_token, same_hash};
use super::rows::{get, get_count, get_json, get_parsed};
use super::types::{AttemptInput, Dataset, OpenAttempt};
use super::writer::Tx;
use super::{Store, StoreError};
use crate::domain::{AttemptId, DatasetId, JobId, JobSpec, Placement, Timestamp};

macro_rules! select_attempt {
    ($rest:literal) => {
        concat!(
            "SELECT attempt.id, attempt.job_id, attempt.number, attempt.token_sha256, \
             attempt.acked_seq, attempt.lease_expires_at, attempt.created_at, attempt.ended_at, \
             attempt.device, attempt.reserved_bytes, job.cancel_requested_at, \
             job.pause_requested_at, job.round, job.micro_batch_divisor, job.spec, job.metrics \
             FROM attempt JOIN job ON job.id = attempt.job_id ",
            $rest
        )
    };
}

const SELECT: &str = select_attempt!("WHERE attempt.id = ?1");

macro_rules! select_open {
    ($rest:literal) => {
        concat!(
            "SELECT attempt.id, attempt.job_id, attempt.number, attempt.device, \
             attempt.reserved_bytes FROM ",
            $rest
        )
    };
}

pub(super) const OPEN: &str =
    select_open!("attempt WHERE ended_at IS NULL ORDER BY lease_expires_at");
pub(super) const EXPIRED: &str = select_open!(
    "attempt WHERE ended_at IS NULL AND lease_expires_at < ?1 ORDER BY lease_expires_at"
);
pub(super) const OVERDUE_CANCELS: &str = select_open!(
    "job JOIN attempt ON attempt.job_id = job.id AND attempt.ended_at IS NULL \
     WHERE job.cancel_requested_at < ?1"
);
pub(super) const OVERDUE_PAUSES: &str = select_open!(
    "job JOIN attempt ON attempt.job_id = job.id AND attempt.ended_at IS NULL \
     WHERE job.pause_requested_at < ?1"
);
pub(super) const OVERRUN: &str = select_open!(
    "attempt WHERE ended_at IS NULL AND deadline_at IS NOT NULL AND deadline_at <= ?1"
);
/// Open attempts are as few as slots.
const ON_DEVICE: &str =
    "SELECT COUNT(*) AS jobs FROM attempt WHERE ended_at IS NULL AND device = ?1";

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
            micro_batch_divisor: get_count(&row, "micro_batch_divisor")?,
            metrics: get_json(&row, "metrics")?,
            train,
            eval,
        })
    }

    async fn needed_dataset(&self, id: DatasetId) -> Result<Dataset, StoreError> {
        let dataset = self.dataset(id).await?;
        dataset.ok_or(StoreError::DatasetNotFound(id))
    }

    /// Attempts that have not ended: each holds a slot.
    pub async fn open_attempts(&self) -> Result<Vec<OpenAttempt>, StoreError> {
        let rows = sqlx::query(OPEN).fetch_all(self.readers()).await?;
        rows.iter().map(read_open).collect()
    }

    /// Attempts still open whose lease ran out before now.
    pub async fn expired_attempts(&self) -> Result<Vec<OpenAttempt>, StoreError> {
        self.attempts_before(EXPIRED, self.inner.clock.now()).await
    }

    /// Attempts still open although their job's cancel or pause was asked for more than `grace_ms` ago.
    pub async fn overdue_stops(&self, grace_ms: i64) -> Result<Vec<OpenAttempt>, StoreError> {
        let before = self.inner.clock.now().plus_ms(-grace_ms);
        let mut overdue = self.attempts_before(OVERDUE_CANCELS, before).await?;
        overdue.extend(self.attempts_before(OVERDUE_PAUSES, before).await?);
        Ok(overdue)
    }

    /// Attempts still open although their job's time is used up.
    pub async fn overrun_attempts(&self) -> Result<Vec<OpenAttempt>, StoreError> {
        self.attempts_before(OVERRUN, self.inner.clock.now()).await
    }

    async fn attempts_before(
        &self,
        sql: &'static str,
        before: Timestamp,
    ) -> Result<Vec<OpenAttempt>, StoreError> {
        let rows = sqlx::query(sql)
            .bind(before.0)
            .fetch_all(self.readers())
            .await?;
        rows.iter().map(read_open).collect()
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

fn read_open(row: &SqliteRow) -> Result<OpenAttempt, StoreError> {
    Ok(OpenAttempt {
        attempt_id: get_parsed(row, "id")?,
        attempt: get_count(row, "number")?,
        job_id: get_parsed(row, "job_id")?,
        placement: Placement {
            device: get_json(row, "device")?,
            reserved_bytes: reserved_bytes(row)?,
        },
    })
}

fn reserved_bytes(row: &SqliteRow) -> Result<Option<u64>, StoreError> {
    let bytes: Option<i64> = get(row, "reserved_bytes")?;
    Ok(bytes.and_then(|bytes| u64::try_from(bytes).ok()))
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
    pub pause_requested: bool,
    /// Of its job.
    pub micro_batch_divisor: u32,
    /// Others may be on its card.
    pub may_share: bool,
    device: String,
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

    /// Attempts on this one's card, itself included.
    pub async fn jobs_on_device(&self, tx: &mut Tx) -> Result<u32, StoreError> {
        if !self.may_share {
            return Ok(1);
        }
        let row = sqlx::query(ON_DEVICE)
            .bind(&self.device)
            .fetch_one(&mut tx.conn)
            .await?;
        let jobs: u32 = get_count(&row, "jobs")?;
        // It may have ended with the messages it is told this in answer to.
        Ok(jobs.max(1))
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
            pause_requested: get::<Option<i64>>(row, "pause_requested_at")?.is_some(),
            micro_batch_divisor: get_count(row, "micro_batch_divisor")?,
            may_share: reserved_bytes(row)?.is_some(),
            device: get(row, "device")?,
            token_sha256: get(row, "token_sha256")?,
        })
    }
}
