//! What a look at the data says before training on it.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::examples::Example;
use super::tokenize::Encoded;

/// Both sets, and what they share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatasetReport {
    /// The training rows.
    pub train: SetReport,
    /// The evaluation rows, if there are any.
    pub eval: Option<SetReport>,
    /// Evaluation rows whose text is also a training row's: they make the evaluation look better than it is.
    pub overlapping_rows: u64,
}

/// One set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetReport {
    /// Rows.
    pub rows: u64,
    /// Rows of each label.
    pub label_counts: BTreeMap<String, u64>,
    /// Tokens of the shortest row, special ones included.
    pub tokens_min: u64,
    /// Tokens of a row on average.
    pub tokens_mean: f64,
    /// Tokens of the longest row, after truncation.
    pub tokens_max: u64,
    /// Share of the rows that were cut, in [0, 1].
    pub truncated_share: f64,
    /// Rows whose text an earlier row has already.
    pub duplicate_rows: u64,
}

impl DatasetReport {
    /// Looks at examples and their tokens, in the same order.
    pub fn new(train: (&[Example], &[Encoded]), eval: Option<(&[Example], &[Encoded])>) -> Self {
        let seen: HashSet<_> = train.0.iter().map(text_of).collect();
        let overlapping = |examples: &[Example]| {
            let overlaps = |example: &&Example| seen.contains(&text_of(example));
            examples.iter().filter(overlaps).count() as u64
        };
        Self {
            train: SetReport::new(train.0, train.1),
            eval: eval.map(|(examples, encoded)| SetReport::new(examples, encoded)),
            overlapping_rows: eval.map_or(0, |(examples, _)| overlapping(examples)),
        }
    }
}

impl SetReport {
    fn new(examples: &[Example], encoded: &[Encoded]) -> Self {
        let mut label_counts = BTreeMap::new();
        for example in examples {
            *label_counts.entry(example.label.clone()).or_insert(0) += 1;
        }
        let distinct: HashSet<_> = examples.iter().map(text_of).collect();
        let lengths = || encoded.iter().map(|row| row.input_ids.len() as u64);
        let truncated = encoded.iter().filter(|row| row.truncated).count() as u64;
        Self {
            rows: examples.len() as u64,
            label_counts,
            tokens_min: lengths().min().unwrap_or(0),
            tokens_mean: ratio(lengths().sum(), encoded.len() as u64),
            tokens_max: lengths().max().unwrap_or(0),
            truncated_share: ratio(truncated, encoded.len() as u64),
            duplicate_rows: (examples.len() - distinct.len()) as u64,
        }
    }
}

fn text_of(example: &Example) -> (&str, Option<&str>) {
    (&example.text, example.text_pair.as_deref())
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

impl fmt::Display for SetReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} rows, {} labels, {}–{} tokens a row (mean {:.1}), {:.1} % cut, {} duplicates",
            self.rows,
            self.label_counts.len(),
            self.tokens_min,
            self.tokens_max,
            self.tokens_mean,
            100.0 * self.truncated_share,
            self.duplicate_rows,
        )
    }
}

/// One line for people.
impl fmt::Display for DatasetReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "train: {}", self.train)?;
        if let Some(eval) = &self.eval {
            write!(f, "; eval: {eval}, {} also in train", self.overlapping_rows)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(rows: &[(&str, &str)]) -> (Vec<Example>, Vec<Encoded>) {
        rows.iter()
            .map(|&(text, label)| {
                let example = Example {
                    line: 1,
                    text: text.into(),
                    text_pair: None,
                    label: label.into(),
                };
                let mut encoded = Encoded::new(vec![0; text.len()], vec![0; text.len()]);
                encoded.truncated = text.len() > 3;
                (example, encoded)
            })
            .unzip()
    }

    #[test]
    fn counts_lengths_duplicates_and_overlaps() {
        let train = set(&[("abc", "x"), ("a", "y"), ("abc", "y"), ("abcde", "x")]);
        let eval = set(&[("abc", "x"), ("zz", "x")]);
        let report = DatasetReport::new((&train.0, &train.1), Some((&eval.0, &eval.1)));
        assert_eq!(
            report.train,
            SetReport {
                rows: 4,
                label_counts: BTreeMap::from([("x".into(), 2), ("y".into(), 2)]),
                tokens_min: 1,
                tokens_mean: 3.0,
                tokens_max: 5,
                truncated_share: 0.25,
                duplicate_rows: 1,
            }
        );
        assert_eq!(report.overlapping_rows, 1);
        assert_eq!(
            report.to_string(),
            "train: 4 rows, 2 labels, 1–5 tokens a row (mean 3.0), 25.0 % cut, 1 duplicates; \
             eval: 2 rows, 1 labels, 2–3 tokens a row (mean 2.5), 0.0 % cut, 0 duplicates, 1 also in train"
        );
    }

    #[test]
    fn without_rows_there_is_nothing_to_divide() {
        let report = DatasetReport::new((&[], &[]), None);
        assert_eq!((report.train.rows, report.train.tokens_mean), (0, 0.0));
        assert!(report.eval.is_none());
    }
}
