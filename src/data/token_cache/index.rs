//! Where each record lies: four bytes a row.

use std::ops::Range;

/// Rows that share a base. As many of the longest records (8192 tokens of eight bytes) stay below 2^32 bytes.
const GROUP: usize = 4096;

/// Start of every record, and the end of the last.
#[derive(Debug)]
pub(super) struct Index {
    /// Of the first row of each group.
    bases: Vec<u64>,
    /// Of each row, from its group's base on.
    offsets: Vec<u32>,
    end: u64,
}

impl Index {
    /// No records yet; the first will start at `start`, and there will be `rows`.
    pub(super) fn starting_at(start: u64, rows: usize) -> Self {
        Self {
            bases: Vec::with_capacity(rows.div_ceil(GROUP)),
            offsets: Vec::with_capacity(rows),
            end: start,
        }
    }

    /// The next record has `size` bytes. `false` if it cannot be noted.
    pub(super) fn push(&mut self, size: u64) -> bool {
        if self.offsets.len().is_multiple_of(GROUP) {
            self.bases.push(self.end);
        }
        let base = self.bases.last().copied().unwrap_or(self.end);
        let Ok(offset) = u32::try_from(self.end - base) else {
            return false;
        };
        self.offsets.push(offset);
        self.end += size;
        true
    }

    /// Rows.
    pub(super) fn len(&self) -> usize {
        self.offsets.len()
    }

    /// The end of the last record.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Where rows `first..=last` lie, one after the other.
    pub(super) fn bytes_of(&self, first: usize, last: usize) -> Option<Range<u64>> {
        let end = match last + 1 {
            next if next == self.len() => self.end,
            next => self.start(next)?,
        };
        Some(self.start(first)?..end)
    }

    fn start(&self, row: usize) -> Option<u64> {
        Some(self.bases.get(row / GROUP)? + u64::from(*self.offsets.get(row)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_lie_end_to_end_across_groups() {
        let sizes: Vec<u64> = (0..3 * GROUP as u64 + 5).map(|i| i % 7 * 10_000).collect();
        let mut index = Index::starting_at(64, sizes.len());
        let mut starts = vec![64];
        for &size in &sizes {
            assert!(index.push(size));
            starts.push(index.end());
        }
        assert_eq!(index.len(), sizes.len());
        for row in 0..sizes.len() {
            assert_eq!(index.bytes_of(row, row), Some(starts[row]..starts[row + 1]));
        }
        assert_eq!(index.bytes_of(3, 5000), Some(starts[3]..starts[5001]));
        assert_eq!(index.bytes_of(0, sizes.len()), None);
    }

    #[test]
    fn groups_do_not_overflow_whatever_a_record_may_be() {
        let mut index = Index::starting_at(0, 0);
        for _ in 0..3 * GROUP {
            assert!(index.push(64 + 8192 * 8));
        }
    }
}
