//! Models of the usual shapes with random weights, and batches of random tokens.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::json;

/// The sizes of an encoder.
#[derive(Clone, Copy)]
pub struct Shape {
    layers: usize,
    hidden: usize,
    heads: usize,
    intermediate: usize,
}

const VOCABULARY: usize = 30_522;
const POSITIONS: usize = 512;

impl Shape {
    pub const MINILM: Self = Self::new(6, 384, 12);

    const fn new(layers: usize, hidden: usize, heads: usize) -> Self {
        Self {
            layers,
            hidden,
            heads,
            intermediate: 4 * hidden,
        }
    }

    pub fn named(name: &str) -> Self {
        match name {
            "tiny" => Self::new(2, 128, 2),
            "minilm" => Self::MINILM,
            "base" => Self::new(12, 768, 12),
            "large" => Self::new(24, 1024, 16),
            _ => panic!("shapes are tiny, minilm, base and large"),
        }
    }

    /// A model folder, as Hugging Face's.
    pub fn folder(self) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let config = json!({
            "model_type": "bert", "vocab_size": VOCABULARY, "hidden_size": self.hidden,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "intermediate_size": self.intermediate, "max_position_embeddings": POSITIONS,
            "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
            "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
            "initializer_range": 0.02, "pad_token_id": 0,
        });
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        self.write_weights(&folder.path().join("model.safetensors"));
        folder
    }

    fn write_weights(self, path: &Path) {
        let (d, i) = (self.hidden, self.intermediate);
        let mut tensors = HashMap::new();
        let mut random = Random(1);
        let mut add = |name: String, shape: &[usize]| {
            let values: Vec<f32> = (0..shape.iter().product::<usize>())
                .map(|_| {
                    if name.ends_with("LayerNorm.weight") {
                        1.0
                    } else {
                        // The variance of BERT's initial weights.
                        (random.unit() as f32 - 0.5) * 0.069
                    }
                })
                .collect();
            tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap());
        };
        let embeddings = [
            ("word_embeddings", VOCABULARY),
            ("position_embeddings", POSITIONS),
            ("token_type_embeddings", 2),
        ];
        for (name, rows) in embeddings {
            add(format!("embeddings.{name}.weight"), &[rows, d]);
        }
        add("embeddings.LayerNorm.weight".into(), &[d]);
        add("embeddings.LayerNorm.bias".into(), &[d]);
        for layer in 0..self.layers {
            let dense = [
                ("attention.self.query", d, d),
                ("attention.self.key", d, d),
                ("attention.self.value", d, d),
                ("attention.output.dense", d, d),
                ("intermediate.dense", i, d),
                ("output.dense", d, i),
            ];
            for (name, outputs, inputs) in dense {
                let name = format!("encoder.layer.{layer}.{name}");
                add(format!("{name}.weight"), &[outputs, inputs]);
                add(format!("{name}.bias"), &[outputs]);
            }
            for name in ["attention.output.LayerNorm", "output.LayerNorm"] {
                let name = format!("encoder.layer.{layer}.{name}");
                add(format!("{name}.weight"), &[d]);
                add(format!("{name}.bias"), &[d]);
            }
        }
        add("pooler.dense.weight".into(), &[d, d]);
        add("pooler.dense.bias".into(), &[d]);
        candle_core::safetensors::save(&tensors, path).unwrap();
    }
}

/// A packed micro-batch.
pub struct Batch {
    pub input_ids: Vec<u32>,
    pub token_type_ids: Vec<u32>,
    pub cu_seqlens: Vec<u32>,
    pub keys: Vec<u64>,
    pub labels: Vec<u32>,
}

impl Batch {
    /// Sequences of `tokens` tokens on average, and lengths that differ from that by at most the share
    /// `spread`.
    pub fn random(sequences: usize, tokens: usize, spread: f64, seed: u64) -> Self {
        let mut random = Random(seed + 7);
        let mut batch = Self {
            input_ids: vec![],
            token_type_ids: vec![],
            cu_seqlens: vec![0],
            keys: (0..sequences as u64).collect(),
            labels: (0..sequences as u32).map(|i| i % 2).collect(),
        };
        for _ in 0..sequences {
            let length = tokens as f64 * (1.0 + spread * (2.0 * random.unit() - 1.0));
            for _ in 0..(length.round() as usize).clamp(2, POSITIONS) {
                // Words are as frequent as in real texts: few often, most seldom.
                let id = VOCABULARY as f64 * random.unit().powi(4);
                batch.input_ids.push(id as u32);
            }
            batch.cu_seqlens.push(batch.input_ids.len() as u32);
        }
        batch.token_type_ids = vec![0; batch.input_ids.len()];
        batch
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    /// In [0, 1).
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The most memory this process ever held.
pub fn peak_resident_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    let kb = line.and_then(|line| line.split_whitespace().nth(1));
    kb.and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0) / 1024
}
