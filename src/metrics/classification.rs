//! The metrics of sequence classification, together.

use std::collections::BTreeMap;

use crate::domain::ClassResult;

use super::{
    Accuracy, Averaging, ClassCounts, F1, MatthewsCorrelation, Metric, MetricError, Precision,
    Recall, class_results,
};

/// Counts an evaluation and gives every metric of it.
#[derive(Clone, Debug)]
pub struct ClassificationMetrics {
    labels: Vec<String>,
    counts: ClassCounts,
}

impl ClassificationMetrics {
    /// For classes of these names, in id order.
    pub fn new(labels: Vec<String>) -> Self {
        Self {
            counts: ClassCounts::new(labels.len()),
            labels,
        }
    }

    /// Counts a batch of class ids.
    ///
    /// # Errors
    /// If the lengths differ or an id is no class.
    pub fn update(&mut self, predictions: &[u32], labels: &[u32]) -> Result<(), MetricError> {
        self.counts.update(predictions, labels)
    }

    /// `accuracy`, `f1`, `precision` and `recall` (macro averages) and `matthews_correlation`.
    pub fn compute(&self) -> BTreeMap<&'static str, f64> {
        let metrics: [&dyn Metric; 5] = [
            &Accuracy,
            &F1(Averaging::Macro),
            &Precision(Averaging::Macro),
            &Recall(Averaging::Macro),
            &MatthewsCorrelation,
        ];
        metrics
            .into_iter()
            .map(|metric| (metric.name(), metric.compute(&self.counts)))
            .collect()
    }

    /// Every class by itself, in id order.
    pub fn class_results(&self) -> Vec<ClassResult> {
        class_results(&self.counts, &self.labels)
    }

    /// Share of the most frequent class: what always guessing it would score.
    pub fn majority_share(&self) -> f64 {
        self.counts.majority_share()
    }

    /// Forgets all rows.
    pub fn reset(&mut self) {
        self.counts.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_metrics_come_by_their_hugging_face_names() {
        let mut metrics = ClassificationMetrics::new(vec!["neg".into(), "pos".into()]);
        metrics.update(&[0, 1], &[0, 1]).unwrap();
        metrics.update(&[0], &[1]).unwrap();
        let computed = metrics.compute();
        let names: Vec<&str> = computed.keys().copied().collect();
        assert_eq!(
            names,
            [
                "accuracy",
                "f1",
                "matthews_correlation",
                "precision",
                "recall"
            ]
        );
        assert_eq!(computed["accuracy"], 2.0 / 3.0);
        assert_eq!((computed["precision"], computed["recall"]), (0.75, 0.75));
        assert_eq!(metrics.majority_share(), 2.0 / 3.0);
        let results = metrics.class_results();
        assert_eq!((results[1].label.as_str(), results[1].support), ("pos", 2));
        metrics.reset();
        assert_eq!(metrics.compute()["accuracy"], 0.0);
    }
}
