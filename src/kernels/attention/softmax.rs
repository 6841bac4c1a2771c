//! What happens between attention's products, row by row.

#![expect(
    clippy::manual_map,
    reason = "a closure would not be compiled for the CPU that its caller is for"
)]

use std::f32::consts::LOG2_E;

use half::bf16;

use crate::kernels::cpu::multiversion;
use crate::kernels::dropout::{Dropout, GROUP, Group};
use crate::kernels::element::Element;
use crate::kernels::exp::exp;
use crate::kernels::lanes::{LANES, Lanes};
use crate::kernels::memory::prefetch_to_write;
use crate::kernels::pool::Disjoint;

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

/// Rows that are asked for ahead of their use: only a head's columns of each are written.
const AHEAD: usize = 8;

/// Vectors of one [`GROUP`].
const DRAWS: usize = GROUP / LANES;

multiversion! {
    /// Turns scores into probabilities times their dropout factors, and leaves each row's log of the sum
    /// of exponentials in `lse`.
    pub fn probabilities<S: Lanes>(rows: Rows<'_>, scores: &mut [f32], lse: &mut [f32]) {
        let Rows { stride, keys, scale, dropout, row_keys } = rows;
        let draws = dropout.draws();
        let lse = lse.iter_mut().zip(row_keys);
        for (row, (lse, &key)) in scores.chunks_exact_mut(stride).zip(lse) {
            let (chunks, _) = row.as_chunks_mut::<LANES>();
            let mut most = S::splat(f32::NEG_INFINITY);
            for (i, chunk) in chunks.iter().enumerate() {
                most = most.larger(S::load(chunk).first(keys.saturating_sub(i * LANES), f32::NEG_INFINITY));
            }
            let top = most.largest() * scale;
            let mut sums = S::splat(0.0);
            for (i, chunk) in chunks.iter_mut().enumerate() {
                let e = exp(S::load(chunk).mul_add(S::splat(scale), S::splat(-top)));
                let e = e.first(keys.saturating_sub(i * LANES), 0.0);
                sums = sums.add(e);
                e.store(chunk);
            }
            let sum = sums.sum();
            *lse = top + sum.ln();
            let share = S::splat(1.0 / sum);
            if let Some(draws) = &draws {
                for (group, chunks) in chunks.chunks_mut(DRAWS).enumerate() {
                    let group = draws.group::<S>(key, group);
                    for (draw, chunk) in chunks.iter_mut().enumerate() {
                        let share = share.mul(group.factors(draw));
                        S::load(chunk).mul(share).store(chunk);
                    }
                }
            } else {
                for chunk in chunks.iter_mut() {
                    S::load(chunk).mul(share).store(chunk);
                }
            }
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
        let draws = dropout.draws();
        let blocks = scores.chunks_exact_mut(stride).zip(gradients.chunks_exact_mut(stride));
        let constants = row_keys.iter().zip(lse.iter().zip(deltas));
        for ((scores, gradients), (&key, (&lse, &delta))) in blocks.zip(constants) {
            let (lse, delta) = (S::splat(-lse), S::splat(delta));
            let (s, _) = scores.as_chunks_mut::<LANES>();
            let (g, _) = gradients.as_chunks_mut::<LANES>();
            for (group, (s, g)) in s.chunks_mut(DRAWS).zip(g.chunks_mut(DRAWS)).enumerate() {
                let rest = keys.saturating_sub(group * GROUP);
                let group = match &draws {
                    Some(draws) => Some(draws.group::<S>(key, group)),
                    None => None,
                };
                for (draw, (s, g)) in s.iter_mut().zip(g).enumerate() {
                    let p = exp(S::load(s).mul_add(S::splat(scale), lse));
                    let (mut dropped, mut dp) = (p, S::load(g));
                    if let Some(group) = &group {
                        let factors = group.factors(draw);
                        dropped = p.mul(factors);
                        dp = dp.mul(factors);
                    }
                    let ds = p.mul(S::splat(scale)).mul(dp.sub(delta));
                    ds.first(rest.saturating_sub(draw * LANES), 0.0).store(g);
                    dropped.first(rest.saturating_sub(draw * LANES), 0.0).store(s);
                }
            }
        }
    }
}

multiversion! {
    /// [`probabilities`] for products of bf16 pairs, in one pass: `out` has the exponentials with their
    /// dropout factors, rounded; what each row is still to be multiplied by is left in `shares`.
    pub fn probabilities_as_pairs<S: Lanes>(
        rows: Rows<'_>,
        scores: &[f32],
        out: &mut [bf16],
        lse: &mut [f32],
        shares: &mut [f32],
    ) {
        let Rows { stride, keys, scale, dropout, row_keys } = rows;
        let draws = dropout.draws();
        let scale = scale * LOG2_E;
        let both = scores.chunks_exact(stride).zip(out.chunks_exact_mut(stride));
        let results = lse.iter_mut().zip(shares).zip(row_keys);
        for ((row, out), ((lse, share), &key)) in both.zip(results) {
            let (chunks, outs) = (row.as_chunks::<LANES>().0, out.as_chunks_mut::<LANES>().0);
            let mut most = S::splat(f32::NEG_INFINITY);
            for (i, chunk) in chunks.iter().enumerate() {
                most = most.larger(S::load(chunk).first(keys.saturating_sub(i * LANES), f32::NEG_INFINITY));
            }
            let top = most.largest() * scale;
            let mut sums = S::splat(0.0);
            for (group, (chunks, outs)) in chunks.chunks(DRAWS).zip(outs.chunks_mut(DRAWS)).enumerate() {
                let rest = keys.saturating_sub(group * GROUP);
                let group = match &draws {
                    Some(draws) => Some(draws.group::<S>(key, group)),
                    None => None,
                };
                for (draw, (chunk, out)) in chunks.iter().zip(outs).enumerate() {
                    let e = S::load(chunk).mul_add(S::splat(scale), S::splat(-top)).exp2();
                    let e = e.first(rest.saturating_sub(draw * LANES), 0.0);
                    sums = sums.add(e);
                    match &group {
                        Some(group) => e.mul(group.factors(draw)).store_bf16(out),
                        None => e.store_bf16(out),
                    }
                }
            }
            let sum = sums.sum();
            *lse = (top + sum.log2()) / LOG2_E;
            *share = 1.0 / sum;
        }
    }
}

/// What [`gradients_as_pairs`] writes; n queries.
pub struct GradientPairs<'a> {
    /// Gradients of the unscaled scores, [n, stride].
    pub ds: &'a mut [bf16],
    /// The same, [n / 2, stride]: pairs of queries.
    pub ds_columns: &'a mut [u32],
    /// Dropped-out probabilities, [n / 2, stride].
    pub p_columns: &'a mut [u32],
}

