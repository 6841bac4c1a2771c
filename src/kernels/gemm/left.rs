//! The left factor, and the forms that tiles read it in.

use super::aligned::{Aligned, as_words};
use super::panels::{Square, convert_rows};
use super::tile::{self, SLIVER};
use super::{Engine, Format};
use crate::kernels::cpu::multiversion;
use crate::kernels::element::Element;
use crate::kernels::lanes::LANES;

/// Panels from which on it pays to make slivers for narrow tiles: each of them would use a few words of every line of
/// the cache that it walks through by columns, and the larger part of the L1 cache for that.
const TURN_FROM: usize = 3;

/// Steps of depth after which the next sliver's turn comes, so that what they are taken from stays in the L1 cache.
const STEPS: usize = 64;

/// The left factor. Word (row, depth) is `words[row * row_stride + depth * depth_stride]`, or in slivers: as many rows as a
/// narrow tile takes, depth after depth, one sliver after the other.
#[derive(Clone, Copy)]
pub struct Left<'a> {
    words: &'a [u32],
    pub(super) row_stride: usize,
    pub(super) depth_stride: usize,
    /// Words of a sliver.
    sliver: Option<usize>,
}

impl<'a> Left<'a> {
    /// Rows one after the other, `row_stride` words apart.
    pub fn rows(words: &'a [u32], row_stride: usize) -> Self {
        Self {
            words,
            row_stride,
            depth_stride: 1,
            sliver: None,
        }
    }

    /// The transpose of rows `depth_stride` words apart.
    pub fn columns(words: &'a [u32], depth_stride: usize) -> Self {
        Self {
            words,
            row_stride: 1,
            depth_stride,
            sliver: None,
        }
    }

    fn slivers(words: &'a [u32], depth: usize) -> Self {
        Self {
            words,
            row_stride: 1,
            depth_stride: SLIVER,
            sliver: Some(SLIVER * depth),
        }
    }

    /// Rows of `depth` numbers, `stride` apart, as `engine` wants them: where they lie if they are words
    /// already, else converted into `buffer`.
    pub fn of_rows<T: Element>(
        engine: Engine,
        from: &'a [T],
        stride: usize,
        rows: usize,
        depth: usize,
        buffer: &'a mut Aligned,
    ) -> Self {
        match engine.format() {
            Format::F32 => {
                if let Some(numbers) = T::as_f32(from) {
                    return Self::rows(as_words(numbers), stride);
                }
            }
            Format::Pairs | Format::Tiles if engine.is_whole(depth) && stride.is_multiple_of(2) => {
                let whole = &from[..from.len() / 2 * 2];
                if let Some(pairs) = T::as_pairs(whole) {
                    return Self::rows(pairs, stride / 2);
                }
            }
            Format::Pairs | Format::Tiles | Format::Rounded => {}
        }
        let words = engine.words(depth);
        let converted = buffer.words(rows * words);
        convert_rows(engine, from, stride, rows, depth, converted);
        Self::rows(converted, words)
    }

    /// Rows of `depth` numbers, one after the other, copied into the form that products with many panels want: those
    /// walk through a few rows at a time, word by word, which is slow for what is not in the cache yet.
    pub fn copy_of_rows<T: Element>(
        engine: Engine,
        from: &[T],
        rows: usize,
        depth: usize,
        buffer: &'a mut Aligned,
    ) -> Self {
        let words = engine.words(depth);
        let copy = buffer.words(rows * words);
        match T::as_pairs(from) {
            Some(pairs) if engine.format().is_pairs() && engine.is_whole(depth) => {
                copy.copy_from_slice(pairs);
            }
            _ => convert_rows(engine, from, depth, rows, depth, copy),
        }
        Self::rows(copy, words)
    }

    /// Whether products with so many panels are to [`Self::turn`] it first.
    pub(super) fn should_turn(&self, engine: Engine, panels: usize) -> bool {
        let by_columns = self.depth_stride != 1 && self.sliver.is_none();
        match engine.format() {
            Format::Tiles => by_columns,
            _ => by_columns && takes_slivers(engine) && panels >= TURN_FROM,
        }
    }

    /// A factor that is read by columns, of `rows` rows and `depth` words, in the form that the engine's tiles want: rows
    /// for those of AMX, slivers for narrow ones.
    ///
    /// # Panics
    /// If it is too short.
    pub(super) fn turn<'b>(
        self,
        engine: Engine,
        rows: usize,
        depth: usize,
        buffer: &'b mut Aligned,
    ) -> Left<'b> {
        assert!(self.row_stride == 1);
        if takes_slivers(engine) {
            let out = buffer.words(rows.next_multiple_of(SLIVER) * depth);
            columns_to_slivers(self.words, self.depth_stride, rows, depth, out);
            return Left::slivers(out, depth);
        }
        let (cpu, out) = (engine.cpu(), buffer.words(rows * depth));
        columns_to_rows(cpu, self.words, self.depth_stride, rows, depth, out);
        Left::rows(out, depth)
    }

    /// Whether it has all these words.
    pub(super) fn has(&self, rows: usize, depth: usize) -> bool {
        rows == 0
            || depth == 0
            || self.row(rows - 1) + (depth - 1) * self.depth_stride < self.words.len()
    }

    /// Where a row starts; in slivers, the next ones of its sliver follow word by word.
    pub(super) fn row(&self, row: usize) -> usize {
        match self.sliver {
            None => row * self.row_stride,
            Some(sliver) => row / SLIVER * sliver + row % SLIVER,
        }
    }

    pub(super) fn as_ptr(&self) -> *const u32 {
        self.words.as_ptr()
    }
}

fn takes_slivers(engine: Engine) -> bool {
    tile::width(engine) == tile::NARROW && engine.format() != Format::Tiles
}

/// Slivers of rows, word (row, depth) of which is `from[depth * stride + row]`.
fn columns_to_slivers(from: &[u32], stride: usize, rows: usize, depth: usize, out: &mut [u32]) {
    for step in (0..depth).step_by(STEPS) {
        let steps = step..depth.min(step + STEPS);
        for (sliver, out) in out.chunks_exact_mut(SLIVER * depth).enumerate() {
            let first = sliver * SLIVER;
            let count = (rows - first).min(SLIVER);
            let (out, _) = out[SLIVER * step..].as_chunks_mut::<SLIVER>();
            for (step, out) in steps.clone().zip(out) {
                let from = &from[step * stride + first..];
                match from.first_chunk() {
                    Some(whole) if count == SLIVER => *out = *whole,
                    _ => {
                        *out = [0; SLIVER];
                        out[..count].copy_from_slice(&from[..count]);
                    }
                }
            }
        }
    }
}

multiversion! {
    /// `out[rows][depth]`, word (row, depth) of which was `from[depth * stride + row]`.
    fn columns_to_rows<S: Lanes>(
        from: &[u32],
        stride: usize,
        rows: usize,
        depth: usize,
        out: &mut [u32],
    ) {
        let mut block = Square([[0; LANES]; LANES]);
        for step in (0..depth).step_by(LANES) {
            let steps = (depth - step).min(LANES);
            for row in (0..rows).step_by(LANES) {
                let count = (rows - row).min(LANES);
                for (i, line) in block.0.iter_mut().enumerate().take(steps) {
                    line[..count].copy_from_slice(&from[(step + i) * stride + row..][..count]);
                }
                S::transpose(&mut block.0);
                for (i, line) in block.0.iter().enumerate().take(count) {
                    out[(row + i) * depth + step..][..steps].copy_from_slice(&line[..steps]);
                }
            }
        }
    }
}
