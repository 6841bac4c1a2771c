//! Launches of `activation.cu`.

use std::sync::Arc;

use candle_core::Result;

use super::Activation;
use crate::kernels::cuda::{Gpu, Grid, of_dtype};
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
    let kernel = of_dtype(x.dtype(), "activation_f32", "activation_bf16")?;
    run(gpu, kernel, activation, x, out)
}

/// `d *= f'(x)`, both of one type.
pub fn backward(gpu: &Arc<Gpu>, activation: Activation, x: &Tensor, d: &Tensor) -> Result<()> {
    let kernel = of_dtype(
        x.dtype(),
        "activation_backward_f32",
        "activation_backward_bf16",
    )?;
    run(gpu, kernel, activation, x, d)
}

fn run(
    gpu: &Arc<Gpu>,
    kernel: &'static str,
    activation: Activation,
    x: &Tensor,
    y: &Tensor,
) -> Result<()> {
    let n = x.elem_count();
    check_lens("activation", n, &[y.elem_count()])?;
    let [x, y] = gpu.addresses([x, y], x.dtype())?;
    let launch = gpu
        .launch(kernel)
        .arg(activation.number())
        .arg(x)
        .arg(y)
        .arg(n as u64);
    // SAFETY: both have `n` elements.
    unsafe { launch.run(Grid::line(gpu.blocks_for(n, 1024), 256)) }
}
