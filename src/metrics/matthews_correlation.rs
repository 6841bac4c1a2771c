//! Matthews correlation coefficient for any number of classes (Gorodkin 2004): in [-1, 1], 0 for guessing.

use super::{ClassCounts, Metric};

/// `sklearn.metrics.matthews_corrcoef`
#[derive(Clone, Copy, Debug)]
pub struct MatthewsCorrelation;

impl Metric for MatthewsCorrelation {
    fn name(&self) -> &'static str {
        "matthews_correlation"
    }

    #[expect(clippy::cast_precision_loss, reason = "row counts are far below 2^53")]
    fn compute(&self, counts: &ClassCounts) -> f64 {
        let rows = counts.rows() as f64;
        let (mut both, mut predicted, mut support) = (0.0, 0.0, 0.0);
        for class in counts.classes() {
            let (p, s) = (class.predicted as f64, class.support as f64);
            both += p * s;
            predicted += p * p;
            support += s * s;
        }
        let covariance = counts.correct() as f64 * rows - both;
        let variances = (rows * rows - predicted) * (rows * rows - support);
        if variances > 0.0 {
            covariance / variances.sqrt()
        } else {
            0.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{assert_close, counts_of, example};
    use super::*;

    /// scikit-learn 1.9 `matthews_corrcoef(y, p)`; the second by hand: tp 2, fp 1, fn 1, tn 0 gives
    /// (2·0 - 1·1) / sqrt(3·3·1·1) = -1/3.
    #[test]
    fn it_is_that_of_scikit_learn() {
        assert_close(
            MatthewsCorrelation.compute(&example()),
            0.426_655_167_593_962_27,
        );
        let binary = counts_of(2, &[1, 1, 1, 0], &[1, 0, 1, 1]);
        assert_close(MatthewsCorrelation.compute(&binary), -1.0 / 3.0);
        let inverted = counts_of(2, &[0, 1, 0, 1], &[1, 0, 1, 0]);
        assert_close(MatthewsCorrelation.compute(&inverted), -1.0);
    }

    #[test]
    fn with_one_class_it_is_zero() {
        assert_eq!(
            MatthewsCorrelation.compute(&counts_of(2, &[1; 3], &[1; 3])),
            0.0
        );
        assert_eq!(MatthewsCorrelation.compute(&ClassCounts::new(2)), 0.0);
    }
}
