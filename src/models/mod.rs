//! Encoders by `model_type`: how a family's config reads, what its tensors are called, and how it is
//! composed of layers. Weights come from `model.safetensors` only.
//!
//! Shapes in comments: T token rows of a packed micro-batch, B sequences, D hidden.

mod bert;
mod bert_config;
mod error;
mod loading;
#[cfg(test)]
pub mod oracle;

use std::path::Path;

use serde_json::Value;

pub use crate::layers::DropoutSeed;
pub use bert::Bert;
pub use bert_config::BertConfig;
pub use error::ModelError;
pub use loading::Checkpoint;

/// Every `model_type` there is an encoder for.
pub const SUPPORTED_MODEL_TYPES: &[&str] = &["bert"];

/// `config.json` may be this long; real ones are a few kB, plus one line for each of their labels.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// A packed micro-batch of token ids. Positions restart with every sequence.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// [T]
    pub input_ids: &'a [u32],
    /// [T]
    pub token_type_ids: &'a [u32],
    /// [B + 1]: the rows at which sequences start, and T.
    pub cu_seqlens: &'a [u32],
    /// [B]: what dropout masks are named by; the sequence's row number in the dataset.
    pub sequence_keys: &'a [u64],
}

/// A family of encoders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelType {
    /// `bert`
    Bert,
}

impl ModelType {
    /// By `model_type` in a model's config.
    ///
    /// # Errors
    /// If there is none, or no encoder for it.
    pub fn of(config: &Value) -> Result<Self, ModelError> {
        match config.get("model_type").and_then(Value::as_str) {
            Some("bert") => Ok(Self::Bert),
            Some(found) => Err(ModelError::TypeUnsupported {
                found: found.chars().take(64).collect(),
            }),
            None => Err(ModelError::Invalid(
                "config.json has no \"model_type\"".into(),
            )),
        }
    }
}

/// `config.json` of a model folder, as it is.
///
/// # Errors
/// If it is missing, too long or not a JSON object.
pub fn read_config(dir: &Path) -> Result<Value, ModelError> {
    let bytes = loading::read_small_file(&dir.join("config.json"), MAX_CONFIG_BYTES)?;
    let config: Value = serde_json::from_slice(&bytes)
        .map_err(|e| ModelError::Invalid(format!("config.json is not JSON: {e}")))?;
    if config.is_object() {
        Ok(config)
    } else {
        Err(ModelError::Invalid(
            "config.json is not a JSON object".into(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_supported_type_is_known_and_others_are_refused_with_the_list() {
        for name in SUPPORTED_MODEL_TYPES {
            assert!(ModelType::of(&json!({ "model_type": name })).is_ok());
        }
        let error = ModelType::of(&json!({ "model_type": "gpt2" })).unwrap_err();
        assert_eq!(
            error.to_string(),
            "model_type \"gpt2\" is not supported; supported: bert"
        );
        for config in [json!({}), json!({ "model_type": 3 })] {
            assert!(matches!(
                ModelType::of(&config),
                Err(ModelError::Invalid(_))
            ));
        }
    }

    #[test]
    fn a_config_that_is_missing_or_no_object_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let message = || read_config(dir.path()).unwrap_err().to_string();
        assert_eq!(message(), "config.json is missing");
        for bad in ["[]", "{", "\u{0}", ""] {
            std::fs::write(dir.path().join("config.json"), bad).unwrap();
            assert!(message().starts_with("config.json is not"), "{bad}");
        }
    }
}
