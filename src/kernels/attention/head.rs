//! Attention of one sequence's one head.

use std::cell::RefCell;
use std::ops::Range;

use super::softmax::{
    GradientPairs, HeadRows, Rows, gradients, gradients_as_pairs, inner_products, probabilities,
    probabilities_as_pairs, write_rows,
};
use crate::kernels::dropout::{Dropout, attention_key};
use crate::kernels::element::Element;
use crate::kernels::gemm::{
    Aligned, Engine, Format, Layout, Left, Panels, Start, as_bf16, as_words, convert_rows,
    multiply, pack_columns, pack_rows, zip_rows,
};
use crate::kernels::lanes::LANES;
use crate::kernels::pool::Disjoint;

/// Queries done at a time, so that their scores stay in the cache.
const BLOCK: usize = 64;

/// One task: rows of the packed tensors, columns `head * dim ..` of their `hidden`.
pub struct Head<'a> {
    pub engine: Engine,
    pub hidden: usize,
    pub heads: usize,
    pub head: usize,
    pub dim: usize,
    pub scale: f32,
    /// Rows of `q` and `ctx`.
    pub queries: Range<usize>,
    /// Rows of `k` and `v`.
    pub keys: Range<usize>,
    /// The dropout key of each query's token; none if the sequence is empty.
    pub token_keys: &'a [u64],
    pub dropout: Dropout,
}

/// What the backward pass reads.
pub struct Inputs<'a, T> {
    pub q: &'a [T],
    pub k: &'a [T],
    pub v: &'a [T],
    pub ctx: &'a [T],
    pub dctx: &'a [T],
    pub lse: &'a [f32],
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Buffers of a thread; they grow to the longest sequence.
#[derive(Default)]
struct Scratch {
    keys_along: Aligned,
    keys_down: Aligned,
    values: Aligned,
    queries: Aligned,
    outputs: Aligned,
    scores: Aligned,
    gradients: Aligned,
    left: Aligned,
    ds_columns: Aligned,
    p_columns: Aligned,
    /// Sums of products before they are written: a block of `ctx` or `dq`, all of `dk`, all of `dv`.
    sums: [Aligned; 3],
}

