//! Ways to start and stop a trainer. Everything else about it goes through the attempt protocol, which is
//! the same wherever the trainer runs.

mod local;
mod log_tail;
mod oom;

use std::time::Duration;

pub(super) use local::LocalExecutor;
#[cfg(test)]
pub(super) use local::tests::write_script;

use crate::domain::{AttemptId, JobError};
use crate::store::{ClaimedAttempt, OpenAttempt};

/// The attempt's token travels in this environment variable: arguments can be read by every user.
pub const TOKEN_ENV: &str = "CHANDLER_ATTEMPT_TOKEN";

/// A way to start and stop trainers. Exits are told through the channel it was made with.
pub(super) trait Executor: Send + Sync + std::fmt::Debug {
    /// Starts a trainer for this attempt.
    ///
    /// # Errors
    /// `trainer_start_failed`, for the user.
    fn start(&self, claimed: &ClaimedAttempt) -> Result<(), JobError>;

    /// Asks the trainer to leave, kills it after `grace`. Asking again can only shorten the grace. False
    /// if this executor has no such trainer.
    fn stop(&self, attempt: AttemptId, grace: Duration) -> bool;

    /// Trainers that have not ended.
    fn live(&self) -> Vec<AttemptId>;

    /// Whether the trainer of this attempt, started by an earlier server, is known to be gone.
    fn has_ended(&self, _attempt: &OpenAttempt) -> bool {
        false
    }
}
