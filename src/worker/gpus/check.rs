//! Which cards this program can train on. A driver lists cards that a program may have no kernels for, that are too
//! old, or broken; a job that is put there loses all its attempts.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{Card, VISIBLE_ENV};
use crate::child;

/// CUDA takes a second or two to start, and longer where a machine has many cards.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The cards on which `program check-gpu` succeeds. All are asked at the same time, each in a process of its own, so that
/// the server holds none of their memory, and none that hangs or crashes hurts it. The others are told of in the log.
pub fn usable(cards: Vec<Card>, program: &Path, patience: Duration) -> Vec<Card> {
    let answers: Vec<_> = std::thread::scope(|scope| {
        let checks: Vec<_> = cards
            .iter()
            .map(|card| scope.spawn(|| check(card, program, patience)))
            .collect();
        let answer = |check: std::thread::ScopedJoinHandle<'_, _>| {
            check
                .join()
                .unwrap_or_else(|_| Err("the check panicked".to_owned()))
        };
        checks.into_iter().map(answer).collect()
    });
    let answered = cards.into_iter().zip(answers);
    answered
        .filter_map(|(card, answer)| match answer {
            Ok(()) => Some(card),
            Err(reason) => {
                tracing::error!(
                    uuid = card.uuid,
                    name = card.name,
                    reason,
                    "a GPU cannot be used: it gets no jobs"
                );
                None
            }
        })
        .collect()
}

/// # Errors
/// Why not, for people.
fn check(card: &Card, program: &Path, patience: Duration) -> Result<(), String> {
    let mut running = Command::new(program)
        .arg("check-gpu")
        .env(VISIBLE_ENV, &card.uuid)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("the check cannot be started: {error}"))?;
    child::wait(&mut running, patience).map_err(|error| format!("the check failed: {error}"))?;
    // What it says fits into the pipe.
    let output = running
        .wait_with_output()
        .map_err(|error| format!("the check's answer cannot be read: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim();
    Err(match said.strip_prefix("error: ").unwrap_or(said) {
        "" => format!("the check ended with {}", output.status),
        reason => reason.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::testing::card;
    use super::*;

    fn program(dir: &Path, script: &str) -> std::path::PathBuf {
        let path = dir.join("program");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn each_card_answers_for_itself() {
        let dir = tempfile::tempdir().unwrap();
        let script = r#"[ "$1" = check-gpu ] || exit 9
case $CUDA_VISIBLE_DEVICES in
    fine*) exit 0 ;;
    old) echo "error: too old" >&2; exit 1 ;;
    crashes) kill -SEGV $$ ;;
    hangs) exec sleep 60 ;;
esac"#;
        let program = program(dir.path(), script);
        let patience = Duration::from_secs(1);
        let cards = ["fine1", "old", "hangs", "crashes", "fine2"].map(|uuid| card(uuid, 0));
        let left = usable(cards.to_vec(), &program, patience);
        assert_eq!(left, [cards[0].clone(), cards[4].clone()]);
        let reason = |at: usize| check(&cards[at], &program, patience).unwrap_err();
        assert_eq!(reason(1), "too old");
        assert_eq!(reason(2), "the check failed: it was not done within 1 s");
        assert!(reason(3).contains("signal"), "{}", reason(3));
        let gone = check(&cards[0], &dir.path().join("gone"), patience).unwrap_err();
        assert!(gone.contains("cannot be started"), "{gone}");
    }
}
