//! A GPU for tests: an emulated driver (`tests/cuda`) runs our kernels on the CPU, with its checks on; so the
//! same bodies of tests run on every device. With `CHANDLER_TEST_GPU=1` they run on a real card instead.

use std::sync::{Arc, OnceLock};

use super::Gpu;
use crate::kernels::device::Device;

#[path = "../../../tests/support/emulated_gpu.rs"]
mod libraries;

/// The one GPU of all tests of a process.
pub fn device() -> Device {
    static GPU: OnceLock<Arc<Gpu>> = OnceLock::new();
    Device::Gpu(GPU.get_or_init(another).clone())
}

/// The same card, opened once more: with counts and a cuBLASLt of its own.
pub fn another() -> Arc<Gpu> {
    libraries::load();
    Gpu::open(0).unwrap()
}

/// All kinds of device: a test's body runs on each.
pub fn devices() -> [Device; 2] {
    [Device::Cpu, device()]
}
