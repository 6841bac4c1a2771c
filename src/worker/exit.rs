//! What a trainer's exit means for its attempt.

use std::fmt;
use std::path::PathBuf;

use nix::sys::signal::Signal;

use crate::domain::{AttemptId, ErrorCode, HUNG_EXIT_CODE, JobError, LossCause, RetryPolicy};
use crate::store::AttemptEnd;

/// The trainer was called wrongly; trying again would end the same way. clap's exit code for usage errors.
const BAD_USAGE: i32 = 2;

/// What Rust's allocator prints before it aborts.
const ALLOCATION_FAILED: &str = "memory allocation of ";

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
    /// Its messages, sent or not.
    pub spool: PathBuf,
    /// The last lines it printed.
    pub log_tail: String,
    /// The kernel's out-of-memory killer struck on this machine while it ran.
    pub oom_kill_seen: bool,
}

/// How the attempt ends if the trainer reported no end.
pub(super) fn verdict(exit: &TrainerExit, policy: &RetryPolicy) -> AttemptEnd {
    if exit.cause == ExitCause::Code(BAD_USAGE) {
        let message = with_tail("the trainer process refused its arguments".to_owned(), exit);
        let error = JobError::new(ErrorCode::TrainerStartFailed, message).hint(SEE_LOG);
        return AttemptEnd::Fail(error);
    }
    let cause = loss_cause(exit);
    AttemptEnd::Lost {
        cause,
        error: explain(cause, exit),
        policy: *policy,
    }
}

fn loss_cause(exit: &TrainerExit) -> LossCause {
    let killed_by = |signal: Signal| exit.cause == ExitCause::Signal(signal as i32);
    if exit.cause == ExitCause::Code(HUNG_EXIT_CODE) {
        LossCause::Hung
    } else if (killed_by(Signal::SIGKILL) && exit.oom_kill_seen)
        || (killed_by(Signal::SIGABRT) && exit.log_tail.contains(ALLOCATION_FAILED))
    {
        LossCause::OutOfMemory
    } else {
        LossCause::Died
    }
}

const SEE_LOG: &str = "the job's `trainer.log` on the server says more";

fn explain(cause: LossCause, exit: &TrainerExit) -> JobError {
    let what = format!("the trainer process {}", exit.cause);
    match cause {
        LossCause::Hung => JobError::new(
            ErrorCode::TrainerHung,
            with_tail(
                "the trainer gave up on a step that took too long".to_owned(),
                exit,
            ),
        )
        .hint(SEE_LOG),
        LossCause::OutOfMemory => JobError::new(
            ErrorCode::OutOfMemory,
            format!("the trainer ran out of memory: {what}"),
        ),
        LossCause::Died | LossCause::Silent => {
            let message = match exit.cause {
                ExitCause::Code(0) => {
                    "the trainer process exited without reporting an end".to_owned()
                }
                ExitCause::Code(_) => with_tail(what, exit),
                ExitCause::Signal(_) | ExitCause::Unknown => what,
            };
            let mut error = JobError::new(ErrorCode::TrainerDied, message);
            error.hint = hint(exit.cause).map(str::to_owned);
            error
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
    match cause {
        ExitCause::Code(0) => None,
        ExitCause::Signal(number) if number == Signal::SIGKILL as i32 => {
            Some("somebody, or something, killed it from outside: see the system's log")
        }
        _ => Some(SEE_LOG),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn exit(cause: ExitCause) -> TrainerExit {
        TrainerExit {
            attempt_id: AttemptId(Uuid::nil()),
            cause,
            spool: PathBuf::new(),
            log_tail: "thread panicked".to_owned(),
            oom_kill_seen: false,
        }
    }

    fn lost(exit: &TrainerExit) -> (LossCause, JobError) {
        match verdict(exit, &RetryPolicy::default()) {
            AttemptEnd::Lost { cause, error, .. } => (cause, error),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_exit_is_explained() {
        let (cause, error) = lost(&exit(ExitCause::Signal(9)));
        assert_eq!(cause, LossCause::Died);
        assert_eq!(error.code, ErrorCode::TrainerDied);
        assert_eq!(
            error.message,
            "the trainer process was killed by signal 9 (SIGKILL)"
        );
        assert!(error.hint.unwrap().contains("from outside"));

        let (_, error) = lost(&exit(ExitCause::Code(101)));
        assert_eq!(
            error.message,
            "the trainer process exited with code 101; its last words:\nthread panicked"
        );

        let (_, error) = lost(&exit(ExitCause::Code(0)));
        assert_eq!(error.hint, None);
    }

    #[test]
    fn memory_is_told_from_other_deaths() {
        let mut killed = exit(ExitCause::Signal(9));
        killed.oom_kill_seen = true;
        let (cause, error) = lost(&killed);
        assert_eq!(cause, LossCause::OutOfMemory);
        assert_eq!(error.code, ErrorCode::OutOfMemory);
        let mut aborted = exit(ExitCause::Signal(6));
        assert_eq!(lost(&aborted).0, LossCause::Died);
        aborted.log_tail = "memory allocation of 4096 bytes failed".to_owned();
        assert_eq!(lost(&aborted).0, LossCause::OutOfMemory);
        // Somebody else's process may have been the victim: a crash stays a crash.
        let mut crashed = exit(ExitCause::Signal(11));
        crashed.oom_kill_seen = true;
        assert_eq!(lost(&crashed).0, LossCause::Died);
    }

    #[test]
    fn a_hung_step_is_told_from_a_crash() {
        let (cause, error) = lost(&exit(ExitCause::Code(HUNG_EXIT_CODE)));
        assert_eq!(cause, LossCause::Hung);
        assert_eq!(error.code, ErrorCode::TrainerHung);
    }

    #[test]
    fn bad_usage_is_not_tried_again() {
        let AttemptEnd::Fail(error) = verdict(&exit(ExitCause::Code(2)), &RetryPolicy::default())
        else {
            panic!("trying again would end the same way")
        };
        assert_eq!(error.code, ErrorCode::TrainerStartFailed);
    }
}
