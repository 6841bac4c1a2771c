//! What is known about a published checkpoint.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FileRecord {
    /// Path relative to the checkpoint's folder, `/`-separated.
    pub path: String,
    /// Length in bytes.
    pub size_bytes: u64,
    /// SHA-256 of the content, 64 lower-case hexadecimal digits.
    pub sha256: String,
}

/// A complete checkpoint: a folder whose manifest was written last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CheckpointRecord {
    /// `global_step` at which it was taken.
    pub step: u64,
    /// Epoch at which it was taken, fractional.
    pub epoch: f64,
    /// The newest evaluation metrics at that step, by HF name (`eval_loss`, …).
    pub metrics: BTreeMap<String, f64>,
    /// Whether training can go on from it (it holds the optimizer's state).
    pub resumable: bool,
    /// Its files, without the manifest itself.
    pub files: Vec<FileRecord>,
}
