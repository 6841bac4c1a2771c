//! A GPU for tests.
use super::Gpu;
use crate::kernels::device::Device;
pub fn device() -> Device { Device::Gpu(Gpu::open(0).unwrap()) }
