//! Layer normalisation, alone or as `LN(residual + dropout(x))` in one pass (Ba et al. 2016).
//!
//! The forward keeps the normalised rows and 1/σ; the backward recomputes the dropout. The gradients of
//! gamma and beta are summed over fixed blocks of 64 rows, then over blocks in order: threads don't matter.

use candle_core::{Result, Tensor, bail};

use super::cpu::{Cpu, multiversion};
use super::dropout::Dropout;
use super::rows::{LANES, add, check_lens, for_blocks, read_all};
use super::{profile, view};

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
    pub keys: &'a [u64],
}

/// Where the gradient of the dropped-out addend goes.
#[derive(Clone, Copy)]
pub struct Dropped<'a> {
    /// [T, D]: overwritten.
    pub d_x: &'a Tensor,
    /// The forward's.
    pub dropout: Dropout,
    /// [T]: the forward's.
    pub keys: &'a [u64],
}

/// `out = LN(residual + dropout(x))`, or `LN(x)`.
///
/// # Errors
/// If shapes do not fit.
pub fn forward(
    norm: &LayerNorm,
    x: &Tensor,
    residual: Option<&Residual>,
    saved: &Saved,
    out: &Tensor,
) -> Result<()> {
    let (rows, width) = x.dims2()?;
    let (dropout, keys) = match residual {
        Some(r) => (r.dropout, r.keys),
        None => (Dropout::NONE, [].as_slice()),
    };
    if !dropout.is_none() && keys.len() != rows {
        bail!("layer_norm: {} keys for {rows} rows", keys.len())
    }
    let other = residual.map_or(x, |r| r.tensor);
    let _op = profile::op("layer norm", 0, 4 * 4 * rows * width);
    let cpu = Cpu::best();
    read_all(
        [x, other, norm.gamma, norm.beta],
        |[x, other, gamma, beta]| {
            view::write(saved.normalised, |normalised| {
                view::write(saved.rstd, |rstd| {
                    view::write(out, |out| {
                        let sizes = [other.len(), normalised.len(), out.len(), rstd.len() * width];
                        check_lens("layer_norm", rows * width, &sizes)?;
                        check_lens("layer_norm", width, &[gamma.len(), beta.len()])?;
                        let cut = FORWARD_ROWS * width;
                        let outputs = [(normalised, cut), (rstd, FORWARD_ROWS), (out, cut)];
                        for_blocks(rows.div_ceil(FORWARD_ROWS), outputs, |i, [n, rstd, out]| {
                            for (r, rstd) in rstd.iter_mut().enumerate() {
                                let (row, at) = (i * FORWARD_ROWS + r, r * width);
                                let n = &mut n[at..at + width];
                                n.copy_from_slice(&x[row * width..][..width]);
                                if residual.is_some() {
                                    dropout.apply(keys.get(row).copied().unwrap_or(0), n);
                                    add(cpu, n, &other[row * width..][..width]);
                                }
                                normalise(cpu, n, norm.eps, rstd);
                                scale_shift(cpu, n, gamma, beta, &mut out[at..at + width]);
                            }
                        });
                        Ok(())
                    })
                })
            })
        },
    )?
}

