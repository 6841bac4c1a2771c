//! Tensors of random numbers.

use candle_core::DType;
use chandler::kernels::device::Device;
use chandler::kernels::tensor::Tensor;

/// Numbers in [-1, 1), the same ones every time.
pub fn random(dims: &[usize], dtype: DType) -> Tensor {
    let mut state = 1u64;
    let numbers = (0..dims.iter().product()).map(|_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    });
    let numbers: Vec<f32> = numbers.collect();
    let tensor = candle_core::Tensor::from_vec(numbers, dims, &candle_core::Device::Cpu);
    let tensor = tensor.expect("as many as the shape says");
    tensor.to_dtype(dtype).expect("f32 and bf16 convert").into()
}

pub fn zeros(dims: &[usize], dtype: DType) -> Tensor {
    Tensor::zeros(dims, dtype, &Device::Cpu).expect("memory")
}
