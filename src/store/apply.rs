//! Applying a trainer's messages, and the one way an attempt ends.

use super::attempts::Attempt;
use super::claim::hash_token;
use super::events::{Origin, Place, append, insert_event};
use super::rows::{changed_rows, exactly_one, to_i64, to_json};
use super::writer::Tx;
use super::{Store, StoreError, checkpoints, metrics};
use crate::domain::{
    AttemptId, Command, ErrorCode, Event, JobError, JobId, LossCause, Message, MessagesResponse,
    Phase, Progress, Status, Timestamp,
};

impl Store {
    /// Applies messages in order, each at most once, renews the lease, answers what comes next.
    /// Final events end the attempt and the job in the same transaction. `Requeued` from a trainer gives
    /// the job back: it is queued again and the attempt does not count as lost.
    ///
    /// # Errors
    /// `Fenced` for a wrong token or an attempt that is over. A resend of messages that were all applied
    /// before the attempt ended is answered once more: its first answer may have been lost.
    pub async fn record_messages(
        &self,
        attempt: AttemptId,
        token: &str,
        messages: Vec<Message>,
        lease_ms: i64,
    ) -> Result<MessagesResponse, StoreError> {
        let token_sha256 = hash_token(token);
        self.write(move |tx| Box::pin(record(tx, attempt, token_sha256, messages, Some(lease_ms))))
            .await
    }
}

/// Without `lease_ms` the lease stays as it is.
pub(super) async fn record(
    tx: &mut Tx,
    id: AttemptId,
    token_sha256: String,
    messages: Vec<Message>,
    lease_ms: Option<i64>,
) -> Result<MessagesResponse, StoreError> {
    let mut attempt = Attempt::load(tx, id).await?.ok_or(StoreError::Fenced)?;
    attempt.check_token(&token_sha256)?;
    if attempt.is_over {
        let newest = messages.iter().map(|message| message.seq).max();
        return match newest {
            Some(seq) if seq <= attempt.acked_seq => answer(tx, &attempt).await,
            _ => Err(StoreError::Fenced),
        };
    }
    for message in messages {
        if message.seq <= attempt.acked_seq {
            continue;
        }
        // After a gap nothing may be applied, or the missing message would come too late.
        if message.seq != attempt.acked_seq + 1 {
            break;
        }
        attempt.is_over = apply(tx, &attempt, &message).await?;
        attempt.acked_seq = message.seq;
        if attempt.is_over {
            break;
        }
    }
    let result = sqlx::query(
        "UPDATE attempt SET acked_seq = ?2, lease_expires_at = \
                 CASE WHEN lease_expires_at < ?3 THEN ?3 ELSE lease_expires_at END \
             WHERE id = ?1",
    )
    .bind(id.to_string())
    .bind(to_i64(attempt.acked_seq))
    .bind(lease_ms.map_or(0, |ms| tx.now.plus_ms(ms).0))
    .execute(&mut tx.conn)
    .await?;
    exactly_one(&result)?;
    answer(tx, &attempt).await
}

async fn answer(tx: &mut Tx, attempt: &Attempt) -> Result<MessagesResponse, StoreError> {
    let command = if attempt.is_over {
        Command::Continue
    } else if attempt.cancel_requested {
        Command::Cancel
    } else if attempt.pause_requested {
        Command::Pause
    } else {
        Command::Continue
    };
    Ok(MessagesResponse {
        acked_seq: attempt.acked_seq,
        command,
        jobs_on_device: attempt.jobs_on_device(tx).await?,
    })
}

