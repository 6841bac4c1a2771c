//! A job's status and what a running one is doing.
//!
//! ```text
//!                 claim                  report
//!      ┌─ queued ───────────► running ───────────────► succeeded
//!      │  ▲ │ ▲ ▲              │ │ │ │
//!      │  │ │ │ └──────────────┘ │ │ └── error, poisoned, out of time ──► failed
//!      │  │ │ │  given back, or  │ │                                        │
//!      │  │ │ │  trainer lost    │ └── cancel ──► cancelled                 │
//!      │  │ │ │  (waits a while) │                ▲  ▲  │                   │
//!      │  │ │ └── resume ─────┐  │ pause          │  │  │                   │
//!      │  │ └── pause ─────► paused ─── cancel ───┘  │  │                   │
//!      └──┼────── cancel ────────────────────────────┘  │                   │
//!         └────── retry ────────────────────────────────┴───────────────────┘
//! ```
//!
//! A running job leaves only with its attempt, in one transaction (`store::finish`). A pause or cancel asked
//! for while it runs travels to the trainer and takes effect when the attempt ends, however it ends; cancel
//! wins over pause, and a success or failure that was reported first wins over both.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a job stands. `succeeded`, `failed` and `cancelled` are final; the last two until a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Waiting for a free slot. Left by a claim, a pause or a cancel.
    Queued,
    /// A trainer holds it. Left when the trainer reports an end, dies, or loses its lease.
    Running,
    /// Stopped at a checkpoint on request; holds no slot.
    Paused,
    /// Final: the trained checkpoint is published.
    Succeeded,
    /// Final: `error` says why.
    Failed,
    /// Final: stopped on request.
    Cancelled,
}

impl Status {
    /// Every status, in the order of a job's life.
    pub const ALL: [Self; 6] = [
        Self::Queued,
        Self::Running,
        Self::Paused,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The word in the database and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the job is over; only a retry brings it back.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Status {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|s| s.as_str() == text)
            .ok_or_else(|| format!("unknown status `{text}`"))
    }
}

/// What a running job is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The trainer process is being started.
    Starting,
    /// Finding, downloading and checking the base model.
    ResolvingModel,
    /// Reading the dataset and turning text into token ids.
    Tokenizing,
    /// Taking optimizer steps.
    Training,
    /// Running the evaluation set.
    Evaluating,
    /// Writing a checkpoint.
    Saving,
}

impl Phase {
    /// The word in the database and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::ResolvingModel => "resolving_model",
            Self::Tokenizing => "tokenizing",
            Self::Training => "training",
            Self::Evaluating => "evaluating",
            Self::Saving => "saving",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip() {
        for status in Status::ALL {
            assert_eq!(status.as_str().parse::<Status>(), Ok(status));
            assert_eq!(
                serde_json::to_value(status).unwrap(),
                serde_json::json!(status.as_str())
            );
        }
        assert!("done".parse::<Status>().is_err());
    }
}
