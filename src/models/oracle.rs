//! The oracle of whole-model tests: BERT with HF's sequence classification head, written plainly in f64 on
//! candle's autograd, one sequence at a time. And the tiny model that PyTorch's results are committed for.

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Result, Tensor};
use serde_json::Value;

use super::bert::layer_names;
use super::{BertConfig, DropoutSeed, Input};
use crate::kernels::attention::Queries;
use crate::layers::testing::{Oracle, factors};
use crate::layers::{EncoderLayer, EncoderLayerShape, MicroBatch};

/// Logits [B, C] with the dropout that the model would draw.
pub fn logits(
    oracle: &Oracle,
    config: &BertConfig,
    input: &Input,
    dropout: Option<DropoutSeed>,
) -> Result<Tensor> {
    let mut batch = MicroBatch::default();
    batch.set(
        input.cu_seqlens,
        input.sequence_keys,
        config.max_position_embeddings,
        dropout,
    )?;
    let hidden_dropout = config.hidden_dropout_prob;
    let mut rows = Vec::new();
    let mut site = 0;
    for (b, w) in input.cu_seqlens.windows(2).enumerate() {
        let at = w[0] as usize..w[1] as usize;
        let (ids, types) = (
            &input.input_ids[at.clone()],
            &input.token_type_ids[at.clone()],
        );
        let keys = &batch.token_keys()[at];
        let x = oracle.embeddings("bert.embeddings", ids, types, config.layer_norm_eps)?;
        let mut x = (x * factors(batch.dropout(hidden_dropout, 0), keys, config.hidden_size)?)?;
        site = 1;
        for layer in 0..config.num_hidden_layers {
            let shape = EncoderLayerShape {
                hidden_size: config.hidden_size,
                intermediate_size: config.intermediate_size,
                num_heads: config.num_attention_heads,
                activation: config.activation().unwrap(),
                eps: config.layer_norm_eps,
                attention_dropout: config.attention_probs_dropout_prob,
                hidden_dropout,
                first_site: site,
            };
            x = oracle.encoder_layer(&layer_names(layer), &shape, &x, keys, &batch)?;
            site += EncoderLayer::SITES;
        }
        assert_eq!(keys[0], batch.keys(Queries::First)[b]);
        rows.push(x.narrow(0, 0, 1)?);
    }
    let pooled = oracle
        .linear("bert.pooler.dense", &Tensor::cat(&rows, 0)?)?
        .tanh()?;
    let dropout = batch.dropout(config.classifier_dropout.unwrap_or(hidden_dropout), site);
    let masks = factors(dropout, &batch.keys(Queries::First), config.hidden_size)?;
    oracle.linear("classifier", &(pooled * masks)?)
}

/// Mean over items of HF's smoothed cross-entropy.
pub fn mean_loss(logits: &Tensor, labels: &[u32], smoothing: f64) -> Result<Tensor> {
    let log_p = candle_nn::ops::log_softmax(logits, 1)?;
    let labels = Tensor::new(labels, &Device::Cpu)?.unsqueeze(1)?;
    let nll = log_p.gather(&labels, 1)?.mean_all()?;
    (nll * (smoothing - 1.0))? - (log_p.mean_all()? * smoothing)?
}

/// A folder of `tests/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// The input and PyTorch's results of `tests/fixtures/tiny-bert`.
pub struct TinyBert {
    pub input_ids: Vec<u32>,
    pub token_type_ids: Vec<u32>,
    pub cu_seqlens: Vec<u32>,
    pub labels: Vec<u32>,
    pub expected: HashMap<String, Tensor>,
}

impl TinyBert {
    pub fn read() -> Self {
        let path = fixture("tiny-bert").join("expected.safetensors");
        let expected = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        let ids = |name: &str| {
            expected[name]
                .to_dtype(DType::U32)
                .unwrap()
                .to_vec1()
                .unwrap()
        };
        Self {
            input_ids: ids("input_ids"),
            token_type_ids: ids("token_type_ids"),
            cu_seqlens: ids("cu_seqlens"),
            labels: ids("labels"),
            expected,
        }
    }

    pub fn input(&self) -> Input<'_> {
        Input {
            input_ids: &self.input_ids,
            token_type_ids: &self.token_type_ids,
            cu_seqlens: &self.cu_seqlens,
            sequence_keys: &[11, 4, 900],
        }
    }

    /// A folder with the tiny model's weights, and its config with these fields changed.
    pub fn folder_with(fields: &Value) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut config = super::read_config(&fixture("tiny-bert")).unwrap();
        for (name, value) in fields.as_object().unwrap() {
            config[name] = value.clone();
        }
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let weights = fixture("tiny-bert").join("model.safetensors");
        std::fs::copy(weights, dir.path().join("model.safetensors")).unwrap();
        dir
    }
}