/// One query's numbers, the last two from some key on.
struct RowAt<'a> {
    lse: f32,
    delta: f32,
    scores: &'a [f32],
    gradients: &'a [f32],
}

/// The dropped-out probabilities of keys `at ..`, and the gradients of their unscaled scores.
#[inline(always)]
fn of_row<S: Lanes>(
    row: &RowAt<'_>,
    rows: Rows<'_>,
    at: usize,
    mask: &Option<Group<S>>,
    draw: usize,
) -> (S, S) {
    let (Some(scores), Some(gradients)) = (row.scores.first_chunk(), row.gradients.first_chunk())
    else {
        return (S::splat(0.0), S::splat(0.0));
    };
    let exponent =
        S::load(scores).mul_add(S::splat(rows.scale * LOG2_E), S::splat(-row.lse * LOG2_E));
    let (p, mut dp) = (exponent.exp2(), S::load(gradients));
    let mut dropped = p;
    if let Some(mask) = mask {
        let factors = mask.factors(draw);
        dropped = p.mul(factors);
        dp = dp.mul(factors);
    }
    let ds = p.mul(S::splat(rows.scale)).mul(dp.sub(S::splat(row.delta)));
    let rest = rows.keys.saturating_sub(at);
    (dropped.first(rest, 0.0), ds.first(rest, 0.0))
}

