//! Attention of one sequence's one head.

use std::cell::RefCell;
use std::ops::Range;

use super::softmax::{Rows, gradients, inner_products, probabilities};
use crate::kernels::dropout::{Dropout, attention_key};
use crate::kernels::gemm::{
    Aligned, Engine, Format, LANES, Layout, Left, Panels, Start, as_words, convert_rows, multiply,
    pack_columns, pack_rows, zip_rows,
};
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
pub struct Inputs<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub ctx: &'a [f32],
    pub lse: &'a [f32],
    pub dctx: &'a [f32],
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
    factors: Aligned,
    left: Aligned,
}

impl Head<'_> {
    /// Writes its queries' part of `ctx` and `lse`.
    pub fn forward(
        &self,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        ctx: &Disjoint<'_, f32>,
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
            let mut block_lse = [0f32; BLOCK];
            for block in self.blocks() {
                let (queries, n) = (self.block_rows(&block), block.len());
                let scores = scratch.scores.floats(n * self.stride());
                self.scores(q, &queries, keys, &mut scratch.left, scores);
                let row_keys = self.row_keys(&block);
                let rows = self.softmax(&row_keys[..n]);
                let factors = scratch.factors.floats(self.stride());
                probabilities(
                    self.engine.cpu(),
                    rows,
                    scores,
                    &mut block_lse[..n],
                    factors,
                );
                for (row, value) in queries.clone().zip(block_lse) {
                    // SAFETY: a head owns its column of its sequence's rows.
                    unsafe { *lse.pointer(row * self.heads + self.head) = value };
                }
                let left = self.left(scores, self.stride(), n, self.stride(), &mut scratch.left);
                self.product(left, values, Start::Zero, ctx, &queries);
            }
        });
    }

    /// Writes its part of `dq`, `dk` and `dv`.
    pub fn backward(&self, inputs: &Inputs<'_>, [dq, dk, dv]: &[Disjoint<'_, f32>; 3]) {
        if self.keys.is_empty() {
            self.zero(dq);
            return;
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let keys = self.columns(inputs.k, &mut scratch.keys_along);
            let values = self.columns(inputs.v, &mut scratch.values);
            let keys_down = self.rows(inputs.k, &self.keys, self.stride(), &mut scratch.keys_down);
            let mut start = Start::Zero;
            for block in self.blocks() {
                let (queries, n) = (self.block_rows(&block), block.len());
                let (stride, left) = (self.stride(), &mut scratch.left);
                let p = scratch.scores.floats(n * stride);
                let ds = scratch.gradients.floats(n * stride);
                self.scores(inputs.q, &queries, keys, left, p);
                self.scores(inputs.dctx, &queries, values, left, ds);
                self.softmax_backward(inputs, &block, p, ds, &mut scratch.factors);

                let rows = self.left(ds, stride, n, stride, left);
                self.product(rows, keys_down, Start::Zero, dq, &queries);
                let q = self.rows(inputs.q, &queries, n, &mut scratch.queries);
                let columns = self.left_transposed(ds, n, left);
                self.product(columns, q, start, dk, &self.keys);
                let dctx = self.rows(inputs.dctx, &queries, n, &mut scratch.outputs);
                let columns = self.left_transposed(p, n, left);
                self.product(columns, dctx, start, dv, &self.keys);
                start = Start::Out;
            }
        });
    }

    /// Scores become probabilities, and the gradients of these those of the scores.
    fn softmax_backward(
        &self,
        inputs: &Inputs<'_>,
        block: &Range<usize>,
        p: &mut [f32],
        ds: &mut [f32],
        factors: &mut Aligned,
    ) {
        let (cpu, n) = (self.engine.cpu(), block.len());
        let queries = self.block_rows(block);
        let mut deltas = [0f32; BLOCK];
        let [ctx, dctx] = [inputs.ctx, inputs.dctx].map(|x| self.of_head(x, &queries));
        inner_products(cpu, ctx, dctx, self.hidden, self.dim, &mut deltas[..n]);
        let mut lse = [0f32; BLOCK];
        for (row, lse) in queries.zip(&mut lse) {
            *lse = inputs.lse[row * self.heads + self.head];
        }
        let row_keys = self.row_keys(block);
        let rows = self.softmax(&row_keys[..n]);
        gradients(
            cpu,
            rows,
            &lse,
            &deltas,
            p,
            ds,
            factors.floats(self.stride()),
        );
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

    /// The length of a row of scores: the number of keys, padded with zeros to whole vectors.
    fn stride(&self) -> usize {
        self.keys.len().next_multiple_of(LANES)
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

    fn softmax<'b>(&'b self, row_keys: &'b [u64]) -> Rows<'b> {
        Rows {
            stride: self.stride(),
            keys: self.keys.len(),
            scale: self.scale,
            dropout: &self.dropout,
            row_keys,
        }
    }

    /// A tensor from the first of `rows` on, and from this head's first column on.
    fn of_head<'b>(&self, tensor: &'b [f32], rows: &Range<usize>) -> &'b [f32] {
        &tensor[rows.start * self.hidden + self.head * self.dim..]
    }

    /// This head's columns of k or v as the right factor of a product over `dim`, one column per key.
    fn columns<'b>(&self, tensor: &[f32], buffer: &'b mut Aligned) -> Panels<'b> {
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
    fn rows<'b>(
        &self,
        tensor: &[f32],
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

    /// Rows of `depth` numbers as the left factor, converted if need be.
    fn left<'b>(
        &self,
        from: &'b [f32],
        stride: usize,
        rows: usize,
        depth: usize,
        buffer: &'b mut Aligned,
    ) -> Left<'b> {
        if self.engine.format() == Format::F32 {
            return Left::rows(as_words(from), stride);
        }
        let words = self.engine.words(depth);
        let out = buffer.words(rows * words);
        convert_rows(self.engine, from, stride, rows, depth, out);
        Left::rows(out, words)
    }

    /// The transpose of a block of `rows` rows of scores as the left factor of a product over the rows.
    fn left_transposed<'b>(
        &self,
        block: &'b [f32],
        rows: usize,
        buffer: &'b mut Aligned,
    ) -> Left<'b> {
        let stride = self.stride();
        if self.engine.format() == Format::F32 {
            return Left::columns(as_words(block), stride);
        }
        let out = buffer.words(self.engine.words(rows) * stride);
        zip_rows(self.engine, block, stride, rows, stride, out);
        Left::columns(out, stride)
    }

    /// `out` = this head's part of some rows, times k or v.
    fn scores(
        &self,
        tensor: &[f32],
        rows: &Range<usize>,
        right: Panels<'_>,
        buffer: &mut Aligned,
        out: &mut [f32],
    ) {
        let from = self.of_head(tensor, rows);
        let left = self.left(from, self.hidden, rows.len(), self.dim, buffer);
        let (n, stride, panels) = (rows.len(), self.stride(), 0..right.layout().panels());
        assert!(out.len() >= n * stride);
        let (start, out) = (Start::Zero, out.as_mut_ptr());
        // SAFETY: `out` has a row of `stride` numbers, the right factor's width, for each row.
        unsafe { multiply(self.engine, left, n, right, panels, start, out, stride) };
    }

    /// This head's columns of `rows` of `out` (+)= left · right.
    fn product(
        &self,
        left: Left<'_>,
        right: Panels<'_>,
        start: Start<'_>,
        out: &Disjoint<'_, f32>,
        rows: &Range<usize>,
    ) {
        let out = out.pointer(rows.start * self.hidden + self.head * self.dim);
        let (n, stride, panels) = (rows.len(), self.hidden, 0..right.layout().panels());
        // SAFETY: `out` is [.., hidden] and `right` is `dim` wide; a head owns its columns of its
        // sequence's rows.
        unsafe { multiply(self.engine, left, n, right, panels, start, out, stride) };
    }

    /// Zeros in its part of its queries' rows.
    fn zero(&self, out: &Disjoint<'_, f32>) {
        for row in self.queries.clone() {
            let start = row * self.hidden + self.head * self.dim;
            // SAFETY: a head owns its columns of its sequence's rows.
            unsafe { out.slice(start..start + self.dim) }.fill(0.0);
        }
    }
}
