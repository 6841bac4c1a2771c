//! What the processor's multiply-add units can do: a loop of products on registers, on all threads at once; or a
//! GPU's, by one large product.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use candle_core::DType;
use chandler::kernels::cuda::Gpu;
use chandler::kernels::device::{Compute, Device};
use chandler::kernels::linear::{self, LinearWeight, Precision};
use chandler::kernels::pool::{parallel_for, threads};
use chandler::kernels::roof::products;
use chandler::kernels::tensor::Tensor;

/// GFLOP/s of the fastest of a few short windows.
pub fn gflops(device: &Device, precision: Precision) -> f64 {
    let window = || match device.gpu() {
        None => on_cpu(precision),
        Some(gpu) => on_gpu(device, gpu, precision),
    };
    (0..3).map(|_| window()).fold(0.0, f64::max)
}

/// Of products of 8192 x 8192 numbers.
fn on_gpu(device: &Device, gpu: &Gpu, precision: Precision) -> f64 {
    const N: usize = 8192;
    const PRODUCTS: u32 = 10;
    let compute = Compute {
        device: device.clone(),
        precision,
    };
    let dtype = compute.storage();
    let zeros = |dtype| Tensor::zeros((N, N), dtype, device).expect("memory");
    let weight = LinearWeight::new(&zeros(DType::F32), precision).expect("a weight");
    let (x, out) = (zeros(dtype), zeros(dtype));
    let multiply = || linear::forward(&x, &weight, None, &out).expect("a product");
    multiply();
    gpu.synchronize().expect("a product");
    let started = Instant::now();
    (0..PRODUCTS).for_each(|_| multiply());
    gpu.synchronize().expect("products");
    let flop = f64::from(PRODUCTS) * 2.0 * (N as f64).powi(3);
    flop / started.elapsed().as_secs_f64() / 1e9
}

fn on_cpu(precision: Precision) -> f64 {
    const ROUNDS: u64 = 100_000;
    let sink = AtomicU64::new(0);
    let flop = AtomicU64::new(0);
    let started = Instant::now();
    parallel_for(threads(), |_| {
        let (done, sum) = products(precision, ROUNDS);
        flop.fetch_add(done, Ordering::Relaxed);
        sink.fetch_add(u64::from(sum.to_bits()), Ordering::Relaxed);
    });
    flop.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64() / 1e9
}
