//! `chandler train`: the trainer process of one attempt.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::domain::{AttemptId, DEVICE_ENV, DeviceKind};
use crate::worker::TOKEN_ENV;
use crate::worker::entry::{self, TrainerArguments};

/// Run one attempt at a job (started by the server)
#[derive(Args, Debug)]
pub struct Train {
    /// Base URL of the server
    #[arg(long)]
    server: String,
    /// The attempt's id
    #[arg(long)]
    attempt: AttemptId,
    /// Folder for the attempt's spool
    #[arg(long)]
    attempt_dir: PathBuf,
    /// Threads to train with
    #[arg(long)]
    threads: Option<usize>,
    /// What to train on, `cpu` or `cuda`
    #[arg(long, env = DEVICE_ENV, default_value = "cpu")]
    device: DeviceKind,
}

impl Train {
    /// Runs the attempt.
    pub fn run(self) -> ExitCode {
        if let Err(error) = super::logs(false, "info") {
            eprintln!("error: {error:#}");
            return ExitCode::from(2);
        }
        let Ok(token) = std::env::var(TOKEN_ENV) else {
            tracing::error!("{TOKEN_ENV} is not set: trainers are started by the server");
            return ExitCode::from(2);
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        entry::run(&TrainerArguments {
            server_url: self.server,
            attempt_id: self.attempt,
            attempt_dir: self.attempt_dir,
            token,
            threads: self.threads.unwrap_or(cores),
            device: self.device,
        })
    }
}
