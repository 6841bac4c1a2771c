//! Trainers as child processes on this machine, each with a process group of its own.
//!
//! A process group, so that a Ctrl-C at the server's terminal does not reach the trainer, and a signal to
//! it reaches whatever it started. Dropping the server does not end its trainers: the next server adopts
//! them through the protocol.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};

use super::{Executor, TOKEN_ENV, log_tail, oom};
use crate::artifacts::DataDir;
use crate::domain::{AttemptId, DEVICE_ENV, Device, ErrorCode, JobError};
use crate::store::{ClaimedAttempt, OpenAttempt};
use crate::worker::exit::{ExitCause, TrainerExit};
use crate::worker::gpus::VISIBLE_ENV;
use crate::worker::options::WorkerOptions;

/// Requests to stop that wait for a trainer's watcher. More say nothing new.
const STOP_QUEUE: usize = 8;

type Live = Arc<Mutex<HashMap<AttemptId, mpsc::Sender<Duration>>>>;

#[derive(Debug)]
pub(crate) struct LocalExecutor {
    program: PathBuf,
    server_url: String,
    data_dir: DataDir,
    threads: Option<u32>,
    exits: mpsc::Sender<TrainerExit>,
    slot_freed: Arc<Notify>,
    live: Live,
}

impl LocalExecutor {
    pub fn new(
        options: &WorkerOptions,
        exits: mpsc::Sender<TrainerExit>,
        slot_freed: Arc<Notify>,
    ) -> Self {
        Self {
            program: options.trainer_program.clone(),
            server_url: options.server_url.clone(),
            data_dir: options.data_dir.clone(),
            threads: options.threads_per_trainer,
            exits,
            slot_freed,
            live: Live::default(),
        }
    }

    fn spawn(&self, claimed: &ClaimedAttempt) -> io::Result<Child> {
        let (job, attempt) = (claimed.job_id, claimed.attempt);
        let dir = self.data_dir.attempt_dir(job, attempt);
        fs::create_dir_all(&dir)?;
        let log = open_log(&self.data_dir.trainer_log(job, attempt))?;
        // The lock belongs to the open file, which the trainer inherits as its output. So the kernel keeps
        // it for exactly as long as the trainer lives, and a later server can ask.
        log.try_lock()?;
        let mut command = Command::new(&self.program);
        command
            .arg("train")
            .args(["--server", &self.server_url])
            .args(["--attempt", &claimed.attempt_id.to_string()])
            .arg("--attempt-dir")
            .arg(&dir)
            .env(TOKEN_ENV, &claimed.token)
            .env(DEVICE_ENV, claimed.device.kind().as_str())
            .current_dir(&dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(false);
        if let Device::Cuda { uuid, .. } = &claimed.device {
            command.env(VISIBLE_ENV, uuid);
        }
        if let Some(threads) = self.threads {
            command.args(["--threads", &threads.to_string()]);
        }
        command.spawn()
    }
}

impl Executor for LocalExecutor {
    fn start(&self, claimed: &ClaimedAttempt) -> Result<(), JobError> {
        let (job, attempt) = (claimed.job_id, claimed.attempt);
        let log = self.data_dir.trainer_log(job, attempt);
        let spool = self.data_dir.events_file(job, attempt);
        let oom_kills = oom::kills();
        let child = self.spawn(claimed).map_err(start_failed)?;
        let (stop, stops) = mpsc::channel(STOP_QUEUE);
        let id = claimed.attempt_id;
        lock(&self.live).insert(id, stop);

        let (live, exits) = (Arc::clone(&self.live), self.exits.clone());
        let slot_freed = Arc::clone(&self.slot_freed);
        tokio::spawn(async move {
            let cause = match watch(child, stops).await {
                Ok(status) => classify(status),
                Err(_) => ExitCause::Unknown,
            };
            let exit = TrainerExit {
                attempt_id: id,
                cause,
                log_tail: log_tail::read(&log),
                oom_kill_seen: oom::kills() > oom_kills,
                spool,
            };
            // Told before it is forgotten: who asks for the living in between still hears of the exit.
            exits.send(exit).await.ok();
            lock(&live).remove(&id);
            slot_freed.notify_one();
        });
        Ok(())
    }

    fn stop(&self, attempt: AttemptId, grace: Duration) -> bool {
        match lock(&self.live).get(&attempt) {
            Some(stop) => {
                stop.try_send(grace).ok();
                true
            }
            None => false,
        }
    }

    fn live(&self) -> Vec<AttemptId> {
        lock(&self.live).keys().copied().collect()
    }

    fn has_ended(&self, open: &OpenAttempt) -> bool {
        match File::open(self.data_dir.trainer_log(open.job_id, open.attempt)) {
            Ok(log) => log.try_lock_shared().is_ok(),
            // Its server died before it could start it.
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }
}

/// Waits for the child's exit, and on request sends SIGTERM, then SIGKILL, to its group. Only this task
/// reaps the child, so its process id cannot belong to another process while it is signalled here.
async fn watch(mut child: Child, mut stops: mpsc::Receiver<Duration>) -> io::Result<ExitStatus> {
    let group = child.id().and_then(|id| i32::try_from(id).ok());
    let signal = |signal: Signal| {
        if let Some(group) = group {
            // It may have ended just now.
            killpg(Pid::from_raw(group), signal).ok();
        }
    };
    let mut kill_at: Option<Instant> = None;
    loop {
        let kill = sleep_until(kill_at.unwrap_or_else(Instant::now));
        tokio::select! {
            status = child.wait() => return status,
            () = kill, if kill_at.is_some() => {
                signal(Signal::SIGKILL);
                return child.wait().await;
            }
            Some(grace) = stops.recv() => {
                if kill_at.is_none() {
                    signal(Signal::SIGTERM);
                }
                let at = Instant::now() + grace;
                kill_at = Some(kill_at.map_or(at, |earlier| earlier.min(at)));
            }
        }
    }
}

fn classify(status: ExitStatus) -> ExitCause {
    match (status.code(), status.signal()) {
        (Some(code), _) => ExitCause::Code(code),
        (None, Some(signal)) => ExitCause::Signal(signal),
        (None, None) => ExitCause::Unknown,
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn start_failed(error: io::Error) -> JobError {
    JobError::new(
        ErrorCode::TrainerStartFailed,
        format!("the trainer process could not be started: {error}"),
    )
    .hint("check the server's data directory, disk space and process limits")
}

fn lock(live: &Live) -> MutexGuard<'_, HashMap<AttemptId, mpsc::Sender<Duration>>> {
    live.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod tests;
