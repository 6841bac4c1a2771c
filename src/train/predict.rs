//! Labels texts with an exported model.

use std::path::Path;

use serde::Deserialize;

use crate::data::{Batch, TextTokenizer};
use crate::domain::{ErrorCode, JobError};
use crate::heads::SequenceClassifier;
use crate::kernels::linear::Precision;

use super::evaluate::argmax;
use super::export::CHANDLER_FILE;
use super::setup::model_error;
use super::step::{engine, input};

/// Texts per forward pass.
const BATCH: usize = 32;

/// A model ready to label texts.
#[derive(Debug)]
pub struct Predictor {
    model: SequenceClassifier,
    tokenizer: TextTokenizer,
    labels: Vec<String>,
}

/// What the model says about one text.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// The most probable label.
    pub label: String,
    /// Its probability.
    pub score: f32,
    /// Probability of every label, in label-id order.
    pub scores: Vec<(String, f32)>,
}

#[derive(Deserialize)]
struct ChandlerFile {
    max_seq_length: u32,
}

impl Predictor {
    /// Loads a folder that a training exported, or any Hugging Face sequence classifier of a supported type.
    ///
    /// # Errors
    /// `model_invalid` if it is not such a folder.
    pub fn load(dir: &Path) -> Result<Self, JobError> {
        let text = std::fs::read_to_string(dir.join("config.json")).map_err(|error| {
            invalid(format!("config.json cannot be read: {error}"))
                .hint("give the folder of a trained model, such as …/checkpoints/checkpoint-120")
        })?;
        let config: serde_json::Value = serde_json::from_str(&text)
            .map_err(|error| invalid(format!("config.json is not JSON: {error}")))?;
        let labels = labels_of(&config)?;
        let (model, report) =
            SequenceClassifier::load(dir, labels.len(), 0, &Precision::F32.into())
                .map_err(model_error)?;
        if !report.newly_initialized.is_empty() {
            return Err(invalid(format!(
                "it has no trained head: {} missing",
                report.newly_initialized.join(", ")
            )));
        }
        let positions = u32::try_from(model.max_positions()).unwrap_or(u32::MAX);
        let max_seq_length = std::fs::read_to_string(dir.join(CHANDLER_FILE))
            .ok()
            .and_then(|text| serde_json::from_str::<ChandlerFile>(&text).ok())
            .map_or(positions, |file| file.max_seq_length.min(positions));
        Ok(Self {
            model,
            tokenizer: TextTokenizer::load(&dir.join("tokenizer.json"), max_seq_length)?,
            labels,
        })
    }

    /// Labels each text.
    ///
    /// # Errors
    /// If the engine fails.
    pub fn predict(&mut self, texts: &[String]) -> Result<Vec<Prediction>, JobError> {
        let mut predictions = Vec::with_capacity(texts.len());
        for chunk in texts.chunks(BATCH) {
            let encode = |text: &String| self.tokenizer.encode(text, None);
            let rows: Vec<_> = chunk.iter().map(encode).collect::<Result<_, _>>()?;
            let batch = Batch::unlabelled(&rows);
            let logits = self.model.logits(&input(&batch)).map_err(engine)?;
            for row in logits.chunks(self.labels.len()) {
                predictions.push(self.prediction(row));
            }
        }
        Ok(predictions)
    }

    fn prediction(&self, logits: &[f32]) -> Prediction {
        let probabilities = softmax(logits);
        let best = argmax(logits) as usize;
        Prediction {
            label: self.labels[best].clone(),
            score: probabilities[best],
            scores: self.labels.iter().cloned().zip(probabilities).collect(),
        }
    }
}

/// `id2label`, in order of id.
fn labels_of(config: &serde_json::Value) -> Result<Vec<String>, JobError> {
    let map = config["id2label"]
        .as_object()
        .ok_or_else(|| invalid("config.json has no id2label".to_owned()))?;
    (0..map.len())
        .map(|id| {
            map.get(&id.to_string())
                .and_then(|name| name.as_str())
                .map(str::to_owned)
                .ok_or_else(|| invalid(format!("id2label has no name for {id}")))
        })
        .collect()
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp: Vec<f32> = logits.iter().map(|x| (x - max).exp()).collect();
    let sum: f32 = exp.iter().sum();
    exp.iter().map(|x| x / sum).collect()
}

fn invalid(message: String) -> JobError {
    JobError::new(ErrorCode::ModelInvalid, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_sums_to_one_and_survives_large_logits() {
        let p = softmax(&[1000.0, 1000.0]);
        assert_eq!(p, [0.5, 0.5]);
    }

    #[test]
    fn labels_come_in_order_of_id() {
        let config = serde_json::json!({"id2label": {"1": "b", "0": "a"}});
        assert_eq!(labels_of(&config).unwrap(), ["a", "b"]);
        assert!(labels_of(&serde_json::json!({"id2label": {"1": "b"}})).is_err());
        assert!(labels_of(&serde_json::json!({})).is_err());
    }
}