/// Applies one message; true if it ended the attempt.
async fn apply(tx: &mut Tx, attempt: &Attempt, message: &Message) -> Result<bool, StoreError> {
    let job = attempt.job_id;
    // The trainer knows best when it happened, but not before it existed and not in the future.
    let at = message
        .at
        .max(attempt.created_at)
        .min(tx.now.max(attempt.created_at));
    let origin = Origin {
        attempt: Some(attempt.number),
        message_seq: Some(to_i64(message.seq)),
        at,
    };
    let ending = match &message.event {
        Event::Progress(progress) => return set_progress(tx, job, progress).await.map(|()| false),
        Event::Phase { phase } => {
            set_phase(tx, job, *phase).await?;
            append(tx, job, origin, &message.event).await?;
            return Ok(false);
        }
        Event::Log { .. } | Event::ClassificationReport { .. } => {
            append(tx, job, origin, &message.event).await?;
            return Ok(false);
        }
        Event::Metrics {
            step,
            epoch,
            values,
        } => {
            metrics::record(tx, job, origin, (*step, *epoch), values).await?;
            return Ok(false);
        }
        Event::Checkpoint(record) => {
            checkpoints::insert(tx, job, attempt.number, origin, record).await?;
            return Ok(false);
        }
        Event::CheckpointRemoved { step } => {
            checkpoints::remove(tx, job, origin, *step).await?;
            return Ok(false);
        }
        // Said by the server alone; from a trainer they mean nothing.
        Event::Queued {}
        | Event::Started { .. }
        | Event::Paused {}
        | Event::Resumed {}
        | Event::Retried {} => return Ok(false),
        Event::Requeued { .. } if attempt.cancel_requested => Ending::Cancelled,
        Event::Requeued { .. } if attempt.pause_requested => Ending::Paused,
        Event::Requeued { reason } => Ending::Returned {
            reason: reason.clone(),
        },
        Event::Succeeded { model_step } if checkpoints::exists(tx, job, *model_step).await? => {
            Ending::Succeeded {
                model_step: *model_step,
            }
        }
        Event::Succeeded { model_step } => Ending::Failed {
            error: without_model(*model_step),
        },
        Event::Failed { error } if error.code == ErrorCode::OutOfMemory && attempt.may_share => {
            crowded_out(attempt, error)
        }
        Event::Failed { error } => Ending::Failed {
            error: error.clone(),
        },
        Event::Cancelled {} => Ending::Cancelled,
    };
    finish(tx, attempt, origin.message_seq, at, ending).await?;
    Ok(true)
}

/// A success nobody could use. The trainer is wrong, not the job; but trying again would end the same way.
fn without_model(step: u64) -> JobError {
    let message = format!(
        "the trainer reported success with the checkpoint of step {step}, but never that checkpoint"
    );
    JobError::new(ErrorCode::CheckpointFailed, message)
        .hint("this is a fault of the trainer; the job's `trainer.log` on the server says more")
}

/// Memory was too little on a card that others may have been using: no fault of the job's, until it has had a card
/// of its own. That is what the next attempt gets.
fn crowded_out(attempt: &Attempt, error: &JobError) -> Ending {
    if attempt.cancel_requested {
        return Ending::Cancelled;
    }
    if attempt.pause_requested {
        return Ending::Paused;
    }
    Ending::Lost {
        reason: format!("{}; trying again on a GPU of its own", error.message),
        cause: LossCause::OutOfMemory,
        delay_ms: 0,
        micro_batch_divisor: attempt.micro_batch_divisor,
    }
}

async fn set_progress(tx: &mut Tx, job: JobId, progress: &Progress) -> Result<(), StoreError> {
    let result = sqlx::query("UPDATE job SET progress = ?2 WHERE id = ?1 AND status = 'running'")
        .bind(job.to_string())
        .bind(to_json(progress)?)
        .execute(&mut tx.conn)
        .await?;
    tx.touch(job);
    exactly_one(&result)
}

async fn set_phase(tx: &mut Tx, job: JobId, phase: Phase) -> Result<(), StoreError> {
    let result = sqlx::query("UPDATE job SET phase = ?2 WHERE id = ?1 AND status = 'running'")
        .bind(job.to_string())
        .bind(phase.as_str())
        .execute(&mut tx.conn)
        .await?;
    exactly_one(&result)
}

