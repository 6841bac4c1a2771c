//! The products behind the linear layer, cut into tasks.

use std::cell::RefCell;
use std::ops::Range;

use super::pieces::Piece;
use crate::kernels::cpu::{l2_bytes, multiversion};
use crate::kernels::element::Element;
use crate::kernels::gemm::{
    Aligned, DEPTH, Engine, Layout, Left, MAX_WIDTH, Panels, Start, Strips, multiply, pack_rows,
};
use crate::kernels::lanes::LANES;
use crate::kernels::pool::{Disjoint, parallel_for, threads};

/// Buffers of a thread.
#[derive(Default)]
struct Scratch {
    /// The piece of a sum that is being computed.
    buffer: Aligned,
    /// A block's rows of the left factors, where they have to be converted.
    converted: Vec<Aligned>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    /// The caller's packed factors of a weight gradient.
    static FACTORS: RefCell<[Aligned; 2]> = const { RefCell::new([Aligned::new(), Aligned::new()]) };
}

/// How sums are cut into tasks, each a block of rows times a group of one sum's panels, and these into pieces. It affects
/// speed only.
struct Grid {
    rows: usize,
    block: usize,
    groups: Vec<Group>,
    /// Rows and panels of a piece.
    piece: [usize; 2],
}

/// Some panels of the sum with this number.
struct Group {
    sum: usize,
    panels: Range<usize>,
}

/// The most rows of a block.
const BLOCK: usize = 96;

/// Numbers of the largest piece.
pub const MAX_PIECE: usize = BLOCK * MAX_WIDTH;

impl Grid {
    /// Wide tiles take a group of panels that stays in the L2 cache, and pass a few rows at a time along all of it: a panel
    /// is too large for the L1 cache anyway, and from beyond the L2 cache it comes once for many blocks. Narrow
    /// ones take a block of rows that stays in the L2 cache, and pass along it a panel in strips that do fit the L1 cache.
    fn new<T>(engine: Engine, rows: usize, sums: &[Sum<'_, T>]) -> Self {
        let (tile, wide) = (engine.tile_rows(), engine.has_wide_tiles());
        let tiles = rows.div_ceil(tile).max(1);
        let blocks = rows.div_ceil(BLOCK).max(1);
        let blocks = blocks.next_multiple_of(threads()).min(tiles);
        let block = tiles.div_ceil(blocks) * tile;
        let fit = MAX_PIECE / (tile * MAX_WIDTH);
        let groups = |(sum, of): (usize, &Sum<'_, T>)| {
            let panels = of.panels();
            let most = match wide {
                true => panels_in_cache(of.depth()).min(fit),
                false => panels.max(1),
            };
            let groups = groups(panels, most, threads().div_ceil(blocks));
            groups.map(move |panels| Group { sum, panels })
        };
        Self {
            rows,
            block,
            groups: sums.iter().enumerate().flat_map(groups).collect(),
            piece: if wide { [tile, fit] } else { [block, 1] },
        }
    }

    fn blocks(&self) -> usize {
        self.rows.div_ceil(self.block)
    }

    fn tasks(&self) -> usize {
        self.groups.len() * self.blocks()
    }

    /// A thread's tasks are those of some neighbouring blocks, as in other ops; blocks of one group follow each other, while
    /// that is in the cache.
    fn task(&self, task: usize) -> (&Group, Range<usize>) {
        let (groups, blocks) = (self.groups.len(), self.blocks());
        let together = blocks.div_ceil(threads());
        let first = task / (groups * together) * together;
        let here = together.min(blocks - first);
        let within = task - first * groups;
        let start = (first + within % here) * self.block;
        let rows = start..(start + self.block).min(self.rows);
        (&self.groups[within / here], rows)
    }
}

/// Parts of a range, `size` long but for the last one.
fn parts(range: &Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let end = range.end;
    range
        .clone()
        .step_by(size)
        .map(move |first| first..(first + size).min(end))
}

/// How many panels of so many words' depth stay in the L2 cache beside what passes them; at least one.
fn panels_in_cache(depth: usize) -> usize {
    let panel = (depth * MAX_WIDTH * size_of::<u32>()).max(1);
    (l2_bytes() / 2 / panel).max(1)
}

/// Panels in groups of about one size: at most `most` in each, and at least so many groups, if there are as many panels.
fn groups(panels: usize, most: usize, least: usize) -> impl Iterator<Item = Range<usize>> {
    let groups = panels.div_ceil(most).max(least);
    parts(&(0..panels), panels.div_ceil(groups).max(1))
}

/// One product of a sum: `left [rows, depth] · right`.
#[derive(Clone, Copy)]
pub struct Term<'a, T> {
    pub left: &'a [T],
    pub depth: usize,
    pub right: Panels<'a>,
}

