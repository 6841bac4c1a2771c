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

    /// The same sequences, in order, in batches of at most `tokens` tokens, or of one sequence that is longer.
    pub fn pieces(&self, tokens: usize) -> Vec<Self> {
        let mut pieces: Vec<Self> = Vec::new();
        for (index, bounds) in self.cu_seqlens.windows(2).enumerate() {
            let len = (bounds[1] - bounds[0]) as usize;
            let room = |piece: &&mut Self| piece.tokens() + len <= tokens;
            let piece = match pieces.last_mut().filter(room) {
                Some(piece) => piece,
                None => pieces.push_mut(Self::default()),
            };
            piece.copy_sequence(self, index);
        }
        pieces
    }

    /// Appends a sequence of another batch.
    fn copy_sequence(&mut self, from: &Self, index: usize) {
        let range = from.cu_seqlens[index] as usize..from.cu_seqlens[index + 1] as usize;
        self.input_ids
            .extend_from_slice(&from.input_ids[range.clone()]);
        self.token_type_ids
            .extend_from_slice(&from.token_type_ids[range]);
        self.end_sequence(from.labels[index], from.sequence_keys[index]);
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
    fn pieces_are_the_whole_in_order_and_as_large_as_they_may_be() {
        let mut batch = Batch::default();
        for (key, len) in [3, 2, 9, 0, 4, 1].into_iter().enumerate() {
            for token in 0..len {
                batch.input_ids.push(token + 10 * key as u32);
                batch.token_type_ids.push(token % 2);
            }
            batch.end_sequence(key as u32 % 3, key as u64 + 7);
        }
        let pieces = batch.pieces(5);
        let lens: Vec<usize> = pieces.iter().map(Batch::tokens).collect();
        assert_eq!(lens, [5, 9, 5]);
        let mut again = Batch::default();
        for piece in &pieces {
            for index in 0..piece.sequences() {
                again.copy_sequence(piece, index);
            }
        }
        assert_eq!(again, batch);
        assert_eq!(batch.pieces(usize::MAX), [batch]);
        assert_eq!(Batch::default().pieces(5), []);
    }

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
