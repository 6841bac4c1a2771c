//! Holding out a share of the training rows for evaluation.

use crate::domain::{ErrorCode, JobError};

use super::sampler::Mt19937;

/// Row indexes of both parts, each ascending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Rows to train on.
    pub train: Vec<u32>,
    /// Rows to evaluate on.
    pub eval: Vec<u32>,
}

/// Holds out `share` of the rows, in (0, 1), of each label: `labels` has the label id of every row. The shares
/// are rounded so that about `share` of all rows are held out; every label keeps at least one row to train on.
/// The same arguments give the same split.
///
/// # Errors
/// `value_invalid` if no row could be held out.
pub fn stratified_split(labels: &[u32], share: f64, seed: u64) -> Result<Split, JobError> {
    let classes = labels.iter().max().map_or(0, |&max| max as usize + 1);
    let mut rows_of = vec![Vec::new(); classes];
    for (row, &label) in (0u32..).zip(labels) {
        rows_of[label as usize].push(row);
    }
    let counts: Vec<usize> = rows_of.iter().map(Vec::len).collect();
    let mut generator = Mt19937::new(seed);
    let mut held_out = vec![false; labels.len()];
    for (rows, quota) in rows_of.iter_mut().zip(quotas(&counts, share)) {
        generator.shuffle(rows);
        for &row in &rows[..quota] {
            held_out[row as usize] = true;
        }
    }
    let rows = (0u32..).zip(&held_out).map(|(row, _)| row);
    let (eval, train): (Vec<u32>, Vec<u32>) = rows.partition(|&row| held_out[row as usize]);
    if eval.is_empty() {
        let message = format!(
            "no row can be held out of {} rows with {classes} labels",
            labels.len()
        );
        return Err(JobError::new(ErrorCode::ValueInvalid, message)
            .at("/dataset/eval_split")
            .hint("upload an evaluation dataset, or give each label at least two rows"));
    }
    Ok(Split { train, eval })
}

/// Rows to hold out per label, by largest remainder; at least one stays.
fn quotas(counts: &[usize], share: f64) -> Vec<usize> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "row counts, scaled by a share below 1"
    )]
    let scaled = |count: usize| {
        let exact = count as f64 * share.clamp(0.0, 1.0);
        (exact.floor() as usize, exact.fract())
    };
    let most = |count: usize| count.saturating_sub(1);
    let mut quotas: Vec<usize> = counts.iter().map(|&c| scaled(c).0.min(most(c))).collect();
    let (whole, rest) = scaled(counts.iter().sum());
    let target = whole + usize::from(rest > 0.0);
    let mut by_remainder: Vec<usize> = (0..counts.len()).collect();
    by_remainder.sort_by(|&a, &b| scaled(counts[b]).1.total_cmp(&scaled(counts[a]).1));
    let mut missing = target.saturating_sub(quotas.iter().sum());
    for label in by_remainder {
        if missing > 0 && quotas[label] < most(counts[label]) {
            quotas[label] += 1;
            missing -= 1;
        }
    }
    quotas
}

#[cfg(test)]
mod tests {
    use super::*;

    fn per_label(rows: &[u32], labels: &[u32], classes: usize) -> Vec<usize> {
        let mut counts = vec![0; classes];
        for &row in rows {
            counts[labels[row as usize] as usize] += 1;
        }
        counts
    }

    #[test]
    fn each_label_gives_its_share() {
        let labels: Vec<u32> = (0..200).map(|i| u32::from(i % 4 == 0)).collect();
        let split = stratified_split(&labels, 0.1, 42).unwrap();
        assert_eq!(per_label(&split.eval, &labels, 2), [15, 5]);
        assert_eq!(split.train.len() + split.eval.len(), 200);
        assert!(split.train.is_sorted() && split.eval.is_sorted());
        let mut all = [split.train, split.eval].concat();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..200));
    }

    #[test]
    fn the_seed_decides() {
        let labels: Vec<u32> = (0..100).map(|i| i % 3).collect();
        let of = |seed| stratified_split(&labels, 0.2, seed).unwrap();
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }

    #[test]
    fn rounding_reaches_the_whole_share() {
        // Ten labels of three rows: 3.0 rows in all, 0.3 of each.
        let labels: Vec<u32> = (0..30).map(|i| i % 10).collect();
        assert_eq!(stratified_split(&labels, 0.1, 7).unwrap().eval.len(), 3);
        assert_eq!(quotas(&[10, 5, 5], 0.25), [3, 1, 1]);
        assert_eq!(quotas(&[7, 2], 0.5), [4, 1]);
    }

    #[test]
    fn every_label_keeps_a_row_to_train_on() {
        let labels = [0, 0, 0, 0, 1, 1, 2];
        let split = stratified_split(&labels, 0.9, 3).unwrap();
        assert_eq!(per_label(&split.train, &labels, 3), [1, 1, 1]);
        assert_eq!(per_label(&split.eval, &labels, 3), [3, 1, 0]);
    }

    #[test]
    fn labels_with_one_row_each_cannot_be_split() {
        for labels in [&[0, 1, 2][..], &[0], &[]] {
            let error = stratified_split(labels, 0.5, 1).unwrap_err();
            assert_eq!(error.code, ErrorCode::ValueInvalid);
            assert_eq!(error.pointer.as_deref(), Some("/dataset/eval_split"));
        }
    }
}