/// `bias + Σ terms`, [rows, width].
pub struct Sum<'a, T> {
    pub terms: Vec<Term<'a, T>>,
    pub bias: Option<&'a [f32]>,
}

/// Computes sums of the same number of `rows`, piece by piece, and hands each piece to `finish` while it is
/// in the innermost cache.
pub fn rows_times_panels<T: Element>(
    engine: Engine,
    rows: usize,
    sums: &[Sum<'_, T>],
    finish: impl Fn(Piece<'_>) + Sync,
) {
    let grid = Grid::new(engine, rows, sums);
    parallel_for(grid.tasks(), |task| {
        let (group, block) = grid.task(task);
        let sum = &sums[group.sum];
        SCRATCH.with_borrow_mut(|Scratch { buffer, converted }| {
            let lefts = sum.lefts(engine, &block, converted);
            for rows in parts(&block, grid.piece[0]) {
                for panels in parts(&group.panels, grid.piece[1]) {
                    let columns = sum.columns(&panels);
                    let stride = columns.len().next_multiple_of(LANES);
                    let mut piece = Piece {
                        sum: group.sum,
                        rows: rows.clone(),
                        columns,
                        stride,
                        data: buffer.floats(rows.len() * stride),
                    };
                    sum.compute(engine, &lefts, rows.start - block.start, panels, &mut piece);
                    finish(piece);
                }
            }
        });
    });
}

impl<T> Sum<'_, T> {
    fn layout(&self) -> Option<Layout> {
        self.terms.first().map(|term| term.right.layout())
    }

    fn panels(&self) -> usize {
        self.layout().map_or(0, |layout| layout.panels())
    }

    /// Words of all terms together.
    fn depth(&self) -> usize {
        let depths = self.terms.iter().map(|term| term.right.layout().depth);
        depths.sum()
    }

    fn columns(&self, panels: &Range<usize>) -> Range<usize> {
        let columns = |panel| self.layout().map_or(0..0, |layout| layout.columns(panel));
        columns(panels.start).start..columns(panels.end - 1).end
    }
}

impl<T: Element> Sum<'_, T> {
    /// The terms' left factors in a block of rows.
    fn lefts<'b>(
        &'b self,
        engine: Engine,
        block: &Range<usize>,
        buffers: &'b mut Vec<Aligned>,
    ) -> Vec<Left<'b>> {
        if buffers.len() < self.terms.len() {
            buffers.resize_with(self.terms.len(), Aligned::new);
        }
        let left = |(term, buffer): (&'b Term<'_, T>, &'b mut Aligned)| {
            let (depth, rows) = (term.depth, block.len());
            let from = &term.left[block.start * depth..block.end * depth];
            let rows_of = match engine.has_wide_tiles() {
                true => Left::of_rows,
                false => Left::copy_of_rows,
            };
            rows_of(engine, from, depth, rows, depth, buffer)
        };
        self.terms.iter().zip(buffers).map(left).collect()
    }

    /// Computes a piece: some panels' columns of the left factors' rows from `first` on.
    fn compute(
        &self,
        engine: Engine,
        lefts: &[Left<'_>],
        first: usize,
        panels: Range<usize>,
        piece: &mut Piece<'_>,
    ) {
        let (rows, columns, stride) = (piece.rows.len(), &piece.columns, piece.stride);
        assert!(*columns == self.columns(&panels) && columns.len() <= stride);
        assert!(piece.data.len() >= rows * stride);
        let out = piece.data.as_mut_ptr().wrapping_sub(columns.start);
        let mut start = self.bias.map_or(Start::Zero, Start::Bias);
        for (term, left) in self.terms.iter().zip(lefts) {
            let (left, right, panels) = (left.skip_rows(first), term.right, panels.clone());
            // SAFETY: only the panels' columns are touched, which are the piece's, and column `columns.start` of a row lies
            // at the row's beginning in the piece, where there is room for all of them.
            unsafe { multiply(engine, left, rows, right, panels, start, out, stride) };
            start = Start::Out;
        }
    }
}

/// A row-major matrix.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T> {
    data: &'a [T],
    columns: usize,
}

impl<'a, T> Matrix<'a, T> {
    pub fn new(data: &'a [T], columns: usize) -> Self {
        Self { data, columns }
    }

    /// Some of its rows, from column `column` on.
    fn part(&self, rows: &Range<usize>, column: usize) -> &'a [T] {
        &self.data[rows.start * self.columns + column..rows.end * self.columns]
    }
}

/// `dw = dyᵀ x`, or `+=`, and, if it is wanted, `db +=` the column sums of `dy`.
pub struct WeightSum<'a, T> {
    pub dy: Matrix<'a, T>,
    pub accumulate: bool,
    pub dw: Disjoint<'a, f32>,
    pub db: Option<Disjoint<'a, f32>>,
}

