//! The products behind the linear layer, cut into tasks.

use std::cell::RefCell;
use std::ops::Range;

use crate::kernels::cpu::multiversion;
use crate::kernels::gemm::{
    Aligned, DEPTH, Engine, Format, LANES, Layout, Left, Panels, Start, as_words, convert_rows,
    multiply, pack_rows,
};
use crate::kernels::pool::{Disjoint, parallel_for, threads};

thread_local! {
    /// A task's rows of the left factor, converted.
    static ROWS: RefCell<Aligned> = const { RefCell::new(Aligned::new()) };
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

impl Grid {
    /// Rows of a block: few enough to stay in the L2 cache beside a panel.
    const BLOCK: usize = 96;
    /// Rows of a tile, of which blocks are multiples.
    const TILE: usize = 8;

    fn new(rows: usize, panels: usize) -> Self {
        let tiles = rows.div_ceil(Self::TILE).max(1);
        let blocks = rows
            .div_ceil(Self::BLOCK)
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

/// `out [rows, width] (+)= left [rows, depth] · right`.
pub fn rows_times_panels(
    engine: Engine,
    left: &[f32],
    rows: usize,
    depth: usize,
    right: Panels<'_>,
    start: Start<'_>,
    out: &mut [f32],
) {
    let Layout {
        width,
        depth: words,
        ..
    } = right.layout();
    let grid = Grid::new(rows, right.layout().panels());
    let out = Disjoint::new(out);
    parallel_for(grid.tasks(), |task| {
        let block = grid.rows(task);
        let out = out.pointer(block.start * width);
        let left = &left[block.start * depth..block.end * depth];
        let run = |left: &[u32]| {
            let left = Left::rows(left, words);
            let panels = grid.panels(task);
            // SAFETY: `out` has `width` columns in each row, and each task has its own block of rows and
            // panels.
            unsafe { multiply(engine, left, block.len(), right, panels, start, out, width) };
        };
        if engine.format() == Format::F32 {
            run(as_words(left));
        } else {
            ROWS.with_borrow_mut(|buffer| {
                let converted = buffer.words(block.len() * words);
                convert_rows(engine, left, depth, block.len(), depth, converted);
                run(converted);
            });
        }
    });
}

/// A row-major matrix.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    columns: usize,
}

impl<'a> Matrix<'a> {
    pub fn new(data: &'a [f32], columns: usize) -> Self {
        Self { data, columns }
    }

    fn rows(&self) -> usize {
        self.data.len().checked_div(self.columns).unwrap_or(0)
    }

    /// Some of its rows, from column `column` on.
    fn part(&self, rows: &Range<usize>, column: usize) -> &'a [f32] {
        &self.data[rows.start * self.columns + column..rows.end * self.columns]
    }
}

/// `dw += dyᵀ x` and, unless it is empty, `db +=` the column sums of `dy`.
///
/// Both factors are packed with the rows as their depth, a part of the rows at a time so that what is
/// packed stays in the cache; the parts are added in order.
pub fn columns_times_rows(
    engine: Engine,
    dy: Matrix<'_>,
    x: Matrix<'_>,
    dw: &mut [f32],
    db: &mut [f32],
) {
    let rows = dy.rows();
    let (dw, db) = (Disjoint::new(dw), Disjoint::new(db));
    FACTORS.with_borrow_mut(|[left, right]| {
        for first in (0..rows).step_by(engine.numbers(DEPTH)) {
            let part = first..(first + engine.numbers(DEPTH)).min(rows);
            let depth = engine.words(part.len());
            let layouts = (
                Layout::new(depth, dy.columns),
                Layout::new(depth, x.columns),
            );
            let left = left.words(layouts.0.len());
            let right = right.words(layouts.1.len());
            pack(
                engine,
                (dy, layouts.0, left),
                (x, layouts.1, right),
                &part,
                &db,
            );
            let left = Panels::new(left, layouts.0);
            add_product(engine, left, Panels::new(right, layouts.1), &dw);
        }
    });
}

type Packing<'a> = (Matrix<'a>, Layout, &'a mut [u32]);

/// Packs the rows in `part` of both factors, and adds the column sums of the first to `sums`.
fn pack(
    engine: Engine,
    left: Packing<'_>,
    right: Packing<'_>,
    part: &Range<usize>,
    sums: &Disjoint<'_, f32>,
) {
    let count = left.1.panels();
    let outs = [Disjoint::new(left.2), Disjoint::new(right.2)];
    parallel_for(count + right.1.panels(), |task| {
        let (matrix, layout, out, p) = match task.checked_sub(count) {
            None => (left.0, left.1, &outs[0], task),
            Some(p) => (right.0, right.1, &outs[1], p),
        };
        let columns = layout.columns(p);
        let from = matrix.part(part, columns.start);
        // SAFETY: each task writes its own panel.
        let out = unsafe { out.slice(layout.range(p)) };
        let (stride, padded) = (matrix.columns, layout.padded(p));
        pack_rows(engine, from, stride, part.len(), columns.len(), padded, out);
        if task < count && !sums.is_empty() {
            // SAFETY: each task of the left factor adds to the sums of its own columns.
            let sums = unsafe { sums.slice(columns) };
            add_rows(engine.cpu(), from, stride, part.len(), sums);
        }
    });
}

multiversion! {
    /// Adds each of the rows to `sums`.
    fn add_rows(from: &[f32], stride: usize, rows: usize, sums: &mut [f32]) {
        for (i, sums) in sums.chunks_mut(LANES).enumerate() {
            let mut total = [0f32; LANES];
            for row in 0..rows {
                let row = &from[row * stride + i * LANES..][..sums.len()];
                if let Some(row) = row.first_chunk::<LANES>() {
                    for l in 0..LANES {
                        total[l] += row[l];
                    }
                } else {
                    for (total, x) in total.iter_mut().zip(row) {
                        *total += x;
                    }
                }
            }
            for (sum, total) in sums.iter_mut().zip(total) {
                *sum += total;
            }
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
