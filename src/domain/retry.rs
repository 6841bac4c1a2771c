//! What becomes of a job whose trainer was lost, by cause.
//!
//! | cause | the job |
//! |---|---|
//! | died, silent, hung | is queued again after a pause that grows; after the third loss it fails as `poisoned` |
//! | out of memory | is queued again with micro-batches of half the size; fails when they are down to one row |
//!
//! A job given back in good order (server stopped, trainer told to leave) is no loss and is not counted.

use serde::{Deserialize, Serialize};

use super::{ErrorCode, JobError};

/// Why a trainer is gone without having reported an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossCause {
    /// The process ended: a crash, a signal, an exit without a report.
    Died,
    /// Its lease ran out.
    Silent,
    /// Its own watchdog gave up on a step.
    Hung,
    /// The system had no memory left for it.
    OutOfMemory,
}

impl LossCause {
    /// The word in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Died => "died",
            Self::Silent => "silent",
            Self::Hung => "hung",
            Self::OutOfMemory => "out_of_memory",
        }
    }
}

/// How often, and how soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Losses (memory apart) after which a job is held to be poisoned.
    pub max_attempts: u32,
    /// Pause after the first loss; each further one is four times as long.
    pub first_delay_ms: i64,
    /// No pause is longer, jitter apart.
    pub max_delay_ms: i64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 3,
            first_delay_ms: 1_000,
            max_delay_ms: 60_000,
        }
    }
}

/// What is known of the job when a trainer is lost.
#[derive(Clone, Copy, Debug)]
pub struct LossHistory {
    /// Earlier losses that were not for want of memory.
    pub losses: u32,
    /// How many parts micro-batches are split into now.
    pub micro_batch_divisor: u32,
    /// Rows of a micro-batch before splitting.
    pub micro_batch: u32,
    /// Random bits, so that jobs lost together do not come back together.
    pub jitter: u64,
}

/// What becomes of the job.
#[derive(Clone, Debug, PartialEq)]
pub enum AfterLoss {
    /// Queued again, to be claimed after the delay.
    Again {
        /// Milliseconds from now.
        delay_ms: i64,
        /// For the attempts to come.
        micro_batch_divisor: u32,
    },
    /// It fails.
    Fail(JobError),
}

impl RetryPolicy {
    /// Decides by the table above. `error` tells how the trainer was lost.
    pub fn after(&self, cause: LossCause, error: &JobError, history: &LossHistory) -> AfterLoss {
        if cause == LossCause::OutOfMemory {
            return halve(history);
        }
        if history.losses + 1 >= self.max_attempts {
            return AfterLoss::Fail(self.poisoned(error));
        }
        AfterLoss::Again {
            delay_ms: self.delay_ms(history.losses, history.jitter),
            micro_batch_divisor: history.micro_batch_divisor,
        }
    }

    /// `first_delay_ms · 4^losses`, at most `max_delay_ms`, plus up to a quarter.
    fn delay_ms(&self, losses: u32, jitter: u64) -> i64 {
        let grown = self
            .first_delay_ms
            .saturating_mul(4i64.saturating_pow(losses));
        let delay = grown.min(self.max_delay_ms);
        let quarter = u64::try_from(delay / 4).unwrap_or(0);
        delay + i64::try_from(jitter % (quarter + 1)).unwrap_or(0)
    }

    fn poisoned(&self, error: &JobError) -> JobError {
        let message = format!(
            "the job's trainer was lost {} times; the last time: {}",
            self.max_attempts, error.message
        );
        let hint = error
            .hint
            .as_deref()
            .unwrap_or("mend the cause, then `POST /v1/jobs/{id}/retry`");
        JobError::new(ErrorCode::Poisoned, message).hint(hint)
    }
}

fn halve(history: &LossHistory) -> AfterLoss {
    let divisor = history.micro_batch_divisor.saturating_mul(2);
    // 9 rows in 8 parts are micro-batches of 2 and 1: one more halving is left.
    if history.micro_batch_divisor >= history.micro_batch {
        let message = "the trainer ran out of memory even with one row per micro-batch";
        let hint = "lower `max_seq_length`, take a smaller model, or give the server more memory";
        return AfterLoss::Fail(JobError::new(ErrorCode::OutOfMemory, message).hint(hint));
    }
    AfterLoss::Again {
        delay_ms: 0,
        micro_batch_divisor: divisor,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(losses: u32, divisor: u32, jitter: u64) -> LossHistory {
        LossHistory {
            losses,
            micro_batch_divisor: divisor,
            micro_batch: 8,
            jitter,
        }
    }

    fn died() -> JobError {
        JobError::new(ErrorCode::TrainerDied, "killed by signal 9")
    }

    #[test]
    fn pauses_grow_within_their_jitter_and_end_in_poison() {
        let policy = RetryPolicy {
            max_attempts: 6,
            ..RetryPolicy::default()
        };
        for cause in [LossCause::Died, LossCause::Silent, LossCause::Hung] {
            for (losses, base) in [
                (0, 1_000),
                (1, 4_000),
                (2, 16_000),
                (3, 60_000),
                (4, 60_000),
            ] {
                for jitter in [0, 1, 249, u64::MAX] {
                    let after = policy.after(cause, &died(), &history(losses, 2, jitter));
                    let AfterLoss::Again {
                        delay_ms,
                        micro_batch_divisor: 2,
                    } = after
                    else {
                        panic!("{after:?}")
                    };
                    assert!((base..=base + base / 4).contains(&delay_ms), "{delay_ms}");
                }
            }
            let AfterLoss::Fail(error) = policy.after(cause, &died(), &history(5, 2, 0)) else {
                panic!("a sixth loss is one too many")
            };
            assert_eq!(error.code, ErrorCode::Poisoned);
            assert!(error.message.contains("6 times"), "{}", error.message);
            assert!(error.message.contains("signal 9"), "{}", error.message);
        }
    }

    #[test]
    fn memory_is_halved_down_to_one_row_and_never_counts() {
        let policy = RetryPolicy::default();
        let mut divisor = 1;
        for next in [2, 4, 8] {
            let after = policy.after(LossCause::OutOfMemory, &died(), &history(99, divisor, 7));
            let again = AfterLoss::Again {
                delay_ms: 0,
                micro_batch_divisor: next,
            };
            assert_eq!(after, again);
            divisor = next;
        }
        let after = policy.after(LossCause::OutOfMemory, &died(), &history(0, 8, 7));
        let AfterLoss::Fail(error) = after else {
            panic!("a row cannot be split")
        };
        assert_eq!(error.code, ErrorCode::OutOfMemory);
    }
}
