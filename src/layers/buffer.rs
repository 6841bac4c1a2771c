//! Preallocated buffers: grown when a larger micro-batch comes, never shrunk, so that a training run
//! soon stops allocating and pages stay warm.

use std::io;

use candle_core::{DType, Error, Result};
use half::bf16;

use crate::kernels::device::{Compute, Device};
use crate::kernels::tensor::Tensor;

/// Capacities are multiples of this many rows, so that a slightly longer micro-batch finds room.
const ROUND_ROWS: usize = 64;

/// Room for rows of one width.
#[derive(Debug)]
pub struct Buffer {
    width: usize,
    dtype: DType,
    device: Device,
    rows: Option<Tensor>,
}

impl Buffer {
    /// An empty buffer of activations; memory comes with the first use.
    pub fn new(compute: &Compute, width: usize) -> Self {
        Self {
            width,
            dtype: compute.storage(),
            device: compute.device.clone(),
            rows: None,
        }
    }

    /// The first `rows` rows, [rows, width]. They keep what was written until the buffer has to grow.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn rows(&mut self, rows: usize) -> Result<Tensor> {
        match &self.rows {
            Some(tensor) if tensor.dim(0)? >= rows => tensor.rows(0, rows),
            _ => {
                self.rows = None; // Frees the old memory first.
                let shape = (rows.next_multiple_of(ROUND_ROWS), self.width);
                let tensor = match (&self.device, self.dtype) {
                    (Device::Gpu(_), dtype) => Tensor::zeros(shape, dtype, &self.device)?,
                    (Device::Cpu, DType::BF16) => {
                        Tensor::from_vec(filled(bf16::ZERO, shape)?, shape, &self.device)?
                    }
                    _ => Tensor::from_vec(filled(0f32, shape)?, shape, &self.device)?,
                };
                self.rows.insert(tensor).rows(0, rows)
            }
        }
    }

    /// Gives the memory back.
    pub fn release(&mut self) {
        self.rows = None;
    }
}

/// Copies of `zero`, or an error where candle would end the process.
fn filled<T: Clone>(zero: T, (rows, width): (usize, usize)) -> Result<Vec<T>> {
    let none = |_| io::Error::from(io::ErrorKind::OutOfMemory);
    let mut values = Vec::new();
    let len = rows.saturating_mul(width);
    values.try_reserve_exact(len).map_err(none)?;
    values.resize(len, zero);
    Ok(values)
}

/// Whether an error means that memory could not be had: a smaller micro-batch may do.
pub fn is_out_of_memory(error: &Error) -> bool {
    match error {
        Error::Io(error) => error.kind() == io::ErrorKind::OutOfMemory,
        Error::WithBacktrace { inner, .. } | Error::Context { inner, .. } => {
            is_out_of_memory(inner)
        }
        _ => false,
    }
}

/// Whether an error means that the GPU failed: this process cannot go on with it.
pub fn is_device_failure(error: &Error) -> bool {
    match error {
        Error::Cuda(_) => true,
        Error::WithBacktrace { inner, .. } | Error::Context { inner, .. } => {
            is_device_failure(inner)
        }
        _ => false,
    }
}

/// What layers need only for the length of one call, so that all of them share it.
#[derive(Debug)]
pub struct Workspace {
    /// [T, D]: gradient of a layer's output, then of its input. ([B, D] at a last layer that ran for first
    /// tokens only.)
    pub hidden: Buffer,
    /// [T, D]: gradient between the two halves of a layer.
    pub middle: Buffer,
    /// [T, D]: a branch's output before it joins the residual, and its gradient.
    pub branch: Buffer,
    /// [B, D]: gradient of the first tokens' rows.
    pub first: Buffer,
    /// [T, D] each.
    pub d_query: Buffer,
    /// As `d_query`.
    pub d_key: Buffer,
    /// As `d_query`.
    pub d_value: Buffer,
    /// As `d_query`.
    pub d_context: Buffer,
    /// [T, I]
    pub d_intermediate: Buffer,
    /// [T, I]: behind a layer's activation.
    pub activated: Buffer,
}

impl Workspace {
    /// For layers of these widths.
    pub fn new(compute: &Compute, hidden: usize, intermediate: usize) -> Self {
        let buffer = || Buffer::new(compute, hidden);
        Self {
            hidden: buffer(),
            middle: buffer(),
            branch: buffer(),
            first: buffer(),
            d_query: buffer(),
            d_key: buffer(),
            d_value: buffer(),
            d_context: buffer(),
            d_intermediate: Buffer::new(compute, intermediate),
            activated: Buffer::new(compute, intermediate),
        }
    }

    /// Gives the memory back.
    pub fn release(&mut self) {
        for buffer in [
            &mut self.hidden,
            &mut self.middle,
            &mut self.branch,
            &mut self.first,
            &mut self.d_query,
            &mut self.d_key,
            &mut self.d_value,
            &mut self.d_context,
            &mut self.d_intermediate,
            &mut self.activated,
        ] {
            buffer.release();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::linear::Precision;
    use crate::kernels::view;

    #[test]
    fn rows_stay_in_place_until_the_buffer_grows() {
        let mut buffer = Buffer::new(&Precision::F32.into(), 2);
        view::write(&buffer.rows(3).unwrap(), |x| {
            x.fill(7.0);
            Ok(())
        })
        .unwrap();
        let seen = |buffer: &mut Buffer, rows| buffer.rows(rows).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(
            seen(&mut buffer, 4),
            [[7., 7.], [7., 7.], [7., 7.], [0., 0.]]
        );
        assert_eq!(seen(&mut buffer, 65).len(), 65);
    }

    #[test]
    fn memory_that_cannot_be_had_is_an_error_and_nothing_is_lost() {
        let mut buffer = Buffer::new(&Precision::F32.into(), 1 << 20);
        buffer.rows(1).unwrap();
        let error = buffer.rows(1 << 40).unwrap_err();
        assert!(is_out_of_memory(&error), "{error}");
        assert!(is_out_of_memory(&error.context("in a layer")));
        buffer.rows(1).unwrap();
        buffer.release();
        assert!(buffer.rows.is_none());
        let shapes = Tensor::zeros((2, 3), candle_core::DType::F32, &Device::Cpu)
            .unwrap()
            .rows(0, 9);
        assert!(!is_out_of_memory(&shapes.unwrap_err()));
    }
}
