//! Launches of `activation.cu`.

use std::sync::Arc;

use candle_core::Result;

use super::Activation;
use crate::kernels::cuda::{Address, Gpu, Grid, of_dtype};
use crate::kernels::rows::check_lens;
use crate::kernels::tensor::Tensor;

impl Activation {
    /// As the kernel counts them.
    fn number(self) -> u32 {
        match self {
            Self::Gelu => 0,
            Self::GeluTanh => 1,
            Self::Relu => 2,
            Self::Tanh => 3,
        }
    }
}

/// `out = f(x)`, both of one type.
pub fn forward(gpu: &Arc<Gpu>, activation: Activation, x: &Tensor, out: &Tensor) -> Result<()> {
    let n = length(x, out)?;
    let kernel = of_dtype(x.dtype(), "activation_f32", "activation_bf16")?;
    let [x, out] = gpu.addresses([x, out], x.dtype())?;
    let launch = gpu.launch(kernel).arg(activation.number());
    // SAFETY: both have `n` elements.
    unsafe {
        let launch = launch.arg(x).arg(out).arg(n as u64);
        launch.run(Grid::line(gpu.blocks_for(n, 1024), 256))
    }
}

/// `d *= f'(x)`, and `out = f(x)` if it is wanted; all of one type.
pub fn backward(
    gpu: &Arc<Gpu>,
    activation: Activation,
    x: &Tensor,
    d: &Tensor,
    out: Option<&Tensor>,
) -> Result<()> {
    let n = length(x, d)?;
    let kernel = of_dtype(
        x.dtype(),
        "activation_backward_f32",
        "activation_backward_bf16",
    )?;
    let out = match out {
        Some(out) => {
            length(x, out)?;
            gpu.address(out, x.dtype())?
        }
        None => Address::NULL,
    };
    let [x, d] = gpu.addresses([x, d], x.dtype())?;
    let launch = gpu.launch(kernel).arg(activation.number());
    // SAFETY: all have `n` elements, and the kernel takes null for no output.
    unsafe {
        let launch = launch.arg(x).arg(d).arg(out).arg(n as u64);
        launch.run(Grid::line(gpu.blocks_for(n, 1024), 256))
    }
}

/// How many elements both have.
fn length(x: &Tensor, y: &Tensor) -> Result<usize> {
    let n = x.elem_count();
    check_lens("activation", n, &[y.elem_count()])?;
    Ok(n)
}
