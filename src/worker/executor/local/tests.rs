use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::domain::JobId;

const SOON: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(600);

struct Fixture {
    folder: TempDir,
    executor: LocalExecutor,
    exits: mpsc::Receiver<TrainerExit>,
    claimed: ClaimedAttempt,
}

impl Fixture {
    /// An executor whose trainer is this shell script.
    fn new(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = write_script(folder.path(), script);
        let mut options = WorkerOptions::new(
            DataDir::at(folder.path()),
            "http://127.0.0.1:9".to_owned(),
            program,
        );
        options.threads_per_trainer = Some(2);
        let (sender, exits) = mpsc::channel(8);
        Self {
            executor: LocalExecutor::new(&options, sender, Arc::default()),
            folder,
            exits,
            claimed: ClaimedAttempt {
                attempt_id: AttemptId(Uuid::from_u128(5)),
                attempt: 2,
                job_id: JobId(Uuid::from_u128(4)),
                token: "secret".to_owned(),
                device: Device::Cpu,
            },
        }
    }

    fn dir(&self) -> PathBuf {
        DataDir::at(self.folder.path()).attempt_dir(self.claimed.job_id, 2)
    }

    async fn exit(&mut self) -> TrainerExit {
        tokio::time::timeout(SOON, self.exits.recv())
            .await
            .unwrap()
            .unwrap()
    }

    /// The script creates `ready` once its traps are set.
    async fn ready(&self) {
        while !self.dir().join("ready").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

pub(crate) fn write_script(folder: &Path, script: &str) -> PathBuf {
    let program = folder.join("fake-trainer");
    // Written by another process: a file this process holds open for writing cannot be executed, and a
    // child that another test forks meanwhile would hold it too.
    let status = std::process::Command::new("sh")
        .args([
            "-c",
            "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$2\"",
            "sh",
            script,
        ])
        .arg(&program)
        .status()
        .unwrap();
    assert!(status.success());
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    program
}

#[tokio::test]
async fn a_trainer_gets_its_arguments_and_its_token_unseen() {
    let mut f = Fixture::new("echo \"$@\"; echo \"token=$CHANDLER_ATTEMPT_TOKEN\"; pwd; exit 0");
    f.executor.start(&f.claimed).unwrap();
    let exit = f.exit().await;
    assert_eq!(exit.cause, ExitCause::Code(0));
    assert_eq!(exit.attempt_id, f.claimed.attempt_id);
    let log = std::fs::read_to_string(f.dir().join("trainer.log")).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    let expected = format!(
        "train --server http://127.0.0.1:9 --attempt {} --attempt-dir {} --threads 2",
        f.claimed.attempt_id,
        f.dir().display()
    );
    assert_eq!(lines[0], expected);
    assert_eq!(lines[1], "token=secret");
    let folder = f.dir().canonicalize().unwrap();
    assert_eq!(Path::new(lines[2]).canonicalize().unwrap(), folder);
}

#[tokio::test]
async fn a_trainer_is_told_its_device_and_sees_no_other_card() {
    let card = Device::Cuda {
        name: "Test Card".to_owned(),
        uuid: "GPU-2".to_owned(),
    };
    let inherited = std::env::var(VISIBLE_ENV).unwrap_or_default();
    for (device, words) in [
        (Device::Cpu, format!("cpu {inherited}")),
        (card, "cuda GPU-2".to_owned()),
    ] {
        let mut f = Fixture::new("echo \"$CHANDLER_DEVICE $CUDA_VISIBLE_DEVICES\"");
        f.claimed.device = device;
        f.executor.start(&f.claimed).unwrap();
        f.exit().await;
        let log = std::fs::read_to_string(f.dir().join("trainer.log")).unwrap();
        assert_eq!(log, format!("{words}\n"));
    }
}

#[tokio::test]
async fn an_exit_code_comes_with_the_last_words() {
    let mut f = Fixture::new("echo out; echo broken >&2; exit 3");
    f.executor.start(&f.claimed).unwrap();
    let exit = f.exit().await;
    assert_eq!(exit.cause, ExitCause::Code(3));
    assert_eq!(exit.log_tail, "out\nbroken");
}

#[tokio::test]
async fn a_signal_is_told_as_such() {
    let mut f = Fixture::new("kill -9 $$");
    f.executor.start(&f.claimed).unwrap();
    assert_eq!(f.exit().await.cause, ExitCause::Signal(9));
}

#[tokio::test]
async fn a_trainer_asked_to_stop_may_leave_in_its_own_way() {
    let script = "trap 'exit 7' TERM; : > ready; while :; do sleep 0.01; done";
    let mut f = Fixture::new(script);
    f.executor.start(&f.claimed).unwrap();
    f.ready().await;
    assert_eq!(f.executor.live(), [f.claimed.attempt_id]);
    assert!(f.executor.stop(f.claimed.attempt_id, LONG));
    assert_eq!(f.exit().await.cause, ExitCause::Code(7));
    while !f.executor.live().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(!f.executor.stop(f.claimed.attempt_id, LONG));
}

#[tokio::test]
async fn a_trainer_that_ignores_sigterm_is_killed_with_its_children() {
    // The child writes its process id; it is in the trainer's group.
    let script = "trap '' TERM; sleep 600 & echo $! > child; : > ready; wait; wait";
    let mut f = Fixture::new(script);
    f.executor.start(&f.claimed).unwrap();
    f.ready().await;
    let child: i32 = std::fs::read_to_string(f.dir().join("child"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    // Asked patiently, then impatiently: the shorter grace counts.
    assert!(f.executor.stop(f.claimed.attempt_id, LONG));
    assert!(f.executor.stop(f.claimed.attempt_id, Duration::ZERO));
    assert_eq!(f.exit().await.cause, ExitCause::Signal(9));
    while is_running(child) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A killed process whose new parent has not collected it yet counts as gone.
fn is_running(pid: i32) -> bool {
    let alive = nix::sys::signal::kill(Pid::from_raw(pid), None).is_ok();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    alive && !stat.contains(") Z ")
}

#[tokio::test]
async fn a_program_that_cannot_be_started_is_explained() {
    let mut f = Fixture::new("exit 0");
    f.executor.program = f.folder.path().join("nothing-here");
    let error = f.executor.start(&f.claimed).unwrap_err();
    assert_eq!(error.code, ErrorCode::TrainerStartFailed);
    assert!(f.executor.live().is_empty());
}
