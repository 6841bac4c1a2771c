//! What happens between attention's products, row by row.

use crate::kernels::cpu::multiversion;
use crate::kernels::dropout::Dropout;
use crate::kernels::exp::exp;
use crate::kernels::gemm::LANES;

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

#[inline(always)]
fn reduce(lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = lanes;
    let mut n = LANES / 2;
    while n > 0 {
        for i in 0..n {
            lanes[i] = f(lanes[i], lanes[i + n]);
        }
        n /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

multiversion! {
    /// Turns scores into probabilities times their dropout factors, and leaves each row's log of the sum
    /// of exponentials in `lse`. `factors` is room for one row.
    pub fn probabilities(rows: Rows<'_>, scores: &mut [f32], lse: &mut [f32], factors: &mut [f32]) {
        let Rows { stride, keys, scale, dropout, row_keys } = rows;
        let factors = &mut factors[..stride];
        for ((row, &key), lse) in scores.chunks_exact_mut(stride).zip(row_keys).zip(lse) {
            row[keys..].fill(f32::NEG_INFINITY);
            let (chunks, _) = row.as_chunks_mut::<LANES>();
            let mut most = [f32::NEG_INFINITY; LANES];
            for chunk in chunks.iter() {
                for l in 0..LANES {
                    most[l] = larger(most[l], chunk[l]);
                }
            }
            let top = reduce(most, larger) * scale;
            let mut sums = [0f32; LANES];
            for chunk in chunks.iter_mut() {
                for l in 0..LANES {
                    let e = exp::<FUSED>(chunk[l] * scale - top);
                    sums[l] += e;
                    chunk[l] = e;
                }
            }
            let sum = reduce(sums, |a, b| a + b);
            *lse = top + sum.ln();
            let share = 1.0 / sum;
            if dropout.is_none() {
                for x in row.iter_mut() {
                    *x *= share;
                }
            } else {
                dropout.factors_inline(key, factors);
                for (x, factor) in row.iter_mut().zip(factors.iter()) {
                    *x *= share * factor;
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
    pub fn gradients(
        rows: Rows<'_>,
        lse: &[f32],
        deltas: &[f32],
        scores: &mut [f32],
        gradients: &mut [f32],
        factors: &mut [f32],
    ) {
        let Rows { stride, keys, scale, dropout, row_keys } = rows;
        let factors = &mut factors[..stride];
        factors.fill(1.0);
        let blocks = scores.chunks_exact_mut(stride).zip(gradients.chunks_exact_mut(stride));
        for (i, (scores, gradients)) in blocks.enumerate().take(row_keys.len()) {
            if !dropout.is_none() {
                dropout.factors_inline(row_keys[i], factors);
            }
            let (lse, delta) = (lse[i], deltas[i]);
            let (s, _) = scores.as_chunks_mut::<LANES>();
            let (g, _) = gradients.as_chunks_mut::<LANES>();
            let (f, _) = factors.as_chunks::<LANES>();
            for ((s, g), f) in s.iter_mut().zip(g).zip(f) {
                for l in 0..LANES {
                    let p = exp::<FUSED>(s[l] * scale - lse);
                    g[l] = p * scale * (g[l] * f[l] - delta);
                    s[l] = p * f[l];
                }
            }
            scores[keys..].fill(0.0);
            gradients[keys..].fill(0.0);
        }
    }
}

multiversion! {
    /// The inner products of rows of `dim` numbers, `stride` apart.
    pub fn inner_products(a: &[f32], b: &[f32], stride: usize, dim: usize, out: &mut [f32]) {
        for (row, out) in out.iter_mut().enumerate() {
            let (a, b) = (&a[row * stride..][..dim], &b[row * stride..][..dim]);
            let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
            let mut sums = [0f32; LANES];
            for (a, b) in a.iter().zip(b) {
                for l in 0..LANES {
                    sums[l] += a[l] * b[l];
                }
            }
            for (sum, (a, b)) in sums.iter_mut().zip(a_rest.iter().zip(b_rest)) {
                *sum += a * b;
            }
            *out = reduce(sums, |a, b| a + b);
        }
    }
}