/// How an attempt ends, and with it what becomes of its job.
pub(super) enum Ending {
    Succeeded {
        model_step: u64,
    },
    Failed {
        error: JobError,
    },
    Cancelled,
    /// Given back in good order: queued again, not counted.
    Returned {
        reason: String,
    },
    /// Given back because a pause was asked for.
    Paused,
    /// The trainer is gone: queued again after the delay, counted.
    Lost {
        reason: String,
        cause: LossCause,
        delay_ms: i64,
        micro_batch_divisor: u32,
    },
}

impl Ending {
    fn outcome(&self) -> &'static str {
        match self {
            Self::Succeeded { .. } => "succeeded",
            Self::Failed { .. } => "failed",
            Self::Cancelled => "cancelled",
            Self::Returned { .. } | Self::Paused => "returned",
            Self::Lost { .. } => "lost",
        }
    }

    fn loss_cause(&self) -> Option<LossCause> {
        match self {
            Self::Lost { cause, .. } => Some(*cause),
            _ => None,
        }
    }

    fn status(&self) -> Status {
        match self {
            Self::Succeeded { .. } => Status::Succeeded,
            Self::Failed { .. } => Status::Failed,
            Self::Cancelled => Status::Cancelled,
            Self::Paused => Status::Paused,
            Self::Returned { .. } | Self::Lost { .. } => Status::Queued,
        }
    }

    fn event(self) -> Event {
        match self {
            Self::Succeeded { model_step } => Event::Succeeded { model_step },
            Self::Failed { error } => Event::Failed { error },
            Self::Cancelled => Event::Cancelled {},
            Self::Paused => Event::Paused {},
            Self::Returned { reason } | Self::Lost { reason, .. } => Event::Requeued { reason },
        }
    }
}

/// Ends the attempt, moves the job on and tells of it, all or nothing. The only way out of `running`.
pub(super) async fn finish(
    tx: &mut Tx,
    attempt: &Attempt,
    message_seq: Option<i64>,
    at: Timestamp,
    ending: Ending,
) -> Result<(), StoreError> {
    let result = sqlx::query(
        "UPDATE attempt SET outcome = ?2, ended_at = ?3, loss_cause = ?4 \
         WHERE id = ?1 AND ended_at IS NULL",
    )
    .bind(attempt.id.to_string())
    .bind(ending.outcome())
    .bind(tx.now.0)
    .bind(ending.loss_cause().map(LossCause::as_str))
    .execute(&mut tx.conn)
    .await?;
    exactly_one(&result)?;

    let status = ending.status();
    let (model_step, error) = match &ending {
        Ending::Succeeded { model_step } => (Some(to_i64(*model_step)), None),
        Ending::Failed { error } => (None, Some(to_json(error)?)),
        _ => (None, None),
    };
    let (not_before, divisor) = match &ending {
        Ending::Lost {
            delay_ms,
            micro_batch_divisor,
            ..
        } => (tx.now.plus_ms(*delay_ms).0, Some(*micro_batch_divisor)),
        _ => (0, None),
    };
    let row = sqlx::query(
        "UPDATE job SET status = ?3, phase = NULL, model_step = ?4, error = ?5, finished_at = ?6, \
             cancel_requested_at = NULL, pause_requested_at = NULL, not_before = ?7, \
             micro_batch_divisor = COALESCE(?8, micro_batch_divisor), last_seq = last_seq + 1 \
         WHERE id = ?1 AND status = 'running' AND attempt = ?2 RETURNING last_seq, round",
    )
    .bind(attempt.job_id.to_string())
    .bind(attempt.number)
    .bind(status.as_str())
    .bind(model_step)
    .bind(error)
    .bind(status.is_final().then_some(tx.now.0))
    .bind(not_before)
    .bind(divisor)
    .fetch_optional(&mut tx.conn)
    .await?;
    let place = Place::read(&row.ok_or_else(|| changed_rows(0))?)?;

    let origin = Origin {
        attempt: Some(attempt.number),
        message_seq,
        at,
    };
    insert_event(tx, attempt.job_id, place, origin, &ending.event()).await
}
