//! Integers that ops read beside tensors: bounds of sequences, names of rows, ids.

use std::ops::Deref;
use std::sync::Arc;

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

impl<'a, T: Integer> Numbers<'a, T> {
    /// Where they are on `gpu`, where they are copied first if they are not there.
    ///
    /// # Errors
    /// If memory is short.
    pub fn on(self, gpu: &Arc<Gpu>) -> Result<Placed<'a>> {
        match self.gpu {
            Some(array) if array.is_on(gpu) => Ok(Placed::There(array)),
            _ => {
                let mut copy = None;
                GpuArray::refill(&mut copy, gpu, self.host)?;
                Ok(copy.map_or(Placed::Nowhere, Placed::Copied))
            }
        }
    }
}

/// An op's integers on a GPU, to be kept until the op is launched: memory is freed in the stream's order.
#[derive(Debug)]
pub enum Placed<'a> {
    /// There are none.
    Nowhere,
    /// An [`Array`]'s.
    There(&'a GpuArray),
    /// Copied for this op.
    Copied(GpuArray),
}

impl Placed<'_> {
    /// Of the first.
    pub fn address(&self) -> Address {
        match self {
            Self::Nowhere => Address::NULL,
            Self::There(array) => array.address(),
            Self::Copied(array) => array.address(),
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
