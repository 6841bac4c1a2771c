//! Layer normalisation, alone or as `LN(residual + dropout(x))` in one pass (Ba et al. 2016).
//!
//! The forward keeps the normalised rows and 1/σ; the backward recomputes the dropout. The gradients of
//! gamma and beta are summed over fixed blocks of 64 rows, then over blocks in order: threads don't matter.

mod cuda;

use candle_core::{DType, Result, bail};
use half::bf16;

use super::cpu::{Cpu, multiversion};
use super::dropout::{Dropout, GROUP};
use super::element::Element;
use super::numbers::Numbers;
use super::pool::{Disjoint, parallel_for};
use super::rows::{LANES, add, check_lens};
use super::{profile, view};
use crate::kernels::tensor::Tensor;

/// Rows of one task of the forward.
const FORWARD_ROWS: usize = 16;
/// Rows whose gamma and beta gradients make one partial sum. Changing it changes the bits of results.
const PARTIAL_ROWS: usize = 64;

/// Scale, shift and what is added to the variance.
#[derive(Clone, Copy)]
pub struct LayerNorm<'a> {
    /// [D]
    pub gamma: &'a Tensor,
    /// [D]
    pub beta: &'a Tensor,
    /// Added to the variance.
    pub eps: f32,
}

/// What the backward needs of the forward.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    /// [T, D]: rows with mean 0 and variance 1.
    pub normalised: &'a Tensor,
    /// [T, 1]: 1/σ of every row.
    pub rstd: &'a Tensor,
}

/// The other addend, and the dropout of the first.
#[derive(Clone, Copy)]
pub struct Residual<'a> {
    /// [T, D]
    pub tensor: &'a Tensor,
    /// Of `x`, before the sum.
    pub dropout: Dropout,
    /// [T]: names of the rows.
    pub keys: Numbers<'a, u64>,
}

/// Where the gradient of the dropped-out addend goes.
#[derive(Clone, Copy)]
pub struct Dropped<'a> {
    /// [T, D]: overwritten.
    pub d_x: &'a Tensor,
    /// The forward's.
    pub dropout: Dropout,
    /// [T]: the forward's.
    pub keys: Numbers<'a, u64>,
}

/// `out = LN(residual + dropout(x))`, or `LN(x)`. `residual`, `saved.normalised` and `out` have one type of
/// element; `x` has that or f32.
///
/// # Errors
/// If shapes or types do not fit.
pub fn forward(
    norm: &LayerNorm,
    x: &Tensor,
    residual: Option<&Residual>,
    saved: &Saved,
    out: &Tensor,
) -> Result<()> {
    check_keys(x, residual.map(|r| (r.dropout, r.keys)))?;
    if let Some(gpu) = x.gpu() {
        return cuda::forward(gpu, norm, x, residual, saved, out);
    }
    match (x.dtype(), out.dtype()) {
        (DType::BF16, DType::BF16) => forward_of::<bf16, bf16>(norm, x, residual, saved, out),
        (_, DType::BF16) => forward_of::<f32, bf16>(norm, x, residual, saved, out),
        _ => forward_of::<f32, f32>(norm, x, residual, saved, out),
    }
}

