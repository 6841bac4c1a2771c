//! Packing: from row-major f32 to words in the order in which the microkernels read them.

use std::ops::Range;

use candle_core::DType;
use half::bf16;

use super::aligned::{as_bf16, as_numbers};
use super::tile::MAX_WIDTH;
use super::{Engine, Format};
use crate::kernels::cpu::multiversion;
use crate::kernels::element::Element;
use crate::kernels::lanes::{LANES, Lanes};
use crate::kernels::memory::prefetch;

/// Rows that packing asks for ahead of their use: a panel is a narrow strip of a wide matrix, so that each of
/// its rows lies elsewhere, where the processor does not foresee it.
const AHEAD: usize = 16;

/// How a factor of `depth` words × `width` columns is cut into panels: `[depth][padded width]` each, one
/// after the other, all but the last of the same width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub depth: usize,
    pub width: usize,
    panel: usize,
}

impl Layout {
    pub fn new(depth: usize, width: usize) -> Self {
        let vectors = width.div_ceil(LANES);
        // Two equal panels beat a wide and a narrow one where there are few, as in attention.
        let panel = if vectors.is_multiple_of(2) && !vectors.is_multiple_of(3) && vectors <= 8 {
            2 * LANES
        } else {
            MAX_WIDTH
        };
        Self {
            depth,
            width,
            panel,
        }
    }

    pub fn panels(&self) -> usize {
        self.width.div_ceil(self.panel)
    }

    /// The columns in a panel.
    pub fn columns(&self, panel: usize) -> Range<usize> {
        panel * self.panel..((panel + 1) * self.panel).min(self.width)
    }

    /// The width of a panel with its padding.
    pub fn padded(&self, panel: usize) -> usize {
        self.columns(panel).len().next_multiple_of(LANES)
    }

    /// Where a panel's words are.
    pub fn range(&self, panel: usize) -> Range<usize> {
        let start = panel * self.panel * self.depth;
        start..start + self.padded(panel) * self.depth
    }

    /// How many words there are.
    pub fn len(&self) -> usize {
        self.width.next_multiple_of(LANES) * self.depth
    }
}

/// A packed factor.
#[derive(Clone, Copy)]
pub struct Panels<'a> {
    words: &'a [u32],
    layout: Layout,
}

impl<'a> Panels<'a> {
    /// # Panics
    /// If the words are too few.
    pub fn new(words: &'a [u32], layout: Layout) -> Self {
        assert!(words.len() >= layout.len(), "the panels are too short");
        Self { words, layout }
    }

    pub fn layout(&self) -> Layout {
        self.layout
    }

    pub fn panel(&self, panel: usize) -> &'a [u32] {
        &self.words[self.layout.range(panel)]
    }
}

/// Packs one panel whose depth runs down the rows of `from`: `columns` numbers of each of `rows` rows,
/// `stride` apart. What `out` has beyond them, in either direction, becomes zero.
pub fn pack_rows<T: Element>(
    engine: Engine,
    from: &[T],
    stride: usize,
    rows: usize,
    columns: usize,
    padded: usize,
    out: &mut [u32],
) {
    let format = engine.format();
    rows_to_panel(
        engine.cpu(),
        format,
        from,
        stride,
        rows,
        columns,
        padded,
        out,
    );
}

multiversion! {
    fn rows_to_panel<S: Lanes, T: Element>(
        format: Format,
        from: &[T],
        stride: usize,
        rows: usize,
        columns: usize,
        padded: usize,
        out: &mut [u32],
    ) {
        for (step, line) in out.chunks_exact_mut(padded).enumerate() {
            row_to_words::<S, T>(format, from, stride, rows, columns, step, line);
        }
    }
}

