//! Waiting for a child process, but not for ever.

use std::io;
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How often the child is looked at.
const POLL: Duration = Duration::from_millis(10);

/// Why there is no exit status. The child has ended all the same.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// It was killed at the limit.
    #[error("it was not done within {} s", .0.as_secs_f32())]
    TooLong(Duration),
    /// The system does not say.
    #[error("it cannot be waited for: {0}")]
    Io(#[from] io::Error),
}

/// Waits until the child ends by itself. At the limit it is killed, and if it leads a process group
/// (`CommandExt::process_group(0)`), so are the children it has left there.
///
/// # Errors
/// If it took too long, or the system refuses to tell.
pub fn wait(child: &mut Child, limit: Duration) -> Result<ExitStatus, WaitError> {
    let started = Instant::now();
    let error = loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if started.elapsed() < limit => thread::sleep(POLL),
            Ok(None) => break WaitError::TooLong(limit),
            Err(error) => break error.into(),
        }
    };
    // There is no group of this number if the child leads none.
    if let Ok(id) = i32::try_from(child.id()) {
        killpg(Pid::from_raw(id), Signal::SIGKILL).ok();
    }
    child.kill().ok();
    child.wait().ok();
    Err(error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn the_status_of_a_child_that_ends_in_time() {
        let mut child = shell("exit 3").spawn().unwrap();
        let status = wait(&mut child, Duration::from_secs(60)).unwrap();
        assert_eq!(status.code(), Some(3));
    }

    #[test]
    fn a_child_that_takes_too_long_is_killed_with_its_group_or_alone() {
        for leads in [true, false] {
            // The child of the child holds the pipe open for as long as it lives.
            let script = if leads {
                "sleep 60 & wait"
            } else {
                "exec sleep 60"
            };
            let mut command = shell(script);
            command.stdout(Stdio::piped());
            if leads {
                command.process_group(0);
            }
            let mut child = command.spawn().unwrap();
            let limit = Duration::from_millis(50);
            let error = wait(&mut child, limit).unwrap_err();
            assert!(
                matches!(error, WaitError::TooLong(l) if l == limit),
                "{error}"
            );
            let ended = child.wait_with_output().unwrap();
            assert!(ended.stdout.is_empty() && !ended.status.success());
        }
    }
}
