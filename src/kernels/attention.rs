//! Attention over packed sequences. (Stand-in with the agreed signatures: plain loops.)

use candle_core::{Result, Tensor};

use super::dropout::{Dropout, attention_key};
use super::linear::Precision;
use super::rows::read_all;
use super::view;

/// Which tokens ask.
#[derive(Clone, Copy)]
pub enum Queries {
    /// Every token: q, ctx, lse and their gradients have T rows.
    All,
    /// The first token of each sequence: they have B rows.
    First,
}

/// What one attention call is about.
pub struct Attention<'a> {
    pub cu_seqlens: &'a [u32],
    pub token_keys: &'a [u64],
    pub num_heads: usize,
    pub dropout: Dropout,
    pub queries: Queries,
    pub precision: Precision,
}

impl Attention<'_> {
    /// (query row, its token, first key, keys) of every query.
    fn queries(&self) -> impl Iterator<Item = (usize, usize, usize, usize)> {
        let queries = self.queries;
        let spans = self.cu_seqlens.windows(2).enumerate();
        spans.flat_map(move |(b, w)| {
            let (start, len) = (w[0] as usize, (w[1] - w[0]) as usize);
            let count = if matches!(queries, Queries::All) {
                len
            } else {
                1
            };
            (0..count).map(move |i| {
                let row = if matches!(queries, Queries::All) {
                    start + i
                } else {
                    b
                };
                (row, start + i, start, len)
            })
        })
    }

    /// Scores of one query against its sequence's keys.
    fn scores(q: &[f32], k: &[f32], width: usize, at: usize, start: usize, out: &mut [f32]) {
        let scale = 1.0 / (q.len() as f32).sqrt();
        for (j, out) in out.iter_mut().enumerate() {
            let k = &k[(start + j) * width + at..][..q.len()];
            *out = scale * q.iter().zip(k).map(|(q, k)| q * k).sum::<f32>();
        }
    }

    pub fn forward(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        ctx: &Tensor,
        lse: &Tensor,
    ) -> Result<()> {
        let width = q.dims2()?.1;
        let size = width / self.num_heads;
        read_all([q, k, v], |[q, k, v]| {
            view::write(ctx, |ctx| {
                view::write(lse, |lse| {
                    ctx.fill(0.0);
                    for (row, token, start, len) in self.queries() {
                        for head in 0..self.num_heads {
                            let (mut p, mut factors) = (vec![0f32; len], vec![0f32; len]);
                            let at = head * size;
                            Self::scores(
                                &q[row * width + at..][..size],
                                k,
                                width,
                                at,
                                start,
                                &mut p,
                            );
                            let max = p.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                            let sum: f32 = p.iter().map(|s| (s - max).exp()).sum();
                            let log_sum = max + sum.ln();
                            lse[row * self.num_heads + head] = log_sum;
                            self.dropout.factors(
                                attention_key(self.token_keys[token], head as u32),
                                &mut factors,
                            );
                            for j in 0..len {
                                let p = (p[j] - log_sum).exp() * factors[j];
                                for i in at..at + size {
                                    ctx[row * width + i] += p * v[(start + j) * width + i];
                                }
                            }
                        }
                    }
                    Ok(())
                })
            })
        })?
    }

    #[expect(clippy::too_many_arguments, reason = "an op's inputs and outputs")]
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
        let width = q.dims2()?.1;
        let size = width / self.num_heads;
        let scale = 1.0 / (size as f32).sqrt();
        read_all([dctx, q, k, v, ctx, lse], |[dctx, q, k, v, ctx, lse]| {
            view::write(dq, |dq| {
                view::write(dk, |dk| {
                    view::write(dv, |dv| {
                        for d in [&mut *dq, &mut *dk, &mut *dv] {
                            d.fill(0.0);
                        }
                        for (row, token, start, len) in self.queries() {
                            for head in 0..self.num_heads {
                                let (mut p, mut factors) = (vec![0f32; len], vec![0f32; len]);
                                let at = head * size;
                                Self::scores(
                                    &q[row * width + at..][..size],
                                    k,
                                    width,
                                    at,
                                    start,
                                    &mut p,
                                );
                                self.dropout.factors(
                                    attention_key(self.token_keys[token], head as u32),
                                    &mut factors,
                                );
                                let here = row * width + at..row * width + at + size;
                                let along: f32 = here.clone().map(|i| dctx[i] * ctx[i]).sum();
                                for j in 0..len {
                                    let there = (start + j) * width + at;
                                    let p = (p[j] - lse[row * self.num_heads + head]).exp();
                                    let dot: f32 = (0..size)
                                        .map(|i| dctx[here.start + i] * v[there + i])
                                        .sum();
                                    let ds = scale * p * (dot * factors[j] - along);
                                    for i in 0..size {
                                        dq[here.start + i] += ds * k[there + i];
                                        dk[there + i] += ds * q[here.start + i];
                                        dv[there + i] += p * factors[j] * dctx[here.start + i];
                                    }
                                }
                            }
                        }
                        Ok(())
                    })
                })
            })
        })?
    }
}
