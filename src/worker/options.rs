//! How the worker behaves.

use std::path::PathBuf;

use super::slots::Slots;
use crate::artifacts::DataDir;
use crate::domain::{ModelShape, RetryPolicy};

/// How the worker behaves.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// What jobs are trained on.
    pub slots: Slots,
    /// The shape of the model that a job names, if it is on this machine already. Asked where jobs share a card; may
    /// read files.
    pub model_shape: fn(&DataDir, &str) -> Option<ModelShape>,
    /// The server's data directory.
    pub data_dir: DataDir,
    /// How long the driver may take to say what is free on its cards. It takes milliseconds, or is broken.
    pub driver_patience_ms: u64,
    /// Where trainers reach this server, such as `http://127.0.0.1:8080`.
    pub server_url: String,
    /// The program whose `train` subcommand is the trainer: this executable.
    pub trainer_program: PathBuf,
    /// A trainer that reports nothing for this long is lost.
    pub lease_ms: i64,
    /// Trainers report at least this often.
    pub heartbeat_ms: u64,
    /// Passed on as `--threads`; without it the trainer chooses.
    pub threads_per_trainer: Option<u32>,
    /// What becomes of a job that lost its trainer. A new attempt goes on from the newest checkpoint.
    pub retry: RetryPolicy,
    /// After a cancel or a pause the trainer has this long to end by itself; then SIGTERM.
    pub cancel_grace_ms: i64,
    /// From SIGTERM to SIGKILL.
    pub kill_after_ms: u64,
}

impl WorkerOptions {
    /// One slot on the processor, and times that suit one machine.
    pub fn new(data_dir: DataDir, server_url: String, trainer_program: PathBuf) -> Self {
        Self {
            slots: Slots::Cpu(1),
            model_shape: |_, _| None,
            driver_patience_ms: 5_000,
            data_dir,
            server_url,
            trainer_program,
            lease_ms: 30_000,
            heartbeat_ms: 2_000,
            threads_per_trainer: None,
            retry: RetryPolicy::default(),
            cancel_grace_ms: 10_000,
            kill_after_ms: 5_000,
        }
    }

    /// The lease, but never under three heartbeats: one slow answer must not fence a healthy trainer.
    pub fn effective_lease_ms(&self) -> i64 {
        let three = i64::try_from(self.heartbeat_ms.saturating_mul(3)).unwrap_or(i64::MAX);
        self.lease_ms.max(three)
    }
}
