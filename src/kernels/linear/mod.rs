//! The linear layer `y = x Wᵀ + b`, with W `[N, K]` as torch stores it, and its gradients.
//!
//! With [`Precision::Bf16`] the factors of each product are rounded to bf16, and sums are f32, as under
//! autocast. W is packed once per optimizer step, in one form for `y` and one for `dx`. Activations and their
//! gradients are f32 or bf16, all of a call alike; weights, biases and their gradients are f32.

mod backward_input;
mod backward_weight;
mod cuda;
mod forward;
mod pieces;
mod products;

use candle_core::{DType, Result, bail};

use super::device::Device;
use super::gemm::{Aligned, Engine, Layout, pack_columns, pack_rows};
use super::pool::{Disjoint, parallel_for};
use super::profile;
use super::view::read;
use crate::kernels::tensor::Tensor;
pub use backward_input::{Share, backward_input, backward_input_activated, backward_input_all};
pub use backward_weight::{Gradient, backward_weight, backward_weight_all};
pub use forward::{Activated, Projection, forward, forward_activated, forward_all};

/// What the factors of matrix products are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    F32,
    Bf16,
}

impl Precision {
    /// Whether this CPU multiplies bf16 natively; elsewhere [`Self::Bf16`] is not faster than f32.
    pub fn native_bf16() -> bool {
        Engine::best(Self::Bf16).format().is_pairs()
    }

    /// What activations are kept as: bf16 only where products take it as it is.
    pub fn storage(self) -> DType {
        if Engine::best(self).format().is_pairs() {
            DType::BF16
        } else {
            DType::F32
        }
    }
}

/// A weight and what is packed from it.
#[derive(Debug)]
pub struct LinearWeight {
    weight: Tensor,
    engine: Engine,
    out_features: usize,
    in_features: usize,
    /// For `y`: depth K, width N.
    forward: Aligned,
    /// For `dx`: depth N, width K.
    backward: Aligned,
    /// On a GPU, instead of both.
    gpu: Option<cuda::Weight>,
}

impl LinearWeight {
    /// Packs a `[N, K]` tensor, which it shares.
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
        let mut this = Self {
            weight: weight.clone(),
            engine,
            out_features,
            in_features,
            forward: Aligned::new(),
            backward: Aligned::new(),
            gpu,
        };
        this.refresh()?;
        Ok(this)
    }

    /// Packs anew, after the optimizer changed the tensor.
    ///
    /// # Errors
    /// If the tensor is not a contiguous f32 matrix.
    pub fn refresh(&mut self) -> Result<()> {
        if let Some(gpu) = &self.gpu {
            return gpu.refresh(&self.weight);
        }
        let (engine, n, k) = (self.engine, self.out_features, self.in_features);
        let (forward, backward) = (self.forward_layout(), self.backward_layout());
        let _op = profile::op("pack weights", 0, 8 * n * k);
        let along = Disjoint::new(self.forward.words(forward.len()));
        let down = Disjoint::new(self.backward.words(backward.len()));
        read(&self.weight, |weight| {
            parallel_for(forward.panels() + backward.panels(), |task| {
                if let Some(p) = task.checked_sub(forward.panels()) {
                    let (columns, padded) = (backward.columns(p), backward.padded(p));
                    // SAFETY: each task writes its own panel.
                    let out = unsafe { down.slice(backward.range(p)) };
                    let from = weight.get(columns.start..).unwrap_or_default();
                    pack_rows(engine, from, k, n, columns.len(), padded, out);
                } else {
                    let (columns, padded) = (forward.columns(task), forward.padded(task));
                    // SAFETY: each task writes its own panel.
                    let out = unsafe { along.slice(forward.range(task)) };
                    let from = &weight[columns.start * k..];
                    pack_columns(engine, from, k, columns.len(), k, padded, out);
                }
            });
        })
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

    fn forward_layout(&self) -> Layout {
        Layout::new(self.engine.words(self.in_features), self.out_features)
    }

    fn backward_layout(&self) -> Layout {
        Layout::new(self.engine.words(self.out_features), self.in_features)
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
