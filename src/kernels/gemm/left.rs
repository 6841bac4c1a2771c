//! The left factor, and the forms that tiles read it in.

use std::ops::Range;

use super::aligned::{Aligned, as_words};
use super::panels::{Square, convert_rows, pack_rows, row_to_words};
use super::tile::MAX_WIDTH;
use super::{Engine, Format};
use crate::kernels::cpu::multiversion;
use crate::kernels::element::Element;
use crate::kernels::lanes::LANES;

/// Columns of a strip.
const STRIP: usize = MAX_WIDTH;

/// Words behind each sliver, so that those of one strip do not all fall into one set of the L1 cache.
const GAP: usize = LANES;

/// The left factor. Word (row, depth) is `words[row * row_stride + depth * depth_stride]`, or in slivers: as many rows as a
/// tile takes, depth after depth, one sliver after the other.
#[derive(Clone, Copy)]
pub struct Left<'a> {
    words: &'a [u32],
    pub(super) row_stride: usize,
    pub(super) depth_stride: usize,
    sliver: Option<Sliver>,
}

#[derive(Clone, Copy)]
struct Sliver {
    rows: usize,
    words: usize,
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
        Self::copy_of_rows(engine, from, stride, rows, depth, buffer)
    }

    /// The same, always converted. For narrow tiles and many panels: those walk through a few rows at a time, word by
    /// word, which is slow for what is not in the cache yet.
    pub fn copy_of_rows<T: Element>(
        engine: Engine,
        from: &[T],
        stride: usize,
        rows: usize,
        depth: usize,
        buffer: &'a mut Aligned,
    ) -> Self {
        let words = engine.words(depth);
        let copy = buffer.words(rows * words);
        convert_rows(engine, from, stride, rows, depth, copy);
        Self::rows(copy, words)
    }

    /// All but the first rows of a factor that is not in slivers.
    pub fn skip_rows(self, rows: usize) -> Self {
        debug_assert!(self.sliver.is_none());
        Self {
            words: self.words.get(rows * self.row_stride..).unwrap_or_default(),
            ..self
        }
    }

    /// Whether products are to [`Self::turn`] it first.
    pub(super) fn should_turn(&self, engine: Engine) -> bool {
        engine.format() == Format::Tiles && self.depth_stride != 1
    }

    /// A factor that is read by columns, of `rows` rows and `depth` words, as rows, which the tiles of AMX want.
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
        assert!(self.row_stride == 1 && self.sliver.is_none());
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
            Some(sliver) => row / sliver.rows * sliver.words + row % sliver.rows,
        }
    }

    pub(super) fn as_ptr(&self) -> *const u32 {
        self.words.as_ptr()
    }
}

/// How columns are packed as the left factor of a product over the rows: in strips of [`STRIP`] columns, one after the other,
/// and in these a tile's columns, word after word, one sliver after the other. (Read where they lie, a tile would use a few
/// words of every line of the cache that it walks through.)
#[derive(Clone, Copy)]
pub struct Strips {
    engine: Engine,
    /// Words for all rows.
    depth: usize,
    columns: usize,
}

impl Strips {
    /// For `columns` columns of `rows` rows.
    pub fn new(engine: Engine, rows: usize, columns: usize) -> Self {
        Self {
            engine,
            depth: engine.words(rows),
            columns,
        }
    }

    pub fn count(&self) -> usize {
        self.columns.div_ceil(STRIP)
    }

    /// The columns in a strip.
    pub fn columns(&self, strip: usize) -> Range<usize> {
        strip * STRIP..((strip + 1) * STRIP).min(self.columns)
    }

    /// Where a strip's words are.
    pub fn range(&self, strip: usize) -> Range<usize> {
        let words = STRIP * self.depth + STRIP.div_ceil(self.engine.tile_rows()) * GAP;
        strip * words..(strip + 1) * words
    }

    /// How many words there are.
    pub fn len(&self) -> usize {
        self.range(self.count()).start
    }

    /// Packs a strip into `out`: the first of its columns is that of `from`, whose rows are `stride` apart.
    pub fn pack<T: Element>(
        &self,
        strip: usize,
        from: &[T],
        stride: usize,
        rows: usize,
        out: &mut [u32],
    ) {
        let (engine, depth, columns) = (self.engine, self.depth, self.columns(strip).len());
        if engine.format() == Format::Tiles {
            let padded = columns.next_multiple_of(LANES);
            let out = &mut out[..depth * padded];
            return pack_rows(engine, from, stride, rows, columns, padded, out);
        }
        let (cpu, format, tile) = (engine.cpu(), engine.format(), engine.tile_rows());
        rows_to_slivers(cpu, format, tile, from, stride, rows, columns, depth, out);
    }

    /// A strip of what was packed.
    pub fn left<'a>(&self, strip: usize, words: &'a [u32]) -> Left<'a> {
        let words = &words[self.range(strip)];
        if self.engine.format() == Format::Tiles {
            return Left::columns(words, self.columns(strip).len().next_multiple_of(LANES));
        }
        let rows = self.engine.tile_rows();
        Left {
            words,
            row_stride: 1,
            depth_stride: rows,
            sliver: Some(Sliver {
                rows,
                words: rows * self.depth + GAP,
            }),
        }
    }
}

multiversion! {
    fn rows_to_slivers<S: Lanes, T: Element>(
        format: Format,
        tile: usize,
        from: &[T],
        stride: usize,
        rows: usize,
        columns: usize,
        depth: usize,
        out: &mut [u32],
    ) {
        let mut line = Line([0; STRIP]);
        for step in 0..depth {
            row_to_words::<S, T>(format, from, stride, rows, columns, step, &mut line.0);
            match tile {
                8 => scatter::<8>(&line, step, columns, depth, out),
                6 => scatter::<6>(&line, step, columns, depth, out),
                _ => scatter::<4>(&line, step, columns, depth, out),
            }
        }
    }
}

#[repr(C, align(64))]
struct Line([u32; STRIP]);

/// Writes one step's words into the slivers of `ROWS` that they belong to.
#[inline(always)]
fn scatter<const ROWS: usize>(
    line: &Line,
    step: usize,
    columns: usize,
    depth: usize,
    out: &mut [u32],
) {
    let (parts, _) = line.0.as_chunks::<ROWS>();
    let slivers = out.chunks_mut(ROWS * depth + GAP);
    for (part, sliver) in parts[..columns.div_ceil(ROWS)].iter().zip(slivers) {
        sliver[step * ROWS..][..ROWS].copy_from_slice(part);
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
