//! Share of right predictions.

use super::{ClassCounts, Metric, ratio};

/// `sklearn.metrics.accuracy_score`
#[derive(Clone, Copy, Debug)]
pub struct Accuracy;

impl Metric for Accuracy {
    fn name(&self) -> &'static str {
        "accuracy"
    }

    fn compute(&self, counts: &ClassCounts) -> f64 {
        ratio(counts.correct(), counts.rows())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{counts_of, example};
    use super::*;

    /// `accuracy_score(y, p)` is 0.6 for the example: 6 of 10.
    #[test]
    fn it_is_the_share_of_right_rows() {
        assert_eq!(Accuracy.compute(&example()), 0.6);
        assert_eq!(Accuracy.compute(&counts_of(2, &[1, 0], &[1, 0])), 1.0);
        assert_eq!(Accuracy.compute(&ClassCounts::new(2)), 0.0);
        assert!(Accuracy.higher_is_better());
    }
}
