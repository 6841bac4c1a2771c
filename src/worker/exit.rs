//! What a trainer's exit means for its attempt.

use std::fmt;

use nix::sys::signal::Signal;

use crate::domain::{AttemptId, ErrorCode, JobError};
use crate::store::AttemptEnd;

/// The trainer was called wrongly; trying again would end the same way. clap's exit code for usage errors.
const BAD_USAGE: i32 = 2;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExitCause {
    Code(i32),
    Signal(i32),
    /// The operating system did not say.
    Unknown,
}

impl fmt::Display for ExitCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal(number) => match Signal::try_from(number) {
                Ok(signal) => write!(f, "was killed by signal {number} ({signal})"),
                Err(_) => write!(f, "was killed by signal {number}"),
            },
            Self::Unknown => f.write_str("ended in an unknown way"),
        }
    }
}

/// A trainer process is gone.
#[derive(Clone, Debug)]
pub(super) struct TrainerExit {
    pub attempt_id: AttemptId,
    pub cause: ExitCause,
    /// The last lines it printed.
    pub log_tail: String,
}

/// How the attempt ends if the trainer reported no end.
pub(super) fn verdict(exit: &TrainerExit, max_attempts: u32) -> AttemptEnd {
    let message = match exit.cause {
        ExitCause::Code(BAD_USAGE) => {
            with_tail("the trainer process refused its arguments".to_owned(), exit)
        }
        ExitCause::Code(0) => "the trainer process exited without reporting an end".to_owned(),
        ExitCause::Code(_) => with_tail(format!("the trainer process {}", exit.cause), exit),
        ExitCause::Signal(_) | ExitCause::Unknown => format!("the trainer process {}", exit.cause),
    };
    let refused = exit.cause == ExitCause::Code(BAD_USAGE);
    let code = if refused {
        ErrorCode::TrainerStartFailed
    } else {
        ErrorCode::TrainerDied
    };
    let mut error = JobError::new(code, message);
    error.hint = hint(exit.cause).map(str::to_owned);
    if refused {
        AttemptEnd::Fail(error)
    } else {
        AttemptEnd::Requeue {
            error,
            max_attempts,
        }
    }
}

fn with_tail(message: String, exit: &TrainerExit) -> String {
    if exit.log_tail.is_empty() {
        message
    } else {
        format!("{message}; its last words:\n{}", exit.log_tail)
    }
}

fn hint(cause: ExitCause) -> Option<&'static str> {
    let killed = |signal: Signal| cause == ExitCause::Signal(signal as i32);
    if killed(Signal::SIGKILL) {
        Some(
            "the system's out-of-memory killer does this, see its kernel log; a smaller \
             `per_device_train_batch_size` or `max_seq_length` needs less memory",
        )
    } else if matches!(cause, ExitCause::Code(0)) {
        None
    } else {
        Some("the job's `trainer.log` on the server says more")
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn error_after(cause: ExitCause) -> (JobError, bool) {
        let exit = TrainerExit {
            attempt_id: AttemptId(Uuid::nil()),
            cause,
            log_tail: "thread panicked".to_owned(),
        };
        match verdict(&exit, 3) {
            AttemptEnd::Fail(error) => (error, false),
            AttemptEnd::Requeue { error, .. } => (error, true),
            AttemptEnd::Return { .. } => panic!("a death is not a return"),
        }
    }

    #[test]
    fn an_exit_is_explained() {
        let (error, again) = error_after(ExitCause::Signal(9));
        assert!(again);
        assert_eq!(error.code, ErrorCode::TrainerDied);
        assert_eq!(
            error.message,
            "the trainer process was killed by signal 9 (SIGKILL)"
        );
        assert!(error.hint.unwrap().contains("out-of-memory"));

        let (error, again) = error_after(ExitCause::Code(101));
        assert!(again);
        assert_eq!(
            error.message,
            "the trainer process exited with code 101; its last words:\nthread panicked"
        );

        let (error, again) = error_after(ExitCause::Code(0));
        assert!(again);
        assert_eq!(error.hint, None);
    }

    #[test]
    fn bad_usage_is_not_tried_again() {
        let (error, again) = error_after(ExitCause::Code(2));
        assert!(!again);
        assert_eq!(error.code, ErrorCode::TrainerStartFailed);
    }
}
