//! One task each: an encoder with its head and its loss.

mod sequence_classification;

pub use sequence_classification::{LoadReport, LossOptions, SequenceClassifier};
