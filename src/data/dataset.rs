//! The rows to train or evaluate on: those of a token cache, or some of them, with the training's label ids.

use std::sync::Arc;

use super::batch::Batch;
use super::token_cache::TokenFile;
use crate::domain::JobError;

/// Tokenised rows. They stay in the file; cheap to clone.
#[derive(Clone, Debug)]
pub struct TokenizedDataset {
    tokens: Arc<TokenFile>,
    /// Which rows of the file, ascending; all of them if none are given.
    rows: Option<Arc<[u32]>>,
    /// The training's ids of the file's labels.
    label_ids: Arc<[u32]>,
}

impl TokenizedDataset {
    /// All rows of a file.
    pub fn new(tokens: Arc<TokenFile>, label_ids: impl Into<Arc<[u32]>>) -> Self {
        Self {
            tokens,
            rows: None,
            label_ids: label_ids.into(),
        }
    }

    /// Some of the file's rows.
    #[must_use]
    pub fn part(&self, rows: impl Into<Arc<[u32]>>) -> Self {
        Self {
            rows: Some(rows.into()),
            ..self.clone()
        }
    }

    /// Which rows of the file they are; all of them if none are given.
    pub fn rows(&self) -> Option<&[u32]> {
        self.rows.as_deref()
    }

    /// The training's id of one of the file's labels.
    pub fn label_id(&self, number: u16) -> u32 {
        // The file was checked to name none but its own.
        self.label_ids[usize::from(number)]
    }

    /// Rows.
    pub fn len(&self) -> usize {
        match &self.rows {
            Some(rows) => rows.len(),
            None => self.tokens.len(),
        }
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads rows and packs them, in the order given, without padding.
    ///
    /// # Errors
    /// `internal_error` if the token cache was damaged since it was opened.
    pub fn batch(&self, rows: &[u32]) -> Result<Batch, JobError> {
        let mut batch = Batch::default();
        self.tokens
            .read(&self.in_file(rows), &self.label_ids, rows, &mut batch)?;
        Ok(batch)
    }

    /// Lines of the uploaded file on which rows start.
    ///
    /// # Errors
    /// As [`Self::batch`].
    pub fn lines(&self, rows: &[u32]) -> Result<Vec<u64>, JobError> {
        self.tokens.lines(&self.in_file(rows))
    }

    /// All rows in the file's order, `batch_size` at a time: the batches of an evaluation.
    pub fn in_order(
        &self,
        batch_size: u32,
    ) -> impl Iterator<Item = Result<Batch, JobError>> + use<> {
        let dataset = self.clone();
        let (size, end) = (
            batch_size.max(1),
            u32::try_from(self.len()).unwrap_or(u32::MAX),
        );
        (0..end).step_by(size as usize).map(move |start| {
            let rows: Vec<u32> = (start..end.min(start.saturating_add(size))).collect();
            dataset.batch(&rows)
        })
    }

    fn in_file(&self, rows: &[u32]) -> Vec<u32> {
        // A row that is not there is one that the file does not have.
        let in_file = |&row: &u32| match &self.rows {
            Some(part) => part.get(row as usize).copied().unwrap_or(u32::MAX),
            None => row,
        };
        rows.iter().map(in_file).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::{Sample, short_rows};

    #[test]
    fn evaluation_batches_keep_the_order_of_the_file() {
        let rows = Sample::new(&short_rows(5)).rows();
        let batches: Vec<Batch> = rows.in_order(2).map(Result::unwrap).collect();
        let keys: Vec<&[u64]> = batches.iter().map(|b| &b.sequence_keys[..]).collect();
        assert_eq!(keys, [&[0, 1][..], &[2, 3], &[4]]);
        let tokens: Vec<usize> = batches.iter().map(Batch::tokens).collect();
        assert_eq!(tokens, [7, 11, 7]);
    }

    #[test]
    fn a_part_counts_its_own_rows() {
        let all = Sample::new(&short_rows(6)).rows();
        let part = all.part([1, 2, 5]);
        assert_eq!((all.len(), part.len()), (6, 3));
        assert_eq!(part.lines(&[0, 2]).unwrap(), [3, 7]);
        let (batch, whole) = (part.batch(&[2, 0]).unwrap(), all.batch(&[5, 1]).unwrap());
        assert_eq!(batch.sequence_keys, [2, 0], "rows of the part");
        assert_eq!(batch.input_ids, whole.input_ids);
        assert_eq!(batch.labels, whole.labels);
        let keys = |rows: &TokenizedDataset| -> Vec<u64> {
            rows.in_order(4)
                .flat_map(|b| b.unwrap().sequence_keys)
                .collect()
        };
        assert_eq!(keys(&part), [0, 1, 2]);
        assert!(part.batch(&[3]).is_err());
        assert!(all.part([]).in_order(2).next().is_none());
    }

    #[test]
    fn labels_have_the_trainings_ids() {
        let sample = Sample::new("text,label\na,x\nb,y\nc,x\n");
        let rows = TokenizedDataset {
            label_ids: [7, 3].into(),
            ..sample.rows()
        };
        assert_eq!(rows.batch(&[1, 0, 2]).unwrap().labels, [3, 7, 7]);
        assert_eq!(rows.label_id(1), 3);
    }
}
