//! Everything that happens to a job, as data. The store keeps these, SSE replays them, the CLI draws them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{CheckpointRecord, Device, JobError, Phase};

/// How far a running job is. Only the newest one is kept; it is not part of the event log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Progress {
    /// Optimizer steps taken.
    pub global_step: u64,
    /// Optimizer steps in all.
    pub total_steps: u64,
    /// Epochs done, fractional.
    pub epoch: f64,
    /// `global_step / total_steps`, 0 to 100.
    pub percent: f64,
    /// Training samples per second of training time, evaluation and saving not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples_per_second: Option<f64>,
    /// Tokens per second of training time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// Estimated seconds until the job ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_s: Option<f64>,
    /// Training loss of the newest step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
}

/// Severity of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// Worth knowing.
    Info,
    /// Something to look at; the job goes on.
    Warning,
    /// Something failed.
    Error,
}

/// One thing that happened. In JSON: `{"type": "metrics", "data": {…}}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "type", content = "data", rename_all = "snake_case")]
pub enum Event {
    /// The job was accepted and waits.
    Queued {},
    /// An attempt began: a trainer process was started for the job.
    Started {
        /// 1 for the first attempt.
        attempt: u32,
        /// What it trains on.
        #[serde(default)]
        device: Device,
    },
    /// The job does something else now.
    Phase {
        /// What it does.
        phase: Phase,
    },
    /// A line worth keeping.
    Log {
        /// Severity.
        level: LogLevel,
        /// The line, at most 4 KiB.
        message: String,
    },
    /// How far training is. Updates the job; never stored as an event.
    Progress(Progress),
    /// Numbers with HF's names: `loss, grad_norm, learning_rate` while training, `eval_*` after an
    /// evaluation, `train_runtime, train_samples_per_second, …` at the end. On a GPU also, every ten seconds and at the
    /// end: `gpu_utilization_percent`, `gpu_power_w` (both of the card, means since the last), `gpu_memory_bytes` (most
    /// that this trainer held since the last), `gpu_energy_j` (of this job so far, over all attempts; a card that
    /// several jobs share is charged to them in equal parts).
    Metrics {
        /// `global_step` they belong to.
        step: u64,
        /// Epochs done, fractional.
        epoch: f64,
        /// Values by name. Never NaN or infinite.
        values: BTreeMap<String, f64>,
    },
    /// The evaluation of the final model, per class.
    ClassificationReport {
        /// `global_step` it belongs to.
        step: u64,
        /// One entry per label, in label-id order.
        classes: Vec<ClassResult>,
        /// Share of the most frequent label of the evaluation set: what always guessing it would score.
        majority_share: f64,
    },
    /// A checkpoint was published.
    Checkpoint(CheckpointRecord),
    /// Old checkpoints were removed by `save_total_limit`.
    CheckpointRemoved {
        /// Its step.
        step: u64,
    },
    /// The attempt ended without finishing; the job waits for another.
    Requeued {
        /// Why.
        reason: String,
    },
    /// Stopped at a checkpoint on request; waits to be resumed.
    Paused {},
    /// Queued again after a pause.
    Resumed {},
    /// Queued again on request after it had failed or been cancelled. A job that is retried ends once more.
    Retried {},
    /// Final: done.
    Succeeded {
        /// Step of the checkpoint that is the trained model.
        model_step: u64,
    },
    /// Final: failed.
    Failed {
        /// Why.
        error: JobError,
    },
    /// Final: stopped on request.
    Cancelled {},
}

/// One label's results on the evaluation set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ClassResult {
    /// The label.
    pub label: String,
    /// Of those predicted as this label, how many are.
    pub precision: f64,
    /// Of those that are this label, how many were predicted so.
    pub recall: f64,
    /// Harmonic mean of both.
    pub f1: f64,
    /// Rows of this label.
    pub support: u64,
}

impl Event {
    /// The `type` word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Queued {} => "queued",
            Self::Started { .. } => "started",
            Self::Phase { .. } => "phase",
            Self::Log { .. } => "log",
            Self::Progress(_) => "progress",
            Self::Metrics { .. } => "metrics",
            Self::ClassificationReport { .. } => "classification_report",
            Self::Checkpoint(_) => "checkpoint",
            Self::CheckpointRemoved { .. } => "checkpoint_removed",
            Self::Requeued { .. } => "requeued",
            Self::Paused {} => "paused",
            Self::Resumed {} => "resumed",
            Self::Retried {} => "retried",
            Self::Succeeded { .. } => "succeeded",
            Self::Failed { .. } => "failed",
            Self::Cancelled {} => "cancelled",
        }
    }

    /// Whether this event ends the job (until it is retried).
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Succeeded { .. } | Self::Failed { .. } | Self::Cancelled {}
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_in_json_is_the_kind() {
        let events = [
            Event::Queued {},
            Event::Started {
                attempt: 1,
                device: Device::Cpu,
            },
            Event::Progress(Progress::default()),
            Event::Succeeded { model_step: 3 },
            Event::Cancelled {},
        ];
        for event in events {
            let json = serde_json::to_value(&event).unwrap();
            assert_eq!(json["type"], event.kind());
            assert_eq!(serde_json::from_value::<Event>(json).unwrap(), event);
        }
    }

    #[test]
    fn an_attempt_of_an_earlier_release_was_on_the_processor() {
        let json = r#"{"type": "started", "data": {"attempt": 2}}"#;
        let event: Event = serde_json::from_str(json).unwrap();
        let device = Device::Cpu;
        assert_eq!(event, Event::Started { attempt: 2, device });
    }
}
