//! BERT's `config.json`
//! (<https://github.com/huggingface/transformers/blob/main/src/transformers/models/bert/configuration_bert.py>),
//! with HF's defaults. A config may come from anywhere: every size has a bound, so that nothing overflows and
//! memory is known before any is taken.

use serde::Deserialize;
use serde_json::Value;

use super::ModelError;
use crate::kernels::activation::Activation;

/// Parameters an encoder may have: three times BERT-large. In f32 with gradient and two moments, 16 GiB.
const MAX_PARAMETERS: u64 = 1 << 30;

/// The fields that matter here; others are kept in the JSON and ignored.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct BertConfig {
    /// Rows of the word table.
    pub vocab_size: usize,
    /// D
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// H
    pub num_attention_heads: usize,
    /// I
    pub intermediate_size: usize,
    /// An activation's name.
    pub hidden_act: String,
    /// Of embeddings and branches.
    pub hidden_dropout_prob: f32,
    /// Of attention probabilities.
    pub attention_probs_dropout_prob: f32,
    /// Of the head's input; `hidden_dropout_prob` if null.
    pub classifier_dropout: Option<f32>,
    /// The longest sequence.
    pub max_position_embeddings: usize,
    /// Rows of the token type table.
    pub type_vocab_size: usize,
    /// Standard deviation of new weights.
    pub initializer_range: f32,
    /// Added to variances.
    pub layer_norm_eps: f32,
    /// `absolute` is supported.
    pub position_embedding_type: Option<String>,
    /// Decoders are not supported.
    pub is_decoder: bool,
}

impl Default for BertConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30_522,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: "gelu".into(),
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
            classifier_dropout: None,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            initializer_range: 0.02,
            layer_norm_eps: 1e-12,
            position_embedding_type: None,
            is_decoder: false,
        }
    }
}

impl BertConfig {
    /// Reads and checks a config.
    ///
    /// # Errors
    /// Names the first field that is wrong.
    pub fn parse(config: &Value) -> Result<Self, ModelError> {
        let config: Self = serde_path_to_error::deserialize(config).map_err(|e| {
            ModelError::Invalid(format!("config.json: {}: {}", e.path(), e.inner()))
        })?;
        config.check_sizes()?;
        config.check_settings()?;
        Ok(config)
    }

    fn check_sizes(&self) -> Result<(), ModelError> {
        for (name, value, max) in [
            ("vocab_size", self.vocab_size, 1 << 22),
            ("hidden_size", self.hidden_size, 1 << 14),
            ("num_hidden_layers", self.num_hidden_layers, 256),
            ("num_attention_heads", self.num_attention_heads, 256),
            ("intermediate_size", self.intermediate_size, 1 << 16),
            // Dropout names a token by 16 bits of its position.
            (
                "max_position_embeddings",
                self.max_position_embeddings,
                1 << 16,
            ),
            ("type_vocab_size", self.type_vocab_size, 1 << 10),
        ] {
            if value == 0 || value > max {
                return invalid(format!("{name} must be 1 to {max}, not {value}"));
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let (d, h) = (self.hidden_size, self.num_attention_heads);
            return invalid(format!(
                "hidden_size {d} is no multiple of num_attention_heads {h}"
            ));
        }
        match self.parameter_count() {
            Some(count) if count <= MAX_PARAMETERS => Ok(()),
            _ => invalid(format!(
                "its sizes make more than {MAX_PARAMETERS} parameters"
            )),
        }
    }

    /// Of the encoder with its pooler; none if the number does not fit.
    fn parameter_count(&self) -> Option<u64> {
        let size = |x: usize| u64::try_from(x).ok();
        let (d, i) = (size(self.hidden_size)?, size(self.intermediate_size)?);
        let rows = size(self.vocab_size)?
            .checked_add(size(self.max_position_embeddings)?)?
            .checked_add(size(self.type_vocab_size)?)?;
        let dense = |n: u64, k: u64| n.checked_mul(k)?.checked_add(n);
        let layer = dense(d, d)?
            .checked_mul(4)?
            .checked_add(dense(i, d)?)?
            .checked_add(dense(d, i)?)?
            .checked_add(d.checked_mul(4)?)?;
        rows.checked_add(2)?
            .checked_mul(d)?
            .checked_add(layer.checked_mul(size(self.num_hidden_layers)?)?)?
            .checked_add(dense(d, d)?)
    }

    fn check_settings(&self) -> Result<(), ModelError> {
        let classifier_dropout = self.classifier_dropout.unwrap_or(0.0);
        for (name, p) in [
            ("hidden_dropout_prob", self.hidden_dropout_prob),
            (
                "attention_probs_dropout_prob",
                self.attention_probs_dropout_prob,
            ),
            ("classifier_dropout", classifier_dropout),
        ] {
            if !(0.0..1.0).contains(&p) {
                return invalid(format!("{name} must be at least 0 and below 1, not {p}"));
            }
        }
        // An eps that rounds to 0 in f32 would divide by zero on constant rows.
        if !(self.layer_norm_eps > 0.0 && self.layer_norm_eps <= 1.0) {
            return invalid(format!(
                "layer_norm_eps must be above 0 and at most 1, not {}",
                self.layer_norm_eps
            ));
        }
        if !(0.0..=10.0).contains(&self.initializer_range) {
            return invalid(format!(
                "initializer_range must be 0 to 10, not {}",
                self.initializer_range
            ));
        }
        if self.activation().is_none() {
            let (found, names) = (shorten(&self.hidden_act), Activation::NAMES.join(", "));
            return invalid(format!(
                "hidden_act {found:?} is not supported; supported: {names}"
            ));
        }
        match self.position_embedding_type.as_deref() {
            None | Some("absolute") => {}
            Some(other) => {
                let found = shorten(other);
                return invalid(format!(
                    "position_embedding_type {found:?} is not supported; supported: absolute"
                ));
            }
        }
        if self.is_decoder {
            return invalid("is_decoder is true; only encoders are supported".into());
        }
        Ok(())
    }

    /// Between the dense layers of the feed-forward half; none if the name is unknown.
    pub fn activation(&self) -> Option<Activation> {
        Activation::from_name(&self.hidden_act)
    }
}

fn invalid(why: String) -> Result<(), ModelError> {
    Err(ModelError::Invalid(format!("config.json: {why}")))
}

fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn message(config: &Value) -> String {
        BertConfig::parse(config).unwrap_err().to_string()
    }

