//! Self-attention over packed rows: `softmax(q kᵀ / √hd)`, dropout on the probabilities, times v, for each
//! sequence and head by itself. No padding, no mask.
//!
//! Only the log of each softmax's denominator is kept; the backward pass computes the probabilities and
//! dropout's decisions again (Dao et al. 2022, "FlashAttention", in the simple form that fits a CPU's cache). On
//! a GPU, `attention.cu` does so for any head, and `flash_*.cu` with tensor cores for bf16 and the usual heads.

mod cuda;
mod head;
mod softmax;

use std::cmp::Reverse;
use std::ops::Range;

use candle_core::{Result, bail};

use super::dropout::Dropout;
use super::element::{Element, for_dtype};
use super::gemm::Engine;
use super::linear::Precision;
use super::numbers::Numbers;
use super::pool::{Disjoint, parallel_for, shares, threads};
use super::profile;
use super::view::{self, read, write};
use crate::kernels::tensor::Tensor;
use head::Head;

/// Which tokens ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queries {
    /// Every token.
    All,
    /// The first token of each sequence: `q`, `ctx`, `lse`, `dctx` and `dq` have one row per sequence.
    First,
}

/// What a call of attention needs to know besides its tensors.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Where sequences start in the packed rows: B + 1 numbers, the first 0, the last T.
    pub cu_seqlens: Numbers<'a, u32>,
    /// The dropout key of each of the T rows.
    pub token_keys: Numbers<'a, u64>,
    pub num_heads: usize,
    pub dropout: Dropout,
    pub queries: Queries,
    pub precision: Precision,
}

impl Attention<'_> {
    /// `ctx [R, D]` and `lse [R, H]` from `q [R, D]` and `k, v [T, D]`, where R is T, or B for
    /// [`Queries::First`]. An empty sequence gives zeros.
    ///
    /// # Errors
    /// If shapes or types do not fit, tensors are on several devices, or one is not contiguous.
    pub fn forward(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        ctx: &Tensor,
        lse: &Tensor,
    ) -> Result<()> {
        self.forward_on(Engine::best(self.precision), [q, k, v], ctx, lse)
    }

    /// The gradients `dq [R, D]` and `dk, dv [T, D]` from that of `ctx`; they are overwritten.
    ///
    /// # Errors
    /// If shapes or types do not fit, tensors are on several devices, or one is not contiguous.
    #[expect(clippy::too_many_arguments, reason = "six inputs and three outputs")]
    pub fn backward(
        &self,
        dctx: &Tensor,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        ctx: &Tensor,
        lse: &Tensor,
        dq: &Tensor,
        dk: &Tensor,
        dv: &Tensor,
    ) -> Result<()> {
        let engine = Engine::best(self.precision);
        self.backward_on(engine, dctx, [q, k, v], [ctx, lse], [dq, dk, dv])
    }

    fn forward_on(
        &self,
        engine: Engine,
        qkv: [&Tensor; 3],
        ctx: &Tensor,
        lse: &Tensor,
    ) -> Result<()> {
        self.check(qkv, ctx, lse)?;
        if let Some(gpu) = ctx.gpu() {
            return cuda::forward(gpu, self, qkv, ctx, lse);
        }
        let plan = self.plan(engine, ctx)?;
        for_dtype!(ctx, forward_of(&plan, qkv, ctx, lse))
    }

    fn backward_on(
        &self,
        engine: Engine,
        dctx: &Tensor,
        qkv: [&Tensor; 3],
        [ctx, lse]: [&Tensor; 2],
        gradients: [&Tensor; 3],
    ) -> Result<()> {
        self.check(qkv, ctx, lse)?;
        let [dq, dk, dv] = gradients;
        for (gradient, of) in [(dctx, ctx), (dq, qkv[0]), (dk, qkv[1]), (dv, qkv[2])] {
            if gradient.dims() != of.dims() {
                bail!("a gradient is not of its tensor's shape {:?}", of.dims());
            }
        }
        if let Some(gpu) = ctx.gpu() {
            return cuda::backward(gpu, self, dctx, qkv, [ctx, lse], gradients);
        }
        let plan = self.plan(engine, ctx)?;
        for_dtype!(ctx, backward_of(&plan, dctx, qkv, ctx, lse, gradients))
    }

    fn check(&self, [q, k, v]: [&Tensor; 3], ctx: &Tensor, lse: &Tensor) -> Result<()> {
        let (rows, hidden) = k.dims2()?;
        let Some(&first) = self.cu_seqlens.first() else {
            bail!("cu_seqlens is empty")
        };
        let queries = match self.queries {
            Queries::All => rows,
            Queries::First => self.cu_seqlens.len() - 1,
        };
        if first != 0
            || !self.cu_seqlens.is_sorted()
            || self.cu_seqlens.last().map(|&end| end as usize) != Some(rows)
            || self.token_keys.len() != rows
        {
            bail!("the sequences do not cover the {rows} rows");
        }
        if self.num_heads == 0 || !hidden.is_multiple_of(self.num_heads) {
            bail!(
                "{hidden} columns do not split into {} heads",
                self.num_heads
            );
        }
        if v.dims() != k.dims()
            || q.dims() != [queries, hidden]
            || ctx.dims() != [queries, hidden]
            || lse.dims() != [queries, self.num_heads]
        {
            bail!("the shapes of attention's tensors do not fit");
        }
        Ok(())
    }

    /// Orders the work: each thread's share of the sequences is neighbours, as in other ops, the longest of them first, so
    /// that no thread is left with one at the end.
    fn plan(&self, engine: Engine, ctx: &Tensor) -> Result<Plan<'_>> {
        let lengths: Vec<u32> = self.cu_seqlens.windows(2).map(|w| w[1] - w[0]).collect();
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        for share in shares(order.len()) {
            order[share].sort_by_key(|&sequence| Reverse(lengths[sequence]));
        }
        Ok(Plan {
            attention: self,
            engine,
            hidden: ctx.dims2()?.1,
            order,
        })
    }
}

