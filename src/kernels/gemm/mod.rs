//! Matrix products: `out[rows × n] (+)= left[rows × depth] · right[depth × n]`, f32 accumulators.
//!
//! The right factor is packed into [`Panels`] of a few vectors' width, so that the innermost loop reads it
//! in order; the left one is read where it lies. Both consist of 32-bit *words*: one f32, or two bf16
//! neighbours along the depth, which the CPU multiplies and adds as a pair. So one driver serves both.
//!
//! An element of `out` is summed over the depth in order, from whatever it started with; with tiles, sixteen
//! words of depth at a time. Nothing else goes into it: neither the size of the tile it falls into, nor other
//! rows, nor the number of threads.

mod aligned;
mod amx;
mod left;
mod panels;
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::cell::RefCell;
use std::ops::Range;

pub use aligned::{Aligned, as_bf16, as_pairs, as_words};
#[cfg(target_arch = "x86_64")]
pub use amx::products as tile_products;
pub use left::{Left, Strips};
pub use panels::{Layout, Panels, convert_rows, pack_columns, pack_rows, zip_rows};
pub use tile::MAX_WIDTH;
use tile::{MAX_ROWS, Tile, TileStart};

use super::cpu::{Cpu, Level};
use super::linear::Precision;

/// Words of depth done at a time, so that a panel's part stays in the L2 cache.
pub const DEPTH: usize = 1024;

/// What a word holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// An f32.
    F32,
    /// An f32 that was rounded to bf16: what a CPU without bf16 products does for [`Precision::Bf16`].
    Rounded,
    /// Two bf16, the first in the low half.
    Pairs,
    /// As pairs, for products of tiles: depths are whole tiles, filled up with zeros.
    Tiles,
}

impl Format {
    /// Whether a word holds two bf16.
    pub fn is_pairs(self) -> bool {
        matches!(self, Self::Pairs | Self::Tiles)
    }
}

/// A way to multiply that this CPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Engine {
    cpu: Cpu,
    format: Format,
}

impl Engine {
    /// The fastest one.
    pub fn best(precision: Precision) -> Self {
        Self::on(Cpu::best(), precision)
    }

    /// The one that a CPU of this kind uses.
    pub fn on(cpu: Cpu, precision: Precision) -> Self {
        let format = match precision {
            Precision::F32 => Format::F32,
            Precision::Bf16 if cpu.level() == Level::Amx => Format::Tiles,
            Precision::Bf16 if cpu.level() == Level::Avx512Bf16 => Format::Pairs,
            Precision::Bf16 => Format::Rounded,
        };
        Self { cpu, format }
    }

    /// Each that this CPU has, and tiles in software.
    #[cfg(test)]
    pub fn each() -> Vec<Self> {
        let real = [Precision::F32, Precision::Bf16]
            .into_iter()
            .flat_map(|precision| Cpu::each().map(move |cpu| Self::on(cpu, precision)));
        let modelled = Cpu::each().filter(|cpu| cpu.level() < Level::Amx);
        let modelled = modelled.map(|cpu| Self {
            cpu,
            format: Format::Tiles,
        });
        real.chain(modelled).collect()
    }

    pub fn cpu(self) -> Cpu {
        self.cpu
    }

    pub fn format(self) -> Format {
        self.format
    }

    /// The most rows of a tile.
    pub fn tile_rows(self) -> usize {
        tile::rows(self, usize::MAX)
    }

    /// Whether a tile takes a whole panel's width, and so many registers that a panel need not be in the L1 cache.
    pub fn has_wide_tiles(self) -> bool {
        self.format == Format::Tiles || self.cpu.level() >= Level::Avx512
    }

    /// Words for `depth` numbers.
    pub fn words(self, depth: usize) -> usize {
        match self.format {
            Format::F32 | Format::Rounded => depth,
            Format::Pairs => depth.div_ceil(2),
            Format::Tiles => depth.div_ceil(2).next_multiple_of(amx::STEP),
        }
    }

    /// Whether `depth` numbers fill their words.
    pub fn is_whole(self, depth: usize) -> bool {
        self.numbers(self.words(depth)) == depth
    }

    /// Numbers in `words` words.
    pub fn numbers(self, words: usize) -> usize {
        match self.format {
            Format::F32 | Format::Rounded => words,
            Format::Pairs | Format::Tiles => 2 * words,
        }
    }
}

/// What the products are added to.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    Zero,
    /// What `out` holds.
    Out,
    /// One number for each column of the right factor.
    Bias(&'a [f32]),
}

