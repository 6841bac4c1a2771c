//! Whether this program can train on the GPU it was given; asked before any job is put there.

use candle_core::{DType, Result};

use crate::domain::{ErrorCode, JobError};
use crate::kernels::device::Device;
use crate::kernels::linear::{self, LinearWeight, Precision};
use crate::kernels::tensor::Tensor;

use super::step::engine;

/// Opens the first GPU that this process may use and has it compute something small, of which the result is known:
/// so driver, kernels and cuBLASLt are all there, and fit the card and each other. Answers the card's name.
///
/// # Errors
/// `device_failed`, with what is missing or wrong.
pub fn check_gpu() -> std::result::Result<String, JobError> {
    let gpu = Device::first_gpu().map_err(engine)?;
    check(&gpu)?;
    Ok(gpu.name().to_owned())
}

fn check(device: &Device) -> std::result::Result<(), JobError> {
    let (there, here) = (products(device), products(&Device::Cpu));
    let (there, here) = (there.map_err(engine)?, here.map_err(engine)?);
    if there == here {
        return Ok(());
    }
    let name = device.name();
    let message = format!("{name} computes {there:?}, which is {here:?}");
    Err(JobError::new(ErrorCode::DeviceFailed, message)
        .hint("the card or its driver is broken: `nvidia-smi -q` and the system's log say more"))
}

/// A layer's outputs and the gradient of its inputs. All numbers are small integers, and so exact in bf16.
fn products(device: &Device) -> Result<[Vec<f32>; 2]> {
    const SIZE: usize = 8;
    let matrix = |rows: usize, dtype| {
        let values = (0..rows * SIZE).map(|i| (i % 7) as f32 - 3.0).collect();
        let host = Tensor::from_vec(values, (rows, SIZE), &Device::Cpu)?.to_candle()?;
        Tensor::from(host.to_dtype(dtype)?).to_device(device)
    };
    let (precision, dtype) = match device {
        Device::Cpu => (Precision::F32, DType::F32),
        Device::Gpu(_) => (Precision::Bf16, DType::BF16),
    };
    let weight = LinearWeight::new(&matrix(SIZE, DType::F32)?, precision)?;
    let bias = matrix(1, dtype)?.to_candle()?.flatten_all()?;
    let bias = Tensor::from(bias).to_device(device)?;
    let (x, y, dx) = (matrix(3, dtype)?, matrix(3, dtype)?, matrix(3, dtype)?);
    linear::forward(&x, &weight, Some(&bias), &y)?;
    linear::backward_input(&x, &weight, &dx, false)?;
    let read = |tensor: &Tensor| {
        let host = tensor.to_candle()?.to_dtype(DType::F32)?;
        host.flatten_all()?.to_vec1()
    };
    Ok([read(&y)?, read(&dx)?])
}

#[cfg(test)]
mod tests {
    use crate::kernels::cuda::emulated;

    use super::*;

    #[test]
    fn the_emulated_gpu_passes_and_integers_are_exact() {
        check(&emulated::device()).unwrap();
        let [y, dx] = products(&Device::Cpu).unwrap();
        // Row 0 of x is -3 -2 -1 0 1 2 3 -3, that of W is the same, the bias begins with -3.
        assert_eq!(y[0], 37.0 - 3.0);
        assert!(
            y.iter()
                .chain(&dx)
                .all(|x| x.abs() <= 256.0 && x.fract() == 0.0)
        );
        assert!(y != dx);
    }
}
