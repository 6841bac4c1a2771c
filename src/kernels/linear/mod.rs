//! The linear layer `y = x Wᵀ + b`, with W `[N, K]` as torch stores it, and its gradients.
//!
//! With [`Precision::Bf16`] the factors of each product are rounded to bf16, and sums are f32, as under
//! autocast. On a CPU W is packed for each product anew, into memory that all layers share: a model of which each
//! weight was kept in both forms, for `y` and for `dx`, would be half as large again, and a step packs as often.
//! Activations and their gradients are f32 or bf16, all of a call alike; weights, biases and their gradients are f32.

mod backward_input;
mod backward_weight;
mod cuda;
mod forward;
mod pieces;
mod products;

use std::cell::RefCell;

use candle_core::{DType, Result, bail};

use super::device::Device;
use super::gemm::{Aligned, Engine, Layout, Panels, pack_columns, pack_rows};
use super::pool::{Disjoint, parallel_for};
use super::profile;
use super::view::read;
use crate::kernels::tensor::Tensor;
pub use backward_input::{
    Reactivated, Share, backward_input, backward_input_activated, backward_input_all,
};
pub use backward_weight::{Gradient, backward_weight, backward_weight_all};
pub use forward::{Activated, Projection, forward, forward_activated, forward_all};

/// What the factors of matrix products are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    F32,
    Bf16,
}

impl Precision {
    /// Whether this CPU multiplies bf16 faster than f32.
    pub fn fast_bf16() -> bool {
        Engine::best(Self::Bf16).format().is_pairs()
    }

    /// What activations are kept as.
    pub fn storage(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// A weight, as products want it.
#[derive(Debug)]
pub struct LinearWeight {
    weight: Tensor,
    engine: Engine,
    out_features: usize,
    in_features: usize,
    /// On a GPU.
    gpu: Option<cuda::Weight>,
}

/// What a weight is multiplied with.
#[derive(Clone, Copy)]
enum Side {
    /// x, for `y`: depth K, width N.
    Input,
    /// dy, for `dx`: depth N, width K.
    Output,
}

thread_local! {
    /// The caller's packed weights of a product.
    static PACKED: RefCell<Vec<Aligned>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with weights packed for products with this side of each.
fn with_packed<R>(
    weights: &[&LinearWeight],
    side: Side,
    f: impl FnOnce(Vec<Panels<'_>>) -> Result<R>,
) -> Result<R> {
    PACKED.with_borrow_mut(|buffers| {
        if buffers.len() < weights.len() {
            buffers.resize_with(weights.len(), Aligned::new);
        }
        let packed = weights.iter().zip(buffers);
        let packed = packed.map(|(weight, buffer)| weight.pack(side, buffer));
        f(packed.collect::<Result<_>>()?)
    })
}

impl LinearWeight {
    /// Of a `[N, K]` tensor, which it shares.
    ///
    /// # Errors
    /// If the tensor is not a contiguous f32 matrix.
    pub fn new(weight: &Tensor, precision: Precision) -> Result<Self> {
        let gpu = match weight.device() {
            Device::Cpu => None,
            Device::Gpu(_) => Some(cuda::Weight::new(weight, precision)?),
        };
        Self::with(Engine::best(precision), weight, gpu)
    }

    #[cfg(test)]
    fn on(engine: Engine, weight: &Tensor) -> Result<Self> {
        Self::with(engine, weight, None)
    }

    fn with(engine: Engine, weight: &Tensor, gpu: Option<cuda::Weight>) -> Result<Self> {
        let (out_features, in_features) = weight.dims2()?;
        let this = Self {
            weight: weight.clone(),
            engine,
            out_features,
            in_features,
            gpu,
        };
        this.refresh()?;
        Ok(this)
    }

    /// Copies what a GPU multiplies in bf16, after the tensor was changed by anything but the optimizer.
    ///
    /// # Errors
    /// If the tensor is not a contiguous f32 matrix.
    pub fn refresh(&self) -> Result<()> {
        let refresh = |gpu: &cuda::Weight| gpu.refresh(&self.weight);
        self.gpu.as_ref().map_or(Ok(()), refresh)
    }

    fn pack<'a>(&self, side: Side, buffer: &'a mut Aligned) -> Result<Panels<'a>> {
        let (engine, n, k) = (self.engine, self.out_features, self.in_features);
        let layout = match side {
            Side::Input => Layout::new(engine.words(k), n),
            Side::Output => Layout::new(engine.words(n), k),
        };
        let _op = profile::op("pack weights", 0, 8 * n * k);
        let packed = Disjoint::new(buffer.words(layout.len()));
        read(&self.weight, |weight| {
            parallel_for(layout.panels(), |panel| {
                let (columns, padded) = (layout.columns(panel), layout.padded(panel));
                // SAFETY: each task writes its own panel.
                let out = unsafe { packed.slice(layout.range(panel)) };
                match side {
                    Side::Input => {
                        let from = &weight[columns.start * k..];
                        pack_columns(engine, from, k, columns.len(), k, padded, out);
                    }
                    Side::Output => {
                        let from = weight.get(columns.start..).unwrap_or_default();
                        pack_rows(engine, from, k, n, columns.len(), padded, out);
                    }
                }
            });
        })?;
        Ok(Panels::new(buffer.get(layout.len()), layout))
    }

    /// On a GPU, in bf16: the copy that products read.
    pub fn rounded(&self) -> Option<&Tensor> {
        self.gpu.as_ref().and_then(cuda::Weight::rounded)
    }

    /// N.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// K.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Refuses a layer that cannot be computed together with this one.
    fn alike(&self, other: &Self) -> Result<()> {
        if self.engine != other.engine {
            bail!("layers of one input have different precisions")
        }
        Ok(())
    }

    fn flop(&self, rows: usize) -> usize {
        2 * rows * self.out_features * self.in_features
    }

    fn bytes(&self, rows: usize, size: usize) -> usize {
        size * rows * (self.out_features + self.in_features)
            + 4 * self.engine.words(self.in_features) * self.out_features
    }
}

fn expect(tensor: &Tensor, dims: &[usize]) -> Result<()> {
    if tensor.dims() != dims {
        bail!("expected the shape {dims:?}, got {:?}", tensor.dims());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