/// Weight gradients of several layers of one input `x`, which has as many `rows` as all `dy`.
///
/// Factors are packed with the rows as their depth, a part of the rows at a time so that what is packed
/// stays in the cache; the parts are added in order.
pub fn columns_times_rows<T: Element>(
    engine: Engine,
    rows: usize,
    sums: &[WeightSum<'_, T>],
    x: Matrix<'_, T>,
) {
    if rows == 0 {
        for sum in sums.iter().filter(|sum| !sum.accumulate) {
            // SAFETY: nobody else holds the gradients meanwhile.
            unsafe { sum.dw.slice(0..sum.dw.len()) }.fill(0.0);
        }
    }
    FACTORS.with_borrow_mut(|[left, right]| {
        for first in (0..rows).step_by(engine.numbers(DEPTH)) {
            let part = first..(first + engine.numbers(DEPTH)).min(rows);
            let depth = engine.words(part.len());
            let right_layout = Layout::new(depth, x.columns);
            let right = right.words(right_layout.len());
            pack_right(engine, x, right_layout, right, &part);
            let right = Panels::new(right, right_layout);
            for sum in sums {
                let WeightSum { dy, dw, db, .. } = sum;
                let strips = Strips::new(engine, part.len(), dy.columns);
                let left = left.words(strips.len());
                pack_left(engine, *dy, strips, left, &part, db.as_ref());
                let start = match first {
                    0 if !sum.accumulate => Start::Zero,
                    _ => Start::Out,
                };
                add_product(engine, left, strips, right, start, dw);
            }
        }
    });
}

/// Packs the rows in `part` as a right factor.
fn pack_right<T: Element>(
    engine: Engine,
    matrix: Matrix<'_, T>,
    layout: Layout,
    out: &mut [u32],
    part: &Range<usize>,
) {
    let out = Disjoint::new(out);
    parallel_for(layout.panels(), |p| {
        let columns = layout.columns(p);
        let from = matrix.part(part, columns.start);
        // SAFETY: each task writes its own panel.
        let out = unsafe { out.slice(layout.range(p)) };
        let (stride, padded) = (matrix.columns, layout.padded(p));
        pack_rows(engine, from, stride, part.len(), columns.len(), padded, out);
    });
}

/// Packs the rows in `part` as a left factor, and adds their sum to `sums` if it is wanted.
fn pack_left<T: Element>(
    engine: Engine,
    matrix: Matrix<'_, T>,
    strips: Strips,
    out: &mut [u32],
    part: &Range<usize>,
    sums: Option<&Disjoint<'_, f32>>,
) {
    let out = Disjoint::new(out);
    parallel_for(strips.count(), |strip| {
        let columns = strips.columns(strip);
        let from = matrix.part(part, columns.start);
        // SAFETY: each task writes its own strip.
        let out = unsafe { out.slice(strips.range(strip)) };
        strips.pack(strip, from, matrix.columns, part.len(), out);
        if let Some(sums) = sums {
            // SAFETY: each task adds to the sums of its own columns.
            let sums = unsafe { sums.slice(columns) };
            add_rows(engine.cpu(), from, matrix.columns, part.len(), sums);
        }
    });
}

multiversion! {
    /// Adds each of the rows to `sums`.
    fn add_rows<S: Lanes, T: Element>(from: &[T], stride: usize, rows: usize, sums: &mut [f32]) {
        for (i, sums) in sums.chunks_mut(LANES).enumerate() {
            let mut total = S::splat(0.0);
            for row in 0..rows {
                let row = &from[row * stride + i * LANES..][..sums.len()];
                total = total.add(T::load_part::<S>(row));
            }
            S::load_part(sums).add(total).store_part(sums);
        }
    }
}

/// `dw = start + leftᵀ right` for packed factors of one depth. A task takes a strip of `left`, which is rows of `dw`, and a
/// group of `right`'s panels that stay in the L2 cache, which all strips pass.
fn add_product(
    engine: Engine,
    left: &[u32],
    strips: Strips,
    right: Panels<'_>,
    start: Start<'_>,
    dw: &Disjoint<'_, f32>,
) {
    let Layout { width, depth, .. } = right.layout();
    let (count, panels) = (strips.count(), right.layout().panels());
    if count == 0 || panels == 0 {
        return;
    }
    let least = (2 * threads()).div_ceil(count);
    let groups: Vec<_> = groups(panels, panels_in_cache(depth), least).collect();
    parallel_for(groups.len() * count, |task| {
        let (panels, strip) = (groups[task / count].clone(), task % count);
        let columns = strips.columns(strip);
        let left = strips.left(strip, left);
        let out = dw.pointer(columns.start * width);
        // SAFETY: `dw` has `width` columns in each row, and each task has its own rows and panels.
        unsafe {
            multiply(
                engine,
                left,
                columns.len(),
                right,
                panels,
                start,
                out,
                width,
            )
        };
    });
}
