//! The products behind the linear layer, cut into tasks.

use std::cell::RefCell;
use std::ops::Range;

use super::pieces::Piece;
use crate::kernels::cpu::multiversion;
use crate::kernels::element::Element;
use crate::kernels::gemm::{
    Aligned, DEPTH, Engine, Layout, Left, MAX_WIDTH, Panels, Start, multiply, pack_rows,
};
use crate::kernels::lanes::LANES;
use crate::kernels::pool::{Disjoint, parallel_for, threads};

/// Buffers of a thread.
#[derive(Default)]
struct Scratch {
    /// The piece of a sum that is being computed.
    piece: Aligned,
    /// A task's rows of the left factors, where they have to be converted.
    converted: Vec<Aligned>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    /// The caller's packed factors of a weight gradient.
    static FACTORS: RefCell<[Aligned; 2]> = const { RefCell::new([Aligned::new(), Aligned::new()]) };
}

/// How a product is cut into tasks: blocks of rows, and where these are too few, groups of panels. It
/// affects speed only.
struct Grid {
    rows: usize,
    block: usize,
    panels: usize,
    group: usize,
}

/// Rows of a block: few enough to stay in the L2 cache beside a panel.
const BLOCK: usize = 96;

/// Numbers of the largest piece.
pub const MAX_PIECE: usize = BLOCK * MAX_WIDTH;

impl Grid {
    /// Rows of a tile, of which blocks are multiples.
    const TILE: usize = 8;

    fn new(rows: usize, panels: usize) -> Self {
        let tiles = rows.div_ceil(Self::TILE).max(1);
        let blocks = rows
            .div_ceil(BLOCK)
            .max(1)
            .next_multiple_of(threads())
            .min(tiles);
        let groups = threads().div_ceil(blocks).min(panels).max(1);
        Self {
            rows,
            block: tiles.div_ceil(blocks) * Self::TILE,
            panels,
            group: panels.div_ceil(groups).max(1),
        }
    }

    fn groups(&self) -> usize {
        self.panels.div_ceil(self.group)
    }

    fn tasks(&self) -> usize {
        self.rows.div_ceil(self.block) * self.groups()
    }

    fn rows(&self, task: usize) -> Range<usize> {
        let start = task / self.groups() * self.block;
        start..(start + self.block).min(self.rows)
    }

    fn panels(&self, task: usize) -> Range<usize> {
        let start = task % self.groups() * self.group;
        start..(start + self.group).min(self.panels)
    }
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
/// in the innermost cache. Left factors that several terms share are converted once.
pub fn rows_times_panels<T: Element>(
    engine: Engine,
    rows: usize,
    sums: &[Sum<'_, T>],
    finish: impl Fn(Piece<'_>) + Sync,
) {
    let panels = |sum: &Sum<'_, T>| {
        sum.terms
            .first()
            .map_or(0, |term| term.right.layout().panels())
    };
    let grid = Grid::new(rows, sums.iter().map(panels).max().unwrap_or(0));
    parallel_for(grid.tasks(), |task| {
        let block = grid.rows(task);
        SCRATCH.with_borrow_mut(|Scratch { piece, converted }| {
            let lefts = Lefts::new(engine, sums, &block, converted);
            for (number, sum) in sums.iter().enumerate() {
                let own = grid.panels(task).start.min(panels(sum))
                    ..grid.panels(task).end.min(panels(sum));
                for panel in own {
                    let columns = sum.piece(engine, &lefts, block.len(), panel, piece);
                    finish(Piece {
                        sum: number,
                        rows: block.clone(),
                        columns,
                        data: &mut *piece.floats(block.len() * MAX_WIDTH),
                    });
                }
            }
        });
    });
}

/// A block's left factors, by where their rows lie.
struct Lefts<'a>(Vec<(usize, Left<'a>)>);

impl<'a> Lefts<'a> {
    fn new<T: Element>(
        engine: Engine,
        sums: &'a [Sum<'_, T>],
        block: &Range<usize>,
        converted: &'a mut Vec<Aligned>,
    ) -> Self {
        let mut terms: Vec<&Term<'_, T>> = Vec::new();
        for term in sums.iter().flat_map(|sum| &sum.terms) {
            if !terms
                .iter()
                .any(|known| known.left.as_ptr() == term.left.as_ptr())
            {
                terms.push(term);
            }
        }
        if converted.len() < terms.len() {
            converted.resize_with(terms.len(), Aligned::new);
        }
        let lefts = terms.into_iter().zip(converted).map(|(term, buffer)| {
            let (depth, rows) = (term.depth, block.len());
            let from = &term.left[block.start * depth..block.end * depth];
            let left = Left::copy_of_rows(engine, from, rows, depth, buffer);
            (term.left.as_ptr().addr(), left)
        });
        Self(lefts.collect())
    }

    fn get<T>(&self, term: &Term<'_, T>) -> Option<Left<'a>> {
        let address = term.left.as_ptr().addr();
        let found = self.0.iter().find(|(known, _)| *known == address)?;
        Some(found.1)
    }
}