fn forward_of<X: Element, T: Element>(
    norm: &LayerNorm,
    x: &Tensor,
    residual: Option<&Residual>,
    saved: &Saved,
    out: &Tensor,
) -> Result<()> {
    let (rows, width) = x.dims2()?;
    let (dropout, keys) = match residual {
        Some(r) => (r.dropout, r.keys.host()),
        None => (Dropout::NONE, [].as_slice()),
    };
    let _op = profile::op("layer norm", 0, 4 * size_of::<T>() * rows * width);
    let cpu = Cpu::best();
    let others: Vec<&Tensor> = residual.iter().map(|r| r.tensor).collect();
    let outputs = [saved.normalised, out];
    view::read_as(x, |x: &[X]| {
        view::read_list(&others, |other: &[&[T]]| {
            view::read_list(&[norm.gamma, norm.beta], |parameters: &[&[f32]]| {
                view::write(saved.rstd, |rstd| {
                    view::write_list(&outputs, |mut outputs: Vec<&mut [T]>| {
                        let other = other.first().copied();
                        for slice in outputs.iter().map(|o| o.len()).chain(other.map(<[T]>::len)) {
                            check_lens("layer_norm", rows * width, &[slice, rstd.len() * width])?;
                        }
                        check_lens(
                            "layer_norm",
                            width,
                            &[parameters[0].len(), parameters[1].len()],
                        )?;
                        let (Some(out), Some(normalised)) = (outputs.pop(), outputs.pop()) else {
                            bail!("layer_norm: two outputs")
                        };
                        let (out, normalised) = (Disjoint::new(out), Disjoint::new(normalised));
                        let rstd = Disjoint::new(rstd);
                        parallel_for(rows.div_ceil(FORWARD_ROWS), |task| {
                            let rows = task * FORWARD_ROWS..((task + 1) * FORWARD_ROWS).min(rows);
                            let at = rows.start * width..rows.end * width;
                            // SAFETY: each task writes its own rows.
                            let (rstd, n, out) = unsafe {
                                (
                                    rstd.slice(rows.clone()),
                                    normalised.slice(at.clone()),
                                    out.slice(at.clone()),
                                )
                            };
                            let rows = Rows {
                                width,
                                gamma: parameters[0],
                                dropout,
                                keys: keys.get(rows).unwrap_or_default(),
                            };
                            let other = other.map(|other| &other[at.clone()]);
                            let (beta, eps) = (parameters[1], norm.eps);
                            forward_rows(cpu, rows, beta, eps, &x[at], other, rstd, n, out);
                        });
                        Ok(())
                    })
                })
            })
        })?
    })??
}

/// Gradients: `d_sum` [T, D] is overwritten with that of `residual` (or of `x`), `dropped.d_x` with that of
/// `x`; `d_gamma`, `d_beta` [D] are added to. `partials` is scratch that the caller keeps. `d_out` and
/// `saved.normalised` have one type of element; `d_sum` and `dropped.d_x` have that or f32.
///
/// # Errors
/// If shapes or types do not fit.
#[expect(clippy::too_many_arguments, reason = "an op's inputs and outputs")]
pub fn backward(
    gamma: &Tensor,
    saved: &Saved,
    d_out: &Tensor,
    dropped: Option<&Dropped>,
    d_sum: &Tensor,
    d_gamma: &Tensor,
    d_beta: &Tensor,
    partials: &mut Vec<f32>,
) -> Result<()> {
    let (rows, width) = d_out.dims2()?;
    let _op = profile::op(
        "layer norm backward",
        0,
        4 * d_out.dtype().size_in_bytes() * rows * width,
    );
    check_keys(d_out, dropped.map(|d| (d.dropout, d.keys)))?;
    if let Some(gpu) = d_out.gpu() {
        return cuda::backward(gpu, gamma, saved, d_out, dropped, d_sum, d_gamma, d_beta);
    }
    partials.resize(rows.div_ceil(PARTIAL_ROWS) * 2 * width, 0.0);
    let run = match (d_out.dtype(), d_sum.dtype()) {
        (DType::BF16, DType::BF16) => backward_of::<bf16, bf16>,
        (DType::BF16, _) => backward_of::<bf16, f32>,
        _ => backward_of::<f32, f32>,
    };
    run(gamma, saved, d_out, dropped, d_sum, partials)?;
    add_partials(partials, width, d_gamma, d_beta)
}