/// The words at one step of a depth that runs down the rows of `from`, then zeros; later rows are asked for.
#[inline(always)]
pub(super) fn row_to_words<S: Lanes, T: Element>(
    format: Format,
    from: &[T],
    stride: usize,
    rows: usize,
    columns: usize,
    step: usize,
    line: &mut [u32],
) {
    let each = if format.is_pairs() { 2 } else { 1 };
    for row in each * step..each * (step + 1) {
        prefetch(from.as_ptr().wrapping_add((row + AHEAD) * stride), columns);
    }
    if format.is_pairs() {
        let first = row_of(from, stride, rows, columns, 2 * step);
        let second = row_of(from, stride, rows, columns, 2 * step + 1);
        pairs_across::<S, T>(first, second, line);
    } else {
        words_of::<S, T>(format, row_of(from, stride, rows, columns, step), line);
    }
}

/// The first numbers of a row, or nothing if there are not so many rows.
#[inline(always)]
fn row_of<T>(from: &[T], stride: usize, rows: usize, columns: usize, row: usize) -> &[T] {
    if row < rows {
        &from[row * stride..][..columns]
    } else {
        &[]
    }
}

/// `out` = the words of numbers, then zeros. For the formats of one number a word.
#[inline(always)]
fn words_of<S: Lanes, T: Element>(format: Format, numbers: &[T], out: &mut [u32]) {
    for (i, out) in as_numbers(out).chunks_mut(LANES).enumerate() {
        let mut lanes = T::load_part::<S>(part(numbers, i * LANES));
        if format == Format::Rounded && T::DTYPE != DType::BF16 {
            let mut rounded = [bf16::ZERO; LANES];
            lanes.store_bf16(&mut rounded);
            lanes = S::load_bf16(&rounded);
        }
        lanes.store_part(out);
    }
}

/// `out` = pairs of bf16, one of each row, then zeros.
#[inline(always)]
fn pairs_across<S: Lanes, T: Element>(first: &[T], second: &[T], out: &mut [u32]) {
    for (i, out) in out.chunks_mut(LANES).enumerate() {
        let [first, second] = [part(first, i * LANES), part(second, i * LANES)];
        if let (Some(first), Some(second), Some(out)) = (
            first.first_chunk(),
            second.first_chunk(),
            out.first_chunk_mut(),
        ) {
            T::zip::<S>(first, second, out);
        } else {
            let mut words = [0; LANES];
            T::zip::<S>(&filled(first), &filled(second), &mut words);
            out.copy_from_slice(&words[..out.len()]);
        }
    }
}

/// `out` = pairs of neighbours as bf16, then zeros.
#[inline(always)]
fn pairs_along<S: Lanes, T: Element>(numbers: &[T], out: &mut [u32]) {
    for (i, out) in as_bf16(out).chunks_mut(LANES).enumerate() {
        let from = part(numbers, i * LANES);
        if let (Some(from), Some(out)) = (from.first_chunk(), out.first_chunk_mut()) {
            T::narrow::<S>(from, out);
        } else {
            let mut words = [bf16::ZERO; LANES];
            T::narrow::<S>(&filled(from), &mut words);
            out.copy_from_slice(&words[..out.len()]);
        }
    }
}

/// The numbers from `at` on; none if there are not so many.
#[inline(always)]
fn part<T>(numbers: &[T], at: usize) -> &[T] {
    numbers.get(at..).unwrap_or_default()
}

/// Up to sixteen numbers, then zeros.
#[inline(always)]
fn filled<T: Element>(numbers: &[T]) -> [T; LANES] {
    let mut filled = [T::ZERO; LANES];
    for (to, from) in filled.iter_mut().zip(numbers) {
        *to = *from;
    }
    filled
}

/// Turns rows of `depth` numbers, `stride` apart, into rows of words for the left factor, without a gap:
/// `out[rows][engine.words(depth)]`.
pub fn convert_rows<T: Element>(
    engine: Engine,
    from: &[T],
    stride: usize,
    rows: usize,
    depth: usize,
    out: &mut [u32],
) {
    let words = engine.words(depth);
    if words > 0 {
        let out = &mut out[..rows * words];
        rows_to_left(
            engine.cpu(),
            engine.format(),
            from,
            stride,
            depth,
            words,
            out,
        );
    }
}

