//! Packed micro-batches.
//!
//! Shapes in comments: T tokens, B sequences.

use super::tokenize::Encoded;

/// A packed micro-batch.
#[derive(Clone, Debug, PartialEq, Eq)]
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

impl Default for Batch {
    fn default() -> Self {
        Self {
            input_ids: Vec::new(),
            token_type_ids: Vec::new(),
            cu_seqlens: vec![0],
            labels: Vec::new(),
            sequence_keys: Vec::new(),
        }
    }
}

impl Batch {
    /// Texts to be labelled.
    pub fn unlabelled<'a>(rows: impl IntoIterator<Item = &'a Encoded>) -> Self {
        let mut batch = Self::default();
        for (key, row) in (0..).zip(rows) {
            batch.input_ids.extend_from_slice(&row.input_ids);
            batch.token_type_ids.extend_from_slice(&row.token_type_ids);
            batch.end_sequence(0, key);
        }
        batch
    }

    /// The tokens appended since the last call are a sequence.
    pub fn end_sequence(&mut self, label: u32, key: u64) {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a batch is far below 2^32 tokens"
        )]
        self.cu_seqlens.push(self.input_ids.len() as u32);
        self.labels.push(label);
        self.sequence_keys.push(key);
    }

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

    #[test]
    fn texts_are_packed_without_padding() {
        let rows = [
            Encoded::new(vec![7, 8, 9], vec![0, 0, 1]),
            Encoded::new(vec![], vec![]),
            Encoded::new(vec![5], vec![0]),
        ];
        let batch = Batch::unlabelled(&rows);
        assert_eq!(batch.input_ids, [7, 8, 9, 5]);
        assert_eq!(batch.token_type_ids, [0, 0, 1, 0]);
        assert_eq!(batch.cu_seqlens, [0, 3, 3, 4]);
        assert_eq!(batch.sequence_keys, [0, 1, 2]);
        assert_eq!((batch.sequences(), batch.tokens()), (3, 4));
        assert_eq!(Batch::default().cu_seqlens, [0]);
    }
}
