//! Why a model folder cannot be used.

use std::path::PathBuf;

use super::SUPPORTED_MODEL_TYPES;

/// Why a model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file is missing, corrupt, or does not fit the others.
    #[error("{0}")]
    Invalid(String),
    /// There is no encoder for the config's `model_type`.
    #[error("model_type {found:?} is not supported; supported: {}", SUPPORTED_MODEL_TYPES.join(", "))]
    TypeUnsupported {
        /// What the config says.
        found: String,
    },
    /// Weights are there as pickle only, which can run code when it is read.
    #[error(
        "the model has pickle weights only, which are never read; convert them to model.safetensors"
    )]
    PickleOnly,
    /// Memory or shapes.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A file could not be read.
    #[error("failed to read {}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}
