//! Integers in a GPU's memory.

use std::sync::Arc;

use candle_core::Result;

use super::{Address, Gpu, Memory};

/// What arrays are of.
pub trait Integer: Copy + std::fmt::Debug {}
impl Integer for u32 {}
impl Integer for u64 {}

/// A copy of integers that the host has.
#[derive(Debug)]
pub struct GpuArray(Memory);

impl GpuArray {
    /// Copies integers over what `array` has, with new memory if that is too small or elsewhere. Nothing to copy
    /// takes no memory.
    ///
    /// # Errors
    /// If memory is short.
    pub fn refill<T: Integer>(
        array: &mut Option<Self>,
        gpu: &Arc<Gpu>,
        values: &[T],
    ) -> Result<()> {
        let bytes = size_of_val(values);
        let fits = array
            .as_ref()
            .is_some_and(|a| a.is_on(gpu) && a.0.bytes() >= bytes);
        if !fits {
            *array = None;
        }
        if values.is_empty() {
            return Ok(());
        }
        let array = match array {
            Some(array) => array,
            none => none.insert(Self(Memory::new(gpu, bytes.next_power_of_two())?)),
        };
        array.0.write(0, values)
    }

    /// Whether it is in this GPU's memory.
    pub fn is_on(&self, gpu: &Arc<Gpu>) -> bool {
        Arc::ptr_eq(self.0.gpu(), gpu)
    }

    pub fn address(&self) -> Address {
        self.0.address()
    }
}
