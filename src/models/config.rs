//! `config.json` of BERT, checked before anything is allocated: a model folder is untrusted.
//!
//! Fields as in `transformers/models/bert/configuration_bert.py`
//! (<https://github.com/huggingface/transformers/blob/main/src/transformers/models/bert/configuration_bert.py>).

use serde::Deserialize;
use serde_json::Value;

use super::{ModelError, SUPPORTED_MODEL_TYPES};
use crate::kernels::activation::Activation;

/// BERT-large has 0.34 billion parameters; nothing of this family comes near.
const MAX_PARAMETERS: usize = 4_000_000_000;
/// Attention tells heads apart by eight bits of a dropout key.
const MAX_HEADS: usize = 255;
const MAX_LAYERS: usize = 256;
const MAX_POSITIONS: usize = 65_536;

/// Sizes and settings of a BERT encoder.
#[derive(Clone, Debug, Deserialize)]
pub struct BertConfig {
    /// Rows of the word table.
    pub vocab_size: usize,
    /// D
    pub hidden_size: usize,
    /// Encoder layers.
    pub num_hidden_layers: usize,
    /// Heads; a divisor of D.
    pub num_attention_heads: usize,
    /// Width of the feed-forward half.
    pub intermediate_size: usize,
    /// Its activation.
    #[serde(default = "gelu")]
    pub hidden_act: String,
    /// Dropout of embeddings and of both branches of a layer.
    #[serde(default = "tenth")]
    pub hidden_dropout_prob: f32,
    /// Dropout of attention probabilities.
    #[serde(default = "tenth")]
    pub attention_probs_dropout_prob: f32,
    /// Dropout before the classifier; `hidden_dropout_prob` when absent.
    #[serde(default)]
    pub classifier_dropout: Option<f32>,
    /// Rows of the position table.
    pub max_position_embeddings: usize,
    /// Rows of the token type table.
    #[serde(default = "two")]
    pub type_vocab_size: usize,
    /// Standard deviation of fresh weights.
    #[serde(default = "initializer_range")]
    pub initializer_range: f64,
    /// Term under LayerNorm's root.
    #[serde(default = "layer_norm_eps")]
    pub layer_norm_eps: f32,
}

fn gelu() -> String {
    "gelu".to_owned()
}
fn tenth() -> f32 {
    0.1
}
fn two() -> usize {
    2
}
fn initializer_range() -> f64 {
    0.02
}
fn layer_norm_eps() -> f32 {
    1e-12
}

impl BertConfig {
    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// `TypeUnsupported` for another family, `Invalid` for values out of range.
    pub fn parse(config: &Value) -> Result<Self, ModelError> {
        let model_type = config["model_type"].as_str().unwrap_or("(none)");
        if !SUPPORTED_MODEL_TYPES.contains(&model_type) {
            return Err(ModelError::TypeUnsupported {
                found: model_type.chars().take(64).collect(),
            });
        }
        if config["is_decoder"] == true || config["add_cross_attention"] == true {
            return Err(invalid("a decoder is no encoder"));
        }
        if let Some(kind) = config["position_embedding_type"].as_str()
            && kind != "absolute"
        {
            return Err(invalid(&format!(
                "position_embedding_type `{kind}` is not supported, only `absolute`"
            )));
        }
        let parsed = Self::deserialize(config).map_err(|e| invalid(&e.to_string()))?;
        parsed.check()?;
        Ok(parsed)
    }

    /// The activation of the feed-forward half.
    ///
    /// # Errors
    /// `Invalid` for one that is not known.
    pub fn activation(&self) -> Result<Activation, ModelError> {
        Activation::from_name(&self.hidden_act)
            .ok_or_else(|| invalid(&format!("hidden_act `{}` is not supported", self.hidden_act)))
    }