multiversion! {
    fn rows_to_left<S: Lanes, T: Element>(
        format: Format,
        from: &[T],
        stride: usize,
        depth: usize,
        words: usize,
        out: &mut [u32],
    ) {
        for (row, out) in out.chunks_exact_mut(words).enumerate() {
            let from = &from[row * stride..][..depth];
            if format.is_pairs() {
                pairs_along::<S, T>(from, out);
            } else {
                words_of::<S, T>(format, from, out);
            }
        }
    }
}

/// Packs one panel whose depth runs along the rows of `from`: `depth` numbers of each of `columns` rows,
/// `stride` apart, become the panel's columns. The rest of `out` becomes zero.
pub fn pack_columns<T: Element>(
    engine: Engine,
    from: &[T],
    stride: usize,
    columns: usize,
    depth: usize,
    padded: usize,
    out: &mut [u32],
) {
    columns_to_panel(
        engine.cpu(),
        engine,
        from,
        stride,
        columns,
        depth,
        padded,
        out,
    );
}

multiversion! {
    fn columns_to_panel<S: Lanes, T: Element>(
        engine: Engine,
        from: &[T],
        stride: usize,
        columns: usize,
        depth: usize,
        padded: usize,
        out: &mut [u32],
    ) {
        let (format, words) = (engine.format(), engine.words(depth));
        let mut block = Square([[0; LANES]; LANES]);
        for column in (0..padded).step_by(LANES) {
            for row in column + LANES..(column + 2 * LANES).min(columns) {
                prefetch(from.as_ptr().wrapping_add(row * stride), depth);
            }
            for step in (0..words).step_by(LANES) {
                let first = engine.numbers(step);
                let depth = (depth - first).min(engine.numbers(LANES));
                for (i, line) in block.0.iter_mut().enumerate() {
                    let from = row_of(part(from, first), stride, columns, depth, column + i);
                    if format.is_pairs() {
                        pairs_along::<S, T>(from, line);
                    } else {
                        words_of::<S, T>(format, from, line);
                    }
                }
                S::transpose(&mut block.0);
                let steps = (words - step).min(LANES);
                for (i, line) in block.0.iter().enumerate().take(steps) {
                    out[(step + i) * padded + column..][..LANES].copy_from_slice(line);
                }
            }
        }
    }
}

#[repr(C, align(64))]
pub(super) struct Square(pub [[u32; LANES]; LANES]);

