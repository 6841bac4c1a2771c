//! One task per file, by HF's name: what turns an encoder's hidden states into a loss or a prediction.

mod initial;
mod sequence_classification;

pub use sequence_classification::{LoadReport, LossOptions, SequenceClassifier};