fn backward_of<T: Element, X: Element>(
    gamma: &Tensor,
    saved: &Saved,
    d_out: &Tensor,
    dropped: Option<&Dropped>,
    d_sum: &Tensor,
    partials: &mut [f32],
) -> Result<()> {
    let (rows, width) = d_out.dims2()?;
    let cpu = Cpu::best();
    let outputs: Vec<&Tensor> = [d_sum].into_iter().chain(dropped.map(|d| d.d_x)).collect();
    view::read_list(&[d_out, saved.normalised], |inputs: &[&[T]]| {
        view::read_list(&[saved.rstd, gamma], |scales: &[&[f32]]| {
            view::write_list(&outputs, |outputs: Vec<&mut [X]>| {
                let (d_out, normalised, rstd, gamma) = (inputs[0], inputs[1], scales[0], scales[1]);
                for output in &outputs {
                    let sizes = [normalised.len(), rstd.len() * width, output.len()];
                    check_lens("layer_norm backward", rows * width, &sizes)?;
                }
                check_lens("layer_norm backward", width, &[gamma.len()])?;
                let outputs: Vec<_> = outputs.into_iter().map(Disjoint::new).collect();
                let partials = Disjoint::new(partials);
                parallel_for(rows.div_ceil(PARTIAL_ROWS), |block| {
                    // SAFETY: each task has its own block of partial sums.
                    let partial =
                        unsafe { partials.slice(block * 2 * width..(block + 1) * 2 * width) };
                    partial.fill(0.0);
                    let rows = block * PARTIAL_ROWS..((block + 1) * PARTIAL_ROWS).min(rows);
                    let at = rows.start * width..rows.end * width;
                    // SAFETY: each task writes its own rows.
                    let mut outputs = outputs.iter().map(|o| unsafe { o.slice(at.clone()) });
                    let (Some(d_sum), d_x) = (outputs.next(), outputs.next()) else {
                        return;
                    };
                    let keys = dropped.map_or([].as_slice(), |d| d.keys.host());
                    let of = Rows {
                        width,
                        gamma,
                        dropout: dropped.map_or(Dropout::NONE, |d| d.dropout),
                        keys: keys.get(rows.clone()).unwrap_or_default(),
                    };
                    let (d_out, n) = (&d_out[at.clone()], &normalised[at]);
                    backward_rows(cpu, of, d_out, n, &rstd[rows], partial, d_sum, d_x);
                });
                Ok(())
            })
        })?
    })?
}

/// Where something is dropped, every row needs its key.
fn check_keys(rows: &Tensor, dropped: Option<(Dropout, Numbers<'_, u64>)>) -> Result<()> {
    match dropped {
        Some((dropout, keys)) if !dropout.is_none() => {
            check_lens("layer_norm: keys", rows.dim(0)?, &[keys.len()])
        }
        _ => Ok(()),
    }
}

/// Adds the blocks' partial sums in order.
fn add_partials(partials: &[f32], width: usize, d_gamma: &Tensor, d_beta: &Tensor) -> Result<()> {
    let cpu = Cpu::best();
    view::write(d_gamma, |d_gamma| {
        view::write(d_beta, |d_beta| {
            check_lens("layer_norm backward", width, &[d_gamma.len(), d_beta.len()])?;
            for partial in partials.chunks_exact(2 * width) {
                add(cpu, d_gamma, &partial[..width]);
                add(cpu, d_beta, &partial[width..]);
            }
            Ok(())
        })
    })
}

/// What a task's rows have in common.
#[derive(Clone, Copy)]
struct Rows<'a> {
    width: usize,
    gamma: &'a [f32],
    dropout: Dropout,
    /// The dropout key of each row; none if nothing is dropped.
    keys: &'a [u64],
}

multiversion! {
    /// Two passes over a row in f32: the variance of the centred row does not cancel.
    fn forward_rows<S: Lanes, X: Element, T: Element>(
        of: Rows<'_>,
        beta: &[f32],
        eps: f32,
        x: &[X],
        other: Option<&[T]>,
        rstd: &mut [f32],
        normalised: &mut [T],
        out: &mut [T],
    ) {
        let Rows { width, gamma, dropout, keys } = of;
        let draws = dropout.draws();
        #[expect(clippy::cast_precision_loss, reason = "a width is far below 2^24")]
        let count = width as f32;
        let mut wide = vec![0.0; width];
        for (row, rstd) in rstd.iter_mut().enumerate() {
            let at = row * width..(row + 1) * width;
            let x = &x[at.clone()];
            let mut sum = S::splat(0.0);
            for (group, wide) in wide.chunks_mut(GROUP).enumerate() {
                let mask = match (&draws, keys.get(row)) {
                    (Some(draws), Some(&key)) => Some(draws.group::<S>(key, group)),
                    _ => None,
                };
                for (i, wide) in wide.chunks_mut(LANES).enumerate() {
                    let column = group * GROUP + i * LANES;
                    let mut value = X::load_part::<S>(&x[column..]);
                    if let Some(mask) = &mask {
                        value = value.mul(mask.factors(i));
                    }
                    if let Some(other) = other {
                        value = value.add(T::load_part::<S>(&other[at.start + column..at.end]));
                    }
                    sum = sum.add(value);
                    value.store_part(wide);
                }
            }
            let mean = S::splat(sum.sum() / count);
            let mut squares = S::splat(0.0);
            for part in wide.chunks_mut(LANES) {
                // The lanes behind the row's end stay zero.
                let x = S::load_part(part).sub(mean).first(part.len(), 0.0);
                squares = x.mul_add(x, squares);
                x.store_part(part);
            }
            *rstd = 1.0 / (squares.sum() / count + eps).sqrt();
            let factor = S::splat(*rstd);
            let parameters = gamma.chunks(LANES).zip(beta.chunks(LANES));
            let outputs = normalised[at.clone()].chunks_mut(LANES).zip(out[at].chunks_mut(LANES));
            for ((x, (gamma, beta)), (n, out)) in wide.chunks(LANES).zip(parameters).zip(outputs) {
                let x = S::load_part(x).mul(factor);
                T::store_part(x, n);
                T::store_part(x.mul_add(S::load_part(gamma), S::load_part(beta)), out);
            }
        }
    }
}

