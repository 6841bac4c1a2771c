//! Fused ops, forward and backward: one file or folder per op, each with its slow reference in its tests.
//!
//! Ops take [`tensor::Tensor`]s. On the CPU they read them through [`view::read`], and write them through
//! [`view::write`] into preallocated outputs; on a GPU an op's `cuda.rs` launches the kernels of its `.cu` file.
//! The same tests run on both, the GPU being emulated. This is the only module with `unsafe`.
//!
//! Shapes in comments: T token rows of a packed micro-batch, B sequences, D hidden, H heads, C classes.

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod clip;
pub mod cpu;
pub mod cross_entropy;
pub mod cuda;
pub mod device;
pub mod dropout;
pub mod element;
pub mod embedding;
pub mod exp;
pub mod first_rows;
pub mod gelu;
mod gemm;
pub mod gradient;
pub mod lanes;
pub mod layer_norm;
pub mod linear;
pub mod memory;
pub mod numbers;
pub mod parts;
pub mod pool;
pub mod profile;
pub mod roof;
mod rows;
pub mod tensor;
#[cfg(test)]
mod testing;
pub mod view;