    #[test]
    fn missing_fields_have_the_defaults_of_bert_base() {
        let config = BertConfig::parse(&json!({ "model_type": "bert", "unknown": [1] })).unwrap();
        // 109,482,240: what transformers reports for BertModel(BertConfig()).
        assert_eq!(config.parameter_count(), Some(109_482_240));
        assert_eq!(config.activation(), Some(Activation::Gelu));
    }

    #[test]
    fn hostile_values_are_named() {
        for (field, value) in [
            ("vocab_size", json!(0)),
            ("vocab_size", json!(1u64 << 40)),
            ("hidden_size", json!(-768)),
            ("hidden_size", json!(2_147_483_648u64)),
            ("hidden_size", json!(7.5)),
            ("num_hidden_layers", json!(null)),
            ("num_attention_heads", json!(5)),
            ("intermediate_size", json!("3072")),
            ("max_position_embeddings", json!(65_537)),
            ("type_vocab_size", json!([2])),
            ("hidden_dropout_prob", json!(1.0)),
            ("attention_probs_dropout_prob", json!(-0.1)),
            ("classifier_dropout", json!(1e300)),
            ("layer_norm_eps", json!(0)),
            ("layer_norm_eps", json!(1e-60)),
            ("initializer_range", json!(-1)),
            ("hidden_act", json!("silu")),
            ("position_embedding_type", json!("relative_key")),
            ("is_decoder", json!(true)),
        ] {
            let text = message(&json!({ field: value }));
            assert!(
                text.starts_with("config.json: ") && text.contains(field),
                "{text}"
            );
        }
        let huge = json!({ "hidden_size": 16384, "num_attention_heads": 1, "num_hidden_layers": 256, "intermediate_size": 65536 });
        assert!(message(&huge).contains("parameters"));
    }

    proptest! {
        #[test]
        fn no_numbers_make_it_panic(sizes in prop::array::uniform7(any::<u64>()), p in any::<f64>(), small in any::<bool>()) {
            let cut = |x: u64| if small { x % 70_000 } else { x };
            let config = json!({
                "vocab_size": cut(sizes[0]), "hidden_size": cut(sizes[1]), "num_hidden_layers": cut(sizes[2]),
                "num_attention_heads": cut(sizes[3]), "intermediate_size": cut(sizes[4]),
                "max_position_embeddings": cut(sizes[5]), "type_vocab_size": cut(sizes[6]),
                "hidden_dropout_prob": p, "layer_norm_eps": p,
            });
            if let Ok(config) = BertConfig::parse(&config) {
                prop_assert!(config.parameter_count().unwrap() <= MAX_PARAMETERS);
            }
        }
    }
}