multiversion! {
    /// [`gradients`] for products of bf16 pairs, in one pass over two queries at a time.
    pub fn gradients_as_pairs<S: Lanes>(
        rows: Rows<'_>,
        lse: &[f32],
        deltas: &[f32],
        scores: &[f32],
        gradients: &[f32],
        out: GradientPairs<'_>,
    ) {
        let Rows { stride, dropout, row_keys, .. } = rows;
        let draws = dropout.draws();
        let chunks = stride / LANES;
        for first in (0..row_keys.len()).step_by(2) {
            let last = (first + 1).min(row_keys.len() - 1);
            let pair = first / 2 * stride;
            for group in 0..chunks.div_ceil(DRAWS) {
                let masks = match &draws {
                    Some(draws) => {
                        let [a, b] = [row_keys[first], row_keys[last]];
                        [Some(draws.group::<S>(a, group)), Some(draws.group::<S>(b, group))]
                    }
                    None => [None, None],
                };
                for draw in 0..DRAWS.min(chunks - group * DRAWS) {
                    let at = group * GROUP + draw * LANES;
                    let row = |row: usize| RowAt {
                        lse: lse[row],
                        delta: deltas[row],
                        scores: &scores[row * stride + at..],
                        gradients: &gradients[row * stride + at..],
                    };
                    let (p, ds) = of_row(&row(first), rows, at, &masks[0], draw);
                    bf16::store_part(ds, &mut out.ds[first * stride + at..][..LANES]);
                    let (mut p_last, mut ds_last) = (S::splat(0.0), S::splat(0.0));
                    if last > first {
                        (p_last, ds_last) = of_row(&row(last), rows, at, &masks[1], draw);
                        bf16::store_part(ds_last, &mut out.ds[last * stride + at..][..LANES]);
                    }
                    for (a, b, to) in [
                        (ds, ds_last, &mut *out.ds_columns),
                        (p, p_last, &mut *out.p_columns),
                    ] {
                        if let Some(to) = to[pair + at..].first_chunk_mut() {
                            S::store_pairs(a, b, to);
                        }
                    }
                }
            }
        }
    }
}

multiversion! {
    /// The inner products of rows of `dim` numbers, `stride` apart.
    pub fn inner_products<S: Lanes, T: Element>(
        a: &[T],
        b: &[T],
        stride: usize,
        dim: usize,
        out: &mut [f32],
    ) {
        for (row, out) in out.iter_mut().enumerate() {
            let (a, b) = (&a[row * stride..][..dim], &b[row * stride..][..dim]);
            let mut sums = S::splat(0.0);
            for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
                sums = T::load_part::<S>(a).mul_add(T::load_part::<S>(b), sums);
            }
            *out = sums.sum();
        }
    }
}

/// Where rows of one head lie in a packed tensor: `dim` columns, `stride` numbers apart.
#[derive(Clone, Copy)]
pub struct HeadRows {
    /// Of the first row's first column.
    pub start: usize,
    pub stride: usize,
    pub dim: usize,
}

multiversion! {
    /// Writes each row of `from`, which are `dim` numbers without a gap, times its factor. Nobody else may
    /// hold these rows' columns.
    pub fn write_rows<S: Lanes, T: Element>(
        from: &[f32],
        factors: &[f32],
        to: &Disjoint<'_, T>,
        place: HeadRows,
    ) {
        let HeadRows { start, stride, dim } = place;
        for (row, (from, &factor)) in from.chunks_exact(dim).zip(factors).enumerate() {
            let start = start + row * stride;
            prefetch_to_write(to.pointer(start).wrapping_add(AHEAD * stride), dim);
            // SAFETY: the caller's promise.
            let to = unsafe { to.slice(start..start + dim) };
            let factor = S::splat(factor);
            let (vectors, rest) = from.as_chunks::<LANES>();
            let (whole, to_rest) = to.as_chunks_mut::<LANES>();
            for (from, to) in vectors.iter().zip(whole) {
                T::store(S::load(from).mul(factor), to);
            }
            if !rest.is_empty() {
                T::store_part(S::load_part(rest).mul(factor), to_rest);
            }
        }
    }
}
