//! What ops read and write: candle's tensor in the host's memory, or memory of a GPU.
//!
//! candle's own CUDA tensors need the driver's library when the program starts and a quarter of an hour of its
//! kernels when it is built; ours need neither (see [`super::cuda`]).

use std::sync::Arc;

use candle_core::{DType, Result, Shape, WithDType, bail};

use super::cuda::{Gpu, GpuTensor};
use super::device::Device;
use super::memory::vacate;
use super::view;

/// Numbers of one type, row by row without gaps. Clones and views share memory.
#[derive(Clone, Debug)]
pub enum Tensor {
    /// In the host's memory.
    Host(candle_core::Tensor),
    /// In a GPU's.
    Gpu(GpuTensor),
}

impl From<candle_core::Tensor> for Tensor {
    fn from(tensor: candle_core::Tensor) -> Self {
        Self::Host(tensor)
    }
}

impl Tensor {
    /// These numbers, on this device.
    ///
    /// # Errors
    /// If there are not as many as the shape says, or memory is short.
    pub fn from_vec<T: WithDType, S: Into<Shape>>(
        values: Vec<T>,
        shape: S,
        device: &Device,
    ) -> Result<Self> {
        let host = candle_core::Tensor::from_vec(values, shape, &candle_core::Device::Cpu)?;
        Self::Host(host).to_device(device)
    }

    /// Zeros.
    ///
    /// # Errors
    /// If memory is short.
    pub fn zeros<S: Into<Shape>>(shape: S, dtype: DType, device: &Device) -> Result<Self> {
        Ok(match device {
            Device::Cpu => {
                candle_core::Tensor::zeros(shape, dtype, &candle_core::Device::Cpu)?.into()
            }
            Device::Gpu(gpu) => Self::Gpu(GpuTensor::zeros(gpu, shape.into().dims(), dtype)?),
        })
    }

    /// Zeros of the same shape and type, on the same device.
    ///
    /// # Errors
    /// If memory is short.
    pub fn zeros_like(&self) -> Result<Self> {
        Self::zeros(self.dims(), self.dtype(), &self.device())
    }

    /// As [`Self::zeros_like`], for tables few of whose rows will ever be written: in the host's memory the others take
    /// no room.
    ///
    /// # Errors
    /// If memory is short.
    pub fn vacant_like(&self) -> Result<Self> {
        let zeros = self.zeros_like()?;
        if let Self::Host(_) = zeros {
            view::write(&zeros, |numbers| {
                vacate(numbers);
                Ok(())
            })?;
        }
        Ok(zeros)
    }

    /// Its shape.
    pub fn dims(&self) -> &[usize] {
        match self {
            Self::Host(tensor) => tensor.dims(),
            Self::Gpu(tensor) => tensor.dims(),
        }
    }

    /// One of its dimensions.
    ///
    /// # Errors
    /// If it has not as many.
    pub fn dim(&self, index: usize) -> Result<usize> {
        match self.dims().get(index) {
            Some(&dim) => Ok(dim),
            None => bail!(
                "a tensor of shape {:?} has no dimension {index}",
                self.dims()
            ),
        }
    }

    /// Rows and columns.
    ///
    /// # Errors
    /// If it is not a matrix.
    pub fn dims2(&self) -> Result<(usize, usize)> {
        match self.dims() {
            &[rows, columns] => Ok((rows, columns)),
            dims => bail!("expected a matrix, got the shape {dims:?}"),
        }
    }

    /// How many numbers.
    pub fn elem_count(&self) -> usize {
        self.dims().iter().product()
    }

    /// Their type.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Host(tensor) => tensor.dtype(),
            Self::Gpu(tensor) => tensor.dtype(),
        }
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        match self {
            Self::Host(_) => Device::Cpu,
            Self::Gpu(tensor) => Device::Gpu(tensor.gpu().clone()),
        }
    }

    /// The GPU that it is on, if it is on one.
    pub fn gpu(&self) -> Option<&Arc<Gpu>> {
        match self {
            Self::Host(_) => None,
            Self::Gpu(tensor) => Some(tensor.gpu()),
        }
    }

    /// A view of some rows.
    ///
    /// # Errors
    /// If it has not as many.
    pub fn rows(&self, start: usize, len: usize) -> Result<Self> {
        Ok(match self {
            Self::Host(tensor) => Self::Host(tensor.narrow(0, start, len)?),
            Self::Gpu(tensor) => Self::Gpu(tensor.rows(start, len)?),
        })
    }

    /// A copy on the same device that shares nothing.
    ///
    /// # Errors
    /// If memory is short.
    pub fn copy(&self) -> Result<Self> {
        Ok(match self {
            Self::Host(tensor) => Self::Host(tensor.contiguous()?.copy()?),
            Self::Gpu(tensor) => Self::Gpu(tensor.copy()?),
        })
    }

    /// The same numbers on another device; itself if it is there.
    ///
    /// # Errors
    /// If memory is short.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        Ok(match (self, device) {
            (Self::Host(_), Device::Cpu) => self.clone(),
            (Self::Host(tensor), Device::Gpu(gpu)) => Self::Gpu(GpuTensor::upload(gpu, tensor)?),
            (Self::Gpu(tensor), _) => Self::Host(tensor.download()?).to_device(device)?,
        })
    }

    /// As candle's, in the host's memory.
    ///
    /// # Errors
    /// If the GPU fails.
    pub fn to_candle(&self) -> Result<candle_core::Tensor> {
        match self {
            Self::Host(tensor) => Ok(tensor.clone()),
            Self::Gpu(tensor) => tensor.download(),
        }
    }
}

/// Short words of tests.
#[cfg(test)]
impl Tensor {
    pub fn ones<S: Into<Shape>>(shape: S, dtype: DType, device: &Device) -> Result<Self> {
        let host = candle_core::Tensor::ones(shape, dtype, &candle_core::Device::Cpu)?;
        Self::Host(host).to_device(device)
    }

    pub fn from_slice<T: WithDType, S: Into<Shape>>(
        values: &[T],
        shape: S,
        device: &Device,
    ) -> Result<Self> {
        Self::from_vec(values.to_vec(), shape, device)
    }

    pub fn full(value: f32, len: usize, device: &Device) -> Result<Self> {
        Self::from_vec(vec![value; len], len, device)
    }

    /// All numbers, whatever the shape.
    pub fn to_vec1<T: WithDType>(&self) -> Result<Vec<T>> {
        self.to_candle()?.flatten_all()?.to_vec1()
    }

    pub fn to_vec2<T: WithDType>(&self) -> Result<Vec<Vec<T>>> {
        self.to_candle()?.to_vec2()
    }

    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        Self::Host(self.to_candle()?.to_dtype(dtype)?).to_device(&self.device())
    }
}
