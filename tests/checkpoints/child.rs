//! A trainer that can be killed: this test binary once more, in a process of its own.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command as Process, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chandler::domain::{Command, Event};
use chandler::faults::Faults;
use chandler::train::{self, Observer, Outcome};
use serde_json::Value;

use super::lab::Lab;

/// Numbers that depend on the time of day.
pub const TIMED: [&str; 5] = [
    "_runtime",
    "_per_second",
    "train_seconds",
    "peak_resident",
    "total_flos",
];

/// How an attempt is to end before its time.
#[derive(Clone, Debug, Default)]
pub struct Fate {
    pub faults: String,
    pub pause_at: Option<u64>,
    pub kill_after: Option<Duration>,
}

/// Runs one attempt in `run`, whose `job.json` says what to train with the lab in `lab`.
pub fn attempt(lab: &Path, run: &Path, fate: &Fate) -> ExitStatus {
    let mut child = Process::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "checkpoints::child::trainer",
            "--ignored",
            "--test-threads=1",
        ])
        .env("CHANDLER_CHILD_LAB", lab)
        .env("CHANDLER_CHILD_RUN", run)
        .env(
            "CHANDLER_CHILD_PAUSE_AT",
            fate.pause_at.unwrap_or(u64::MAX).to_string(),
        )
        .env("CHANDLER_FAULTS", &fate.faults)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    if let Some(delay) = fate.kill_after {
        std::thread::sleep(delay);
        child.kill().unwrap();
    }
    child.wait().unwrap()
}

/// What the finished training answered, if it is finished.
pub fn model_step(run: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(run.join("outcome")).ok()?;
    text.strip_prefix("finished ")?.parse().ok()
}

#[test]
#[ignore = "a process that the tests of this module start"]
fn trainer() {
    let Ok(lab) = std::env::var("CHANDLER_CHILD_LAB") else {
        return;
    };
    let run = std::env::var("CHANDLER_CHILD_RUN").unwrap();
    let run = Path::new(&run);
    chandler::kernels::pool::set_threads(1);
    chandler::kernels::pool::flush_denormals();
    let spec: Value =
        serde_json::from_slice(&std::fs::read(run.join("job.json")).unwrap()).unwrap();
    let mut job = Lab::at(Path::new(&lab)).job(run, &spec);
    job.faults = Faults::from_env(1).unwrap();
    let spool = Spool {
        file: File::options()
            .create(true)
            .append(true)
            .open(run.join("spool"))
            .unwrap(),
        pause_at: std::env::var("CHANDLER_CHILD_PAUSE_AT")
            .unwrap()
            .parse()
            .unwrap(),
        asked: AtomicU64::new(0),
    };
    let outcome = match train::run(&job, &spool).unwrap() {
        Outcome::Finished { model_step } => format!("finished {model_step}"),
        other => format!("{other:?}"),
    };
    std::fs::write(run.join("outcome"), outcome).unwrap();
}

/// Writes numbers down bit by bit, a line in one piece, so that a kill cuts none in two.
struct Spool {
    file: File,
    pause_at: u64,
    asked: AtomicU64,
}

impl Observer for Spool {
    fn event(&self, event: Event) {
        let mut lines = String::new();
        match event {
            Event::Metrics { step, values, .. } => {
                for (name, value) in values {
                    if !TIMED.iter().any(|timed| name.contains(timed)) {
                        lines += &format!("{step} {name} {:016x}\n", value.to_bits());
                    }
                }
            }
            Event::Log { message, .. } => lines = format!("log {}\n", message.replace('\n', " ")),
            _ => {}
        }
        (&self.file).write_all(lines.as_bytes()).unwrap();
    }

    fn command(&self) -> Command {
        if self.asked.fetch_add(1, Ordering::Relaxed) + 1 >= self.pause_at {
            return Command::Pause;
        }
        Command::Continue
    }
}
