//! Launches of `layer_norm.cu`.

use std::sync::Arc;

use candle_core::{DType, Result, bail};

use super::{Dropped, LayerNorm, Residual, Saved};
use crate::kernels::cuda::{Address, ColumnSums, Gpu, Grid};
use crate::kernels::dropout::Dropout;
use crate::kernels::numbers::Numbers;
use crate::kernels::rows::check_lens;
use crate::kernels::tensor::Tensor;

/// Rows whose gamma and beta gradients make one partial sum: `ROWS` in the kernel.
const PARTIAL_ROWS: usize = 16;

/// Threads of a block: each has eight columns.
fn threads(width: usize) -> Result<u32> {
    let threads = (width.div_ceil(128) * 16).next_multiple_of(32);
    match u32::try_from(threads) {
        Ok(threads) if threads <= 1024 => Ok(threads),
        _ => bail!("layer_norm: GPUs normalise up to 8192 columns, not {width}"),
    }
}

pub fn forward(
    gpu: &Arc<Gpu>,
    norm: &LayerNorm<'_>,
    x: &Tensor,
    residual: Option<&Residual<'_>>,
    saved: &Saved<'_>,
    out: &Tensor,
) -> Result<()> {
    let (rows, width) = x.dims2()?;
    let sizes = [saved.normalised, out].map(Tensor::elem_count);
    check_lens("layer_norm", rows * width, &sizes)?;
    check_lens("layer_norm", rows, &[saved.rstd.elem_count()])?;
    check_lens(
        "layer_norm",
        width,
        &[norm.gamma, norm.beta].map(Tensor::elem_count),
    )?;
    let kernel = match (x.dtype(), out.dtype()) {
        (DType::F32, DType::F32) => "layer_norm_f32_f32",
        (DType::F32, DType::BF16) => "layer_norm_f32_bf16",
        (DType::BF16, DType::BF16) => "layer_norm_bf16_bf16",
        (x, out) => bail!("layer_norm: no kernel from {x:?} to {out:?}"),
    };
    let (other, dropout, keys) = match residual {
        Some(r) => {
            check_lens("layer_norm", rows * width, &[r.tensor.elem_count()])?;
            (gpu.address(r.tensor, out.dtype())?, r.dropout, r.keys)
        }
        None => (Address::NULL, Dropout::NONE, Numbers::from(&[])),
    };
    let [normalised, out] = gpu.addresses([saved.normalised, out], out.dtype())?;
    let [gamma, beta, rstd] = gpu.addresses([norm.gamma, norm.beta, saved.rstd], DType::F32)?;
    let x = gpu.address(x, x.dtype())?;
    let keys = keys.on(gpu)?;
    let launch = gpu.launch(kernel).arg(x).arg(other).arg(keys.address());
    let launch = launch.arg(dropout).arg(gamma).arg(beta).arg(norm.eps);
    let launch = launch.arg(normalised).arg(rstd).arg(out).size(width);
    // SAFETY: all shapes were checked, and dropout has a key for each row.
    unsafe { launch.run(Grid::line(rows, threads(width)?)) }
}

#[expect(clippy::too_many_arguments, reason = "an op's inputs and outputs")]
pub fn backward(
    gpu: &Arc<Gpu>,
    gamma: &Tensor,
    saved: &Saved<'_>,
    d_out: &Tensor,
    dropped: Option<&Dropped<'_>>,
    d_sum: &Tensor,
    d_gamma: &Tensor,
    d_beta: &Tensor,
) -> Result<()> {
    let (rows, width) = d_out.dims2()?;
    check_lens(
        "layer_norm backward",
        rows * width,
        &[saved.normalised, d_sum].map(Tensor::elem_count),
    )?;
    check_lens("layer_norm backward", rows, &[saved.rstd.elem_count()])?;
    check_lens(
        "layer_norm backward",
        width,
        &[gamma, d_gamma, d_beta].map(Tensor::elem_count),
    )?;
    let kernel = match (d_out.dtype(), d_sum.dtype()) {
        (DType::F32, DType::F32) => "layer_norm_backward_f32_f32",
        (DType::BF16, DType::F32) => "layer_norm_backward_bf16_f32",
        (DType::BF16, DType::BF16) => "layer_norm_backward_bf16_bf16",
        (d_out, d_sum) => bail!("layer_norm backward: no kernel from {d_out:?} to {d_sum:?}"),
    };
    let (d_x, dropout, keys) = match dropped {
        Some(d) => {
            check_lens("layer_norm backward", rows * width, &[d.d_x.elem_count()])?;
            (gpu.address(d.d_x, d_sum.dtype())?, d.dropout, d.keys)
        }
        None => (Address::NULL, Dropout::NONE, Numbers::from(&[])),
    };
    let [d_out, normalised] = gpu.addresses([d_out, saved.normalised], d_out.dtype())?;
    let d_sum = gpu.address(d_sum, d_sum.dtype())?;
    let [rstd, gamma, d_gamma, d_beta] =
        gpu.addresses([saved.rstd, gamma, d_gamma, d_beta], DType::F32)?;
    let blocks = rows.div_ceil(PARTIAL_ROWS);
    let sums = ColumnSums {
        dtype: DType::F32,
        stride: 2 * width,
        rows: blocks,
        width,
    };
    let keys = keys.on(gpu)?;
    let partial_bytes = (4 * blocks * 2 * width).next_multiple_of(256);
    gpu.with_scratch(partial_bytes + sums.scratch_bytes(), |partials| {
        let launch = gpu.launch(kernel).arg(d_out).arg(normalised).arg(rstd);
        let launch = launch.arg(gamma).arg(d_sum).arg(d_x).arg(keys.address());
        let launch = launch.arg(dropout).arg(partials).size(rows).size(width);
        // SAFETY: all shapes were checked, dropout has a key for each row, and each block has its partials.
        unsafe { launch.run(Grid::line(blocks, threads(width)?)) }?;
        let scratch = partials.offset(partial_bytes);
        // SAFETY: the partial sums of gamma and beta lie side by side; both outputs have `width` elements.
        unsafe {
            sums.add(gpu, partials, scratch, d_gamma)?;
            sums.add(gpu, partials.offset(4 * width), scratch, d_beta)
        }
    })
}
