//! Integers that ops read beside tensors: bounds of sequences, names of rows, ids.

use std::ops::Deref;

use candle_core::Result;

use super::cuda::{Address, Gpu, GpuArray, Integer};
use super::device::Device;

/// Integers on the host, and where tensors are on a GPU a copy there.
#[derive(Debug)]
pub struct Array<T> {
    host: Vec<T>,
    gpu: Option<GpuArray>,
}

impl<T> Default for Array<T> {
    fn default() -> Self {
        Self {
            host: Vec::new(),
            gpu: None,
        }
    }
}

impl<T: Integer> Array<T> {
    /// Replaces all; memory of what was there is used again.
    ///
    /// # Errors
    /// If memory is short.
    pub fn set(&mut self, values: impl IntoIterator<Item = T>, device: &Device) -> Result<()> {
        self.host.clear();
        self.host.extend(values);
        match device {
            Device::Cpu => self.gpu = None,
            Device::Gpu(gpu) => GpuArray::refill(&mut self.gpu, gpu, &self.host)?,
        }
        Ok(())
    }

    /// All of them, for an op.
    pub fn all(&self) -> Numbers<'_, T> {
        Numbers {
            host: &self.host,
            gpu: self.gpu.as_ref(),
        }
    }
}

impl<T> Deref for Array<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.host
    }
}

/// An op's view of an [`Array`], or of integers that are on the host only.
#[derive(Clone, Copy, Debug)]
pub struct Numbers<'a, T> {
    host: &'a [T],
    gpu: Option<&'a GpuArray>,
}

impl<'a, T> Numbers<'a, T> {
    /// On the host.
    pub fn host(self) -> &'a [T] {
        self.host
    }
}

impl<T: Integer> Numbers<'_, T> {
    /// Calls `f` with where they are on `gpu`, where they are copied first if they are not there.
    ///
    /// # Errors
    /// If memory is short, and what `f` answers.
    pub fn on<R>(
        self,
        gpu: &std::sync::Arc<Gpu>,
        f: impl FnOnce(Address) -> Result<R>,
    ) -> Result<R> {
        match self.gpu {
            Some(array) if array.is_on(gpu) => f(array.address()),
            _ => {
                let mut copy = None;
                GpuArray::refill(&mut copy, gpu, self.host)?;
                f(copy.as_ref().map_or(Address::NULL, GpuArray::address))
            }
        }
    }
}

impl<T> Deref for Numbers<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.host
    }
}

impl<'a, T> From<&'a [T]> for Numbers<'a, T> {
    fn from(host: &'a [T]) -> Self {
        Self { host, gpu: None }
    }
}

impl<'a, T> From<&'a Vec<T>> for Numbers<'a, T> {
    fn from(host: &'a Vec<T>) -> Self {
        host.as_slice().into()
    }
}

impl<'a, T, const N: usize> From<&'a [T; N]> for Numbers<'a, T> {
    fn from(host: &'a [T; N]) -> Self {
        host.as_slice().into()
    }
}
