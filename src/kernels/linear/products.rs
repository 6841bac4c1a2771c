//! The products behind the linear layer, cut into tasks.

use std::cell::RefCell;
use std::ops::Range;

use crate::kernels::cpu::multiversion;
use crate::kernels::gemm::{
    Aligned, DEPTH, Engine, Format, Layout, Left, Panels, Start, as_words, convert_rows, multiply,
    pack_rows,
};
use crate::kernels::lanes::LANES;
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

/// One product `out [rows, width] (+)= left [rows, depth] · right`.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    pub left: &'a [f32],
    pub depth: usize,
    pub right: Panels<'a>,
    pub start: Start<'a>,
    pub out: &'a Disjoint<'a, f32>,
}

/// Products with the same number of `rows`, in order: they may share a left factor, which is then converted
/// once, or an output, which is then summed while it is in the cache. `finish` is called with each block of
/// rows and range of columns when all products have written there.
pub fn rows_times_panels(
    engine: Engine,
    rows: usize,
    products: &[Product<'_>],
    finish: impl Fn(Range<usize>, Range<usize>) + Sync,
) {
    let Some(first) = products.first() else {
        return;
    };
    let grid = Grid::new(rows, first.right.layout().panels());
    parallel_for(grid.tasks(), |task| {
        let block = grid.rows(task);
        ROWS.with_borrow_mut(|buffer| {
            let mut converted: *const f32 = std::ptr::null();
            for product in products {
                let from = &product.left[block.start * product.depth..block.end * product.depth];
                let fresh = from.as_ptr() != converted;
                let left = left_rows(engine, from, block.len(), product.depth, buffer, fresh);
                converted = from.as_ptr();
                product.run(engine, left, block.clone(), grid.panels(task));
            }
        });
        let layout = first.right.layout();
        let panels = grid.panels(task);
        if !panels.is_empty() {
            let columns = layout.columns(panels.start).start..layout.columns(panels.end - 1).end;
            finish(block, columns);
        }
    });
}

/// Rows as a left factor: where they lie, or in `buffer`, which holds them already unless they are `fresh`.
fn left_rows<'a>(
    engine: Engine,
    from: &'a [f32],
    rows: usize,
    depth: usize,
    buffer: &'a mut Aligned,
    fresh: bool,
) -> Left<'a> {
    let words = engine.words(depth);
    if engine.format() == Format::F32 {
        return Left::rows(as_words(from), words);
    }
    let converted = buffer.words(rows * words);
    if fresh {
        convert_rows(engine, from, depth, rows, depth, converted);
    }
    Left::rows(converted, words)
}

impl Product<'_> {
    /// Some rows of it, and some panels: one task's.
    fn run(&self, engine: Engine, left: Left<'_>, rows: Range<usize>, panels: Range<usize>) {
        let width = self.right.layout().width;
        assert!(
            rows.end * width <= self.out.len(),
            "the output is too short"
        );
        let out = self.out.pointer(rows.start * width);
        let (right, start) = (self.right, self.start);
        // SAFETY: `out` has `width` columns in each row, all of them within it as just checked, and each task
        // has its own block of rows and panels.
        unsafe { multiply(engine, left, rows.len(), right, panels, start, out, width) };
    }
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

    /// Some of its rows, from column `column` on.
    fn part(&self, rows: &Range<usize>, column: usize) -> &'a [f32] {
        &self.data[rows.start * self.columns + column..rows.end * self.columns]
    }
}

/// `dw += dyᵀ x` and, if it is wanted, `db +=` the column sums of `dy`.
pub struct WeightSum<'a> {
    pub dy: Matrix<'a>,
    pub dw: Disjoint<'a, f32>,
    pub db: Option<Disjoint<'a, f32>>,
}

/// Weight gradients of several layers of one input `x`, which has as many `rows` as all `dy`.
///
/// Factors are packed with the rows as their depth, a part of the rows at a time so that what is packed
/// stays in the cache; the parts are added in order.
pub fn columns_times_rows(engine: Engine, rows: usize, sums: &[WeightSum<'_>], x: Matrix<'_>) {
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
fn pack(
    engine: Engine,
    matrix: Matrix<'_>,
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
    fn add_rows<S: Lanes>(from: &[f32], stride: usize, rows: usize, sums: &mut [f32]) {
        for (i, sums) in sums.chunks_mut(LANES).enumerate() {
            let mut total = S::splat(0.0);
            for row in 0..rows {
                let row = &from[row * stride + i * LANES..][..sums.len()];
                total = total.add(S::load_part(row));
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
