//! Attention of one sequence's one head.

use std::cell::RefCell;
use std::ops::Range;

use super::softmax::{Rows, gradients, inner_products, probabilities};
use crate::kernels::dropout::{Dropout, attention_key};
use crate::kernels::gemm::{
    Aligned, Engine, Format, Layout, Left, Panels, Start, as_words, convert_rows, multiply,
    pack_columns, pack_rows, zip_rows,
};
use crate::kernels::lanes::LANES;
use crate::kernels::pool::Disjoint;

/// Queries done at a time, so that their scores stay in the cache.
const BLOCK: usize = 64;
/// Queries whose scores go through the softmax and are converted while in the innermost cache.
const PART: usize = 8;

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
    left: Aligned,
    ds_columns: Aligned,
    p_columns: Aligned,
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
                let left = self.softmax(&block, scores, &mut block_lse, &mut scratch.left);
                self.product(left, values, Start::Zero, ctx, &queries);
                for (row, value) in queries.zip(block_lse) {
                    // SAFETY: a head owns its column of its sequence's rows.
                    unsafe { *lse.pointer(row * self.heads + self.head) = value };
                }
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
                let converted = [left, &mut scratch.ds_columns, &mut scratch.p_columns];
                let [ds, ds_columns, p_columns] =
                    self.softmax_backward(inputs, &block, p, ds, converted);

                self.product(ds, keys_down, Start::Zero, dq, &queries);
                let q = self.rows(inputs.q, &queries, n, &mut scratch.queries);
                self.product(ds_columns, q, start, dk, &self.keys);
                let dctx = self.rows(inputs.dctx, &queries, n, &mut scratch.outputs);
                self.product(p_columns, dctx, start, dv, &self.keys);
                start = Start::Out;
            }
        });
    }

    /// Scores become probabilities, as the left factor of the product with v.
    fn softmax<'b>(
        &self,
        block: &Range<usize>,
        scores: &'b mut [f32],
        lse: &mut [f32; BLOCK],
        buffer: &'b mut Aligned,
    ) -> Left<'b> {
        let (n, stride) = (block.len(), self.stride());
        let (row_keys, words) = (self.row_keys(block), self.engine.words(stride));
        let converted = self.converts().then(|| buffer.words(n * words));
        let left = converted.unwrap_or_default();
        for start in (0..n).step_by(PART) {
            let part = start..(start + PART).min(n);
            let rows = self.softmax_rows(&row_keys[part.clone()]);
            let scores = &mut scores[part.start * stride..part.end * stride];
            probabilities(self.engine.cpu(), rows, scores, &mut lse[part.clone()]);
            if self.converts() {
                let out = &mut left[part.start * words..part.end * words];
                convert_rows(self.engine, scores, stride, part.len(), stride, out);
            }
        }
        if self.converts() {
            Left::rows(left, words)
        } else {
            Left::rows(as_words(scores), stride)
        }
    }

    /// Scores become probabilities, and the gradients of these those of the scores: `ds` and its transpose
    /// and the transpose of `p` as left factors.
    fn softmax_backward<'b>(
        &self,
        inputs: &Inputs<'_>,
        block: &Range<usize>,
        p: &'b mut [f32],
        ds: &'b mut [f32],
        buffers: [&'b mut Aligned; 3],
    ) -> [Left<'b>; 3] {
        let (engine, n, stride) = (self.engine, block.len(), self.stride());
        let queries = self.block_rows(block);
        let mut deltas = [0f32; BLOCK];
        let [ctx, dctx] = [inputs.ctx, inputs.dctx].map(|x| self.of_head(x, &queries));
        inner_products(
            engine.cpu(),
            ctx,
            dctx,
            self.hidden,
            self.dim,
            &mut deltas[..n],
        );
        let mut lse = [0f32; BLOCK];
        for (row, lse) in queries.zip(&mut lse) {
            *lse = inputs.lse[row * self.heads + self.head];
        }
        let row_keys = self.row_keys(block);
        let along = engine.words(stride);
        let sizes = [
            n * along,
            engine.words(n) * stride,
            engine.words(n) * stride,
        ];
        let mut sizes = sizes.into_iter();
        let converts = self.converts();
        let [rows_out, ds_out, p_out] = buffers.map(|buffer| {
            let size = sizes.next().unwrap_or_default();
            buffer.words(if converts { size } else { 0 })
        });
        for start in (0..n).step_by(PART) {
            let part = start..(start + PART).min(n);
            let cells = part.start * stride..part.end * stride;
            let (p, ds) = (&mut p[cells.clone()], &mut ds[cells]);
            let rows = self.softmax_rows(&row_keys[part.clone()]);
            gradients(
                engine.cpu(),
                rows,
                &lse[part.clone()],
                &deltas[part.clone()],
                p,
                ds,
            );
            if converts {
                let count = part.len();
                convert_rows(
                    engine,
                    ds,
                    stride,
                    count,
                    stride,
                    &mut rows_out[start * along..],
                );
                let start = engine.words(start) * stride;
                zip_rows(engine, ds, stride, count, stride, &mut ds_out[start..]);
                zip_rows(engine, p, stride, count, stride, &mut p_out[start..]);
            }
        }
        if converts {
            let columns = [ds_out, p_out].map(|words| Left::columns(words, stride));
            [Left::rows(rows_out, along), columns[0], columns[1]]
        } else {
            let (p, ds) = (as_words(p), as_words(ds));
            [
                Left::rows(ds, stride),
                Left::columns(ds, stride),
                Left::columns(p, stride),
            ]
        }
    }

    /// Whether f32 must be converted for products.
    fn converts(&self) -> bool {
        self.engine.format() != Format::F32
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
        if !self.converts() {
            return Left::rows(as_words(from), stride);
        }
        let words = self.engine.words(depth);
        let out = buffer.words(rows * words);
        convert_rows(self.engine, from, stride, rows, depth, out);
        Left::rows(out, words)
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
