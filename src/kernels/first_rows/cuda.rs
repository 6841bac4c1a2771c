//! Launches of `first_rows.cu`. Shapes are checked by the callers.

use std::sync::Arc;

use candle_core::{DType, Result, bail};

use crate::kernels::cuda::{Gpu, Grid, of_dtype};
use crate::kernels::dropout::Dropout;
use crate::kernels::numbers::Numbers;
use crate::kernels::tensor::Tensor;

const THREADS: u32 = 128;

pub fn gather(gpu: &Arc<Gpu>, x: &Tensor, starts: Numbers<'_, u32>, out: &Tensor) -> Result<()> {
    let kernel = of_dtype(x.dtype(), "gather_rows_f32", "gather_rows_bf16")?;
    let (rows, width) = out.dims2()?;
    let [x, out] = gpu.addresses([x, out], x.dtype())?;
    let starts = starts.on(gpu)?;
    let launch = gpu
        .launch(kernel)
        .arg(x)
        .arg(starts.address())
        .arg(out)
        .size(width);
    // SAFETY: every start is a row of `x`, and `out` has `rows` rows.
    unsafe { launch.run(Grid::line(rows, THREADS)) }
}

pub fn scatter_add(
    gpu: &Arc<Gpu>,
    d: &Tensor,
    starts: Numbers<'_, u32>,
    d_x: &Tensor,
) -> Result<()> {
    let kernel = of_dtype(d.dtype(), "scatter_add_rows_f32", "scatter_add_rows_bf16")?;
    let (rows, width) = d.dims2()?;
    let [d, d_x] = gpu.addresses([d, d_x], d.dtype())?;
    let starts = starts.on(gpu)?;
    let launch = gpu
        .launch(kernel)
        .arg(d)
        .arg(starts.address())
        .arg(d_x)
        .size(width);
    // SAFETY: every start is a row of `d_x`, and `d` has `rows` rows.
    unsafe { launch.run(Grid::line(rows, THREADS)) }
}

pub fn drop_out(
    gpu: &Arc<Gpu>,
    x: &Tensor,
    dropout: Dropout,
    keys: Numbers<'_, u64>,
) -> Result<()> {
    let kernel = of_dtype(x.dtype(), "drop_out_rows_f32", "drop_out_rows_bf16")?;
    let (rows, width) = x.dims2()?;
    let x = gpu.address(x, x.dtype())?;
    let keys = keys.on(gpu)?;
    let launch = gpu
        .launch(kernel)
        .arg(x)
        .arg(dropout)
        .arg(keys.address())
        .size(width);
    // SAFETY: there is a key for each of the rows.
    unsafe { launch.run(Grid::line(rows, THREADS)) }
}

/// `out = x` of as many elements.
pub fn cast(gpu: &Arc<Gpu>, x: &Tensor, out: &Tensor) -> Result<()> {
    let kernel = match (x.dtype(), out.dtype()) {
        (DType::F32, DType::BF16) => "cast_f32_bf16",
        (DType::BF16, DType::F32) => "cast_bf16_f32",
        (DType::F32, DType::F32) => "cast_f32_f32",
        (DType::BF16, DType::BF16) => "cast_bf16_bf16",
        (from, to) => bail!("no cast from {from:?} to {to:?} on a GPU"),
    };
    let n = x.elem_count();
    let launch = gpu
        .launch(kernel)
        .arg(gpu.address(x, x.dtype())?)
        .arg(gpu.address(out, out.dtype())?)
        .arg(n as u64);
    // SAFETY: both have `n` elements.
    unsafe { launch.run(Grid::line(gpu.blocks_for(n, 1024), 256)) }
}
