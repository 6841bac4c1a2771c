//! Which rows of an embedding table matter: a batch of a few hundred tokens reads as many rows of thirty
//! thousand, and the gradients of all others are zero.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A set of row numbers: one bit each, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowSet(Vec<u64>);

impl RowSet {
    /// Adds one.
    pub fn insert(&mut self, row: u32) {
        let word = row as usize / 64;
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (row % 64);
    }

    /// Adds all of another set.
    pub fn union(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (word, other) in self.0.iter_mut().zip(&other.0) {
            *word |= other;
        }
    }

    /// All of them, rising.
    pub fn to_vec(&self) -> Vec<u32> {
        let words = (0..).step_by(64).zip(&self.0);
        let rows = words.flat_map(|(first, &word)| {
            (0..64)
                .filter(move |bit| word >> bit & 1 == 1)
                .map(move |bit| first + bit)
        });
        rows.collect()
    }
}

impl FromIterator<u32> for RowSet {
    fn from_iter<I: IntoIterator<Item = u32>>(rows: I) -> Self {
        let mut set = Self::default();
        rows.into_iter().for_each(|row| set.insert(row));
        set
    }
}

/// The rows of a table that got a gradient since it was last zeroed. All others of the gradient are zero.
/// Clones share the set, as clones of a parameter share its gradient.
#[derive(Clone, Debug, Default)]
pub struct TouchedRows(Arc<Mutex<RowSet>>);

impl TouchedRows {
    /// Takes note of rows, before their gradients are added to.
    pub fn mark(&self, rows: &[u32]) {
        let mut set = self.lock();
        rows.iter().for_each(|&row| set.insert(row));
    }

    /// All gradients are zero again.
    pub fn clear(&self) {
        self.lock().0.clear();
    }

    /// The rows, rising.
    pub fn to_vec(&self) -> Vec<u32> {
        self.lock().to_vec()
    }

    /// Adds the rows to a set.
    pub fn add_to(&self, set: &mut RowSet) {
        set.union(&self.lock());
    }

    /// Bits are set one by one: a panic leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, RowSet> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_in_order_and_once() {
        let touched = TouchedRows::default();
        touched.mark(&[200, 3, 64]);
        touched.clone().mark(&[63, 3, 0]);
        assert_eq!(touched.to_vec(), [0, 3, 63, 64, 200]);
        touched.clear();
        assert!(touched.to_vec().is_empty());
    }

    #[test]
    fn a_union_holds_both() {
        let (mut short, mut long) = (RowSet::from_iter([1, 2]), RowSet::from_iter([2, 500]));
        let touched = TouchedRows::default();
        touched.mark(&[500, 7]);
        touched.add_to(&mut short);
        assert_eq!(short.to_vec(), [1, 2, 7, 500]);
        long.union(&RowSet::from_iter([0]));
        assert_eq!(long.to_vec(), [0, 2, 500]);
    }
}
