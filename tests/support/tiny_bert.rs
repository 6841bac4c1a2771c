//! A two-layer BERT with random weights and a word-level vocabulary, made on the spot: real files of the
//! real format, small enough to train in a second.

use std::collections::HashMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

const HIDDEN: usize = 32;
const LAYERS: usize = 2;
const HEADS: usize = 2;
const INTERMEDIATE: usize = 64;
const POSITIONS: usize = 64;

/// Words without a meaning for the label.
pub const FILLERS: [&str; 12] = [
    "the", "film", "was", "a", "story", "actor", "and", "very", "plot", "scene", "it", "this",
];
const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
const LOADED: [&str; 6] = ["good", "great", "fine", "bad", "awful", "poor"];

/// Writes `config.json`, `tokenizer.json` and `model.safetensors` into `dir`.
pub fn write(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    let vocab = vocabulary();
    let save = |name: &str, value: &Value| {
        std::fs::write(dir.join(name), serde_json::to_string_pretty(value).unwrap()).unwrap();
    };
    save("config.json", &config(vocab.len()));
    save("tokenizer.json", &tokenizer(&vocab));
    save(
        "tokenizer_config.json",
        &json!({"tokenizer_class": "BertTokenizer", "model_max_length": 64}),
    );
    write_weights_of(dir, &config(vocab.len()));
}

/// Random weights for a model of this configuration.
pub fn write_weights_of(dir: &Path, config: &Value) {
    write_weights(&dir.join("model.safetensors"), &weights(config));
}

pub fn config(vocab_size: usize) -> Value {
    json!({
        "architectures": ["BertModel"], "model_type": "bert", "vocab_size": vocab_size,
        "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "intermediate_size": INTERMEDIATE, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1, "max_position_embeddings": POSITIONS, "type_vocab_size": 2,
        "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0,
    })
}

fn vocabulary() -> Vec<String> {
    let digits = (0..10).flat_map(|d| [d.to_string(), format!("##{d}")]);
    let words = SPECIAL.iter().chain(&FILLERS).chain(&LOADED);
    words.map(|w| (*w).to_owned()).chain(digits).collect()
}

pub fn tokenizer(vocab: &[String]) -> Value {
    let ids: serde_json::Map<String, Value> = vocab
        .iter()
        .enumerate()
        .map(|(id, word)| (word.clone(), json!(id)))
        .collect();
    let added: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(id, word)| {
            json!({"id": id, "content": word, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                       "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                       {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                     {"SpecialToken": {"id": "[SEP]", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}},
                     {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                               "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": ids},
    })
}

type Weights = Vec<(String, Vec<usize>, Vec<f32>)>;

fn weights(config: &Value) -> Weights {
    let size = |name: &str| usize::try_from(config[name].as_u64().unwrap()).unwrap();
    let (vocab_size, inner) = (size("vocab_size"), size("intermediate_size"));
    let layers = size("num_hidden_layers");
    let mut random = Random(1);
    let mut weights: Weights = Vec::new();
    let mut matrix = |name: &str, shape: &[usize]| {
        let values = (0..shape.iter().product())
            .map(|_| random.next() * 0.1)
            .collect();
        weights.push((name.to_owned(), shape.to_vec(), values));
    };
    let d = size("hidden_size");
    matrix("embeddings.word_embeddings.weight", &[vocab_size, d]);
    matrix(
        "embeddings.position_embeddings.weight",
        &[size("max_position_embeddings"), d],
    );
    matrix("embeddings.token_type_embeddings.weight", &[2, d]);
    for layer in 0..layers {
        let prefix = format!("encoder.layer.{layer}");
        for name in ["query", "key", "value"] {
            matrix(&format!("{prefix}.attention.self.{name}.weight"), &[d, d]);
            matrix(&format!("{prefix}.attention.self.{name}.bias"), &[d]);
        }
        for (name, out, input) in [
            ("attention.output.dense", d, d),
            ("intermediate.dense", inner, d),
            ("output.dense", d, inner),
        ] {
            matrix(&format!("{prefix}.{name}.weight"), &[out, input]);
            matrix(&format!("{prefix}.{name}.bias"), &[out]);
        }
    }
    matrix("pooler.dense.weight", &[d, d]);
    matrix("pooler.dense.bias", &[d]);
    let mut norm = |name: String| {
        weights.push((format!("{name}.weight"), vec![d], vec![1.0; d]));
        weights.push((format!("{name}.bias"), vec![d], vec![0.0; d]));
    };
    norm("embeddings.LayerNorm".to_owned());
    for layer in 0..layers {
        norm(format!("encoder.layer.{layer}.attention.output.LayerNorm"));
        norm(format!("encoder.layer.{layer}.output.LayerNorm"));
    }
    weights
}

fn write_weights(path: &Path, weights: &Weights) {
    let bytes: Vec<Vec<u8>> = weights
        .iter()
        .map(|(_, _, values)| values.iter().flat_map(|v| v.to_le_bytes()).collect())
        .collect();
    let views = weights.iter().zip(&bytes).map(|((name, shape, _), data)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), data).unwrap();
        (name.clone(), view)
    });
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), path).unwrap();
}

/// Roughly normal numbers: the sum of four uniform ones.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        (0..4)
            .map(|_| {
                self.0 = self
                    .0
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (self.0 >> 40) as f32 / (1u64 << 24) as f32 - 0.5
            })
            .sum()
    }
}