/// Turns `rows` rows of `columns` numbers, `stride` apart, into the left factor of a product over the
/// rows: `out[engine.words(rows)][columns]`, to be read with [`super::Left::columns`].
pub fn zip_rows<T: Element>(
    engine: Engine,
    from: &[T],
    stride: usize,
    rows: usize,
    columns: usize,
    out: &mut [u32],
) {
    let out = &mut out[..engine.words(rows) * columns];
    pack_rows(engine, from, stride, rows, columns, columns.max(1), out);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The nearest bf16, as the upper half of a word.
    fn upper(x: f32) -> u32 {
        u32::from(bf16::from_f32(x).to_bits()) << 16
    }

    #[test]
    fn rounding_is_that_of_half() {
        let numbers: Vec<f32> = (0..u32::MAX)
            .step_by(65_521)
            .chain([0x7F80_0001, 0xFFFF_FFFF, 0x7F7F_FFFF])
            .map(f32::from_bits)
            .collect();
        let rounded = Engine::each().into_iter();
        for engine in rounded.filter(|engine| engine.format() == Format::Rounded) {
            let mut words = vec![7; numbers.len()];
            let depth = numbers.len();
            convert_rows(engine, &numbers, depth, 1, depth, &mut words);
            for (&x, word) in numbers.iter().zip(words) {
                assert_eq!(word, upper(x), "{engine:?} {x}");
            }
        }
    }

    #[test]
    fn bf16_is_packed_like_the_numbers_it_stands_for() {
        let (rows, width) = (37, 53);
        let short: Vec<bf16> = (0..rows * width)
            .map(|i| bf16::from_f32(1.0 / (i as f32 - 700.5)))
            .collect();
        let long: Vec<f32> = short.iter().map(|x| x.to_f32()).collect();
        for engine in Engine::each() {
            for (columns, padded) in [(53, 64), (48, 48), (7, 16)] {
                let mut down = [vec![7; 37 * 64], vec![7; 37 * 64]];
                let mut along = [vec![7; 53 * 64], vec![7; 53 * 64]];
                let mut left = [vec![7; 37 * 53], vec![7; 37 * 53]];
                pack_rows(engine, &long, width, rows, columns, padded, &mut down[0]);
                pack_rows(engine, &short, width, rows, columns, padded, &mut down[1]);
                let count = columns.min(rows);
                pack_columns(engine, &long, width, count, width, padded, &mut along[0]);
                pack_columns(engine, &short, width, count, width, padded, &mut along[1]);
                convert_rows(engine, &long, width, rows, columns, &mut left[0]);
                convert_rows(engine, &short, width, rows, columns, &mut left[1]);
                for [of_long, of_short] in [down, along, left] {
                    assert_eq!(of_long, of_short, "{engine:?} {columns}");
                }
            }
        }
        assert_eq!(super::super::as_pairs(&short[1..]), None);
        let pairs = super::super::as_pairs(&short[..10]).unwrap();
        for engine in Engine::each() {
            if !engine.format().is_pairs() {
                continue;
            }
            let mut out = vec![7; engine.words(10)];
            convert_rows(engine, &short[..10], 10, 1, 10, &mut out);
            assert_eq!(&out[..5], pairs, "{engine:?}");
            assert!(out[5..].iter().all(|&word| word == 0), "{engine:?}");
        }
    }

    #[test]
    fn both_ways_to_pack_agree_with_the_definition() {
        let (depth, width) = (37, 53);
        let from: Vec<f32> = (0..depth * width).map(|i| i as f32).collect();
        let turned: Vec<f32> = (0..depth * width)
            .map(|i| from[(i % depth) * width + i / depth])
            .collect();
        for engine in Engine::each() {
            let layout = Layout::new(engine.words(depth), width);
            let (mut down, mut along) = (vec![7; layout.len()], vec![7; layout.len()]);
            for p in 0..layout.panels() {
                let (columns, padded, range) =
                    (layout.columns(p), layout.padded(p), layout.range(p));
                let (n, first) = (columns.len(), columns.start);
                pack_rows(
                    engine,
                    &from[first..],
                    width,
                    depth,
                    n,
                    padded,
                    &mut down[range.clone()],
                );
                pack_columns(
                    engine,
                    &turned[first * depth..],
                    depth,
                    n,
                    depth,
                    padded,
                    &mut along[range],
                );
            }
            assert_eq!(down, along, "{engine:?}");
            let at = |d: usize, j: usize| {
                if d < depth && j < width {
                    from[d * width + j]
                } else {
                    0.0
                }
            };
            for (p, d, j) in [(0, 0, 0), (0, 5, 31), (1, 18, 20), (1, 18, 21), (1, 2, 31)] {
                let word = down[layout.range(p).start + d * layout.padded(p) + j];
                let column = layout.columns(p).start + j;
                let expected = match engine.format() {
                    Format::F32 => at(d, column).to_bits(),
                    Format::Rounded => upper(at(d, column)),
                    Format::Pairs | Format::Tiles => {
                        (upper(at(2 * d, column)) >> 16) | upper(at(2 * d + 1, column))
                    }
                };
                assert_eq!(word, expected, "{engine:?} {p} {d} {j}");
            }
        }
    }
}