/// Multiplies `rows` rows of `left` with some of `right`'s panels. `out` points to row 0, column 0 of the
/// right factor's columns; only columns of the chosen panels are touched.
///
/// # Safety
/// For each of the rows, `out[row * out_stride ..]` must be valid for reads and writes at the columns of
/// the chosen panels, and no other thread may use these meanwhile.
///
/// # Panics
/// If `left` or the bias is too short.
#[expect(clippy::too_many_arguments, reason = "BLAS takes thirteen")]
pub unsafe fn multiply(
    engine: Engine,
    left: Left<'_>,
    rows: usize,
    right: Panels<'_>,
    panels: Range<usize>,
    start: Start<'_>,
    out: *mut f32,
    out_stride: usize,
) {
    let Layout { width, depth, .. } = right.layout();
    if rows == 0 || width == 0 {
        return;
    }
    if depth > 0 {
        assert!(left.has(rows, depth), "the left factor is too short");
    }
    if let Start::Bias(bias) = start {
        assert!(bias.len() >= width, "the bias is too short");
    }
    if left.should_turn(engine) {
        return TURNED.with_borrow_mut(|turned| {
            let left = left.turn(engine, rows, depth, turned);
            // SAFETY: the caller's promise.
            unsafe { multiply(engine, left, rows, right, panels, start, out, out_stride) };
        });
    }
    let mut from = 0;
    loop {
        let steps = DEPTH.min(depth - from);
        let start = if from == 0 { start } else { Start::Out };
        for panel in panels.clone() {
            let columns = right.layout().columns(panel);
            let padded = right.layout().padded(panel);
            let block = Block {
                engine,
                left,
                rows,
                depth: from..from + steps,
                words: &right.panel(panel)[from * padded..(from + steps) * padded],
                padded,
                columns,
                start,
                out,
                out_stride,
            };
            // SAFETY: the block's rows, depth and columns are within those checked above and promised.
            unsafe { block.run() };
        }
        from += steps;
        if from >= depth {
            break;
        }
    }
    if engine.format == Format::Tiles {
        amx::release(engine.cpu);
    }
}

thread_local! {
    /// A left factor in the form that tiles want.
    static TURNED: RefCell<Aligned> = const { RefCell::new(Aligned::new()) };
}

/// Rows of the left factor times one panel, over one part of the depth.
struct Block<'a> {
    engine: Engine,
    left: Left<'a>,
    rows: usize,
    depth: Range<usize>,
    words: &'a [u32],
    padded: usize,
    columns: Range<usize>,
    start: Start<'a>,
    out: *mut f32,
    out_stride: usize,
}

impl Block<'_> {
    /// # Safety
    /// As for [`multiply`].
    unsafe fn run(&self) {
        // A narrow strip of the panel stays in the L1 cache while all rows pass it.
        let width = tile::width(self.engine).min(self.padded);
        for first in (0..self.padded).step_by(width) {
            let strip = first..self.padded.min(first + width);
            let mut row = 0;
            while row < self.rows {
                let rows = tile::rows(self.engine, self.rows - row);
                // SAFETY: the caller's promise.
                unsafe { self.part(row..row + rows, &strip) };
                row += rows;
            }
        }
    }

    /// A tile's rows and some of the panel's columns.
    ///
    /// # Safety
    /// As for [`multiply`].
    unsafe fn part(&self, rows: Range<usize>, strip: &Range<usize>) {
        let columns =
            self.columns.start + strip.start..self.columns.end.min(self.columns.start + strip.end);
        let out = self
            .out
            .wrapping_add(rows.start * self.out_stride + columns.start);
        // SAFETY: a full tile writes these columns of its rows, which the caller promised; an edge tile takes care of
        // itself.
        unsafe {
            if columns.len() == strip.len() {
                let start = match self.start {
                    Start::Zero => TileStart::Zero,
                    Start::Out => TileStart::Out,
                    Start::Bias(bias) => TileStart::Bias(bias[columns].as_ptr()),
                };
                self.tile(rows, strip, start, out, self.out_stride);
            } else {
                self.edge(rows, strip, columns, out);
            }
        }
    }

    /// A tile some of whose columns are padding: computed aside, in the same way, and copied.
    ///
    /// # Safety
    /// As for [`multiply`]; `out` points to the tile's first element.
    unsafe fn edge(
        &self,
        rows: Range<usize>,
        strip: &Range<usize>,
        columns: Range<usize>,
        out: *mut f32,
    ) {
        let mut aside = Aside([[0.0; MAX_WIDTH]; MAX_ROWS]);
        // SAFETY: only these columns of the tile's rows are touched, which the caller promised, and they are not part of
        // `aside`, which is large enough for any tile.
        unsafe {
            for (r, line) in aside.0.iter_mut().enumerate().take(rows.len()) {
                let line = &mut line[..columns.len()];
                match self.start {
                    Start::Zero => {}
                    Start::Out => {
                        let from = out.add(r * self.out_stride);
                        let from = std::slice::from_raw_parts(from, columns.len());
                        line.copy_from_slice(from);
                    }
                    Start::Bias(bias) => line.copy_from_slice(&bias[columns.clone()]),
                }
            }
            let start = aside.0.as_mut_ptr().cast::<f32>();
            self.tile(rows.clone(), strip, TileStart::Out, start, MAX_WIDTH);
            for (r, line) in aside.0.iter().enumerate().take(rows.len()) {
                std::slice::from_raw_parts_mut(out.add(r * self.out_stride), columns.len())
                    .copy_from_slice(&line[..columns.len()]);
            }
        }
    }

    /// # Safety
    /// `out` must be valid for as many rows of the strip's width; the rest as for [`multiply`].
    unsafe fn tile(
        &self,
        rows: Range<usize>,
        strip: &Range<usize>,
        start: TileStart,
        out: *mut f32,
        out_stride: usize,
    ) {
        let first = self.left.row(rows.start) + self.depth.start * self.left.depth_stride;
        let tile = Tile {
            left: self.left.as_ptr().wrapping_add(first),
            row_stride: self.left.row_stride,
            depth_stride: self.left.depth_stride,
            right: self.words.as_ptr().wrapping_add(strip.start),
            right_stride: self.padded,
            depth: self.depth.len(),
            out,
            out_stride,
            start,
        };
        // SAFETY: `multiply` checked that all rows and depths are within `left`; `words` has
        // depth × padded words by construction; `out` is the caller's promise.
        unsafe { tile.run(self.engine, rows.len(), strip.len()) }
    }
}

