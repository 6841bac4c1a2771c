//! What launches need of tensors: their addresses, checked to be on one GPU, and names by type.

use std::sync::Arc;

use candle_core::{DType, Result, bail};

use super::{Address, Gpu};
use crate::kernels::tensor::Tensor;

impl Gpu {
    /// Where a tensor is, if it is on this GPU and of this type.
    ///
    /// # Errors
    /// If it is elsewhere or of another type.
    pub fn address(self: &Arc<Self>, tensor: &Tensor, dtype: DType) -> Result<Address> {
        match tensor {
            Tensor::Gpu(tensor) if Arc::ptr_eq(tensor.gpu(), self) && tensor.dtype() == dtype => {
                Ok(tensor.address())
            }
            Tensor::Gpu(tensor) if Arc::ptr_eq(tensor.gpu(), self) => {
                bail!("expected a tensor of {dtype:?}, got {:?}", tensor.dtype())
            }
            _ => bail!("expected all tensors of an op on one GPU"),
        }
    }

    /// [`Self::address`] for several.
    ///
    /// # Errors
    /// As that.
    pub fn addresses<const N: usize>(
        self: &Arc<Self>,
        tensors: [&Tensor; N],
        dtype: DType,
    ) -> Result<[Address; N]> {
        let mut addresses = [Address::NULL; N];
        for (address, tensor) in addresses.iter_mut().zip(tensors) {
            *address = self.address(tensor, dtype)?;
        }
        Ok(addresses)
    }

    /// Blocks for `n` elements, `each` per block: enough to fill the card, each block going on until all is done.
    pub fn blocks_for(&self, n: usize, each: usize) -> usize {
        n.div_ceil(each).min(16 * self.multiprocessors() as usize)
    }
}

/// The kernel for a type of element.
///
/// # Errors
/// If there is none.
pub fn of_dtype(dtype: DType, f32: &'static str, bf16: &'static str) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok(f32),
        DType::BF16 => Ok(bf16),
        other => bail!("GPUs compute f32 and bf16, not {other:?}"),
    }
}
