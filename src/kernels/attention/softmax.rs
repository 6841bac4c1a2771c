//! What happens between attention's products, row by row.

use crate::kernels::cpu::multiversion;
use crate::kernels::dropout::{Dropout, GROUP};
use crate::kernels::exp::exp;
use crate::kernels::lanes::LANES;

/// The rows of a block of queries: `stride` numbers each, a multiple of [`LANES`], of which the first
/// `keys` count. The rest become zero.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub stride: usize,
    pub keys: usize,
    /// 1 / √hd.
    pub scale: f32,
    pub dropout: &'a Dropout,
    /// The dropout key of each row.
    pub row_keys: &'a [u64],
}

/// Vectors of one [`GROUP`].
const DRAWS: usize = GROUP / LANES;

multiversion! {
    /// Turns scores into probabilities times their dropout factors, and leaves each row's log of the sum
    /// of exponentials in `lse`.
    pub fn probabilities<S: Lanes>(rows: Rows<'_>, scores: &mut [f32], lse: &mut [f32]) {
        let Rows { stride, keys, scale, dropout, row_keys } = rows;
        let lse = lse.iter_mut().zip(row_keys);
        for (row, (lse, &key)) in scores.chunks_exact_mut(stride).zip(lse) {
            row[keys..].fill(f32::NEG_INFINITY);
            let (chunks, _) = row.as_chunks_mut::<LANES>();
            let mut most = S::splat(f32::NEG_INFINITY);
            for chunk in chunks.iter() {
                most = most.larger(S::load(chunk));
            }
            let top = most.largest() * scale;
            let mut sums = S::splat(0.0);
            for chunk in chunks.iter_mut() {
                let e = exp(S::load(chunk).mul_add(S::splat(scale), S::splat(-top)));
                sums = sums.add(e);
                e.store(chunk);
            }
            let sum = sums.sum();
            *lse = top + sum.ln();
            let share = S::splat(1.0 / sum);
            if dropout.is_none() {
                for chunk in chunks.iter_mut() {
                    S::load(chunk).mul(share).store(chunk);
                }
            } else {
                for (group, chunks) in chunks.chunks_mut(DRAWS).enumerate() {
                    let group = dropout.group::<S>(key, group);
                    for (draw, chunk) in chunks.iter_mut().enumerate() {
                        let share = share.mul(group.factors(draw));
                        S::load(chunk).mul(share).store(chunk);
                    }
                }
            }
            row[keys..].fill(0.0);
        }
    }
}

multiversion! {
    /// From scores and the gradients of the dropped-out probabilities: the first become those
    /// probabilities again, the second the gradients of the unscaled scores. `deltas` holds each row's
    /// product of `ctx` with its gradient.
    pub fn gradients<S: Lanes>(
        rows: Rows<'_>,
        lse: &[f32],
        deltas: &[f32],
        scores: &mut [f32],
        gradients: &mut [f32],
    ) {
        let Rows { stride, keys, scale, dropout, row_keys } = rows;
        let blocks = scores.chunks_exact_mut(stride).zip(gradients.chunks_exact_mut(stride));
        let constants = row_keys.iter().zip(lse.iter().zip(deltas));
        for ((scores, gradients), (&key, (&lse, &delta))) in blocks.zip(constants) {
            let (lse, delta) = (S::splat(-lse), S::splat(delta));
            let (s, _) = scores.as_chunks_mut::<LANES>();
            let (g, _) = gradients.as_chunks_mut::<LANES>();
            for (group, (s, g)) in s.chunks_mut(DRAWS).zip(g.chunks_mut(DRAWS)).enumerate() {
                let group = (!dropout.is_none()).then(|| dropout.group::<S>(key, group));
                for (draw, (s, g)) in s.iter_mut().zip(g).enumerate() {
                    let p = exp(S::load(s).mul_add(S::splat(scale), lse));
                    let (mut dropped, mut dp) = (p, S::load(g));
                    if let Some(group) = &group {
                        let factors = group.factors(draw);
                        dropped = p.mul(factors);
                        dp = dp.mul(factors);
                    }
                    p.mul(S::splat(scale)).mul(dp.sub(delta)).store(g);
                    dropped.store(s);
                }
            }
            scores[keys..].fill(0.0);
            gradients[keys..].fill(0.0);
        }
    }
}

multiversion! {
    /// The inner products of rows of `dim` numbers, `stride` apart.
    pub fn inner_products<S: Lanes>(
        a: &[f32],
        b: &[f32],
        stride: usize,
        dim: usize,
        out: &mut [f32],
    ) {
        for (row, out) in out.iter_mut().enumerate() {
            let (a, b) = (&a[row * stride..][..dim], &b[row * stride..][..dim]);
            let mut sums = S::splat(0.0);
            for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
                sums = S::load_part(a).mul_add(S::load_part(b), sums);
            }
            *out = sums.sum();
        }
    }
}
