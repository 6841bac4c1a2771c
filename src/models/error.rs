//! Why a model cannot be loaded.

use super::SUPPORTED_MODEL_TYPES;

/// Why a model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file is missing, corrupt or at odds with another.
    #[error("{0}")]
    Invalid(String),
    /// The family is not supported.
    #[error("model_type `{found}` is not supported; supported are {}", SUPPORTED_MODEL_TYPES.join(", "))]
    TypeUnsupported {
        /// What `config.json` says.
        found: String,
    },
    /// There are only pickle weights, which are never read.
    #[error("the model has only pickle weights (pytorch_model.bin), which are never read; it needs model.safetensors")]
    PickleOnly,
    /// A file cannot be read.
    #[error("{file} cannot be read: {source}")]
    Io {
        /// Its name.
        file: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A tensor operation failed.
    #[error("{0}")]
    Candle(#[from] candle_core::Error),
}
