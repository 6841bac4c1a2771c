//! Which elements of a parameter an op goes over: all, or those of some rows of a table, and how they are
//! shared out. Blocks are fixed by the tensor and the rows, so threads do not change a result.

use std::ops::Range;

use candle_core::{Result, bail};

use super::pool::parallel_for;

/// Elements per block of a whole tensor, and at least as many per task: AdamW's four streams of it (512 KiB)
/// fit a core's second-level cache.
pub(super) const BLOCK: usize = 1 << 15;

/// All elements, or some rows of a table whose others the op may leave out.
#[derive(Clone, Copy, Debug)]
pub enum Parts<'a> {
    /// Every element.
    All,
    /// Rows of `width` elements each, their numbers strictly rising.
    Rows {
        /// Which.
        rows: &'a [u32],
        /// Elements of one.
        width: usize,
    },
}

impl Parts<'_> {
    /// Refuses rows that do not rise strictly or leave a tensor of `len` elements: blocks are disjoint and
    /// inside it where this passes.
    pub(super) fn check(self, len: usize) -> Result<()> {
        let Self::Rows { rows, width } = self else {
            return Ok(());
        };
        let inside = |row: u32| (row as usize + 1) * width <= len;
        if !rows.iter().all(|&r| inside(r)) || !rows.windows(2).all(|w| w[0] < w[1]) {
            bail!("row numbers must increase strictly and lie in the table")
        }
        Ok(())
    }

    /// How many elements of `len` these are.
    pub(super) fn elements(self, len: usize) -> usize {
        match self {
            Self::All => len,
            Self::Rows { rows, width } => rows.len() * width,
        }
    }

    /// How many blocks [`Self::for_blocks`] makes of `len` elements.
    pub(super) fn blocks(self, len: usize) -> usize {
        match self {
            Self::All => len.div_ceil(BLOCK),
            Self::Rows { rows, .. } => rows.len(),
        }
    }

    /// Calls `f` with every block's number and place, possibly side by side. A listed row is a block.
    pub(super) fn for_blocks(self, len: usize, f: impl Fn(usize, Range<usize>) + Sync) {
        match self {
            Self::All => parallel_for(self.blocks(len), |block| {
                f(block, block * BLOCK..((block + 1) * BLOCK).min(len));
            }),
            Self::Rows { rows, width } => {
                let group = BLOCK.div_ceil(width.max(1));
                parallel_for(rows.len().div_ceil(group), |task| {
                    for (block, &row) in rows.iter().enumerate().skip(task * group).take(group) {
                        let start = row as usize * width;
                        f(block, start..start + width);
                    }
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn blocks(parts: Parts, len: usize) -> Vec<(usize, Range<usize>)> {
        let seen = Mutex::new(Vec::new());
        parts.for_blocks(len, |block, range| {
            seen.lock().unwrap().push((block, range));
        });
        let mut seen = seen.into_inner().unwrap();
        seen.sort_by_key(|(block, _)| *block);
        assert_eq!(seen.len(), parts.blocks(len));
        let covered: usize = seen.iter().map(|(_, range)| range.len()).sum();
        assert_eq!(covered, parts.elements(len));
        seen
    }

    #[test]
    fn a_whole_tensor_is_covered_once() {
        let len = 2 * BLOCK + 3;
        let expected = [(0, 0..BLOCK), (1, BLOCK..2 * BLOCK), (2, 2 * BLOCK..len)];
        assert_eq!(blocks(Parts::All, len), expected);
        assert_eq!(blocks(Parts::All, 0), []);
    }

    #[test]
    fn listed_rows_are_covered_once() {
        let rows: Vec<u32> = (0..100).map(|i| i * 3).collect();
        let width = BLOCK / 7;
        let seen = blocks(Parts::Rows { rows: &rows, width }, 300 * width);
        for (i, (block, range)) in seen.into_iter().enumerate() {
            assert_eq!((block, range), (i, 3 * i * width..(3 * i + 1) * width));
        }
    }

    #[test]
    fn rows_must_increase_and_lie_inside() {
        let check = |rows: &[u32]| Parts::Rows { rows, width: 2 }.check(6);
        assert!(check(&[]).is_ok() && check(&[0, 2]).is_ok());
        for bad in [&[1, 1][..], &[2, 1], &[3], &[0, u32::MAX]] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }
}
