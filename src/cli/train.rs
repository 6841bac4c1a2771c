//! `chandler train`: the trainer process of one attempt.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::domain::AttemptId;
use crate::worker::entry::{self, TrainerArguments};

/// Environment variable with the attempt's token: a command line can be read by every user of a machine.
pub const TOKEN_VARIABLE: &str = "CHANDLER_ATTEMPT_TOKEN";

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
}

impl Train {
    /// Runs the attempt.
    pub fn run(self) -> ExitCode {
        crate::telemetry::init(false);
        let Ok(token) = std::env::var(TOKEN_VARIABLE) else {
            tracing::error!("{TOKEN_VARIABLE} is not set: trainers are started by the server");
            return ExitCode::from(2);
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        entry::run(&TrainerArguments {
            server_url: self.server,
            attempt_id: self.attempt,
            attempt_dir: self.attempt_dir,
            token,
            threads: self.threads.unwrap_or(cores),
        })
    }
}
