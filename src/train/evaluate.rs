//! Runs the evaluation set. The loss is the exact mean over all rows, whatever the batch size.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::data::{LabelMap, Prefetch, TokenizedDataset};
use crate::domain::{ClassResult, ErrorCode, JobError, TrainingArguments};
use crate::heads::SequenceClassifier;
use crate::metrics::ClassificationMetrics;

use super::exact;
use super::step::{engine, input};

/// Tokens that a CPU is given at a time: more only takes more memory, and falls out of the cache.
const CPU_TOKENS: usize = 4096;

/// An evaluation's numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// `eval_loss, eval_accuracy, …, eval_runtime, eval_samples_per_second, eval_steps_per_second`.
    #[serde(deserialize_with = "exact::map")]
    pub metrics: BTreeMap<String, f64>,
    /// Results per label.
    #[serde(deserialize_with = "exact::classes")]
    pub classes: Vec<ClassResult>,
    /// Share of the most frequent label.
    #[serde(deserialize_with = "exact::number")]
    pub majority_share: f64,
}

/// Evaluates `model` on `rows`, in order, `per_device_eval_batch_size` at a time, or fewer if memory is short.
///
/// `keep_going` is asked between batches; `None` is answered if it says no.
///
/// # Errors
/// `non_finite_loss` if the loss is NaN or infinite.
pub fn evaluate(
    model: &mut SequenceClassifier,
    rows: &TokenizedDataset,
    labels: &LabelMap,
    args: &TrainingArguments,
    keep_going: &dyn Fn() -> bool,
) -> Result<Option<Evaluation>, JobError> {
    let mut batch_size = args.per_device_eval_batch_size;
    #[expect(clippy::cast_possible_truncation, reason = "a factor below 1")]
    let label_smoothing = args.label_smoothing_factor as f32;
    loop {
        match evaluate_by(model, rows, labels, batch_size, label_smoothing, keep_going) {
            Err(error) if error.code == ErrorCode::OutOfMemory && batch_size > 1 => {
                model.release();
                batch_size = batch_size.div_ceil(2);
            }
            other => return other,
        }
    }
}

fn evaluate_by(
    model: &mut SequenceClassifier,
    rows: &TokenizedDataset,
    labels: &LabelMap,
    batch_size: u32,
    label_smoothing: f32,
    keep_going: &dyn Fn() -> bool,
) -> Result<Option<Evaluation>, JobError> {
    let started = Instant::now();
    let mut scores = ClassificationMetrics::new(labels.labels().to_vec());
    let (mut loss, mut batches) = (0.0, 0u64);
    // A sequence does not depend on its neighbours.
    let tokens = match model.parameters().gpu() {
        None => CPU_TOKENS,
        Some(_) => usize::MAX,
    };
    for batch in Prefetch::start(rows.in_order(batch_size))? {
        let batch = batch?;
        if !keep_going() {
            return Ok(None);
        }
        batches += 1;
        for piece in batch.pieces(tokens) {
            let (sum, logits) = model
                .forward_loss(&input(&piece), &piece.labels, label_smoothing)
                .map_err(engine)?;
            loss += sum;
            let predictions: Vec<u32> = logits.chunks(labels.len()).map(argmax).collect();
            scores.update(&predictions, &piece.labels).map_err(engine)?;
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "row counts are far below 2^53")]
    let (n, batches) = (rows.len().max(1) as f64, batches as f64);
    let loss = loss / n;
    if !loss.is_finite() {
        return Err(JobError::new(
            ErrorCode::NonFiniteLoss,
            format!("the evaluation loss is {loss}"),
        )
        .at("/training_args/learning_rate")
        .hint("training has diverged: lower the learning rate or add warm-up"));
    }
    let seconds = started.elapsed().as_secs_f64().max(1e-9);
    let mut metrics: BTreeMap<String, f64> = scores
        .compute()
        .into_iter()
        .map(|(name, value)| (format!("eval_{name}"), value))
        .collect();
    metrics.insert("eval_loss".to_owned(), loss);
    metrics.insert("eval_runtime".to_owned(), round(seconds, 4));
    metrics.insert("eval_samples_per_second".to_owned(), round(n / seconds, 3));
    metrics.insert(
        "eval_steps_per_second".to_owned(),
        round(batches / seconds, 3),
    );
    Ok(Some(Evaluation {
        metrics,
        classes: scores.class_results(),
        majority_share: scores.majority_share(),
    }))
}

/// Index of the largest value; the first of equals.
pub fn argmax(row: &[f32]) -> u32 {
    let mut best = 0;
    for (i, x) in row.iter().enumerate() {
        if *x > row[best] {
            best = i;
        }
    }
    u32::try_from(best).unwrap_or(u32::MAX)
}

/// Rounded to `digits` decimal places, as HF reports speeds.
pub fn round(value: f64, digits: i32) -> f64 {
    let factor = 10f64.powi(digits);
    (value * factor).round() / factor
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn argmax_takes_the_first_of_equals() {
        assert_eq!(argmax(&[0.1, 0.7, 0.7]), 1);
        assert_eq!(argmax(&[]), 0);
    }

    #[test]
    fn rounding_keeps_the_digits() {
        assert_eq!(round(1.234_56, 3), 1.235);
    }
}
