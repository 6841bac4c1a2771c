//! Memory of a GPU.

use std::sync::Arc;

use candle_core::{Error, Result};
use cudarc::driver::{result, sys};

use super::gpu::{Gpu, failed};
use super::pinned::Pinned;

/// Where something is in a GPU's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Address(pub(super) sys::CUdeviceptr);

impl Address {
    /// Nothing: for what a kernel does not need this time.
    pub const NULL: Self = Self(0);

    /// For tables that kernels read.
    pub fn word(self) -> u64 {
        self.0
    }

    /// So many bytes further.
    #[must_use]
    pub fn offset(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// A piece of a GPU's memory, freed in the stream's order: after all work that was launched before.
#[derive(Debug)]
pub struct Memory {
    gpu: Arc<Gpu>,
    address: Address,
    bytes: usize,
}

impl Memory {
    /// Whatever was there before.
    ///
    /// # Errors
    /// If there is not as much.
    pub fn new(gpu: &Arc<Gpu>, bytes: usize) -> Result<Self> {
        gpu.bind()?;
        // Zero bytes cannot be had.
        let size = bytes.max(16);
        // SAFETY: the memory is ours until `drop`.
        let address = unsafe {
            if gpu.has_async_alloc() {
                result::malloc_async(gpu.stream(), size)
            } else {
                result::malloc_sync(size)
            }
        };
        Ok(Self {
            address: Address(address.map_err(failed("memory"))?),
            gpu: gpu.clone(),
            bytes,
        })
    }

    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    pub fn address(&self) -> Address {
        self.address
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Sets a part to zeros.
    ///
    /// # Errors
    /// If it has no such part, or the driver fails.
    pub fn zero(&self, offset: usize, bytes: usize) -> Result<()> {
        let to = self.part(offset, bytes)?;
        // SAFETY: the part is inside.
        unsafe { result::memset_d8_async(to.0, 0, bytes, self.gpu.stream()) }
            .map_err(failed("zeroing"))
    }

    /// Copies from the host, which may change its copy as soon as this returns.
    ///
    /// # Errors
    /// If it has no such part, or the driver fails.
    pub fn write<T: Copy>(&self, offset: usize, from: &[T]) -> Result<()> {
        let to = self.part(offset, size_of_val(from))?;
        // SAFETY: numbers are bytes.
        let from = unsafe { std::slice::from_raw_parts(from.as_ptr().cast(), size_of_val(from)) };
        // SAFETY: the part is inside.
        self.gpu
            .with_staging(|staging| unsafe { staging.write(&self.gpu, to, from) })
    }

    /// Copies to the host; waits for all work before it.
    ///
    /// # Errors
    /// If it has no such part, or any work went wrong.
    pub fn read<T: Copy>(&self, offset: usize, to: &mut [T]) -> Result<()> {
        let from = self.part(offset, size_of_val(to))?;
        // SAFETY: the part is inside; `to` stays borrowed until the copy is complete.
        unsafe { result::memcpy_dtoh_async(to, from.0, self.gpu.stream()) }
            .map_err(failed("copying from the GPU"))?;
        self.gpu.synchronize()
    }

    /// Copies as much as `to` has, without waiting: it is there once an event behind this was reached, and must live
    /// until then.
    ///
    /// # Errors
    /// If it has no such part, or the driver fails.
    pub fn read_later(&self, offset: usize, to: &Pinned) -> Result<()> {
        let from = self.part(offset, to.bytes())?;
        // SAFETY: both parts are inside, and pinned memory is freed by the driver, after copies under way.
        unsafe {
            let to = std::slice::from_raw_parts_mut(to.part(0, to.bytes()), to.bytes());
            result::memcpy_dtoh_async(to, from.0, self.gpu.stream())
        }
        .map_err(failed("copying from the GPU"))
    }

    /// Copies from other memory of the same GPU.
    ///
    /// # Errors
    /// If there is no such part, or the driver fails.
    pub fn copy_from(
        &self,
        offset: usize,
        from: &Self,
        from_offset: usize,
        bytes: usize,
    ) -> Result<()> {
        let (to, from) = (self.part(offset, bytes)?, from.part(from_offset, bytes)?);
        // SAFETY: both parts are inside.
        unsafe { result::memcpy_dtod_async(to.0, from.0, bytes, self.gpu.stream()) }
            .map_err(failed("copying"))
    }

    fn part(&self, offset: usize, bytes: usize) -> Result<Address> {
        if offset.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            return Err(Error::Msg(format!(
                "{bytes} bytes at {offset} of {}",
                self.bytes
            )));
        }
        self.gpu.bind()?;
        Ok(self.address.offset(offset))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.gpu.bind().is_err() {
            return;
        }
        // SAFETY: nobody has the address any more but work launched before. An error here is one of earlier
        // work, which whoever waits for that work sees.
        let _ = unsafe {
            if self.gpu.has_async_alloc() {
                result::free_async(self.address.0, self.gpu.stream())
            } else {
                result::free_sync(self.address.0)
            }
        };
    }
}
