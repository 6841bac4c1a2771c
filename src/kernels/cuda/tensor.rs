//! A tensor in a GPU's memory.

use std::sync::Arc;

use candle_core::{CpuStorage, DType, Result, Storage, bail};
use half::bf16;

use super::{Address, Gpu, Memory};

/// Numbers of one type, row by row without gaps. Clones and views share memory.
#[derive(Clone, Debug)]
pub struct GpuTensor {
    memory: Arc<Memory>,
    /// Bytes before the first number.
    offset: usize,
    dims: Vec<usize>,
    dtype: DType,
}

impl GpuTensor {
    fn new(gpu: &Arc<Gpu>, dims: &[usize], dtype: DType) -> Result<Self> {
        let count: usize = dims.iter().product();
        Ok(Self {
            memory: Arc::new(Memory::new(gpu, count * dtype.size_in_bytes())?),
            offset: 0,
            dims: dims.to_vec(),
            dtype,
        })
    }

    /// Zeros.
    ///
    /// # Errors
    /// If memory is short.
    pub fn zeros(gpu: &Arc<Gpu>, dims: &[usize], dtype: DType) -> Result<Self> {
        let this = Self::new(gpu, dims, dtype)?;
        this.zero()?;
        Ok(this)
    }

    /// A copy of a tensor of the host.
    ///
    /// # Errors
    /// If memory is short, or it is not of f32, bf16 or u32.
    pub fn upload(gpu: &Arc<Gpu>, tensor: &candle_core::Tensor) -> Result<Self> {
        let this = Self::new(gpu, tensor.dims(), tensor.dtype())?;
        let tensor = tensor.contiguous()?;
        let (storage, layout) = tensor.storage_and_layout();
        let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets())
        else {
            bail!("expected a tensor on the CPU")
        };
        match storage {
            CpuStorage::F32(x) => this.memory.write(0, &x[start..end])?,
            CpuStorage::BF16(x) => this.memory.write(0, &x[start..end])?,
            CpuStorage::U32(x) => this.memory.write(0, &x[start..end])?,
            _ => bail!("tensors of {:?} do not go to a GPU", tensor.dtype()),
        }
        Ok(this)
    }

    /// A copy in the host's memory; waits for all work before.
    ///
    /// # Errors
    /// If any of that work went wrong.
    pub fn download(&self) -> Result<candle_core::Tensor> {
        let (dims, cpu) = (self.dims(), &candle_core::Device::Cpu);
        match self.dtype {
            DType::F32 => candle_core::Tensor::from_vec(self.read(0f32)?, dims, cpu),
            DType::BF16 => candle_core::Tensor::from_vec(self.read(bf16::ZERO)?, dims, cpu),
            DType::U32 => candle_core::Tensor::from_vec(self.read(0u32)?, dims, cpu),
            other => bail!("tensors of {other:?} are not on GPUs"),
        }
    }

    /// All numbers; `zero` says of which type.
    ///
    /// # Errors
    /// If they are of another type, or work before went wrong.
    pub fn read<T: Copy>(&self, zero: T) -> Result<Vec<T>> {
        let mut values = vec![zero; self.count::<T>()?];
        self.memory.read(self.offset, &mut values)?;
        Ok(values)
    }

    /// Overwrites all numbers.
    ///
    /// # Errors
    /// If there are not as many, of the same type.
    pub fn write<T: Copy>(&self, values: &[T]) -> Result<()> {
        if values.len() != self.count::<T>()? {
            bail!(
                "{} numbers for a tensor of shape {:?}",
                values.len(),
                self.dims
            )
        }
        self.memory.write(self.offset, values)
    }

    /// Sets all numbers to zero.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn zero(&self) -> Result<()> {
        let bytes = self.dims.iter().product::<usize>() * self.dtype.size_in_bytes();
        self.memory.zero(self.offset, bytes)
    }

    fn count<T>(&self) -> Result<usize> {
        if size_of::<T>() != self.dtype.size_in_bytes() {
            bail!(
                "a tensor of {:?} was asked for numbers of another size",
                self.dtype
            )
        }
        Ok(self.dims.iter().product())
    }

    /// A copy that shares nothing.
    ///
    /// # Errors
    /// If memory is short.
    pub fn copy(&self) -> Result<Self> {
        let copy = Self::new(self.gpu(), &self.dims, self.dtype)?;
        copy.memory
            .copy_from(0, &self.memory, self.offset, copy.memory.bytes())?;
        Ok(copy)
    }

    /// A view of some rows.
    ///
    /// # Errors
    /// If it has not as many.
    pub fn rows(&self, start: usize, len: usize) -> Result<Self> {
        let rows = self.dims.first().copied().unwrap_or(0);
        if start.checked_add(len).is_none_or(|end| end > rows) {
            bail!(
                "rows {start}.. of {len} are not in the shape {:?}",
                self.dims
            )
        }
        let row: usize = self.dims.iter().skip(1).product();
        let mut view = self.clone();
        view.offset += start * row * self.dtype.size_in_bytes();
        view.dims[0] = len;
        Ok(view)
    }

    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn gpu(&self) -> &Arc<Gpu> {
        self.memory.gpu()
    }

    /// Where its first number is.
    pub fn address(&self) -> Address {
        self.memory.address().offset(self.offset)
    }
}