impl Head<'_> {
    /// Writes its queries' part of `ctx` and `lse`.
    pub fn forward<T: Element>(
        &self,
        [q, k, v]: [&[T]; 3],
        ctx: &Disjoint<'_, T>,
        lse: &Disjoint<'_, f32>,
    ) {
        if self.keys.is_empty() {
            self.zero(ctx);
            for row in self.queries.clone() {
                // SAFETY: a head owns its column of its sequence's rows.
                unsafe { *lse.pointer(row * self.heads + self.head) = 0.0 };
            }
            return;
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let keys = self.columns(k, &mut scratch.keys_along);
            let values = self.rows(v, &self.keys, self.stride(), &mut scratch.values);
            let (mut block_lse, mut shares) = ([0f32; BLOCK], [1f32; BLOCK]);
            for block in self.blocks() {
                let (queries, n) = (self.block_rows(&block), block.len());
                let scores = scratch.scores.floats(n * self.stride());
                self.scores(q, &queries, keys, &mut scratch.left, scores);
                let results = [&mut block_lse, &mut shares];
                let left = self.softmax(&block, scores, results, &mut scratch.left);
                let sums = scratch.sums[0].floats(n * self.dim);
                self.product(left, values, Start::Zero, n, sums);
                self.write(sums, &shares, ctx, &queries);
                for (row, value) in queries.zip(block_lse) {
                    // SAFETY: a head owns its column of its sequence's rows.
                    unsafe { *lse.pointer(row * self.heads + self.head) = value };
                }
            }
        });
    }

    /// Writes its part of `dq`, `dk` and `dv`.
    pub fn backward<T: Element>(
        &self,
        inputs: &Inputs<'_, T>,
        [dq, dk, dv]: [&Disjoint<'_, T>; 3],
    ) {
        if self.keys.is_empty() {
            self.zero(dq);
            return;
        }
        let ones = [1f32; BLOCK];
        SCRATCH.with_borrow_mut(|scratch| {
            let keys = self.columns(inputs.k, &mut scratch.keys_along);
            let values = self.columns(inputs.v, &mut scratch.values);
            let keys_down = self.rows(inputs.k, &self.keys, self.stride(), &mut scratch.keys_down);
            let [dq_sums, dk_sums, dv_sums] = &mut scratch.sums;
            let count = self.keys.len();
            let (dk_sums, dv_sums) = (
                dk_sums.floats(count * self.dim),
                dv_sums.floats(count * self.dim),
            );
            let mut start = Start::Zero;
            for block in self.blocks() {
                let (queries, n) = (self.block_rows(&block), block.len());
                let (stride, left) = (self.stride(), &mut scratch.left);
                let p = scratch.scores.floats(n * stride);
                let ds = scratch.gradients.floats(n * stride);
                self.scores(inputs.q, &queries, keys, left, p);
                self.scores(inputs.dctx, &queries, values, left, ds);
                let converted = [left, &mut scratch.ds_columns, &mut scratch.p_columns];
                let [ds, ds_columns, p_columns] =
                    self.softmax_backward(inputs, &block, p, ds, converted);

                let sums = dq_sums.floats(n * self.dim);
                self.product(ds, keys_down, Start::Zero, n, sums);
                self.write(sums, &ones, dq, &queries);
                let q = self.rows(inputs.q, &queries, n, &mut scratch.queries);
                self.product(ds_columns, q, start, count, dk_sums);
                let dctx = self.rows(inputs.dctx, &queries, n, &mut scratch.outputs);
                self.product(p_columns, dctx, start, count, dv_sums);
                start = Start::Out;
            }
            for (sums, out) in [(dk_sums, dk), (dv_sums, dv)] {
                for (sums, row) in sums
                    .chunks(BLOCK * self.dim)
                    .zip(self.keys.clone().step_by(BLOCK))
                {
                    self.write(sums, &ones, out, &(row..(row + BLOCK).min(self.keys.end)));
                }
            }
        });
    }

    /// Scores become probabilities, as the left factor of the product with v, whose rows are still to be
    /// multiplied by `shares`.
    fn softmax<'b>(
        &self,
        block: &Range<usize>,
        scores: &'b mut [f32],
        [lse, shares]: [&mut [f32; BLOCK]; 2],
        buffer: &'b mut Aligned,
    ) -> Left<'b> {
        let (engine, n, stride) = (self.engine, block.len(), self.stride());
        let row_keys = self.row_keys(block);
        let rows = self.softmax_rows(&row_keys[..n]);
        let words = engine.words(stride);
        match engine.format() {
            Format::Pairs | Format::Tiles => {
                let left = buffer.words(n * words);
                let (lse, shares) = (&mut lse[..n], &mut shares[..n]);
                probabilities_as_pairs(engine.cpu(), rows, scores, as_bf16(left), lse, shares);
                Left::rows(left, words)
            }
            Format::Rounded => {
                probabilities(engine.cpu(), rows, scores, &mut lse[..n]);
                let left = buffer.words(n * words);
                convert_rows(engine, scores, stride, n, stride, left);
                Left::rows(left, words)
            }
            Format::F32 => {
                probabilities(engine.cpu(), rows, scores, &mut lse[..n]);
                Left::rows(as_words(scores), stride)
            }
        }
    }

    /// Scores become probabilities, and the gradients of these those of the scores: `ds` and its transpose
    /// and the transpose of `p` as left factors.
    fn softmax_backward<'b, T: Element>(
        &self,
        inputs: &Inputs<'_, T>,
        block: &Range<usize>,
        p: &'b mut [f32],
        ds: &'b mut [f32],
        [left, ds_columns, p_columns]: [&'b mut Aligned; 3],
    ) -> [Left<'b>; 3] {
        let (engine, n, stride) = (self.engine, block.len(), self.stride());
        let (cpu, queries) = (engine.cpu(), self.block_rows(block));
        let (mut deltas, mut lse) = ([0f32; BLOCK], [0f32; BLOCK]);
        let [ctx, dctx] = [inputs.ctx, inputs.dctx].map(|x| self.of_head(x, &queries));
        inner_products(cpu, ctx, dctx, self.hidden, self.dim, &mut deltas[..n]);
        for (row, lse) in queries.zip(&mut lse) {
            *lse = inputs.lse[row * self.heads + self.head];
        }
        let row_keys = self.row_keys(block);
        let rows = self.softmax_rows(&row_keys[..n]);
        let along = engine.words(stride);
        let columns = engine.words(n) * stride;
        match engine.format() {
            Format::Pairs | Format::Tiles => {
                // Nobody writes what tiles have behind the last pair of queries.
                let [ds_columns, p_columns] = [&mut *ds_columns, &mut *p_columns].map(|buffer| {
                    let words = buffer.words(columns);
                    words[n.div_ceil(2) * stride..].fill(0);
                    words
                });
                let out = GradientPairs {
                    ds: as_bf16(left.words(n * along)),
                    ds_columns,
                    p_columns,
                };
                gradients_as_pairs(cpu, rows, &lse, &deltas, p, ds, out);
            }
            Format::Rounded => {
                gradients(cpu, rows, &lse, &deltas, p, ds);
                convert_rows(engine, ds, stride, n, stride, left.words(n * along));
                zip_rows(engine, ds, stride, n, stride, ds_columns.words(columns));
                zip_rows(engine, p, stride, n, stride, p_columns.words(columns));
            }
            Format::F32 => {
                gradients(cpu, rows, &lse, &deltas, p, ds);
                let (p, ds) = (as_words(p), as_words(ds));
                let columns = [ds, p].map(|words| Left::columns(words, stride));
                return [Left::rows(ds, stride), columns[0], columns[1]];
            }
        }
        let columns = [ds_columns, p_columns].map(|b| Left::columns(b.get(columns), stride));
        [
            Left::rows(left.get(n * along), along),
            columns[0],
            columns[1],
        ]
    }

    /// Queries in blocks, counted from the sequence's first.
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        let n = self.queries.len();
        (0..n)
            .step_by(BLOCK)
            .map(move |start| start..(start + BLOCK).min(n))
    }

    fn block_rows(&self, block: &Range<usize>) -> Range<usize> {
        self.queries.start + block.start..self.queries.start + block.end
    }

    /// The length of a row of scores: the number of keys, padded with zeros to whole vectors and words.
    fn stride(&self) -> usize {
        let words = self.engine.words(self.keys.len());
        self.engine.numbers(words).next_multiple_of(LANES)
    }

    fn row_keys(&self, block: &Range<usize>) -> [u64; BLOCK] {
        let mut keys = [0; BLOCK];
        #[expect(clippy::cast_possible_truncation, reason = "models have few heads")]
        let head = self.head as u32;
        for (key, &token) in keys.iter_mut().zip(&self.token_keys[block.clone()]) {
            *key = attention_key(token, head);
        }
        keys
    }

    fn softmax_rows<'b>(&'b self, row_keys: &'b [u64]) -> Rows<'b> {
        Rows {
            stride: self.stride(),
            keys: self.keys.len(),
            scale: self.scale,
            dropout: &self.dropout,
            row_keys,
        }
    }

    /// A tensor from the first of `rows` on, and from this head's first column on.
    fn of_head<'b, T>(&self, tensor: &'b [T], rows: &Range<usize>) -> &'b [T] {
        &tensor[rows.start * self.hidden + self.head * self.dim..]
    }

    /// This head's columns of k or v as the right factor of a product over `dim`, one column per key.
    fn columns<'b, T: Element>(&self, tensor: &[T], buffer: &'b mut Aligned) -> Panels<'b> {
        let layout = Layout::new(self.engine.words(self.dim), self.stride());
        let words = buffer.words(layout.len());
        let from = self.of_head(tensor, &self.keys);
        for p in 0..layout.panels() {
            let columns = layout.columns(p);
            let count = self.keys.len().saturating_sub(columns.start);
            let count = count.min(columns.len());
            let from = &from[columns.start.min(self.keys.len() - 1) * self.hidden..];
            let out = &mut words[layout.range(p)];
            let padded = layout.padded(p);
            pack_columns(self.engine, from, self.hidden, count, self.dim, padded, out);
        }
        Panels::new(words, layout)
    }

    /// This head's columns of some rows as the right factor of a product over these rows, with zeros up to
    /// `depth` of them.
    fn rows<'b, T: Element>(
        &self,
        tensor: &[T],
        rows: &Range<usize>,
        depth: usize,
        buffer: &'b mut Aligned,
    ) -> Panels<'b> {
        let layout = Layout::new(self.engine.words(depth), self.dim);
        let words = buffer.words(layout.len());
        let from = self.of_head(tensor, rows);
        for p in 0..layout.panels() {
            let (columns, padded) = (layout.columns(p), layout.padded(p));
            let from = &from[columns.start..];
            let out = &mut words[layout.range(p)];
            pack_rows(
                self.engine,
                from,
                self.hidden,
                rows.len(),
                columns.len(),
                padded,
                out,
            );
        }
        Panels::new(words, layout)
    }

    /// `out` = this head's part of some rows, times k or v.
    fn scores<T: Element>(
        &self,
        tensor: &[T],
        rows: &Range<usize>,
        right: Panels<'_>,
        buffer: &mut Aligned,
        out: &mut [f32],
    ) {
        let from = self.of_head(tensor, rows);
        let left = Left::of_rows(self.engine, from, self.hidden, rows.len(), self.dim, buffer);
        let (n, stride, panels) = (rows.len(), self.stride(), 0..right.layout().panels());
        assert!(out.len() >= n * stride);
        let (start, out) = (Start::Zero, out.as_mut_ptr());
        // SAFETY: `out` has a row of `stride` numbers, the right factor's width, for each row.
        unsafe { multiply(self.engine, left, n, right, panels, start, out, stride) };
    }

    /// `out [rows, dim] (+)= left · right`.
    fn product(
        &self,
        left: Left<'_>,
        right: Panels<'_>,
        start: Start<'_>,
        rows: usize,
        out: &mut [f32],
    ) {
        let panels = 0..right.layout().panels();
        assert!(right.layout().width == self.dim && out.len() >= rows * self.dim);
        let out = out.as_mut_ptr();
        // SAFETY: `out` has a row of `dim` numbers, the right factor's width, for each row.
        unsafe { multiply(self.engine, left, rows, right, panels, start, out, self.dim) };
    }

    /// Writes this head's columns of `rows` of `out`: each row of `sums` times its factor.
    fn write<T: Element>(
        &self,
        sums: &[f32],
        factors: &[f32; BLOCK],
        out: &Disjoint<'_, T>,
        rows: &Range<usize>,
    ) {
        // A head owns its columns of its sequence's rows.
        let place = HeadRows {
            start: rows.start * self.hidden + self.head * self.dim,
            stride: self.hidden,
            dim: self.dim,
        };
        write_rows(self.engine.cpu(), sums, &factors[..rows.len()], out, place);
    }

    /// Zeros in its part of its queries' rows.
    fn zero<T: Element>(&self, out: &Disjoint<'_, T>) {
        for row in self.queries.clone() {
            let start = row * self.hidden + self.head * self.dim;
            // SAFETY: a head owns its columns of its sequence's rows.
            unsafe { out.slice(start..start + self.dim) }.fill(T::ZERO);
        }
    }
}
