//! Layer normalisation, alone or as `LN(residual + dropout(x))` in one pass (Ba et al. 2016).
//!
//! The forward keeps the normalised rows and 1/σ; the backward recomputes the dropout. The gradients of
//! gamma and beta are summed over fixed blocks of 64 rows, then over blocks in order: threads don't matter.

mod cuda;

use candle_core::{DType, Result, bail};
use half::bf16;

use super::cpu::{Cpu, multiversion};
use super::dropout::Dropout;
use super::element::Element;
use super::numbers::Numbers;
use super::pool::{Disjoint, parallel_for};
use super::rows::{LANES, add, add_widened, check_lens, narrow, widen};
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
    if let Some(gpu) = x.device().gpu() {
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
                            let mut wide = vec![0.0; width];
                            for row in task * FORWARD_ROWS..((task + 1) * FORWARD_ROWS).min(rows) {
                                let at = row * width..(row + 1) * width;
                                widen(cpu, &x[at.clone()], &mut wide);
                                if let Some(other) = other {
                                    dropout.apply(keys.get(row).copied().unwrap_or(0), &mut wide);
                                    add_widened(cpu, &other[at.clone()], &mut wide);
                                }
                                // SAFETY: each task writes its own rows.
                                let (rstd, n, out) = unsafe {
                                    (
                                        rstd.slice(row..row + 1),
                                        normalised.slice(at.clone()),
                                        out.slice(at),
                                    )
                                };
                                normalise(cpu, &mut wide, norm.eps, &mut rstd[0]);
                                finish(cpu, &wide, parameters[0], parameters[1], n, out);
                            }
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
    if let Some(gpu) = d_out.device().gpu() {
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
                    let (mut d, mut n) = (vec![0.0; width], vec![0.0; width]);
                    for row in block * PARTIAL_ROWS..((block + 1) * PARTIAL_ROWS).min(rows) {
                        let at = row * width..(row + 1) * width;
                        widen(cpu, &d_out[at.clone()], &mut d);
                        widen(cpu, &normalised[at.clone()], &mut n);
                        backward_row(cpu, &n, gamma, rstd[row], &mut d, partial);
                        for (i, output) in outputs.iter().enumerate() {
                            if let (1, Some(dropped)) = (i, dropped) {
                                let key = dropped.keys.get(row).copied().unwrap_or(0);
                                dropped.dropout.apply(key, &mut d);
                            }
                            // SAFETY: each task writes its own rows.
                            narrow(cpu, &d, unsafe { output.slice(at.clone()) });
                        }
                    }
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

multiversion! {
    /// Brings a row to mean 0 and variance 1. Two passes: the variance of the centred row
    /// does not cancel.
    fn normalise<S: Lanes>(row: &mut [f32], eps: f32, rstd_out: &mut f32) {
        #[expect(clippy::cast_precision_loss, reason = "a width is far below 2^24")]
        let count = row.len() as f32;
        let mut sum = S::splat(0.0);
        for part in row.chunks(LANES) {
            sum = sum.add(S::load_part(part));
        }
        let mean = S::splat(sum.sum() / count);
        let mut squares = S::splat(0.0);
        for part in row.chunks_mut(LANES) {
            // The lanes behind the row's end stay zero.
            let x = S::load_part(part).sub(mean).first(part.len(), 0.0);
            squares = x.mul_add(x, squares);
            x.store_part(part);
        }
        let rstd = 1.0 / (squares.sum() / count + eps).sqrt();
        for part in row.chunks_mut(LANES) {
            S::load_part(part).mul(S::splat(rstd)).store_part(part);
        }
        *rstd_out = rstd;
    }
}

multiversion! {
    /// `n = row`, `out = gamma row + beta`.
    fn finish<S: Lanes, T: Element>(
        row: &[f32],
        gamma: &[f32],
        beta: &[f32],
        n: &mut [T],
        out: &mut [T],
    ) {
        let parameters = gamma.chunks(LANES).zip(beta.chunks(LANES));
        let outputs = n.chunks_mut(LANES).zip(out.chunks_mut(LANES));
        for ((row, (gamma, beta)), (n, out)) in row.chunks(LANES).zip(parameters).zip(outputs) {
            let x = S::load_part(row);
            T::store_part(x, n);
            T::store_part(x.mul_add(S::load_part(gamma), S::load_part(beta)), out);
        }
    }
}

multiversion! {
    /// Turns a row's output gradient into `rstd * (g - mean(g) - n * mean(g * n))` with `g = gamma * d`;
    /// adds the row's share of the gradients of gamma, then beta, to `partial`.
    fn backward_row<S: Lanes>(
        n: &[f32],
        gamma: &[f32],
        rstd: f32,
        d: &mut [f32],
        partial: &mut [f32],
    ) {
        let (d_gamma, d_beta) = partial.split_at_mut(n.len());
        #[expect(clippy::cast_precision_loss, reason = "a width is far below 2^24")]
        let count = n.len() as f32;
        let (mut sum, mut along) = (S::splat(0.0), S::splat(0.0));
        let sums = d_gamma.chunks_mut(LANES).zip(d_beta.chunks_mut(LANES));
        let inputs = n.chunks(LANES).zip(gamma.chunks(LANES));
        for ((d, (n, gamma)), (d_gamma, d_beta)) in d.chunks_mut(LANES).zip(inputs).zip(sums) {
            let (x, n) = (S::load_part(d), S::load_part(n));
            x.mul_add(n, S::load_part(d_gamma)).store_part(d_gamma);
            x.add(S::load_part(d_beta)).store_part(d_beta);
            let g = x.mul(S::load_part(gamma));
            sum = sum.add(g);
            along = g.mul_add(n, along);
            g.store_part(d);
        }
        let mean = S::splat(sum.sum() / count);
        let along = S::splat(-along.sum() / count);
        for (d, n) in d.chunks_mut(LANES).zip(n.chunks(LANES)) {
            let centred = S::load_part(d).sub(mean);
            S::load_part(n).mul_add(along, centred).mul(S::splat(rstd)).store_part(d);
        }
    }
}

#[cfg(test)]
mod tests;
