//! What a look at the data says before training on it.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::labels::SeenLabels;
use super::token_cache::RowFacts;

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
    /// Half of the rows have at most this many tokens.
    pub tokens_p50: u64,
    /// 95 % of the rows have at most this many tokens.
    pub tokens_p95: u64,
    /// Tokens of the longest row, after truncation.
    pub tokens_max: u64,
    /// Share of the rows that were cut, in [0, 1].
    pub truncated_share: f64,
    /// Rows whose text an earlier row has already.
    pub duplicate_rows: u64,
}

/// Rows to report on: eight bytes of memory each while it is done.
#[derive(Clone, Copy, Debug)]
pub struct SetFacts<'a> {
    /// Of every row of the file.
    pub facts: &'a [RowFacts],
    /// The rows of the file that belong to the set; all of them if none are given.
    pub rows: Option<&'a [u32]>,
    /// The file's labels.
    pub labels: &'a SeenLabels,
}

impl<'a> SetFacts<'a> {
    fn iter(&self) -> Box<dyn Iterator<Item = &'a RowFacts> + 'a> {
        let facts = self.facts;
        match self.rows {
            None => Box::new(facts.iter()),
            Some(rows) => Box::new(rows.iter().filter_map(|&row| facts.get(row as usize))),
        }
    }

    /// Hashes of the texts, ascending.
    fn text_hashes(&self) -> Vec<u64> {
        let mut hashes = Vec::with_capacity(self.rows.map_or(self.facts.len(), <[u32]>::len));
        hashes.extend(self.iter().map(|row| row.text_hash));
        hashes.sort_unstable();
        hashes
    }
}

impl DatasetReport {
    /// Looks at what is known of the rows.
    pub fn new(train: &SetFacts<'_>, eval: Option<&SetFacts<'_>>) -> Self {
        let train_hashes = train.text_hashes();
        let mut overlapping_rows = 0;
        let eval = eval.map(|eval| {
            let hashes = eval.text_hashes();
            overlapping_rows = common(&train_hashes, &hashes);
            SetReport::new(eval, &hashes)
        });
        Self {
            train: SetReport::new(train, &train_hashes),
            eval,
            overlapping_rows,
        }
    }
}

/// How many of `there` are also in `here`; both ascend.
fn common(here: &[u64], there: &[u64]) -> u64 {
    let mut here = here.iter().peekable();
    let is_here = |hash: &&u64| {
        while here.next_if(|next| *next < *hash).is_some() {}
        here.peek() == Some(hash)
    };
    there.iter().filter(is_here).count() as u64
}

impl SetReport {
    /// `text_hashes` ascend.
    fn new(set: &SetFacts<'_>, text_hashes: &[u64]) -> Self {
        let rows = text_hashes.len() as u64;
        let mut labels = vec![0; set.labels.len()];
        // By number of tokens: as many counters as a sequence has positions.
        let mut lengths: Vec<u64> = Vec::new();
        let (mut tokens, mut truncated) = (0, 0);
        for row in set.iter() {
            let length = row.tokens as usize;
            if lengths.len() <= length {
                lengths.resize(length + 1, 0);
            }
            lengths[length] += 1;
            tokens += u64::from(row.tokens);
            truncated += u64::from(row.cut);
            if let Some(count) = labels.get_mut(usize::from(row.label)) {
                *count += 1;
            }
        }
        let counted = set.labels.names().map(str::to_owned).zip(labels);
        let repeats = text_hashes.windows(2).filter(|pair| pair[0] == pair[1]);
        Self {
            rows,
            label_counts: counted.filter(|(_, count)| *count > 0).collect(),
            tokens_min: quantile(&lengths, 1),
            tokens_mean: ratio(tokens, rows),
            tokens_p50: quantile(&lengths, rows.div_ceil(2)),
            tokens_p95: quantile(&lengths, (rows * 95).div_ceil(100)),
            tokens_max: lengths.len().saturating_sub(1) as u64,
            truncated_share: ratio(truncated, rows),
            duplicate_rows: repeats.count() as u64,
        }
    }
}