#[repr(C, align(64))]
struct Aside([[f32; MAX_WIDTH]; MAX_ROWS]);

#[cfg(test)]
mod tests {
    use super::*;

    /// Deterministic numbers in [-1, 1).
    pub fn noise(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    fn product(engine: Engine, left: &[f32], right: &[f32], rows: usize, n: usize) -> Vec<f32> {
        let depth = left.len() / rows;
        let layout = Layout::new(engine.words(depth), n);
        let mut words = vec![0; layout.len()];
        for p in 0..layout.panels() {
            let range = layout.range(p);
            pack_rows(
                engine,
                &right[layout.columns(p).start..],
                n,
                depth,
                layout.columns(p).len(),
                layout.padded(p),
                &mut words[range],
            );
        }
        let mut converted = vec![0; rows * layout.depth];
        convert_rows(engine, left, depth, rows, depth, &mut converted);
        let mut out = vec![f32::NAN; rows * n];
        // SAFETY: `out` has rows × n elements.
        unsafe {
            multiply(
                engine,
                Left::rows(&converted, layout.depth),
                rows,
                Panels::new(&words, layout),
                0..layout.panels(),
                Start::Zero,
                out.as_mut_ptr(),
                n,
            );
        }
        out
    }

    fn rounded(x: f32) -> f32 {
        half::bf16::from_f32(x).to_f32()
    }

    #[test]
    fn every_engine_agrees_with_a_triple_loop_at_odd_sizes() {
        for engine in Engine::each() {
            let factor = |x: f32| match engine.format() {
                Format::F32 => f64::from(x),
                _ => f64::from(rounded(x)),
            };
            for (rows, depth, n) in [
                (1, 1, 1),
                (7, 5, 3),
                (13, 33, 50),
                (9, 2051, 17),
                (30, 64, 96),
                (53, 66, 80),
            ] {
                let (left, right) = (noise(rows * depth, 1), noise(depth * n, 2));
                let out = product(engine, &left, &right, rows, n);
                for i in 0..rows {
                    for j in 0..n {
                        let expected: f64 = (0..depth)
                            .map(|k| factor(left[i * depth + k]) * factor(right[k * n + j]))
                            .sum();
                        let error = (f64::from(out[i * n + j]) - expected).abs();
                        assert!(
                            error < 2e-6 * (depth as f64).sqrt() + 1e-6,
                            "{engine:?} {rows}x{depth}x{n}: {error}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_others() {
        let (depth, n) = (70, 56);
        let (left, right) = (noise(29 * depth, 3), noise(depth * n, 4));
        for engine in Engine::each() {
            let all = product(engine, &left, &right, 29, n);
            for row in 0..29 {
                let alone = product(engine, &left[row * depth..(row + 1) * depth], &right, 1, n);
                assert_eq!(alone, all[row * n..(row + 1) * n], "{engine:?} row {row}");
            }
        }
    }
}
