//! GPUs: the driver, memory, launches and products, behind the same ops as the CPU's.
//!
//! Every op that has a GPU path keeps it in its own folder: `<op>.cu` with the kernels and `cuda.rs` with their
//! launches. `prelude.cuh` here is what all kernels include. The build script makes one image of them when the
//! feature `cuda` is on. NVIDIA's libraries are loaded when a GPU is first asked for, so the program starts
//! without them.
//!
//! All work of a process goes to one stream, in order; only reading a result waits, and uploads pass through pinned
//! memory so that they do not wait either. Nothing uses atomics on
//! floats: each result has one owner and a fixed order of sums.

mod array;
mod blas;
mod column_sums;
mod event;
mod gpu;
mod launch;
mod memory;
mod operands;
mod pinned;
mod staging;
mod table;
mod tensor;

pub use array::{GpuArray, Integer};
pub use blas::{Epilogue, Factor, Product};
pub use column_sums::ColumnSums;
pub use event::Event;
pub use gpu::{DeviceError, Gpu};
pub use launch::{Argument, Grid};
pub use memory::{Address, Memory};
pub use operands::of_dtype;
pub use pinned::Pinned;
pub use table::Table;
pub use tensor::GpuTensor;

#[cfg(test)]
pub mod emulated;
