//! What a trainer and its server say to each other, on loopback and across a network alike.
//!
//! `GET /internal/attempts/{id}/spec` answers [`AttemptSpec`]; `POST /internal/attempts/{id}/messages` takes
//! [`MessagesRequest`] and answers [`MessagesResponse`]. Both carry `Authorization: Bearer <token>`, valid
//! for that attempt only. A wrong token or an attempt that is over answers 409, and the trainer stops at
//! once: that is the fence.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{AttemptId, DatasetLayout, Event, JobId, JobSpec, Timestamp};

/// A trainer ends with this exit code when its watchdog gave up on a step.
pub const HUNG_EXIT_CODE: i32 = 86;

/// Where a dataset's file lies and how to read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetLocation {
    /// The file.
    pub path: PathBuf,
    /// How to read it.
    pub layout: DatasetLayout,
    /// SHA-256 of the file.
    pub sha256: String,
}

/// All that a trainer needs to do its work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttemptSpec {
    /// This attempt.
    pub attempt_id: AttemptId,
    /// Its number, 1 for the job's first.
    pub attempt: u32,
    /// The job.
    pub job_id: JobId,
    /// What to train.
    pub spec: JobSpec,
    /// The training file.
    pub train: DatasetLocation,
    /// The evaluation file, where the spec names one.
    pub eval: Option<DatasetLocation>,
    /// Every micro-batch is split into this many parts: more than 1 after a trainer of this job ran out of
    /// memory. The batch of an optimizer step stays the same.
    #[serde(default = "one")]
    pub micro_batch_divisor: u32,
    /// Joules that GPUs have spent on this job in earlier attempts.
    #[serde(default)]
    pub gpu_energy_j: f64,
    /// The server's data directory, as this trainer sees it.
    pub data_dir: PathBuf,
    /// The trainer reports at least this often.
    pub heartbeat_ms: u64,
}

fn one() -> u32 {
    1
}

/// One report, numbered by the trainer from 1. Resending is harmless: (attempt, seq) is unique.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Number within the attempt, without gaps.
    pub seq: u64,
    /// When it happened, by the trainer's clock.
    pub at: Timestamp,
    /// What happened.
    pub event: Event,
}

/// A batch of messages; empty is a heartbeat.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MessagesRequest {
    /// In order of `seq`.
    pub messages: Vec<Message>,
}

/// What the server wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Go on.
    Continue,
    /// Save a checkpoint, report, leave.
    Pause,
    /// Stop now, keep finished checkpoints, report `cancelled`.
    Cancel,
}

/// The answer to a batch. This one exchange is progress, heartbeat, lease renewal and the way commands travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessagesResponse {
    /// Every message up to this one is committed.
    pub acked_seq: u64,
    /// What to do.
    pub command: Command,
    /// Attempts on this one's card, itself included: what they use together is divided by this.
    #[serde(default = "one")]
    pub jobs_on_device: u32,
}
