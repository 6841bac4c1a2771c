//! Classification metrics, streamed: batches are counted into [`ClassCounts`], and each metric is a pure function
//! of the counts, so the result does not depend on the batch size and takes O(C) memory for C classes.

mod accuracy;
mod class_counts;
mod classification;
mod f1;
mod matthews_correlation;

pub use accuracy::Accuracy;
pub use class_counts::{ClassCounts, MetricError};
pub use classification::ClassificationMetrics;
pub use f1::{Averaging, F1, Precision, Recall, class_results};
pub use matthews_correlation::MatthewsCorrelation;

/// One number that says how good predictions are.
pub trait Metric {
    /// Hugging Face's name, without `eval_`.
    fn name(&self) -> &'static str;

    /// Whether a larger value is better.
    fn higher_is_better(&self) -> bool {
        true
    }

    /// The value; 0 where it is undefined, as with scikit-learn's `zero_division=0`.
    fn compute(&self, counts: &ClassCounts) -> f64;
}

/// `part / whole`, or 0 if there is nothing to divide by.
#[expect(clippy::cast_precision_loss, reason = "row counts are far below 2^53")]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

/// scikit-learn 1.9 was asked about these: four classes, ten rows.
#[cfg(test)]
fn example() -> ClassCounts {
    let mut counts = ClassCounts::new(4);
    let labels = [0, 0, 0, 1, 1, 2, 2, 2, 2, 3];
    let predictions = [0, 0, 1, 1, 2, 2, 2, 0, 2, 1];
    counts.update(&predictions, &labels).unwrap();
    counts
}

#[cfg(test)]
fn counts_of(classes: usize, labels: &[u32], predictions: &[u32]) -> ClassCounts {
    let mut counts = ClassCounts::new(classes);
    counts.update(predictions, labels).unwrap();
    counts
}

#[cfg(test)]
fn assert_close(actual: f64, expected: f64) {
    assert!(
        (actual - expected).abs() < 1e-12,
        "{actual} is not {expected}"
    );
}