/// The length of the row that is the `rank`th, counted from 1 and from the shortest on.
fn quantile(lengths: &[u64], rank: u64) -> u64 {
    let mut passed = 0;
    let reaches = |&count: &u64| {
        passed += count;
        passed >= rank
    };
    lengths.iter().position(reaches).unwrap_or(0) as u64
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

impl fmt::Display for SetReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} rows, {} labels, {}–{} tokens a row (mean {:.1}, half up to {}, 95 % up to {}), {:.1} % cut, \
             {} duplicates",
            self.rows,
            self.label_counts.len(),
            self.tokens_min,
            self.tokens_max,
            self.tokens_mean,
            self.tokens_p50,
            self.tokens_p95,
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

    /// Rows of texts and labels, each character a token, cut at five.
    fn set(rows: &[(&str, &str)]) -> (Vec<RowFacts>, SeenLabels) {
        let mut labels = SeenLabels::default();
        let facts = rows.iter().map(|(text, label)| RowFacts {
            text_hash: text
                .bytes()
                .fold(7, |hash, byte| hash * 31 + u64::from(byte)),
            tokens: text.len().min(5) as u32,
            label: labels.number(label, 1, "train").unwrap(),
            cut: text.len() > 5,
        });
        (facts.collect(), labels)
    }

    fn all(set: &(Vec<RowFacts>, SeenLabels)) -> SetFacts<'_> {
        SetFacts {
            facts: &set.0,
            rows: None,
            labels: &set.1,
        }
    }

    #[test]
    fn counts_lengths_duplicates_and_overlaps() {
        let train = set(&[("abc", "x"), ("a", "y"), ("abc", "y"), ("abcdef", "x")]);
        let eval = set(&[("abc", "x"), ("zz", "x"), ("abc", "x")]);
        let report = DatasetReport::new(&all(&train), Some(&all(&eval)));
        assert_eq!(
            report.train,
            SetReport {
                rows: 4,
                label_counts: BTreeMap::from([("x".into(), 2), ("y".into(), 2)]),
                tokens_min: 1,
                tokens_mean: 3.0,
                tokens_p50: 3,
                tokens_p95: 5,
                tokens_max: 5,
                truncated_share: 0.25,
                duplicate_rows: 1,
            }
        );
        assert_eq!(report.overlapping_rows, 2);
        assert_eq!(
            report.to_string(),
            "train: 4 rows, 2 labels, 1–5 tokens a row (mean 3.0, half up to 3, 95 % up to 5), 25.0 % cut, \
             1 duplicates; eval: 3 rows, 1 labels, 2–3 tokens a row (mean 2.7, half up to 3, 95 % up to 3), \
             0.0 % cut, 1 duplicates, 2 also in train"
        );
    }

    #[test]
    fn a_set_may_be_some_rows_of_a_file() {
        let file = set(&[
            ("a", "x"),
            ("bb", "y"),
            ("a", "x"),
            ("bb", "y"),
            ("ccc", "z"),
        ]);
        let part = |rows| SetFacts {
            rows: Some(rows),
            ..all(&file)
        };
        let report = DatasetReport::new(&part(&[0, 2, 4]), Some(&part(&[1, 3])));
        assert_eq!((report.train.rows, report.train.duplicate_rows), (3, 1));
        assert_eq!((report.train.tokens_p50, report.train.tokens_p95), (1, 3));
        let eval = report.eval.unwrap();
        assert_eq!(eval.label_counts, BTreeMap::from([("y".into(), 2)]));
        assert_eq!((eval.duplicate_rows, report.overlapping_rows), (1, 0));
        let report = DatasetReport::new(&part(&[0, 1]), Some(&part(&[2, 3, 4])));
        assert_eq!(report.overlapping_rows, 2);
    }

    #[test]
    fn without_rows_there_is_nothing_to_divide() {
        let report = DatasetReport::new(&all(&set(&[])), None);
        assert_eq!((report.train.rows, report.train.tokens_mean), (0, 0.0));
        assert!(report.eval.is_none());
    }
}
