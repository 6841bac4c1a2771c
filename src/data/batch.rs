//! Tokenised rows in flat storage, and packed micro-batches of them.
//!
//! Shapes in comments: T tokens, B sequences.

use super::tokenize::Encoded;

/// Tokenised rows, one after the other.
#[derive(Clone, Debug)]
pub struct TokenizedDataset {
    input_ids: Vec<u32>,
    token_type_ids: Vec<u32>,
    /// Where each row starts, and where the last ends.
    offsets: Vec<usize>,
    labels: Vec<u32>,
}

impl Default for TokenizedDataset {
    fn default() -> Self {
        Self {
            input_ids: Vec::new(),
            token_type_ids: Vec::new(),
            offsets: vec![0],
            labels: Vec::new(),
        }
    }
}

impl TokenizedDataset {
    /// Stores rows with their label ids.
    pub fn new<'a>(rows: impl IntoIterator<Item = (&'a Encoded, u32)>) -> Self {
        let mut dataset = Self::default();
        for (encoded, label) in rows {
            dataset.push(encoded, label);
        }
        dataset
    }

    /// Appends a row.
    pub fn push(&mut self, encoded: &Encoded, label: u32) {
        self.input_ids.extend_from_slice(&encoded.input_ids);
        self.token_type_ids
            .extend_from_slice(&encoded.token_type_ids);
        self.offsets.push(self.input_ids.len());
        self.labels.push(label);
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Tokens in all rows.
    pub fn token_count(&self) -> usize {
        self.input_ids.len()
    }

    /// Label ids in row order.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// Packs rows, in the order given, without padding.
    ///
    /// # Panics
    /// If a row does not exist: rows come from a sampler of this dataset's length.
    pub fn batch(&self, rows: &[u32]) -> Batch {
        let mut batch = Batch {
            cu_seqlens: vec![0],
            ..Batch::default()
        };
        for &row in rows {
            let index = row as usize;
            let tokens = self.offsets[index]..self.offsets[index + 1];
            batch
                .input_ids
                .extend_from_slice(&self.input_ids[tokens.clone()]);
            batch
                .token_type_ids
                .extend_from_slice(&self.token_type_ids[tokens]);
            #[expect(
                clippy::cast_possible_truncation,
                reason = "a batch is far below 2^32 tokens"
            )]
            batch.cu_seqlens.push(batch.input_ids.len() as u32);
            batch.labels.push(self.labels[index]);
            batch.sequence_keys.push(u64::from(row));
        }
        batch
    }

    /// All rows in file order, `batch_size` at a time: the batches of an evaluation.
    pub fn in_order(&self, batch_size: u32) -> impl Iterator<Item = Batch> + '_ {
        let size = batch_size.max(1) as usize;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "readers allow fewer than 2^32 rows"
        )]
        (0..self.len()).step_by(size).map(move |start| {
            let end = self.len().min(start + size);
            self.batch(&(start as u32..end as u32).collect::<Vec<u32>>())
        })
    }
}

/// A packed micro-batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// `[T]`
    pub input_ids: Vec<u32>,
    /// `[T]`
    pub token_type_ids: Vec<u32>,
    /// `[B + 1]`: where each sequence starts; the last is T.
    pub cu_seqlens: Vec<u32>,
    /// `[B]`
    pub labels: Vec<u32>,
    /// `[B]`: the row in the dataset, which names the sequence to dropout whatever batch it is in.
    pub sequence_keys: Vec<u64>,
}

impl Batch {
    /// B.
    pub fn sequences(&self) -> usize {
        self.labels.len()
    }

    /// T.
    pub fn tokens(&self) -> usize {
        self.input_ids.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dataset(lengths: &[u32]) -> TokenizedDataset {
        let rows: Vec<(Encoded, u32)> = (0u32..)
            .zip(lengths)
            .map(|(row, &length)| {
                let ids = (0..length).map(|i| row * 100 + i).collect();
                let types = (0..length).map(|i| u32::from(i >= 2)).collect();
                (Encoded::new(ids, types), row % 3)
            })
            .collect();
        TokenizedDataset::new(rows.iter().map(|(encoded, label)| (encoded, *label)))
    }

    #[test]
    fn rows_are_packed_in_the_order_given() {
        let dataset = dataset(&[3, 1, 2]);
        assert_eq!((dataset.len(), dataset.token_count()), (3, 6));
        assert_eq!(
            dataset.batch(&[2, 0]),
            Batch {
                input_ids: vec![200, 201, 0, 1, 2],
                token_type_ids: vec![0, 0, 0, 0, 1],
                cu_seqlens: vec![0, 2, 5],
                labels: vec![2, 0],
                sequence_keys: vec![2, 0],
            }
        );
        assert_eq!(dataset.batch(&[]).cu_seqlens, [0]);
    }

    #[test]
    fn evaluation_batches_keep_the_order_of_the_file() {
        let dataset = dataset(&[1, 2, 3, 4, 5]);
        let batches: Vec<Batch> = dataset.in_order(2).collect();
        let keys: Vec<&[u64]> = batches.iter().map(|b| &b.sequence_keys[..]).collect();
        assert_eq!(keys, [&[0, 1][..], &[2, 3], &[4]]);
        let tokens: Vec<usize> = batches.iter().map(Batch::tokens).collect();
        assert_eq!(tokens, [3, 7, 5]);
        assert!(TokenizedDataset::default().in_order(2).next().is_none());
    }
}
