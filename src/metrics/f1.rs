//! Precision, recall and F1: per class, and averaged as `sklearn.metrics.precision_recall_fscore_support` does.

use crate::domain::ClassResult;

use super::class_counts::ClassCount;
use super::{ClassCounts, Metric, ratio};

/// How classes are averaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Averaging {
    /// Every class that occurs, as label or prediction, counts the same.
    Macro,
    /// Every row counts the same; with one label per row this is accuracy.
    Micro,
    /// Classes count by their rows.
    Weighted,
}

/// Harmonic mean of precision and recall.
#[derive(Clone, Copy, Debug)]
pub struct F1(pub Averaging);

/// Of the rows predicted as a class, the share that are.
#[derive(Clone, Copy, Debug)]
pub struct Precision(pub Averaging);

/// Of the rows of a class, the share predicted so.
#[derive(Clone, Copy, Debug)]
pub struct Recall(pub Averaging);

impl Metric for F1 {
    fn name(&self) -> &'static str {
        "f1"
    }

    fn compute(&self, counts: &ClassCounts) -> f64 {
        average(counts, self.0, f1)
    }
}

impl Metric for Precision {
    fn name(&self) -> &'static str {
        "precision"
    }

    fn compute(&self, counts: &ClassCounts) -> f64 {
        average(counts, self.0, precision)
    }
}

impl Metric for Recall {
    fn name(&self) -> &'static str {
        "recall"
    }

    fn compute(&self, counts: &ClassCounts) -> f64 {
        average(counts, self.0, recall)
    }
}

/// Every class by itself, in id order; `labels` are the classes' names.
pub fn class_results(counts: &ClassCounts, labels: &[String]) -> Vec<ClassResult> {
    let result = |(class, label): (&ClassCount, &String)| ClassResult {
        label: label.clone(),
        precision: precision(class),
        recall: recall(class),
        f1: f1(class),
        support: class.support,
    };
    counts.classes().iter().zip(labels).map(result).collect()
}

fn precision(class: &ClassCount) -> f64 {
    ratio(class.correct, class.predicted)
}

fn recall(class: &ClassCount) -> f64 {
    ratio(class.correct, class.support)
}

fn f1(class: &ClassCount) -> f64 {
    ratio(2 * class.correct, class.predicted + class.support)
}

fn average(counts: &ClassCounts, averaging: Averaging, of: fn(&ClassCount) -> f64) -> f64 {
    let occurs = |class: &&ClassCount| class.predicted + class.support > 0;
    let classes = || counts.classes().iter().filter(occurs);
    #[expect(clippy::cast_precision_loss, reason = "row counts are far below 2^53")]
    match averaging {
        Averaging::Macro => {
            let sum: f64 = classes().map(of).sum();
            sum / classes().count().max(1) as f64
        }
        Averaging::Micro => of(&ClassCount {
            correct: counts.correct(),
            predicted: counts.rows(),
            support: counts.rows(),
        }),
        Averaging::Weighted => {
            let sum: f64 = classes()
                .map(|class| class.support as f64 * of(class))
                .sum();
            sum / counts.rows().max(1) as f64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{assert_close, counts_of, example};
    use super::*;

    /// scikit-learn 1.9: `precision_recall_fscore_support(y, p, average=…)` of the example.
    #[test]
    fn averages_are_those_of_scikit_learn() {
        let counts = example();
        for (averaging, expected) in [
            (
                Averaging::Macro,
                [0.4375, 0.479_166_666_666_666_63, 0.454_166_666_666_666_66],
            ),
            (Averaging::Micro, [0.6, 0.6, 0.6]),
            (Averaging::Weighted, [0.566_666_666_666_666_7, 0.6, 0.58]),
        ] {
            assert_close(Precision(averaging).compute(&counts), expected[0]);
            assert_close(Recall(averaging).compute(&counts), expected[1]);
            assert_close(F1(averaging).compute(&counts), expected[2]);
        }
    }

    /// By hand: class 0 has 2 right of 3 predicted and 3 true, class 1 has 1 of 3 and 2, class 2 has 3 of 4 and 4,
    /// class 3 none of 0 and 1.
    #[test]
    fn classes_are_those_of_scikit_learn() {
        let labels: Vec<String> = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
        let results = class_results(&example(), &labels);
        let expected = [
            (2.0 / 3.0, 2.0 / 3.0, 2.0 / 3.0, 3),
            (1.0 / 3.0, 0.5, 0.4, 2),
            (0.75, 0.75, 0.75, 4),
            (0.0, 0.0, 0.0, 1),
        ];
        assert_eq!(results.len(), 4);
        for (result, (precision, recall, f1, support)) in results.iter().zip(expected) {
            assert_close(result.precision, precision);
            assert_close(result.recall, recall);
            assert_close(result.f1, f1);
            assert_eq!(result.support, support);
        }
        assert_eq!(results[3].label, "d");
    }

    /// scikit-learn 1.9: y = [0, 1, 1], p = [0, 1, 0] gives macro 0.6667, 0.75, 0.75 whatever other labels exist.
    #[test]
    fn classes_that_do_not_occur_do_not_count() {
        let counts = counts_of(5, &[0, 1, 1], &[0, 1, 0]);
        assert_close(
            F1(Averaging::Macro).compute(&counts),
            0.666_666_666_666_666_6,
        );
        assert_close(Precision(Averaging::Macro).compute(&counts), 0.75);
        assert_close(Recall(Averaging::Macro).compute(&counts), 0.75);
    }

    #[test]
    fn without_rows_everything_is_zero() {
        for averaging in [Averaging::Macro, Averaging::Micro, Averaging::Weighted] {
            assert_eq!(F1(averaging).compute(&ClassCounts::new(3)), 0.0);
        }
    }
}