/// Gradients: `d_sum` [T, D] is overwritten with that of `residual` (or of `x`), `dropped.d_x` with that of
/// `x`; `d_gamma`, `d_beta` [D] are added to. `partials` is scratch that the caller keeps.
///
/// # Errors
/// If shapes do not fit.
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
    let _op = profile::op("layer norm backward", 0, 4 * 4 * rows * width);
    let blocks = rows.div_ceil(PARTIAL_ROWS);
    partials.resize(blocks * 2 * width, 0.0);
    let cpu = Cpu::best();
    let inputs = [d_out, saved.normalised, saved.rstd, gamma];
    read_all(inputs, |[d_out, normalised, rstd, gamma]| {
        view::write(d_sum, |d_sum| {
            let sizes = [normalised.len(), d_sum.len(), rstd.len() * width];
            check_lens("layer_norm backward", rows * width, &sizes)?;
            check_lens("layer_norm backward", width, &[gamma.len()])?;
            let outputs = [
                (d_sum, PARTIAL_ROWS * width),
                (partials.as_mut_slice(), 2 * width),
            ];
            for_blocks(blocks, outputs, |i, [d_sum, partial]| {
                partial.fill(0.0);
                for (r, d_sum) in d_sum.chunks_exact_mut(width).enumerate() {
                    let row = i * PARTIAL_ROWS + r;
                    let (d_out, n) = (
                        &d_out[row * width..][..width],
                        &normalised[row * width..][..width],
                    );
                    backward_row(cpu, d_out, n, gamma, rstd[row], d_sum, partial);
                }
            });
            Ok(())
        })
    })??;
    add_partials(partials, width, d_gamma, d_beta)?;
    match dropped {
        Some(dropped) => drop_out(d_sum, dropped, width),
        None => Ok(()),
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

/// `d_x = dropout(d_sum)` row by row.
fn drop_out(d_sum: &Tensor, dropped: &Dropped, width: usize) -> Result<()> {
    let Dropped { d_x, dropout, keys } = dropped;
    view::read(d_sum, |d_sum| {
        view::write(d_x, |d_x| {
            check_lens("layer_norm backward", d_sum.len(), &[d_x.len()])?;
            let rows = d_sum.len() / width;
            if !dropout.is_none() && keys.len() != rows {
                bail!("layer_norm backward: {} keys for {rows} rows", keys.len())
            }
            let cut = FORWARD_ROWS * width;
            for_blocks(rows.div_ceil(FORWARD_ROWS), [(d_x, cut)], |i, [d_x]| {
                for (r, d_x) in d_x.chunks_exact_mut(width).enumerate() {
                    let row = i * FORWARD_ROWS + r;
                    d_x.copy_from_slice(&d_sum[row * width..][..width]);
                    dropout.apply(keys.get(row).copied().unwrap_or(0), d_x);
                }
            });
            Ok(())
        })
    })?
}

multiversion! {
    /// Brings a row to mean 0 and variance 1. Two passes: the variance of the centred row
    /// does not cancel.
    fn normalise(row: &mut [f32], eps: f32, rstd_out: &mut f32) {
        #[expect(clippy::cast_precision_loss, reason = "a width is far below 2^24")]
        let count = row.len() as f32;
        let mean = sum_by(row, |x| x) / count;
        for x in row.iter_mut() {
            *x -= mean;
        }
        let variance = sum_by(row, |x| x * x) / count;
        let rstd = 1.0 / (variance + eps).sqrt();
        for x in row.iter_mut() {
            *x *= rstd;
        }
        *rstd_out = rstd;
    }
}

multiversion! {
    fn scale_shift(row: &[f32], gamma: &[f32], beta: &[f32], out: &mut [f32]) {
        for (((out, x), gamma), beta) in out.iter_mut().zip(row).zip(gamma).zip(beta) {
            *out = x * gamma + beta;
        }
    }
}

multiversion! {
    /// `d_sum = rstd * (g - mean(g) - n * mean(g * n))` with `g = gamma * d_out`; adds the row's share of
    /// the gradients of gamma, then beta, to `partial`.
    fn backward_row(
        d_out: &[f32],
        n: &[f32],
        gamma: &[f32],
        rstd: f32,
        d_sum: &mut [f32],
        partial: &mut [f32],
    ) {
        let (d_gamma, d_beta) = partial.split_at_mut(d_out.len());
        #[expect(clippy::cast_precision_loss, reason = "a width is far below 2^24")]
        let count = d_out.len() as f32;
        for ((((g, d), n), d_gamma), d_beta) in d_sum
            .iter_mut()
            .zip(d_out)
            .zip(n)
            .zip(d_gamma.iter_mut())
            .zip(d_beta.iter_mut())
        {
            *d_gamma += d * n;
            *d_beta += d;
            *g = *d;
        }
        for (g, gamma) in d_sum.iter_mut().zip(gamma) {
            *g *= gamma;
        }
        let mean = sum_by(d_sum, |g| g) / count;
        let along = dot(d_sum, n) / count;
        for (g, n) in d_sum.iter_mut().zip(n) {
            *g = rstd * (*g - mean - n * along);
        }
    }
}

#[inline(always)]
fn sum_by(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += f(chunk[lane]);
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|&x| f(x)).sum::<f32>()
}

#[inline(always)]
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let ((xs, x_rest), (ys, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    for (x, y) in xs.iter().zip(ys) {
        for lane in 0..LANES {
            lanes[lane] += x[lane] * y[lane];
        }
    }
    let rest: f32 = x_rest.iter().zip(y_rest).map(|(x, y)| x * y).sum();
    lanes.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests;