/// Tasks for each thread, at least, so that all end at about the same time.
const TASKS: usize = 16;

struct Plan<'a> {
    attention: &'a Attention<'a>,
    engine: Engine,
    hidden: usize,
    /// Sequences, the longest of each thread's share first.
    order: Vec<usize>,
}

impl Plan<'_> {
    /// A task takes heads that are neighbours, where that leaves enough tasks: their columns lie beside each other, and
    /// two threads that write to neighbouring lines of memory take these from each other.
    fn for_each_head(&self, f: impl Fn(Head<'_>) + Sync) {
        let (heads, sequences) = (self.attention.num_heads, self.order.len());
        let together = (heads * sequences / (TASKS * threads())).clamp(1, heads);
        let groups = heads.div_ceil(together);
        parallel_for(sequences * groups, |task| {
            let first = task % groups * together;
            for head in first..(first + together).min(heads) {
                f(self.head(self.order[task / groups], head));
            }
        });
    }

    /// Operations of this many products of every query with every key.
    fn flop(&self, products: usize) -> usize {
        let attention = self.attention;
        let lengths = attention
            .cu_seqlens
            .windows(2)
            .map(|w| (w[1] - w[0]) as usize);
        let pairs: usize = match attention.queries {
            Queries::All => lengths.map(|n| n * n).sum(),
            Queries::First => lengths.sum(),
        };
        2 * products * pairs * self.hidden
    }

    fn rows(&self) -> usize {
        self.attention.token_keys.len() * self.hidden
    }

    fn head(&self, sequence: usize, head: usize) -> Head<'_> {
        let attention = self.attention;
        let [start, end] = [sequence, sequence + 1].map(|i| attention.cu_seqlens[i] as usize);
        let keys = start..end;
        let (queries, asking): (Range<usize>, Range<usize>) = match attention.queries {
            Queries::All => (keys.clone(), keys.clone()),
            Queries::First => (sequence..sequence + 1, start..end.min(start + 1)),
        };
        let dim = self.hidden / attention.num_heads;
        Head {
            engine: self.engine,
            hidden: self.hidden,
            heads: attention.num_heads,
            head,
            dim,
            scale: 1.0 / (dim as f32).sqrt(),
            queries,
            keys,
            token_keys: &attention.token_keys.host()[asking],
            dropout: attention.dropout,
        }
    }
}

fn forward_of<T: Element>(
    plan: &Plan<'_>,
    qkv: [&Tensor; 3],
    ctx: &Tensor,
    lse: &Tensor,
) -> Result<()> {
    let _op = profile::op("attention", plan.flop(2), 4 * size_of::<T>() * plan.rows());
    view::read_list(&qkv, |inputs: &[&[T]]| {
        view::write_as(ctx, |ctx: &mut [T]| {
            write(lse, |lse| {
                let (ctx, lse) = (Disjoint::new(ctx), Disjoint::new(lse));
                plan.for_each_head(|head| {
                    head.forward([inputs[0], inputs[1], inputs[2]], &ctx, &lse)
                });
                Ok(())
            })
        })
    })?
}

fn backward_of<T: Element>(
    plan: &Plan<'_>,
    dctx: &Tensor,
    [q, k, v]: [&Tensor; 3],
    ctx: &Tensor,
    lse: &Tensor,
    gradients: [&Tensor; 3],
) -> Result<()> {
    let _op = profile::op(
        "attention backward",
        plan.flop(5),
        8 * size_of::<T>() * plan.rows(),
    );
    view::read_list(&[q, k, v, ctx, dctx], |inputs: &[&[T]]| {
        read(lse, |lse| {
            view::write_list(&gradients, |outputs: Vec<&mut [T]>| {
                let inputs = head::Inputs {
                    q: inputs[0],
                    k: inputs[1],
                    v: inputs[2],
                    ctx: inputs[3],
                    dctx: inputs[4],
                    lse,
                };
                let outputs: Vec<_> = outputs.into_iter().map(Disjoint::new).collect();
                plan.for_each_head(|head| {
                    head.backward(&inputs, [&outputs[0], &outputs[1], &outputs[2]])
                });
                Ok(())
            })
        })?
    })?
}

#[cfg(test)]
mod tests;
