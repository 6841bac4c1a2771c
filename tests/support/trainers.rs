//! Trainer processes as the system sees them.

use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The trainers of one data directory. Dropping it ends those that are left.
pub struct Trainers(PathBuf);

impl Trainers {
    pub fn of(data_dir: &Path) -> Self {
        Self(data_dir.to_owned())
    }

    /// All that run now.
    pub fn pids(&self) -> Vec<Pid> {
        self.matching(&self.0.join("jobs"))
    }

    /// Those of this job.
    pub fn of_job(&self, job: &str) -> Vec<Pid> {
        self.matching(&self.0.join("jobs").join(job))
    }

    /// The one of this attempt, if it runs.
    pub fn of_attempt(&self, job: &str, attempt: u32) -> Option<Pid> {
        let dir = self.0.join("jobs").join(job).join("attempts");
        self.matching(&dir.join(attempt.to_string())).pop()
    }

    fn matching(&self, attempt_dir: &Path) -> Vec<Pid> {
        let wanted = std::fs::canonicalize(attempt_dir).unwrap_or(attempt_dir.to_owned());
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
                continue;
            };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let arguments: Vec<_> = line.split(|byte| *byte == 0).collect();
            let named = arguments
                .iter()
                .any(|text| Path::new(&*String::from_utf8_lossy(text)).starts_with(&wanted));
            if arguments.get(1) == Some(&&b"train"[..]) && named {
                found.push(Pid::from_raw(pid));
            }
        }
        found
    }
}

impl Drop for Trainers {
    fn drop(&mut self) {
        for pid in self.pids() {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

/// Whether this process runs; one that is dead and unburied does not.
pub fn is_alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().unwrap_or_default().trim();
    !state.is_empty() && !state.starts_with('Z')
}
