//! Attempts that end without a report: the trainer died, fell silent, or the server took its job away.

use super::apply::{Ending, finish};
use super::attempts::Attempt;
use super::rows::{get_count, get_json};
use super::types::AttemptEnd;
use super::writer::Tx;
use super::{Store, StoreError};
use crate::domain::{AfterLoss, AttemptId, JobError, JobSpec, LossCause, LossHistory, RetryPolicy};

/// What the retry policy needs to know, in the transaction that acts on it.
const HISTORY: &str = "SELECT job.spec, job.micro_batch_divisor, \
         (SELECT COUNT(*) FROM attempt WHERE attempt.job_id = job.id AND attempt.round = job.round \
              AND outcome = 'lost' AND loss_cause IS NOT 'out_of_memory') AS losses \
     FROM job WHERE id = ?1";

impl Store {
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
    let ending = match end {
        _ if attempt.cancel_requested => Ending::Cancelled,
        AttemptEnd::Fail(error) => Ending::Failed { error },
        AttemptEnd::Return { .. } | AttemptEnd::Lost { .. } if attempt.pause_requested => {
            Ending::Paused
        }
        AttemptEnd::Return { reason } => Ending::Returned { reason },
        AttemptEnd::Lost {
            cause,
            error,
            policy,
        } => lost(tx, &attempt, cause, error, &policy).await?,
    };
    let at = tx.now;
    finish(tx, &attempt, None, at, ending).await?;
    Ok(true)
}

async fn lost(
    tx: &mut Tx,
    attempt: &Attempt,
    cause: LossCause,
    error: JobError,
    policy: &RetryPolicy,
) -> Result<Ending, StoreError> {
    let row = sqlx::query(HISTORY)
        .bind(attempt.job_id.to_string())
        .fetch_one(&mut tx.conn)
        .await?;
    let spec: JobSpec = get_json(&row, "spec")?;
    let (_, random) = tx.ids.next_uuid().as_u64_pair();
    let history = LossHistory {
        losses: get_count(&row, "losses")?,
        micro_batch_divisor: get_count(&row, "micro_batch_divisor")?,
        micro_batch: spec.training_args.per_device_train_batch_size,
        jitter: random,
    };
    Ok(match policy.after(cause, &error, &history) {
        AfterLoss::Again {
            delay_ms,
            micro_batch_divisor,
        } => Ending::Lost {
            reason: reason(&error, delay_ms, &history, micro_batch_divisor),
            cause,
            delay_ms,
            micro_batch_divisor,
        },
        AfterLoss::Fail(error) => Ending::Failed { error },
    })
}

/// What the job's log says about it.
fn reason(error: &JobError, delay_ms: i64, history: &LossHistory, divisor: u32) -> String {
    let message = &error.message;
    if divisor > history.micro_batch_divisor {
        let rows = history.micro_batch.div_ceil(divisor);
        return format!("{message}; going on with micro-batches of {rows} rows, batch unchanged");
    }
    let (seconds, tenths) = (delay_ms / 1000, delay_ms % 1000 / 100);
    format!("{message}; trying again in {seconds}.{tenths} s")
}