multiversion! {
    /// Turns rows' output gradients into `rstd * (g - mean(g) - n * mean(g * n))` with `g = gamma * d`, and
    /// the same through the dropout; adds the rows' shares of the gradients of gamma, then beta, to
    /// `partial`.
    fn backward_rows<S: Lanes, T: Element, X: Element>(
        of: Rows<'_>,
        d_out: &[T],
        normalised: &[T],
        rstd: &[f32],
        partial: &mut [f32],
        d_sum: &mut [X],
        d_x: Option<&mut [X]>,
    ) {
        let Rows { width, gamma, dropout, keys } = of;
        let draws = dropout.draws();
        let (d_gamma, d_beta) = partial.split_at_mut(width);
        let mut d_x = d_x;
        #[expect(clippy::cast_precision_loss, reason = "a width is far below 2^24")]
        let count = width as f32;
        let mut scaled = vec![0.0; width];
        for (row, &rstd) in rstd.iter().enumerate() {
            let at = row * width..(row + 1) * width;
            let (d, n) = (&d_out[at.clone()], &normalised[at.clone()]);
            let (mut sum, mut along) = (S::splat(0.0), S::splat(0.0));
            let sums = d_gamma.chunks_mut(LANES).zip(d_beta.chunks_mut(LANES));
            let inputs = d.chunks(LANES).zip(n.chunks(LANES)).zip(gamma.chunks(LANES));
            for ((scaled, ((d, n), gamma)), (d_gamma, d_beta)) in
                scaled.chunks_mut(LANES).zip(inputs).zip(sums)
            {
                let (x, n) = (T::load_part::<S>(d), T::load_part::<S>(n));
                x.mul_add(n, S::load_part(d_gamma)).store_part(d_gamma);
                x.add(S::load_part(d_beta)).store_part(d_beta);
                let g = x.mul(S::load_part(gamma));
                sum = sum.add(g);
                along = g.mul_add(n, along);
                g.store_part(scaled);
            }
            let mean = S::splat(sum.sum() / count);
            let along = S::splat(-along.sum() / count);
            let rstd = S::splat(rstd);
            for (group, scaled) in scaled.chunks(GROUP).enumerate() {
                let mask = match (&draws, keys.get(row)) {
                    (Some(draws), Some(&key)) => Some(draws.group::<S>(key, group)),
                    _ => None,
                };
                for (i, scaled) in scaled.chunks(LANES).enumerate() {
                    let column = group * GROUP + i * LANES;
                    let place = at.start + column..at.start + column + scaled.len();
                    let centred = S::load_part(scaled).sub(mean);
                    let n = T::load_part::<S>(&n[column..]);
                    let d = n.mul_add(along, centred).mul(rstd);
                    X::store_part(d, &mut d_sum[place.clone()]);
                    if let Some(d_x) = &mut d_x {
                        let d = match &mask {
                            Some(mask) => d.mul(mask.factors(i)),
                            None => d,
                        };
                        X::store_part(d, &mut d_x[place]);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