    fn check(&self) -> Result<(), ModelError> {
        let bounds = [
            ("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS),
            ("num_attention_heads", self.num_attention_heads, MAX_HEADS),
            ("max_position_embeddings", self.max_position_embeddings, MAX_POSITIONS),
            ("vocab_size", self.vocab_size, MAX_PARAMETERS),
            ("hidden_size", self.hidden_size, MAX_PARAMETERS),
            ("intermediate_size", self.intermediate_size, MAX_PARAMETERS),
            ("type_vocab_size", self.type_vocab_size, MAX_PARAMETERS),
        ];
        for (name, value, most) in bounds {
            if value == 0 || value > most {
                return Err(invalid(&format!("{name} is {value}, but must be in 1..={most}")));
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(invalid(&format!(
                "hidden_size {} is not a multiple of num_attention_heads {}",
                self.hidden_size, self.num_attention_heads
            )));
        }
        let dropouts = [
            ("hidden_dropout_prob", Some(self.hidden_dropout_prob)),
            ("attention_probs_dropout_prob", Some(self.attention_probs_dropout_prob)),
            ("classifier_dropout", self.classifier_dropout),
        ];
        for (name, value) in dropouts {
            if value.is_some_and(|p| !(0.0..1.0).contains(&p)) {
                return Err(invalid(&format!("{name} must be in [0, 1)")));
            }
        }
        let eps_fits = self.layer_norm_eps > 0.0 && self.layer_norm_eps < 1.0;
        if !eps_fits || !(0.0..10.0).contains(&self.initializer_range) {
            return Err(invalid("layer_norm_eps or initializer_range is out of range"));
        }
        self.activation()?;
        match self.parameter_count() {
            Some(count) if count <= MAX_PARAMETERS => Ok(()),
            _ => Err(invalid(&format!("the model has more than {MAX_PARAMETERS} parameters"))),
        }
    }

    /// Roughly, the biases left out; `None` if it does not fit a number.
    fn parameter_count(&self) -> Option<usize> {
        let tables = self
            .vocab_size
            .checked_add(self.max_position_embeddings)?
            .checked_add(self.type_vocab_size)?
            .checked_mul(self.hidden_size)?;
        let square = self.hidden_size.checked_mul(self.hidden_size)?.checked_mul(4)?;
        let forward = self.hidden_size.checked_mul(self.intermediate_size)?.checked_mul(2)?;
        let layer = square.checked_add(forward)?;
        layer.checked_mul(self.num_hidden_layers)?.checked_add(tables)
    }
}

fn invalid(what: &str) -> ModelError {
    ModelError::Invalid(format!("config.json: {what}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn minilm() -> Value {
        json!({
            "model_type": "bert", "vocab_size": 30522, "hidden_size": 384, "num_hidden_layers": 6,
            "num_attention_heads": 12, "intermediate_size": 1536, "hidden_act": "gelu",
            "max_position_embeddings": 512, "unknown": {"is": "kept"},
        })
    }

    #[test]
    fn absent_fields_take_the_familys_defaults() {
        let config = BertConfig::parse(&minilm()).unwrap();
        assert_eq!(config.hidden_dropout_prob, 0.1);
        assert_eq!(config.type_vocab_size, 2);
        assert_eq!(config.layer_norm_eps, 1e-12);
    }

    #[test]
    fn hostile_values_are_refused() {
        for (key, value) in [
            ("hidden_size", json!(u64::MAX)),
            ("hidden_size", json!(-4)),
            ("hidden_size", json!(0)),
            ("hidden_size", json!(385)),
            ("vocab_size", json!(1u64 << 40)),
            ("num_hidden_layers", json!(1_000_000)),
            ("num_attention_heads", json!(256)),
            ("hidden_dropout_prob", json!(1.0)),
            ("attention_probs_dropout_prob", json!(-0.1)),
            ("layer_norm_eps", json!(0)),
            ("hidden_act", json!("swish-9000")),
            ("position_embedding_type", json!("relative_key")),
            ("is_decoder", json!(true)),
        ] {
            let mut config = minilm();
            config[key] = value.clone();
            let error = BertConfig::parse(&config).unwrap_err();
            assert!(matches!(error, ModelError::Invalid(_)), "{key} = {value}: {error}");
        }
    }

    #[test]
    fn another_family_is_named_beside_the_supported_ones() {
        let error = BertConfig::parse(&json!({"model_type": "t5"})).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("`t5`") && message.contains("bert"), "{message}");
    }
}