impl<T: Element> Sum<'_, T> {
    /// Computes one panel's columns into `piece`; answers which these are.
    fn piece(
        &self,
        engine: Engine,
        lefts: &Lefts<'_>,
        rows: usize,
        panel: usize,
        piece: &mut Aligned,
    ) -> Range<usize> {
        let data = piece.floats(rows * MAX_WIDTH).as_mut_ptr();
        let mut columns = 0..0;
        let mut start = self.bias.map_or(Start::Zero, Start::Bias);
        for term in &self.terms {
            let Some(left) = lefts.get(term) else {
                continue;
            };
            columns = term.right.layout().columns(panel);
            let (out, panels) = (data.wrapping_sub(columns.start), panel..panel + 1);
            // SAFETY: only the panel's columns are touched, of which there are at most `MAX_WIDTH`, and
            // column `columns.start` of a row lies at the row's beginning in `piece`.
            unsafe {
                multiply(
                    engine, left, rows, term.right, panels, start, out, MAX_WIDTH,
                )
            };
            start = Start::Out;
        }
        columns
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

/// `dw += dyᵀ x` and, if it is wanted, `db +=` the column sums of `dy`.
pub struct WeightSum<'a, T> {
    pub dy: Matrix<'a, T>,
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
    FACTORS.with_borrow_mut(|[left, right]| {
        for first in (0..rows).step_by(engine.numbers(DEPTH)) {
            let part = first..(first + engine.numbers(DEPTH)).min(rows);
            let depth = engine.words(part.len());
            let right_layout = Layout::new(depth, x.columns);
            let right = right.words(right_layout.len());
            pack(engine, x, right_layout, right, &part, None);
            for WeightSum { dy, dw, db } in sums {
                let left_layout = Layout::new(depth, dy.columns);
                let left = left.words(left_layout.len());
                pack(engine, *dy, left_layout, left, &part, db.as_ref());
                let left = Panels::new(left, left_layout);
                add_product(engine, left, Panels::new(right, right_layout), dw);
            }
        }
    });
}

/// Packs the rows in `part`, and adds their sum to `sums` if it is wanted.
fn pack<T: Element>(
    engine: Engine,
    matrix: Matrix<'_, T>,
    layout: Layout,
    out: &mut [u32],
    part: &Range<usize>,
    sums: Option<&Disjoint<'_, f32>>,
) {
    let out = Disjoint::new(out);
    parallel_for(layout.panels(), |p| {
        let columns = layout.columns(p);
        let from = matrix.part(part, columns.start);
        // SAFETY: each task writes its own panel.
        let out = unsafe { out.slice(layout.range(p)) };
        let (stride, padded) = (matrix.columns, layout.padded(p));
        pack_rows(engine, from, stride, part.len(), columns.len(), padded, out);
        if let Some(sums) = sums {
            // SAFETY: each task adds to the sums of its own columns.
            let sums = unsafe { sums.slice(columns) };
            add_rows(engine.cpu(), from, stride, part.len(), sums);
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

/// `dw += leftᵀ right` for packed factors of one depth; a task takes a panel of `left`, which is rows of
/// `dw`, and some of `right`'s.
fn add_product(engine: Engine, left: Panels<'_>, right: Panels<'_>, dw: &Disjoint<'_, f32>) {
    let (rows, columns) = (left.layout(), right.layout());
    if rows.panels() == 0 || columns.panels() == 0 {
        return;
    }
    let groups = (2 * threads())
        .div_ceil(rows.panels())
        .min(columns.panels());
    let group = columns.panels().div_ceil(groups);
    parallel_for(rows.panels() * groups, |task| {
        let (p, first) = (task / groups, task % groups * group);
        let panels = first.min(columns.panels())..(first + group).min(columns.panels());
        let words = Left::columns(left.panel(p), rows.padded(p));
        let out = dw.pointer(rows.columns(p).start * columns.width);
        let (count, stride) = (rows.columns(p).len(), columns.width);
        // SAFETY: `dw` has `width` columns in each row, and each task has its own rows and panels.
        unsafe { multiply(engine, words, count, right, panels, Start::Out, out, stride) };
    });
}
